// SPDX-License-Identifier: GPL-2.0
/* KVM_PRE_FAULT_MEMORY, and what KVM_RUN tells of memory that can't be mapped (KVM_EXIT_MEMORY_FAULT). */
#include "test.h"

#define PAGE 4096ul
#define MIB (1024 * 1024ul)
#define SIZE (4 * MIB)

/* Reads or writes the word at RSI. */
GUEST_CODE64(load, 1: mov (%rsi), %rax; GUEST_SYNC; jmp 1b);
GUEST_CODE64(save, 1: mov %rax, (%rsi); GUEST_SYNC; jmp 1b);

FIXTURE(pre_fault)
{
	struct vm vm;
	struct vcpu vcpu;
	uint8_t *memory;
};

FIXTURE_SETUP(pre_fault)
{
	guest_start(&self->vm, &self->vcpu, load);
	self->memory = mmap(NULL, SIZE + 2 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->memory);
	self->memory += -((uintptr_t)self->memory + GUEST_HIGH) & (2 * MIB - 1);
	ASSERT_EQ(0, vm_set_region(&self->vm, 1, 0, GUEST_HIGH, SIZE, self->memory));
}

FIXTURE_TEARDOWN(pre_fault)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

static int pre_fault(struct vcpu *vcpu, uint64_t gpa, uint64_t size, uint64_t *left)
{
	struct kvm_pre_fault_memory range = { .gpa = gpa, .size = size };
	int result = try_ioctl(vcpu->fd, KVM_PRE_FAULT_MEMORY, &range);

	if (gpa + size != range.gpa + range.size)
		fatal("%#lx bytes at %#lx became %#llx at %#llx", size, gpa, range.size, range.gpa);
	*left = range.size;
	return result;
}

static size_t resident(FIXTURE_DATA(pre_fault) *self)
{
	static unsigned char pages[SIZE / PAGE];
	size_t count = 0;

	if (mincore(self->memory, SIZE, pages))
		fatal("mincore: %s", strerror(errno));
	for (size_t i = 0; i < SIZE / PAGE; i++)
		count += pages[i] & 1;
	return count;
}

TEST_F(pre_fault, whole_and_beyond)
{
	uint64_t left;

	madvise(self->memory, SIZE, MADV_NOHUGEPAGE);
	EXPECT_EQ(0, pre_fault(&self->vcpu, GUEST_HIGH + PAGE, 4 * PAGE, &left));
	EXPECT_EQ(0, left);
	EXPECT_EQ(4, resident(self));
	EXPECT_EQ(0, pre_fault(&self->vcpu, GUEST_HIGH, SIZE, &left));
	EXPECT_EQ(0, left);
	EXPECT_EQ(SIZE / PAGE, resident(self));
	/* Again, which is as good; and what goes beyond the slot is left. */
	EXPECT_EQ(0, pre_fault(&self->vcpu, GUEST_HIGH, SIZE, &left));
	EXPECT_EQ(0, pre_fault(&self->vcpu, GUEST_HIGH + SIZE - PAGE, 3 * PAGE, &left));
	EXPECT_EQ(2 * PAGE, left);
	EXPECT_EQ(-ENOENT, pre_fault(&self->vcpu, GUEST_HIGH + SIZE, PAGE, &left));
	EXPECT_EQ(PAGE, left);
	memset(self->memory, 0x11, SIZE);
	struct kvm_regs regs = vcpu_regs(&self->vcpu);
	regs.rsi = GUEST_HIGH + SIZE - 8;
	vcpu_set_regs(&self->vcpu, &regs);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	EXPECT_EQ(0x1111111111111111, vcpu_regs(&self->vcpu).rax);
}

TEST_F(pre_fault, large_pages)
{
	uint64_t left;

	madvise(self->memory, SIZE, MADV_HUGEPAGE);
	EXPECT_EQ(0, pre_fault(&self->vcpu, GUEST_HIGH + PAGE, 2 * MIB, &left));
	EXPECT_EQ(0, left);
	EXPECT_EQ(0, pre_fault(&self->vcpu, GUEST_HIGH, SIZE, &left));
	EXPECT_EQ(0, left);
}

TEST_F(pre_fault, bad_arguments)
{
	struct kvm_pre_fault_memory flagged = { .gpa = GUEST_HIGH, .size = PAGE, .flags = 1 };
	uint64_t left;

	EXPECT_EQ(-EFAULT, try_ioctl(self->vcpu.fd, KVM_PRE_FAULT_MEMORY, NULL));
	EXPECT_EQ(-EINVAL, try_ioctl(self->vcpu.fd, KVM_PRE_FAULT_MEMORY, &flagged));
	EXPECT_EQ(-EINVAL, pre_fault(&self->vcpu, GUEST_HIGH, 0, &left));
	EXPECT_EQ(-EINVAL, pre_fault(&self->vcpu, GUEST_HIGH + 1, PAGE, &left));
	EXPECT_EQ(-EINVAL, pre_fault(&self->vcpu, GUEST_HIGH, PAGE - 1, &left));
	EXPECT_EQ(-EINVAL, pre_fault(&self->vcpu, -PAGE, PAGE, &left));
	EXPECT_EQ(-EINVAL, pre_fault(&self->vcpu, -PAGE, 2 * PAGE, &left));
	EXPECT_EQ(-ENOENT, pre_fault(&self->vcpu, -2 * PAGE, PAGE, &left));
	EXPECT_EQ(-ENOENT, pre_fault(&self->vcpu, 1ul << 48, PAGE, &left));
	/* Memory that the VMM has unmapped. */
	munmap(self->memory + PAGE, PAGE);
	EXPECT_EQ(-EFAULT, pre_fault(&self->vcpu, GUEST_HIGH + PAGE, PAGE, &left));
	EXPECT_EQ(0, pre_fault(&self->vcpu, GUEST_HIGH, 2 * PAGE, &left));
	EXPECT_EQ(PAGE, left);
}

/* A slot that goes away meanwhile does no harm. */
static volatile bool working;

static void *churn(void *argument)
{
	FIXTURE_DATA(pre_fault) *self = argument;

	while (working) {
		if (vm_set_region(&self->vm, 1, 0, 0, 0, NULL) || vm_set_region(&self->vm, 1, 0, GUEST_HIGH, SIZE, self->memory))
			fatal("slot 1");
		madvise(self->memory, SIZE, MADV_DONTNEED);
	}
	return NULL;
}

TEST_F(pre_fault, while_slots_change)
{
	unsigned long whole = 0, part = 0, none = 0;
	pthread_t thread;
	uint64_t left;

	working = true;
	ASSERT_EQ(0, pthread_create(&thread, NULL, churn, self));
	for (uint64_t end = now_ns() + scaled(1000) * 1000000; now_ns() < end; ) {
		int result = pre_fault(&self->vcpu, GUEST_HIGH, SIZE, &left);

		ASSERT_TRUE(result == 0 || result == -ENOENT);
		*(result ? &none : left ? &part : &whole) += 1;
	}
	working = false;
	pthread_join(thread, NULL);
	TH_LOG("%lu whole, %lu in part, %lu not", whole, part, none);
	EXPECT_EQ(0, pre_fault(&self->vcpu, GUEST_HIGH, SIZE, &left));
	EXPECT_EQ(0, left);
}

TEST_F(pre_fault, memory_fault)
{
	struct kvm_regs regs = vcpu_regs(&self->vcpu);

	regs.rsi = GUEST_HIGH + PAGE + 0x123;
	vcpu_set_regs(&self->vcpu, &regs);
	munmap(self->memory + PAGE, PAGE);
	for (int i = 0; i < 2; i++) {
		memset(&self->vcpu.run->memory_fault, 0xff, sizeof(self->vcpu.run->memory_fault));
		ASSERT_EQ(-EFAULT, vcpu_run(&self->vcpu));
		EXPECT_EQ(KVM_EXIT_MEMORY_FAULT, self->vcpu.run->exit_reason);
		EXPECT_EQ(GUEST_HIGH + PAGE, self->vcpu.run->memory_fault.gpa);
		EXPECT_EQ(PAGE, self->vcpu.run->memory_fault.size);
		EXPECT_EQ(0, self->vcpu.run->memory_fault.flags);
	}
	/* It isn't there for writing: a fault for the guest's write alone. */
	ASSERT_NE(MAP_FAILED, mmap(self->memory + PAGE, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	guest_load(&self->vm, save);
	vcpu_set_regs(&self->vcpu, &regs);
	ASSERT_EQ(-EFAULT, vcpu_run(&self->vcpu));
	EXPECT_EQ(KVM_EXIT_MEMORY_FAULT, self->vcpu.run->exit_reason);
	ASSERT_EQ(0, mprotect(self->memory + PAGE, PAGE, PROT_READ | PROT_WRITE));
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
}

TEST_F(pre_fault, shadow_pages)
{
	EXPECT_EQ(1, device_extension(KVM_CAP_MMU_SHADOW_CACHE_CONTROL));
	EXPECT_EQ(-EINVAL, try_ioctl(self->vm.fd, KVM_SET_NR_MMU_PAGES, 0));
	EXPECT_EQ(-EINVAL, try_ioctl(self->vm.fd, KVM_SET_NR_MMU_PAGES, 63));
	EXPECT_EQ(0, try_ioctl(self->vm.fd, KVM_SET_NR_MMU_PAGES, 64));
	EXPECT_EQ(0, try_ioctl(self->vm.fd, KVM_SET_NR_MMU_PAGES, -1ul));
	struct kvm_regs regs = vcpu_regs(&self->vcpu);
	regs.rsi = GUEST_HIGH;
	vcpu_set_regs(&self->vcpu, &regs);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
}

XVM_TEST_MAIN
