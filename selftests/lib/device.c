// SPDX-License-Identifier: GPL-2.0
/* The device under test. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include "device.h"

void fatal_at(const char *file, int line, const char *format, ...)
{
	char text[512];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	fprintf(stdout, "# %s:%d: %s\n", file, line, text);
	fflush(stdout);
	/* Of a test's process or thread alike: the harness sees a failed test. */
	_exit(1);
}

const char *device_path(void)
{
	const char *path = getenv("XVM_DEVICE");

	return path && *path ? path : XVM_DEVICE;
}

bool device_is_xvm(void)
{
	return !strstr(device_path(), "kvm");
}

int device_open(void)
{
	int fd = open(device_path(), O_RDWR | O_CLOEXEC);

	if (fd < 0)
		fatal("%s: %s", device_path(), strerror(errno));
	return fd;
}

int device_extension(unsigned int capability)
{
	int fd = device_open();
	int value = do_ioctl(fd, KVM_CHECK_EXTENSION, capability);

	close(fd);
	return value;
}

int ioctl_result(int fd, unsigned long request, unsigned long argument)
{
	int result = ioctl(fd, request, argument);

	return result < 0 ? -errno : result;
}
