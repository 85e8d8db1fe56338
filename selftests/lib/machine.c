// SPDX-License-Identifier: GPL-2.0
/* The machine that the tests run on. */
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "device.h"
#include "machine.h"

bool host_is_amd(void)
{
	unsigned int eax, ebx, ecx, edx;

	return __get_cpuid(0, &eax, &ebx, &ecx, &edx) && ecx == signature_AMD_ecx;
}

bool host_is_qemu_tcg(void)
{
	unsigned int eax, ebx, ecx, edx;

	__cpuid(0x40000000, eax, ebx, ecx, edx);
	return ebx == 0x54474354 && ecx == 0x43544743 && edx == 0x47435447; /* "TCGTCGTCGTCG" */
}

/* Bochs calls its CPU by the model's name but its ACPI tables by its own. */
bool host_is_bochs(void)
{
	char text[5] = "";
	int fd = open("/sys/firmware/acpi/tables/FACP", O_RDONLY);

	if (fd < 0)
		return false;
	if (pread(fd, text, 4, 10) != 4)
		text[0] = 0;
	close(fd);
	return !strcmp(text, "BOCH") || !strcmp(text, "BXPC") ? !host_is_qemu_tcg() : false;
}

static unsigned long environment_number(const char *name, unsigned long otherwise)
{
	const char *text = getenv(name);

	return text && *text ? strtoul(text, NULL, 0) : otherwise;
}

unsigned long scaled(unsigned long count)
{
	unsigned long result = count * environment_number("SELFTEST_SCALE", 100) / 100;

	return result ? result : 1;
}

int cpu_count(void)
{
	cpu_set_t set;

	if (sched_getaffinity(0, sizeof(set), &set))
		fatal("sched_getaffinity: %s", strerror(errno));
	return CPU_COUNT(&set);
}

void pin_to_cpu(int nth)
{
	static cpu_set_t allowed;
	cpu_set_t one;
	int cpu;

	if (!CPU_COUNT(&allowed) && sched_getaffinity(getpid(), sizeof(allowed), &allowed))
		fatal("sched_getaffinity: %s", strerror(errno));
	for (cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, &allowed) && nth-- == 0)
			break;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	if (sched_setaffinity(0, sizeof(one), &one))
		fatal("sched_setaffinity to CPU %d: %s", cpu, strerror(errno));
}

uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ull + now.tv_nsec;
}

uint64_t random_seed(void)
{
	return environment_number("SELFTEST_SEED", 0x9e3779b97f4a7c15) | 1;
}

uint64_t random_next(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

long meminfo(const char *field)
{
	char line[128];
	long value = -1;
	FILE *file = fopen("/proc/meminfo", "r");

	if (!file)
		fatal("/proc/meminfo: %s", strerror(errno));
	while (value < 0 && fgets(line, sizeof(line), file))
		if (!strncmp(line, field, strlen(field)) && line[strlen(field)] == ':')
			value = strtol(line + strlen(field) + 1, NULL, 10);
	fclose(file);
	if (value < 0)
		fatal("/proc/meminfo has no %s", field);
	return value;
}

static void do_nothing(int number)
{
}

void let_signal_interrupt(int number)
{
	struct sigaction action = { .sa_handler = do_nothing };
	sigset_t set;

	sigaction(number, &action, NULL);
	sigemptyset(&set);
	sigaddset(&set, number);
	sigprocmask(SIG_UNBLOCK, &set, NULL);
}
