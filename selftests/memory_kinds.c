// SPDX-License-Identifier: GPL-2.0
/* Memory that is not just anonymous: huge pages, files, copies on write, and mappings without struct pages (CVE-2021-22543). */
#include "test.h"

#define MIB (1024 * 1024ul)
#define SIZE (2 * MIB)

FIXTURE(kinds)
{
	struct vm vm;
	struct vcpu vcpu;
};

/* Reads a word at RSI, writes RCX behind it if RDX is not 0. */
GUEST_CODE64(touch, 1: mov (%rsi), %rax; test %edx, %edx; jz 2f; mov %rcx, 8(%rsi); 2: out %al, $PORT_SYNC; jmp 1b);

FIXTURE_SETUP(kinds)
{
	guest_start(&self->vm, &self->vcpu, touch);
}

FIXTURE_TEARDOWN(kinds)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

#define UNREACHABLE 1

/* 0 and what the guest read, or UNREACHABLE if the VMM's mapping does not allow it; anything else is fatal. */
static int guest_access(FIXTURE_DATA(kinds) *self, uint64_t address, bool write, uint64_t *value)
{
	struct kvm_regs regs;
	int reason;

	guest_set_mode(&self->vcpu, MODE_LONG);
	regs = vcpu_regs(&self->vcpu);
	regs.rsi = address;
	regs.rcx = 0x1122334455667788;
	regs.rdx = write;
	vcpu_set_regs(&self->vcpu, &regs);
	reason = vcpu_run(&self->vcpu);
	if (reason == -EFAULT || reason == KVM_EXIT_MEMORY_FAULT)
		return UNREACHABLE;
	if (reason != KVM_EXIT_IO || self->vcpu.run->io.port != PORT_SYNC) {
		vcpu_dump(&self->vcpu);
		fatal("exit %s (%d)", exit_name(reason), reason);
	}
	if (value)
		*value = vcpu_regs(&self->vcpu).rax;
	return 0;
}

#define add(memory, size) ASSERT_EQ(0, vm_set_region(&self->vm, 1, 0, GUEST_HIGH, size, memory))

TEST_F(kinds, huge_pages)
{
	uint64_t *memory, value;
	int fd = open("/proc/sys/vm/nr_hugepages", O_WRONLY);

	if (fd < 0 || write(fd, "2", 1) != 1)
		SKIP(return, "huge pages are for root");
	memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	if (memory == MAP_FAILED)
		SKIP(return, "no huge page is free");
	memory[0] = 0xabc;
	add(memory, SIZE);
	ASSERT_EQ(0, guest_access(self, GUEST_HIGH, true, &value));
	EXPECT_EQ(0xabc, value);
	EXPECT_EQ(0x1122334455667788, memory[1]);
	ASSERT_EQ(0, guest_access(self, GUEST_HIGH + SIZE - 16, true, NULL));
	EXPECT_EQ(0x1122334455667788, memory[SIZE / 8 - 1]);
	ASSERT_EQ(0, munmap(memory, SIZE));
	EXPECT_EQ(UNREACHABLE, guest_access(self, GUEST_HIGH, false, NULL));
	EXPECT_EQ(1, pwrite(fd, "0", 1, 0));
	close(fd);
}

/* A private mapping of a file: the guest's writes are copies, and a read before them sees the file. */
TEST_F(kinds, private_file)
{
	int file = memfd_create("file", 0);
	uint64_t word = 0x777, *memory, value;

	ASSERT_EQ(0, ftruncate(file, SIZE));
	ASSERT_EQ(8, pwrite(file, &word, 8, 0));
	memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
	add(memory, SIZE);
	ASSERT_EQ(0, guest_access(self, GUEST_HIGH, false, &value));
	EXPECT_EQ(0x777, value);
	ASSERT_EQ(0, guest_access(self, GUEST_HIGH, true, NULL));
	EXPECT_EQ(0x1122334455667788, memory[1]);
	ASSERT_EQ(8, pread(file, &word, 8, 8));
	EXPECT_EQ(0, word);
	/* The copy is what the guest has from now on. */
	word = 0x888;
	ASSERT_EQ(8, pwrite(file, &word, 8, 0));
	ASSERT_EQ(0, guest_access(self, GUEST_HIGH, false, &value));
	EXPECT_EQ(0x777, value);
}

/* A file that the VMM can read only: the guest can't write it, whatever the slot says. */
TEST_F(kinds, read_only_file)
{
	int file = open("/proc/self/exe", O_RDONLY);
	uint64_t *memory, value;

	ASSERT_GE(file, 0);
	memory = mmap(NULL, 0x1000, PROT_READ, MAP_SHARED, file, 0);
	ASSERT_NE(MAP_FAILED, memory);
	add(memory, 0x1000);
	ASSERT_EQ(0, guest_access(self, GUEST_HIGH, false, &value));
	EXPECT_EQ(memory[0], value);
	EXPECT_EQ(UNREACHABLE, guest_access(self, GUEST_HIGH, true, NULL));
	EXPECT_NE(0x1122334455667788, memory[1]);
}

/* The zero page is read, and not written: the guest's first write gets a page of its own. */
TEST_F(kinds, zero_page)
{
	uint64_t *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), value = 1;
	uint64_t *other = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	add(memory, SIZE);
	ASSERT_EQ(0, guest_access(self, GUEST_HIGH, false, &value));
	EXPECT_EQ(0, value);
	ASSERT_EQ(0, guest_access(self, GUEST_HIGH, true, NULL));
	EXPECT_EQ(0x1122334455667788, memory[1]);
	for (uint64_t i = 0; i < SIZE / 8; i += 512) {
		EXPECT_EQ(0, other[i + 1]);
	}
}

/* The address of a mapping without struct pages: the kernel's own variables for the vDSO. */
static void *find_mapping(const char *name, bool *writable)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	unsigned long start = 0, end;
	char line[256], rights[5];

	while (fgets(line, sizeof(line), maps)) {
		if (strstr(line, name) && sscanf(line, "%lx-%lx %4s", &start, &end, rights) == 3) {
			*writable = rights[1] == 'w';
			break;
		}
		start = 0;
	}
	fclose(maps);
	return (void *)start;
}

TEST_F(kinds, pages_of_the_kernel)
{
	bool writable = true;
	void *vvar = find_mapping("[vvar]", &writable);
	uint64_t before[512], after[512];

	if (!vvar)
		SKIP(return, "no [vvar] in this process");
	ASSERT_FALSE(writable);
	add(vvar, 0x1000);
	/* Reads may be allowed or not; a write never, nor anything that drops a reference of a page that has none. */
	for (int i = 0; i < 20; i++)
		guest_access(self, GUEST_HIGH + 0x800, false, NULL);
	EXPECT_EQ(UNREACHABLE, guest_access(self, GUEST_HIGH + 0x800, true, NULL));
	memcpy(before, (char *)vvar + 0x800, 16);
	memcpy(after, (char *)vvar + 0x800, 16);
	EXPECT_EQ(0, memcmp(before, after, 16));
	EXPECT_NE(0x1122334455667788, after[1]);
	ASSERT_EQ(0, vm_set_region(&self->vm, 1, 0, 0, 0, NULL));
}

/* Device memory through /dev/mem: the VGA's, which every kernel lets root map. With the mapping goes the guest's access. */
TEST_F(kinds, device_memory)
{
	int fd = open("/dev/mem", O_RDWR | O_SYNC);
	uint64_t *memory = MAP_FAILED, value;

	if (fd >= 0)
		memory = mmap(NULL, 0x10000, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0xa0000);
	if (memory == MAP_FAILED)
		SKIP(return, "no device memory to map");
	add(memory, 0x10000);
	if (guest_access(self, GUEST_HIGH, true, &value))
		SKIP(return, "this device gives guests no device memory");
	for (int i = 0; i < 10; i++) {
		EXPECT_EQ(0, guest_access(self, GUEST_HIGH + i * 0x1000, true, NULL));
	}
	ASSERT_EQ(0, munmap(memory, 0x10000));
	EXPECT_EQ(UNREACHABLE, guest_access(self, GUEST_HIGH, false, NULL));
}

/* A guest that has its own vCPU's run pages for memory, and writes there while the kernel does. */
GUEST_CODE64(scribble_on_run,
	mov $0x9e3779b9, %eax; mov $0x180, %edx; 1: mov $GUEST_HIGH + 8, %esi; 2: imul $1103515245, %eax, %eax; add $12345, %eax; mov %eax, (%rsi); add $4, %esi;
	cmp $(GUEST_HIGH + 0x1000), %esi; jb 2b; in %dx, %al; mov GUEST_MMIO, %ebx; jmp 1b);

TEST_F(kinds, own_run_pages)
{
	struct itimerval timer = { .it_value.tv_usec = 10000, .it_interval.tv_usec = 10000 };

	add(self->vcpu.run, self->vcpu.run_size);
	guest_load(&self->vm, scribble_on_run);
	guest_set_mode(&self->vcpu, MODE_LONG);
	let_signal_interrupt(SIGALRM);
	setitimer(ITIMER_REAL, &timer, NULL);
	for (unsigned long i = 0; i < scaled(300); i++) {
		int result = try_ioctl(self->vcpu.fd, KVM_RUN, 0);

		ASSERT_TRUE(result == 0 || result == -EINTR || result == -EINVAL || result == -EFAULT) TH_LOG("KVM_RUN: %d", result);
		self->vcpu.run->cr8 = 0;
		self->vcpu.run->immediate_exit = 0;
	}
	timer = (struct itimerval){ 0 };
	setitimer(ITIMER_REAL, &timer, NULL);
}

XVM_TEST_MAIN
