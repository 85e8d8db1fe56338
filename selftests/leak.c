// SPDX-License-Identifier: GPL-2.0
/* VMs with everything in them are made, run and closed many times: the kernel's memory is as much as before. */
#include "test.h"

GUEST_CODE64(busy,
	mov $GUEST_HIGH, %esi; 1: incl (%rsi); add $0x1000, %esi; cmp $(GUEST_HIGH + 0x400000), %esi; jb 1b;
	mov GUEST_MMIO, %eax; out %al, $PORT_DONE; hlt);

struct use {
	long free, slab, tables, percpu;
};

/* Free pages in the lists of the CPUs, which MemFree does not count and nothing empties, in KiB. */
static long in_cpu_lists(void)
{
	FILE *file = fopen("/proc/zoneinfo", "r");
	char line[256];
	long pages = 0, count;

	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, " count: %ld", &count) == 1)
			pages += count;
	if (file)
		fclose(file);
	return pages * (getpagesize() / 1024);
}

static struct use measure(void)
{
	/* Caches are given back first, for what root may do. */
	int fd = open("/proc/sys/vm/drop_caches", O_WRONLY);

	sync();
	if (fd >= 0) {
		if (write(fd, "3", 1) < 0)
			fatal("drop_caches: %s", strerror(errno));
		close(fd);
	}
	return (struct use){ meminfo("MemFree") + in_cpu_lists(), meminfo("SUnreclaim"), meminfo("PageTables") + meminfo("SecPageTables"), meminfo("Percpu") };
}

/* Does it a quarter as often first: caches fill. Then what is gone must be far less than a VM has. */
static void check(struct __test_metadata *_metadata, unsigned long count, void (*cycle)(unsigned long i))
{
	struct use before, after = { 0 };

	for (unsigned long i = 0; i <= count / 4; i++)
		cycle(i);
	before = measure();
	for (unsigned long i = 0; i < count; i++)
		cycle(i);
	/* RCU and work queues free late: until it is back, or is not coming back. */
	for (uint64_t end = now_ns() + 5000000000; now_ns() < end; sched_yield()) {
		after = measure();
		if (after.free > before.free - 1024 && after.slab < before.slab + 512)
			break;
	}
	TH_LOG("%lu times: free %+ld KiB, slab %+ld KiB, page tables %+ld KiB, per-CPU %+ld KiB", count, after.free - before.free,
	       after.slab - before.slab, after.tables - before.tables, after.percpu - before.percpu);
	/* A page for each time is a leak; below that it is noise of a system with other things to do. */
	EXPECT_GT(after.free, before.free - 1024 - 4 * (long)count);
	EXPECT_LT(after.slab, before.slab + 512 + (long)count);
	EXPECT_LT(after.tables, before.tables + 256);
	EXPECT_LT(after.percpu, before.percpu + 256);
}

static void whole_vm(unsigned long i)
{
	struct vm vm = vm_create();
	struct kvm_pit_config pit = { 0 };
	void *memory;
	struct vcpu vcpu;

	if (i & 1) {
		vm_create_irqchip(&vm);
		do_ioctl(vm.fd, KVM_CREATE_PIT2, &pit);
	}
	memory = vm_add_memory(&vm, 1, GUEST_HIGH, 0x400000);
	/* Freed huge pages stay in per-CPU lists, which nothing empties. */
	madvise(memory, 0x400000, MADV_NOHUGEPAGE);
	vcpu = vcpu_create(&vm, 0);
	vcpu_set_supported_cpuid(&vcpu);
	guest_load(&vm, busy);
	guest_set_mode(&vcpu, MODE_LONG);
	vcpu_run_to(&vcpu, KVM_EXIT_MMIO);
	/* Half of them end in the middle of an MMIO access. */
	if (i & 2)
		vcpu_run_to_port(&vcpu, PORT_DONE);
	vcpu_free(&vcpu);
	vm_free(&vm);
	munmap(memory, 0x400000);
}

TEST(whole_vms)
{
	check(_metadata, scaled(30), whole_vm);
}

static void many_vcpus(unsigned long i)
{
	struct vm vm = vm_create_bare();

	if (i & 1)
		vm_create_irqchip(&vm);
	for (int id = 0; id < 16; id++) {
		struct vcpu vcpu = vcpu_create(&vm, id);

		vcpu_free(&vcpu);
	}
	vm_free(&vm);
}

TEST(vcpus)
{
	check(_metadata, scaled(20), many_vcpus);
}

/* The same slot again and again in one VM, with its tables filled each time. */
static struct vm slots_vm;
static struct vcpu slots_vcpu;
static uint8_t *slots_memory;

static void fill_slot(unsigned long i)
{
	if (vm_set_region(&slots_vm, 1, 0, GUEST_HIGH, 0x400000, slots_memory))
		fatal("slot 1 could not be added");
	guest_set_mode(&slots_vcpu, MODE_LONG);
	vcpu_run_to(&slots_vcpu, KVM_EXIT_MMIO);
	vcpu_run_to_port(&slots_vcpu, PORT_DONE);
	if (vm_set_region(&slots_vm, 1, 0, 0, 0, NULL))
		fatal("slot 1 could not be deleted");
}

TEST(slots)
{
	guest_start(&slots_vm, &slots_vcpu, busy);
	slots_memory = mmap(NULL, 0x400000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	madvise(slots_memory, 0x400000, MADV_NOHUGEPAGE);
	memset(slots_memory, 1, 0x400000);
	check(_metadata, scaled(100), fill_slot);
}

/* What fails half-way leaves nothing. */
static void failures(unsigned long i)
{
	struct vm vm = vm_create_bare();
	struct rlimit none = { 0, 0 }, many;

	getrlimit(RLIMIT_NOFILE, &many);
	none.rlim_max = many.rlim_max;
	setrlimit(RLIMIT_NOFILE, &none);
	/* No file descriptor is left for it. */
	if (try_ioctl(vm.device, KVM_CREATE_VM, 0) != -EMFILE || try_ioctl(vm.fd, KVM_CREATE_VCPU, 0) != -EMFILE)
		fatal("not EMFILE");
	setrlimit(RLIMIT_NOFILE, &many);
	vm_free(&vm);
}

TEST(creation_that_fails)
{
	check(_metadata, scaled(60), failures);
}

XVM_TEST_MAIN
