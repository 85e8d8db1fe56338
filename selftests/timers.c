// SPDX-License-Identifier: GPL-2.0
/* The timers of the in-kernel APIC and PIT: when they come, compared with the host's clock, and that they end with their VM. */
#include "irqchip.h"

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
