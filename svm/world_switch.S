/* SPDX-License-Identifier: GPL-2.0 */
/*
 * SVM world switch (APM vol 2, 15.5 and 15.6). Called from asm.rs, which has the layout of the context.
 *
 * VMRUN and #VMEXIT switch CR0, CR3, CR4, EFER, GDTR, IDTR, CS, SS, DS, ES, RIP, RSP, RFLAGS, RAX. FS, GS, TR, LDTR and the system call MSRs
 * are switched by VMLOAD and VMSAVE, once a window, with interrupts, NMI and machine checks held off by GIF = 0. Of these
 * the code that handles exits needs GS base alone, which is therefore switched around each VMRUN.
 */
#include <linux/linkage.h>
#include <asm/alternative.h>
#include <asm/cpufeatures.h>
#include <asm/msr-index.h>
#include <asm/nospec-branch.h>
#include <asm/segment.h>
#include "../linux/return_buffer.h"

/* struct Context */
#define CTX_RCX		(1 * 8)
#define CTX_RDX		(2 * 8)
#define CTX_RBX		(3 * 8)
#define CTX_RBP		(5 * 8)
#define CTX_RSI		(6 * 8)
#define CTX_RDI		(7 * 8)
#define CTX_R8		(8 * 8)
#define CTX_R9		(9 * 8)
#define CTX_R10		(10 * 8)
#define CTX_R11		(11 * 8)
#define CTX_R12		(12 * 8)
#define CTX_R13		(13 * 8)
#define CTX_R14		(14 * 8)
#define CTX_R15		(15 * 8)
#define CTX_VMCB	0x80
#define CTX_GS_BASE	0x88
#define CTX_GUEST_SPEC	0x90
#define CTX_HOST_SPEC	0x98

/*
 * Some CPUs clear their buffers when VERW is executed with a memory operand, which names a writable data segment.
 */
	.section .rodata
	.balign 2
verw_selector:
	.word __KERNEL_DS

	.text

/*
 * u64 xvm_svm_load(u64 host_vmcb, u64 guest_vmcb)
 *
 * Opens: holds off all interrupts (GIF = 0), puts the host's half-switched state away and loads the guest's. Returns the
 * guest's GS base; the host's stays in the CPU.
 */
SYM_FUNC_START(xvm_svm_load)
	clgi
	mov	%rdi, %rax
	vmsave	%rax
	rdgsbase %rcx
	mov	%rsi, %rax
	vmload	%rax
	rdgsbase %rax
	wrgsbase %rcx
	RET
SYM_FUNC_END(xvm_svm_load)

/*
 * void xvm_svm_unload(u64 host_vmcb, u64 guest_vmcb, u64 guest_gs_base)
 *
 * Closes: the reverse. Interrupts are off by RFLAGS.IF; an NMI that waited comes right after STGI.
 */
SYM_FUNC_START(xvm_svm_unload)
	wrgsbase %rdx
	mov	%rsi, %rax
	vmsave	%rax
	mov	%rdi, %rax
	vmload	%rax
	stgi
	RET
SYM_FUNC_END(xvm_svm_unload)

/*
 * void xvm_svm_save_guest(u64 guest_vmcb)
 *
 * Within a window, saves what the CPU has of the guest's half-switched state. GS base in the VMCB becomes the host's.
 */
SYM_FUNC_START(xvm_svm_save_guest)
	mov	%rdi, %rax
	vmsave	%rax
	RET
SYM_FUNC_END(xvm_svm_save_guest)

/*
 * u64 xvm_svm_reload_guest(u64 guest_vmcb)
 *
 * Within a window, loads the guest's half-switched state after it was changed. Returns the guest's GS base.
 */
SYM_FUNC_START(xvm_svm_reload_guest)
	rdgsbase %rcx
	mov	%rdi, %rax
	vmload	%rax
	rdgsbase %rax
	wrgsbase %rcx
	RET
SYM_FUNC_END(xvm_svm_reload_guest)

/*
 * void xvm_svm_ibpb(void)
 *
 * Indirect branch predictor barrier, before another guest runs.
 */
SYM_FUNC_START(xvm_svm_ibpb)
	mov	$MSR_IA32_PRED_CMD, %ecx
	mov	$PRED_CMD_IBPB, %eax
	xor	%edx, %edx
	wrmsr
	RET
SYM_FUNC_END(xvm_svm_ibpb)

/*
 * void xvm_svm_flush(u64 vmcb)
 *
 * VMRUN for the sake of its TLB flush alone, on a guest that exits before its first instruction: the general registers,
 * RAX apart, pass through unchanged.
 */
SYM_FUNC_START(xvm_svm_flush)
	mov	%rdi, %rax
	vmrun	%rax
	RET
SYM_FUNC_END(xvm_svm_flush)

/*
 * void xvm_svm_run(struct Context *context)
 *
 * Runs the guest until its next #VMEXIT. GIF is 0 and interrupts are off by RFLAGS.IF, before and after.
 */
SYM_FUNC_START(xvm_svm_run)
	push	%rbp
	push	%rbx
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	push	%rdi

	/*
	 * A physical interrupt ends the guest's run only when RFLAGS.IF was 1 at VMRUN (15.21.1). Nothing is delivered
	 * here, GIF being 0. Not right before VMRUN: the shadow of STI would become the guest's.
	 */
	sti

	/* SPEC_CTRL, where the VMCB does not switch it: WRMSR only when the two differ. */
	mov	CTX_GUEST_SPEC(%rdi), %rax
	cmp	CTX_HOST_SPEC(%rdi), %rax
	je	1f
	mov	CTX_GUEST_SPEC + 4(%rdi), %edx
	mov	$MSR_IA32_SPEC_CTRL, %ecx
	wrmsr
1:
	rdgsbase %rax
	push	%rax
	mov	CTX_GS_BASE(%rdi), %rcx
	wrgsbase %rcx

	mov	CTX_VMCB(%rdi), %rax
	mov	CTX_RCX(%rdi), %rcx
	mov	CTX_RDX(%rdi), %rdx
	mov	CTX_RBX(%rdi), %rbx
	mov	CTX_RBP(%rdi), %rbp
	mov	CTX_RSI(%rdi), %rsi
	mov	CTX_R8(%rdi), %r8
	mov	CTX_R9(%rdi), %r9
	mov	CTX_R10(%rdi), %r10
	mov	CTX_R11(%rdi), %r11
	mov	CTX_R12(%rdi), %r12
	mov	CTX_R13(%rdi), %r13
	mov	CTX_R14(%rdi), %r14
	mov	CTX_R15(%rdi), %r15
	mov	CTX_RDI(%rdi), %rdi
	ALTERNATIVE "", "verw verw_selector(%rip)", X86_FEATURE_CLEAR_CPU_BUF_VM

	vmrun	%rax

	/* RSP is the host's again, RAX holds nothing of the guest. */
	mov	8(%rsp), %rax
	mov	%rcx, CTX_RCX(%rax)
	mov	%rdx, CTX_RDX(%rax)
	mov	%rbx, CTX_RBX(%rax)
	mov	%rbp, CTX_RBP(%rax)
	mov	%rsi, CTX_RSI(%rax)
	mov	%rdi, CTX_RDI(%rax)
	mov	%r8, CTX_R8(%rax)
	mov	%r9, CTX_R9(%rax)
	mov	%r10, CTX_R10(%rax)
	mov	%r11, CTX_R11(%rax)
	mov	%r12, CTX_R12(%rax)
	mov	%r13, CTX_R13(%rax)
	mov	%r14, CTX_R14(%rax)
	mov	%r15, CTX_R15(%rax)
	mov	%rax, %rdi
	rdgsbase %rax
	mov	%rax, CTX_GS_BASE(%rdi)
	pop	%rax
	wrgsbase %rax
	cli

	/* Before the first RET: return predictions that the guest may have planted. */
	OVERWRITE_RETURN_BUFFER

	mov	CTX_HOST_SPEC(%rdi), %rax
	cmp	CTX_GUEST_SPEC(%rdi), %rax
	je	2f
	mov	CTX_HOST_SPEC + 4(%rdi), %edx
	mov	$MSR_IA32_SPEC_CTRL, %ecx
	wrmsr
2:
	ALTERNATIVE "jmp 3f", "", X86_FEATURE_IBPB_ON_VMEXIT
	mov	$MSR_IA32_PRED_CMD, %ecx
	mov	$PRED_CMD_IBPB, %eax
	xor	%edx, %edx
	wrmsr
3:
	CALL_UNTRAIN_RET

	/* No value of the guest's stays in a register that the host could use in speculation. */
	xor	%ecx, %ecx
	xor	%edx, %edx
	xor	%esi, %esi
	xor	%r8d, %r8d
	xor	%r9d, %r9d
	xor	%r10d, %r10d
	xor	%r11d, %r11d
	xor	%ebx, %ebx
	xor	%ebp, %ebp
	xor	%r12d, %r12d
	xor	%r13d, %r13d
	xor	%r14d, %r14d
	xor	%r15d, %r15d

	pop	%rdi
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%rbx
	pop	%rbp
	RET
SYM_FUNC_END(xvm_svm_run)
