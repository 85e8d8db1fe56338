/* SPDX-License-Identifier: GPL-2.0 */
/* For tests of what goes by eventfd: interrupts that one raises, and writes that signal one. */
#ifndef SELFTESTS_EVENTFDS_H
#define SELFTESTS_EVENTFDS_H

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "test.h"

static inline int event_new(void)
{
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

	if (fd < 0)
		fatal("eventfd: %m");
	return fd;
}

static inline void event_signal(int fd)
{
	uint64_t one = 1;

	if (write(fd, &one, sizeof(one)) != sizeof(one))
		fatal("write to an eventfd: %m");
}

/* How often it was signalled since the last time. */
static inline uint64_t event_count(int fd)
{
	uint64_t count = 0;

	return read(fd, &count, sizeof(count)) == sizeof(count) ? count : 0;
}

static inline int irqfd(struct vm *vm, int fd, uint32_t gsi, uint32_t flags, int resample)
{
	struct kvm_irqfd args = { .fd = fd, .gsi = gsi, .flags = flags, .resamplefd = resample };

	return try_ioctl(vm->fd, KVM_IRQFD, &args);
}

static inline int ioeventfd(struct vm *vm, int fd, uint64_t address, uint32_t length, uint32_t flags, uint64_t value)
{
	struct kvm_ioeventfd args = { .fd = fd, .addr = address, .len = length, .flags = flags, .datamatch = value };

	return try_ioctl(vm->fd, KVM_IOEVENTFD, &args);
}

#endif
