// SPDX-License-Identifier: GPL-2.0
/* CPUID that faults in user code: MSRs PLATFORM_INFO and MISC_FEATURES_ENABLES. */
#include "test.h"

#define MSR_PLATFORM_INFO 0xce
#define MSR_MISC_FEATURES_ENABLES 0x140
#define FAULTING (1ull << 31)

FIXTURE(faulting)
{
	struct vm vm;
	struct vcpu vcpu;
	volatile struct report *report;
};

FIXTURE_SETUP(faulting)
{
	self->vm = vm_create();
	self->vcpu = vcpu_create(&self->vm, 0);
	vcpu_set_supported_cpuid(&self->vcpu);
	self->report = guest_report(&self->vm);
	for (uint64_t page = 0; page < GUEST_MEMORY; page += 4096)
		*guest_pte(&self->vm, page) |= 4;
}

FIXTURE_TEARDOWN(faulting)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

/* RSI is written; CPUID in kernel code, then in user code, which ends with UD2. */
GUEST_CODE64(both_levels,
	mov $MSR_MISC_FEATURES_ENABLES, %ecx; mov %esi, %eax; xor %edx, %edx; wrmsr; rdmsr; mov %rax, %rbp;
	xor %eax, %eax; xor %ebx, %ebx; cpuid; mov %rbx, %r8;
	pushq $SELECTOR_USER_DATA; pushq $GUEST_STACK - 0x400; pushq $2; pushq $SELECTOR_USER_CODE; pushq $(GUEST_AT(both_levels, 1f));
	xor %eax, %eax; xor %ebx, %ebx; iretq; 1: cpuid; ud2);

static uint32_t run(FIXTURE_DATA(faulting) *self, uint64_t wanted)
{
	struct kvm_regs regs;

	guest_load(&self->vm, both_levels);
	guest_set_mode(&self->vcpu, MODE_LONG);
	regs = vcpu_regs(&self->vcpu);
	regs.rsi = wanted;
	vcpu_set_regs(&self->vcpu, &regs);
	return vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION);
}

TEST_F(faulting, by_the_guest)
{
	struct kvm_regs regs;

	EXPECT_EQ(6, run(self, 0));
	regs = vcpu_regs(&self->vcpu);
	EXPECT_EQ(0, regs.rbp);
	EXPECT_NE(0, regs.r8);
	EXPECT_EQ(regs.r8, regs.rbx);
	EXPECT_EQ(13, run(self, 1));
	regs = vcpu_regs(&self->vcpu);
	EXPECT_EQ(1, regs.rbp);
	EXPECT_NE(0, regs.r8);
	EXPECT_EQ(0, regs.rbx);
	EXPECT_EQ(0, self->report->error);
	EXPECT_EQ(SELECTOR_USER_CODE, self->report->cs);
	/* At the CPUID. */
	EXPECT_EQ(0xa20f, *(uint16_t *)vm_at(&self->vm, self->report->rip));
	EXPECT_EQ(6, run(self, 0));
}

TEST_F(faulting, values)
{
	uint64_t value;

	ASSERT_EQ(1, vcpu_get_msr(&self->vcpu, MSR_PLATFORM_INFO, &value));
	EXPECT_EQ(FAULTING, value & FAULTING);
	for (int bit = 1; bit < 64; bit++)
		EXPECT_EQ(0, vcpu_set_msr(&self->vcpu, MSR_MISC_FEATURES_ENABLES, 1ull << bit));
	EXPECT_EQ(0, vcpu_set_msr(&self->vcpu, MSR_MISC_FEATURES_ENABLES, 3));
	EXPECT_EQ(1, vcpu_set_msr(&self->vcpu, MSR_MISC_FEATURES_ENABLES, 1));
	/* A new CPUID changes nothing of it. */
	vcpu_set_supported_cpuid(&self->vcpu);
	ASSERT_EQ(1, vcpu_get_msr(&self->vcpu, MSR_MISC_FEATURES_ENABLES, &value));
	EXPECT_EQ(1, value);
	EXPECT_EQ(13, run(self, 1));
	EXPECT_EQ(SELECTOR_USER_CODE, self->report->cs);
	/* A VMM may say that there is no such thing: #GP for the guest that tries, in kernel code. */
	EXPECT_EQ(1, vcpu_set_msr(&self->vcpu, MSR_MISC_FEATURES_ENABLES, 0));
	EXPECT_EQ(1, vcpu_set_msr(&self->vcpu, MSR_PLATFORM_INFO, 0));
	EXPECT_EQ(0, vcpu_set_msr(&self->vcpu, MSR_MISC_FEATURES_ENABLES, 1));
	EXPECT_EQ(1, vcpu_set_msr(&self->vcpu, MSR_MISC_FEATURES_ENABLES, 0));
	EXPECT_EQ(13, run(self, 1));
	EXPECT_EQ(SELECTOR_CODE64, self->report->cs);
}

XVM_TEST_MAIN
