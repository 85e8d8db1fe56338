// SPDX-License-Identifier: GPL-2.0
/* Faults in the delivery of faults: the double and the triple fault, and the endless ones that once hung hosts. */
#include "test.h"

#define CR0_AM (1 << 18)
#define FLAGS_AC (1 << 18)

#define RAISE(name, ...) GUEST_CODE64(name, __VA_ARGS__; GUEST_DONE)

RAISE(breakpoint, int3; 1: nop);
RAISE(undefined, 1: ud2);
RAISE(protection, movabs $0x4000000000000000, %rbx; 1: mov (%rbx), %al);
RAISE(page_read, movabs $0x100000000000, %rbx; 1: mov (%rbx), %al);
RAISE(divide, xor %ecx, %ecx; 1: div %ecx);
GUEST_CODE32(divide32, xor %ecx, %ecx; 1: div %ecx; GUEST_DONE);

FIXTURE(nested)
{
	struct vm vm;
	struct vcpu vcpu;
	volatile struct report *report;
};

FIXTURE_SETUP(nested)
{
	guest_start(&self->vm, &self->vcpu, divide);
	self->report = guest_report(&self->vm);
}

FIXTURE_TEARDOWN(nested)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

/* The 64-bit gate of a vector. */
static uint64_t *gate(struct vm *vm, unsigned int vector)
{
	return (uint64_t *)vm_at(vm, GUEST_IDT) + vector * 2;
}

#define GATE_PRESENT (1ull << 47)
/* Interrupts stay on in the handler: Bochs takes no external interrupt from a guest that is entered with them off. */
#define TRAP_GATE (1ull << 40)

/*
 * Has the guest's tables and stack mapped at the second level, by an exception. QEMU's TCG makes no double fault of a fault in
 * the delivery of an injected exception; and a hypervisor injects what was on its way when the second level faulted.
 */
static void touch_tables(struct vm *vm, struct vcpu *vcpu)
{
	guest_load(vm, breakpoint);
	guest_set_mode(vcpu, MODE_LONG);
	vcpu_run_to_port(vcpu, PORT_EXCEPTION);
}

/* A fault in the delivery of a fault: the double fault, with error code 0. */
TEST_F(nested, double_fault)
{
	touch_tables(&self->vm, &self->vcpu);
	guest_load(&self->vm, page_read);
	guest_set_mode(&self->vcpu, MODE_LONG);
	*gate(&self->vm, 14) &= ~GATE_PRESENT;
	EXPECT_EQ(8, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	EXPECT_EQ(0, self->report->error);

	guest_load(&self->vm, protection);
	guest_set_mode(&self->vcpu, MODE_LONG);
	*gate(&self->vm, 13) &= ~GATE_PRESENT;
	EXPECT_EQ(8, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));

	/* A benign one first, then a contributory one: both are delivered one after the other. */
	guest_load(&self->vm, undefined);
	guest_set_mode(&self->vcpu, MODE_LONG);
	*gate(&self->vm, 6) &= ~GATE_PRESENT;
	EXPECT_EQ(11, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	EXPECT_EQ(6 * 8 + 2, self->report->error & ~1ull);
}

/* A stack that can't be written: #PF while #PF is delivered; the double fault comes on a stack of its own. */
GUEST_CODE64(bad_stack, movabs $0x100000000000, %rsp; 1: push %rax; GUEST_DONE);

TEST_F(nested, double_fault_on_own_stack)
{
	touch_tables(&self->vm, &self->vcpu);
	guest_load(&self->vm, bad_stack);
	guest_set_mode(&self->vcpu, MODE_LONG);
	*gate(&self->vm, 8) |= 1ull << 32; /* IST 1 */
	EXPECT_EQ(8, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	EXPECT_EQ(0, self->report->error);
	EXPECT_EQ(0x100000000000, self->report->rsp);
	EXPECT_LE(vcpu_regs(&self->vcpu).rsp, GUEST_IST_STACK);
	EXPECT_GT(vcpu_regs(&self->vcpu).rsp, GUEST_IST_STACK - 0x100);
}

/* The triple fault, by each way there. */
TEST_F(nested, triple_fault)
{
	struct kvm_sregs sregs;

	touch_tables(&self->vm, &self->vcpu);
	guest_load(&self->vm, page_read);
	guest_set_mode(&self->vcpu, MODE_LONG);
	*gate(&self->vm, 14) &= ~GATE_PRESENT;
	*gate(&self->vm, 8) &= ~GATE_PRESENT;
	vcpu_run_to(&self->vcpu, KVM_EXIT_SHUTDOWN);

	guest_load(&self->vm, undefined);
	guest_set_mode(&self->vcpu, MODE_LONG);
	sregs = vcpu_sregs(&self->vcpu);
	sregs.idt.limit = 0;
	vcpu_set_sregs(&self->vcpu, &sregs);
	vcpu_run_to(&self->vcpu, KVM_EXIT_SHUTDOWN);

	guest_load(&self->vm, bad_stack);
	guest_set_mode(&self->vcpu, MODE_LONG);
	vcpu_run_to(&self->vcpu, KVM_EXIT_SHUTDOWN);

	/* And it can be started anew. */
	guest_load(&self->vm, divide);
	guest_set_mode(&self->vcpu, MODE_LONG);
	EXPECT_EQ(0, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
}

TEST_F(nested, triple_fault_in_other_modes)
{
	for (enum guest_mode mode = MODE_PROTECTED; mode <= MODE_PAE; mode++) {
		struct kvm_sregs sregs;

		guest_load(&self->vm, divide32);
		guest_set_mode(&self->vcpu, mode);
		sregs = vcpu_sregs(&self->vcpu);
		sregs.idt.limit = 0;
		vcpu_set_sregs(&self->vcpu, &sregs);
		vcpu_run_to(&self->vcpu, KVM_EXIT_SHUTDOWN);
	}
}

/* The guest that never gets anywhere: the host must get the CPU back, and the thread must die. */
static void expect_endless_guest_ends(struct __test_metadata *_metadata, struct vcpu *vcpu)
{
	int reason;

	let_signal_interrupt(SIGALRM);
	alarm(1);
	reason = vcpu_run(vcpu);
	alarm(0);
	EXPECT_TRUE(reason == -EINTR || reason == KVM_EXIT_SHUTDOWN || reason == KVM_EXIT_INTERNAL_ERROR || reason == KVM_EXIT_IO)
		TH_LOG("exit %s (%d)", exit_name(reason), reason);
}

/* CVE-2015-5307: delivery of #AC on a misaligned stack of privilege level 3 raises #AC, for ever. */
GUEST_CODE32(endless_alignment,
	push $0x63; push $(GUEST_STACK - 3); push $(FLAGS_AC + 0x3002); push $0x5b; push $(GUEST_AT(endless_alignment, 1f)); iret;
	1: mov $0x63, %eax; mov %eax, %ds; mov %ds:(GUEST_FREE + 1), %eax; jmp 1b);

TEST_F(nested, endless_alignment_checks)
{
	struct kvm_sregs sregs;
	uint64_t *gdt = vm_at(&self->vm, GUEST_GDT), *idt = vm_at(&self->vm, GUEST_IDT);

	guest_load(&self->vm, endless_alignment);
	guest_set_mode(&self->vcpu, MODE_PROTECTED);
	gdt[0x58 / 8] = 0x00cffb000000ffff; /* user code */
	gdt[0x60 / 8] = 0x00cff3000000ffff;
	/* The handler runs where the fault was: no other stack. */
	idt[17] = (GUEST_CODE & 0xffff) | 0x5b << 16 | 0xee00ull << 32;
	sregs = vcpu_sregs(&self->vcpu);
	sregs.cr0 |= CR0_AM;
	vcpu_set_sregs(&self->vcpu, &sregs);
	expect_endless_guest_ends(_metadata, &self->vcpu);
}

/* CVE-2015-8104: a data breakpoint on the stack that #DB is delivered on. */
GUEST_CODE64(endless_debug,
	sti; mov $(GUEST_STACK - 0x10), %eax; mov %rax, %dr0; mov $(GUEST_STACK - 0x18), %eax; mov %rax, %dr1;
	mov $0xff000f, %eax; mov %rax, %dr7; mov $GUEST_STACK, %esp; 1: push %rax; pop %rax; jmp 1b);

TEST_F(nested, endless_debug_exceptions)
{
	guest_load(&self->vm, endless_debug);
	guest_set_mode(&self->vcpu, MODE_LONG);
	self->report->fixup = GUEST_CODE;
	*gate(&self->vm, 1) |= TRAP_GATE;
	expect_endless_guest_ends(_metadata, &self->vcpu);
}

/* Every exception's handler is the same exception: no delivery ends. */
GUEST_CODE64(endless_faults, sti; 1: ud2);

TEST_F(nested, endless_faults)
{
	guest_load(&self->vm, endless_faults);
	guest_set_mode(&self->vcpu, MODE_LONG);
	*gate(&self->vm, 6) = (GUEST_CODE & 0xffff) | SELECTOR_CODE64 << 16 | 0xee01ull << 32; /* IST: the stack does not grow */
	*gate(&self->vm, 6) |= TRAP_GATE;
	expect_endless_guest_ends(_metadata, &self->vcpu);
}

/* The IDT in the hole: the gate itself is read by the CPU from where no memory is. */
TEST_F(nested, idt_in_hole)
{
	struct kvm_sregs sregs;

	guest_load(&self->vm, undefined);
	guest_set_mode(&self->vcpu, MODE_LONG);
	sregs = vcpu_sregs(&self->vcpu);
	sregs.idt.base = GUEST_MMIO;
	vcpu_set_sregs(&self->vcpu, &sregs);
	expect_endless_guest_ends(_metadata, &self->vcpu);
}

XVM_TEST_MAIN
