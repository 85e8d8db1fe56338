/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The VMX world switch: one VM entry and the exit that ends it.
 *
 * u8 xvm_vmx_enter(struct Frame *frame, bool launched)
 *
 * Called with interrupts off, the VMCS current and its host state filled in but for HOST_RSP. Returns 0 after an exit and 1 when
 * VMLAUNCH or VMRESUME failed. `struct Frame` is that of frame.rs.
 */
#include <linux/linkage.h>
#include <asm/alternative.h>
#include <asm/asm.h>
#include <asm/cpufeatures.h>
#include <asm/msr-index.h>
#include <asm/nospec-branch.h>
#include <asm/segment.h>
#include "../linux/return_buffer.h"

/* Offsets in struct Frame. */
#define FRAME_GPR(n)		((n) * 8)
#define FRAME_HOST_RSP		128
#define FRAME_HOST_SPEC_CTRL	136
#define FRAME_GUEST_SPEC_CTRL	144

/* VMCS field HOST_RSP (SDM vol 3, B.4.4). */
#define HOST_RSP_FIELD		0x6c14

.section .rodata
.balign 2
/* What VERW is asked about: any writable data segment, the instruction's answer is of no use. */
.Lverw_selector:
	.word	__KERNEL_DS

.section .noinstr.text, "ax"

SYM_FUNC_START(xvm_vmx_enter)
	ENDBR
	/* What the ABI lets a caller keep. */
	push	%rbp
	mov	%rsp, %rbp
	push	%r15
	push	%r14
	push	%r13
	push	%r12
	push	%rbx
	push	%rdi

	/* Nearly every entry comes from the same depth of the stack: HOST_RSP is written when it doesn't. */
	cmp	%rsp, FRAME_HOST_RSP(%rdi)
	je	.Lhost_rsp_done
	mov	$HOST_RSP_FIELD, %eax
	vmwrite	%rsp, %rax
	jna	.Lfail
	mov	%rsp, FRAME_HOST_RSP(%rdi)
.Lhost_rsp_done:

	/* The guest's SPEC_CTRL, where it differs; both are 0 on a CPU without it. */
	mov	FRAME_GUEST_SPEC_CTRL(%rdi), %rax
	cmp	FRAME_HOST_SPEC_CTRL(%rdi), %rax
	je	.Lguest_spec_ctrl_done
	mov	%rax, %rdx
	shr	$32, %rdx
	mov	$MSR_IA32_SPEC_CTRL, %ecx
	wrmsr
.Lguest_spec_ctrl_done:

	/* CF = launched, which neither MOV nor VERW changes. */
	bt	$0, %esi

	mov	FRAME_GPR(0)(%rdi), %rax
	mov	FRAME_GPR(1)(%rdi), %rcx
	mov	FRAME_GPR(2)(%rdi), %rdx
	mov	FRAME_GPR(3)(%rdi), %rbx
	mov	FRAME_GPR(5)(%rdi), %rbp
	mov	FRAME_GPR(6)(%rdi), %rsi
	mov	FRAME_GPR(8)(%rdi), %r8
	mov	FRAME_GPR(9)(%rdi), %r9
	mov	FRAME_GPR(10)(%rdi), %r10
	mov	FRAME_GPR(11)(%rdi), %r11
	mov	FRAME_GPR(12)(%rdi), %r12
	mov	FRAME_GPR(13)(%rdi), %r13
	mov	FRAME_GPR(14)(%rdi), %r14
	mov	FRAME_GPR(15)(%rdi), %r15
	mov	FRAME_GPR(7)(%rdi), %rdi

	/* MDS and kin: nothing of the host may stay in the CPU's buffers. After the last load. */
	ALTERNATIVE_2 "", "verw .Lverw_selector(%rip)", X86_FEATURE_CLEAR_CPU_BUF_VM, \
			  "verw .Lverw_selector(%rip)", X86_FEATURE_CLEAR_CPU_BUF_VM_MMIO

	jnc	.Llaunch
	vmresume
	jmp	.Lfail
.Llaunch:
	vmlaunch
	jna	.Lfail

	/* HOST_RIP: an exit comes here, with RSP as above and everything else the guest's. */
SYM_INNER_LABEL(xvm_vmx_exit, SYM_L_GLOBAL)
	ENDBR
	push	%rdi
	mov	8(%rsp), %rdi
	mov	%rax, FRAME_GPR(0)(%rdi)
	mov	%rcx, FRAME_GPR(1)(%rdi)
	mov	%rdx, FRAME_GPR(2)(%rdi)
	mov	%rbx, FRAME_GPR(3)(%rdi)
	mov	%rbp, FRAME_GPR(5)(%rdi)
	mov	%rsi, FRAME_GPR(6)(%rdi)
	pop	FRAME_GPR(7)(%rdi)
	mov	%r8, FRAME_GPR(8)(%rdi)
	mov	%r9, FRAME_GPR(9)(%rdi)
	mov	%r10, FRAME_GPR(10)(%rdi)
	mov	%r11, FRAME_GPR(11)(%rdi)
	mov	%r12, FRAME_GPR(12)(%rdi)
	mov	%r13, FRAME_GPR(13)(%rdi)
	mov	%r14, FRAME_GPR(14)(%rdi)
	mov	%r15, FRAME_GPR(15)(%rdi)
	xor	%ebx, %ebx

.Lout:
	/* No value of the guest stays in a register for speculation to use. RDI, RBX are ours. */
	xor	%esi, %esi
	xor	%ebp, %ebp
	xor	%r8d, %r8d
	xor	%r9d, %r9d
	xor	%r10d, %r10d
	xor	%r11d, %r11d
	xor	%r12d, %r12d
	xor	%r13d, %r13d
	xor	%r14d, %r14d
	xor	%r15d, %r15d

	/* The guest trained the return predictor: no RET before this and the host's SPEC_CTRL. */
	OVERWRITE_RETURN_BUFFER

	mov	FRAME_HOST_SPEC_CTRL(%rdi), %rax
	cmp	FRAME_GUEST_SPEC_CTRL(%rdi), %rax
	je	.Lhost_spec_ctrl_done
	mov	%rax, %rdx
	shr	$32, %rdx
	mov	$MSR_IA32_SPEC_CTRL, %ecx
	wrmsr
.Lhost_spec_ctrl_done:
	/* Don't speculate past the branch above while SPEC_CTRL is the guest's. */
	ALTERNATIVE "", "lfence", X86_FEATURE_MSR_SPEC_CTRL

	mov	%ebx, %eax
	xor	%ecx, %ecx
	xor	%edx, %edx
	pop	%rdi
	pop	%rbx
	pop	%r12
	pop	%r13
	pop	%r14
	pop	%r15
	pop	%rbp
	RET

.Lfail:
	/* RSP is ours, whatever was loaded. */
	mov	(%rsp), %rdi
	mov	$1, %ebx
	jmp	.Lout
SYM_FUNC_END(xvm_vmx_enter)
