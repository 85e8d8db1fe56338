/* SPDX-License-Identifier: GPL-2.0 */
/*
 * For tests of system management mode: SMRAM in the second address space, where all memory is other than the guest's usual one, and
 * handlers in it.
 */
#ifndef SELFTESTS_SMM_H
#define SELFTESTS_SMM_H

#include "test.h"

#define SMBASE 0x30000
#define SMM_ENTRY 0x8000
#define SMM_AREA 0xfe00
#define SMM_SLOT (1 << 16)
#define MSR_SMI_COUNT 0x34
#define MSR_SMBASE 0x9e

/* Offsets of the state-save area from SMBASE: those of CPUs with long mode, and of others. */
#define AREA64_HALTED 0xfec9
#define AREA64_EFER 0xfed0
#define AREA64_REVISION 0xfefc
#define AREA64_SMBASE 0xff00
#define AREA64_CR4 0xff48
#define AREA64_CR3 0xff50
#define AREA64_CR0 0xff58
#define AREA64_DR7 0xff60
#define AREA64_DR6 0xff68
#define AREA64_RFLAGS 0xff70
#define AREA64_RIP 0xff78
#define AREA64_RAX 0xfff8
#define AREA64_SEGMENT(n) (0xfe00 + 16 * (n))
#define AREA64_GDTR 0xfe60
#define AREA32_REVISION 0xfefc
#define AREA32_SMBASE 0xfef8
#define AREA32_EIP 0xfff0
#define AREA32_EAX 0xffd0

/* A handler that tells, and returns. */
GUEST_CODE16(smm_report, GUEST_SYNC; rsm);

/* Makes the memory of the mode, as large as the other. */
static inline uint8_t *smram_create(struct vm *vm)
{
	return vm_add_memory(vm, SMM_SLOT, 0, GUEST_MEMORY);
}

/* Puts a fragment where the vCPU enters the mode. */
#define smram_load(smram, base, name) memcpy((smram) + (base) + SMM_ENTRY, guest_##name, guest_##name##_end - guest_##name)

static inline struct kvm_vcpu_events vcpu_events(struct vcpu *vcpu)
{
	struct kvm_vcpu_events events;

	do_ioctl(vcpu->fd, KVM_GET_VCPU_EVENTS, &events);
	return events;
}

static inline void vcpu_smi(struct vcpu *vcpu)
{
	do_ioctl(vcpu->fd, KVM_SMI, 0);
}

static inline bool in_smm(struct vcpu *vcpu)
{
	return vcpu->run->flags & KVM_RUN_X86_SMM;
}

/* Runs the vCPU to PORT_SYNC; whether that was in the mode. */
static inline bool sync_in_smm(struct vcpu *vcpu)
{
	vcpu_run_to_port(vcpu, PORT_SYNC);
	return in_smm(vcpu);
}

#endif
