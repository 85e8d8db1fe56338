// SPDX-License-Identifier: GPL-2.0
/*
 * Random ioctls with random arguments on all three kinds of files, with a guest that runs in between and threads that do it
 * at once, for some seconds. The host lives and does not complain (the runner reads its log); a new VM works.
 *
 * SELFTEST_SEED reproduces a run.
 */
#include "test.h"

enum fd_kind { SYSTEM, VM, VCPU };

static const struct {
	unsigned long request;
	enum fd_kind fd;
} ioctls[] = {
#define IMPLEMENTED(name, fd) { name, fd },
#define REFUSED(name, fd) { name, fd },
#define ABSENT(name, fd)
#define XVM_IOCTL(name, fd, state, error) state(name, fd)
#include "../uapi/abi.h"
};

GUEST_CODE64(some_work,
	sti; 1: mov $0x180, %edx; mov $GUEST_FREE, %esi; mov $20, %ecx; rep outsb; mov GUEST_MMIO, %eax; mov %rax, GUEST_MMIO + 8; xor %eax, %eax; cpuid;
	sti; nop; cli; mov %cr8, %rax; rdtsc; inc %rbx; test $0xf, %ebx; jnz 1b; hlt; jmp 1b);

#define SIZE 8192

/* Argument bytes: random, mostly zeros, or what the ioctl's own GET has left there, with some bytes changed. */
static void mutate(uint64_t *seed, uint8_t *bytes, size_t size)
{
	switch (random_next(seed) % 4) {
	case 0:
		for (size_t i = 0; i < size; i += 8) {
			uint64_t value = random_next(seed);

			memcpy(bytes + i, &value, 8);
		}
		break;
	case 1:
		memset(bytes, 0, size);
		/* fall through */
	default:
		for (int i = random_next(seed) % 8; i; i--)
			bytes[random_next(seed) % 256] = random_next(seed) >> 32;
		/* Counts are at the start of most. */
		if (random_next(seed) & 1)
			*(uint32_t *)bytes = random_next(seed) % 300;
	}
}

static uint64_t random_argument(uint64_t *seed, uint8_t *bytes)
{
	switch (random_next(seed) % 16) {
	case 0: return 0;
	case 1: return random_next(seed);
	case 2: return random_next(seed) % 64;
	case 3: return 0xffff888000000000 | random_next(seed) >> 24;
	/* The end of what is mapped. */
	case 4: return (uintptr_t)bytes + SIZE - random_next(seed) % 64;
	default: return (uintptr_t)bytes;
	}
}

static struct vm vm;
static struct vcpu vcpus[2];

static void *fuzz(void *argument)
{
	uint64_t seed = (random_seed() ^ (uintptr_t)argument << 40) | 1, end = now_ns() + scaled(1000) * 1000000;
	uint8_t *bytes = mmap(NULL, SIZE + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unsigned long count = 0;

	munmap(bytes + SIZE, 4096);
	for (; now_ns() < end; count++) {
		unsigned int i = random_next(&seed) % ARRAY_SIZE(ioctls);
		struct vcpu *vcpu = &vcpus[random_next(&seed) & 1];
		int fd = ioctls[i].fd == SYSTEM ? vm.device : ioctls[i].fd == VM ? vm.fd : vcpu->fd;
		unsigned long request = ioctls[i].request;
		int result;

		/* On the wrong file, or with a number that is a bit off. */
		if (random_next(&seed) % 32 == 0)
			fd = vm.fd;
		if (random_next(&seed) % 32 == 0)
			request ^= 1ul << random_next(&seed) % 32;
		if (request == KVM_RUN || random_next(&seed) % 8 == 0) {
			/* Often with a state that lets the guest run. */
			if (random_next(&seed) & 1)
				guest_set_mode_if_possible(vcpu, random_next(&seed) % MODE_COUNT);
			vcpu->run->immediate_exit = random_next(&seed) % 4 == 0;
			vcpu->run->cr8 = random_next(&seed) % 16;
			try_ioctl(vcpu->fd, KVM_RUN, 0);
			continue;
		}
		mutate(&seed, bytes, SIZE);
		result = try_ioctl(fd, request, random_argument(&seed, bytes));
		/* VMs and vCPUs that came of it. */
		if (result > 2 && (request == KVM_CREATE_VM || request == KVM_CREATE_VCPU))
			close(result);
	}
	return (void *)count;
}

static void fuzz_one_vm(unsigned int round)
{
	struct itimerval timer = { .it_value.tv_usec = 5000, .it_interval.tv_usec = 5000 };
	pthread_t thread;
	void *count;

	vm = vm_create();
	if (round & 1)
		vm_create_irqchip(&vm);
	for (int i = 0; i < 2; i++) {
		vcpus[i] = vcpu_create(&vm, i);
		vcpu_set_supported_cpuid(&vcpus[i]);
	}
	guest_load(&vm, some_work);
	/* Memory that hostile regions can't take from the program itself. */
	let_signal_interrupt(SIGALRM);
	setitimer(ITIMER_REAL, &timer, NULL);
	if (pthread_create(&thread, NULL, fuzz, (void *)(uintptr_t)(round * 2 + 1)))
		fatal("pthread_create: %s", strerror(errno));
	count = fuzz((void *)(uintptr_t)(round * 2 + 2));
	printf("# round %u: %lu ioctls\n", round, (unsigned long)count);
	_exit(0);
}

static void wait_or_kill(pid_t child, uint64_t end)
{
	uint64_t limit = end + 10000000000;
	int status;

	while (waitpid(child, &status, WNOHANG) == 0) {
		if (now_ns() > limit)
			fatal("process %d can't be killed", child);
		if (now_ns() > end)
			kill(child, SIGKILL);
		sched_yield();
	}
}

TEST(random_ioctls)
{
	struct vm fresh;
	struct vcpu vcpu;

	/* A process each: a guest whose memory is the process's own may overwrite it, which ends it, and that is all right. */
	for (unsigned int round = 0; round < 5; round++) {
		pid_t child = fork();

		if (!child)
			fuzz_one_vm(round);
		/* It may have blocked every signal, and wait for a guest that halts for ever; but it can be killed. */
		wait_or_kill(child, now_ns() + scaled(1500) * 1000000);
	}
	guest_start(&fresh, &vcpu, some_work);
	vcpu_run_to(&vcpu, KVM_EXIT_IO);
}

/* The device's file alone, with any number at all. */
TEST(random_numbers)
{
	uint64_t seed = random_seed();
	int device = device_open();
	uint8_t *bytes = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int machine = do_ioctl(device, KVM_CREATE_VM, 0);
	int vcpu = do_ioctl(machine, KVM_CREATE_VCPU, 0);

	for (unsigned long i = 0; i < scaled(30000); i++) {
		int fd = i % 3 == 0 ? device : i % 3 == 1 ? machine : vcpu;
		uint32_t request = i & 1 ? random_next(&seed) : _IOC(random_next(&seed) & 3, KVMIO, random_next(&seed) & 0xff, random_next(&seed) & 0x1ff);
		int result;

		if (request == KVM_RUN)
			continue;
		mutate(&seed, bytes, SIZE);
		result = try_ioctl(fd, request, random_argument(&seed, bytes));
		if (result > 2 && fd != vcpu)
			close(result == vcpu || result == machine || result == device ? -1 : result);
	}
	EXPECT_EQ(12, try_ioctl(device, KVM_GET_API_VERSION, 0));
}

XVM_TEST_MAIN
