// SPDX-License-Identifier: GPL-2.0
/*
 * The in-kernel interrupt controllers and timers: state in and out, lines and messages, EOI, timers and how exact they are,
 * HLT that blocks in the kernel; and hostile state, tables and guests (CVE-2013-1798, 2013-6367, 2019-7221).
 */
#include "test.h"

#define APIC 0xfee00000
#define IOAPIC 0xfec00000
#define APIC_TPR 0x80
#define APIC_EOI 0xb0
#define APIC_SVR 0xf0
#define APIC_IRR 0x200
#define APIC_ICR 0x300
#define APIC_LVT_TIMER 0x320
#define APIC_LVT_LINT0 0x350
#define APIC_TIMER_INITIAL 0x380
#define APIC_TIMER_CURRENT 0x390
#define APIC_TIMER_DIVIDE 0x3e0
#define TIMER_VECTOR 0x40

FIXTURE(irqchip)
{
	struct vm vm;
	struct vcpu vcpu;
	volatile struct report *report;
};

FIXTURE_SETUP(irqchip)
{
	struct kvm_pit_config pit = { 0 };

	self->vm = vm_create();
	vm_create_irqchip(&self->vm);
	do_ioctl(self->vm.fd, KVM_CREATE_PIT2, &pit);
	self->vcpu = vcpu_create(&self->vm, 0);
	vcpu_set_supported_cpuid(&self->vcpu);
	self->report = guest_report(&self->vm);
}

FIXTURE_TEARDOWN(irqchip)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

#define start(name) do { \
	guest_load(&self->vm, name); \
	guest_set_mode(&self->vcpu, MODE_LONG); \
} while (0)

static int irq_line(struct vm *vm, uint32_t line, uint32_t level)
{
	struct kvm_irq_level irq = { .irq = line, .level = level };

	return try_ioctl(vm->fd, KVM_IRQ_LINE, &irq);
}

/* R14 and R13: the registers' addresses, which are too high to be absolute ones. */
#define ENABLE_APIC mov $APIC, %r14d; mov $IOAPIC, %r13d; movl $0x1ff, APIC_SVR(%r14)
#define END_OF_INTERRUPT movl $0, APIC_EOI(%r14)

/* The lines lead to the 8259 pair as well. */
#define NO_PIC mov $0xff, %al; out %al, $0x21; out %al, $0xa1; movl $0x10000, APIC_LVT_LINT0(%r14)

/* Interrupts on, then HLT for ever; after each wake-up an EOI and RBX one more. */
#define WAIT_LOOP 1: sti; hlt; cli; END_OF_INTERRUPT; inc %rbx; jmp 1b

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

/* Routing tables. */
struct routing {
	struct kvm_irq_routing header;
	struct kvm_irq_routing_entry entries[8];
};

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

/* The APIC's timer. RSI: the LVT, RDI: the count, RBP: the divider. */
GUEST_CODE64(timer,
	ENABLE_APIC; mov %ebp, APIC_TIMER_DIVIDE(%r14); mov %esi, APIC_LVT_TIMER(%r14);
	out %al, $PORT_SYNC; mov %edi, APIC_TIMER_INITIAL(%r14); WAIT_LOOP);

static void start_timer(FIXTURE_DATA(irqchip) *self, uint32_t lvt, uint32_t count, uint32_t divider)
{
	struct kvm_regs regs;

	start(timer);
	regs = vcpu_regs(&self->vcpu);
	regs.rsi = lvt;
	regs.rdi = count;
	regs.rbp = divider;
	vcpu_set_regs(&self->vcpu, &regs);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
}

#define MILLISECOND 1000000ull
/* How late a timer may be on an emulated machine that others use too; one that never comes is what this finds. */
#define SLACK (2000 * MILLISECOND)

TEST_F(irqchip, one_shot_timer)
{
	uint64_t before, elapsed;

	/* KVM's APIC counts nanoseconds; divided by 16, 625000 are 10 ms. */
	start_timer(self, TIMER_VECTOR, 625000, 3);
	before = now_ns();
	EXPECT_EQ(TIMER_VECTOR, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	elapsed = now_ns() - before;
	EXPECT_GE(elapsed, 10 * MILLISECOND);
	EXPECT_LT(elapsed, 10 * MILLISECOND + SLACK);
	/* Once is all. */
	struct kvm_lapic_state lapic;

	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_GET_LAPIC, &lapic));
	EXPECT_EQ(0, *(uint32_t *)(lapic.regs + APIC_TIMER_CURRENT));
}

TEST_F(irqchip, periodic_timer)
{
	uint64_t before, elapsed;

	start_timer(self, TIMER_VECTOR | 1 << 17, 10 * MILLISECOND, 0xb);
	before = now_ns();
	for (int i = 0; i < 20; i++) {
		EXPECT_EQ(TIMER_VECTOR, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	}
	elapsed = now_ns() - before;
	/* Late ones may follow each other sooner, but 20 periods take 20 periods. */
	EXPECT_GE(elapsed, 195 * MILLISECOND);
	EXPECT_LT(elapsed, 200 * MILLISECOND + SLACK);
	TH_LOG("20 periods of 10 ms took %lu us", elapsed / 1000);
}

/* The deadline is in the guest's TSC: RSI ticks from now. */
GUEST_CODE64(deadline,
	ENABLE_APIC; movl $(TIMER_VECTOR + 0x40000), APIC_LVT_TIMER(%r14); out %al, $PORT_SYNC;
	1: rdtsc; shl $32, %rdx; or %rdx, %rax; mov %rax, %r8; add %rsi, %rax; mov %rax, %r9; mov %rax, %rdx; shr $32, %rdx;
	mov $0x6e0, %ecx; wrmsr; sti; hlt; cli; rdtsc; shl $32, %rdx; or %rdx, %rax; mov %rax, %r10; END_OF_INTERRUPT;
	mov $0x6e0, %ecx; rdmsr; mov %rax, %r11; out %al, $PORT_SYNC; jmp 1b);

TEST_F(irqchip, deadline_timer)
{
	int khz = try_ioctl(self->vcpu.fd, KVM_GET_TSC_KHZ, 0);
	struct kvm_cpuid_entry2 *one = cpuid_entry(supported_cpuid(), 1, 0);
	struct kvm_regs regs;

	ASSERT_GT(khz, 0);
	if (one->ecx & 1 << 24) {
		/* It is in the list. */
	} else {
		/* KVM leaves the bit to the VMM, which looks at the capability. */
		struct {
			struct kvm_cpuid2 header;
			struct kvm_cpuid_entry2 entries[256];
		} list;

		memcpy(&list, supported_cpuid(), sizeof(list.header) + supported_cpuid()->nent * sizeof(list.entries[0]));
		cpuid_entry(&list.header, 1, 0)->ecx |= 1 << 24;
		ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_SET_CPUID2, &list));
	}
	start(deadline);
	regs = vcpu_regs(&self->vcpu);
	regs.rsi = khz * 5ull;
	vcpu_set_regs(&self->vcpu, &regs);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	for (int i = 0; i < 10; i++) {
		EXPECT_EQ(TIMER_VECTOR, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
		vcpu_run_to_port(&self->vcpu, PORT_SYNC);
		regs = vcpu_regs(&self->vcpu);
		/* Not before the deadline, and not seconds after it; the register is 0 again. */
		EXPECT_GE(regs.r10, regs.r9);
		EXPECT_LT(regs.r10, regs.r9 + khz * 2000ull);
		EXPECT_EQ(0, regs.r11);
	}
}

/* The PIT, channel 0, mode 2 at 100 Hz, through the PIC. */
GUEST_CODE64(pit,
	ENABLE_APIC; movl $0x700, APIC_LVT_LINT0(%r14);
	mov $0x11, %al; out %al, $0x20; mov $0x20, %al; out %al, $0x21; mov $4, %al; out %al, $0x21; mov $1, %al; out %al, $0x21;
	mov $0xfe, %al; out %al, $0x21;
	out %al, $PORT_SYNC;
	mov $0x34, %al; out %al, $0x43; mov $0x9c, %al; out %al, $0x40; mov $0x2e, %al; out %al, $0x40;
	1: sti; hlt; cli; mov $0x20, %al; out %al, $0x20; jmp 1b);

TEST_F(irqchip, pit)
{
	uint64_t before, elapsed;

	start(pit);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	before = now_ns();
	for (int i = 0; i < 10; i++) {
		EXPECT_EQ(0x20, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	}
	elapsed = now_ns() - before;
	EXPECT_GE(elapsed, 90 * MILLISECOND);
	EXPECT_LT(elapsed, 100 * MILLISECOND + SLACK);
	TH_LOG("10 periods of 10 ms took %lu us", elapsed / 1000);
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

/* Timers that are armed when their VM goes (CVE-2019-7221). */
TEST(timers_end_with_their_vm)
{
	for (unsigned long i = 0; i < scaled(30); i++) {
		struct vm vm = vm_create();
		struct kvm_pit_config config = { 0 };
		struct vcpu vcpu;
		struct kvm_regs regs;

		vm_create_irqchip(&vm);
		do_ioctl(vm.fd, KVM_CREATE_PIT2, &config);
		vcpu = vcpu_create(&vm, 0);
		vcpu_set_supported_cpuid(&vcpu);
		if (i & 1) {
			guest_load(&vm, timer);
			guest_set_mode(&vcpu, MODE_LONG);
			regs = vcpu_regs(&vcpu);
			regs.rsi = TIMER_VECTOR | 1 << 17;
			regs.rdi = 200000;
			regs.rbp = 0xb;
			vcpu_set_regs(&vcpu, &regs);
			vcpu_run_to_port(&vcpu, PORT_SYNC);
		} else {
			guest_load(&vm, pit);
			guest_set_mode(&vcpu, MODE_LONG);
			vcpu_run_to_port(&vcpu, PORT_SYNC);
		}
		vcpu_run_to_port(&vcpu, PORT_EXCEPTION);
		vcpu_free(&vcpu);
		vm_free(&vm);
	}
}

XVM_TEST_MAIN
