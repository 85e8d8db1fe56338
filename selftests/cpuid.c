// SPDX-License-Identifier: GPL-2.0
/* CPUID: what the device supports, what a vCPU is given, what its guest reads. */
#include "test.h"
#include <cpuid.h>

FIXTURE(cpuid)
{
	struct vm vm;
	struct vcpu vcpu;
};

/* CPUID of RSI, RDI; the results stay in the registers. */
GUEST_CODE64(ask, 1: mov %esi, %eax; mov %edi, %ecx; cpuid; out %al, $PORT_SYNC; jmp 1b);
GUEST_CODE64(ask_as_user,
	pushq $SELECTOR_USER_DATA; pushq $GUEST_STACK; pushq $0x3002; pushq $SELECTOR_USER_CODE; pushq $(GUEST_AT(ask_as_user, 1f)); iretq;
	1: mov %esi, %eax; mov %edi, %ecx; cpuid; out %al, $PORT_SYNC; jmp 1b);

FIXTURE_SETUP(cpuid)
{
	guest_start(&self->vm, &self->vcpu, ask);
}

FIXTURE_TEARDOWN(cpuid)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

/* What the guest gets: eax, ebx, ecx, edx. */
static void guest_cpuid(struct vcpu *vcpu, uint32_t function, uint32_t index, uint32_t result[4])
{
	struct kvm_regs regs = vcpu_regs(vcpu);

	regs.rsi = function;
	regs.rdi = index;
	vcpu_set_regs(vcpu, &regs);
	vcpu_run_to_port(vcpu, PORT_SYNC);
	regs = vcpu_regs(vcpu);
	result[0] = regs.rax;
	result[1] = regs.rbx;
	result[2] = regs.rcx;
	result[3] = regs.rdx;
}

struct list {
	struct kvm_cpuid2 header;
	struct kvm_cpuid_entry2 entries[512];
};

/* The leaves that depend on the vCPU's own state: OSXSAVE, APIC id, XSAVE sizes. */
static bool is_dynamic(uint32_t function)
{
	return function == 1 || function == 7 || function == 0xb || function == 0x1f || function == 0xd || function == 0x8000001e ||
	       function == 0x80000001;
}

TEST_F(cpuid, guest_reads_what_was_set)
{
	struct kvm_cpuid2 *supported = supported_cpuid();
	uint32_t seen[4];

	for (unsigned int i = 0; i < supported->nent; i++) {
		struct kvm_cpuid_entry2 *entry = &supported->entries[i];

		if (is_dynamic(entry->function))
			continue;
		guest_cpuid(&self->vcpu, entry->function, entry->index, seen);
		EXPECT_EQ(entry->eax, seen[0]) TH_LOG("leaf %#x.%u eax", entry->function, entry->index);
		EXPECT_EQ(entry->ebx, seen[1]) TH_LOG("leaf %#x.%u ebx", entry->function, entry->index);
		EXPECT_EQ(entry->ecx, seen[2]) TH_LOG("leaf %#x.%u ecx", entry->function, entry->index);
		EXPECT_EQ(entry->edx, seen[3]) TH_LOG("leaf %#x.%u edx", entry->function, entry->index);
	}
}

/* Anything goes, vendor and all: the VMM decides. The high halves of the registers are cleared. */
TEST_F(cpuid, own_leaves)
{
	struct list list = {
		.header.nent = 3,
		.entries = {
			{ .function = 0, .eax = 0x10, .ebx = 0x11111111, .ecx = 0x22222222, .edx = 0x33333333 },
			{ .function = 4, .index = 1, .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX, .eax = 0x41, .ebx = 0x42, .ecx = 0x43, .edx = 0x44 },
			{ .function = 0x40000000, .eax = 0x40000001, .ebx = 0x55555555, .ecx = 0x66666666, .edx = 0x77777777 },
		},
	};
	struct vcpu vcpu = vcpu_create(&self->vm, 1);
	uint32_t seen[4];

	ASSERT_EQ(0, try_ioctl(vcpu.fd, KVM_SET_CPUID2, &list));
	guest_set_mode(&vcpu, MODE_PROTECTED);
	guest_load(&self->vm, ask);
	guest_cpuid(&vcpu, 0, 0, seen);
	EXPECT_EQ(0x10, seen[0]);
	EXPECT_EQ(0x11111111, seen[1]);
	EXPECT_EQ(0x22222222, seen[2]);
	EXPECT_EQ(0x33333333, seen[3]);
	guest_cpuid(&vcpu, 4, 1, seen);
	EXPECT_EQ(0x41, seen[0]);
	EXPECT_EQ(0x44, seen[3]);
	/* Another index of it is not there. */
	guest_cpuid(&vcpu, 4, 0, seen);
	EXPECT_EQ(0, seen[0] | seen[1] | seen[2] | seen[3]);
	guest_cpuid(&vcpu, 0x40000000, 0, seen);
	EXPECT_EQ(0x55555555, seen[1]);
	/* A leaf that is not in the list, in the range of one that is. */
	guest_cpuid(&vcpu, 5, 0, seen);
	EXPECT_EQ(0, seen[0] | seen[1] | seen[2] | seen[3]);
}

TEST_F(cpuid, get_returns_what_was_set)
{
	struct kvm_cpuid2 *supported = supported_cpuid();
	struct list list = { .header.nent = 512 };

	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_GET_CPUID2, &list));
	EXPECT_EQ(supported->nent, list.header.nent);
	for (unsigned int i = 0; i < list.header.nent; i++) {
		if (is_dynamic(supported->entries[i].function))
			continue;
		EXPECT_EQ(0, memcmp(&supported->entries[i], &list.entries[i], sizeof(list.entries[i])))
			TH_LOG("leaf %#x", supported->entries[i].function);
	}
	list.header.nent = 1;
	EXPECT_EQ(-E2BIG, try_ioctl(self->vcpu.fd, KVM_GET_CPUID2, &list));
}

TEST_F(cpuid, refused)
{
	static struct list list;
	struct vcpu vcpu = vcpu_create(&self->vm, 1);

	list.header.nent = 257;
	EXPECT_EQ(-E2BIG, try_ioctl(vcpu.fd, KVM_SET_CPUID2, &list));
	list.header.nent = 0xffffffff;
	EXPECT_EQ(-E2BIG, try_ioctl(vcpu.fd, KVM_SET_CPUID2, &list));
	EXPECT_EQ(-EFAULT, try_ioctl(vcpu.fd, KVM_SET_CPUID2, 8));
	list.header.nent = 0;
	EXPECT_EQ(0, try_ioctl(vcpu.fd, KVM_SET_CPUID2, &list));
	/* The same leaf many times: the first counts, nothing breaks. */
	list.header.nent = 256;
	EXPECT_EQ(0, try_ioctl(vcpu.fd, KVM_SET_CPUID2, &list));
}

/* OSXSAVE follows CR4. */
GUEST_CODE64(osxsave,
	mov $1, %eax; cpuid; mov %ecx, %esi; mov %cr4, %rax; bts $18, %rax; mov %rax, %cr4;
	mov $1, %eax; cpuid; mov %ecx, %edi; GUEST_DONE);

TEST_F(cpuid, osxsave)
{
	struct kvm_cpuid_entry2 *one = cpuid_entry(supported_cpuid(), 1, 0);

	ASSERT_NE(NULL, one);
	if (!(one->ecx & bit_XSAVE))
		SKIP(return, "no XSAVE here");
	guest_load(&self->vm, osxsave);
	guest_set_mode(&self->vcpu, MODE_LONG);
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
	EXPECT_EQ(0, vcpu_regs(&self->vcpu).rsi & bit_OSXSAVE);
	EXPECT_EQ(bit_OSXSAVE, vcpu_regs(&self->vcpu).rdi & bit_OSXSAVE);
}

/* User mode may ask as well; the flags do not change. */
TEST_F(cpuid, user_mode)
{
	uint32_t seen[4], expected[4];

	guest_cpuid(&self->vcpu, 0, 0, expected);
	guest_load(&self->vm, ask_as_user);
	guest_set_mode(&self->vcpu, MODE_LONG);
	guest_cpuid(&self->vcpu, 0, 0, seen);
	EXPECT_EQ(0, memcmp(expected, seen, sizeof(seen)));
}

/* What is promised is there: features that the guest is told of are the host's. */
TEST(supported_is_a_subset_of_the_host)
{
	struct kvm_cpuid_entry2 *one = cpuid_entry(supported_cpuid(), 1, 0), *ext = cpuid_entry(supported_cpuid(), 0x80000001, 0);
	unsigned int eax, ebx, ecx, edx;

	ASSERT_NE(NULL, one);
	ASSERT_NE(NULL, ext);
	__cpuid(1, eax, ebx, ecx, edx);
	/* Emulated whatever the host has: TSC deadline, x2APIC, the hypervisor bit. */
	EXPECT_EQ(0, one->ecx & ~(ecx | 1 << 24 | 1 << 21 | 1u << 31));
	EXPECT_EQ(0, one->edx & ~edx);
	/* And what no 64-bit guest can be without. */
	EXPECT_EQ(0x0789abff & 0x7899979, one->edx & 0x7899979 & 0x0789abff) TH_LOG("leaf 1 edx %#x", one->edx);
	__cpuid(0x80000001, eax, ebx, ecx, edx);
	EXPECT_EQ(1u << 29, ext->edx & 1u << 29);
	EXPECT_EQ(0, ext->edx & ~(edx | 1 << 20));
}

/* A changing feature list after the guest has run is an error, not a surprise; the same list again is none. */
TEST_F(cpuid, change_after_run)
{
	struct list list = { .header.nent = 512 };
	uint32_t seen[4];

	guest_cpuid(&self->vcpu, 0, 0, seen);
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_GET_CPUID2, &list));
	EXPECT_EQ(0, try_ioctl(self->vcpu.fd, KVM_SET_CPUID2, &list));
	list.entries[0].ebx ^= 1;
	EXPECT_EQ(-EINVAL, try_ioctl(self->vcpu.fd, KVM_SET_CPUID2, &list));
	guest_cpuid(&self->vcpu, 0, 0, seen);
	EXPECT_EQ(list.entries[0].ebx ^ 1, seen[1]);
}

/* The ioctl from before leaves had subleaves. */
TEST(old_ioctl)
{
	struct {
		struct kvm_cpuid header;
		struct kvm_cpuid_entry entries[2];
	} list = { .header.nent = 2, .entries = { { .function = 0, .eax = 1 }, { .function = 1, .eax = 0x123, .ebx = 4, .ecx = 5, .edx = 6 } } };
	struct {
		struct kvm_cpuid2 header;
		struct kvm_cpuid_entry2 entries[2];
	} seen = { .header.nent = 2 };
	struct vm vm = vm_create();
	struct vcpu vcpu = vcpu_create(&vm, 0);

	EXPECT_EQ(-EFAULT, try_ioctl(vcpu.fd, KVM_SET_CPUID, 8));
	ASSERT_EQ(0, try_ioctl(vcpu.fd, KVM_SET_CPUID, &list));
	ASSERT_EQ(0, try_ioctl(vcpu.fd, KVM_GET_CPUID2, &seen));
	EXPECT_EQ(2, seen.header.nent);
	EXPECT_EQ(1, seen.entries[1].function);
	EXPECT_EQ(0x123, seen.entries[1].eax);
	EXPECT_EQ(4, seen.entries[1].ebx);
	list.header.nent = 257;
	EXPECT_EQ(-E2BIG, try_ioctl(vcpu.fd, KVM_SET_CPUID, &list));
	vcpu_free(&vcpu);
	vm_free(&vm);
}

XVM_TEST_MAIN
