// SPDX-License-Identifier: GPL-2.0
/* Interrupts of a userspace interrupt controller: KVM_INTERRUPT, the interrupt window, NMIs, the TPR, shadows. */
#include "test.h"

FIXTURE(interrupts)
{
	struct vm vm;
	struct vcpu vcpu;
	volatile struct report *report;
};

/* Tells where it is with the interrupt flag clear, set, and clear again. */
GUEST_CODE64(windows,
	out %al, $PORT_SYNC;
	sti; nop; nop; nop; cli;
	out %al, $PORT_SYNC;
	sti; nop; nop; nop; cli;
	GUEST_DONE);

FIXTURE_SETUP(interrupts)
{
	guest_start(&self->vm, &self->vcpu, windows);
	self->report = guest_report(&self->vm);
}

FIXTURE_TEARDOWN(interrupts)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

static int interrupt(struct vcpu *vcpu, uint32_t vector)
{
	struct kvm_interrupt request = { .irq = vector };

	return try_ioctl(vcpu->fd, KVM_INTERRUPT, &request);
}

TEST_F(interrupts, window)
{
	struct kvm_run *run = self->vcpu.run;

	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	EXPECT_EQ(0, run->if_flag);
	EXPECT_EQ(0, run->ready_for_interrupt_injection);
	run->request_interrupt_window = 1;
	vcpu_run_to(&self->vcpu, KVM_EXIT_IRQ_WINDOW_OPEN);
	EXPECT_EQ(1, run->if_flag);
	EXPECT_EQ(1, run->ready_for_interrupt_injection);
	run->request_interrupt_window = 0;
	ASSERT_EQ(0, interrupt(&self->vcpu, 0x45));
	EXPECT_EQ(0x45, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	/* The handler runs with interrupts off, and returns into the open window. */
	EXPECT_EQ(0, run->if_flag);
	EXPECT_EQ(1 << 9, self->report->flags & 1 << 9);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	run->request_interrupt_window = 1;
	vcpu_run_to(&self->vcpu, KVM_EXIT_IRQ_WINDOW_OPEN);
	run->request_interrupt_window = 0;
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
}

/* With the window open already, the request is answered before the guest runs. */
GUEST_CODE64(open, sti; nop; out %al, $PORT_SYNC; 1: inc %rbx; jmp 1b);

TEST_F(interrupts, window_already_open)
{
	uint64_t rip;

	guest_load(&self->vm, open);
	guest_set_mode(&self->vcpu, MODE_LONG);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	EXPECT_EQ(1, self->vcpu.run->ready_for_interrupt_injection);
	rip = vcpu_regs(&self->vcpu).rip;
	self->vcpu.run->request_interrupt_window = 1;
	vcpu_run_to(&self->vcpu, KVM_EXIT_IRQ_WINDOW_OPEN);
	EXPECT_GE(vcpu_regs(&self->vcpu).rip, rip);
	self->vcpu.run->request_interrupt_window = 0;
	ASSERT_EQ(0, interrupt(&self->vcpu, 0x99));
	EXPECT_EQ(0x99, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
}

TEST_F(interrupts, every_vector)
{
	guest_load(&self->vm, open);
	guest_set_mode(&self->vcpu, MODE_LONG);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	for (int vector = 32; vector < 256; vector++) {
		ASSERT_EQ(0, interrupt(&self->vcpu, vector));
		EXPECT_EQ(vector, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
		/* Out of the handler again. */
		self->vcpu.run->request_interrupt_window = 1;
		vcpu_run_to(&self->vcpu, KVM_EXIT_IRQ_WINDOW_OPEN);
		self->vcpu.run->request_interrupt_window = 0;
	}
	EXPECT_EQ(224, self->report->count);
}

TEST_F(interrupts, refused)
{
	struct vm other = vm_create_bare();
	struct vcpu with_apic;

	EXPECT_EQ(-EINVAL, interrupt(&self->vcpu, 256));
	EXPECT_EQ(-EINVAL, interrupt(&self->vcpu, 0xffffffff));
	EXPECT_EQ(-EFAULT, try_ioctl(self->vcpu.fd, KVM_INTERRUPT, 8));
	EXPECT_EQ(0, interrupt(&self->vcpu, 0x40));
	/* The in-kernel APIC takes interrupts from nobody. */
	vm_create_irqchip(&other);
	with_apic = vcpu_create(&other, 0);
	EXPECT_EQ(-ENXIO, interrupt(&with_apic, 0x40));
}

/* STI and MOV SS hold interrupts off for one instruction. */
GUEST_CODE64(shadow,
	out %al, $PORT_SYNC;
	sti; out %al, $0x90;
	nop; cli;
	mov %ss, %eax;
	out %al, $PORT_SYNC;
	GUEST_DONE);

TEST_F(interrupts, sti_shadow)
{
	guest_load(&self->vm, shadow);
	guest_set_mode(&self->vcpu, MODE_LONG);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	self->vcpu.run->request_interrupt_window = 1;
	/* The OUT behind STI comes first, then the window. */
	vcpu_run_to_port(&self->vcpu, 0x90);
	vcpu_run_to(&self->vcpu, KVM_EXIT_IRQ_WINDOW_OPEN);
	EXPECT_GE(vcpu_regs(&self->vcpu).rip, GUEST_CODE + 5);
	self->vcpu.run->request_interrupt_window = 0;
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
}

/* NMIs: delivered whatever the interrupt flag, one at a time until IRET. */
GUEST_CODE64(nmis, out %al, $PORT_SYNC; 1: inc %rbx; out %al, $PORT_SYNC; jmp 1b);

TEST_F(interrupts, nmi)
{
	struct kvm_vcpu_events events;

	guest_load(&self->vm, nmis);
	guest_set_mode(&self->vcpu, MODE_LONG);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_NMI, 0));
	EXPECT_EQ(2, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_GET_VCPU_EVENTS, &events));
	EXPECT_EQ(1, events.nmi.masked);
	EXPECT_EQ(0, events.nmi.pending);
	/* The next two wait for the handler's IRET; there is room for one beyond the one in service. */
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_NMI, 0));
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_NMI, 0));
	EXPECT_EQ(1, self->report->count);
	EXPECT_EQ(2, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	EXPECT_EQ(2, self->report->count);
	for (int i = 0; i < 3; i++)
		vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	EXPECT_EQ(2, self->report->count);
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_GET_VCPU_EVENTS, &events));
	EXPECT_EQ(0, events.nmi.masked);
}

/* An NMI comes before an interrupt, and the interrupt is not lost. */
TEST_F(interrupts, nmi_and_interrupt)
{
	guest_load(&self->vm, open);
	guest_set_mode(&self->vcpu, MODE_LONG);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	ASSERT_EQ(0, interrupt(&self->vcpu, 0x60));
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_NMI, 0));
	bool seen[256] = { 0 };

	for (int i = 0; i < 2; i++)
		seen[vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION) & 0xff] = true;
	EXPECT_TRUE(seen[2]);
	EXPECT_TRUE(seen[0x60]);
}

/* CR8: the guest's writes come out in the run pages, and lower ones as an exit; the VMM's go in by KVM_RUN. */
GUEST_CODE64(task_priority,
	mov $9, %eax; mov %rax, %cr8; out %al, $PORT_SYNC;
	mov $4, %eax; mov %rax, %cr8; nop; out %al, $PORT_SYNC;
	mov %cr8, %rbx; out %al, $PORT_SYNC;
	mov $0x10, %eax; mov %rax, %cr8; GUEST_DONE);

TEST_F(interrupts, task_priority)
{
	guest_load(&self->vm, task_priority);
	guest_set_mode(&self->vcpu, MODE_LONG);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	EXPECT_EQ(9, self->vcpu.run->cr8);
	EXPECT_EQ(9, vcpu_sregs(&self->vcpu).cr8);
	vcpu_run_to(&self->vcpu, KVM_EXIT_SET_TPR);
	EXPECT_EQ(4, self->vcpu.run->cr8);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	self->vcpu.run->cr8 = 7;
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	EXPECT_EQ(7, vcpu_regs(&self->vcpu).rbx);
	/* More than four bits are a fault for the guest, and for the VMM an error. */
	EXPECT_EQ(13, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	self->vcpu.run->cr8 = 0x10;
	EXPECT_EQ(-EINVAL, vcpu_run(&self->vcpu));
	self->vcpu.run->cr8 = 0;
}

/* The interrupt that is being delivered when a fault of the delivery itself intervenes is delivered again. */
TEST_F(interrupts, fault_in_delivery)
{
	struct kvm_regs regs;

	guest_load(&self->vm, open);
	guest_set_mode(&self->vcpu, MODE_LONG);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	/* A stack page that the VMM has not populated yet, and the IDT's page likewise: faults of the second level. */
	ASSERT_EQ(0, madvise(vm_at(&self->vm, GUEST_STACK - 0x1000), 0x1000, MADV_DONTNEED));
	regs = vcpu_regs(&self->vcpu);
	EXPECT_EQ(GUEST_STACK, regs.rsp);
	for (int vector = 0x40; vector < 0x50; vector++) {
		ASSERT_EQ(0, interrupt(&self->vcpu, vector));
		ASSERT_EQ(0, madvise(vm_at(&self->vm, GUEST_STACK - 0x1000), 0x1000, MADV_DONTNEED));
		EXPECT_EQ(vector, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
		self->vcpu.run->request_interrupt_window = 1;
		vcpu_run_to(&self->vcpu, KVM_EXIT_IRQ_WINDOW_OPEN);
		self->vcpu.run->request_interrupt_window = 0;
	}
	EXPECT_EQ(16, self->report->count);
}

/* Thousands of interrupts into a loop that counts: none is lost, none comes twice, the loop's registers stay. */
GUEST_CODE64(counting, sti; 1: inc %rbx; lea 1(%rcx), %rcx; cmp %rbx, %rcx; je 1b; ud2);

TEST_F(interrupts, many)
{
	unsigned long count = scaled(3000);

	guest_load(&self->vm, counting);
	guest_set_mode(&self->vcpu, MODE_LONG);
	for (unsigned long i = 0; i < count; i++) {
		self->vcpu.run->request_interrupt_window = 1;
		vcpu_run_to(&self->vcpu, KVM_EXIT_IRQ_WINDOW_OPEN);
		self->vcpu.run->request_interrupt_window = 0;
		ASSERT_EQ(0, interrupt(&self->vcpu, 0x20 + i % 0xe0));
		ASSERT_EQ(0x20 + i % 0xe0, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	}
	EXPECT_EQ(count, self->report->count);
}

XVM_TEST_MAIN
