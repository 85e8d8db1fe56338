// SPDX-License-Identifier: GPL-2.0
/*
 * The in-kernel interrupt controllers with guests and VMMs that mean no good: routing tables, states, registers out of all bounds
 * (CVE-2013-1798, 2013-6367, 2020-36313 and kin).
 */
#include "irqchip.h"

GUEST_CODE64(wait_only, ENABLE_APIC; out %al, $PORT_SYNC; WAIT_LOOP);

TEST_F(irqchip, hostile_routing)
{
	struct routing good = {
		.header.nr = 1,
		.entries = { { .gsi = 40, .type = KVM_IRQ_ROUTING_MSI, .u.msi = { .address_lo = 0xfee00000, .data = 0x91 } } },
	}, bad;

	ASSERT_EQ(0, try_ioctl(self->vm.fd, KVM_SET_GSI_ROUTING, &good));
#define EXPECT_REFUSED(statement) do { \
		bad = good; \
		statement; \
		EXPECT_EQ(-EINVAL, try_ioctl(self->vm.fd, KVM_SET_GSI_ROUTING, &bad)) TH_LOG("%s", #statement); \
	} while (0)
	EXPECT_REFUSED(bad.header.flags = 1);
	EXPECT_REFUSED(bad.header.nr = 0xffffffff);
	EXPECT_REFUSED(bad.header.nr = 4097);
	EXPECT_REFUSED(bad.entries[0].gsi = 4096);
	EXPECT_REFUSED(bad.entries[0].gsi = 0xffffffff);
	EXPECT_REFUSED(bad.entries[0].type = 0);
	EXPECT_REFUSED(bad.entries[0].type = 99);
	EXPECT_REFUSED(bad.entries[0].flags = 1 << 5);
	EXPECT_REFUSED(bad.entries[0] = ((struct kvm_irq_routing_entry){
		.gsi = 1, .type = KVM_IRQ_ROUTING_IRQCHIP, .u.irqchip = { .irqchip = KVM_IRQCHIP_IOAPIC, .pin = 24 } }));
	EXPECT_REFUSED(bad.entries[0] = ((struct kvm_irq_routing_entry){
		.gsi = 1, .type = KVM_IRQ_ROUTING_IRQCHIP, .u.irqchip = { .irqchip = KVM_IRQCHIP_IOAPIC, .pin = 0xffffffff } }));
	EXPECT_REFUSED(bad.entries[0] = ((struct kvm_irq_routing_entry){
		.gsi = 1, .type = KVM_IRQ_ROUTING_IRQCHIP, .u.irqchip = { .irqchip = KVM_IRQCHIP_PIC_MASTER, .pin = 8 } }));
	EXPECT_REFUSED(bad.entries[0] = ((struct kvm_irq_routing_entry){
		.gsi = 1, .type = KVM_IRQ_ROUTING_IRQCHIP, .u.irqchip = { .irqchip = 3, .pin = 1 } }));
	EXPECT_REFUSED(bad.entries[0] = ((struct kvm_irq_routing_entry){
		.gsi = 1, .type = KVM_IRQ_ROUTING_IRQCHIP, .u.irqchip = { .irqchip = 0xffffffff, .pin = 1 } }));
	EXPECT_EQ(-EFAULT, try_ioctl(self->vm.fd, KVM_SET_GSI_ROUTING, 8));
	/* The good table is still there. */
	start(wait_only);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	ASSERT_EQ(0, irq_line(&self->vm, 40, 1));
	EXPECT_EQ(0x91, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
}

/*
 * Hostile guests. All indices of the IOAPIC's window (CVE-2013-1798); all offsets of the APIC's page with values of R8's making,
 * in the widths that are right and those that are not; a periodic timer with a count of 0 (CVE-2013-6367).
 */
GUEST_CODE64(all_ioapic_registers,
	ENABLE_APIC; xor %esi, %esi; 1: mov %esi, (%r13); mov 0x10(%r13), %eax; mov %r8d, 0x10(%r13); mov 0x10(%r13), %eax;
	imul $1103515245, %r8d, %r8d; add $12345, %r8d; inc %esi; cmp $0x100, %esi; jne 1b;
	xor %esi, %esi; 2: mov (%r13,%rsi), %al; mov %al, (%r13,%rsi); inc %esi; cmp $0x100, %esi; jne 2b; GUEST_DONE);
GUEST_CODE64(all_apic_registers,
	ENABLE_APIC; mov $APIC, %esi; 1: cmp $(APIC + 0x300), %esi; je 3f; mov (%rsi), %eax; imul $1103515245, %r8d, %r8d; add $12345, %r8d; mov %r8d, (%rsi);
	3: add $0x10, %esi; cmp $(APIC + 0x1000), %esi; jne 1b;
	mov $APIC, %esi; 2: mov (%rsi), %al; mov 1(%rsi), %ax; mov 2(%rsi), %rax; mov %r8b, 1(%rsi); mov %r8w, 3(%rsi); add $0x8, %esi;
	cmp $(APIC + 0xff0), %esi; jne 2b;
	movl $0x20040, APIC_LVT_TIMER(%r14); movl $0, APIC_TIMER_INITIAL(%r14); mov APIC_TIMER_CURRENT(%r14), %eax;
	movl $1, APIC_TIMER_INITIAL(%r14); mov APIC_TIMER_CURRENT(%r14), %eax; GUEST_DONE);

static void run_briefly(struct vcpu *vcpu)
{
	struct itimerval timer = { .it_value.tv_usec = 100000 };
	int reason;

	let_signal_interrupt(SIGALRM);
	setitimer(ITIMER_REAL, &timer, NULL);
	do
		reason = vcpu_run(vcpu);
	while (reason == KVM_EXIT_MMIO || (reason == KVM_EXIT_IO && vcpu->run->io.port != PORT_DONE));
	timer.it_value.tv_usec = 0;
	setitimer(ITIMER_REAL, &timer, NULL);
}

TEST_F(irqchip, hostile_guest)
{
	uint64_t seed = random_seed();

	for (unsigned long i = 0; i < scaled(20); i++) {
		struct kvm_regs regs;

		if (i & 1)
			guest_load(&self->vm, all_ioapic_registers);
		else
			guest_load(&self->vm, all_apic_registers);
		guest_set_mode(&self->vcpu, MODE_LONG);
		regs = vcpu_regs(&self->vcpu);
		regs.r8 = random_next(&seed);
		vcpu_set_regs(&self->vcpu, &regs);
		run_briefly(&self->vcpu);
	}
}

/* Hostile VMMs: every chip's state at random, with the lines moving and the guest running. */
TEST_F(irqchip, hostile_state)
{
	uint64_t seed = random_seed();

	for (unsigned long i = 0; i < scaled(60); i++) {
		struct kvm_irqchip chip;
		struct kvm_lapic_state lapic;
		struct kvm_pit_state2 pit;

		for (unsigned int j = 0; j < sizeof(chip); j++)
			((uint8_t *)&chip)[j] = random_next(&seed) >> 20;
		chip.chip_id = i % 3;
		try_ioctl(self->vm.fd, KVM_SET_IRQCHIP, &chip);
		for (unsigned int j = 0; j < sizeof(lapic); j++)
			((uint8_t *)&lapic)[j] = random_next(&seed) >> 20;
		try_ioctl(self->vcpu.fd, KVM_SET_LAPIC, &lapic);
		for (unsigned int j = 0; j < sizeof(pit); j++)
			((uint8_t *)&pit)[j] = random_next(&seed) >> 20;
		pit.flags &= KVM_PIT_FLAGS_HPET_LEGACY;
		try_ioctl(self->vm.fd, KVM_SET_PIT2, &pit);
		for (uint32_t line = 0; line < 24; line++)
			irq_line(&self->vm, line, random_next(&seed) >> 40 & 1);
		/* KVM gives up a VM after some of these. */
		if (!device_is_xvm() && try_ioctl(self->vm.fd, KVM_GET_IRQCHIP, &chip) == -EIO)
			return;
		/* Whatever can be set can be read. */
		EXPECT_EQ(0, try_ioctl(self->vm.fd, KVM_GET_IRQCHIP, &chip));
		EXPECT_EQ(0, try_ioctl(self->vcpu.fd, KVM_GET_LAPIC, &lapic));
		EXPECT_EQ(0, try_ioctl(self->vm.fd, KVM_GET_PIT2, &pit));
		guest_load(&self->vm, wait_only);
		guest_set_mode(&self->vcpu, MODE_LONG);
		struct itimerval timer = { .it_value.tv_usec = 3000, .it_interval.tv_usec = 3000 };

		let_signal_interrupt(SIGALRM);
		setitimer(ITIMER_REAL, &timer, NULL);
		for (int j = 0; j < 3; j++)
			vcpu_run(&self->vcpu);
		timer = (struct itimerval){ 0 };
		setitimer(ITIMER_REAL, &timer, NULL);
	}
}

XVM_TEST_MAIN
