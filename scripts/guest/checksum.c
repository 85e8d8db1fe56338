// SPDX-License-Identifier: GPL-2.0
/*
 * For the guest's workload. Without an argument: checksums of x87, SSE and AVX arithmetic, which depend on the unit alone and so
 * must be the same on the host and in a guest. `checksum clock`: compares the timer that the kernel keeps time by with the
 * CMOS clock over some seconds.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <sys/io.h>

#define ROUNDS 200000
#define CLOCK_SECONDS 4
#define CLOCK_TOLERANCE 0.05

static uint64_t mix(uint64_t hash, const void *data, size_t size)
{
	const unsigned char *bytes = data;

	for (size_t i = 0; i < size; i++)
		hash = (hash ^ bytes[i]) * 0x100000001b3;
	return hash;
}

/* 80-bit extended precision: only x87 has it. */
static uint64_t x87(void)
{
	long double x = 0.5L;
	uint64_t hash = 0;

	for (int i = 0; i < ROUNDS; i++) {
		x = x * 3.9999L * (1.0L - x);
		hash = mix(hash, &x, 10);
	}
	return hash;
}

static uint64_t sse(void)
{
	double x[2] = { 0.25, 0.75 };
	uint64_t hash = 0;

	for (int i = 0; i < ROUNDS; i++) {
		for (int k = 0; k < 2; k++)
			x[k] = sqrt(x[k] * 3.999 * (1.0 - x[k]));
		for (int k = 0; k < 2; k++)
			x[k] = x[k] - floor(x[k] / 0.99) * 0.5;
		hash = mix(hash, x, sizeof(x));
	}
	return hash;
}

typedef double vector __attribute__((vector_size(32)));

/* All of a YMM register: the upper half is what an XSAVE without AVX would lose. */
static __attribute__((target("avx"))) uint64_t avx(void)
{
	vector x = { 0.1, 0.2, 0.3, 0.4 }, one = { 1, 1, 1, 1 }, factor = { 3.97, 3.98, 3.99, 3.999 };
	uint64_t hash = 0;

	for (int i = 0; i < ROUNDS; i++) {
		x = x * factor * (one - x);
		hash = mix(hash, &x, sizeof(x));
	}
	return hash;
}

static int cmos_second(void)
{
	outb(0, 0x70);
	return inb(0x71);
}

/* The time at which the CMOS clock begins a new second, or -1 if it stands still. */
static double next_second(void)
{
	struct timespec now;
	double start = -1, time;
	int second = cmos_second();

	for (;;) {
		clock_gettime(CLOCK_MONOTONIC, &now);
		time = now.tv_sec + now.tv_nsec * 1e-9;
		if (start < 0)
			start = time;
		if (cmos_second() != second)
			return time;
		if (time > start + 5)
			return -1;
		nanosleep(&(struct timespec){ .tv_nsec = 2000000 }, NULL);
	}
}

static int compare_clocks(void)
{
	double start, end = 0;

	if (iopl(3)) {
		perror("iopl");
		return 1;
	}
	start = next_second();
	for (int i = 0; i < CLOCK_SECONDS; i++)
		end = next_second();
	printf("# %.3f s by the kernel's timer in %d s of the CMOS clock\n", end - start, CLOCK_SECONDS);
	if (start < 0 || end < 0)
		return 1;
	return fabs(end - start - CLOCK_SECONDS) > CLOCK_SECONDS * CLOCK_TOLERANCE;
}

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "clock"))
		return compare_clocks();
	printf("x87 %016llx\n", (unsigned long long)x87());
	printf("sse %016llx\n", (unsigned long long)sse());
	if (__builtin_cpu_supports("avx"))
		printf("avx %016llx\n", (unsigned long long)avx());
	return 0;
}
