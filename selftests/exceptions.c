// SPDX-License-Identifier: GPL-2.0
/* Exceptions that the guest raises and handles on its own (Intel SDM volume 3, chapter 6): error codes and return addresses. */
#include "test.h"

#define CR0_TS 8
#define CR0_AM (1 << 18)
#define FLAGS_AC (1 << 18)
#define FLAGS_TF (1 << 8)
#define NO_ERROR REPORT_NO_ERROR

/* The instruction that faults is at label 1 of each fragment, with NOPs around it. */
#define RAISE(name, ...) GUEST_CODE64(name, __VA_ARGS__; GUEST_DONE)

RAISE(divide, xor %ecx, %ecx; 1: div %ecx);
RAISE(divide_overflow, mov $1, %edx; xor %eax, %eax; mov $1, %ecx; 1: div %ecx);
RAISE(int1, .byte 0xf1; 1: nop);
RAISE(breakpoint, int3; 1: nop);
RAISE(breakpoint_two_bytes, int $3; 1: nop);
RAISE(undefined, 1: ud2);
RAISE(undefined_lock, 1: .byte 0xf0, 0x90);
RAISE(device_not_available, mov %cr0, %rax; or $CR0_TS, %eax; mov %rax, %cr0; 1: fninit);
RAISE(not_present, mov $SELECTOR_NOT_PRESENT, %eax; 1: mov %eax, %ds);
RAISE(stack, movabs $0x4000000000000000, %rbp; 1: mov (%rbp), %al);
RAISE(protection, movabs $0x4000000000000000, %rbx; 1: mov (%rbx), %al);
RAISE(protection_selector, mov $0x7f8, %eax; 1: mov %eax, %ds);
RAISE(protection_cr4, mov %cr4, %rax; bts $31, %rax; 1: mov %rax, %cr4);
RAISE(protection_int, 1: int $0x81);
RAISE(page_read, movabs $0x100000000000, %rbx; 1: mov (%rbx), %al);
RAISE(page_write, movabs $0x100000001000, %rbx; 1: mov %al, (%rbx));
RAISE(page_fetch, movabs $0x100000002000, %rbx; 1: nop; jmp *%rbx);
RAISE(x87, fninit; push $0x37b; fldcw (%rsp); fld1; fldz; fdivrp; 1: fwait);
RAISE(simd, push $0x1d80; ldmxcsr (%rsp); xorps %xmm0, %xmm0; mov $1, %eax; cvtsi2ss %eax, %xmm1; 1: divss %xmm0, %xmm1);
RAISE(step, pushfq; orl $FLAGS_TF, (%rsp); popfq; nop; 1: nop);

#define CASE(name, vector, error) { #name, guest_##name, guest_##name##_end, vector, error }
static const struct {
	const char *name;
	const uint8_t *code, *end;
	uint8_t vector;
	uint32_t error;
} cases[] = {
	CASE(divide, 0, NO_ERROR), CASE(divide_overflow, 0, NO_ERROR), CASE(int1, 1, NO_ERROR), CASE(breakpoint, 3, NO_ERROR),
	CASE(breakpoint_two_bytes, 3, NO_ERROR), CASE(undefined, 6, NO_ERROR), CASE(undefined_lock, 6, NO_ERROR),
	CASE(device_not_available, 7, NO_ERROR), CASE(not_present, 11, SELECTOR_NOT_PRESENT), CASE(stack, 12, 0),
	CASE(protection, 13, 0), CASE(protection_selector, 13, 0x7f8), CASE(protection_cr4, 13, 0), CASE(protection_int, 13, 0x81 * 8 + 2),
	CASE(page_read, 14, 0), CASE(page_write, 14, 2), CASE(page_fetch, 14, 0x10), CASE(x87, 16, NO_ERROR), CASE(simd, 19, NO_ERROR),
	CASE(step, 1, NO_ERROR),
};

FIXTURE(exceptions)
{
	struct vm vm;
	struct vcpu vcpu;
	volatile struct report *report;
};

FIXTURE_SETUP(exceptions)
{
	guest_start(&self->vm, &self->vcpu, divide);
	self->report = guest_report(&self->vm);
}

FIXTURE_TEARDOWN(exceptions)
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

/* Runs until the guest writes to any port: which. */
static uint16_t run_to_any_port(struct vcpu *vcpu)
{
	vcpu_run_to(vcpu, KVM_EXIT_IO);
	return vcpu->run->io.port;
}

TEST_F(exceptions, each)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(cases); i++) {
		/* QEMU's TCG raises #GP for stack addresses that are not canonical, and no SIMD floating-point exceptions. */
		if (host_is_qemu_tcg() && (!strcmp(cases[i].name, "stack") || !strcmp(cases[i].name, "simd"))) {
			TH_LOG("not tried in QEMU: %s", cases[i].name);
			continue;
		}
		guest_copy(&self->vm, cases[i].code, cases[i].end);
		guest_set_mode(&self->vcpu, MODE_LONG);
		*gate(&self->vm, 0x81) &= ~GATE_PRESENT;
		if (!strcmp(cases[i].name, "protection_int")) {
			/* The gate is for privilege level 0, but there is none: its error code is that of the vector. */
			*gate(&self->vm, 0x81) = 0;
			gate(&self->vm, 0x81)[1] = 0;
		}
		EXPECT_EQ(PORT_EXCEPTION, run_to_any_port(&self->vcpu)) TH_LOG("%s", cases[i].name);
		EXPECT_EQ(cases[i].vector, self->report->vector) TH_LOG("%s", cases[i].name);
		EXPECT_EQ(cases[i].error, self->report->error) TH_LOG("%s", cases[i].name);
		EXPECT_EQ(SELECTOR_CODE64, self->report->cs);
		if (cases[i].vector == 14) {
			EXPECT_EQ(0x100000000000, self->report->cr2 & ~0x3000ull) TH_LOG("%s", cases[i].name);
		}
	}
}

/* Return addresses: of the instruction for a fault, behind it for a trap. */
GUEST_CODE64(addresses,
	lea 1f(%rip), %rbx; xor %ecx, %ecx; 1: div %ecx; GUEST_SYNC;
	lea 2f(%rip), %rbx; int3; 2: GUEST_SYNC;
	lea 3f(%rip), %rbx; 3: ud2; GUEST_SYNC;
	lea 4f(%rip), %rbx; int $0x77; 4: GUEST_SYNC;
	GUEST_DONE);

TEST_F(exceptions, return_addresses)
{
	static const struct { uint8_t vector; uint8_t skip; } steps[] = { { 0, 2 }, { 3, 0 }, { 6, 2 }, { 0x77, 0 } };
	struct kvm_regs regs;
	uint64_t resume;

	guest_load(&self->vm, addresses);
	guest_set_mode(&self->vcpu, MODE_LONG);
	for (unsigned int i = 0; i < ARRAY_SIZE(steps); i++) {
		EXPECT_EQ(steps[i].vector, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
		regs = vcpu_regs(&self->vcpu);
		EXPECT_EQ(regs.rbx, self->report->rip) TH_LOG("vector %u", steps[i].vector);
		/* On from behind the instruction, by the frame that the handler will return to. */
		memcpy(&resume, vm_at(&self->vm, regs.rsp + 24), 8);
		EXPECT_EQ(self->report->rip, resume);
		resume += steps[i].skip;
		memcpy(vm_at(&self->vm, regs.rsp + 24), &resume, 8);
		vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	}
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
}

/* Page faults of the user and of the supervisor, with every bit of the error code that the tables can make. */
GUEST_CODE64(touch, cmp $1, %ecx; je 1f; ja 2f; mov (%rbx), %al; GUEST_SYNC; 1: mov %al, (%rbx); GUEST_SYNC; 2: call *%rbx; GUEST_SYNC);
GUEST_CODE64(touch_as_user,
	pushq $SELECTOR_USER_DATA; pushq $GUEST_STACK; pushq $0x3002; pushq $SELECTOR_USER_CODE; pushq $(GUEST_AT(touch_as_user, 3f)); iretq;
	3: cmp $1, %ecx; je 1f; ja 2f; mov (%rbx), %al; GUEST_SYNC; 1: mov %al, (%rbx); GUEST_SYNC; 2: call *%rbx; GUEST_SYNC);

#define NX (1ull << 63)
#define P 1
#define W 2
#define U 4
#define READ 0
#define WRITE 1
#define FETCH 2

TEST_F(exceptions, page_fault_errors)
{
	static const struct {
		bool user;
		unsigned int access;
		uint64_t entry;
		int64_t error;	/* -1: no fault */
	} faults[] = {
		{ false, READ, P, -1 }, { false, READ, 0, 0 }, { false, WRITE, 0, 2 }, { false, FETCH, 0, 0x10 },
		{ false, WRITE, P | U, 3 }, { false, WRITE, P | W, -1 }, { false, FETCH, P | W | NX, 0x11 },
		{ true, READ, P | U, -1 }, { true, READ, P | W, 5 }, { true, WRITE, P | U, 7 }, { true, READ, 0, 4 },
		{ true, WRITE, 0, 6 }, { true, FETCH, P | U | NX, 0x15 }, { true, FETCH, P, 0x15 },
	};

	for (unsigned int i = 0; i < ARRAY_SIZE(faults); i++) {
		struct kvm_sregs sregs;
		struct kvm_regs regs;

		*(uint8_t *)vm_at(&self->vm, GUEST_FREE) = 0xc3; /* ret */
		if (faults[i].user)
			guest_load(&self->vm, touch_as_user);
		else
			guest_load(&self->vm, touch);
		guest_set_mode(&self->vcpu, MODE_LONG);
		sregs = vcpu_sregs(&self->vcpu);
		sregs.cr0 |= 1 << 16; /* WP */
		vcpu_set_sregs(&self->vcpu, &sregs);
		*guest_pte(&self->vm, GUEST_FREE) = GUEST_FREE | faults[i].entry;
		regs = vcpu_regs(&self->vcpu);
		regs.rbx = GUEST_FREE;
		regs.rcx = faults[i].access;
		vcpu_set_regs(&self->vcpu, &regs);
		if (faults[i].error < 0) {
			vcpu_run_to_port(&self->vcpu, PORT_SYNC);
			continue;
		}
		EXPECT_EQ(14, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION)) TH_LOG("case %u", i);
		EXPECT_EQ(faults[i].error, self->report->error) TH_LOG("case %u", i);
		EXPECT_EQ(GUEST_FREE, self->report->cr2) TH_LOG("case %u", i);
		EXPECT_EQ(GUEST_FREE, vcpu_sregs(&self->vcpu).cr2);
	}
}

/* A reserved bit set in an entry. */
TEST_F(exceptions, page_fault_reserved)
{
	struct kvm_regs regs;

	guest_load(&self->vm, touch);
	guest_set_mode(&self->vcpu, MODE_LONG);
	*guest_pte(&self->vm, GUEST_FREE) = GUEST_FREE | 7 | 1ull << 51;
	regs = vcpu_regs(&self->vcpu);
	regs.rbx = GUEST_FREE;
	vcpu_set_regs(&self->vcpu, &regs);
	EXPECT_EQ(14, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	/* QEMU's TCG leaves the present bit out. */
	EXPECT_EQ(host_is_qemu_tcg() ? 8 : 9, self->report->error);
}

/* #AC: a misaligned access at privilege level 3 with CR0.AM and EFLAGS.AC. */
GUEST_CODE64(misaligned,
	pushq $SELECTOR_USER_DATA; pushq $GUEST_STACK; pushq $(FLAGS_AC + 2); pushq $SELECTOR_USER_CODE;
	pushq $(GUEST_AT(misaligned, 1f)); iretq;
	1: mov $GUEST_FREE + 1, %ebx; 2: mov (%rbx), %eax; ud2);

TEST_F(exceptions, alignment_check)
{
	struct kvm_sregs sregs;
	uint32_t vector;

	guest_load(&self->vm, misaligned);
	guest_set_mode(&self->vcpu, MODE_LONG);
	sregs = vcpu_sregs(&self->vcpu);
	sregs.cr0 |= CR0_AM;
	vcpu_set_sregs(&self->vcpu, &sregs);
	vector = vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION);
	if (vector == 6 && host_is_qemu_tcg())
		SKIP(return, "QEMU's TCG checks no alignment");
	EXPECT_EQ(17, vector);
	EXPECT_EQ(0, self->report->error);
	EXPECT_EQ(SELECTOR_USER_CODE, self->report->cs);
}

/* Those that 64-bit mode does not have. */
GUEST_CODE32(overflow, mov $0x7fffffff, %eax; add $1, %eax; into; 1: GUEST_DONE);
GUEST_CODE32(bound, push $20; push $10; mov $5, %eax; mov %esp, %ebx; 1: bound %eax, (%ebx); GUEST_DONE);
GUEST_CODE32(limit, mov $SELECTOR_DATA16, %eax; mov %eax, %es; 1: mov %es:0x10000, %eax; GUEST_DONE);
GUEST_CODE32(stack_limit, mov $SELECTOR_DATA16, %eax; 1: mov %eax, %ss; mov %ss:0xffff, %eax; GUEST_DONE);
GUEST_CODE32(divide32, xor %ecx, %ecx; 1: div %ecx; GUEST_DONE);
GUEST_CODE32(user_halt32, int $0x30; GUEST_DONE);

TEST_F(exceptions, protected_mode)
{
	static const struct {
		const char *name;
		const uint8_t *code, *end;
		uint8_t vector;
		uint32_t error;
	} cases32[] = {
		CASE(overflow, 4, NO_ERROR), CASE(bound, 5, NO_ERROR), CASE(limit, 13, 0), CASE(stack_limit, 12, 0),
		CASE(divide32, 0, NO_ERROR), CASE(user_halt32, 0x30, NO_ERROR),
	};

	for (enum guest_mode mode = MODE_PROTECTED; mode <= MODE_PAE; mode++) {
		for (unsigned int i = 0; i < ARRAY_SIZE(cases32); i++) {
			/* QEMU's TCG checks no segment limits. */
			if (strstr(cases32[i].name, "limit") && host_is_qemu_tcg())
				continue;
			guest_copy(&self->vm, cases32[i].code, cases32[i].end);
			guest_set_mode(&self->vcpu, mode);
			EXPECT_EQ(PORT_EXCEPTION, run_to_any_port(&self->vcpu));
			EXPECT_EQ(cases32[i].vector, self->report->vector)
				TH_LOG("%s in %s mode", cases32[i].name, guest_mode_name(mode));
			EXPECT_EQ(cases32[i].error, (uint32_t)self->report->error)
				TH_LOG("%s in %s mode", cases32[i].name, guest_mode_name(mode));
		}
	}
}

/* Real mode: vectors through the IVT, no error codes. */
GUEST_CODE16(real_vectors,
	xor %cx, %cx; mov $0x11, %bl; 1: div %cx; mov $0x22, %bl; int3; mov $0x33, %bl; int $0x70;
	mov $0x44, %bl; ud2; GUEST_DONE;
	.balign 64;
	mov %bl, %al; out %al, $PORT_SYNC; push %bp; mov %sp, %bp; cmp $0x22, %bl; je 2f; cmp $0x33, %bl; je 2f; addw $2, 2(%bp);
	2: pop %bp; iretw);

TEST_F(exceptions, real_mode)
{
	uint32_t *ivt = vm_at(&self->vm, GUEST_IVT);

	guest_load(&self->vm, real_vectors);
	for (int i = 0; i < 256; i++)
		ivt[i] = GUEST_CODE + 64;
	guest_set_mode(&self->vcpu, MODE_REAL);
	EXPECT_EQ(0x11, vcpu_run_to_port(&self->vcpu, PORT_SYNC));
	EXPECT_EQ(0x22, vcpu_run_to_port(&self->vcpu, PORT_SYNC));
	EXPECT_EQ(0x33, vcpu_run_to_port(&self->vcpu, PORT_SYNC));
	EXPECT_EQ(0x44, vcpu_run_to_port(&self->vcpu, PORT_SYNC));
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
}

/* Exceptions that the VMM queues: each vector, with and without an error code. */
TEST_F(exceptions, queued_by_vmm)
{
	static const uint8_t with_error[] = { 8, 10, 11, 12, 13, 14, 17 };

	for (unsigned int vector = 0; vector < 20; vector++) {
		struct kvm_vcpu_events events;
		bool has_error = memchr(with_error, vector, sizeof(with_error));

		/* NMIs are queued otherwise; vectors 9 and 15 are none of today's CPUs'; #MC is not delivered so. */
		if (vector == 2 || vector == 9 || vector == 15 || vector == 18)
			continue;
		guest_load(&self->vm, undefined);
		guest_set_mode(&self->vcpu, MODE_LONG);
		ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_GET_VCPU_EVENTS, &events));
		events.exception.injected = 1;
		events.exception.nr = vector;
		events.exception.has_error_code = has_error;
		events.exception.error_code = vector == 8 || vector == 17 ? 0 : 0x2340;
		ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_SET_VCPU_EVENTS, &events)) TH_LOG("vector %u", vector);
		EXPECT_EQ(vector, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
		EXPECT_EQ(has_error ? events.exception.error_code : NO_ERROR, self->report->error) TH_LOG("vector %u", vector);
		/* The return address of #BP and #OF is behind their instruction, of which there is none here. */
		if (vector != 3 && vector != 4) {
			EXPECT_EQ(GUEST_CODE, self->report->rip) TH_LOG("vector %u", vector);
		}
	}
}

XVM_TEST_MAIN
