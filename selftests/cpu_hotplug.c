// SPDX-License-Identifier: GPL-2.0
/* CPUs go and come back while the module is loaded: guests move off, and can run on the CPU again ("VMXON on one CPU only"). */
#include "test.h"

#define ONLINE "/sys/devices/system/cpu/cpu1/online"

GUEST_CODE64(count, 1: inc %rbx; out %al, $PORT_SYNC; jmp 1b);

static bool set_online(bool online)
{
	int fd = open(ONLINE, O_WRONLY);
	bool done = fd >= 0 && write(fd, online ? "1" : "0", 1) == 1;

	if (fd >= 0)
		close(fd);
	return done;
}

/* Restores the CPU whatever happens in the test's process. */
FIXTURE(hotplug)
{
	struct vm vm;
	struct vcpu vcpu;
};

FIXTURE_SETUP(hotplug)
{
	if (cpu_count() < 2)
		SKIP(return, "one CPU");
	if (access(ONLINE, W_OK))
		SKIP(return, "CPU 1 can't be taken away");
	guest_start(&self->vm, &self->vcpu, count);
}

FIXTURE_TEARDOWN_PARENT(hotplug)
{
	if (!access(ONLINE, W_OK))
		set_online(true);
}

static void run_on(struct vcpu *vcpu, int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		fatal("CPU %d: %s", cpu, strerror(errno));
	for (int i = 0; i < 20; i++)
		vcpu_run_to_port(vcpu, PORT_SYNC);
}

TEST_F(hotplug, back_again)
{
	for (unsigned long i = 0; i < scaled(4); i++) {
		run_on(&self->vcpu, 1);
		run_on(&self->vcpu, 0);
		ASSERT_TRUE(set_online(false));
		run_on(&self->vcpu, 0);
		ASSERT_TRUE(set_online(true));
		run_on(&self->vcpu, 1);
	}
}

/* The CPU goes from under a guest that runs on it: its thread is moved. */
static volatile bool working;

static void *keep_running(void *argument)
{
	struct vcpu *vcpu = argument;
	uintptr_t rounds = 0;
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(1, &set);
	sched_setaffinity(0, sizeof(set), &set);
	for (; working; rounds++)
		vcpu_run_to_port(vcpu, PORT_SYNC);
	return (void *)rounds;
}

TEST_F(hotplug, under_a_running_guest)
{
	pthread_t thread;
	void *rounds;

	working = true;
	ASSERT_EQ(0, pthread_create(&thread, NULL, keep_running, &self->vcpu));
	for (unsigned long i = 0; i < scaled(4); i++) {
		ASSERT_TRUE(set_online(false));
		ASSERT_TRUE(set_online(true));
	}
	working = false;
	pthread_join(thread, &rounds);
	EXPECT_GT((uintptr_t)rounds, 0);
}

XVM_TEST_MAIN
