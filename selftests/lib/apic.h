/* SPDX-License-Identifier: GPL-2.0 */
/* For tests of interrupts: register offsets, and what their guests have in common. */
#ifndef SELFTESTS_APIC_H
#define SELFTESTS_APIC_H

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

/* R14 and R13: the registers' addresses, which are too high to be absolute ones. */
#define ENABLE_APIC mov $APIC, %r14d; mov $IOAPIC, %r13d; movl $0x1ff, APIC_SVR(%r14)
#define END_OF_INTERRUPT movl $0, APIC_EOI(%r14)

/* The lines lead to the 8259 pair as well. */
#define NO_PIC mov $0xff, %al; out %al, $0x21; out %al, $0xa1; movl $0x10000, APIC_LVT_LINT0(%r14)

/* Interrupts on, then HLT for ever; after each wake-up an EOI and RBX one more. */
#define WAIT_LOOP 1: sti; hlt; cli; END_OF_INTERRUPT; inc %rbx; jmp 1b

static inline int irq_line(struct vm *vm, uint32_t line, uint32_t level)
{
	struct kvm_irq_level irq = { .irq = line, .level = level };

	return try_ioctl(vm->fd, KVM_IRQ_LINE, &irq);
}

/* A routing table that has room. */
struct routing {
	struct kvm_irq_routing header;
	struct kvm_irq_routing_entry entries[8];
};

#endif
