// SPDX-License-Identifier: GPL-2.0
/*
 * Everything that Linux does to a process's memory, done to the guest's memory while the guest runs in it and checks it.
 *
 * The guest walks through its pages: in each it finds the page's pattern, or zeros if the VMM has dropped it, and writes
 * the pattern again. Anything else is UD2. At the end, after one more whole walk, the VMM must find every pattern: a guest
 * that had written to a page which is no longer the VMM's would leave zeros here.
 */
#include "test.h"
#include <sys/wait.h>
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

#define PAGE 4096ul
#define MIB (1024 * 1024ul)
#define SIZE (4 * MIB)	/* 0x400000 in the assembly */
#define PAGES (SIZE / PAGE)
#define KEY 0x5bd1e995

/* R8: the page, R9: its pattern, R12: walks so far. */
GUEST_CODE64(walk,
	xor %r12d, %r12d; xor %ebp, %ebp;
1:	mov $GUEST_HIGH, %r8d; mov $KEY, %r9d;
2:	mov (%r8), %rax; test %rax, %rax; jz 3f; cmp %r9, %rax; jne 9f;
	mov 0xff8(%r8), %rax; test %rax, %rax; jz 3f; cmp %r9, %rax; jne 9f;
3:	mov %r9, (%r8); mov %r9, 0xff8(%r8);
	add $KEY, %r9; add $0x1000, %r8; cmp $(GUEST_HIGH + 0x400000), %r8; jb 2b;
	inc %r12; out %al, $PORT_SYNC; jmp 1b;
9:	ud2);

FIXTURE(dynamic)
{
	struct vm vm;
	struct vcpu vcpu;
	uint8_t *memory;
	pthread_t thread;
};

static volatile bool working;
static volatile unsigned long walks, faults;

/* The vCPU's thread: an access to memory that is just not there is EFAULT, and is tried again. */
static void *run_guest(void *argument)
{
	struct vcpu *vcpu = argument;

	while (working) {
		int reason = vcpu_run(vcpu);

		if (reason == -EFAULT || reason == KVM_EXIT_MEMORY_FAULT) {
			faults++;
			sched_yield();
		} else if (reason == KVM_EXIT_IO && vcpu->run->io.port == PORT_SYNC) {
			walks++;
		} else if (reason != -EINTR && reason != -EAGAIN) {
			vcpu_dump(vcpu);
			fatal("exit %s (%d): page %#llx has %#llx instead of %#llx", exit_name(reason), reason, vcpu_regs(vcpu).r8,
			      vcpu_regs(vcpu).rax, vcpu_regs(vcpu).r9);
		}
	}
	return NULL;
}

FIXTURE_SETUP(dynamic)
{
	guest_start(&self->vm, &self->vcpu, walk);
	/* Aligned, so that it can be huge pages on both levels. */
	self->memory = mmap(NULL, SIZE + 2 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(MAP_FAILED, self->memory);
	self->memory += -((uintptr_t)self->memory + GUEST_HIGH) & (2 * MIB - 1);
	ASSERT_EQ(0, vm_set_region(&self->vm, 1, 0, GUEST_HIGH, SIZE, self->memory));
	walks = faults = 0;
	working = true;
	ASSERT_EQ(0, pthread_create(&self->thread, NULL, run_guest, &self->vcpu));
}

FIXTURE_TEARDOWN(dynamic)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

static void wait_for_walks(unsigned long count)
{
	unsigned long until = walks + count;
	uint64_t end = now_ns() + 20000000000;

	while (walks < until) {
		if (now_ns() > end)
			fatal("the guest does not get on: %lu walks, %lu faults", walks, faults);
		sched_yield();
	}
}

/* Does something to random pieces of the memory while the guest walks, then looks at every page. */
static void disturb(struct __test_metadata *_metadata, FIXTURE_DATA(dynamic) *self, void (*what)(uint8_t *at, size_t size), size_t least,
		    size_t most)
{
	uint64_t seed = random_seed(), end;
	unsigned long count = 0;

	wait_for_walks(2);
	for (end = now_ns() + scaled(600) * 1000000; now_ns() < end; count++) {
		size_t size = least + random_next(&seed) % (most / least) * least;
		size_t offset = random_next(&seed) % (SIZE / least) * least;

		if (offset + size > SIZE)
			size = SIZE - offset;
		what(self->memory + offset, size);
	}
	/* One that was under way, and a whole one. */
	wait_for_walks(2);
	working = false;
	pthread_join(self->thread, NULL);
	TH_LOG("%lu times; %lu walks, %lu faults", count, walks, faults);
	for (uint64_t i = 0; i < PAGES; i++) {
		ASSERT_EQ(KEY * (i + 1), *(uint64_t *)(self->memory + i * PAGE)) TH_LOG("page %lu", i);
		ASSERT_EQ(KEY * (i + 1), *(uint64_t *)(self->memory + i * PAGE + PAGE - 8)) TH_LOG("page %lu", i);
	}
}

static void advise(uint8_t *at, size_t size, int advice)
{
	/* Some advice cannot be followed at once, or is not known to this kernel: that is no failure here. */
	if (madvise(at, size, advice) && errno != EAGAIN && errno != EINVAL && errno != EBUSY && errno != ENOMEM)
		fatal("madvise %d: %s", advice, strerror(errno));
}

static void drop(uint8_t *at, size_t size)
{
	advise(at, size, MADV_DONTNEED);
}

TEST_F(dynamic, dontneed)
{
	disturb(_metadata, self, drop, PAGE, 64 * PAGE);
}

static void drop_lazily(uint8_t *at, size_t size)
{
	advise(at, size, MADV_FREE);
}

TEST_F(dynamic, free)
{
	disturb(_metadata, self, drop_lazily, PAGE, 64 * PAGE);
}

/* Pieces of huge pages go: the rest is split. */
TEST_F(dynamic, huge_page_split)
{
	advise(self->memory, SIZE, MADV_HUGEPAGE);
	disturb(_metadata, self, drop, PAGE, PAGE * 2);
}

static void collapse(uint8_t *at, size_t size)
{
	uint8_t *whole = (uint8_t *)((uintptr_t)at & ~(2 * MIB - 1));

	advise(at, PAGE, MADV_DONTNEED);
	advise(whole, 2 * MIB, MADV_COLLAPSE);
}

TEST_F(dynamic, huge_page_collapse)
{
	advise(self->memory, SIZE, MADV_HUGEPAGE);
	disturb(_metadata, self, collapse, PAGE, PAGE * 2);
}

static void replace(uint8_t *at, size_t size)
{
	if (munmap(at, size))
		fatal("munmap: %s", strerror(errno));
	/* The guest may meet the hole. */
	sched_yield();
	if (mmap(at, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != at)
		fatal("mmap: %s", strerror(errno));
}

TEST_F(dynamic, munmap)
{
	disturb(_metadata, self, replace, PAGE, 64 * PAGE);
}

static void protect(uint8_t *at, size_t size)
{
	static unsigned int round;

	if (mprotect(at, size, round++ & 1 ? PROT_NONE : PROT_READ))
		fatal("mprotect: %s", strerror(errno));
	sched_yield();
	if (mprotect(at, size, PROT_READ | PROT_WRITE))
		fatal("mprotect: %s", strerror(errno));
}

TEST_F(dynamic, mprotect)
{
	disturb(_metadata, self, protect, PAGE, 64 * PAGE);
}

static void move_away_and_back(uint8_t *at, size_t size)
{
	/* Page by page: what has moved is a mapping of its own, and one call takes one mapping. */
	for (uint8_t *end = at + size; at < end; at += PAGE) {
		uint8_t *other = mremap(at, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);

		if (other == MAP_FAILED)
			fatal("mremap: %s", strerror(errno));
		if (mremap(other, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at) != at)
			fatal("mremap back: %s", strerror(errno));
	}
}

TEST_F(dynamic, mremap)
{
	disturb(_metadata, self, move_away_and_back, PAGE, 8 * PAGE);
}

static void page_out(uint8_t *at, size_t size)
{
	advise(at, size, MADV_PAGEOUT);
}

/* Anonymous memory goes to swap, if the machine has some or can have a RAM disk for it. */
#define SWAP_ON "grep -q / /proc/swaps || { modprobe zram; test -b /dev/zram0 && echo 64M >/sys/block/zram0/disksize && " \
		"mkswap /dev/zram0 && swapon /dev/zram0; }"
#define SWAP_OFF "swapoff /dev/zram0; echo 1 >/sys/block/zram0/reset"

static void run_quietly(const char *command)
{
	char line[512];

	snprintf(line, sizeof(line), "{ %s; } >/dev/null 2>&1", command);
	/* It may fail: the test looks at what there is afterwards. */
	if (system(line) < 0)
		fatal("system: %s", strerror(errno));
}

TEST_F(dynamic, swap_out)
{
	bool had_swap = meminfo("SwapTotal") > 0;

	run_quietly(SWAP_ON);
	if (meminfo("SwapTotal") < (long)(SIZE / 1024))
		SKIP(working = false; pthread_join(self->thread, NULL); return, "no swap space, and no zram to make some");
	disturb(_metadata, self, page_out, PAGE, 256 * PAGE);
	if (!had_swap)
		run_quietly(SWAP_OFF);
}

/* A child has the memory too, copy on write, and writes garbage to its own. */
static void fork_and_scribble(uint8_t *at, size_t size)
{
	pid_t child = fork();
	int status;

	if (!child) {
		memset(at, 0xa5, size);
		_exit(*(volatile uint8_t *)(at + size - 1) == 0xa5 ? 0 : 1);
	}
	/* The parent's write may be the one that copies. */
	if (waitpid(child, &status, 0) != child || status)
		fatal("the child ended with %#x", status);
}

TEST_F(dynamic, fork)
{
	disturb(_metadata, self, fork_and_scribble, PAGE, 64 * PAGE);
}

/* Equal pages are merged behind the guest's back (KSM), and its writes part them. */
static void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	if (fd >= 0) {
		if (write(fd, text, strlen(text)) < 0)
			fatal("%s: %s", path, strerror(errno));
		close(fd);
	}
}

TEST_F(dynamic, merged_pages)
{
	if (access("/sys/kernel/mm/ksm/run", W_OK))
		SKIP(working = false; pthread_join(self->thread, NULL); return, "no KSM here");
	write_file("/sys/kernel/mm/ksm/pages_to_scan", "2000");
	write_file("/sys/kernel/mm/ksm/sleep_millisecs", "1");
	write_file("/sys/kernel/mm/ksm/run", "1");
	advise(self->memory, SIZE, MADV_MERGEABLE);
	/* Zeros are equal. */
	disturb(_metadata, self, drop, PAGE, 256 * PAGE);
	write_file("/sys/kernel/mm/ksm/run", "2");
	write_file("/sys/kernel/mm/ksm/run", "0");
}

/* Pages move in physical memory: compaction, all of it. */
static void compact(uint8_t *at, size_t size)
{
	write_file("/proc/sys/vm/compact_memory", "1");
	advise(at, size, MADV_DONTNEED);
}

TEST_F(dynamic, compaction)
{
	if (access("/proc/sys/vm/compact_memory", W_OK))
		SKIP(working = false; pthread_join(self->thread, NULL); return, "compaction is for root");
	disturb(_metadata, self, compact, PAGE, 64 * PAGE);
}

/* A file's pages: it is cut, and grown again. */
TEST(truncated_file)
{
	int file = memfd_create("memory", 0);
	unsigned long count = 0;
	pthread_t thread;
	struct vcpu vcpu;
	struct vm vm;
	uint8_t *memory;

	guest_start(&vm, &vcpu, walk);
	ASSERT_EQ(0, ftruncate(file, SIZE));
	memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	ASSERT_EQ(0, vm_set_region(&vm, 1, 0, GUEST_HIGH, SIZE, memory));
	walks = faults = 0;
	working = true;
	ASSERT_EQ(0, pthread_create(&thread, NULL, run_guest, &vcpu));
	for (uint64_t end = now_ns() + scaled(600) * 1000000; now_ns() < end; count++) {
		ASSERT_EQ(0, ftruncate(file, SIZE / 2));
		ASSERT_EQ(0, ftruncate(file, SIZE));
	}
	wait_for_walks(2);
	working = false;
	pthread_join(thread, NULL);
	TH_LOG("%lu times; %lu walks, %lu faults", count, walks, faults);
	for (uint64_t i = 0; i < PAGES; i++) {
		ASSERT_EQ(KEY * (i + 1), *(uint64_t *)(memory + i * PAGE)) TH_LOG("page %lu", i);
	}
}

XVM_TEST_MAIN
