// SPDX-License-Identifier: GPL-2.0
/* Machine checks: KVM_X86_SETUP_MCE, KVM_X86_SET_MCE and the registers that guest and VMM see. */
#include "test.h"

#define MCG_CAP 0x179
#define MCG_STATUS 0x17a
#define MCG_CTL 0x17b
#define BANK(n) (0x400 + 4 * (n))
#define CAP_CTL (1ull << 8)
#define CAP_RECOVERY (1ull << 24)
#define VALID (1ull << 63)
#define OVERFLOW (1ull << 62)
#define UNCORRECTED (1ull << 61)
#define SIGNALLED (1ull << 56)
#define HWCR 0xc0010015

#define READ_MSR(msr) mov $msr, %ecx; rdmsr
#define WRITE_MSR(msr, low, high) mov $msr, %ecx; mov $low, %eax; mov $high, %edx; wrmsr

/* CR4.MCE on, then a loop in which the VMM's errors come. */
GUEST_CODE64(waiting, mov %cr4, %rax; or $0x40, %rax; mov %rax, %cr4; 1: GUEST_SYNC; jmp 1b);
GUEST_CODE64(not_waiting, 1: GUEST_SYNC; jmp 1b);

FIXTURE(mce)
{
	struct vm vm;
	struct vcpu vcpu;
	volatile struct report *report;
};

FIXTURE_SETUP(mce)
{
	guest_start(&self->vm, &self->vcpu, waiting);
	self->report = guest_report(&self->vm);
}

FIXTURE_TEARDOWN(mce)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

static int set_up(struct vcpu *vcpu, uint64_t cap)
{
	return try_ioctl(vcpu->fd, KVM_X86_SETUP_MCE, &cap);
}

static int report(struct vcpu *vcpu, uint8_t bank, uint64_t status, uint64_t mcg_status)
{
	struct kvm_x86_mce error = { .status = status, .addr = 0x1234000, .misc = 0x8c, .mcg_status = mcg_status, .bank = bank };

	return try_ioctl(vcpu->fd, KVM_X86_SET_MCE, &error);
}

static uint64_t get(struct vcpu *vcpu, uint32_t msr)
{
	uint64_t value = 0xbad;

	vcpu_get_msr(vcpu, msr, &value);
	return value;
}

TEST_F(mce, set_up)
{
	struct vcpu *vcpu = &self->vcpu;
	uint64_t supported = 0, value;

	EXPECT_EQ(32, device_extension(KVM_CAP_MCE));
	ASSERT_EQ(0, try_ioctl(self->vm.device, KVM_X86_GET_MCE_CAP_SUPPORTED, &supported));
	EXPECT_EQ(CAP_CTL | CAP_RECOVERY, supported & (CAP_CTL | CAP_RECOVERY));
	EXPECT_EQ(-EFAULT, try_ioctl(self->vm.device, KVM_X86_GET_MCE_CAP_SUPPORTED, 8));
	EXPECT_EQ(-EFAULT, try_ioctl(vcpu->fd, KVM_X86_SETUP_MCE, 8));
	EXPECT_EQ(-EINVAL, set_up(vcpu, CAP_CTL));
	EXPECT_EQ(-EINVAL, set_up(vcpu, 33));
	EXPECT_EQ(-EINVAL, set_up(vcpu, 255));
	EXPECT_EQ(-EINVAL, set_up(vcpu, 10 | 1ull << 63));
	EXPECT_EQ(-EINVAL, set_up(vcpu, 10 | 1ull << 9));
	EXPECT_EQ(32, get(vcpu, MCG_CAP) & 0xff);

	ASSERT_EQ(0, set_up(vcpu, 10 | CAP_CTL));
	EXPECT_EQ(10 | CAP_CTL, get(vcpu, MCG_CAP));
	EXPECT_EQ(-1ull, get(vcpu, MCG_CTL));
	for (int n = 0; n < 10; n++) {
		EXPECT_EQ(-1ull, get(vcpu, BANK(n)));
		EXPECT_EQ(0, get(vcpu, BANK(n) + 1));
	}
	EXPECT_EQ(0, vcpu_get_msr(vcpu, BANK(10), &value));
	EXPECT_EQ(0, vcpu_set_msr(vcpu, BANK(10), 0));
	EXPECT_EQ(0, vcpu_get_msr(vcpu, BANK(31) + 3, &value));
	EXPECT_EQ(0, vcpu_set_msr(vcpu, MCG_CAP, 11));
	/* All or nothing, but for the bits that operating systems clear. */
	EXPECT_EQ(0, vcpu_set_msr(vcpu, MCG_CTL, 1));
	EXPECT_EQ(0, vcpu_set_msr(vcpu, BANK(4), 2));
	EXPECT_EQ(1, vcpu_set_msr(vcpu, BANK(4), ~(1ull << 10)));
	EXPECT_EQ(1, vcpu_set_msr(vcpu, BANK(4) + 1, VALID | 5));
	EXPECT_EQ(VALID | 5, get(vcpu, BANK(4) + 1));
}

TEST_F(mce, refused)
{
	struct vcpu *vcpu = &self->vcpu;

	ASSERT_EQ(0, set_up(vcpu, 4));
	EXPECT_EQ(-EFAULT, try_ioctl(vcpu->fd, KVM_X86_SET_MCE, 8));
	EXPECT_EQ(-EINVAL, report(vcpu, 4, VALID, 0));
	EXPECT_EQ(-EINVAL, report(vcpu, 255, VALID, 0));
	EXPECT_EQ(-EINVAL, report(vcpu, 0, UNCORRECTED, 5));
	EXPECT_EQ(0, get(vcpu, BANK(0) + 1));
}

/* An uncorrected error is #MC; another before the guest has dealt with it ends the machine. */
TEST_F(mce, uncorrected)
{
	struct vcpu *vcpu = &self->vcpu;

	ASSERT_EQ(0, set_up(vcpu, 10 | CAP_CTL | CAP_RECOVERY));
	vcpu_run_to_port(vcpu, PORT_SYNC);
	ASSERT_EQ(0, report(vcpu, 9, VALID | UNCORRECTED | SIGNALLED | 0x134, 5));
	EXPECT_EQ(18, vcpu_run_to_port(vcpu, PORT_EXCEPTION));
	EXPECT_EQ(5, get(vcpu, MCG_STATUS));
	EXPECT_EQ(VALID | UNCORRECTED | SIGNALLED | 0x134, get(vcpu, BANK(9) + 1));
	EXPECT_EQ(0x1234000, get(vcpu, BANK(9) + 2));
	EXPECT_EQ(0x8c, get(vcpu, BANK(9) + 3));

	/* The guest is through with it: one more, with the word that the first wasn't cleared. */
	ASSERT_EQ(1, vcpu_set_msr(vcpu, MCG_STATUS, 0));
	guest_set_mode(vcpu, MODE_LONG);
	vcpu_run_to_port(vcpu, PORT_SYNC);
	ASSERT_EQ(0, report(vcpu, 9, VALID | UNCORRECTED | SIGNALLED, 4));
	EXPECT_EQ(18, vcpu_run_to_port(vcpu, PORT_EXCEPTION));
	EXPECT_EQ(OVERFLOW, get(vcpu, BANK(9) + 1) & OVERFLOW);
	ASSERT_EQ(0, report(vcpu, 8, VALID | UNCORRECTED | SIGNALLED, 4));
	EXPECT_EQ(0, get(vcpu, BANK(8) + 1));
	vcpu_run_to(vcpu, KVM_EXIT_SHUTDOWN);
}

/* A guest that hasn't turned machine checks on goes down. */
TEST_F(mce, not_enabled)
{
	struct vcpu *vcpu = &self->vcpu;

	guest_load(&self->vm, not_waiting);
	ASSERT_EQ(0, set_up(vcpu, 10));
	vcpu_run_to_port(vcpu, PORT_SYNC);
	ASSERT_EQ(0, report(vcpu, 0, VALID | UNCORRECTED | SIGNALLED, 4));
	vcpu_run_to(vcpu, KVM_EXIT_SHUTDOWN);
}

/* What is not to be reported isn't. */
TEST_F(mce, silent)
{
	struct vcpu *vcpu = &self->vcpu;

	ASSERT_EQ(0, set_up(vcpu, 10 | CAP_CTL));
	vcpu_run_to_port(vcpu, PORT_SYNC);
	ASSERT_EQ(1, vcpu_set_msr(vcpu, BANK(3), 0));
	ASSERT_EQ(0, report(vcpu, 3, VALID | UNCORRECTED | SIGNALLED, 4));
	EXPECT_EQ(0, get(vcpu, BANK(3) + 1));
	ASSERT_EQ(1, vcpu_set_msr(vcpu, MCG_CTL, 0));
	ASSERT_EQ(0, report(vcpu, 2, VALID | UNCORRECTED | SIGNALLED, 4));
	EXPECT_EQ(0, get(vcpu, BANK(2) + 1));
	/* Corrected errors, of which the first is kept; uncorrected ones that need no action. */
	ASSERT_EQ(0, report(vcpu, 1, VALID | 1, 0));
	EXPECT_EQ(VALID | 1, get(vcpu, BANK(1) + 1));
	ASSERT_EQ(0, report(vcpu, 1, VALID | 2, 0));
	EXPECT_EQ(VALID | OVERFLOW | 2, get(vcpu, BANK(1) + 1));
	ASSERT_EQ(0, report(vcpu, 2, VALID | UNCORRECTED | 3, 0));
	EXPECT_EQ(VALID | UNCORRECTED | 3, get(vcpu, BANK(2) + 1));
	ASSERT_EQ(0, report(vcpu, 2, VALID | 4, 0));
	EXPECT_EQ(VALID | UNCORRECTED | OVERFLOW | 3, get(vcpu, BANK(2) + 1));
	vcpu_run_to_port(vcpu, PORT_SYNC);
}

GUEST_CODE64(read_ctl, READ_MSR(MCG_CTL); GUEST_DONE);
GUEST_CODE64(read_bank, READ_MSR(BANK(1)); GUEST_DONE);
GUEST_CODE64(read_beyond, READ_MSR(BANK(2)); GUEST_DONE);
GUEST_CODE64(clear_status, WRITE_MSR(BANK(1) + 1, 0, 0); GUEST_DONE);
GUEST_CODE64(set_status, WRITE_MSR(BANK(1) + 1, 1, 0x80000000); GUEST_DONE);
GUEST_CODE64(write_address, WRITE_MSR(BANK(1) + 2, 0x1000, 1); GUEST_DONE);
GUEST_CODE64(write_some, WRITE_MSR(BANK(1), 0xff, 0); GUEST_DONE);
GUEST_CODE64(write_cap, WRITE_MSR(MCG_CAP, 2, 0); GUEST_DONE);

/* What the guest may do, and that it gets #GP for the rest: the vector, 0 for none. */
static uint32_t outcome(struct vcpu *vcpu, const uint8_t *code, const uint8_t *end)
{
	guest_copy(vcpu->vm, code, end);
	guest_set_mode(vcpu, MODE_LONG);
	vcpu_run_to(vcpu, KVM_EXIT_IO);
	return vcpu->run->io.port == PORT_EXCEPTION ? *(uint8_t *)vcpu_io_data(vcpu) : 0;
}

#define OUTCOME(name) outcome(&self->vcpu, guest_##name, guest_##name##_end)

TEST_F(mce, by_guest)
{
	struct vcpu *vcpu = &self->vcpu;

	ASSERT_EQ(0, set_up(vcpu, 2));
	EXPECT_EQ(13, OUTCOME(read_ctl));
	EXPECT_EQ(0, OUTCOME(read_bank));
	EXPECT_EQ(13, OUTCOME(read_beyond));
	EXPECT_EQ(0, OUTCOME(clear_status));
	EXPECT_EQ(13, OUTCOME(set_status));
	EXPECT_EQ(0, OUTCOME(write_address));
	EXPECT_EQ(0x100001000, get(vcpu, BANK(1) + 2));
	EXPECT_EQ(13, OUTCOME(write_some));
	EXPECT_EQ(13, OUTCOME(write_cap));
	if (host_is_amd()) {
		ASSERT_EQ(1, vcpu_set_msr(vcpu, HWCR, 1 << 18));
		EXPECT_EQ(0, OUTCOME(set_status));
		EXPECT_EQ(VALID | 1, get(vcpu, BANK(1) + 1));
	}
	ASSERT_EQ(0, set_up(vcpu, 2 | CAP_CTL));
	EXPECT_EQ(0, OUTCOME(read_ctl));
}

XVM_TEST_MAIN
