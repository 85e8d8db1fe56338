/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What a test program includes: the kernel's own harness (each TEST is a process with a time limit, output is TAP), the
 * library, and a main() that skips all if there is no device.
 */
#ifndef SELFTESTS_TEST_H
#define SELFTESTS_TEST_H

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/time.h>
#include "kselftest_harness.h"
#include "guest.h"

#define XVM_TEST_MAIN \
	int main(int argc, char **argv) \
	{ \
		int fd = open(device_path(), O_RDWR | O_CLOEXEC); \
		setvbuf(stdout, NULL, _IOLBF, 0); \
		if (fd < 0) { \
			ksft_print_header(); \
			ksft_exit_skip("%s: %s\n", device_path(), strerror(errno)); \
		} \
		close(fd); \
		return test_harness_run(argc, argv); \
	}

#endif
