/* SPDX-License-Identifier: GPL-2.0 */
/*
 * OVERWRITE_RETURN_BUFFER: after a guest has run, leaves none of its return predictions in the CPU, where the kernel's choice of
 * mitigations asks for it. To be used before the first RET.
 *
 * What the kernel's FILL_RETURN_BUFFER does with a loop, without the loop, at half the instructions: as many calls as the deepest buffer has
 * places, each to the instruction behind it, with a trap for what speculates on its return. Uses 256 bytes of stack; changes RFLAGS alone.
 */
#ifndef XVM_RETURN_BUFFER_H
#define XVM_RETURN_BUFFER_H

#include <asm/alternative.h>
#include <asm/cpufeatures.h>
#include <asm/nospec-branch.h>

.macro OVERWRITE_RETURN_SLOTS count:req
	.rept \count
	ANNOTATE_INTRA_FUNCTION_CALL
	call	772f
	int3
772:
	.endr
	add	$(8 * \count), %rsp
	/* No RET before the calls have retired. */
	lfence
.endm

.macro OVERWRITE_RETURN_BUFFER
	/* Nothing, the whole buffer, or the one place that some CPUs leave to the guest. */
	ALTERNATIVE_2 "jmp .Ldone_\@", "", X86_FEATURE_RSB_VMEXIT, "jmp .Lone_\@", X86_FEATURE_RSB_VMEXIT_LITE
	OVERWRITE_RETURN_SLOTS RSB_CLEAR_LOOPS
	CREDIT_CALL_DEPTH
	jmp	.Ldone_\@
.Lone_\@:
	OVERWRITE_RETURN_SLOTS 1
.Ldone_\@:
.endm

#endif
