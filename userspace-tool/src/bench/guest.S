/*
 * The guest of `xvm bench`: 64-bit code that does one kind of exit over and over and times it
 * with its own TSC.
 *
 * Position-independent. Userspace sets, before it starts a kind at its label:
 *   R12  iterations in a batch
 *   R13  where fresh pages begin
 *   R14  LAPIC
 *   R11  an address without memory
 *   R10  where the ticks of a batch go
 *   RSP  a stack
 * After each batch the guest stores its ticks and does OUT to BATCH_PORT; entered again, it does
 * the next one.
 */
	.set	BATCH_PORT, 0xe0
	.set	USER_PORT, 0xe1

	.set	APIC_TPR, 0x80
	.set	APIC_EOI, 0xb0
	.set	APIC_SVR, 0xf0
	.set	APIC_SVR_ENABLE_VECTOR_FF, 0x1ff
	.set	APIC_ICR, 0x300
	/* Destination shorthand "self", fixed, vector 0x40. */
	.set	APIC_ICR_SELF_40, 0x40040

	.set	MSR_APIC_BASE, 0x1b
	.set	HYPERCALL_UNKNOWN, 0x7fffffff

	.macro	ticks
	lfence
	rdtsc
	shl	rdx, 32
	or	rax, rdx
	.endm

	/* begin KIND ... end: what is between them is done R12 times a batch. */
	.macro	begin kind
	.globl	xvm_bench_\kind
xvm_bench_\kind:
	mov	dword ptr [r14 + APIC_SVR], APIC_SVR_ENABLE_VECTOR_FF
	mov	rdi, r13
	mov	rbp, r12
	ticks
	mov	r15, rax
2:
	.endm

	.macro	end kind
	dec	rbp
	jnz	2b
	ticks
	sub	rax, r15
	mov	[r10], rax
	out	BATCH_PORT, al
	jmp	xvm_bench_\kind
	.endm

	.section .rodata.xvm_bench, "a"
	.globl	xvm_bench_start
xvm_bench_start:

	/* What the loop itself costs. */
	begin	empty
	end	empty

	begin	cpuid
	xor	eax, eax
	cpuid
	end	cpuid

	/* An MSR that neither vendor's hardware virtualises. */
	begin	msr
	mov	ecx, MSR_APIC_BASE
	rdmsr
	end	msr

	begin	vmcall
	mov	eax, HYPERCALL_UNKNOWN
	vmcall
	end	vmcall

	begin	vmmcall
	mov	eax, HYPERCALL_UNKNOWN
	vmmcall
	end	vmmcall

	begin	pio_user
	out	USER_PORT, al
	end	pio_user

	begin	mmio_user
	mov	[r11], eax
	end	mmio_user

	begin	apic
	xor	eax, eax
	mov	[r14 + APIC_TPR], eax
	end	apic

	/* An interrupt is pending when HLT is reached: STI holds it off until then. */
	begin	hlt_wake
	mov	dword ptr [r14 + APIC_ICR], APIC_ICR_SELF_40
	sti
	hlt
	cli
	end	hlt_wake

	begin	page_fault
	mov	[rdi], al
	add	rdi, 4096
	end	page_fault

	/* The handler of vector 0x40. */
	.globl	xvm_bench_interrupt
xvm_bench_interrupt:
	mov	dword ptr [r14 + APIC_EOI], 0
	iretq

	.globl	xvm_bench_end
xvm_bench_end:
	.text
