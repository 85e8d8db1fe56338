/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The device under test: XVM_DEVICE in the environment, /dev/xvm without it. Also what the tests must know of the
 * machine that it is on.
 */
#ifndef SELFTESTS_DEVICE_H
#define SELFTESTS_DEVICE_H

#include <stdbool.h>
#include <stdint.h>
#include "../../uapi/xvm.h"

/* Ends the test with a message and the place it happened. */
#define fatal(format, ...) fatal_at(__FILE__, __LINE__, format, ##__VA_ARGS__)
void __attribute__((noreturn, format(printf, 3, 4))) fatal_at(const char *file, int line, const char *format, ...);

/* The path of the device, and whether it is xvm's or KVM's. */
const char *device_path(void);
bool device_is_xvm(void);

/* Opens the device; fatal if that fails. */
int device_open(void);

/* KVM_CHECK_EXTENSION on the device. */
int device_extension(unsigned int capability);

/* ioctl() that returns -errno on failure. */
int ioctl_result(int fd, unsigned long request, unsigned long argument);
#define try_ioctl(fd, request, argument) ioctl_result(fd, request, (unsigned long)(argument))

/* ioctl() that is fatal on failure. */
#define do_ioctl(fd, request, argument) ({ \
	int result_ = try_ioctl(fd, request, argument); \
	if (result_ < 0) \
		fatal("%s: %s", #request, strerror(-result_)); \
	result_; })

#endif
