// SPDX-License-Identifier: GPL-2.0
/* KVM_X86_SET_MSR_FILTER and KVM_CAP_X86_USER_SPACE_MSR: MSRs that the VMM keeps from its guest, or carries out itself. */
#include "test.h"

#define SYSENTER_CS 0x174	/* the guest accesses these two without an exit */
#define FS_BASE 0xc0000100
#define MISC_ENABLE 0x1a0
#define NOBODYS 0x474f4f00

FIXTURE(filter)
{
	struct vm vm;
	struct vcpu vcpu;
	struct kvm_run *run;
};

/* ECX: the MSR. */
GUEST_CODE64(reads, rdmsr; GUEST_DONE);
GUEST_CODE64(writes, wrmsr; GUEST_DONE);

FIXTURE_SETUP(filter)
{
	guest_start(&self->vm, &self->vcpu, reads);
	self->run = self->vcpu.run;
}

FIXTURE_TEARDOWN(filter)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

#define begin(name, msr, value) do { \
	struct kvm_regs regs_; \
	guest_load(&self->vm, name); \
	guest_set_mode(&self->vcpu, MODE_LONG); \
	regs_ = vcpu_regs(&self->vcpu); \
	regs_.rcx = msr; \
	regs_.rax = (uint32_t)(value); \
	regs_.rdx = (uint64_t)(value) >> 32; \
	vcpu_set_regs(&self->vcpu, &regs_); \
} while (0)

/* The exception that the guest gets, 0 for none. */
static uint32_t outcome(struct vcpu *vcpu)
{
	vcpu_run_to(vcpu, KVM_EXIT_IO);
	return vcpu->run->io.port == PORT_EXCEPTION ? *(uint8_t *)vcpu_io_data(vcpu) : 0;
}

#define expect_exit(why, number, reason_, value) do { \
	vcpu_run_to(&self->vcpu, why); \
	EXPECT_EQ(number, self->run->msr.index); \
	EXPECT_EQ(reason_, self->run->msr.reason); \
	EXPECT_EQ(0, self->run->msr.error); \
	if (why == KVM_EXIT_X86_WRMSR) \
		EXPECT_EQ(value, self->run->msr.data); \
} while (0)

static int user_space(struct vm *vm, uint64_t reasons)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_X86_USER_SPACE_MSR, .args = { reasons } };

	return try_ioctl(vm->fd, KVM_ENABLE_CAP, &cap);
}

/* Denies reads and writes, as flags say, of one MSR. */
static int deny(struct vm *vm, uint32_t msr, uint32_t flags)
{
	uint64_t nothing = 0;
	struct kvm_msr_filter filter = { .ranges = { { .flags = flags, .nmsrs = 1, .base = msr, .bitmap = (uint8_t *)&nothing } } };

	return try_ioctl(vm->fd, KVM_X86_SET_MSR_FILTER, &filter);
}

#define BOTH (KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE)

TEST_F(filter, refused)
{
	uint8_t bits[0x608] = { 0 };
	struct kvm_msr_filter filter = { .flags = 2 };
	int fd = self->vm.fd;

	EXPECT_EQ(1, device_extension(KVM_CAP_X86_USER_SPACE_MSR));
	EXPECT_EQ(1, device_extension(KVM_CAP_X86_MSR_FILTER));
	EXPECT_EQ(-EINVAL, user_space(&self->vm, 1 << 3));
	EXPECT_EQ(-EINVAL, user_space(&self->vm, 1ull << 32));
	EXPECT_EQ(-EFAULT, try_ioctl(fd, KVM_X86_SET_MSR_FILTER, 8));
	EXPECT_EQ(-EINVAL, try_ioctl(fd, KVM_X86_SET_MSR_FILTER, &filter));
	/* Nothing at all allowed. */
	filter.flags = KVM_MSR_FILTER_DEFAULT_DENY;
	EXPECT_EQ(-EINVAL, try_ioctl(fd, KVM_X86_SET_MSR_FILTER, &filter));
	filter.ranges[15] = (struct kvm_msr_filter_range){ .nmsrs = 8, .base = 0, .bitmap = bits };
	EXPECT_EQ(-EINVAL, try_ioctl(fd, KVM_X86_SET_MSR_FILTER, &filter));
	filter.ranges[15].flags = 4 | KVM_MSR_FILTER_READ;
	EXPECT_EQ(-EINVAL, try_ioctl(fd, KVM_X86_SET_MSR_FILTER, &filter));
	filter.ranges[15].flags = BOTH;
	filter.ranges[15].bitmap = (uint8_t *)8;
	EXPECT_EQ(-EFAULT, try_ioctl(fd, KVM_X86_SET_MSR_FILTER, &filter));
	filter.ranges[15].bitmap = bits;
	filter.ranges[15].nmsrs = 0x600 * 8 + 1;
	EXPECT_EQ(-EINVAL, try_ioctl(fd, KVM_X86_SET_MSR_FILTER, &filter));
	filter.ranges[15].nmsrs = 0xffffffff;
	EXPECT_EQ(-EINVAL, try_ioctl(fd, KVM_X86_SET_MSR_FILTER, &filter));
	/* None of these is in force. */
	begin(reads, SYSENTER_CS, 0);
	EXPECT_EQ(0, outcome(&self->vcpu));
	filter.ranges[15].nmsrs = 0x600 * 8;
	filter.ranges[15].base = 0xffffffff;
	EXPECT_EQ(0, try_ioctl(fd, KVM_X86_SET_MSR_FILTER, &filter));
	begin(reads, SYSENTER_CS, 0);
	EXPECT_EQ(13, outcome(&self->vcpu));
}

TEST_F(filter, denied)
{
	static const uint32_t msrs[] = { SYSENTER_CS, FS_BASE, MISC_ENABLE };
	uint64_t value;

	for (unsigned int i = 0; i < ARRAY_SIZE(msrs); i++) {
		ASSERT_EQ(0, deny(&self->vm, msrs[i], BOTH));
		begin(reads, msrs[i], 0);
		EXPECT_EQ(13, outcome(&self->vcpu)) TH_LOG("MSR %#x", msrs[i]);
		begin(writes, msrs[i], 0x1234);
		EXPECT_EQ(13, outcome(&self->vcpu)) TH_LOG("MSR %#x", msrs[i]);
		ASSERT_EQ(0, deny(&self->vm, msrs[i], KVM_MSR_FILTER_READ));
		begin(writes, msrs[i], 0x1801);
		EXPECT_EQ(0, outcome(&self->vcpu)) TH_LOG("MSR %#x", msrs[i]);
		/* The VMM is not filtered. */
		EXPECT_EQ(1, vcpu_get_msr(&self->vcpu, msrs[i], &value));
		EXPECT_EQ(0x1801, value & 0x1801);
		begin(reads, msrs[i], 0);
		EXPECT_EQ(13, outcome(&self->vcpu)) TH_LOG("MSR %#x", msrs[i]);
		/* The next one is no concern of it. */
		begin(reads, msrs[(i + 1) % 3], 0);
		EXPECT_EQ(0, outcome(&self->vcpu)) TH_LOG("MSR %#x", msrs[i]);
	}
}

TEST_F(filter, in_user_space)
{
	struct kvm_regs regs;

	ASSERT_EQ(0, deny(&self->vm, FS_BASE, BOTH));
	ASSERT_EQ(0, user_space(&self->vm, KVM_MSR_EXIT_REASON_FILTER));
	begin(reads, FS_BASE, 0);
	expect_exit(KVM_EXIT_X86_RDMSR, FS_BASE, KVM_MSR_EXIT_REASON_FILTER, 0);
	self->run->msr.data = 0x1122334455667788;
	EXPECT_EQ(0, outcome(&self->vcpu));
	regs = vcpu_regs(&self->vcpu);
	EXPECT_EQ(0x55667788, regs.rax);
	EXPECT_EQ(0x11223344, regs.rdx);
	begin(writes, FS_BASE, 0x5566778899);
	expect_exit(KVM_EXIT_X86_WRMSR, FS_BASE, KVM_MSR_EXIT_REASON_FILTER, 0x5566778899);
	EXPECT_EQ(0, outcome(&self->vcpu));
	begin(writes, FS_BASE, 0x77);
	expect_exit(KVM_EXIT_X86_WRMSR, FS_BASE, KVM_MSR_EXIT_REASON_FILTER, 0x77);
	self->run->msr.error = 1;
	EXPECT_EQ(13, outcome(&self->vcpu));
	EXPECT_EQ(GUEST_CODE, guest_report(&self->vm)->rip);
	/* Other reasons aren't asked for. */
	begin(reads, NOBODYS, 0);
	EXPECT_EQ(13, outcome(&self->vcpu));

	ASSERT_EQ(0, user_space(&self->vm, KVM_MSR_EXIT_REASON_UNKNOWN));
	begin(reads, NOBODYS, 0);
	expect_exit(KVM_EXIT_X86_RDMSR, NOBODYS, KVM_MSR_EXIT_REASON_UNKNOWN, 0);
	EXPECT_EQ(0, outcome(&self->vcpu));
	begin(writes, NOBODYS, 5);
	expect_exit(KVM_EXIT_X86_WRMSR, NOBODYS, KVM_MSR_EXIT_REASON_UNKNOWN, 5);
	self->run->msr.error = 0xff;
	EXPECT_EQ(13, outcome(&self->vcpu));
	begin(writes, 0x277, 0xff);
	EXPECT_EQ(13, outcome(&self->vcpu));
	ASSERT_EQ(0, user_space(&self->vm, KVM_MSR_EXIT_REASON_INVAL));
	/* PAT with types that there aren't: no exit where the CPU checks it by itself. */
	begin(writes, 0x179, 0xff);
	expect_exit(KVM_EXIT_X86_WRMSR, 0x179, KVM_MSR_EXIT_REASON_INVAL, 0xff);
	EXPECT_EQ(0, outcome(&self->vcpu));
	/* The VMM moves the vCPU instead of answering: nothing is completed. */
	begin(writes, 0x179, 0xff);
	expect_exit(KVM_EXIT_X86_WRMSR, 0x179, KVM_MSR_EXIT_REASON_INVAL, 0xff);
	begin(reads, SYSENTER_CS, 0);
	self->run->msr.error = 1;
	regs = vcpu_regs(&self->vcpu);
	regs.rip = GUEST_CODE + 2;
	vcpu_set_regs(&self->vcpu, &regs);
	EXPECT_EQ(0, outcome(&self->vcpu));
}

TEST_F(filter, x2apic_is_exempt)
{
	ASSERT_EQ(0, deny(&self->vm, 0x802, BOTH));
	ASSERT_EQ(0, user_space(&self->vm, KVM_MSR_EXIT_REASON_FILTER));
	begin(reads, 0x802, 0);
	/* There is no APIC here: #GP, not the VMM. */
	EXPECT_EQ(13, outcome(&self->vcpu));
}

/* A filter that comes while the guest runs is in force as soon as the ioctl is through. */
GUEST_CODE64(keeps_reading, 1: mov $0xc0000100, %ecx; rdmsr; incq GUEST_FREE; jmp 1b);

static void *run_it(void *vcpu)
{
	return (void *)(long)vcpu_run(vcpu);
}

TEST_F(filter, while_running)
{
	volatile uint64_t *rounds = vm_at(&self->vm, GUEST_FREE);
	void *reason;

	ASSERT_EQ(0, user_space(&self->vm, KVM_MSR_EXIT_REASON_FILTER));
	for (unsigned long i = 0; i < scaled(20); i++) {
		uint64_t before, end = now_ns() + 20000000000;
		pthread_t thread;

		ASSERT_EQ(0, deny(&self->vm, MISC_ENABLE, BOTH));
		begin(keeps_reading, 0, 0);
		*rounds = 0;
		ASSERT_EQ(0, pthread_create(&thread, NULL, run_it, &self->vcpu));
		while (*rounds < 10 && now_ns() < end)
			sched_yield();
		ASSERT_GT(*rounds, 0);
		ASSERT_EQ(0, deny(&self->vm, FS_BASE, KVM_MSR_FILTER_READ));
		before = *rounds;
		ASSERT_EQ(0, pthread_join(thread, &reason));
		EXPECT_EQ(KVM_EXIT_X86_RDMSR, (long)reason);
		EXPECT_LE(*rounds, before + 1);
	}
}

XVM_TEST_MAIN
