// SPDX-License-Identifier: GPL-2.0
/* Private memory: VMs of the type KVM_X86_SW_PROTECTED_VM, and KVM_SET_MEMORY_ATTRIBUTES. */
#include "test.h"
#include <linux/falloc.h>

#define PAGE 4096ul
#define MIB (1024 * 1024ul)
#define SIZE (4 * MIB)
#define PAGES (SIZE / PAGE)
#define BASE (2 * MIB)
#define PRIVATE KVM_MEMORY_ATTRIBUTE_PRIVATE

/* Adds RAX to the word at RSI, and tells in RBX what it is then. */
GUEST_CODE64(add, 1: add %rax, (%rsi); mov (%rsi), %rbx; GUEST_SYNC; jmp 1b);

FIXTURE(attributes)
{
	struct vm vm;
	struct vcpu vcpu;
	uint8_t *memory;	/* what is shared */
	int fd;			/* what is private */
};

static int create_file(struct vm *vm, uint64_t size, uint64_t flags)
{
	struct kvm_create_guest_memfd request = { .size = size, .flags = flags };

	return try_ioctl(vm->fd, KVM_CREATE_GUEST_MEMFD, &request);
}

static int bind_slot(struct vm *vm, uint32_t slot, uint64_t gpa, uint64_t size, void *memory, int fd, uint64_t offset)
{
	struct kvm_userspace_memory_region2 region = {
		.slot = slot, .flags = KVM_MEM_GUEST_MEMFD, .guest_phys_addr = gpa, .memory_size = size, .guest_memfd = fd,
		.guest_memfd_offset = offset, .userspace_addr = (uintptr_t)memory,
	};

	return try_ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION2, &region);
}

static int convert(struct vm *vm, uint64_t gpa, uint64_t size, uint64_t attributes)
{
	struct kvm_memory_attributes asked = { .address = gpa, .size = size, .attributes = attributes };

	return try_ioctl(vm->fd, KVM_SET_MEMORY_ATTRIBUTES, &asked);
}

FIXTURE_SETUP(attributes)
{
	if (!(device_extension(KVM_CAP_VM_TYPES) & 1 << KVM_X86_SW_PROTECTED_VM))
		SKIP(return, "no VMs of this type");
	self->vm = vm_create_type(KVM_X86_SW_PROTECTED_VM);
	self->vcpu = vcpu_create(&self->vm, 0);
	vcpu_set_supported_cpuid(&self->vcpu);
	guest_load(&self->vm, add);
	guest_set_mode(&self->vcpu, MODE_LONG);
	/* Aligned, so that it can be huge pages on both levels. */
	self->memory = mmap(NULL, SIZE + 2 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->memory);
	self->memory += -(uintptr_t)self->memory & (2 * MIB - 1);
	madvise(self->memory, SIZE, MADV_HUGEPAGE);
	self->fd = create_file(&self->vm, SIZE, 0);
	ASSERT_LE(0, self->fd);
	ASSERT_EQ(0, bind_slot(&self->vm, 1, BASE, SIZE, self->memory, self->fd, 0));
}

FIXTURE_TEARDOWN(attributes)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

/* The guest adds to a word; what it is then, if that ends as it should. */
static uint64_t add_word(FIXTURE_DATA(attributes) *self, uint64_t gpa, uint64_t value)
{
	struct kvm_regs regs = vcpu_regs(&self->vcpu);

	regs.rip = GUEST_CODE;
	regs.rsi = gpa;
	regs.rax = value;
	vcpu_set_regs(&self->vcpu, &regs);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	return vcpu_regs(&self->vcpu).rbx;
}

/* The guest's access must end in a private memory fault. */
static bool faults(FIXTURE_DATA(attributes) *self, uint64_t gpa)
{
	struct kvm_regs regs = vcpu_regs(&self->vcpu);
	struct kvm_run *run = self->vcpu.run;

	regs.rip = GUEST_CODE;
	regs.rsi = gpa + 8;
	vcpu_set_regs(&self->vcpu, &regs);
	memset(&run->memory_fault, 0xff, sizeof(run->memory_fault));
	return vcpu_run(&self->vcpu) == -EFAULT && run->exit_reason == KVM_EXIT_MEMORY_FAULT &&
	       run->memory_fault.flags == KVM_MEMORY_EXIT_FLAG_PRIVATE && run->memory_fault.gpa == gpa && run->memory_fault.size == PAGE;
}

static volatile uint64_t *shared_word(FIXTURE_DATA(attributes) *self, uint64_t gpa)
{
	return (uint64_t *)(self->memory + (gpa - BASE));
}

/* A page has two sides, which know nothing of each other and stay as they are while the guest has the other. */
TEST_F(attributes, two_sides)
{
	uint64_t gpa = BASE + 3 * PAGE;

	*shared_word(self, gpa) = 100;
	EXPECT_EQ(101, add_word(self, gpa, 1));
	for (uint64_t n = 1; n < 20; n++) {
		ASSERT_EQ(0, convert(&self->vm, gpa, PAGE, PRIVATE));
		EXPECT_EQ(2 * n, add_word(self, gpa, 2));
		EXPECT_EQ(100 + n, *shared_word(self, gpa));
		/* Once more is as good. */
		ASSERT_EQ(0, convert(&self->vm, gpa, PAGE, n % 2 * PRIVATE));
		ASSERT_EQ(0, convert(&self->vm, gpa, PAGE, 0));
		EXPECT_EQ(101 + n, add_word(self, gpa, 1));
	}
	/* A hole is zero when it is used again; the shared side has none of it. */
	ASSERT_EQ(0, fallocate(self->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, SIZE));
	EXPECT_EQ(121, add_word(self, gpa, 1));
	ASSERT_EQ(0, convert(&self->vm, gpa, PAGE, PRIVATE));
	EXPECT_EQ(5, add_word(self, gpa, 5));
	ASSERT_EQ(0, fallocate(self->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, gpa - BASE, PAGE));
	EXPECT_EQ(7, add_word(self, gpa, 7));
	/* The VMM's mapping may go as it likes. */
	ASSERT_EQ(0, madvise(self->memory, SIZE, MADV_DONTNEED));
	EXPECT_EQ(8, add_word(self, gpa, 1));
	EXPECT_EQ(0, *shared_word(self, gpa));
}

/* What is private and isn't there is the VMM's business, whatever the slot is. */
TEST_F(attributes, mismatch)
{
	uint64_t plain = BASE + SIZE, none = plain + PAGE;
	uint8_t *memory = vm_add_memory(&self->vm, 2, plain, PAGE);

	EXPECT_EQ(3, add_word(self, plain, 3));
	ASSERT_EQ(0, convert(&self->vm, plain, 2 * PAGE, PRIVATE));
	EXPECT_TRUE(faults(self, plain));
	EXPECT_TRUE(faults(self, none));
	/* Where it is read-only, too; reads and writes make no difference. */
	ASSERT_EQ(0, vm_set_region(&self->vm, 2, 0, 0, 0, NULL));
	ASSERT_EQ(0, vm_set_region(&self->vm, 2, KVM_MEM_READONLY, plain, PAGE, memory));
	EXPECT_TRUE(faults(self, plain));
	ASSERT_EQ(0, convert(&self->vm, plain, 2 * PAGE, 0));
	struct kvm_regs regs = vcpu_regs(&self->vcpu);
	regs.rip = GUEST_CODE;
	regs.rsi = none;
	vcpu_set_regs(&self->vcpu, &regs);
	EXPECT_EQ(KVM_EXIT_MMIO, vcpu_run(&self->vcpu));
	EXPECT_EQ(none, self->vcpu.run->mmio.phys_addr);
	EXPECT_EQ(KVM_EXIT_MMIO, vcpu_run(&self->vcpu));
	EXPECT_EQ(KVM_EXIT_MMIO, vcpu_run(&self->vcpu));
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	/* Attributes are of addresses, not of slots. */
	ASSERT_EQ(0, convert(&self->vm, BASE, PAGE, PRIVATE));
	EXPECT_EQ(9, add_word(self, BASE, 9));
	ASSERT_EQ(0, bind_slot(&self->vm, 1, 0, 0, NULL, -1, 0));
	EXPECT_TRUE(faults(self, BASE));
	ASSERT_EQ(0, bind_slot(&self->vm, 1, BASE, SIZE, self->memory, self->fd, 0));
	EXPECT_EQ(10, add_word(self, BASE, 1));
	/* The file is closed: its pages are gone, the slot's other side isn't. */
	close(self->fd);
	EXPECT_TRUE(faults(self, BASE));
	ASSERT_EQ(0, convert(&self->vm, BASE, PAGE, 0));
	EXPECT_EQ(1, add_word(self, BASE, 1));
}

/* A file that processes can map has both sides' pages; none of them is shared with processes here. */
TEST_F(attributes, file_alone)
{
	int fd = create_file(&self->vm, SIZE, GUEST_MEMFD_FLAG_MMAP);

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, bind_slot(&self->vm, 3, BASE + SIZE, SIZE, self->memory, fd, 0));
	EXPECT_EQ(4, add_word(self, BASE + SIZE, 4));
	EXPECT_EQ(0, *shared_word(self, BASE));
	ASSERT_EQ(0, convert(&self->vm, BASE + SIZE, PAGE, PRIVATE));
	EXPECT_EQ(8, add_word(self, BASE + SIZE, 4));
}

TEST_F(attributes, bad_arguments)
{
	struct kvm_memory_attributes flagged = { .address = BASE, .size = PAGE, .attributes = PRIVATE, .flags = 1 };
	struct vm other = vm_create();

	EXPECT_EQ(3, device_extension(KVM_CAP_VM_TYPES));
	EXPECT_EQ(PRIVATE, device_extension(KVM_CAP_MEMORY_ATTRIBUTES));
	EXPECT_EQ(PRIVATE, try_ioctl(self->vm.fd, KVM_CHECK_EXTENSION, KVM_CAP_MEMORY_ATTRIBUTES));
	EXPECT_EQ(0, try_ioctl(other.fd, KVM_CHECK_EXTENSION, KVM_CAP_MEMORY_ATTRIBUTES));
	EXPECT_EQ(GUEST_MEMFD_FLAG_MMAP, try_ioctl(self->vm.fd, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_MEMFD_FLAGS));
	EXPECT_EQ(GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED, try_ioctl(other.fd, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_MEMFD_FLAGS));
	EXPECT_EQ(0, try_ioctl(self->vm.fd, KVM_CHECK_EXTENSION, 1ul << 32 | KVM_CAP_MEMORY_ATTRIBUTES));
	EXPECT_EQ(-EINVAL, create_file(&self->vm, SIZE, GUEST_MEMFD_FLAG_INIT_SHARED));
	EXPECT_EQ(-EINVAL, create_file(&self->vm, SIZE, GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED));
	for (unsigned long type = KVM_X86_SW_PROTECTED_VM + 1; type < 64; type++)
		EXPECT_EQ(-EINVAL, try_ioctl(self->vm.device, KVM_CREATE_VM, type));
	EXPECT_EQ(-EINVAL, try_ioctl(self->vm.device, KVM_CREATE_VM, 1ul << 32 | KVM_X86_SW_PROTECTED_VM));
	EXPECT_EQ(-EFAULT, try_ioctl(self->vm.fd, KVM_SET_MEMORY_ATTRIBUTES, NULL));
	EXPECT_EQ(-EINVAL, try_ioctl(self->vm.fd, KVM_SET_MEMORY_ATTRIBUTES, &flagged));
	for (int bit = 0; bit < 64; bit++) {
		if (1ul << bit != PRIVATE)
			EXPECT_EQ(-EINVAL, convert(&self->vm, BASE, PAGE, 1ul << bit));
	}
	EXPECT_EQ(-EINVAL, convert(&self->vm, BASE, 0, PRIVATE));
	EXPECT_EQ(-EINVAL, convert(&self->vm, BASE + 1, PAGE, PRIVATE));
	EXPECT_EQ(-EINVAL, convert(&self->vm, BASE, PAGE + 1, PRIVATE));
	EXPECT_EQ(-EINVAL, convert(&self->vm, -PAGE, PAGE, PRIVATE));
	EXPECT_EQ(-EINVAL, convert(&self->vm, -PAGE, 2 * PAGE, PRIVATE));
	EXPECT_EQ(-EINVAL, convert(&self->vm, PAGE, -PAGE, PRIVATE));
	/* Nothing of that has changed anything. */
	EXPECT_EQ(1, add_word(self, BASE, 1));
	EXPECT_EQ(1, *shared_word(self, BASE));
	/* Memory of other VMs can't be private. */
	EXPECT_EQ(-EINVAL, convert(&other, 0, PAGE, PRIVATE));
	EXPECT_EQ(0, convert(&other, 0, PAGE, 0));
	/* There is one address space. */
	EXPECT_EQ(-EINVAL, vm_set_region(&self->vm, 1 << 16, 0, 0, PAGE, self->memory));
	vm_free(&other);
}

/* Ranges of all sizes, which run into each other: each page is what it was last said to be. */
TEST_F(attributes, ranges)
{
	static bool private[PAGES];
	uint64_t seed = random_seed();

	/* Each side of each page says which it is. */
	ASSERT_EQ(0, convert(&self->vm, BASE, SIZE, PRIVATE));
	for (uint64_t n = 0; n < PAGES; n += 8) {
		ASSERT_EQ(1000000 + n, add_word(self, BASE + n * PAGE, 1000000 + n));
		*shared_word(self, BASE + n * PAGE) = n;
	}
	ASSERT_EQ(0, convert(&self->vm, 0, 1ul << 63, 0));
	for (unsigned long round = 0; round < scaled(300); round++) {
		uint64_t first = random_next(&seed) % PAGES, count = 1 + random_next(&seed) % (round % 3 ? 16 : PAGES - first);
		bool to = random_next(&seed) % 2;

		count = count < PAGES - first ? count : PAGES - first;
		if (round % 50 == 49) {
			first = 0;
			count = PAGES;
			ASSERT_EQ(0, convert(&self->vm, PAGE, -2 * PAGE, to * PRIVATE));
			/* The guest's own memory has been among it. */
			ASSERT_EQ(0, convert(&self->vm, 0, GUEST_MEMORY, 0));
		} else {
			ASSERT_EQ(0, convert(&self->vm, BASE + first * PAGE, count * PAGE, to * PRIVATE));
		}
		memset(private + first, to, count);
		for (int look = 0; look < 8; look++) {
			uint64_t n = random_next(&seed) % (PAGES / 8) * 8;

			ASSERT_EQ(private[n] ? 1000000 + n : n, add_word(self, BASE + n * PAGE, 0)) TH_LOG("page %lu, round %lu", n, round);
		}
	}
	/* As many ranges as there are pages. */
	for (uint64_t n = 0; n < PAGES; n++)
		ASSERT_EQ(0, convert(&self->vm, BASE + n * PAGE, PAGE, n / 8 % 2 * PRIVATE));
	for (uint64_t n = 0; n < PAGES; n += 8)
		ASSERT_EQ(n / 8 % 2 ? 1000000 + n : n, add_word(self, BASE + n * PAGE, 0));
}

/* Pages of 2 MiB are split by a conversion, and made of one side alone. */
TEST_F(attributes, large_pages)
{
	uint64_t gpa = BASE + 300 * PAGE;

	memset(self->memory, 0, SIZE);
	for (int round = 1; round < 10; round++) {
		EXPECT_EQ(3 * round - 2, add_word(self, gpa, 1));
		ASSERT_EQ(0, convert(&self->vm, gpa, PAGE, PRIVATE));
		EXPECT_EQ(round, add_word(self, gpa, 1));
		EXPECT_EQ(round, add_word(self, gpa - PAGE, 1));
		EXPECT_EQ(round, add_word(self, gpa + PAGE, 1));
		EXPECT_EQ(3 * round - 2, *shared_word(self, gpa));
		EXPECT_EQ(round, *shared_word(self, gpa + PAGE));
		ASSERT_EQ(0, convert(&self->vm, gpa, PAGE, 0));
		EXPECT_EQ(3 * round, add_word(self, gpa, 2));
	}
}

TEST_F(attributes, pre_fault)
{
	struct kvm_pre_fault_memory range = { .gpa = BASE, .size = SIZE };

	ASSERT_EQ(0, convert(&self->vm, BASE + MIB, MIB, PRIVATE));
	while (range.size)
		ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_PRE_FAULT_MEMORY, &range));
	EXPECT_EQ(6, add_word(self, BASE + MIB, 6));
	EXPECT_EQ(0, *shared_word(self, BASE + MIB));
	EXPECT_EQ(6, add_word(self, BASE + 2 * MIB, 6));
	EXPECT_EQ(6, *shared_word(self, BASE + 2 * MIB));
	/* Private, and no slot; shared, and no slot. */
	ASSERT_EQ(0, convert(&self->vm, BASE + SIZE, PAGE, PRIVATE));
	range.size = PAGE;
	EXPECT_EQ(-EFAULT, try_ioctl(self->vcpu.fd, KVM_PRE_FAULT_MEMORY, &range));
	range.gpa += PAGE;
	EXPECT_EQ(-ENOENT, try_ioctl(self->vcpu.fd, KVM_PRE_FAULT_MEMORY, &range));
	EXPECT_EQ(PAGE, range.size);
}

/* The guest counts, in one page of the two or the other, while it is converted. */
GUEST_CODE64(count, 1: incq GUEST_FREE; incq 0x200000; incq 0x201000; jmp 1b);

static volatile bool working;

static void *run_guest(void *argument)
{
	struct vcpu *vcpu = argument;

	while (working) {
		int reason = vcpu_run(vcpu);

		if (reason != -EINTR) {
			vcpu_dump(vcpu);
			fatal("exit %s (%d)", exit_name(reason), reason);
		}
	}
	return NULL;
}

static void wait_for_count(FIXTURE_DATA(attributes) *self, volatile uint64_t *word)
{
	uint64_t before = *word, end = now_ns() + 20000000000;

	while (*word == before) {
		if (now_ns() > end)
			fatal("the guest does not get on");
		sched_yield();
	}
}

TEST_F(attributes, while_running)
{
	volatile uint64_t *turns = vm_at(&self->vm, GUEST_FREE), *words[] = { shared_word(self, BASE), shared_word(self, BASE + PAGE) };
	unsigned long conversions = 0;
	pthread_t thread;
	uint64_t end;

	guest_load(&self->vm, count);
	guest_set_mode(&self->vcpu, MODE_LONG);
	let_signal_interrupt(SIGUSR1);
	working = true;
	ASSERT_EQ(0, pthread_create(&thread, NULL, run_guest, &self->vcpu));
	for (end = now_ns() + scaled(1500) * 1000000; now_ns() < end; conversions++) {
		int page = conversions % 2;
		uint64_t before;

		if (conversions % 16 == 0)
			wait_for_count(self, words[page]);
		ASSERT_EQ(0, convert(&self->vm, BASE + page * PAGE, PAGE, PRIVATE));
		/* From now on the guest counts elsewhere. */
		before = *words[page];
		if (conversions % 16 == 0)
			wait_for_count(self, turns);
		else
			sched_yield();
		ASSERT_EQ(before, *words[page]) TH_LOG("conversion %lu", conversions);
		ASSERT_EQ(0, convert(&self->vm, BASE, SIZE, 0));
	}
	for (int page = 0; page < 2; page++)
		wait_for_count(self, words[page]);
	working = false;
	pthread_kill(thread, SIGUSR1);
	pthread_join(thread, NULL);
	TH_LOG("%lu conversions, %lu turns", conversions, *turns);
	/* No count is lost: those of both sides are all. */
	ASSERT_EQ(0, convert(&self->vm, BASE, 2 * PAGE, PRIVATE));
	guest_load(&self->vm, add);
	guest_set_mode(&self->vcpu, MODE_LONG);
	for (int page = 0; page < 2; page++) {
		uint64_t sum = *words[page] + add_word(self, BASE + page * PAGE, 0);

		EXPECT_LE(*turns - 1, sum);
		EXPECT_GE(*turns, sum);
	}
}

/* Conversions of the same pages by two threads, holes, and the slot's deletion, while the guest runs. */
static void *disturb(void *argument)
{
	FIXTURE_DATA(attributes) *self = argument;
	uint64_t seed = (uintptr_t)&seed;

	while (working) {
		uint64_t offset = random_next(&seed) % 4 * PAGE, size = (1 + random_next(&seed) % 4) * PAGE;

		switch (random_next(&seed) % 8) {
		case 0:
			if (fallocate(self->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, size))
				fatal("fallocate: %s", strerror(errno));
			break;
		case 1:
			madvise(self->memory + offset, size, MADV_DONTNEED);
			break;
		case 2:
			/* The other one may have done so already. */
			bind_slot(&self->vm, 1, 0, 0, NULL, -1, 0);
			bind_slot(&self->vm, 1, BASE, SIZE, self->memory, self->fd, 0);
			break;
		default:
			if (convert(&self->vm, BASE + offset, size, random_next(&seed) % 2 * PRIVATE))
				fatal("conversion");
		}
	}
	return NULL;
}

TEST_F(attributes, all_at_once)
{
	unsigned long good = 0, devices = 0, failed = 0;
	pthread_t threads[2];
	struct kvm_regs regs = vcpu_regs(&self->vcpu);

	working = true;
	for (int i = 0; i < 2; i++)
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, disturb, self));
	for (uint64_t end = now_ns() + scaled(1500) * 1000000; now_ns() < end; ) {
		int reason;

		regs.rsi = BASE + good % 4 * PAGE;
		regs.rip = GUEST_CODE;
		vcpu_set_regs(&self->vcpu, &regs);
		while ((reason = vcpu_run(&self->vcpu)) == KVM_EXIT_MMIO)
			devices++;
		if (reason == -EFAULT) {
			/* Private, and just then no slot. */
			ASSERT_EQ(KVM_EXIT_MEMORY_FAULT, self->vcpu.run->exit_reason);
			ASSERT_EQ(KVM_MEMORY_EXIT_FLAG_PRIVATE, self->vcpu.run->memory_fault.flags);
			failed++;
		} else {
			ASSERT_EQ(KVM_EXIT_IO, reason);
			good++;
		}
	}
	working = false;
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	TH_LOG("%lu additions, %lu exits for devices, %lu for private memory", good, devices, failed);
	bind_slot(&self->vm, 1, BASE, SIZE, self->memory, self->fd, 0);
	ASSERT_EQ(0, convert(&self->vm, BASE, SIZE, 0));
	*shared_word(self, BASE) = 1;
	EXPECT_EQ(2, add_word(self, BASE, 1));
}

XVM_TEST_MAIN
