// SPDX-License-Identifier: GPL-2.0
/*
 * For the guest's SMP workload: a thread on each CPU that is online, and what the CPUs must agree on.
 *
 *   together clock     the time never goes back, whatever CPU it is read on (the TSCs agree)
 *   together shootdown what one CPU has unmapped no other reads any more (TLB flushes by IPI)
 *   together wake      each CPU wakes the next out of its idle loop (rescheduling IPIs), round and round
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define MOST 64
#define CLOCK_ROUNDS 20000
#define SHOOTDOWN_ROUNDS 100
#define WAKE_ROUNDS 200

static int count;
static int cpus[MOST];
static pthread_barrier_t begin;
static _Atomic int failed;

static void fail(const char *what)
{
	if (!atomic_exchange(&failed, 1))
		fprintf(stderr, "# %s\n", what);
}

static void pin(int index)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpus[index], &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		fail("sched_setaffinity");
}

static _Atomic uint64_t latest;

/* The kernel's clock has whole nanoseconds, of several ticks of the TSC each: equal times are in order. */
static void clock_on(int index)
{
	struct timespec now;

	(void)index;
	for (int i = 0; i < CLOCK_ROUNDS; i++) {
		uint64_t before = atomic_load(&latest), time;

		clock_gettime(CLOCK_MONOTONIC, &now);
		time = now.tv_sec * 1000000000ull + now.tv_nsec;
		if (time < before)
			fail("the time went back");
		while (before < time && !atomic_compare_exchange_weak(&latest, &before, time))
			;
	}
}

static char *page;
static _Atomic uint64_t generation;

/* The first changes the page's content by giving it back to the kernel; the others, which have it in their TLBs, must see it change. */
static void shootdown_on(int index)
{
	volatile uint64_t *value = (volatile uint64_t *)page;

	if (index) {
		for (uint64_t seen; (seen = atomic_load(&generation)) < SHOOTDOWN_ROUNDS;)
			if (*value < seen)
				fail("a page was read that isn't mapped any more");
		return;
	}
	for (uint64_t i = 1; i <= SHOOTDOWN_ROUNDS; i++) {
		char *fresh = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

		if (fresh == MAP_FAILED) {
			fail("mmap");
			break;
		}
		*(uint64_t *)fresh = i;
		if (mremap(fresh, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, page) == MAP_FAILED) {
			fail("mremap");
			break;
		}
		atomic_store(&generation, i);
	}
	atomic_store(&generation, SHOOTDOWN_ROUNDS);
}

static int pipes[MOST][2];

static void wake_on(int index)
{
	char token = 0;

	for (int i = 0; i < WAKE_ROUNDS; i++) {
		if (index == 0 && write(pipes[1 % count][1], &token, 1) != 1)
			fail("write");
		if (read(pipes[index][0], &token, 1) != 1)
			fail("read");
		if (index && write(pipes[(index + 1) % count][1], &token, 1) != 1)
			fail("write");
	}
}

static void (*job)(int);

static void *on_cpu(void *index)
{
	pin((int)(intptr_t)index);
	pthread_barrier_wait(&begin);
	job((int)(intptr_t)index);
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[MOST];
	cpu_set_t online;

	if (argc == 2 && !strcmp(argv[1], "clock"))
		job = clock_on;
	if (argc == 2 && !strcmp(argv[1], "shootdown"))
		job = shootdown_on;
	if (argc == 2 && !strcmp(argv[1], "wake"))
		job = wake_on;
	if (!job || sched_getaffinity(0, sizeof(online), &online))
		return 2;
	for (int cpu = 0; cpu < MOST; cpu++)
		if (CPU_ISSET(cpu, &online))
			cpus[count++] = cpu;
	page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED || pthread_barrier_init(&begin, NULL, count))
		return 2;
	for (int i = 0; i < count; i++)
		if (pipe(pipes[i]))
			return 2;
	for (int i = 0; i < count; i++)
		if (pthread_create(&threads[i], NULL, on_cpu, (void *)(intptr_t)i))
			return 2;
	for (int i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
	return failed;
}
