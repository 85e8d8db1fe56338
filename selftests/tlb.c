// SPDX-License-Identifier: GPL-2.0
/*
 * Stale translations (CVE-2022-39189 and kin): the VMM puts another page in the place of one that the guest reads all the
 * time, while the vCPU moves between CPUs. After the change no read may come from the old page.
 */
#include "test.h"

/*
 * The VMM counts: it puts page n behind GUEST_HIGH, and only then writes n to FLOOR. The guest reads FLOOR first, then the
 * page, which must not be older. RBX counts the rounds; the report has what was wrong.
 */
#define FLOOR GUEST_DATA

GUEST_CODE64(compare,
	1: mov FLOOR, %rax; mov GUEST_HIGH, %rcx; cmp %rax, %rcx; jb 9f; mov GUEST_HIGH + 0xff8, %rdx; cmp %rax, %rdx; jb 9f;
	inc %rbx; test $0xffff, %ebx; jnz 1b; out %al, $PORT_SYNC; jmp 1b; 9: ud2);

static struct vm vm;
static volatile bool working;
static volatile pid_t runner;

static void *run_guest(void *unused)
{
	struct vcpu vcpu = vcpu_create(&vm, 0);

	vcpu_set_supported_cpuid(&vcpu);
	guest_set_mode(&vcpu, MODE_LONG);
	runner = gettid();
	while (working)
		vcpu_run_to_port(&vcpu, PORT_SYNC);
	return (void *)(uintptr_t)vcpu_regs(&vcpu).rbx;
}

static void *move_guest(void *unused)
{
	unsigned int cpus = cpu_count();

	for (unsigned int i = 0; working; i++) {
		cpu_set_t set;

		CPU_ZERO(&set);
		CPU_SET(i % cpus, &set);
		if (runner)
			sched_setaffinity(runner, sizeof(set), &set);
		sched_yield();
	}
	return NULL;
}

#define PAGES 64

static void check_remapping(struct __test_metadata *_metadata, void (*replace)(uint8_t *place, int file, uint64_t n))
{
	uint64_t end = now_ns() + scaled(2500) * 1000000, n = 0;
	volatile uint64_t *floor;
	pthread_t guest, mover;
	uint8_t *place, *all;
	void *rounds;
	int file;

	vm = vm_create();
	guest_load(&vm, compare);
	floor = vm_at(&vm, FLOOR);
	file = memfd_create("pages", 0);
	ASSERT_EQ(0, ftruncate(file, PAGES * 4096));
	all = mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	place = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	ASSERT_EQ(0, vm_set_region(&vm, 1, 0, GUEST_HIGH, 4096, place));
	working = true;
	ASSERT_EQ(0, pthread_create(&guest, NULL, run_guest, NULL));
	ASSERT_EQ(0, pthread_create(&mover, NULL, move_guest, NULL));
	while (now_ns() < end) {
		uint64_t *page;

		n++;
		/* The new page is complete before it is in place, the old ones keep their old numbers. */
		page = (uint64_t *)(all + n % PAGES * 4096);
		page[0] = page[511] = n;
		replace(place, file, n);
		*floor = n;
	}
	working = false;
	ASSERT_EQ(0, pthread_join(guest, &rounds));
	pthread_join(mover, NULL);
	TH_LOG("%lu pages, %lu reads", n, (unsigned long)rounds);
	EXPECT_GT((uintptr_t)rounds, 0);
	EXPECT_GT(n, 10);
}

static void by_mmap(uint8_t *place, int file, uint64_t n)
{
	if (mmap(place, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, n % PAGES * 4096) != place)
		fatal("mmap: %s", strerror(errno));
}

TEST(replaced_by_mmap)
{
	check_remapping(_metadata, by_mmap);
}

static void by_remap_file_pages(uint8_t *place, int file, uint64_t n)
{
	void *other = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, n % PAGES * 4096);

	if (mremap(other, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, place) != place)
		fatal("mremap: %s", strerror(errno));
}

TEST(replaced_by_mremap)
{
	check_remapping(_metadata, by_remap_file_pages);
}

/* Another slot in the place of the one before: deleted, and added with other memory. The guest waits in between, in userspace. */
static void *run_guest_with_holes(void *unused)
{
	struct vcpu vcpu = vcpu_create(&vm, 0);
	uintptr_t rounds = 0;

	vcpu_set_supported_cpuid(&vcpu);
	guest_set_mode(&vcpu, MODE_LONG);
	runner = gettid();
	while (working) {
		int reason = vcpu_run(&vcpu);

		if (reason == KVM_EXIT_MMIO)
			/* A hole is newer than anything. */
			memset(vcpu.run->mmio.data, 0xff, 8);
		else if (reason != KVM_EXIT_IO || vcpu.run->io.port != PORT_SYNC)
			fatal("exit %s, rbx %#llx rax %#llx rcx %#llx", exit_name(reason), vcpu_regs(&vcpu).rbx, vcpu_regs(&vcpu).rax,
			      vcpu_regs(&vcpu).rcx);
		else
			rounds++;
	}
	return (void *)rounds;
}

TEST(replaced_slot)
{
	uint64_t end = now_ns() + scaled(2500) * 1000000, n = 0;
	volatile uint64_t *floor;
	pthread_t guest, mover;
	uint8_t *all = mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	vm = vm_create();
	guest_load(&vm, compare);
	floor = vm_at(&vm, FLOOR);
	working = true;
	ASSERT_EQ(0, pthread_create(&guest, NULL, run_guest_with_holes, NULL));
	ASSERT_EQ(0, pthread_create(&mover, NULL, move_guest, NULL));
	while (now_ns() < end) {
		uint64_t *page;

		n++;
		page = (uint64_t *)(all + n % PAGES * 4096);
		page[0] = page[511] = n;
		ASSERT_EQ(0, vm_set_region(&vm, 1, 0, GUEST_HIGH, 4096, page));
		*floor = n;
		ASSERT_EQ(0, vm_set_region(&vm, 1, 0, GUEST_HIGH, 0, NULL));
	}
	working = false;
	pthread_join(guest, NULL);
	pthread_join(mover, NULL);
	TH_LOG("%lu slots", n);
	EXPECT_GT(n, 10);
}

XVM_TEST_MAIN
