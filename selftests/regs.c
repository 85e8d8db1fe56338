// SPDX-License-Identifier: GPL-2.0
/* GET/SET of REGS, SREGS and SREGS2: round trips, what the guest sees of them, and what is refused. */
#include "test.h"

FIXTURE(regs)
{
	struct vm vm;
	struct vcpu vcpu;
};

/* Adds a different constant to each register, so that both directions show. */
GUEST_CODE64(count_registers,
	add $1, %rax; add $2, %rbx; add $3, %rcx; add $4, %rdx; add $5, %rsi; add $6, %rdi; add $7, %rbp;
	add $8, %r8; add $9, %r9; add $10, %r10; add $11, %r11; add $12, %r12; add $13, %r13; add $14, %r14; add $15, %r15;
	GUEST_SYNC;
	GUEST_DONE
);

FIXTURE_SETUP(regs)
{
	guest_start(&self->vm, &self->vcpu, count_registers);
}

FIXTURE_TEARDOWN(regs)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

#define REGISTER(name) offsetof(struct kvm_regs, name)
static const size_t order[] = {
	REGISTER(rax), REGISTER(rbx), REGISTER(rcx), REGISTER(rdx), REGISTER(rsi), REGISTER(rdi), REGISTER(rbp), REGISTER(r8),
	REGISTER(r9), REGISTER(r10), REGISTER(r11), REGISTER(r12), REGISTER(r13), REGISTER(r14), REGISTER(r15),
};

static __u64 *register_at(struct kvm_regs *regs, unsigned int i)
{
	return (void *)((char *)regs + order[i]);
}

TEST_F(regs, general)
{
	struct kvm_regs regs = vcpu_regs(&self->vcpu), seen;

	/* Every register but RSP, RIP and the flags has a value of its own, and gets another constant added. */
	for (unsigned int i = 0; i < ARRAY_SIZE(order); i++)
		*register_at(&regs, i) = 0x1111111111111111ull * (i + 1);
	vcpu_set_regs(&self->vcpu, &regs);
	seen = vcpu_regs(&self->vcpu);
	EXPECT_EQ(0, memcmp(&regs, &seen, sizeof(regs)));
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	seen = vcpu_regs(&self->vcpu);
	for (unsigned int i = 0; i < ARRAY_SIZE(order); i++) {
		EXPECT_EQ(*register_at(&regs, i) + i + 1, *register_at(&seen, i)) TH_LOG("register %u", i);
	}
	EXPECT_EQ(GUEST_STACK, seen.rsp);
}

/* RFLAGS: bit 1 is always set, whatever the VMM writes. */
TEST_F(regs, flags)
{
	struct kvm_regs regs = vcpu_regs(&self->vcpu);

	regs.rflags = 0;
	vcpu_set_regs(&self->vcpu, &regs);
	EXPECT_EQ(2, vcpu_regs(&self->vcpu).rflags);
	regs.rflags = 0x8d7;	/* OF SF ZF AF PF CF */
	vcpu_set_regs(&self->vcpu, &regs);
	EXPECT_EQ(0x8d7, vcpu_regs(&self->vcpu).rflags);
}

/* A RIP that is not canonical must not disturb more than this guest. */
TEST_F(regs, hostile_rip)
{
	struct kvm_regs regs = vcpu_regs(&self->vcpu);
	int reason;

	regs.rip = 0x8000000000000000;
	regs.rflags = 0xffffffffffffffff;
	if (try_ioctl(self->vcpu.fd, KVM_SET_REGS, &regs))
		return;
	reason = vcpu_run(&self->vcpu);
	EXPECT_TRUE(reason == KVM_EXIT_SHUTDOWN || reason == KVM_EXIT_FAIL_ENTRY || reason == KVM_EXIT_INTERNAL_ERROR ||
		    reason == KVM_EXIT_IO)
		TH_LOG("exit %s (%d)", exit_name(reason), reason);
	/* It can be put right again. */
	guest_set_mode(&self->vcpu, MODE_LONG);
	if (reason != KVM_EXIT_SHUTDOWN)
		vcpu_run_to_port(&self->vcpu, PORT_SYNC);
}

TEST_F(regs, sregs_round_trip)
{
	struct kvm_sregs sregs = vcpu_sregs(&self->vcpu), seen;

	sregs.fs.base = 0x123456789000;
	sregs.gs.base = 0xffff800000001000;
	sregs.cr2 = 0xdeadbeef000;
	sregs.cr8 = 5;
	sregs.ldt = (struct kvm_segment){ .base = 0x5000, .limit = 0xfff, .selector = 0x60, .type = 2, .present = 1 };
	vcpu_set_sregs(&self->vcpu, &sregs);
	seen = vcpu_sregs(&self->vcpu);
	EXPECT_EQ(0, memcmp(&sregs.cs, &seen.cs, sizeof(sregs.cs)));
	EXPECT_EQ(0, memcmp(&sregs.ds, &seen.ds, sizeof(sregs.ds)));
	EXPECT_EQ(0, memcmp(&sregs.fs, &seen.fs, sizeof(sregs.fs)));
	EXPECT_EQ(0, memcmp(&sregs.gs, &seen.gs, sizeof(sregs.gs)));
	EXPECT_EQ(0, memcmp(&sregs.ldt, &seen.ldt, sizeof(sregs.ldt)));
	EXPECT_EQ(0, memcmp(&sregs.tr, &seen.tr, sizeof(sregs.tr)));
	EXPECT_EQ(sregs.cr2, seen.cr2);
	EXPECT_EQ(sregs.cr3, seen.cr3);
	EXPECT_EQ(sregs.cr8, seen.cr8);
	/* Without the in-kernel APIC KVM_RUN takes CR8 from the run pages. */
	self->vcpu.run->cr8 = 6;
	EXPECT_EQ(sregs.efer, seen.efer);
	EXPECT_EQ(sregs.gdt.base, seen.gdt.base);
	EXPECT_EQ(sregs.idt.limit, seen.idt.limit);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	seen = vcpu_sregs(&self->vcpu);
	EXPECT_EQ(sregs.fs.base, seen.fs.base);
	EXPECT_EQ(sregs.gs.base, seen.gs.base);
	EXPECT_EQ(sregs.cr2, seen.cr2);
	EXPECT_EQ(6, seen.cr8);
	EXPECT_EQ(6, self->vcpu.run->cr8);
}

TEST_F(regs, sregs2)
{
	struct kvm_sregs sregs = vcpu_sregs(&self->vcpu);
	struct kvm_sregs2 two;

	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_GET_SREGS2, &two));
	EXPECT_EQ(0, memcmp(&sregs.cs, &two.cs, sizeof(sregs.cs)));
	EXPECT_EQ(sregs.cr3, two.cr3);
	EXPECT_EQ(sregs.efer, two.efer);
	EXPECT_EQ(0, two.flags);
	two.gs.base = 0x7000;
	EXPECT_EQ(0, try_ioctl(self->vcpu.fd, KVM_SET_SREGS2, &two));
	EXPECT_EQ(0x7000, vcpu_sregs(&self->vcpu).gs.base);
	two.flags = ~1ull;
	EXPECT_EQ(-EINVAL, try_ioctl(self->vcpu.fd, KVM_SET_SREGS2, &two));
}

/* In PAE mode SREGS2 carries the page-directory pointers, which need not be what is in memory. */
TEST_F(regs, sregs2_pdptrs)
{
	struct kvm_sregs2 two;

	guest_set_mode(&self->vcpu, MODE_PAE);
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_GET_SREGS2, &two));
	if (!(two.flags & KVM_SREGS2_FLAGS_PDPTRS_VALID))
		SKIP(return, "this vendor reads the pointers from memory");
	for (int i = 0; i < 4; i++) {
		EXPECT_EQ((GUEST_PD + i * 0x1000) | 1, two.pdptrs[i]);
	}
	EXPECT_EQ(0, try_ioctl(self->vcpu.fd, KVM_SET_SREGS2, &two));
}

/* States that no CPU can be in are refused as a whole. */
TEST_F(regs, impossible_sregs)
{
	static const struct {
		const char *what;
		uint64_t cr0_set, cr0_clear, cr4_set, cr4_clear, efer_set, efer_clear;
	} cases[] = {
		{ "paging without protection", 0, 1, 0, 0, 0, 0 },
		{ "NW without CD", 1 << 29, 1 << 30, 0, 0, 0, 0 },
		{ "CR0 above 32 bits", 1ull << 32, 0, 0, 0, 0, 0 },
		{ "long mode without PAE", 0, 0, 0, 1 << 5, 0, 0 },
		{ "LMA without LME", 0, 0, 0, 0, 0, 1 << 8 },
		{ "LME and paging without LMA", 0, 0, 0, 0, 0, 1 << 10 },
		{ "a reserved bit of CR4", 0, 0, 1ull << 31, 0, 0, 0 },
		{ "CR4 above 32 bits", 0, 0, 1ull << 40, 0, 0, 0 },
		{ "a reserved bit of EFER", 0, 0, 0, 0, 1ull << 20, 0 },
	};
	struct kvm_sregs before = vcpu_sregs(&self->vcpu), after;

	for (unsigned int i = 0; i < ARRAY_SIZE(cases); i++) {
		struct kvm_sregs sregs = before;

		sregs.cr0 = (sregs.cr0 | cases[i].cr0_set) & ~cases[i].cr0_clear;
		sregs.cr4 = (sregs.cr4 | cases[i].cr4_set) & ~cases[i].cr4_clear;
		sregs.efer = (sregs.efer | cases[i].efer_set) & ~cases[i].efer_clear;
		sregs.gs.base = 0x4000;
		EXPECT_EQ(-EINVAL, try_ioctl(self->vcpu.fd, KVM_SET_SREGS, &sregs)) TH_LOG("%s", cases[i].what);
		after = vcpu_sregs(&self->vcpu);
		EXPECT_EQ(0, memcmp(&before, &after, sizeof(before))) TH_LOG("%s changed something", cases[i].what);
	}
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
}

TEST_F(regs, cr3_beyond_physical_addresses)
{
	struct kvm_sregs sregs = vcpu_sregs(&self->vcpu);

	sregs.cr3 = 1ull << 60;
	EXPECT_EQ(-EINVAL, try_ioctl(self->vcpu.fd, KVM_SET_SREGS, &sregs));
	/* Long mode with nowhere to translate from is legal, and ends in a triple fault. */
	sregs.cr3 = 0x100000000;
	EXPECT_EQ(0, try_ioctl(self->vcpu.fd, KVM_SET_SREGS, &sregs));
}

/* The pending interrupt in SREGS is delivered: bit n of the bitmap is vector n. */
TEST_F(regs, pending_interrupt)
{
	struct kvm_sregs sregs = vcpu_sregs(&self->vcpu);
	struct kvm_regs regs = vcpu_regs(&self->vcpu);

	regs.rflags |= 1 << 9;
	vcpu_set_regs(&self->vcpu, &regs);
	sregs.interrupt_bitmap[0x41 / 64] |= 1ull << (0x41 % 64);
	vcpu_set_sregs(&self->vcpu, &sregs);
	EXPECT_EQ(0x41, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	EXPECT_EQ(0, vcpu_sregs(&self->vcpu).interrupt_bitmap[1]);
}

TEST_F(regs, faulting_pointers)
{
	static const unsigned long requests[] = {
		KVM_GET_REGS, KVM_SET_REGS, KVM_GET_SREGS, KVM_SET_SREGS, KVM_GET_SREGS2, KVM_SET_SREGS2, KVM_GET_FPU, KVM_SET_FPU,
		KVM_GET_XSAVE, KVM_SET_XSAVE, KVM_GET_XCRS, KVM_SET_XCRS, KVM_GET_MSRS, KVM_SET_MSRS, KVM_SET_CPUID2, KVM_GET_CPUID2,
		KVM_GET_MP_STATE, KVM_SET_MP_STATE, KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS, KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS,
		KVM_TRANSLATE,
	};
	static const unsigned long pointers[] = { 8, 0x7ffffffff000, 0xffff888000000000, 0xffffffff81000000, -4096ul };

	for (unsigned int i = 0; i < ARRAY_SIZE(requests); i++)
		for (unsigned int j = 0; j < ARRAY_SIZE(pointers); j++) {
			EXPECT_EQ(-EFAULT, try_ioctl(self->vcpu.fd, requests[i], pointers[j]))
				TH_LOG("ioctl %#lx at %#lx", requests[i], pointers[j]);
		}
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
}

XVM_TEST_MAIN
