// SPDX-License-Identifier: GPL-2.0
/* The guest's tables and modes. Formats: Intel SDM volume 3, sections 3.4.5 (segments), 4.3 to 4.5 (paging), 6.14. */
#include "guest.h"

extern const uint8_t handlers64[], handlers64_end[], handlers32[], handlers32_end[];

#define HANDLER_SIZE 16
#define CR0_PE (1u << 0)
#define CR0_MP (1u << 1)
#define CR0_ET (1u << 4)
#define CR0_NE (1u << 5)
#define CR0_PG (1u << 31)
#define CR4_PSE (1u << 4)
#define CR4_PAE (1u << 5)
#define CR4_OSFXSR (1u << 9)
#define CR4_OSXMMEXCPT (1u << 10)
#define EFER_SCE (1u << 0)
#define EFER_LME (1u << 8)
#define EFER_LMA (1u << 10)
#define EFER_NXE (1u << 11)

/* Present, writable, user. */
#define PTE 0x7ull
#define PTE_LARGE 0x87ull

static void prepare_paging(struct vm *vm)
{
	uint64_t *pml4 = vm_at(vm, GUEST_PML4), *pdpt = vm_at(vm, GUEST_PDPT), *pd = vm_at(vm, GUEST_PD);
	uint64_t *pt = vm_at(vm, GUEST_PT), *pae_pdpt = vm_at(vm, GUEST_PAE_PDPT);
	uint32_t *pd32 = vm_at(vm, GUEST_PD32);

	pml4[0] = GUEST_PDPT | PTE;
	for (unsigned int i = 0; i < 4; i++) {
		pdpt[i] = (GUEST_PD + i * 0x1000) | PTE;
		/* Only the present bit: the others are reserved in PAE's level-3 entries. */
		pae_pdpt[i] = (GUEST_PD + i * 0x1000) | 1;
	}
	for (uint64_t i = 0; i < 4 * 512; i++)
		pd[i] = i << 21 | PTE_LARGE;
	pd[0] = GUEST_PT | PTE;
	for (uint64_t i = 0; i < 512; i++)
		pt[i] = i << 12 | PTE;
	for (uint32_t i = 0; i < 1024; i++)
		pd32[i] = i << 22 | PTE_LARGE;
}

uint64_t *guest_pte(struct vm *vm, uint64_t address)
{
	if (address >= 2 << 20)
		fatal("%#lx is not in the guest's page table", address);
	return (uint64_t *)vm_at(vm, GUEST_PT) + (address >> 12);
}

static void prepare_gdt(struct vm *vm)
{
	uint64_t *gdt = vm_at(vm, GUEST_GDT);

	gdt[SELECTOR_CODE64 / 8] = 0x00af9b000000ffff;
	gdt[SELECTOR_DATA / 8] = 0x00cf93000000ffff;
	gdt[SELECTOR_CODE32 / 8] = 0x00cf9b000000ffff;
	gdt[SELECTOR_CODE16 / 8] = 0x00009b000000ffff;
	gdt[SELECTOR_DATA16 / 8] = 0x000093000000ffff;
	gdt[SELECTOR_USER_DATA / 8] = 0x00cff3000000ffff;
	gdt[SELECTOR_USER_CODE / 8] = 0x00affb000000ffff;
	gdt[SELECTOR_TSS / 8] = 0x00008b0000000067 | (uint64_t)GUEST_TSS << 16;
	gdt[SELECTOR_NOT_PRESENT / 8] = 0x00cf13000000ffff;
}

static void prepare_idt64(struct vm *vm)
{
	uint64_t *idt = vm_at(vm, GUEST_IDT);
	uint8_t *tss = vm_at(vm, GUEST_TSS);
	uint64_t stack = GUEST_IST_STACK;

	memcpy(tss + 4, &stack, 8);	/* RSP0 */
	memcpy(tss + 36, &stack, 8);	/* IST1 */
	tss[102] = 0x68;		/* I/O map base: there is none */
	memcpy(vm_at(vm, GUEST_HANDLERS), handlers64, handlers64_end - handlers64);
	for (unsigned int vector = 0; vector < 256; vector++) {
		uint64_t handler = GUEST_HANDLERS + vector * HANDLER_SIZE;

		/* An interrupt gate that privilege level 3 may use as well (INT3, INTO). */
		idt[vector * 2] = (handler & 0xffff) | SELECTOR_CODE64 << 16 | 0xee00ull << 32 | (handler >> 16) << 48;
		idt[vector * 2 + 1] = 0;
	}
}

static void prepare_idt32(struct vm *vm)
{
	uint64_t *idt = vm_at(vm, GUEST_IDT);

	memcpy(vm_at(vm, GUEST_HANDLERS), handlers32, handlers32_end - handlers32);
	for (unsigned int vector = 0; vector < 256; vector++) {
		uint64_t handler = GUEST_HANDLERS + vector * HANDLER_SIZE;

		idt[vector] = (handler & 0xffff) | SELECTOR_CODE32 << 16 | 0xee00ull << 32 | (handler >> 16) << 48;
	}
}

void guest_prepare(struct vm *vm)
{
	prepare_gdt(vm);
	prepare_paging(vm);
	prepare_idt64(vm);
}

void guest_copy(struct vm *vm, const uint8_t *start, const uint8_t *end)
{
	if (end - start > GUEST_DATA - GUEST_CODE)
		fatal("a fragment of %ld bytes is too long", end - start);
	memcpy(vm_at(vm, GUEST_CODE), start, end - start);
}

const char *guest_mode_name(enum guest_mode mode)
{
	static const char *const names[] = { "real", "protected", "paged", "PAE", "long" };

	return names[mode];
}

static struct kvm_segment flat(uint16_t selector, uint8_t type)
{
	return (struct kvm_segment){
		.limit = 0xffffffff, .selector = selector, .type = type, .present = 1, .s = 1, .g = 1,
	};
}

static void set_real(struct kvm_sregs *sregs)
{
	struct kvm_segment code = { .limit = 0xffff, .type = 11, .present = 1, .s = 1 };
	struct kvm_segment data = code;

	data.type = 3;
	sregs->cs = code;
	sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = data;
	sregs->idt = (struct kvm_dtable){ .base = GUEST_IVT, .limit = 0x3ff };
	sregs->cr0 = CR0_ET;
	sregs->cr4 = 0;
	sregs->efer = 0;
}

static void set_protected(struct kvm_sregs *sregs, enum guest_mode mode)
{
	bool lm = mode == MODE_LONG;
	struct kvm_segment code = flat(lm ? SELECTOR_CODE64 : SELECTOR_CODE32, 11), data = flat(SELECTOR_DATA, 3);

	code.l = lm;
	code.db = !lm;
	data.db = 1;
	sregs->cs = code;
	sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = data;
	sregs->gdt = (struct kvm_dtable){ .base = GUEST_GDT, .limit = 0x7f };
	sregs->idt = (struct kvm_dtable){ .base = GUEST_IDT, .limit = lm ? 0xfff : 0x7ff };
	sregs->tr = (struct kvm_segment){
		.base = GUEST_TSS, .limit = 0x67, .selector = SELECTOR_TSS, .type = 11, .present = 1,
	};
	sregs->ldt = (struct kvm_segment){ .unusable = 1, .type = 2 };
	sregs->cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE;
	sregs->cr4 = CR4_OSFXSR | CR4_OSXMMEXCPT;
	sregs->efer = 0;
	if (mode == MODE_PAGED) {
		sregs->cr3 = GUEST_PD32;
		sregs->cr4 |= CR4_PSE;
	} else if (mode == MODE_PAE) {
		sregs->cr3 = GUEST_PAE_PDPT;
		sregs->cr4 |= CR4_PAE;
	} else if (lm) {
		sregs->cr3 = GUEST_PML4;
		sregs->cr4 |= CR4_PAE;
		sregs->efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
	}
	if (mode != MODE_PROTECTED)
		sregs->cr0 |= CR0_PG;
}

static void make_mode(struct vcpu *vcpu, enum guest_mode mode, struct kvm_regs *regs, struct kvm_sregs *sregs)
{
	*regs = (struct kvm_regs){ .rip = GUEST_CODE, .rsp = GUEST_STACK, .rflags = 2 };
	if (mode == MODE_REAL) {
		set_real(sregs);
		return;
	}
	set_protected(sregs, mode);
	if (mode == MODE_LONG)
		prepare_idt64(vcpu->vm);
	else
		prepare_idt32(vcpu->vm);
}

void guest_set_mode(struct vcpu *vcpu, enum guest_mode mode)
{
	struct kvm_sregs sregs = vcpu_sregs(vcpu);
	struct kvm_regs regs;

	make_mode(vcpu, mode, &regs, &sregs);
	vcpu_set_sregs(vcpu, &sregs);
	vcpu_set_regs(vcpu, &regs);
}

void guest_set_mode_if_possible(struct vcpu *vcpu, enum guest_mode mode)
{
	struct kvm_sregs sregs;
	struct kvm_regs regs;

	if (try_ioctl(vcpu->fd, KVM_GET_SREGS, &sregs))
		return;
	make_mode(vcpu, mode, &regs, &sregs);
	try_ioctl(vcpu->fd, KVM_SET_SREGS, &sregs);
	try_ioctl(vcpu->fd, KVM_SET_REGS, &regs);
}

void guest_start_numbered(struct vcpu *vcpu, int number)
{
	struct kvm_mp_state runnable = { .mp_state = KVM_MP_STATE_RUNNABLE };
	struct kvm_regs regs;

	guest_set_mode(vcpu, MODE_LONG);
	do_ioctl(vcpu->fd, KVM_SET_MP_STATE, &runnable);
	regs = vcpu_regs(vcpu);
	regs.rsp -= number * 0x200;
	regs.rdi = number;
	vcpu_set_regs(vcpu, &regs);
}

void *run_to_done(void *vcpu)
{
	return (void *)(uintptr_t)vcpu_run_to_port(vcpu, PORT_DONE);
}
