/* SPDX-License-Identifier: GPL-2.0 */
/* For tests of the log of written pages: guests that write to a slot at GUEST_HIGH. */
#ifndef SELFTESTS_DIRTY_H
#define SELFTESTS_DIRTY_H

#include "test.h"

#define PAGE 4096ul

/* Writes RAX to the page at RSI, then to those RDI bytes further, RCX times; tells. */
GUEST_CODE64(touch, 1: mov %rax, (%rsi); add %rdi, %rsi; dec %rcx; jnz 1b; GUEST_SYNC; jmp 1b);

/* Writes, again and again, to pseudo-random words of the RDI + 1 (a power of two) words at RSI. RAX: not 0. */
GUEST_CODE64(scribble,
	1: mov %rax, %rbx; shl $13, %rbx; xor %rbx, %rax; mov %rax, %rbx; shr $7, %rbx; xor %rbx, %rax; mov %rax, %rbx; shl $17, %rbx;
	xor %rbx, %rax; mov %rax, %rbx; shr $11, %rbx; and %rdi, %rbx; mov %rax, (%rsi,%rbx,8); inc %rdx; jmp 1b);

/* The vCPU, which executes touch, writes next to count pages of the slot, from page on, step apart. */
static inline void dirty_set_touch(struct vcpu *vcpu, uint64_t page, uint64_t step, uint64_t count)
{
	struct kvm_regs regs = vcpu_regs(vcpu);

	regs.rip = GUEST_CODE;
	regs.rax++;
	regs.rsi = GUEST_HIGH + page * PAGE;
	regs.rdi = step * PAGE;
	regs.rcx = count;
	vcpu_set_regs(vcpu, &regs);
}

#endif
