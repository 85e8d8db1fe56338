// SPDX-License-Identifier: GPL-2.0
/* guest_memfd: KVM_CREATE_GUEST_MEMFD, and slots that are a part of such a file. */
#include "test.h"
#include <linux/falloc.h>
#include <sys/stat.h>

#define PAGE 4096ul
#define SIZE (64 * PAGE)
#define FLAGS (GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED)

/* Adds RAX to the word at RSI. */
GUEST_CODE64(add, 1: add %rax, (%rsi); GUEST_SYNC; jmp 1b);

FIXTURE(guest_memfd)
{
	struct vm vm;
	struct vcpu vcpu;
	int fd;
	uint8_t *memory;
};

static int create(struct vm *vm, uint64_t size, uint64_t flags)
{
	struct kvm_create_guest_memfd request = { .size = size, .flags = flags };

	return try_ioctl(vm->fd, KVM_CREATE_GUEST_MEMFD, &request);
}

static int bind_slot(struct vm *vm, uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t size, int fd, uint64_t offset)
{
	struct kvm_userspace_memory_region2 region = {
		.slot = slot, .flags = KVM_MEM_GUEST_MEMFD | flags, .guest_phys_addr = gpa, .memory_size = size, .guest_memfd = fd,
		.guest_memfd_offset = offset,
	};

	return try_ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION2, &region);
}

FIXTURE_SETUP(guest_memfd)
{
	guest_start(&self->vm, &self->vcpu, add);
	self->fd = create(&self->vm, SIZE, FLAGS);
	ASSERT_LE(0, self->fd);
	self->memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd, 0);
	ASSERT_NE(MAP_FAILED, self->memory);
}

FIXTURE_TEARDOWN(guest_memfd)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

static int add_word(FIXTURE_DATA(guest_memfd) *self, uint64_t gpa, uint64_t value)
{
	struct kvm_regs regs = vcpu_regs(&self->vcpu);

	regs.rip = GUEST_CODE;
	regs.rsi = gpa;
	regs.rax = value;
	vcpu_set_regs(&self->vcpu, &regs);
	return vcpu_run(&self->vcpu);
}

/* The guest, this process and a second mapping see the same pages; a hole is gone for all. */
TEST_F(guest_memfd, one_memory)
{
	volatile uint64_t *word = (uint64_t *)(self->memory + 5 * PAGE);
	volatile uint64_t *other;

	ASSERT_EQ(0, bind_slot(&self->vm, 1, 0, GUEST_HIGH, 8 * PAGE, self->fd, 4 * PAGE));
	other = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, self->fd, 5 * PAGE);
	ASSERT_NE(MAP_FAILED, other);
	*word = 40;
	EXPECT_EQ(KVM_EXIT_IO, add_word(self, GUEST_HIGH + PAGE, 2));
	EXPECT_EQ(42, *word);
	EXPECT_EQ(42, *other);
	/* First used by the guest. */
	EXPECT_EQ(KVM_EXIT_IO, add_word(self, GUEST_HIGH + 2 * PAGE, 7));
	EXPECT_EQ(7, word[PAGE / 8]);
	for (int round = 1; round < 20; round++) {
		ASSERT_EQ(0, fallocate(self->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 5 * PAGE, PAGE));
		if (round % 2)
			EXPECT_EQ(0, *word);
		EXPECT_EQ(KVM_EXIT_IO, add_word(self, GUEST_HIGH + PAGE, round));
		EXPECT_EQ(round, *word);
		EXPECT_EQ(round, *other);
	}
	EXPECT_EQ(7, word[PAGE / 8]);
	/* Another slot, another part. */
	ASSERT_EQ(0, bind_slot(&self->vm, 2, 0, GUEST_HIGH + 8 * PAGE, PAGE, self->fd, 0));
	EXPECT_EQ(KVM_EXIT_IO, add_word(self, GUEST_HIGH + 8 * PAGE, 9));
	EXPECT_EQ(9, *(uint64_t *)self->memory);
	/* Without the slot there is nothing; with it the same again. */
	ASSERT_EQ(0, bind_slot(&self->vm, 1, 0, 0, 0, -1, 0));
	EXPECT_EQ(KVM_EXIT_MMIO, add_word(self, GUEST_HIGH + PAGE, 1));
	EXPECT_EQ(KVM_EXIT_MMIO, vcpu_run(&self->vcpu));
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	ASSERT_EQ(0, bind_slot(&self->vm, 1, 0, GUEST_HIGH, 8 * PAGE, self->fd, 4 * PAGE));
	EXPECT_EQ(KVM_EXIT_IO, add_word(self, GUEST_HIGH + PAGE, 1));
	EXPECT_EQ(20, *word);
}

/* Memory that is closed is gone: the guest's access is an error, not a page that somebody else has by now. */
TEST_F(guest_memfd, closed)
{
	ASSERT_EQ(0, bind_slot(&self->vm, 1, 0, GUEST_HIGH, SIZE, self->fd, 0));
	EXPECT_EQ(KVM_EXIT_IO, add_word(self, GUEST_HIGH, 1));
	close(self->fd);
	/* The mapping is the last that holds it. */
	EXPECT_EQ(KVM_EXIT_IO, add_word(self, GUEST_HIGH, 1));
	EXPECT_EQ(2, *(uint64_t *)self->memory);
	munmap(self->memory, SIZE);
	EXPECT_EQ(-EFAULT, add_word(self, GUEST_HIGH, 1));
	EXPECT_EQ(KVM_EXIT_MEMORY_FAULT, self->vcpu.run->exit_reason);
	EXPECT_EQ(GUEST_HIGH, self->vcpu.run->memory_fault.gpa);
	EXPECT_EQ(-EBADF, bind_slot(&self->vm, 2, 0, GUEST_HIGH + SIZE, SIZE, self->fd, 0));
	EXPECT_EQ(0, bind_slot(&self->vm, 1, 0, 0, 0, -1, 0));
}

/* The file keeps what it needs when its VM is closed first. */
TEST_F(guest_memfd, outlives_its_vm)
{
	struct vm vm = vm_create();
	int fd = create(&vm, SIZE, FLAGS);

	ASSERT_EQ(0, bind_slot(&vm, 1, 0, GUEST_HIGH, SIZE, fd, 0));
	/* Not this VM's. */
	EXPECT_EQ(-EINVAL, bind_slot(&self->vm, 1, 0, GUEST_HIGH, SIZE, fd, 0));
	vm_free(&vm);
	EXPECT_EQ(0, fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, SIZE));
	EXPECT_EQ(0, fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, SIZE));
	close(fd);
}

TEST_F(guest_memfd, bad_arguments)
{
	int null = open("/dev/null", O_RDWR);
	struct stat stat;
	char byte = 0;

	EXPECT_EQ(1, device_extension(KVM_CAP_GUEST_MEMFD));
	EXPECT_EQ(FLAGS, device_extension(KVM_CAP_GUEST_MEMFD_FLAGS));
	EXPECT_EQ(-EFAULT, try_ioctl(self->vm.fd, KVM_CREATE_GUEST_MEMFD, NULL));
	EXPECT_EQ(-EINVAL, create(&self->vm, 0, 0));
	EXPECT_EQ(-EINVAL, create(&self->vm, PAGE - 1, 0));
	EXPECT_EQ(-EINVAL, create(&self->vm, 1ul << 63, 0));
	EXPECT_EQ(-EINVAL, create(&self->vm, -PAGE, 0));
	EXPECT_EQ(-EINVAL, create(&self->vm, PAGE, 1ul << 63));
	EXPECT_EQ(-EINVAL, create(&self->vm, PAGE, FLAGS + 1));
	ASSERT_EQ(0, fstat(self->fd, &stat));
	EXPECT_EQ(SIZE, stat.st_size);
	EXPECT_GT(0, read(self->fd, &byte, 1));
	EXPECT_GT(0, write(self->fd, &byte, 1));
	EXPECT_GT(0, ftruncate(self->fd, 0));
	EXPECT_EQ(MAP_FAILED, mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, self->fd, 0));
	/* Slots that don't fit the file, or are none. */
	EXPECT_EQ(-EINVAL, bind_slot(&self->vm, 1, 0, GUEST_HIGH, SIZE, null, 0));
	EXPECT_EQ(-EINVAL, bind_slot(&self->vm, 1, 0, GUEST_HIGH, SIZE, self->vm.fd, 0));
	EXPECT_EQ(-EBADF, bind_slot(&self->vm, 1, 0, GUEST_HIGH, SIZE, 12345, 0));
	EXPECT_EQ(-EINVAL, bind_slot(&self->vm, 1, 0, GUEST_HIGH, SIZE, self->fd, PAGE));
	EXPECT_EQ(-EINVAL, bind_slot(&self->vm, 1, 0, GUEST_HIGH, SIZE + PAGE, self->fd, 0));
	EXPECT_EQ(-EINVAL, bind_slot(&self->vm, 1, 0, GUEST_HIGH, PAGE, self->fd, 1));
	EXPECT_EQ(-EINVAL, bind_slot(&self->vm, 1, 0, GUEST_HIGH, PAGE, self->fd, -PAGE));
	EXPECT_EQ(-EINVAL, bind_slot(&self->vm, 1, KVM_MEM_READONLY, GUEST_HIGH, SIZE, self->fd, 0));
	EXPECT_EQ(-EINVAL, bind_slot(&self->vm, 1, KVM_MEM_LOG_DIRTY_PAGES, GUEST_HIGH, SIZE, self->fd, 0));
	EXPECT_EQ(-EINVAL, vm_set_region(&self->vm, 1, KVM_MEM_GUEST_MEMFD, GUEST_HIGH, SIZE, NULL));
	EXPECT_EQ(-EEXIST, bind_slot(&self->vm, 1, 0, 0, SIZE, self->fd, 0));
	/* A page is one slot's, and the slot stays as it is. */
	ASSERT_EQ(0, bind_slot(&self->vm, 1, 0, GUEST_HIGH, 2 * PAGE, self->fd, PAGE));
	EXPECT_EQ(-EEXIST, bind_slot(&self->vm, 2, 0, GUEST_HIGH + SIZE, 2 * PAGE, self->fd, 2 * PAGE));
	EXPECT_EQ(-EINVAL, bind_slot(&self->vm, 1, 0, GUEST_HIGH, 2 * PAGE, self->fd, PAGE));
	EXPECT_EQ(-EINVAL, bind_slot(&self->vm, 1, 0, GUEST_HIGH + SIZE, 2 * PAGE, self->fd, PAGE));
	EXPECT_EQ(-EINVAL, vm_set_region(&self->vm, 1, 0, GUEST_HIGH, 2 * PAGE, NULL));
	EXPECT_EQ(-EINVAL, vm_set_region(&self->vm, 1, KVM_MEM_LOG_DIRTY_PAGES, GUEST_HIGH, 2 * PAGE, NULL));
	EXPECT_EQ(0, vm_set_region(&self->vm, 1, 0, 0, 0, NULL));
	EXPECT_EQ(0, bind_slot(&self->vm, 2, 0, GUEST_HIGH, SIZE, self->fd, 0));
	close(null);
}

/* Holes under a running guest and a writing process: what each adds goes to a page that both see, or to none. */
static volatile bool working;

static void *punch(void *argument)
{
	FIXTURE_DATA(guest_memfd) *self = argument;
	uint64_t seed = random_seed();

	while (working) {
		if (fallocate(self->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, random_next(&seed) % 4 * PAGE, PAGE))
			fatal("fallocate: %s", strerror(errno));
		((volatile uint8_t *)self->memory)[random_next(&seed) % 4 * PAGE + 100] = 1;
	}
	return NULL;
}

TEST_F(guest_memfd, holes_while_running)
{
	unsigned long count = 0;
	pthread_t thread;

	ASSERT_EQ(0, bind_slot(&self->vm, 1, 0, GUEST_HIGH, SIZE, self->fd, 0));
	working = true;
	ASSERT_EQ(0, pthread_create(&thread, NULL, punch, self));
	for (uint64_t end = now_ns() + scaled(1500) * 1000000; now_ns() < end; count++)
		ASSERT_EQ(KVM_EXIT_IO, add_word(self, GUEST_HIGH + count % 4 * PAGE, 1));
	working = false;
	pthread_join(thread, NULL);
	for (int i = 0; i < 4; i++) {
		uint64_t before = *(volatile uint64_t *)(self->memory + i * PAGE);

		EXPECT_EQ(KVM_EXIT_IO, add_word(self, GUEST_HIGH + i * PAGE, 1));
		EXPECT_EQ(before + 1, *(volatile uint64_t *)(self->memory + i * PAGE));
	}
	TH_LOG("%lu additions", count);
}

/* Pages come back: those of a hole, of a closed file and of one that its VM's slots were bound to. */
TEST_F(guest_memfd, freed)
{
	const uint64_t size = 16 << 20;
	long before = meminfo("MemFree"), least = before;

	for (int round = 0; round < 12; round++) {
		int fd = create(&self->vm, size, FLAGS);

		ASSERT_EQ(0, fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, size));
		ASSERT_EQ(0, bind_slot(&self->vm, 1, 0, GUEST_HIGH, size, fd, 0));
		EXPECT_EQ(KVM_EXIT_IO, add_word(self, GUEST_HIGH, 1));
		least = meminfo("MemFree") < least ? meminfo("MemFree") : least;
		if (round % 2)
			ASSERT_EQ(0, fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, size));
		close(fd);
		ASSERT_EQ(0, vm_set_region(&self->vm, 1, 0, 0, 0, NULL));
	}
	EXPECT_LT(12 << 10, before - least);
	/* Of 192 MiB; what was freed last may be in the CPUs' lists. */
	EXPECT_GT(64 << 10, before - meminfo("MemFree"));
}

XVM_TEST_MAIN
