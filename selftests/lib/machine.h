/* SPDX-License-Identifier: GPL-2.0 */
/* The machine that the tests run on, and its clock, CPUs, signals and memory. */
#ifndef SELFTESTS_MACHINE_H
#define SELFTESTS_MACHINE_H

#include <stdbool.h>
#include <stdint.h>

/* The CPU's vendor, as CPUID says. */
bool host_is_amd(void);

/* The machines that the tests run on are emulated; their known faults are worked around by name. */
bool host_is_qemu_tcg(void);
bool host_is_bochs(void);

/* Loop counts and durations for this machine: SELFTEST_SCALE in the environment, in percent, shrinks them (at least 1). */
unsigned long scaled(unsigned long count);

/* Number of CPUs that the process may use; pins the calling thread to the n-th of them. */
int cpu_count(void);
void pin_to_cpu(int nth);

/* Monotonic time in nanoseconds. */
uint64_t now_ns(void);

/* Pseudo-random numbers (xorshift), the same for the same seed. SELFTEST_SEED in the environment sets the first one. */
uint64_t random_seed(void);
uint64_t random_next(uint64_t *state);

/* A field of /proc/meminfo in KiB. */
long meminfo(const char *field);

/* Lets a signal interrupt system calls and do nothing else; unblocks it. */
void let_signal_interrupt(int number);

#endif
