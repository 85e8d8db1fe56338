// SPDX-License-Identifier: GPL-2.0
/* What is there in two ways: MSRs by KVM_GET_ONE_REG, the PIT by its first ioctls, extended states by an attribute of the device. */
#include "test.h"

#define MSR_LSTAR 0xc0000082
#define MSR_REGISTER(msr) (KVM_REG_X86 | KVM_REG_SIZE_U64 | 2ull << 32 | (msr))

FIXTURE(one_reg)
{
	struct vm vm;
	struct vcpu vcpu;
};

FIXTURE_SETUP(one_reg)
{
	self->vm = vm_create();
	self->vcpu = vcpu_create(&self->vm, 0);
	vcpu_set_supported_cpuid(&self->vcpu);
}

FIXTURE_TEARDOWN(one_reg)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

static int reg(struct vcpu *vcpu, unsigned long request, uint64_t id, void *value)
{
	struct kvm_one_reg one = { .id = id, .addr = (uintptr_t)value };

	return try_ioctl(vcpu->fd, request, &one);
}

TEST_F(one_reg, msrs)
{
	uint64_t value = 0x7fff12345678, seen = 0;

	EXPECT_EQ(1, device_extension(KVM_CAP_ONE_REG));
	EXPECT_EQ(0, reg(&self->vcpu, KVM_SET_ONE_REG, MSR_REGISTER(MSR_LSTAR), &value));
	ASSERT_EQ(1, vcpu_get_msr(&self->vcpu, MSR_LSTAR, &seen));
	EXPECT_EQ(value, seen);
	ASSERT_EQ(1, vcpu_set_msr(&self->vcpu, MSR_LSTAR, 0x1234));
	EXPECT_EQ(0, reg(&self->vcpu, KVM_GET_ONE_REG, MSR_REGISTER(MSR_LSTAR), &seen));
	EXPECT_EQ(0x1234, seen);
}

TEST_F(one_reg, refused)
{
	static const uint64_t bad[] = {
		0, -1ull, MSR_LSTAR, MSR_REGISTER(0xdeadbeef), MSR_REGISTER(MSR_LSTAR) ^ KVM_REG_X86 ^ KVM_REG_ARM64,
		MSR_REGISTER(MSR_LSTAR) ^ KVM_REG_SIZE_U64 ^ KVM_REG_SIZE_U32, MSR_REGISTER(MSR_LSTAR) | 1ull << 40, MSR_REGISTER(MSR_LSTAR) | 1ull << 48,
		MSR_REGISTER(MSR_LSTAR) ^ 1ull << 32, KVM_REG_X86 | KVM_REG_SIZE_U64 | 3ull << 32,
	};
	uint64_t value = 0, not_canonical = 1ull << 63;
	void *volatile nowhere = (void *)8;

	for (unsigned int i = 0; i < ARRAY_SIZE(bad); i++) {
		EXPECT_EQ(-EINVAL, reg(&self->vcpu, KVM_GET_ONE_REG, bad[i], &value)) TH_LOG("%#lx", bad[i]);
		EXPECT_EQ(-EINVAL, reg(&self->vcpu, KVM_SET_ONE_REG, bad[i], &value)) TH_LOG("%#lx", bad[i]);
	}
	EXPECT_EQ(-EINVAL, reg(&self->vcpu, KVM_SET_ONE_REG, MSR_REGISTER(MSR_LSTAR), &not_canonical));
	EXPECT_EQ(-EFAULT, reg(&self->vcpu, KVM_GET_ONE_REG, MSR_REGISTER(MSR_LSTAR), nowhere));
	EXPECT_EQ(-EFAULT, reg(&self->vcpu, KVM_SET_ONE_REG, MSR_REGISTER(MSR_LSTAR), nowhere));
	EXPECT_EQ(-EFAULT, try_ioctl(self->vcpu.fd, KVM_GET_ONE_REG, nowhere));
	EXPECT_EQ(-EFAULT, try_ioctl(self->vcpu.fd, KVM_GET_REG_LIST, nowhere));
}

TEST_F(one_reg, list)
{
	struct kvm_reg_list list = { .n = 0 };

	/* The guest has no shadow stacks, whose pointer is the only register in the list. */
	EXPECT_EQ(0, try_ioctl(self->vcpu.fd, KVM_GET_REG_LIST, &list));
	EXPECT_EQ(0, list.n);
	list.n = -1;
	EXPECT_EQ(0, try_ioctl(self->vcpu.fd, KVM_GET_REG_LIST, &list));
	EXPECT_EQ(0, list.n);
}

TEST(first_pit)
{
	struct vm vm = vm_create();
	struct kvm_pit_state2 two;
	struct kvm_pit_state one;
	struct vcpu vcpu;

	EXPECT_EQ(1, device_extension(KVM_CAP_PIT));
	EXPECT_EQ(-ENOENT, try_ioctl(vm.fd, KVM_CREATE_PIT, 0));
	EXPECT_EQ(-ENXIO, try_ioctl(vm.fd, KVM_GET_PIT, &one));
	vm_create_irqchip(&vm);
	memset(&one, 0, sizeof(one));
	EXPECT_EQ(-ENXIO, try_ioctl(vm.fd, KVM_GET_PIT, &one));
	EXPECT_EQ(-ENXIO, try_ioctl(vm.fd, KVM_SET_PIT, &one));
	EXPECT_EQ(0, try_ioctl(vm.fd, KVM_CREATE_PIT, 0));
	EXPECT_EQ(-EEXIST, try_ioctl(vm.fd, KVM_CREATE_PIT, 0));
	vcpu = vcpu_create(&vm, 0);
	/* One state is the other's begin; the flags stay. */
	do_ioctl(vm.fd, KVM_GET_PIT2, &two);
	two.flags = KVM_PIT_FLAGS_SPEAKER_DATA_ON;
	do_ioctl(vm.fd, KVM_SET_PIT2, &two);
	EXPECT_EQ(0, try_ioctl(vm.fd, KVM_GET_PIT, &one));
	EXPECT_EQ(0, memcmp(&one, &two, sizeof(one)));
	one.channels[0].count = 0x1234;
	one.channels[0].mode = 2;
	EXPECT_EQ(0, try_ioctl(vm.fd, KVM_SET_PIT, &one));
	do_ioctl(vm.fd, KVM_GET_PIT2, &two);
	EXPECT_EQ(0x1234, two.channels[0].count);
	EXPECT_EQ(2, two.channels[0].mode);
	EXPECT_EQ(KVM_PIT_FLAGS_SPEAKER_DATA_ON, two.flags);
	EXPECT_EQ(-EFAULT, try_ioctl(vm.fd, KVM_GET_PIT, NULL));
	EXPECT_EQ(-EFAULT, try_ioctl(vm.fd, KVM_SET_PIT, NULL));
	vcpu_free(&vcpu);
	vm_free(&vm);
}

TEST(extended_states)
{
	uint64_t states = 0;
	struct kvm_device_attr attr = { .attr = KVM_X86_XCOMP_GUEST_SUPP, .addr = (uintptr_t)&states };
	struct kvm_cpuid_entry2 *leaf = cpuid_entry(supported_cpuid(), 0xd, 0);
	struct vm vm = vm_create();

	EXPECT_EQ(1, device_extension(KVM_CAP_SYS_ATTRIBUTES));
	EXPECT_EQ(0, try_ioctl(vm.device, KVM_HAS_DEVICE_ATTR, &attr));
	EXPECT_EQ(0, states);
	EXPECT_EQ(0, try_ioctl(vm.device, KVM_GET_DEVICE_ATTR, &attr));
	EXPECT_EQ((uint64_t)leaf->edx << 32 | leaf->eax, states);
	attr.addr = 8;
	EXPECT_EQ(-EFAULT, try_ioctl(vm.device, KVM_GET_DEVICE_ATTR, &attr));
	attr.attr = 1;
	EXPECT_EQ(-ENXIO, try_ioctl(vm.device, KVM_HAS_DEVICE_ATTR, &attr));
	EXPECT_EQ(-ENXIO, try_ioctl(vm.device, KVM_GET_DEVICE_ATTR, &attr));
	attr = (struct kvm_device_attr){ .group = 7 };
	EXPECT_EQ(-ENXIO, try_ioctl(vm.device, KVM_HAS_DEVICE_ATTR, &attr));
	EXPECT_EQ(-EFAULT, try_ioctl(vm.device, KVM_HAS_DEVICE_ATTR, NULL));
	vm_free(&vm);
}

XVM_TEST_MAIN
