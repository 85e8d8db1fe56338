// SPDX-License-Identifier: GPL-2.0
/* HLT without the in-kernel APIC: an exit to userspace, which decides when to go on. */
#include "test.h"

GUEST_CODE64(halts, 1: inc %rbx; hlt; jmp 1b);
GUEST_CODE16(halts16, 1: inc %ebx; hlt; jmp 1b);
GUEST_CODE64(user_halt, pushq $SELECTOR_USER_DATA; pushq $GUEST_STACK; pushq $2; pushq $SELECTOR_USER_CODE;
	pushq $(GUEST_AT(user_halt, 1f)); iretq; 1: hlt; GUEST_DONE);

TEST(leaves)
{
	struct vm vm;
	struct vcpu vcpu;

	guest_start(&vm, &vcpu, halts);
	for (int i = 1; i <= 20; i++) {
		vcpu_run_to(&vcpu, KVM_EXIT_HLT);
		EXPECT_EQ(i, vcpu_regs(&vcpu).rbx);
	}
	/* RIP is behind the HLT. */
	EXPECT_EQ(0xf4, *(uint8_t *)vm_at(&vm, vcpu_regs(&vcpu).rip - 1));
}

TEST(real_mode)
{
	struct vm vm = vm_create();
	struct vcpu vcpu = vcpu_create(&vm, 0);

	vcpu_set_supported_cpuid(&vcpu);
	guest_load(&vm, halts16);
	guest_set_mode(&vcpu, MODE_REAL);
	for (int i = 1; i <= 5; i++) {
		vcpu_run_to(&vcpu, KVM_EXIT_HLT);
		EXPECT_EQ(i, vcpu_regs(&vcpu).rbx);
	}
}

/* HLT is privileged. */
TEST(user_mode)
{
	struct vm vm;
	struct vcpu vcpu;

	guest_start(&vm, &vcpu, user_halt);
	EXPECT_EQ(13, vcpu_run_to_port(&vcpu, PORT_EXCEPTION));
	EXPECT_EQ(0, guest_report(&vm)->error);
	EXPECT_EQ(SELECTOR_USER_CODE, guest_report(&vm)->cs);
}

/* A halted guest takes an interrupt from the VMM, and comes back behind its HLT. */
GUEST_CODE64(halt_with_interrupts, sti; 1: inc %rbx; hlt; inc %rcx; jmp 1b);

TEST(interrupt_wakes)
{
	struct vm vm;
	struct vcpu vcpu;
	struct kvm_interrupt interrupt = { .irq = 0x50 };

	guest_start(&vm, &vcpu, halt_with_interrupts);
	vcpu_run_to(&vcpu, KVM_EXIT_HLT);
	EXPECT_EQ(1, vcpu.run->if_flag);
	EXPECT_EQ(1, vcpu.run->ready_for_interrupt_injection);
	ASSERT_EQ(0, try_ioctl(vcpu.fd, KVM_INTERRUPT, &interrupt));
	EXPECT_EQ(0x50, vcpu_run_to_port(&vcpu, PORT_EXCEPTION));
	EXPECT_EQ(0, vcpu_regs(&vcpu).rcx);
	vcpu_run_to(&vcpu, KVM_EXIT_HLT);
	EXPECT_EQ(1, vcpu_regs(&vcpu).rcx);
	EXPECT_EQ(2, vcpu_regs(&vcpu).rbx);
}

XVM_TEST_MAIN
