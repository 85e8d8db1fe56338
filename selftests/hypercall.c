// SPDX-License-Identifier: GPL-2.0
/* VMCALL and VMMCALL: both of either vendor's, answered in the kernel; a number that nobody knows is -KVM_ENOSYS. */
#include "test.h"
#include <linux/kvm_para.h>

FIXTURE(hypercall)
{
	struct vm vm;
	struct vcpu vcpu;
};

GUEST_CODE64(both, mov $0x7777, %eax; vmcall; mov %rax, %rbx; mov $0x7777, %eax; vmmcall; mov %rax, %rsi; GUEST_DONE);
GUEST_CODE64(both_as_user,
	pushq $SELECTOR_USER_DATA; pushq $GUEST_STACK; pushq $0x3002; pushq $SELECTOR_USER_CODE; pushq $(GUEST_AT(both_as_user, 1f)); iretq;
	1: mov $0x7777, %eax; vmcall; mov %rax, %rbx; mov $0x7777, %eax; vmmcall; mov %rax, %rsi; GUEST_DONE);

FIXTURE_SETUP(hypercall)
{
	guest_start(&self->vm, &self->vcpu, both);
}

FIXTURE_TEARDOWN(hypercall)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

TEST_F(hypercall, unknown_number)
{
	struct kvm_regs regs;

	vcpu_run_to_port(&self->vcpu, PORT_DONE);
	regs = vcpu_regs(&self->vcpu);
	EXPECT_EQ(-KVM_ENOSYS, (int64_t)regs.rbx);
	EXPECT_EQ(-KVM_ENOSYS, (int64_t)regs.rsi);
}

/* At privilege level 3 there is nothing to be had. */
TEST_F(hypercall, user_mode)
{
	struct kvm_regs regs;

	guest_load(&self->vm, both_as_user);
	guest_set_mode(&self->vcpu, MODE_LONG);
	vcpu_run_to(&self->vcpu, KVM_EXIT_IO);
	/* Either an answer that refuses, or an exception, but not the kernel's service. */
	if (self->vcpu.run->io.port == PORT_EXCEPTION) {
		EXPECT_TRUE(guest_report(&self->vm)->vector == 6 || guest_report(&self->vm)->vector == 13);
		return;
	}
	regs = vcpu_regs(&self->vcpu);
	EXPECT_EQ(-KVM_EPERM, (int64_t)regs.rbx);
	EXPECT_EQ(-KVM_EPERM, (int64_t)regs.rsi);
}

XVM_TEST_MAIN
