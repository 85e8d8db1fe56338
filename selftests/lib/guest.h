/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Guest code for tests: fragments of assembly beside the test that runs them, the modes they run in, and exception
 * handlers that report.
 */
#ifndef SELFTESTS_GUEST_H
#define SELFTESTS_GUEST_H

#include "layout.h"
#include "vm.h"

#define GUEST_TEXT_(...) #__VA_ARGS__
#define GUEST_TEXT(...) GUEST_TEXT_(__VA_ARGS__)

/*
 * A fragment of guest code: GUEST_CODE64(name, instruction; instruction; ...), in AT&T syntax, with C's macros
 * expanded. It runs at GUEST_CODE: jumps are relative, and the address of a label is written GUEST_AT(name, label).
 */
#define GUEST_FRAGMENT(bits, name, ...) \
	asm(".pushsection .rodata\n.code" #bits "\nguest_" #name ": " GUEST_TEXT(__VA_ARGS__) \
	    "\nguest_" #name "_end: .code64\n.popsection\n"); \
	extern const uint8_t guest_##name[], guest_##name##_end[]
#define GUEST_CODE16(name, ...) GUEST_FRAGMENT(16, name, __VA_ARGS__)
#define GUEST_CODE32(name, ...) GUEST_FRAGMENT(32, name, __VA_ARGS__)
#define GUEST_CODE64(name, ...) GUEST_FRAGMENT(64, name, __VA_ARGS__)
#define GUEST_AT(name, label) GUEST_CODE + label - guest_##name

/* The last instructions of a fragment: they tell the test, which does not run the guest again. */
#define GUEST_DONE out %al, $PORT_DONE; 99: hlt; jmp 99b
#define GUEST_SYNC out %al, $PORT_SYNC

/* Copies a fragment to GUEST_CODE. */
#define guest_load(vm, name) guest_copy(vm, guest_##name, guest_##name##_end)
void guest_copy(struct vm *vm, const uint8_t *start, const uint8_t *end);

enum guest_mode {
	MODE_REAL,	/* 16-bit, no paging */
	MODE_PROTECTED,	/* 32-bit, no paging */
	MODE_PAGED,	/* 32-bit, two-level paging */
	MODE_PAE,	/* 32-bit, three-level paging */
	MODE_LONG,	/* 64-bit, four-level paging */
	MODE_COUNT,
};

/* Puts the vCPU at GUEST_CODE in a mode: registers 0, stack at GUEST_STACK, interrupts off. */
void guest_set_mode(struct vcpu *vcpu, enum guest_mode mode);

/* Makes one of several vCPUs ready to run 64-bit code: it has a stack of its own, and its number in RDI. */
void guest_start_numbered(struct vcpu *vcpu, int number);

/* A thread that runs a vCPU until the guest is done; returns what it wrote. */
void *run_to_done(void *vcpu);
/* The same for a vCPU that may be in a state that allows no such thing. */
void guest_set_mode_if_possible(struct vcpu *vcpu, enum guest_mode mode);
const char *guest_mode_name(enum guest_mode mode);

/* Long mode is what most tests want: a VM with one vCPU and a fragment in it. */
#define guest_start(vm, vcpu, name) do { \
	*(vm) = vm_create(); \
	*(vcpu) = vcpu_create(vm, 0); \
	vcpu_set_supported_cpuid(vcpu); \
	guest_load(vm, name); \
	guest_set_mode(vcpu, MODE_LONG); \
} while (0)

/*
 * What the exception handlers of protected, PAE and long mode leave at GUEST_REPORT before they write the vector to
 * PORT_EXCEPTION. If the test has set fixup, the guest goes on there instead, without an exit.
 */
struct report {
	uint64_t vector;
	uint64_t error;
	uint64_t rip;
	uint64_t cs;
	uint64_t flags;
	uint64_t rsp;
	uint64_t cr2;
	uint64_t fixup;
	uint64_t count;
};

static inline volatile struct report *guest_report(struct vm *vm)
{
	return vm_at(vm, GUEST_REPORT);
}

/* Writes descriptor tables, page tables and handlers into a new VM's memory. */
void guest_prepare(struct vm *vm);

/* The page-table entry of long mode and PAE for one of the pages below 2 MiB. */
uint64_t *guest_pte(struct vm *vm, uint64_t address);

#endif
