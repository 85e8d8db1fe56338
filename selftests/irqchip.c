// SPDX-License-Identifier: GPL-2.0
/* The in-kernel interrupt controllers: lines, messages, routes, EOI, state in and out, and HLT that blocks in the kernel. */
#include "irqchip.h"

/* The 8259 pair at vectors 0x20 and 0x28, all lines open, its output through LINT0. */
GUEST_CODE64(through_pic,
	ENABLE_APIC; movl $0x700, APIC_LVT_LINT0(%r14);
	mov $0x11, %al; out %al, $0x20; out %al, $0xa0; mov $0x20, %al; out %al, $0x21; mov $0x28, %al; out %al, $0xa1;
	mov $4, %al; out %al, $0x21; mov $2, %al; out %al, $0xa1; mov $1, %al; out %al, $0x21; out %al, $0xa1;
	xor %eax, %eax; out %al, $0x21; out %al, $0xa1;
	out %al, $PORT_SYNC;
	1: sti; hlt; cli; mov $0x20, %al; out %al, $0xa0; out %al, $0x20; inc %rbx; jmp 1b);

TEST_F(irqchip, pic_lines)
{
	start(through_pic);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	for (int line = 1; line < 16; line++) {
		if (line == 2)
			continue;
		ASSERT_EQ(0, irq_line(&self->vm, line, 1));
		EXPECT_EQ(0x20 + line, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION)) TH_LOG("line %d", line);
		ASSERT_EQ(0, irq_line(&self->vm, line, 0));
	}
	EXPECT_EQ(14, self->report->count);
}

/* RSI: pin; RDI: the entry's low half. Its entry is written, then the guest waits. */
GUEST_CODE64(through_ioapic,
	ENABLE_APIC; NO_PIC;
	lea 0x11(%rsi,%rsi), %eax; mov %eax, (%r13); movl $0, 0x10(%r13);
	lea 0x10(%rsi,%rsi), %eax; mov %eax, (%r13); mov %edi, 0x10(%r13);
	out %al, $PORT_SYNC; WAIT_LOOP);

static void start_ioapic(FIXTURE_DATA(irqchip) *self, unsigned int pin, uint32_t entry)
{
	struct kvm_regs regs;

	start(through_ioapic);
	regs = vcpu_regs(&self->vcpu);
	regs.rsi = pin;
	regs.rdi = entry;
	vcpu_set_regs(&self->vcpu, &regs);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
}

static uint64_t ioapic_entry(FIXTURE_DATA(irqchip) *self, unsigned int pin)
{
	struct kvm_irqchip chip = { .chip_id = KVM_IRQCHIP_IOAPIC };

	do_ioctl(self->vm.fd, KVM_GET_IRQCHIP, &chip);
	return chip.chip.ioapic.redirtbl[pin].bits;
}

TEST_F(irqchip, ioapic_edge)
{
	start_ioapic(self, 9, 0x59);
	EXPECT_EQ(0x59, ioapic_entry(self, 9));
	for (int i = 0; i < 5; i++) {
		ASSERT_EQ(0, irq_line(&self->vm, 9, 1));
		/* The line is still high: an edge counts once. */
		EXPECT_EQ(0x59, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
		ASSERT_EQ(0, irq_line(&self->vm, 9, 0));
	}
	EXPECT_EQ(5, self->report->count);
}

#define LEVEL 0x8000
#define REMOTE_IRR 0x4000
#define MASKED 0x10000

TEST_F(irqchip, ioapic_level)
{
	start_ioapic(self, 11, 0x61 | LEVEL);
	ASSERT_EQ(0, irq_line(&self->vm, 11, 1));
	EXPECT_EQ(0x61, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	EXPECT_EQ(REMOTE_IRR, ioapic_entry(self, 11) & REMOTE_IRR);
	/* EOI with the line high: again, as often as that is so. */
	EXPECT_EQ(0x61, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	EXPECT_EQ(0x61, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	EXPECT_EQ(3, self->report->count);
	ASSERT_EQ(0, irq_line(&self->vm, 11, 0));
	/* The third one's EOI, then silence: another line's interrupt is the next thing that happens. */
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_NMI, 0));
	EXPECT_EQ(2, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	EXPECT_EQ(4, self->report->count);
}

TEST_F(irqchip, ioapic_mask)
{
	struct kvm_irqchip chip = { .chip_id = KVM_IRQCHIP_IOAPIC };

	start_ioapic(self, 5, 0x55 | LEVEL | MASKED);
	ASSERT_EQ(0, irq_line(&self->vm, 5, 1));
	EXPECT_EQ(0, ioapic_entry(self, 5) & REMOTE_IRR);
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_NMI, 0));
	EXPECT_EQ(2, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	/* The VMM opens the pin, whose level is still there. */
	ASSERT_EQ(0, try_ioctl(self->vm.fd, KVM_GET_IRQCHIP, &chip));
	chip.chip.ioapic.redirtbl[5].fields.mask = 0;
	ASSERT_EQ(0, try_ioctl(self->vm.fd, KVM_SET_IRQCHIP, &chip));
	ASSERT_EQ(0, irq_line(&self->vm, 5, 1));
	EXPECT_EQ(0x55, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	irq_line(&self->vm, 5, 0);
}

GUEST_CODE64(wait_only, ENABLE_APIC; out %al, $PORT_SYNC; WAIT_LOOP);

TEST_F(irqchip, signal_msi)
{
	struct kvm_msi msi = { .address_lo = 0xfee00000, .data = 0x71 };

	start(wait_only);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	EXPECT_EQ(1, try_ioctl(self->vm.fd, KVM_SIGNAL_MSI, &msi));
	EXPECT_EQ(0x71, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	/* To a CPU that is not there: nobody took it. */
	msi.address_lo = 0xfee05000;
	EXPECT_GE(0, try_ioctl(self->vm.fd, KVM_SIGNAL_MSI, &msi));
	msi.address_lo = 0xfee00000;
	msi.flags = 1 << 10;
	EXPECT_EQ(-EINVAL, try_ioctl(self->vm.fd, KVM_SIGNAL_MSI, &msi));
	EXPECT_EQ(-EFAULT, try_ioctl(self->vm.fd, KVM_SIGNAL_MSI, 8));
	/* Any address and data do no harm. */
	uint64_t seed = random_seed();

	for (int i = 0; i < 2000; i++) {
		msi = (struct kvm_msi){ .address_lo = random_next(&seed), .address_hi = random_next(&seed) & 0xffffff00,
					.data = random_next(&seed) };
		/* Messages that reset the vCPU are right, but not wanted here. */
		if (((msi.data >> 8) & 7) == 5 || ((msi.data >> 8) & 7) == 2)
			msi.data &= ~0x700;
		try_ioctl(self->vm.fd, KVM_SIGNAL_MSI, &msi);
	}
}

TEST_F(irqchip, line_status)
{
	struct kvm_irq_level irq = { .irq = 7, .level = 1 };

	start_ioapic(self, 7, 0x57);
	ASSERT_EQ(0, try_ioctl(self->vm.fd, KVM_IRQ_LINE_STATUS, &irq));
	EXPECT_GT(irq.status, 0);
	irq.irq = 7;
	irq.level = 0;
	ASSERT_EQ(0, try_ioctl(self->vm.fd, KVM_IRQ_LINE_STATUS, &irq));
	/* Numbers far out. */
	for (uint64_t line = 20; line < 1ull << 32; line = line * 3 + 1)
		irq_line(&self->vm, line, 1);
	irq_line(&self->vm, -1, 1);
	EXPECT_EQ(-EFAULT, try_ioctl(self->vm.fd, KVM_IRQ_LINE, 8));
	EXPECT_EQ(0x57, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
}

TEST(without_irqchip)
{
	struct vm vm = vm_create();
	struct vcpu vcpu = vcpu_create(&vm, 0);
	struct kvm_irqchip chip = { 0 };
	struct kvm_lapic_state lapic;
	struct kvm_msi msi = { .address_lo = 0xfee00000, .data = 0x71 };
	struct kvm_pit_state2 pit;

	EXPECT_EQ(-ENXIO, irq_line(&vm, 1, 1));
	EXPECT_EQ(-ENXIO, try_ioctl(vm.fd, KVM_GET_IRQCHIP, &chip));
	EXPECT_EQ(-ENXIO, try_ioctl(vm.fd, KVM_SET_IRQCHIP, &chip));
	EXPECT_EQ(-EINVAL, try_ioctl(vcpu.fd, KVM_GET_LAPIC, &lapic));
	EXPECT_EQ(-EINVAL, try_ioctl(vm.fd, KVM_SIGNAL_MSI, &msi));
	EXPECT_EQ(-ENXIO, try_ioctl(vm.fd, KVM_GET_PIT2, &pit));
	EXPECT_EQ(-ENXIO, try_ioctl(vm.fd, KVM_SET_PIT2, &pit));
}

/* What is read can be written, and is read again. */
TEST_F(irqchip, round_trips)
{
	struct kvm_lapic_state lapic, lapic_seen;
	struct kvm_pit_state2 pit, pit_seen;

	for (uint32_t id = 0; id < 3; id++) {
		struct kvm_irqchip chip = { .chip_id = id }, seen = { .chip_id = id };

		ASSERT_EQ(0, try_ioctl(self->vm.fd, KVM_GET_IRQCHIP, &chip));
		ASSERT_EQ(0, try_ioctl(self->vm.fd, KVM_SET_IRQCHIP, &chip));
		ASSERT_EQ(0, try_ioctl(self->vm.fd, KVM_GET_IRQCHIP, &seen));
		EXPECT_EQ(0, memcmp(&chip, &seen, sizeof(chip))) TH_LOG("chip %u", id);
	}
	/* What a VMM sets it gets back, also what no guest could have made. */
	struct kvm_irqchip odd = { .chip_id = KVM_IRQCHIP_PIC_MASTER, .chip.pic = { .irq_base = 0xff, .elcr = 0xff, .elcr_mask = 1 } };
	struct kvm_irqchip seen = { .chip_id = KVM_IRQCHIP_PIC_MASTER };

	ASSERT_EQ(0, try_ioctl(self->vm.fd, KVM_SET_IRQCHIP, &odd));
	ASSERT_EQ(0, try_ioctl(self->vm.fd, KVM_GET_IRQCHIP, &seen));
	EXPECT_EQ(0, memcmp(&odd.chip.pic, &seen.chip.pic, sizeof(odd.chip.pic)));

	struct kvm_irqchip none = { .chip_id = 3 };

	EXPECT_EQ(-EINVAL, try_ioctl(self->vm.fd, KVM_GET_IRQCHIP, &none));
	EXPECT_EQ(-EINVAL, try_ioctl(self->vm.fd, KVM_SET_IRQCHIP, &none));
	none.chip_id = -1;
	EXPECT_EQ(-EINVAL, try_ioctl(self->vm.fd, KVM_GET_IRQCHIP, &none));
	EXPECT_EQ(-EFAULT, try_ioctl(self->vm.fd, KVM_GET_IRQCHIP, 8));
	EXPECT_EQ(-EFAULT, try_ioctl(self->vm.fd, KVM_SET_IRQCHIP, 8));

	start(wait_only);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_GET_LAPIC, &lapic));
	EXPECT_EQ(0x1ff, *(uint32_t *)(lapic.regs + APIC_SVR));
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_SET_LAPIC, &lapic));
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_GET_LAPIC, &lapic_seen));
	EXPECT_EQ(0, memcmp(&lapic, &lapic_seen, sizeof(lapic)));
	EXPECT_EQ(-EFAULT, try_ioctl(self->vcpu.fd, KVM_GET_LAPIC, 8));
	EXPECT_EQ(-EFAULT, try_ioctl(self->vcpu.fd, KVM_SET_LAPIC, 8));

	ASSERT_EQ(0, try_ioctl(self->vm.fd, KVM_GET_PIT2, &pit));
	ASSERT_EQ(0, try_ioctl(self->vm.fd, KVM_SET_PIT2, &pit));
	ASSERT_EQ(0, try_ioctl(self->vm.fd, KVM_GET_PIT2, &pit_seen));
	for (int i = 0; i < 3; i++) {
		EXPECT_EQ(pit.channels[i].mode, pit_seen.channels[i].mode);
		EXPECT_EQ(pit.channels[i].count, pit_seen.channels[i].count);
	}
}

/* A pending interrupt in the state that the VMM sets is delivered. */
TEST_F(irqchip, pending_in_lapic_state)
{
	struct kvm_lapic_state lapic;

	start(wait_only);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_GET_LAPIC, &lapic));
	*(uint32_t *)(lapic.regs + APIC_IRR + 0x10 * (0x83 / 32)) |= 1u << (0x83 % 32);
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_SET_LAPIC, &lapic));
	EXPECT_EQ(0x83, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
}

TEST_F(irqchip, routing)
{
	struct routing table = {
		.header.nr = 3,
		.entries = {
			{ .gsi = 40, .type = KVM_IRQ_ROUTING_MSI, .u.msi = { .address_lo = 0xfee00000, .data = 0x91 } },
			{ .gsi = 41, .type = KVM_IRQ_ROUTING_IRQCHIP, .u.irqchip = { .irqchip = KVM_IRQCHIP_IOAPIC, .pin = 9 } },
			{ .gsi = 0, .type = KVM_IRQ_ROUTING_IRQCHIP, .u.irqchip = { .irqchip = KVM_IRQCHIP_PIC_MASTER, .pin = 0 } },
		},
	};

	start_ioapic(self, 9, 0x59);
	ASSERT_EQ(0, try_ioctl(self->vm.fd, KVM_SET_GSI_ROUTING, &table));
	ASSERT_EQ(0, irq_line(&self->vm, 40, 1));
	EXPECT_EQ(0x91, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	ASSERT_EQ(0, irq_line(&self->vm, 41, 1));
	EXPECT_EQ(0x59, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	/* The default routes are gone: line 9 leads nowhere. */
	irq_line(&self->vm, 41, 0);
	irq_line(&self->vm, 9, 1);
	ASSERT_EQ(0, irq_line(&self->vm, 40, 1));
	EXPECT_EQ(0x91, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	table.header.nr = 0;
	EXPECT_EQ(0, try_ioctl(self->vm.fd, KVM_SET_GSI_ROUTING, &table));
}

/* HLT blocks in the kernel: a line that another thread raises ends it, each time. */
static struct vm *raising;
static volatile bool raise_more;

static void *raise_lines(void *unused)
{
	while (raise_more) {
		irq_line(raising, 9, 1);
		irq_line(raising, 9, 0);
		usleep(500);
	}
	return NULL;
}

TEST_F(irqchip, halt_wakes_up)
{
	pthread_t thread;

	start_ioapic(self, 9, 0x59);
	raising = &self->vm;
	raise_more = true;
	ASSERT_EQ(0, pthread_create(&thread, NULL, raise_lines, NULL));
	for (unsigned long i = 0; i < scaled(500); i++) {
		EXPECT_EQ(0x59, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	}
	raise_more = false;
	pthread_join(thread, NULL);
}

/* A signal ends the HLT as well, and the guest halts on when it is run again. */
TEST_F(irqchip, signal_ends_halt)
{
	struct itimerval timer = { .it_value.tv_usec = 20000 };

	let_signal_interrupt(SIGALRM);
	start_ioapic(self, 9, 0x59);
	for (int i = 0; i < 3; i++) {
		setitimer(ITIMER_REAL, &timer, NULL);
		EXPECT_EQ(-EINTR, vcpu_run(&self->vcpu));
	}
	ASSERT_EQ(0, irq_line(&self->vm, 9, 1));
	EXPECT_EQ(0x59, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	EXPECT_EQ(0, vcpu_regs(&self->vcpu).rbx);
}

/* The guest sends itself an interrupt; the task priority holds it back; x2APIC has registers of its own. */
GUEST_CODE64(self_ipi,
	ENABLE_APIC; movl $0, APIC_ICR + 0x10(%r14); movl $0x50, APIC_TPR(%r14); sti; movl $(0x45 | 1 << 18), APIC_ICR(%r14); nop; nop;
	out %al, $PORT_SYNC; mov APIC_IRR + 0x20(%r14), %ebx; movl $0, APIC_TPR(%r14); nop; nop; cli; END_OF_INTERRUPT;
	mov $0x1b, %ecx; rdmsr; or $0x400, %eax; wrmsr;
	mov $0x802, %ecx; rdmsr; mov %eax, %esi; mov $0x80d, %ecx; rdmsr; mov %eax, %edi;
	mov $0x83f, %ecx; mov $0x46, %eax; xor %edx, %edx; sti; wrmsr; nop; nop; cli; mov $0x80b, %ecx; xor %eax, %eax; wrmsr; GUEST_DONE);

TEST_F(irqchip, self_ipi)
{
	if (!(cpuid_entry(supported_cpuid(), 1, 0)->ecx & 1 << 21))
		SKIP(return, "no x2APIC");
	start(self_ipi);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	EXPECT_EQ(0, self->report->count);
	EXPECT_EQ(0x45, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	EXPECT_EQ(1 << (0x45 % 32), vcpu_regs(&self->vcpu).rbx);
	EXPECT_EQ(0x46, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
	EXPECT_EQ(0, vcpu_regs(&self->vcpu).rsi);
	EXPECT_EQ(1, vcpu_regs(&self->vcpu).rdi & 0xffff);
}

/* VMMs turn the page off that there isn't. */
TEST_F(irqchip, vapic_address)
{
	struct kvm_vapic_addr address = { 0 };
	struct vm bare = vm_create();
	struct vcpu vcpu = vcpu_create(&bare, 0);

	EXPECT_EQ(0, try_ioctl(self->vcpu.fd, KVM_SET_VAPIC_ADDR, &address));
	EXPECT_EQ(-EFAULT, try_ioctl(self->vcpu.fd, KVM_SET_VAPIC_ADDR, 8));
	EXPECT_EQ(-EINVAL, try_ioctl(vcpu.fd, KVM_SET_VAPIC_ADDR, &address));
	if (device_extension(KVM_CAP_VAPIC) == 0) {
		address.vapic_addr = 0x1000;
		EXPECT_EQ(-EINVAL, try_ioctl(self->vcpu.fd, KVM_SET_VAPIC_ADDR, &address));
	}
	vcpu_free(&vcpu);
	vm_free(&bare);
}

XVM_TEST_MAIN
