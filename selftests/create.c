// SPDX-License-Identifier: GPL-2.0
/* VMs and vCPUs come and go: limits, ids, file descriptors that outlive each other, fork, SIGKILL, mmap's edges. */
#include "test.h"
#include <sys/syscall.h>

TEST(ids)
{
	struct vm vm = vm_create_bare();
	int limit = try_ioctl(vm.device, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPU_ID), fd;

	if (limit <= 0)
		limit = try_ioctl(vm.device, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS);
	fd = try_ioctl(vm.fd, KVM_CREATE_VCPU, 0);
	EXPECT_GE(fd, 0);
	EXPECT_EQ(-EEXIST, try_ioctl(vm.fd, KVM_CREATE_VCPU, 0));
	EXPECT_GE(try_ioctl(vm.fd, KVM_CREATE_VCPU, limit - 1), 0);
	EXPECT_EQ(-EEXIST, try_ioctl(vm.fd, KVM_CREATE_VCPU, limit - 1));
	EXPECT_EQ(-EINVAL, try_ioctl(vm.fd, KVM_CREATE_VCPU, limit));
	EXPECT_EQ(-EINVAL, try_ioctl(vm.fd, KVM_CREATE_VCPU, 0x7fffffff));
	EXPECT_EQ(-EINVAL, try_ioctl(vm.fd, KVM_CREATE_VCPU, -1ul));
	/* An id stays taken when its file is closed. */
	close(fd);
	EXPECT_EQ(-EEXIST, try_ioctl(vm.fd, KVM_CREATE_VCPU, 0));
}

TEST(as_many_as_promised)
{
	struct vm vm = vm_create_bare();
	int limit = try_ioctl(vm.device, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS);

	if (limit > 2000)
		SKIP(return, "%d vCPUs are too many for this machine", limit);
	for (int i = 0; i < limit; i++) {
		int fd = try_ioctl(vm.fd, KVM_CREATE_VCPU, i);

		ASSERT_GE(fd, 0) TH_LOG("vCPU %d: %d", i, fd);
		close(fd);
	}
	EXPECT_EQ(-EINVAL, try_ioctl(vm.fd, KVM_CREATE_VCPU, limit));
}

TEST(irqchip_order)
{
	struct vm vm = vm_create_bare();
	struct kvm_pit_config pit = { 0 };
	int fd;

	EXPECT_EQ(-ENOENT, try_ioctl(vm.fd, KVM_CREATE_PIT2, &pit));
	EXPECT_EQ(0, try_ioctl(vm.fd, KVM_CREATE_IRQCHIP, 0));
	EXPECT_EQ(-EEXIST, try_ioctl(vm.fd, KVM_CREATE_IRQCHIP, 0));
	EXPECT_EQ(0, try_ioctl(vm.fd, KVM_CREATE_PIT2, &pit));
	EXPECT_EQ(-EEXIST, try_ioctl(vm.fd, KVM_CREATE_PIT2, &pit));
	EXPECT_EQ(-EFAULT, try_ioctl(vm.fd, KVM_CREATE_PIT2, 8));
	vm_free(&vm);

	vm = vm_create_bare();
	fd = try_ioctl(vm.fd, KVM_CREATE_VCPU, 0);
	EXPECT_GE(fd, 0);
	EXPECT_EQ(-EINVAL, try_ioctl(vm.fd, KVM_CREATE_IRQCHIP, 0));
}

GUEST_CODE64(count, 1: inc %rbx; out %al, $PORT_SYNC; jmp 1b);

/* A vCPU runs on when all other files of its VM are closed. */
TEST(vcpu_outlives_vm)
{
	struct vm vm;
	struct vcpu vcpu;

	guest_start(&vm, &vcpu, count);
	close(vm.device);
	close(vm.fd);
	for (int i = 1; i <= 10; i++) {
		vcpu_run_to_port(&vcpu, PORT_SYNC);
		EXPECT_EQ(i, vcpu_regs(&vcpu).rbx);
	}
	close(vcpu.fd);
	/* The run pages outlive even that. */
	EXPECT_EQ(KVM_EXIT_IO, vcpu.run->exit_reason);
	vcpu.run->immediate_exit = 1;
	EXPECT_EQ(0, munmap(vcpu.run, vcpu.run_size));
}

TEST(every_order_of_closing)
{
	for (int order = 0; order < 24; order++) {
		struct vm vm;
		struct vcpu vcpu;
		int left[] = { 0, 1, 2, 3 }, n = order;

		guest_start(&vm, &vcpu, count);
		vcpu_run_to_port(&vcpu, PORT_SYNC);
		for (int remaining = 4; remaining; remaining--) {
			int pick = n % remaining;

			n /= remaining;
			switch (left[pick]) {
			case 0: EXPECT_EQ(0, close(vm.device)); break;
			case 1: EXPECT_EQ(0, close(vm.fd)); break;
			case 2: EXPECT_EQ(0, close(vcpu.fd)); break;
			case 3: EXPECT_EQ(0, munmap(vm.memory, vm.memory_size)); break;
			}
			left[pick] = left[remaining - 1];
		}
		EXPECT_EQ(0, munmap(vcpu.run, vcpu.run_size));
	}
}

TEST(duplicates)
{
	struct vm vm;
	struct vcpu vcpu;
	int other;

	guest_start(&vm, &vcpu, count);
	other = dup(vcpu.fd);
	close(vcpu.fd);
	vcpu.fd = other;
	vcpu_run_to_port(&vcpu, PORT_SYNC);
	other = dup(vm.fd);
	close(vm.fd);
	EXPECT_GE(try_ioctl(other, KVM_CREATE_VCPU, 1), 0);
	close(other);
	vcpu_run_to_port(&vcpu, PORT_SYNC);
}

/* A VM belongs to the address space that made it: in a child process its ioctls fail, the parent's go on. */
TEST(other_process)
{
	struct vm vm;
	struct vcpu vcpu;
	int status;
	pid_t child;

	guest_start(&vm, &vcpu, count);
	vcpu_run_to_port(&vcpu, PORT_SYNC);
	child = fork();
	if (!child) {
		struct kvm_regs regs;
		bool right = try_ioctl(vcpu.fd, KVM_RUN, 0) == -EIO && try_ioctl(vcpu.fd, KVM_GET_REGS, &regs) == -EIO &&
			     try_ioctl(vm.fd, KVM_CREATE_VCPU, 1) == -EIO && try_ioctl(vm.fd, KVM_CREATE_IRQCHIP, 0) == -EIO &&
			     vm_set_region(&vm, 1, 0, GUEST_HIGH, 0x1000, vm.memory) == -EIO;

		/* A new one is its own. */
		_exit(right && try_ioctl(vm.device, KVM_CREATE_VM, 0) >= 0 ? 0 : 1);
	}
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_EQ(0, status);
	vcpu_run_to_port(&vcpu, PORT_SYNC);
	EXPECT_EQ(2, vcpu_regs(&vcpu).rbx);
}

/* The child holds the last references when the parent is gone: it must be able to drop them. */
TEST(child_closes_last)
{
	pid_t parent;
	int status, ready[2];
	char byte;

	ASSERT_EQ(0, pipe(ready));
	parent = fork();
	if (!parent) {
		struct vm vm;
		struct vcpu vcpu;

		guest_start(&vm, &vcpu, count);
		vcpu_run_to_port(&vcpu, PORT_SYNC);
		if (!fork()) {
			/* Ends when the pipe's reader has seen the parent go. */
			if (write(ready[1], "c", 1) != 1)
				_exit(1);
			while (getppid() != 1)
				sched_yield();
			close(vcpu.fd);
			close(vm.fd);
			if (write(ready[1], "d", 1) != 1)
				_exit(1);
		}
		_exit(0);
	}
	close(ready[1]);
	ASSERT_EQ(1, read(ready[0], &byte, 1));
	ASSERT_EQ(parent, waitpid(parent, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_EQ(1, read(ready[0], &byte, 1));
	EXPECT_EQ('d', byte);
	/* The end of the pipe: the child is through. */
	EXPECT_EQ(0, read(ready[0], &byte, 1));
}

/* Walks through all of its memory, for ever. */
GUEST_CODE64(touch_all,
1:	mov $GUEST_FREE, %edi;
2:	incl (%rdi);
	add $0x1000, %edi;
	cmp $GUEST_MEMORY, %edi;
	jb 2b;
	mov $GUEST_HIGH, %edi;
3:	incl (%rdi);
	add $0x1000, %edi;
	cmp $(GUEST_HIGH + 0x400000), %edi;
	jb 3b;
	out %al, $PORT_SYNC;
	jmp 1b);

static void *run_for_ever(void *argument)
{
	struct vcpu *vcpu = argument;

	for (;;)
		vcpu_run(vcpu);
	return NULL;
}

static void victim(void)
{
	struct vcpu vcpus[2];
	struct vm vm;
	pthread_t thread;

	guest_start(&vm, &vcpus[0], touch_all);
	vcpus[1] = vcpu_create(&vm, 1);
	vcpu_set_supported_cpuid(&vcpus[1]);
	guest_set_mode(&vcpus[1], MODE_LONG);
	vm_add_memory(&vm, 1, GUEST_HIGH, 0x400000);
	pthread_create(&thread, NULL, run_for_ever, &vcpus[1]);
	run_for_ever(&vcpus[0]);
}

/* SIGKILL at any time, from the first ioctl to a guest that runs: all is freed. */
TEST(kill_at_random)
{
	uint64_t state = random_seed();
	long before = 0, after;

	for (unsigned long round = 0; round < scaled(40); round++) {
		pid_t child = fork();
		uint64_t end = now_ns() + random_next(&state) % 30000000;
		int status;

		if (!child) {
			victim();
			_exit(0);
		}
		while (now_ns() < end)
			sched_yield();
		EXPECT_EQ(0, kill(child, SIGKILL));
		EXPECT_EQ(child, waitpid(child, &status, 0));
		EXPECT_TRUE(WIFSIGNALED(status));
		/* The first rounds fill caches. */
		if (round == scaled(40) / 4)
			before = meminfo("MemFree");
	}
	after = meminfo("MemFree");
	/* A guest has 5 MiB: one in ten left behind would show. */
	EXPECT_GT(after, before - 16 * 1024) TH_LOG("free memory went from %ld to %ld KiB", before, after);
}

/* While one thread makes vCPUs, another closes the numbers that their files will get (CVE-2019-6974). */
static volatile bool closing;

static void *close_numbers(void *argument)
{
	int first = *(int *)argument;

	while (closing)
		for (int fd = first; fd < first + 4; fd++)
			close(fd);
	return NULL;
}

TEST(close_before_return)
{
	int device = device_open(), first = device + 1;
	pthread_t thread;

	closing = true;
	ASSERT_EQ(0, pthread_create(&thread, NULL, close_numbers, &first));
	for (unsigned long i = 0; i < scaled(150); i++) {
		int vm = try_ioctl(device, KVM_CREATE_VM, 0);

		if (vm < 0)
			continue;
		for (int id = 0; id < 3; id++)
			try_ioctl(vm, KVM_CREATE_VCPU, id);
		close(vm);
	}
	closing = false;
	pthread_join(thread, NULL);
	EXPECT_EQ(12, try_ioctl(device, KVM_GET_API_VERSION, 0));
}

/* Many threads make vCPUs of one VM at once: each id once. */
static struct vm shared;
static int made;

static void *make_vcpus(void *unused)
{
	for (int id = 0; id < 32; id++) {
		int fd = try_ioctl(shared.fd, KVM_CREATE_VCPU, id);

		if (fd >= 0)
			__atomic_add_fetch(&made, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

TEST(parallel_creation)
{
	pthread_t threads[4];

	shared = vm_create_bare();
	for (int i = 0; i < 4; i++)
		pthread_create(&threads[i], NULL, make_vcpus, NULL);
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	EXPECT_EQ(32, made);
}

/* Beyond the run pages there is nothing: mmap() refuses, or the access is a SIGBUS. */
TEST_SIGNAL(mmap_beyond, SIGBUS)
{
	struct vm vm = vm_create_bare();
	struct vcpu vcpu = vcpu_create(&vm, 0);
	volatile char *beyond = mmap(NULL, 4096, PROT_READ, MAP_SHARED, vcpu.fd, vcpu.run_size);

	if (beyond == MAP_FAILED)
		raise(SIGBUS);
	(void)*beyond;
}

TEST_SIGNAL(mmap_too_long, SIGBUS)
{
	struct vm vm = vm_create_bare();
	struct vcpu vcpu = vcpu_create(&vm, 0);
	volatile char *pages = mmap(NULL, vcpu.run_size + 4096, PROT_READ, MAP_SHARED, vcpu.fd, 0);

	if (pages == MAP_FAILED)
		raise(SIGBUS);
	for (size_t i = 0; i < vcpu.run_size; i += 4096)
		(void)pages[i];
	(void)pages[vcpu.run_size];
}

TEST(mmap_variants)
{
	struct vm vm = vm_create_bare();
	struct vcpu vcpu = vcpu_create(&vm, 0);
	struct kvm_run *other = mmap(NULL, vcpu.run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu.fd, 0);

	/* Two mappings are the same pages; a part of one can be unmapped. */
	ASSERT_NE(MAP_FAILED, other);
	vcpu.run->cr8 = 11;
	EXPECT_EQ(11, other->cr8);
	EXPECT_EQ(0, munmap((char *)other + 4096, 4096));
	other->cr8 = 3;
	EXPECT_EQ(3, vcpu.run->cr8);
	/* A VM has no pages of its own. */
	EXPECT_EQ(MAP_FAILED, mmap(NULL, 4096, PROT_READ, MAP_SHARED, vm.fd, 0));
	EXPECT_EQ(MAP_FAILED, mmap(NULL, vcpu.run_size, PROT_READ, MAP_SHARED, vcpu.fd, -4096ul));
}

/* A machine without memory: the first fetch can't succeed, and that is told. */
TEST(no_memory)
{
	struct vm vm = vm_create_bare();
	struct vcpu vcpu = vcpu_create(&vm, 0);
	int reason = vcpu_run(&vcpu);

	EXPECT_TRUE(reason == KVM_EXIT_INTERNAL_ERROR || reason == KVM_EXIT_SHUTDOWN || reason == KVM_EXIT_MMIO)
		TH_LOG("exit %s (%d)", exit_name(reason), reason);
}

/* Another kind of file in the place of one of ours. */
TEST(foreign_descriptors)
{
	int null = open("/dev/null", O_RDWR);

	EXPECT_EQ(-ENOTTY, try_ioctl(null, KVM_RUN, 0));
	EXPECT_EQ(-EBADF, try_ioctl(-1, KVM_RUN, 0));
}

/* Addresses that VMMs of CPUs without unrestricted guest reserve. */
TEST(reserved_addresses)
{
	struct vm vm = vm_create_bare();
	uint64_t identity_map = 0xfffbc000, zero = 0;

	EXPECT_EQ(0, try_ioctl(vm.fd, KVM_SET_TSS_ADDR, 0xfffbd000));
	EXPECT_EQ(-EINVAL, try_ioctl(vm.fd, KVM_SET_TSS_ADDR, 0xfffffffful));
	EXPECT_EQ(0, try_ioctl(vm.fd, KVM_SET_IDENTITY_MAP_ADDR, &identity_map));
	EXPECT_EQ(0, try_ioctl(vm.fd, KVM_SET_IDENTITY_MAP_ADDR, &zero));
	EXPECT_EQ(-EFAULT, try_ioctl(vm.fd, KVM_SET_IDENTITY_MAP_ADDR, 8));
	EXPECT_GE(try_ioctl(vm.fd, KVM_CREATE_VCPU, 0), 0);
	EXPECT_EQ(-EINVAL, try_ioctl(vm.fd, KVM_SET_IDENTITY_MAP_ADDR, &identity_map));
}

XVM_TEST_MAIN
