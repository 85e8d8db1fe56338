// SPDX-License-Identifier: GPL-2.0
/* KVM_TRANSLATE: the guest's own page tables, as the vCPU's state says they are. */
#include "test.h"

FIXTURE(translate)
{
	struct vm vm;
	struct vcpu vcpu;
};

GUEST_CODE64(nothing, hlt);

FIXTURE_SETUP(translate)
{
	guest_start(&self->vm, &self->vcpu, nothing);
}

FIXTURE_TEARDOWN(translate)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

static struct kvm_translation translate(struct vcpu *vcpu, uint64_t address)
{
	struct kvm_translation translation = { .linear_address = address };

	do_ioctl(vcpu->fd, KVM_TRANSLATE, &translation);
	return translation;
}

TEST_F(translate, every_mode)
{
	for (enum guest_mode mode = MODE_REAL; mode < MODE_COUNT; mode++) {
		struct kvm_translation translation;

		guest_set_mode(&self->vcpu, mode);
		translation = translate(&self->vcpu, 0x12345);
		EXPECT_EQ(1, translation.valid) TH_LOG("%s mode", guest_mode_name(mode));
		EXPECT_EQ(0x12345, translation.physical_address) TH_LOG("%s mode", guest_mode_name(mode));
		translation = translate(&self->vcpu, 0x3456789a);
		EXPECT_EQ(1, translation.valid);
		EXPECT_EQ(0x3456789a, translation.physical_address) TH_LOG("%s mode, large page", guest_mode_name(mode));
	}
	guest_set_mode(&self->vcpu, MODE_REAL);
	EXPECT_EQ(0, translate(&self->vcpu, 1ull << 32).valid);
	EXPECT_EQ(0, translate(&self->vcpu, -1ull).valid);
}

TEST_F(translate, tables_are_followed)
{
	uint64_t *pml4 = vm_at(&self->vm, GUEST_PML4);

	*guest_pte(&self->vm, 0x30000) = 0x55000 | 1;
	EXPECT_EQ(0x55678, translate(&self->vcpu, 0x30678).physical_address);
	*guest_pte(&self->vm, 0x30000) = 0;
	EXPECT_EQ(0, translate(&self->vcpu, 0x30678).valid);
	/* The same table from a second place, up to the last canonical address. */
	pml4[511] = GUEST_PDPT | 7;
	EXPECT_EQ(0x12345, translate(&self->vcpu, 0xffffff8000012345).physical_address);
	EXPECT_EQ(0, translate(&self->vcpu, 0x100000000000).valid);
	/* Tables that lead to themselves, or to nowhere. */
	pml4[1] = GUEST_PML4 | 7;
	translate(&self->vcpu, 0x8000000000);
	pml4[2] = 0xfffffffff000 | 7;
	EXPECT_EQ(0, translate(&self->vcpu, 0x10000000000).valid);
}

TEST_F(translate, faulting_pointer)
{
	EXPECT_EQ(-EFAULT, try_ioctl(self->vcpu.fd, KVM_TRANSLATE, 8));
}

XVM_TEST_MAIN
