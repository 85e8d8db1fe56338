// SPDX-License-Identifier: GPL-2.0
/* The table of the ABI, uapi/abi.h, against the device: every ioctl on its file descriptor, and every capability. */
#include "test.h"
#include "../uapi/abi.h"

enum fd_kind { SYSTEM, VM, VCPU };
enum state { IMPLEMENTED, REFUSED, ABSENT };

static const struct {
	const char *name;
	unsigned long request;
	enum fd_kind fd;
	enum state state;
	int error;
} ioctls[] = {
#define XVM_IOCTL(name, fd, state, error) { #name, name, fd, state, error },
#include "../uapi/abi.h"
};

static const struct {
	const char *name;
	int number;
	enum state state;
	int value;
} capabilities[] = {
#define XVM_CAP(name, state, value) { #name, name, state, value },
#include "../uapi/abi.h"
};

/* An address that no structure is at. */
#define NOWHERE 8

/* The answer to an ioctl that is given nothing that it could use, on a new VM. */
static int probe(unsigned int i, unsigned long argument)
{
	struct vm vm = vm_create_bare();
	struct vcpu vcpu = { .fd = -1 };
	int fd, result;

	if (ioctls[i].fd == VCPU)
		vcpu = vcpu_create(&vm, 0);
	fd = ioctls[i].fd == SYSTEM ? vm.device : ioctls[i].fd == VM ? vm.fd : vcpu.fd;
	result = try_ioctl(fd, ioctls[i].request, argument);
	if (vcpu.fd >= 0)
		vcpu_free(&vcpu);
	vm_free(&vm);
	return result;
}

TEST(implemented)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(ioctls); i++) {
		if (ioctls[i].state != IMPLEMENTED)
			continue;
		EXPECT_NE(-ENOTTY, probe(i, NOWHERE)) TH_LOG("%s", ioctls[i].name);
	}
}

TEST(refused)
{
	if (!device_is_xvm())
		SKIP(return, "what KVM refuses is not in xvm's table");
	for (unsigned int i = 0; i < ARRAY_SIZE(ioctls); i++) {
		if (ioctls[i].state != REFUSED)
			continue;
		EXPECT_EQ(-ioctls[i].error, probe(i, NOWHERE)) TH_LOG("%s", ioctls[i].name);
		EXPECT_EQ(-ioctls[i].error, probe(i, 0)) TH_LOG("%s", ioctls[i].name);
	}
}

TEST(absent)
{
	if (!device_is_xvm())
		SKIP(return, "KVM has what is absent in xvm");
	for (unsigned int i = 0; i < ARRAY_SIZE(ioctls); i++) {
		if (ioctls[i].state != ABSENT)
			continue;
		EXPECT_EQ(-ENOTTY, probe(i, NOWHERE)) TH_LOG("%s", ioctls[i].name);
		EXPECT_EQ(-ENOTTY, probe(i, 0)) TH_LOG("%s", ioctls[i].name);
	}
}

/* What a VM says of them is a part of what the device says. */
static bool depends_on_vm(int capability)
{
	return capability == KVM_CAP_X2APIC_API || capability == KVM_CAP_MEMORY_ATTRIBUTES;
}

/* What xvm says it has, KVM has too: the table invents nothing. */
TEST(every_capability)
{
	struct vm vm = vm_create_bare();

	for (unsigned int i = 0; i < ARRAY_SIZE(capabilities); i++) {
		int system = try_ioctl(vm.device, KVM_CHECK_EXTENSION, capabilities[i].number);
		int value = try_ioctl(vm.fd, KVM_CHECK_EXTENSION, capabilities[i].number);

		/* KVM has the interrupt shadow (in KVM_VCPU_EVENTS), but does not say so. */
		if (!device_is_xvm() && capabilities[i].number == KVM_CAP_INTR_SHADOW)
			continue;
		/* Of another type of VM, which Debian's KVM is built without: memory_attributes.c. */
		if (capabilities[i].number == KVM_CAP_MEMORY_ATTRIBUTES)
			continue;
		if (capabilities[i].state == IMPLEMENTED) {
			EXPECT_GE(system, capabilities[i].value != XVM_COMPUTED) TH_LOG("%s: %d", capabilities[i].name, system);
		}
		EXPECT_EQ(0, value & ~system & -depends_on_vm(capabilities[i].number)) TH_LOG("%s: more on the VM", capabilities[i].name);
		if (!device_is_xvm())
			continue;
		if (!depends_on_vm(capabilities[i].number)) {
			EXPECT_EQ(system, value) TH_LOG("%s differs on the VM", capabilities[i].name);
		}
		if (capabilities[i].value != XVM_COMPUTED) {
			EXPECT_EQ(capabilities[i].value, system) TH_LOG("%s", capabilities[i].name);
		}
	}
}

XVM_TEST_MAIN
