// SPDX-License-Identifier: GPL-2.0
/* The second address space: what is there is seen in system management mode alone, and logged with its own slots. */
#include "smm.h"

#define ADDRESS GUEST_FREE
#define PAGES (GUEST_MEMORY / 4096)

/* Tells what is at ADDRESS, and writes there. */
GUEST_CODE64(reads, mov ADDRESS, %rax; GUEST_SYNC; movl $0x77, ADDRESS; mov ADDRESS, %rax; GUEST_SYNC; GUEST_DONE);
GUEST_CODE16(smm_reads, addr32 mov ADDRESS, %eax; GUEST_SYNC; addr32 movl $0x55, ADDRESS; rsm);

FIXTURE(smm_memory)
{
	struct vm vm;
	struct vcpu vcpu;
	uint8_t *smram;
};

FIXTURE_SETUP(smm_memory)
{
	guest_start(&self->vm, &self->vcpu, reads);
	self->smram = smram_create(&self->vm);
	smram_load(self->smram, SMBASE, smm_reads);
}

FIXTURE_TEARDOWN(smm_memory)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

static volatile uint32_t *word(void *memory)
{
	return memory + ADDRESS;
}

TEST_F(smm_memory, apart)
{
	*word(self->vm.memory) = 0x11;
	*word(self->smram) = 0x22;
	EXPECT_EQ(0x11, vcpu_run_to_port(&self->vcpu, PORT_SYNC));
	vcpu_smi(&self->vcpu);
	EXPECT_EQ(0x22, vcpu_run_to_port(&self->vcpu, PORT_SYNC));
	EXPECT_TRUE(in_smm(&self->vcpu));
	EXPECT_EQ(0x77, vcpu_run_to_port(&self->vcpu, PORT_SYNC));
	EXPECT_EQ(0x77, *word(self->vm.memory));
	EXPECT_EQ(0x55, *word(self->smram));
}

/* What is mapped is looked up anew after each change, in the address space that it is about. */
TEST_F(smm_memory, slots)
{
	uint8_t *other = mmap(NULL, GUEST_MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = self->vm.fd;

	ASSERT_NE(MAP_FAILED, other);
	EXPECT_EQ(-EINVAL, vm_set_region(&self->vm, 2 << 16, 0, 0, GUEST_MEMORY, other));
	EXPECT_EQ(-EINVAL, vm_set_region(&self->vm, 0xffff << 16, 0, 0, GUEST_MEMORY, other));
	EXPECT_EQ(-EINVAL, vm_set_region(&self->vm, SMM_SLOT | 0x8000, 0, 0, GUEST_MEMORY, other));
	EXPECT_EQ(-EEXIST, vm_set_region(&self->vm, SMM_SLOT | 1, 0, 0x1000, 0x1000, other));
	EXPECT_EQ(-EINVAL, vm_set_region(&self->vm, SMM_SLOT | 1, 0, 0, 0, NULL));
	EXPECT_EQ(-EINVAL, try_ioctl(fd, KVM_SET_USER_MEMORY_REGION2, (&(struct kvm_userspace_memory_region2) {
		.slot = 2 << 16, .guest_phys_addr = 1 << 20, .memory_size = 4096, .userspace_addr = (uint64_t)other })));
	EXPECT_FALSE(sync_in_smm(&self->vcpu));
	vcpu_smi(&self->vcpu);
	EXPECT_TRUE(sync_in_smm(&self->vcpu));
	/* In the mode, with the page mapped in it: another takes its place. */
	memcpy(other, self->smram, GUEST_MEMORY);
	ASSERT_EQ(0, vm_set_region(&self->vm, SMM_SLOT, 0, 0, 0, NULL));
	ASSERT_EQ(0, vm_set_region(&self->vm, SMM_SLOT, 0, 0, GUEST_MEMORY, other));
	EXPECT_EQ(0x77, vcpu_run_to_port(&self->vcpu, PORT_SYNC));
	EXPECT_EQ(0x55, *word(other));
	EXPECT_EQ(0, *word(self->smram));
	/* The VMM's memory may go at any time. */
	vcpu_smi(&self->vcpu);
	EXPECT_EQ(0x55, vcpu_run_to_port(&self->vcpu, PORT_SYNC));
	ASSERT_EQ(other, mmap(other, SMBASE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
	EXPECT_EQ(0x55, *word(other));
	EXPECT_EQ(0x77, *word(self->vm.memory));
}

static int get_log(struct vm *vm, uint32_t slot, uint64_t *log)
{
	struct kvm_dirty_log request = { .slot = slot, .dirty_bitmap = log };

	return try_ioctl(vm->fd, KVM_GET_DIRTY_LOG, &request);
}

#define logged(log, address) ((log)[(address) / 4096 / 64] >> ((address) / 4096 % 64) & 1)

TEST_F(smm_memory, dirty_log)
{
	uint64_t main[PAGES / 64 + 1], smm[PAGES / 64 + 1];

	ASSERT_EQ(0, vm_set_region(&self->vm, 0, KVM_MEM_LOG_DIRTY_PAGES, 0, GUEST_MEMORY, self->vm.memory));
	EXPECT_EQ(-ENOENT, get_log(&self->vm, SMM_SLOT, smm));
	EXPECT_EQ(-EINVAL, get_log(&self->vm, 2 << 16, smm));
	ASSERT_EQ(0, vm_set_region(&self->vm, SMM_SLOT, KVM_MEM_LOG_DIRTY_PAGES, 0, GUEST_MEMORY, self->smram));
	EXPECT_FALSE(sync_in_smm(&self->vcpu));
	vcpu_smi(&self->vcpu);
	EXPECT_TRUE(sync_in_smm(&self->vcpu));
	/* The state was saved to it, by the kernel. */
	ASSERT_EQ(0, get_log(&self->vm, SMM_SLOT, smm));
	EXPECT_EQ(1, logged(smm, SMBASE + SMM_AREA));
	EXPECT_EQ(0, logged(smm, ADDRESS));
	ASSERT_EQ(0, get_log(&self->vm, 0, main));
	EXPECT_EQ(0, logged(main, ADDRESS));
	EXPECT_EQ(0, logged(main, SMBASE + SMM_AREA));
	/* The handler writes, then the guest. */
	EXPECT_FALSE(sync_in_smm(&self->vcpu));
	ASSERT_EQ(0, get_log(&self->vm, SMM_SLOT, smm));
	EXPECT_EQ(1, logged(smm, ADDRESS));
	EXPECT_EQ(0, logged(smm, SMBASE + SMM_AREA));
	ASSERT_EQ(0, get_log(&self->vm, 0, main));
	EXPECT_EQ(1, logged(main, ADDRESS));
	ASSERT_EQ(0, get_log(&self->vm, SMM_SLOT, smm));
	EXPECT_EQ(0, logged(smm, ADDRESS));
}

#define RING_SIZE 65536

TEST(dirty_ring)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_DIRTY_LOG_RING, .args = { RING_SIZE } };
	struct vm vm = vm_create();
	volatile struct kvm_dirty_gfn *ring;
	unsigned int found = 0;
	struct vcpu vcpu;
	uint8_t *smram;

	do_ioctl(vm.fd, KVM_ENABLE_CAP, &cap);
	vcpu = vcpu_create(&vm, 0);
	vcpu_set_supported_cpuid(&vcpu);
	guest_load(&vm, reads);
	guest_set_mode(&vcpu, MODE_LONG);
	smram = smram_create(&vm);
	smram_load(smram, SMBASE, smm_reads);
	ring = mmap(NULL, RING_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu.fd, KVM_DIRTY_LOG_PAGE_OFFSET * 4096);
	ASSERT_NE(MAP_FAILED, ring);
	ASSERT_EQ(0, vm_set_region(&vm, SMM_SLOT, KVM_MEM_LOG_DIRTY_PAGES, 0, GUEST_MEMORY, smram));
	EXPECT_FALSE(sync_in_smm(&vcpu));
	vcpu_smi(&vcpu);
	EXPECT_TRUE(sync_in_smm(&vcpu));
	EXPECT_FALSE(sync_in_smm(&vcpu));
	for (; ring[found].flags & KVM_DIRTY_GFN_F_DIRTY; found++) {
		EXPECT_EQ(SMM_SLOT, ring[found].slot);
		EXPECT_TRUE(ring[found].offset == ADDRESS / 4096 || ring[found].offset == (SMBASE + SMM_AREA) / 4096);
		ring[found].flags = KVM_DIRTY_GFN_F_RESET;
	}
	EXPECT_EQ(2, found);
	EXPECT_EQ(2, try_ioctl(vm.fd, KVM_RESET_DIRTY_RINGS, 0));
	/* Protected again, in its own address space. */
	vcpu_smi(&vcpu);
	EXPECT_TRUE(sync_in_smm(&vcpu));
	vcpu_run_to_port(&vcpu, PORT_DONE);
	EXPECT_EQ(KVM_DIRTY_GFN_F_DIRTY, ring[found].flags);
	EXPECT_EQ(KVM_DIRTY_GFN_F_DIRTY, ring[found + 1].flags);
}

XVM_TEST_MAIN
