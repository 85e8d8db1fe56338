/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The guest's exception handlers for 64-bit and 32-bit gates. Each is copied to GUEST_HANDLERS: a table of 256 entries
 * of HANDLER_SIZE bytes, then the common part. No symbol outside is referred to, so it runs wherever it is copied.
 */
#include "layout.h"
#define HANDLER_SIZE 16

	.section .rodata

/* Pushes a stand-in where the CPU pushes no error code, then the vector. */
.macro entries common
	vector = 0
	.rept 256
	.balign HANDLER_SIZE
	.if (vector != 8) && ((vector < 10) || (vector > 14)) && (vector != 17) && (vector != 21) && (vector != 29) && (vector != 30)
	push $(REPORT_NO_ERROR - 0x100000000)
	.endif
	push $vector
	jmp \common
	vector = vector + 1
	.endr
.endm

	.code64
	.globl handlers64, handlers64_end
	.balign 16
handlers64:
	entries common64
common64:
	push %rax
	mov 8(%rsp), %rax
	mov %rax, GUEST_REPORT + REPORT_VECTOR
	mov 16(%rsp), %eax
	mov %rax, GUEST_REPORT + REPORT_ERROR
	mov 24(%rsp), %rax
	mov %rax, GUEST_REPORT + REPORT_RIP
	mov 32(%rsp), %rax
	mov %rax, GUEST_REPORT + REPORT_CS
	mov 40(%rsp), %rax
	mov %rax, GUEST_REPORT + REPORT_FLAGS
	mov 48(%rsp), %rax
	mov %rax, GUEST_REPORT + REPORT_RSP
	mov %cr2, %rax
	mov %rax, GUEST_REPORT + REPORT_CR2
	incq GUEST_REPORT + REPORT_COUNT
	mov GUEST_REPORT + REPORT_FIXUP, %rax
	test %rax, %rax
	jz 1f
	mov %rax, 24(%rsp)
	jmp 2f
1:	mov 8(%rsp), %al
	out %al, $PORT_EXCEPTION
2:	pop %rax
	add $16, %rsp
	iretq
handlers64_end:

	.code32
	.globl handlers32, handlers32_end
	.balign 16
handlers32:
	entries common32
common32:
	push %eax
	mov 4(%esp), %eax
	mov %eax, GUEST_REPORT + REPORT_VECTOR
	mov 8(%esp), %eax
	mov %eax, GUEST_REPORT + REPORT_ERROR
	mov 12(%esp), %eax
	mov %eax, GUEST_REPORT + REPORT_RIP
	mov 16(%esp), %eax
	mov %eax, GUEST_REPORT + REPORT_CS
	mov 20(%esp), %eax
	mov %eax, GUEST_REPORT + REPORT_FLAGS
	mov %cr2, %eax
	mov %eax, GUEST_REPORT + REPORT_CR2
	incl GUEST_REPORT + REPORT_COUNT
	mov GUEST_REPORT + REPORT_FIXUP, %eax
	test %eax, %eax
	jz 1f
	mov %eax, 12(%esp)
	jmp 2f
1:	mov 4(%esp), %al
	out %al, $PORT_EXCEPTION
2:	pop %eax
	add $8, %esp
	iret
handlers32_end:

	.code64
	.section .note.GNU-stack, "", @progbits
