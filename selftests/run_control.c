// SPDX-License-Identifier: GPL-2.0
/* What ends KVM_RUN: immediate_exit, signals and their mask; and vCPU threads that are preempted and moved about. */
#include "test.h"

FIXTURE(run)
{
	struct vm vm;
	struct vcpu vcpu;
};

/*
 * With interrupts on: Bochs forgets that external interrupts leave the guest whatever its interrupt flag, if the flag is off
 * when it is entered, and the host never gets its CPU back.
 */
GUEST_CODE64(spin, sti; 1: inc %rbx; jmp 1b);

FIXTURE_SETUP(run)
{
	guest_start(&self->vm, &self->vcpu, spin);
}

FIXTURE_TEARDOWN(run)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

TEST_F(run, argument)
{
	EXPECT_EQ(-EINVAL, try_ioctl(self->vcpu.fd, KVM_RUN, 1));
	EXPECT_EQ(-EINVAL, try_ioctl(self->vcpu.fd, KVM_RUN, -1ul));
	EXPECT_EQ(0, vcpu_regs(&self->vcpu).rbx);
}

TEST_F(run, immediate_exit)
{
	self->vcpu.run->immediate_exit = 1;
	for (int i = 0; i < 100; i++) {
		EXPECT_EQ(-EINTR, vcpu_run(&self->vcpu));
	}
	EXPECT_EQ(0, vcpu_regs(&self->vcpu).rbx);
	EXPECT_EQ(1, self->vcpu.run->immediate_exit);
}

/* A signal for the thread while the guest runs: EINTR, and the exit reason says so too. */
static struct vcpu *running;
static volatile int started;

static void *run_thread(void *result)
{
	let_signal_interrupt(SIGUSR1);
	started = 1;
	*(int *)result = vcpu_run(running);
	return NULL;
}

/* Waits until a condition holds. */
#define wait_until(condition) do { \
	uint64_t limit_ = now_ns() + 10000000000; \
	while (!(condition)) { \
		if (now_ns() > limit_) \
			fatal("no end of waiting for " #condition); \
		sched_yield(); \
	} \
} while (0)

TEST_F(run, signal)
{
	for (int i = 0; i < 10; i++) {
		pthread_t thread;
		int result = 0;

		running = &self->vcpu;
		started = 0;
		ASSERT_EQ(0, pthread_create(&thread, NULL, run_thread, &result));
		wait_until(started);
		/* At one time or another it arrives before KVM_RUN, in it, and while the guest runs. */
		for (int j = 0; j < i * 10; j++)
			sched_yield();
		while (pthread_tryjoin_np(thread, NULL)) {
			pthread_kill(thread, SIGUSR1);
			sched_yield();
		}
		EXPECT_EQ(-EINTR, result);
		EXPECT_EQ(KVM_EXIT_INTR, self->vcpu.run->exit_reason);
	}
	EXPECT_GT(vcpu_regs(&self->vcpu).rbx, 0);
}

/* A timer's signal ends an endless guest soon, again and again. */
TEST_F(run, timer_signals)
{
	struct itimerval timer = { .it_value.tv_usec = 20000, .it_interval.tv_usec = 20000 };
	uint64_t count = 0;

	let_signal_interrupt(SIGALRM);
	ASSERT_EQ(0, setitimer(ITIMER_REAL, &timer, NULL));
	for (unsigned long i = 0; i < scaled(20); i++) {
		uint64_t now;

		EXPECT_EQ(-EINTR, vcpu_run(&self->vcpu));
		now = vcpu_regs(&self->vcpu).rbx;
		EXPECT_GE(now, count);
		count = now;
	}
	EXPECT_GT(count, 0);
}

/* KVM_SET_SIGNAL_MASK: a signal that the thread blocks but KVM_RUN does not ends it, and stays pending. */
TEST_F(run, signal_mask)
{
	struct {
		struct kvm_signal_mask header;
		uint64_t set;
	} mask = { .header.len = 8, .set = ~0ull };
	struct itimerval timer = { .it_value.tv_usec = 20000 };
	sigset_t block, pending;

	let_signal_interrupt(SIGALRM);
	sigemptyset(&block);
	sigaddset(&block, SIGALRM);
	sigprocmask(SIG_BLOCK, &block, NULL);
	mask.set &= ~(1ull << (SIGALRM - 1));
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_SET_SIGNAL_MASK, &mask));
	ASSERT_EQ(0, setitimer(ITIMER_REAL, &timer, NULL));
	EXPECT_EQ(-EINTR, vcpu_run(&self->vcpu));
	sigpending(&pending);
	EXPECT_EQ(1, sigismember(&pending, SIGALRM));
	/* The thread's own mask is as it was. */
	sigprocmask(SIG_SETMASK, NULL, &pending);
	EXPECT_EQ(1, sigismember(&pending, SIGALRM));
	EXPECT_EQ(0, sigismember(&pending, SIGUSR1));
	/* It is still pending: the next one ends at once. */
	EXPECT_EQ(-EINTR, vcpu_run(&self->vcpu));

	mask.header.len = 4;
	EXPECT_EQ(-EINVAL, try_ioctl(self->vcpu.fd, KVM_SET_SIGNAL_MASK, &mask));
	mask.header.len = 0xffffffff;
	EXPECT_EQ(-EINVAL, try_ioctl(self->vcpu.fd, KVM_SET_SIGNAL_MASK, &mask));
	EXPECT_EQ(-EFAULT, try_ioctl(self->vcpu.fd, KVM_SET_SIGNAL_MASK, 8));
	/* None: the thread's own mask counts again. */
	EXPECT_EQ(0, try_ioctl(self->vcpu.fd, KVM_SET_SIGNAL_MASK, 0));
}

/* One vCPU, two threads: the second waits for the first, or is told to. */
TEST_F(run, two_threads_one_vcpu)
{
	pthread_t threads[2];
	int results[2] = { 0, 0 };

	running = &self->vcpu;
	/* Before the threads: the first signals may be earlier than they are. */
	let_signal_interrupt(SIGUSR1);
	for (int i = 0; i < 2; i++) {
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, run_thread, &results[i]));
	}
	for (bool done[2] = { false, false }; !done[0] || !done[1]; sched_yield()) {
		for (int i = 0; i < 2; i++) {
			if (done[i])
				continue;
			pthread_kill(threads[i], SIGUSR1);
			done[i] = !pthread_tryjoin_np(threads[i], NULL);
		}
	}
	for (int i = 0; i < 2; i++) {
		EXPECT_EQ(-EINTR, results[i]);
	}
}

/*
 * A guest whose every register and SSE register is in use, in threads that share CPUs: each checks its own data and
 * stops with UD2 if they are wrong. RBX counts; R15 has what makes this guest's data its own.
 */
GUEST_CODE64(check_own_data,
	sti; mov %cr4, %rax; or $0x600, %eax; mov %rax, %cr4;
	mov %r15, %rax; mov %rax, GUEST_FREE; movq %r15, %xmm7; movq %r15, %xmm15; mov %r15, %r8; not %r8;
	mov $0xc0000102, %ecx; mov %r15d, %eax; xor %edx, %edx; wrmsr;
	mov %r15, %rax; mov %rax, %cr2; mov %rax, %dr3;
1:	movq %xmm7, %rax; cmp %r15, %rax; jne 9f;
	movq %xmm15, %rax; cmp %r15, %rax; jne 9f;
	mov GUEST_FREE, %rax; cmp %r15, %rax; jne 9f;
	mov %r8, %rax; not %rax; cmp %r15, %rax; jne 9f;
	mov %cr2, %rax; cmp %r15, %rax; jne 9f;
	mov %dr3, %rax; cmp %r15, %rax; jne 9f;
	inc %rbx; test $0xfff, %ebx; jne 1b;
	mov $0xc0000102, %ecx; rdmsr; cmp %r15d, %eax; jne 9f;
	out %al, $PORT_SYNC; jmp 1b;
9:	ud2);

struct worker {
	pthread_t thread;
	uint64_t own;
	int pinned;	/* -1: moves */
	unsigned long rounds;
	bool wrong;
};

static volatile bool working;

static void *work(void *argument)
{
	struct worker *worker = argument;
	struct vcpu vcpu;
	struct vm vm;
	struct kvm_regs regs;

	guest_start(&vm, &vcpu, check_own_data);
	regs = vcpu_regs(&vcpu);
	regs.r15 = worker->own;
	vcpu_set_regs(&vcpu, &regs);
	if (worker->pinned >= 0)
		pin_to_cpu(worker->pinned);
	while (working) {
		if (worker->pinned < 0)
			pin_to_cpu(worker->rounds % cpu_count());
		vcpu_run_to(&vcpu, KVM_EXIT_IO);
		if (vcpu.run->io.port != PORT_SYNC) {
			vcpu_dump(&vcpu);
			worker->wrong = true;
			break;
		}
		worker->rounds++;
	}
	vcpu_free(&vcpu);
	vm_free(&vm);
	return NULL;
}

static void check_workers(struct __test_metadata *_metadata, int count, int pinned)
{
	struct worker workers[4] = { 0 };

	working = true;
	for (int i = 0; i < count; i++) {
		workers[i].own = 0x1234567800000000 + 0x11111111 * (i + 1);
		workers[i].pinned = pinned;
		ASSERT_EQ(0, pthread_create(&workers[i].thread, NULL, work, &workers[i]));
	}
	for (uint64_t end = now_ns() + scaled(1500) * 1000000; now_ns() < end; )
		sched_yield();
	/* On a busy machine: until each has had a turn. */
	for (int i = 0; i < count; i++)
		wait_until(workers[i].rounds > 2 || workers[i].wrong);
	working = false;
	for (int i = 0; i < count; i++) {
		pthread_join(workers[i].thread, NULL);
		EXPECT_FALSE(workers[i].wrong);
	}
}

TEST(share_one_cpu)
{
	check_workers(_metadata, 3, 0);
}

TEST(move_between_cpus)
{
	int cpus = cpu_count();

	if (cpus < 2)
		SKIP(return, "one CPU");
	check_workers(_metadata, 3, -1);
}

/* From outside, while the guest runs without an exit. */
static volatile pid_t runner;

static void *move_runner(void *unused)
{
	unsigned int cpus = cpu_count();

	for (unsigned int i = 0; working; i++) {
		cpu_set_t set;

		CPU_ZERO(&set);
		CPU_SET(i % cpus, &set);
		sched_setaffinity(runner, sizeof(set), &set);
		sched_yield();
	}
	return NULL;
}

TEST_F(run, moved_from_outside)
{
	struct itimerval timer = { .it_value.tv_usec = 100000, .it_interval.tv_usec = 100000 };
	struct kvm_regs regs;
	pthread_t thread;

	if (cpu_count() < 2)
		SKIP(return, "one CPU");
	let_signal_interrupt(SIGALRM);
	guest_load(&self->vm, check_own_data);
	regs = vcpu_regs(&self->vcpu);
	regs.r15 = 0xabcdef0123456789;
	vcpu_set_regs(&self->vcpu, &regs);
	runner = gettid();
	working = true;
	ASSERT_EQ(0, pthread_create(&thread, NULL, move_runner, NULL));
	setitimer(ITIMER_REAL, &timer, NULL);
	for (uint64_t end = now_ns() + scaled(1500) * 1000000; now_ns() < end; ) {
		int reason = vcpu_run(&self->vcpu);

		ASSERT_TRUE(reason == -EINTR || (reason == KVM_EXIT_IO && self->vcpu.run->io.port == PORT_SYNC))
			vcpu_dump(&self->vcpu);
	}
	working = false;
	pthread_join(thread, NULL);
}

/* The VMM asks for the registers of a vCPU that runs: the answer comes when that has left its guest. */
static void *ask_registers(void *unused)
{
	return (void *)(uintptr_t)(vcpu_regs(running).rflags & 2);
}

TEST_F(run, registers_of_a_running_vcpu)
{
	pthread_t runs, asks;
	void *flags = NULL;
	int result = 0;

	running = &self->vcpu;
	started = 0;
	ASSERT_EQ(0, pthread_create(&runs, NULL, run_thread, &result));
	wait_until(started);
	ASSERT_EQ(0, pthread_create(&asks, NULL, ask_registers, NULL));
	while (pthread_tryjoin_np(runs, NULL)) {
		pthread_kill(runs, SIGUSR1);
		sched_yield();
	}
	EXPECT_EQ(-EINTR, result);
	ASSERT_EQ(0, pthread_join(asks, &flags));
	EXPECT_EQ((void *)2, flags);
}

XVM_TEST_MAIN
