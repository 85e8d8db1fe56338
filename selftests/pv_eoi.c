// SPDX-License-Identifier: GPL-2.0
/* Ends of interrupts without an exit: when the guest is told that an EOI can wait, and that the interrupt ends then. */
#include "irqchip.h"

#define MSR_EOI_EN 0x4b564d04
#define ENABLED 1
#define FLAG (GUEST_DATA + 0x800)
#define TIMES (GUEST_DATA + 0x808)

/*
 * RSI times: an interrupt to itself, waited for by HLT; then what a guest does in place of an EOI: takes the bit away, and writes the
 * register if it wasn't set. The handler is entered through the report's fixup, with interrupts off. FLAG counts the EOIs that could wait.
 */
GUEST_CODE64(ends, mov $APIC, %r14d; movl $0x1ff, APIC_SVR(%r14); mov $(GUEST_AT(ends, 2f)), %eax; mov %rax, GUEST_REPORT + REPORT_FIXUP;
	mov $GUEST_STACK, %esp; 1: movl $0x44040, APIC_ICR(%r14); 3: sti; hlt; cli; jmp 3b;
	2: mov $GUEST_STACK, %esp; incq TIMES; btrl $0, GUEST_FREE; jc 4f; movl $0, APIC_EOI(%r14); jmp 5f; 4: incq FLAG;
	5: dec %rsi; jnz 1b; GUEST_DONE);

static void run_ends(struct vcpu *vcpu, uint64_t times)
{
	struct kvm_regs regs;

	guest_load(vcpu->vm, ends);
	guest_set_mode(vcpu, MODE_LONG);
	regs = vcpu_regs(vcpu);
	regs.rsi = times;
	vcpu_set_regs(vcpu, &regs);
	*(uint64_t *)vm_at(vcpu->vm, FLAG) = 0;
	*(uint64_t *)vm_at(vcpu->vm, TIMES) = 0;
	vcpu_run_to_port(vcpu, PORT_DONE);
}

/* Each interrupt comes once, and the next one comes although nobody wrote the register. */
TEST_F(irqchip, eoi_can_wait)
{
	uint64_t value = 0, times = scaled(1000);
	struct kvm_lapic_state lapic;

	run_ends(&self->vcpu, times);
	EXPECT_EQ(times, *(uint64_t *)vm_at(&self->vm, TIMES));
	EXPECT_EQ(0, *(uint64_t *)vm_at(&self->vm, FLAG));
	ASSERT_EQ(1, vcpu_set_msr(&self->vcpu, MSR_EOI_EN, GUEST_FREE | ENABLED));
	ASSERT_EQ(1, vcpu_get_msr(&self->vcpu, MSR_EOI_EN, &value));
	EXPECT_EQ(GUEST_FREE | ENABLED, value);
	run_ends(&self->vcpu, times);
	EXPECT_EQ(times, *(uint64_t *)vm_at(&self->vm, TIMES));
	if (device_is_xvm())
		EXPECT_GT(*(uint64_t *)vm_at(&self->vm, FLAG), times / 2);
	/* Whatever is outside of the guest sees the interrupt's end, and the bit taken away. */
	EXPECT_EQ(0, *(uint32_t *)vm_at(&self->vm, GUEST_FREE) & 1);
	do_ioctl(self->vcpu.fd, KVM_GET_LAPIC, &lapic);
	for (int i = 0; i < 8; i++)
		EXPECT_EQ(0, *(uint32_t *)(lapic.regs + 0x100 + 16 * i));
	ASSERT_EQ(1, vcpu_set_msr(&self->vcpu, MSR_EOI_EN, 0));
	run_ends(&self->vcpu, times);
	EXPECT_EQ(0, *(uint64_t *)vm_at(&self->vm, FLAG));
}

/* Bad addresses are refused; memory that goes leaves the register as the way to end an interrupt. */
TEST_F(irqchip, bad_addresses)
{
	uint8_t *memory;

	EXPECT_EQ(0, vcpu_set_msr(&self->vcpu, MSR_EOI_EN, GUEST_FREE | ENABLED | 2));
	EXPECT_EQ(0, vcpu_set_msr(&self->vcpu, MSR_EOI_EN, GUEST_HIGH | ENABLED));
	EXPECT_EQ(0, vcpu_set_msr(&self->vcpu, MSR_EOI_EN, 0x7ffffffff000 | ENABLED));
	EXPECT_EQ(0, vcpu_set_msr(&self->vcpu, MSR_EOI_EN, 0xfffffffffffffffc | ENABLED));
	memory = vm_add_memory(&self->vm, 5, GUEST_HIGH, 4096);
	ASSERT_EQ(1, vcpu_set_msr(&self->vcpu, MSR_EOI_EN, GUEST_HIGH | ENABLED));
	memset(memory, 0, 4096);
	ASSERT_EQ(0, vm_set_region(&self->vm, 5, 0, GUEST_HIGH, 0, memory));
	run_ends(&self->vcpu, 10);
	EXPECT_EQ(10, *(uint64_t *)vm_at(&self->vm, TIMES));
	EXPECT_EQ(0, memory[0]);
	ASSERT_EQ(0, vm_set_region(&self->vm, 5, KVM_MEM_READONLY, GUEST_HIGH, 4096, memory));
	run_ends(&self->vcpu, 10);
	EXPECT_EQ(10, *(uint64_t *)vm_at(&self->vm, TIMES));
	EXPECT_EQ(0, memory[0]);
}

XVM_TEST_MAIN
