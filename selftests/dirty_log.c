// SPDX-License-Identifier: GPL-2.0
/*
 * The dirty log: KVM_MEM_LOG_DIRTY_PAGES, KVM_GET_DIRTY_LOG, KVM_CLEAR_DIRTY_LOG, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.
 *
 * The long tests keep a copy of the guest's memory by the log alone while the guest writes to it: one write that the log
 * missed is a difference at the end.
 */
#include "dirty.h"
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

#define MIB (1024 * 1024ul)
#define SIZE (4 * MIB)
#define PAGES (SIZE / PAGE)
#define WORDS (PAGES / 64)
#define OTHER (GUEST_HIGH + 2 * SIZE)

/* Copies RCX bytes from a port, then RCX words from a device's memory at RSI, to RDI. */
GUEST_CODE64(emulated, mov %rcx, %rbx; mov $0xe8, %edx; rep insb; GUEST_SYNC; mov %rbx, %rcx; rep movsq; GUEST_SYNC);

/* Reads the word at RSI. */
GUEST_CODE64(look, 1: mov (%rsi), %rax; GUEST_SYNC; jmp 1b);

FIXTURE(dirty_log)
{
	struct vm vm;
	struct vcpu vcpu;
	uint8_t *memory;
	uint64_t log[WORDS];
};

FIXTURE_SETUP(dirty_log)
{
	guest_start(&self->vm, &self->vcpu, touch);
	self->memory = mmap(NULL, SIZE + 2 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(MAP_FAILED, self->memory);
	/* Aligned as the guest's addresses are, so that it can be huge pages on both levels. */
	self->memory += -((uintptr_t)self->memory + GUEST_HIGH) & (2 * MIB - 1);
}

FIXTURE_TEARDOWN(dirty_log)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

static int get_log(struct vm *vm, uint32_t slot, void *bitmap)
{
	struct kvm_dirty_log log = { .slot = slot, .dirty_bitmap = bitmap };

	return try_ioctl(vm->fd, KVM_GET_DIRTY_LOG, &log);
}

static int clear_log(struct vm *vm, uint32_t slot, uint64_t first, uint32_t pages, void *bitmap)
{
	struct kvm_clear_dirty_log log = { .slot = slot, .first_page = first, .num_pages = pages, .dirty_bitmap = bitmap };

	return try_ioctl(vm->fd, KVM_CLEAR_DIRTY_LOG, &log);
}

static int set_protect(struct vm *vm, uint64_t options)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, .args = { options } };

	return try_ioctl(vm->fd, KVM_ENABLE_CAP, &cap);
}

static void set_slot(FIXTURE_DATA(dirty_log) *self, uint32_t flags)
{
	int result = vm_set_region(&self->vm, 1, flags, GUEST_HIGH, SIZE, self->memory);

	if (result)
		fatal("flags %#x: %s", flags, strerror(-result));
}

/* The guest writes to count pages of slot 1, from page on, step apart. */
static void write_pages(FIXTURE_DATA(dirty_log) *self, uint64_t page, uint64_t step, uint64_t count)
{
	dirty_set_touch(&self->vcpu, page, step, count);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
}

static unsigned int bits(const uint64_t *log, unsigned int words)
{
	unsigned int sum = 0;

	while (words--)
		sum += __builtin_popcountll(*log++);
	return sum;
}

/* What the log says now, in bits. */
static unsigned int harvest(FIXTURE_DATA(dirty_log) *self)
{
	int result;

	memset(self->log, 0xaa, sizeof(self->log));
	result = get_log(&self->vm, 1, self->log);
	if (result)
		fatal("KVM_GET_DIRTY_LOG: %s", strerror(-result));
	return bits(self->log, WORDS);
}

static bool logged(FIXTURE_DATA(dirty_log) *self, uint64_t page)
{
	return self->log[page / 64] >> page % 64 & 1;
}

TEST_F(dirty_log, each_page_once)
{
	set_slot(self, KVM_MEM_LOG_DIRTY_PAGES);
	EXPECT_EQ(0, harvest(self));
	for (int round = 0; round < 3; round++) {
		write_pages(self, 5, 7, 100);
		EXPECT_EQ(100, harvest(self));
		for (int i = 0; i < 100; i++)
			EXPECT_TRUE(logged(self, 5 + 7 * i));
		EXPECT_EQ(0, harvest(self));
	}
	/* What the VMM itself writes is its own business. */
	memset(self->memory, 1, SIZE);
	EXPECT_EQ(0, harvest(self));
}

/* Pages that were mapped for writing before, also large ones, are logged from the moment that logging is turned on. */
TEST_F(dirty_log, turned_on_and_off)
{
	madvise(self->memory, SIZE, MADV_HUGEPAGE);
	set_slot(self, 0);
	for (int round = 0; round < 3; round++) {
		write_pages(self, 0, 1, PAGES);
		EXPECT_EQ(-ENOENT, get_log(&self->vm, 1, self->log));
		set_slot(self, KVM_MEM_LOG_DIRTY_PAGES);
		EXPECT_EQ(0, harvest(self));
		write_pages(self, 3, 64, PAGES / 64);
		/* The same again changes nothing. */
		set_slot(self, KVM_MEM_LOG_DIRTY_PAGES);
		EXPECT_EQ(PAGES / 64, harvest(self));
		for (int i = 0; i < WORDS; i++)
			EXPECT_EQ(1 << 3, self->log[i]);
		write_pages(self, 0, 1, PAGES);
		EXPECT_EQ(PAGES, harvest(self));
		write_pages(self, 0, 1, 10);
		set_slot(self, 0);
	}
	for (int i = 10; i < PAGES; i++) {
		ASSERT_EQ(vcpu_regs(&self->vcpu).rax - 1, *(uint64_t *)(self->memory + i * PAGE));
	}
}

/* Reads are not writes, whatever is mapped for them. */
TEST_F(dirty_log, reads)
{
	struct kvm_regs regs;

	memset(self->memory, 1, SIZE);
	guest_load(&self->vm, look);
	set_slot(self, KVM_MEM_LOG_DIRTY_PAGES);
	for (int i = 0; i < 20; i++) {
		regs = vcpu_regs(&self->vcpu);
		regs.rsi = GUEST_HIGH + i * PAGE;
		vcpu_set_regs(&self->vcpu, &regs);
		vcpu_run_to_port(&self->vcpu, PORT_SYNC);
		EXPECT_EQ(0x0101010101010101, vcpu_regs(&self->vcpu).rax);
	}
	EXPECT_EQ(0, harvest(self));
}

/* What the kernel writes for the guest is logged as well: string input, and moves from devices. */
TEST_F(dirty_log, emulated_writes)
{
	struct kvm_regs regs;
	int reason;

	guest_load(&self->vm, emulated);
	set_slot(self, KVM_MEM_LOG_DIRTY_PAGES);
	regs = vcpu_regs(&self->vcpu);
	regs.rip = GUEST_CODE;
	regs.rsi = GUEST_MMIO;
	regs.rdi = GUEST_HIGH + 7 * PAGE - 4;
	regs.rcx = 8;
	vcpu_set_regs(&self->vcpu, &regs);
	while ((reason = vcpu_run(&self->vcpu)) == KVM_EXIT_IO && self->vcpu.run->io.port == 0xe8)
		memset(vcpu_io_data(&self->vcpu), 0x5a, self->vcpu.run->io.size * self->vcpu.run->io.count);
	ASSERT_EQ(KVM_EXIT_IO, reason);
	ASSERT_EQ(PORT_SYNC, self->vcpu.run->io.port);
	EXPECT_EQ(2, harvest(self));
	EXPECT_TRUE(logged(self, 6));
	EXPECT_TRUE(logged(self, 7));
	EXPECT_EQ(0x5a5a5a5a5a5a5a5a, *(uint64_t *)(self->memory + 7 * PAGE - 4));
	while ((reason = vcpu_run(&self->vcpu)) == KVM_EXIT_MMIO)
		memset(self->vcpu.run->mmio.data, 0xa5, 8);
	ASSERT_EQ(KVM_EXIT_IO, reason);
	EXPECT_EQ(1, harvest(self));
	EXPECT_TRUE(logged(self, 7));
	EXPECT_EQ(0xa5a5a5a5a5a5a5a5, *(uint64_t *)(self->memory + 7 * PAGE + 4));
}

TEST_F(dirty_log, read_only_and_moved)
{
	set_slot(self, KVM_MEM_LOG_DIRTY_PAGES);
	write_pages(self, 1, 1, 1);
	/* The log goes with the slot. */
	ASSERT_EQ(0, vm_set_region(&self->vm, 1, KVM_MEM_LOG_DIRTY_PAGES, GUEST_HIGH + SIZE, SIZE, self->memory));
	write_pages(self, PAGES + 2, 1, 1);
	EXPECT_EQ(2, harvest(self));
	EXPECT_EQ(6, self->log[0]);
	ASSERT_EQ(0, vm_set_region(&self->vm, 1, 0, 0, 0, NULL));
	EXPECT_EQ(-ENOENT, get_log(&self->vm, 1, self->log));
	ASSERT_EQ(0, vm_set_region(&self->vm, 1, KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY, GUEST_HIGH, SIZE, self->memory));
	EXPECT_EQ(0, harvest(self));
	/* A new slot has a new log. */
	ASSERT_EQ(0, vm_set_region(&self->vm, 1, 0, 0, 0, NULL));
	set_slot(self, KVM_MEM_LOG_DIRTY_PAGES);
	EXPECT_EQ(0, harvest(self));
}

TEST_F(dirty_log, cleared_by_hand)
{
	uint64_t part[WORDS] = { 0 };

	ASSERT_EQ(0, set_protect(&self->vm, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE));
	set_slot(self, KVM_MEM_LOG_DIRTY_PAGES);
	write_pages(self, 0, 1, PAGES);
	EXPECT_EQ(PAGES, harvest(self));
	EXPECT_EQ(PAGES, harvest(self));
	/* Bits that are cleared, in the second word of the log, and nothing else. */
	part[0] = 0xf0;
	ASSERT_EQ(0, clear_log(&self->vm, 1, 64, 64, part));
	EXPECT_EQ(PAGES - 4, harvest(self));
	EXPECT_EQ(~0xf0ull, self->log[1]);
	/* Written to again: only those are new. */
	write_pages(self, 64 + 5, 1, 2);
	EXPECT_EQ(PAGES - 2, harvest(self));
	EXPECT_EQ(~0x90ull, self->log[1]);
	memset(part, 0xff, sizeof(part));
	ASSERT_EQ(0, clear_log(&self->vm, 1, 0, PAGES, part));
	EXPECT_EQ(0, harvest(self));
	write_pages(self, 0, 2, PAGES / 2);
	EXPECT_EQ(PAGES / 2, harvest(self));
	ASSERT_EQ(0, clear_log(&self->vm, 1, 0, PAGES, self->log));
	EXPECT_EQ(0, harvest(self));
	/* Back to a log that is cleared by asking for it. */
	ASSERT_EQ(0, set_protect(&self->vm, 0));
	write_pages(self, 0, 2, 4);
	EXPECT_EQ(4, harvest(self));
	EXPECT_EQ(0, harvest(self));
}

TEST_F(dirty_log, initially_set)
{
	uint64_t all[WORDS];

	memset(all, 0xff, sizeof(all));
	madvise(self->memory, SIZE, MADV_HUGEPAGE);
	ASSERT_EQ(0, set_protect(&self->vm, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET));
	set_slot(self, 0);
	write_pages(self, 0, 1, PAGES);
	set_slot(self, KVM_MEM_LOG_DIRTY_PAGES);
	EXPECT_EQ(PAGES, harvest(self));
	write_pages(self, 0, 1, PAGES);
	/* Half of them: from there on their writes are seen. */
	ASSERT_EQ(0, clear_log(&self->vm, 1, PAGES / 2, PAGES / 2, all));
	EXPECT_EQ(PAGES / 2, harvest(self));
	write_pages(self, 0, 3, PAGES / 3);
	EXPECT_EQ(PAGES / 2 + PAGES / 6, harvest(self));
	ASSERT_EQ(0, clear_log(&self->vm, 1, 0, PAGES, all));
	write_pages(self, 1, 16, PAGES / 16);
	EXPECT_EQ(PAGES / 16, harvest(self));
}

TEST_F(dirty_log, bad_arguments)
{
	const uint64_t known = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;
	struct kvm_enable_cap flagged = { .cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, .flags = 1, .args = { 1 } };
	uint64_t *edge = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	ASSERT_NE(MAP_FAILED, edge);
	munmap((uint8_t *)edge + PAGE, PAGE);
	EXPECT_EQ(known, try_ioctl(self->vm.fd, KVM_CHECK_EXTENSION, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2));
	EXPECT_EQ(-EINVAL, set_protect(&self->vm, KVM_DIRTY_LOG_INITIALLY_SET));
	EXPECT_EQ(-EINVAL, set_protect(&self->vm, known << 1));
	EXPECT_EQ(-EINVAL, set_protect(&self->vm, 1ull << 63 | 1));
	EXPECT_EQ(-EINVAL, try_ioctl(self->vm.fd, KVM_ENABLE_CAP, &flagged));
	EXPECT_EQ(-EFAULT, try_ioctl(self->vm.fd, KVM_GET_DIRTY_LOG, NULL));
	EXPECT_EQ(-EFAULT, try_ioctl(self->vm.fd, KVM_CLEAR_DIRTY_LOG, NULL));
	EXPECT_EQ(-ENOENT, get_log(&self->vm, 1, self->log));
	set_slot(self, 0);
	EXPECT_EQ(-ENOENT, get_log(&self->vm, 1, self->log));
	EXPECT_EQ(-ENOENT, clear_log(&self->vm, 1, 0, 64, self->log));
	set_slot(self, KVM_MEM_LOG_DIRTY_PAGES);
	EXPECT_EQ(-ENOENT, get_log(&self->vm, 1 << 16 | 1, self->log));
	EXPECT_EQ(-EINVAL, get_log(&self->vm, 2 << 16 | 1, self->log));
	EXPECT_EQ(-EINVAL, get_log(&self->vm, 40000, self->log));
	EXPECT_EQ(-EINVAL, clear_log(&self->vm, ~0u, 0, 64, self->log));
	EXPECT_EQ(-EINVAL, clear_log(&self->vm, 1, 1, 64, self->log));
	EXPECT_EQ(-EINVAL, clear_log(&self->vm, 1, 0, 63, self->log));
	EXPECT_EQ(-EINVAL, clear_log(&self->vm, 1, 64, PAGES, self->log));
	EXPECT_EQ(-EINVAL, clear_log(&self->vm, 1, PAGES + 64, 0, self->log));
	EXPECT_EQ(-EINVAL, clear_log(&self->vm, 1, ~63ull, 64, self->log));
	EXPECT_EQ(-EINVAL, clear_log(&self->vm, 1, 0, ~0u, self->log));
	EXPECT_EQ(0, clear_log(&self->vm, 1, PAGES, 0, self->log));
	/* A bitmap that isn't there, or not whole: nothing is lost by it. */
	write_pages(self, 0, 1, PAGES);
	EXPECT_EQ(-EFAULT, get_log(&self->vm, 1, NULL));
	EXPECT_EQ(-EFAULT, get_log(&self->vm, 1, (void *)-8ul));
	EXPECT_EQ(-EFAULT, get_log(&self->vm, 1, edge + PAGE / 8 - 1));
	EXPECT_EQ(-EFAULT, clear_log(&self->vm, 1, 0, PAGES, edge + PAGE / 8 - 1));
	EXPECT_EQ(PAGES, harvest(self));
	write_pages(self, 0, 1, 8);
	EXPECT_EQ(8, harvest(self));
}

/* A slot whose pages aren't a multiple of 64: bits beyond its end are 0, and clearing them does nothing. */
TEST_F(dirty_log, odd_size)
{
	uint64_t all[2] = { ~0ull, ~0ull };

	ASSERT_EQ(0, set_protect(&self->vm, 3));
	ASSERT_EQ(0, vm_set_region(&self->vm, 1, KVM_MEM_LOG_DIRTY_PAGES, GUEST_HIGH, 67 * PAGE, self->memory));
	memset(self->log, 0xaa, sizeof(self->log));
	ASSERT_EQ(0, get_log(&self->vm, 1, self->log));
	EXPECT_EQ(~0ull, self->log[0]);
	EXPECT_EQ(7, self->log[1]);
	EXPECT_EQ(0xaaaaaaaaaaaaaaaa, self->log[2]);
	EXPECT_EQ(-EINVAL, clear_log(&self->vm, 1, 0, 66, all));
	EXPECT_EQ(-EINVAL, clear_log(&self->vm, 1, 0, 68, all));
	EXPECT_EQ(0, clear_log(&self->vm, 1, 64, 3, all));
	EXPECT_EQ(0, clear_log(&self->vm, 1, 0, 67, all));
	ASSERT_EQ(0, get_log(&self->vm, 1, self->log));
	EXPECT_EQ(0, bits(self->log, 2));
	write_pages(self, 60, 1, 7);
	ASSERT_EQ(0, get_log(&self->vm, 1, self->log));
	EXPECT_EQ(0xfull << 60, self->log[0]);
	EXPECT_EQ(7, self->log[1]);
}

static volatile bool working;

static void *run_guest(void *argument)
{
	struct vcpu *vcpu = argument;

	let_signal_interrupt(SIGUSR1);
	while (working) {
		int reason = vcpu_run(vcpu);

		/* An access to memory whose slot is away for the moment is tried again. */
		if (reason != -EINTR && reason != -EFAULT && reason != -EAGAIN && reason != KVM_EXIT_MMIO) {
			vcpu_dump(vcpu);
			fatal("exit %s (%d)", exit_name(reason), reason);
		}
	}
	return NULL;
}

/* Turns logging of another slot on and off, takes it away and adds it, and drops its memory. */
static void *churn(void *argument)
{
	FIXTURE_DATA(dirty_log) *self = argument;
	uint8_t *other = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t seed = random_seed(), log[MIB / PAGE / 64];

	while (working) {
		uint32_t flags = random_next(&seed) & KVM_MEM_LOG_DIRTY_PAGES;

		vm_set_region(&self->vm, 2, flags, OTHER, random_next(&seed) % 4 ? MIB : 0, other);
		get_log(&self->vm, 2, log);
		madvise(other, MIB, MADV_DONTNEED);
		sched_yield();
	}
	munmap(other, MIB);
	return NULL;
}

/* Changes of how the memory is mapped that leave its contents alone. */
static void *remap(void *argument)
{
	FIXTURE_DATA(dirty_log) *self = argument;
	uint64_t seed = random_seed();

	while (working) {
		uint8_t *at = self->memory + random_next(&seed) % PAGES * PAGE;

		switch (random_next(&seed) % 4) {
		case 0:
			madvise(self->memory, SIZE, MADV_COLLAPSE);
			break;
		case 1:
			mprotect(at, PAGE, PROT_READ);
			sched_yield();
			mprotect(at, PAGE, PROT_READ | PROT_WRITE);
			break;
		case 2:
			madvise(self->memory, SIZE, MADV_COLD);
			break;
		default:
			mlock(at, PAGE);
			munlock(at, PAGE);
		}
		sched_yield();
	}
	return NULL;
}

/* Copies what the log says was written to. */
static unsigned long collect(FIXTURE_DATA(dirty_log) *self, uint8_t *copy, bool manual)
{
	unsigned long count = harvest(self);

	if (manual && clear_log(&self->vm, 1, 0, PAGES, self->log))
		fatal("KVM_CLEAR_DIRTY_LOG");
	for (int i = 0; i < PAGES; i++)
		if (logged(self, i))
			memcpy(copy + i * PAGE, self->memory + i * PAGE, PAGE);
	return count;
}

static void migrate(struct __test_metadata *_metadata, FIXTURE_DATA(dirty_log) *self, void *(*disturb)(void *), bool manual)
{
	uint8_t *copy = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unsigned long rounds = 0, pages = 0;
	struct kvm_regs regs;
	pthread_t guest, other;
	uint64_t end;

	guest_load(&self->vm, scribble);
	set_slot(self, 0);
	regs = vcpu_regs(&self->vcpu);
	regs.rip = GUEST_CODE;
	regs.rax = random_seed() | 1;
	regs.rsi = GUEST_HIGH;
	regs.rdi = SIZE / 8 - 1;
	vcpu_set_regs(&self->vcpu, &regs);
	working = true;
	ASSERT_EQ(0, pthread_create(&guest, NULL, run_guest, &self->vcpu));
	ASSERT_EQ(0, pthread_create(&other, NULL, disturb, self));
	for (end = now_ns() + scaled(200) * 1000000; now_ns() < end; )
		sched_yield();
	set_slot(self, KVM_MEM_LOG_DIRTY_PAGES);
	memcpy(copy, self->memory, SIZE);
	for (end = now_ns() + scaled(2500) * 1000000; now_ns() < end; rounds++)
		pages += collect(self, copy, manual);
	working = false;
	self->vcpu.run->immediate_exit = 1;
	pthread_kill(guest, SIGUSR1);
	pthread_join(guest, NULL);
	pthread_join(other, NULL);
	pages += collect(self, copy, manual);
	TH_LOG("%lu harvests, %lu pages, %llu writes", rounds, pages, vcpu_regs(&self->vcpu).rdx);
	EXPECT_NE(0, pages);
	for (int i = 0; i < PAGES; i++) {
		ASSERT_EQ(0, memcmp(copy + i * PAGE, self->memory + i * PAGE, PAGE)) TH_LOG("page %d", i);
	}
}

TEST_F(dirty_log, nothing_lost_while_slots_change)
{
	migrate(_metadata, self, churn, false);
}

TEST_F(dirty_log, nothing_lost_while_memory_is_remapped)
{
	migrate(_metadata, self, remap, false);
}

TEST_F(dirty_log, nothing_lost_when_cleared_by_hand)
{
	ASSERT_EQ(0, set_protect(&self->vm, 3));
	migrate(_metadata, self, remap, true);
}

TEST_F(dirty_log, nothing_lost_of_large_pages)
{
	madvise(self->memory, SIZE, MADV_HUGEPAGE);
	ASSERT_EQ(0, set_protect(&self->vm, 3));
	migrate(_metadata, self, churn, true);
}

/* The memory of a bitmap comes back, and one that is too large is refused. */
TEST_F(dirty_log, largest)
{
	const uint64_t size = ((1ull << 31) - 1) * PAGE;
	int result;

	/* 8 TiB: 256 MiB of bitmap, which this machine may or may not have. */
	result = vm_set_region(&self->vm, 2, KVM_MEM_LOG_DIRTY_PAGES, 1ull << 40, size, (void *)(1ul << 40));
	EXPECT_TRUE(result == 0 || result == -ENOMEM) TH_LOG("%d", result);
	EXPECT_EQ(result ? -EINVAL : 0, vm_set_region(&self->vm, 2, 0, 0, 0, NULL));
	EXPECT_EQ(-EINVAL, vm_set_region(&self->vm, 2, KVM_MEM_LOG_DIRTY_PAGES, 1ull << 40, size + PAGE, (void *)(1ul << 40)));
}

XVM_TEST_MAIN
