// SPDX-License-Identifier: GPL-2.0
/* Control registers, EFER and XCR0 as the guest writes them: what faults (#GP), and what changes (Intel SDM volume 3, 2.5). */
#include "test.h"

#define CR0_PE (1ull << 0)
#define CR0_EM (1ull << 2)
#define CR0_TS (1ull << 3)
#define CR0_WP (1ull << 16)
#define CR0_NW (1ull << 29)
#define CR0_CD (1ull << 30)
#define CR0_PG (1ull << 31)
#define CR4_PAE (1ull << 5)
#define CR4_MCE (1ull << 6)
#define CR4_PGE (1ull << 7)
#define CR4_OSXSAVE (1ull << 18)
#define EFER_LME (1ull << 8)
#define EFER_LMA (1ull << 10)
#define EFER_NXE (1ull << 11)
#define EFER_SVME (1ull << 12)

FIXTURE(control)
{
	struct vm vm;
	struct vcpu vcpu;
	volatile struct report *report;
};

/* Writes RSI to a register; ends at PORT_SYNC, or in the report. RBX: what it reads afterwards. */
#define WRITE_CR(name, cr) GUEST_CODE64(name, 1: mov %rsi, %cr; mov %cr, %rbx; out %al, $PORT_SYNC; jmp 1b)
WRITE_CR(write_cr0, cr0);
WRITE_CR(write_cr3, cr3);
WRITE_CR(write_cr4, cr4);
GUEST_CODE64(write_efer,
	1: mov %esi, %eax; mov %rsi, %rdx; shr $32, %rdx; mov $0xc0000080, %ecx; wrmsr; rdmsr; shl $32, %rdx; or %rdx, %rax;
	mov %rax, %rbx; out %al, $PORT_SYNC; jmp 1b);
GUEST_CODE64(write_xcr0,
	mov %cr4, %rax; bts $18, %rax; mov %rax, %cr4;
	mov %esi, %eax; mov %rsi, %rdx; shr $32, %rdx; mov %edi, %ecx; xsetbv; xor %ecx, %ecx; xgetbv; shl $32, %rdx; or %rdx, %rax;
	mov %rax, %rbx; out %al, $PORT_SYNC; hlt);

FIXTURE_SETUP(control)
{
	guest_start(&self->vm, &self->vcpu, write_cr0);
	self->report = guest_report(&self->vm);
}

FIXTURE_TEARDOWN(control)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

/* Runs the loaded fragment in long mode with RSI; true if it came to its end, else it was #GP(0). */
static bool guest_accepts(FIXTURE_DATA(control) *self, uint64_t value, uint64_t index)
{
	struct kvm_regs regs;

	guest_set_mode(&self->vcpu, MODE_LONG);
	regs = vcpu_regs(&self->vcpu);
	regs.rsi = value;
	regs.rdi = index;
	vcpu_set_regs(&self->vcpu, &regs);
	vcpu_run_to(&self->vcpu, KVM_EXIT_IO);
	if (self->vcpu.run->io.port == PORT_SYNC)
		return true;
	if (self->vcpu.run->io.port != PORT_EXCEPTION || self->report->vector != 13 || self->report->error)
		fatal("value %#lx: exception %lu, error %#lx", value, self->report->vector, self->report->error);
	return false;
}

TEST_F(control, cr0)
{
	uint64_t cr0 = vcpu_sregs(&self->vcpu).cr0;
	/* QEMU's TCG takes what is above bit 31 in CR0 and CR4, and hypervisors need not look before the CPU does. */
	bool tcg = host_is_qemu_tcg();

	EXPECT_TRUE(guest_accepts(self, cr0, 0));
	EXPECT_EQ(cr0, vcpu_regs(&self->vcpu).rbx);
	EXPECT_TRUE(guest_accepts(self, cr0 | CR0_WP | CR0_TS, 0));
	EXPECT_EQ(cr0 | CR0_WP | CR0_TS, vcpu_regs(&self->vcpu).rbx);
	EXPECT_EQ(cr0 | CR0_WP | CR0_TS, vcpu_sregs(&self->vcpu).cr0);
	EXPECT_TRUE(guest_accepts(self, cr0 | CR0_CD, 0));
	EXPECT_EQ(CR0_CD, vcpu_regs(&self->vcpu).rbx & CR0_CD);
	/* Bits that nobody has defined, below bit 32: the CPU ignores them. */
	EXPECT_TRUE(guest_accepts(self, cr0 | 1 << 20, 0));
	EXPECT_EQ(cr0, vcpu_regs(&self->vcpu).rbx);
	/* And these are faults. */
	EXPECT_FALSE(guest_accepts(self, cr0 & ~CR0_PE, 0));
	EXPECT_FALSE(guest_accepts(self, cr0 | CR0_NW, 0));
	if (!tcg) {
		EXPECT_FALSE(guest_accepts(self, cr0 | 1ull << 32, 0));
		EXPECT_FALSE(guest_accepts(self, cr0 | 1ull << 63, 0));
	}
	EXPECT_FALSE(guest_accepts(self, cr0 & ~CR0_PE, 0));
	EXPECT_EQ(cr0, vcpu_sregs(&self->vcpu).cr0);
}

TEST_F(control, cr3)
{
	guest_load(&self->vm, write_cr3);
	EXPECT_TRUE(guest_accepts(self, GUEST_PML4, 0));
	EXPECT_EQ(GUEST_PML4, vcpu_regs(&self->vcpu).rbx);
	/* The bits for caching are kept. */
	EXPECT_TRUE(guest_accepts(self, GUEST_PML4 | 0x18, 0));
	EXPECT_EQ(GUEST_PML4 | 0x18, vcpu_regs(&self->vcpu).rbx);
	if (host_is_qemu_tcg())
		SKIP(return, "QEMU's TCG checks no reserved bits of CR3, and hypervisors leave it to the CPU");
	EXPECT_FALSE(guest_accepts(self, 1ull << 62, 0));
	EXPECT_FALSE(guest_accepts(self, GUEST_PML4 | 1ull << 59, 0));
}

TEST_F(control, cr4)
{
	uint64_t cr4 = vcpu_sregs(&self->vcpu).cr4;

	guest_load(&self->vm, write_cr4);
	EXPECT_TRUE(guest_accepts(self, cr4 | CR4_PGE, 0));
	/* QEMU's TCG does not let CR reads be intercepted one by one: guests see the host's MCE there. */
	EXPECT_EQ(cr4 | CR4_PGE, vcpu_regs(&self->vcpu).rbx & ~(host_is_qemu_tcg() ? CR4_MCE : 0));
	EXPECT_EQ(cr4 | CR4_PGE, vcpu_sregs(&self->vcpu).cr4);
	EXPECT_FALSE(guest_accepts(self, cr4 & ~CR4_PAE, 0));
	EXPECT_FALSE(guest_accepts(self, cr4 | 1ull << 19 | 1ull << 15, 0));
	EXPECT_FALSE(guest_accepts(self, cr4 | 1ull << 31, 0));
	if (!host_is_qemu_tcg()) {
		EXPECT_FALSE(guest_accepts(self, cr4 | 1ull << 33, 0));
	}
	/* VMXE: the guest has no VMX unless the VMM gave it. */
	if (!(cpuid_entry(supported_cpuid(), 1, 0)->ecx & 1 << 5)) {
		EXPECT_FALSE(guest_accepts(self, cr4 | 1ull << 13, 0));
	}
	EXPECT_EQ(cr4, vcpu_sregs(&self->vcpu).cr4);
}

TEST_F(control, efer)
{
	uint64_t efer = vcpu_sregs(&self->vcpu).efer;
	struct kvm_cpuid_entry2 *ext = cpuid_entry(supported_cpuid(), 0x80000001, 0);

	guest_load(&self->vm, write_efer);
	EXPECT_TRUE(guest_accepts(self, efer, 0));
	EXPECT_EQ(efer, vcpu_regs(&self->vcpu).rbx);
	EXPECT_TRUE(guest_accepts(self, efer & ~EFER_NXE, 0));
	EXPECT_EQ(efer & ~EFER_NXE, vcpu_regs(&self->vcpu).rbx);
	/* LMA is the CPU's: a write of it is ignored. */
	EXPECT_TRUE(guest_accepts(self, efer & ~EFER_LMA, 0));
	EXPECT_EQ(efer, vcpu_regs(&self->vcpu).rbx);
	EXPECT_FALSE(guest_accepts(self, efer & ~EFER_LME, 0));
	EXPECT_FALSE(guest_accepts(self, efer | 1 << 1, 0));
	EXPECT_FALSE(guest_accepts(self, efer | 1ull << 63, 0));
	/* SVME: the guest has no SVM unless the VMM gave it. */
	if (!ext || !(ext->ecx & 1 << 2)) {
		EXPECT_FALSE(guest_accepts(self, efer | EFER_SVME, 0));
	}
	EXPECT_EQ(efer, vcpu_sregs(&self->vcpu).efer);
}

/* XCR0: x87 always, AVX not without SSE, no bit that the VMM did not give, no other XCR. */
TEST_F(control, xcr0)
{
	struct kvm_cpuid_entry2 *xsave = cpuid_entry(supported_cpuid(), 0xd, 0);
	struct kvm_xcrs xcrs;
	uint64_t most;

	if (!xsave || !(cpuid_entry(supported_cpuid(), 1, 0)->ecx & 1 << 26))
		SKIP(return, "no XSAVE here");
	most = xsave->eax | (uint64_t)xsave->edx << 32;
	guest_load(&self->vm, write_xcr0);
	EXPECT_TRUE(guest_accepts(self, 1, 0));
	EXPECT_EQ(1, vcpu_regs(&self->vcpu).rbx);
	EXPECT_TRUE(guest_accepts(self, 3, 0));
	EXPECT_EQ(3, vcpu_regs(&self->vcpu).rbx);
	EXPECT_TRUE(guest_accepts(self, most, 0)) TH_LOG("XCR0 %#lx", most);
	EXPECT_EQ(most, vcpu_regs(&self->vcpu).rbx);
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_GET_XCRS, &xcrs));
	EXPECT_EQ(1, xcrs.nr_xcrs);
	EXPECT_EQ(most, xcrs.xcrs[0].value);
	EXPECT_FALSE(guest_accepts(self, 0, 0));
	EXPECT_FALSE(guest_accepts(self, 2, 0));
	EXPECT_FALSE(guest_accepts(self, 5, 0));
	EXPECT_FALSE(guest_accepts(self, most | 1ull << 62, 0));
	EXPECT_FALSE(guest_accepts(self, ~0ull, 0));
	EXPECT_FALSE(guest_accepts(self, 1, 1));
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_GET_XCRS, &xcrs));
	EXPECT_EQ(most, xcrs.xcrs[0].value);
}

TEST_F(control, xcrs_by_vmm)
{
	struct kvm_xcrs xcrs;

	if (!(cpuid_entry(supported_cpuid(), 1, 0)->ecx & 1 << 26))
		SKIP(return, "no XSAVE here");
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_GET_XCRS, &xcrs));
	EXPECT_EQ(1, xcrs.xcrs[0].value);
	xcrs.xcrs[0].value = 3;
	EXPECT_EQ(0, try_ioctl(self->vcpu.fd, KVM_SET_XCRS, &xcrs));
	xcrs.xcrs[0].value = 0;
	EXPECT_EQ(-EINVAL, try_ioctl(self->vcpu.fd, KVM_SET_XCRS, &xcrs));
	xcrs.xcrs[0].value = ~0ull;
	EXPECT_EQ(-EINVAL, try_ioctl(self->vcpu.fd, KVM_SET_XCRS, &xcrs));
	xcrs.xcrs[0].value = 1;
	xcrs.nr_xcrs = 17;
	EXPECT_EQ(-EINVAL, try_ioctl(self->vcpu.fd, KVM_SET_XCRS, &xcrs));
	xcrs.nr_xcrs = 0xffffffff;
	EXPECT_EQ(-EINVAL, try_ioctl(self->vcpu.fd, KVM_SET_XCRS, &xcrs));
	xcrs.nr_xcrs = 1;
	xcrs.flags = 1;
	EXPECT_EQ(-EINVAL, try_ioctl(self->vcpu.fd, KVM_SET_XCRS, &xcrs));
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_GET_XCRS, &xcrs));
	EXPECT_EQ(3, xcrs.xcrs[0].value);
}

/* XSETBV without OSXSAVE, and at privilege level 3. */
GUEST_CODE64(xsetbv_early, mov $1, %eax; xor %edx, %edx; xor %ecx, %ecx; xsetbv; GUEST_DONE);

TEST_F(control, xsetbv_without_osxsave)
{
	if (host_is_qemu_tcg())
		SKIP(return, "QEMU's TCG intercepts XSETBV before it looks at OSXSAVE");
	guest_load(&self->vm, xsetbv_early);
	guest_set_mode(&self->vcpu, MODE_LONG);
	EXPECT_EQ(6, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
}

/* CLTS, LMSW and SMSW are writes of CR0 too. */
GUEST_CODE64(other_cr0, mov %cr0, %rax; or $8, %eax; mov %rax, %cr0; clts; mov %cr0, %rbx; mov $0xb, %eax; lmsw %ax; mov %cr0, %rcx;
	xor %eax, %eax; lmsw %ax; smsw %rdx; GUEST_DONE);

TEST_F(control, clts_and_lmsw)
{
	struct kvm_regs regs;

	guest_load(&self->vm, other_cr0);
	guest_set_mode(&self->vcpu, MODE_LONG);
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
	regs = vcpu_regs(&self->vcpu);
	EXPECT_EQ(0, regs.rbx & CR0_TS);
	EXPECT_EQ(CR0_TS, regs.rcx & CR0_TS);
	/* LMSW can't leave protected mode. */
	EXPECT_EQ(CR0_PE, regs.rdx & (CR0_PE | CR0_TS));
}

/* With CR0.CD a hypervisor may hide bits, and must answer for every way to read the register. */
GUEST_CODE64(caches_off, mov %cr0, %rax; bts $30, %rax; mov %rax, %cr0; mov %cr0, %rbx; smsw %rcx; smsw GUEST_FREE; clts;
	mov %cr0, %rax; btr $30, %rax; mov %rax, %cr0; mov %cr0, %rdx; GUEST_DONE);

TEST_F(control, caches_off)
{
	uint64_t cr0 = vcpu_sregs(&self->vcpu).cr0;
	struct kvm_regs regs;

	guest_load(&self->vm, caches_off);
	guest_set_mode(&self->vcpu, MODE_LONG);
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
	regs = vcpu_regs(&self->vcpu);
	EXPECT_EQ(cr0 | CR0_CD, regs.rbx);
	EXPECT_EQ(cr0 | CR0_CD, regs.rcx);
	EXPECT_EQ(cr0 & 0xffff, *(uint16_t *)vm_at(&self->vm, GUEST_FREE));
	EXPECT_EQ(cr0, regs.rdx);
}

/* A TLB entry does not outlive the write of CR3 that should end it, nor INVLPG. */
GUEST_CODE64(remap,
	mov GUEST_FREE, %rbx; mov %rsi, GUEST_PT + GUEST_FREE / 0x1000 * 8; mov %cr3, %rax; mov %rax, %cr3; mov GUEST_FREE, %rcx;
	mov %rdi, GUEST_PT + GUEST_FREE / 0x1000 * 8; invlpg GUEST_FREE; mov GUEST_FREE, %rdx; GUEST_DONE);

TEST_F(control, cr3_and_invlpg_flush)
{
	struct kvm_regs regs;

	for (int i = 0; i < 3; i++)
		*(uint64_t *)vm_at(&self->vm, GUEST_FREE + i * 0x1000) = 100 + i;
	guest_load(&self->vm, remap);
	guest_set_mode(&self->vcpu, MODE_LONG);
	regs = vcpu_regs(&self->vcpu);
	regs.rsi = (GUEST_FREE + 0x1000) | 7;
	regs.rdi = (GUEST_FREE + 0x2000) | 7;
	vcpu_set_regs(&self->vcpu, &regs);
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
	regs = vcpu_regs(&self->vcpu);
	EXPECT_EQ(100, regs.rbx);
	EXPECT_EQ(101, regs.rcx);
	EXPECT_EQ(102, regs.rdx);
}

/* In PAE mode a write of CR3 reads four pointers, whose reserved bits fault. */
GUEST_CODE32(pae_cr3, mov %esi, %cr3; out %al, $PORT_SYNC; hlt);

TEST_F(control, pae_pointers)
{
	uint64_t *pdpt = vm_at(&self->vm, GUEST_FREE);
	struct kvm_regs regs;

	memcpy(pdpt, vm_at(&self->vm, GUEST_PAE_PDPT), 32);
	for (int bad = 0; bad < 2; bad++) {
		pdpt[1] = (GUEST_PD + 0x1000) | (bad ? 1ull << 62 | 1 : 1);
		guest_load(&self->vm, pae_cr3);
		guest_set_mode(&self->vcpu, MODE_PAE);
		regs = vcpu_regs(&self->vcpu);
		regs.rsi = GUEST_FREE;
		vcpu_set_regs(&self->vcpu, &regs);
		if (bad && host_is_amd())
			SKIP(return, "with nested paging SVM reads the pointers when it uses them");
		if (bad) {
			EXPECT_EQ(13, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
		} else {
			vcpu_run_to_port(&self->vcpu, PORT_SYNC);
		}
	}
}

XVM_TEST_MAIN
