// SPDX-License-Identifier: GPL-2.0
/* KVM_SET_USER_MEMORY_REGION and ...REGION2: what is accepted, what is refused and how, and what the guest sees. */
#include "test.h"

#define KIB 1024ul
#define MIB (1024 * KIB)
#define GIB (1024 * MIB)
/* What the guest maps of addresses above 4 GiB: the last 2 MiB of its page tables lead there. */
#define HIGH_GPA (4 * GIB)
#define HIGH_VIRTUAL (4 * GIB - 2 * MIB)

FIXTURE(regions)
{
	struct vm vm;
	struct vcpu vcpu;
	uint8_t *memory;
};

/* Reads the word at RSI into RAX and writes RCX behind it, again and again. */
GUEST_CODE64(peek, 1: mov (%rsi), %rax; mov %rcx, 8(%rsi); out %al, $PORT_SYNC; jmp 1b);

FIXTURE_SETUP(regions)
{
	uint64_t *pd;

	guest_start(&self->vm, &self->vcpu, peek);
	pd = vm_at(&self->vm, GUEST_PD);
	pd[4 * 512 - 1] = HIGH_GPA | 0x87;
	self->memory = mmap(NULL, 4 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->memory);
}

FIXTURE_TEARDOWN(regions)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
	munmap(self->memory, 4 * MIB);
}

#define set_region(slot, flags, gpa, size, memory) vm_set_region(&self->vm, slot, flags, gpa, size, memory)

/* What the guest reads at an address; dies on MMIO. */
static uint64_t guest_read(FIXTURE_DATA(regions) *self, uint64_t address)
{
	struct kvm_regs regs = vcpu_regs(&self->vcpu);

	regs.rsi = address;
	regs.rcx = address ^ 0x5555;
	vcpu_set_regs(&self->vcpu, &regs);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	return vcpu_regs(&self->vcpu).rax;
}

/* Whether an access of the guest's finds no memory. */
static bool guest_finds_hole(FIXTURE_DATA(regions) *self, uint64_t address)
{
	struct kvm_regs regs = vcpu_regs(&self->vcpu);

	regs.rsi = address;
	vcpu_set_regs(&self->vcpu, &regs);
	if (vcpu_run(&self->vcpu) != KVM_EXIT_MMIO || self->vcpu.run->mmio.phys_addr != address)
		return false;
	memset(self->vcpu.run->mmio.data, 0, 8);
	if (vcpu_run(&self->vcpu) != KVM_EXIT_MMIO || !self->vcpu.run->mmio.is_write)
		return false;
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	return true;
}

TEST_F(regions, add_and_delete)
{
	uint64_t *words = (uint64_t *)self->memory;

	words[0] = 0x1234567890;
	EXPECT_TRUE(guest_finds_hole(self, GUEST_HIGH));
	ASSERT_EQ(0, set_region(1, 0, GUEST_HIGH, MIB, self->memory));
	EXPECT_EQ(0x1234567890, guest_read(self, GUEST_HIGH));
	EXPECT_EQ(GUEST_HIGH ^ 0x5555, words[1]);
	ASSERT_EQ(0, set_region(1, 0, GUEST_HIGH, 0, NULL));
	EXPECT_TRUE(guest_finds_hole(self, GUEST_HIGH));
	/* What was there is not there twice. */
	EXPECT_EQ(-EINVAL, set_region(1, 0, GUEST_HIGH, 0, NULL));
	ASSERT_EQ(0, set_region(1, 0, GUEST_HIGH, MIB, self->memory + MIB));
	EXPECT_EQ(0, guest_read(self, GUEST_HIGH));
}

TEST_F(regions, move)
{
	uint64_t *words = (uint64_t *)self->memory;

	words[0] = 77;
	ASSERT_EQ(0, set_region(1, 0, GUEST_HIGH, MIB, self->memory));
	EXPECT_EQ(77, guest_read(self, GUEST_HIGH));
	ASSERT_EQ(0, set_region(1, 0, GUEST_HIGH + 4 * MIB, MIB, self->memory));
	EXPECT_TRUE(guest_finds_hole(self, GUEST_HIGH));
	EXPECT_EQ(77, guest_read(self, GUEST_HIGH + 4 * MIB));
	EXPECT_EQ((GUEST_HIGH + 4 * MIB) ^ 0x5555, words[1]);
	/* Onto itself in part, and not onto another. */
	ASSERT_EQ(0, set_region(1, 0, GUEST_HIGH + 4 * MIB + 64 * KIB, MIB, self->memory));
	EXPECT_EQ(77, guest_read(self, GUEST_HIGH + 4 * MIB + 64 * KIB));
	EXPECT_EQ(-EEXIST, set_region(1, 0, 0, MIB, self->memory));
	EXPECT_EQ(77, guest_read(self, GUEST_HIGH + 4 * MIB + 64 * KIB));
}

TEST_F(regions, same_again)
{
	ASSERT_EQ(0, set_region(1, 0, GUEST_HIGH, MIB, self->memory));
	EXPECT_EQ(0, set_region(1, 0, GUEST_HIGH, MIB, self->memory));
	/* Neither its size nor its memory can change while it is there. */
	EXPECT_EQ(-EINVAL, set_region(1, 0, GUEST_HIGH, 2 * MIB, self->memory));
	EXPECT_EQ(-EINVAL, set_region(1, 0, GUEST_HIGH, MIB, self->memory + MIB));
	EXPECT_EQ(-EINVAL, set_region(1, KVM_MEM_READONLY, GUEST_HIGH, MIB, self->memory));
	EXPECT_EQ(0, guest_read(self, GUEST_HIGH));
}

TEST_F(regions, overlap)
{
	ASSERT_EQ(0, set_region(1, 0, GUEST_HIGH, MIB, self->memory));
	EXPECT_EQ(-EEXIST, set_region(2, 0, GUEST_HIGH, MIB, self->memory));
	EXPECT_EQ(-EEXIST, set_region(2, 0, GUEST_HIGH + MIB - 4096, 8192, self->memory));
	EXPECT_EQ(-EEXIST, set_region(2, 0, GUEST_HIGH - 4096, 8192, self->memory));
	EXPECT_EQ(-EEXIST, set_region(2, 0, GUEST_HIGH - 4096, 2 * MIB, self->memory));
	EXPECT_EQ(-EEXIST, set_region(2, 0, GUEST_HIGH + 4096, 4096, self->memory));
	/* Neighbours do not overlap; two slots may be the same memory. */
	EXPECT_EQ(0, set_region(2, 0, GUEST_HIGH + MIB, MIB, self->memory));
	EXPECT_EQ(0, set_region(3, 0, GUEST_HIGH - 4096, 4096, self->memory));
	EXPECT_EQ(0, guest_read(self, GUEST_HIGH));
	EXPECT_EQ(0, guest_read(self, GUEST_HIGH + MIB));
	EXPECT_EQ((GUEST_HIGH + MIB) ^ 0x5555, *(uint64_t *)(self->memory + 8));
}

TEST_F(regions, refused)
{
	int slots = try_ioctl(self->vm.fd, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS);
	uint8_t *memory = self->memory;

	EXPECT_EQ(-EINVAL, set_region(1, 0, GUEST_HIGH, 4095, memory));
	EXPECT_EQ(-EINVAL, set_region(1, 0, GUEST_HIGH, 1, memory));
	EXPECT_EQ(-EINVAL, set_region(1, 0, GUEST_HIGH + 1, 4096, memory));
	EXPECT_EQ(-EINVAL, set_region(1, 0, GUEST_HIGH + 2048, 4096, memory));
	EXPECT_EQ(-EINVAL, set_region(1, 0, GUEST_HIGH, 4096, memory + 1));
	EXPECT_EQ(-EINVAL, set_region(1, 0, GUEST_HIGH, 4096, memory + 2048));
	/* Wrap-around of the guest's addresses and of the host's. */
	EXPECT_EQ(-EINVAL, set_region(1, 0, -4096ul, 8192, memory));
	EXPECT_EQ(-EINVAL, set_region(1, 0, -4096ul, 4096, memory));
	EXPECT_EQ(-EINVAL, set_region(1, 0, GUEST_HIGH, -4096ul, memory));
	EXPECT_EQ(-EINVAL, set_region(1, 0, 1ul << 63, 1ul << 63, memory));
	EXPECT_EQ(-EINVAL, set_region(1, 0, GUEST_HIGH, 8192, (void *)-4096ul));
	EXPECT_EQ(-EINVAL, set_region(1, 0, GUEST_HIGH, 4096, (void *)0xffff888000000000));
	EXPECT_EQ(-EINVAL, set_region(1, 0, GUEST_HIGH, 4096, (void *)0xffffffff81000000));
	/* More than there are addresses, and beyond them. */
	EXPECT_EQ(-EINVAL, set_region(1, 0, GUEST_HIGH, 1ul << 45, memory));
	EXPECT_EQ(-EINVAL, set_region(1, 0, 1ul << 52, 4096, memory));
	/* Slots, address spaces and flags that do not exist. */
	EXPECT_EQ(-EINVAL, set_region(slots, 0, GUEST_HIGH, 4096, memory));
	EXPECT_EQ(-EINVAL, set_region(0x7fff, 0, GUEST_HIGH, 4096, memory));
	EXPECT_EQ(-EINVAL, set_region(0x20000, 0, GUEST_HIGH, 4096, memory));
	EXPECT_EQ(-EINVAL, set_region(0xffff0000, 0, GUEST_HIGH, 4096, memory));
	EXPECT_EQ(-EINVAL, set_region(0xffffffff, 0, GUEST_HIGH, 4096, memory));
	EXPECT_EQ(-EINVAL, set_region(1, 1u << 31, GUEST_HIGH, 4096, memory));
	EXPECT_EQ(-EINVAL, set_region(1, 1u << 3, GUEST_HIGH, 4096, memory));
	EXPECT_EQ(-EINVAL, set_region(1, KVM_MEM_GUEST_MEMFD, GUEST_HIGH, 4096, memory));
	/* A slot that is not there can't be deleted. */
	EXPECT_EQ(-EINVAL, set_region(5, 0, 0, 0, NULL));
	EXPECT_EQ(-EFAULT, try_ioctl(self->vm.fd, KVM_SET_USER_MEMORY_REGION, 8));
	/* None of all that has done anything. */
	EXPECT_TRUE(guest_finds_hole(self, GUEST_HIGH));
	EXPECT_EQ(0, set_region(slots - 1, 0, GUEST_HIGH, 4096, memory));
	EXPECT_EQ(0, guest_read(self, GUEST_HIGH));
}

TEST_F(regions, region2)
{
	struct kvm_userspace_memory_region2 region = {
		.slot = 1, .guest_phys_addr = GUEST_HIGH, .memory_size = MIB, .userspace_addr = (uintptr_t)self->memory,
	};

	*(uint64_t *)self->memory = 99;
	ASSERT_EQ(0, try_ioctl(self->vm.fd, KVM_SET_USER_MEMORY_REGION2, &region));
	EXPECT_EQ(99, guest_read(self, GUEST_HIGH));
	region.slot = 2;
	EXPECT_EQ(-EEXIST, try_ioctl(self->vm.fd, KVM_SET_USER_MEMORY_REGION2, &region));
	region.guest_phys_addr = GUEST_HIGH + 2 * MIB;
	region.flags = 1 << 20;
	EXPECT_EQ(-EINVAL, try_ioctl(self->vm.fd, KVM_SET_USER_MEMORY_REGION2, &region));
	/* Memory that only a guest_memfd could give. */
	region.flags = KVM_MEM_GUEST_MEMFD;
	region.guest_memfd = -1;
	EXPECT_GT(0, try_ioctl(self->vm.fd, KVM_SET_USER_MEMORY_REGION2, &region));
	EXPECT_EQ(-EFAULT, try_ioctl(self->vm.fd, KVM_SET_USER_MEMORY_REGION2, 8));
	region.flags = 0;
	region.slot = 1;
	region.memory_size = 0;
	EXPECT_EQ(0, try_ioctl(self->vm.fd, KVM_SET_USER_MEMORY_REGION2, &region));
	EXPECT_TRUE(guest_finds_hole(self, GUEST_HIGH));
}

/* Read-only memory can't be written through the emulator either, and can be code. */
GUEST_CODE64(call_rom, call *%rsi; out %al, $PORT_SYNC; hlt);

TEST_F(regions, read_only)
{
	struct kvm_regs regs;

	memcpy(self->memory, "\xb8\x2a\x00\x00\x00\xc3", 6); /* mov $42, %eax; ret */
	ASSERT_EQ(0, set_region(1, KVM_MEM_READONLY, GUEST_HIGH, MIB, self->memory));
	guest_load(&self->vm, call_rom);
	regs = vcpu_regs(&self->vcpu);
	regs.rsi = GUEST_HIGH;
	vcpu_set_regs(&self->vcpu, &regs);
	EXPECT_EQ(42, vcpu_run_to_port(&self->vcpu, PORT_SYNC));
	/* Deleted and writable again, it is ordinary memory. */
	ASSERT_EQ(0, set_region(1, 0, GUEST_HIGH, 0, NULL));
	ASSERT_EQ(0, set_region(1, 0, GUEST_HIGH, MIB, self->memory));
	guest_load(&self->vm, peek);
	guest_set_mode(&self->vcpu, MODE_LONG);
	EXPECT_EQ(*(uint64_t *)self->memory, guest_read(self, GUEST_HIGH));
	EXPECT_EQ(GUEST_HIGH ^ 0x5555, *(uint64_t *)(self->memory + 8));
}

/* A mapping that the VMM itself can only read: reads work, a write is not MMIO but the VMM's mistake. */
TEST_F(regions, memory_of_less_rights)
{
	struct kvm_regs regs;
	int reason;

	*(uint64_t *)self->memory = 5;
	ASSERT_EQ(0, mprotect(self->memory, MIB, PROT_READ));
	ASSERT_EQ(0, set_region(1, 0, GUEST_HIGH, MIB, self->memory));
	regs = vcpu_regs(&self->vcpu);
	regs.rsi = GUEST_HIGH;
	vcpu_set_regs(&self->vcpu, &regs);
	reason = vcpu_run(&self->vcpu);
	EXPECT_TRUE(reason == -EFAULT || reason == KVM_EXIT_MEMORY_FAULT) TH_LOG("exit %s (%d)", exit_name(reason), reason);
	/* With the right given, the guest goes on where it was. */
	ASSERT_EQ(0, mprotect(self->memory, MIB, PROT_READ | PROT_WRITE));
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	EXPECT_EQ(5, vcpu_regs(&self->vcpu).rax);
	/* Nothing mapped at all. */
	ASSERT_EQ(0, munmap(self->memory, MIB));
	reason = vcpu_run(&self->vcpu);
	EXPECT_TRUE(reason == -EFAULT || reason == KVM_EXIT_MEMORY_FAULT) TH_LOG("exit %s (%d)", exit_name(reason), reason);
}

TEST_F(regions, above_4_gib)
{
	*(uint64_t *)self->memory = 0xabcdef;
	ASSERT_EQ(0, set_region(1, 0, HIGH_GPA, 2 * MIB, self->memory));
	EXPECT_EQ(0xabcdef, guest_read(self, HIGH_VIRTUAL));
	EXPECT_EQ(0, guest_read(self, HIGH_VIRTUAL + 2 * MIB - 16));
	ASSERT_EQ(0, set_region(1, 0, HIGH_GPA, 0, NULL));
	EXPECT_TRUE(({ struct kvm_regs regs = vcpu_regs(&self->vcpu);
		       regs.rsi = HIGH_VIRTUAL;
		       vcpu_set_regs(&self->vcpu, &regs);
		       vcpu_run(&self->vcpu) == KVM_EXIT_MMIO && self->vcpu.run->mmio.phys_addr == HIGH_GPA; }));
}

/* As many slots as there are, in no order; then many deleted. */
TEST_F(regions, all_slots)
{
	unsigned int slots = try_ioctl(self->vm.fd, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS);
	/* Each call waits for those who use the slots, in KVM each new slot too: some thousand must do. */
	unsigned int count = scaled(device_is_xvm() || slots - 1 < 4000 ? slots - 1 : 4000);
	unsigned int deleted = count / 4000 + 1;
	/* Any odd factor visits each once. */
	unsigned int stride = 7919 % count;

	while (count % stride == 0)
		stride++;
	for (unsigned int i = 0; i < count; i++) {
		unsigned int slot = 1 + (uint64_t)i * stride % count;
		int result = set_region(slot, 0, GUEST_HIGH + slot * 8192ul, 4096, self->memory + (slot % 64) * 4096);

		ASSERT_EQ(0, result) TH_LOG("slot %u, the %uth", slot, i);
	}
	for (unsigned int slot = 1; slot <= count; slot += count / 50 + 1) {
		uint64_t *word = (uint64_t *)(self->memory + (slot % 64) * 4096);

		*word = slot;
		EXPECT_EQ(slot, guest_read(self, GUEST_HIGH + slot * 8192ul));
		EXPECT_TRUE(guest_finds_hole(self, GUEST_HIGH + slot * 8192ul + 4096));
	}
	for (unsigned int slot = 1; slot <= count; slot += deleted)
		ASSERT_EQ(0, set_region(slot, 0, 0, 0, NULL));
	EXPECT_TRUE(guest_finds_hole(self, GUEST_HIGH + 8192));
}

/* Slots change under a running guest: it sees memory or a hole, never something else. */
static volatile bool changing;

static void *change_regions(void *argument)
{
	struct vm *vm = argument;
	uint64_t *memory = mmap(NULL, 2 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	for (unsigned int i = 0; changing; i++) {
		memory[(i & 1) * MIB / 8] = 1000 + (i & 1);
		if (vm_set_region(vm, 1, 0, GUEST_HIGH, MIB, (char *)memory + (i & 1) * MIB) ||
		    vm_set_region(vm, 1, 0, GUEST_HIGH, 0, NULL))
			fatal("slot 1 could not be changed");
	}
	munmap(memory, 2 * MIB);
	return NULL;
}

TEST_F(regions, change_while_running)
{
	struct kvm_regs regs = vcpu_regs(&self->vcpu);
	unsigned int seen = 0, holes = 0;
	pthread_t thread;
	uint64_t end;

	regs.rsi = GUEST_HIGH;
	vcpu_set_regs(&self->vcpu, &regs);
	changing = true;
	ASSERT_EQ(0, pthread_create(&thread, NULL, change_regions, &self->vm));
	for (end = now_ns() + scaled(2000) * 1000000; now_ns() < end; ) {
		int reason = vcpu_run(&self->vcpu);

		if (reason == KVM_EXIT_MMIO) {
			ASSERT_EQ(GUEST_HIGH + 8 * self->vcpu.run->mmio.is_write, self->vcpu.run->mmio.phys_addr);
			memset(self->vcpu.run->mmio.data, 0, 8);
			holes++;
			continue;
		}
		ASSERT_EQ(KVM_EXIT_IO, reason);
		regs = vcpu_regs(&self->vcpu);
		ASSERT_TRUE(regs.rax == 0 || regs.rax == 1000 || regs.rax == 1001) TH_LOG("read %#llx", regs.rax);
		seen += regs.rax != 0;
	}
	changing = false;
	pthread_join(thread, NULL);
	TH_LOG("%u reads of memory, %u of a hole", seen, holes);
	EXPECT_GT(seen + holes, 0);
}

XVM_TEST_MAIN
