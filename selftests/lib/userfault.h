/* SPDX-License-Identifier: GPL-2.0 */
/* Memory whose missing pages the test brings in itself (userfaultfd), as slowly as it wants. What fails here ends the test. */
#ifndef SELFTESTS_USERFAULT_H
#define SELFTESTS_USERFAULT_H

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "device.h"

/* Anonymous memory of whole pages, of which every first access waits for userfault_resolve(), and the descriptor that tells of them. */
static inline void *userfault_map(size_t size, int *fd)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = { .range.len = size, .mode = UFFDIO_REGISTER_MODE_MISSING };
	/* What the kernel still brings in for memory that was here before finds none until it is watched. */
	void *memory = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	*fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	range.range.start = (uintptr_t)memory;
	if (memory == MAP_FAILED || *fd < 0 || ioctl(*fd, UFFDIO_API, &api) || ioctl(*fd, UFFDIO_REGISTER, &range) || mprotect(memory, size, PROT_READ | PROT_WRITE))
		fatal("userfaultfd: %s", strerror(errno));
	return memory;
}

/* The page that is waited for; NULL when there is none within so many milliseconds. */
static inline void *userfault_wait(int fd, int timeout)
{
	struct pollfd wait = { .fd = fd, .events = POLLIN };
	struct uffd_msg message;

	if (poll(&wait, 1, timeout) != 1)
		return NULL;
	if (read(fd, &message, sizeof(message)) != sizeof(message))
		return NULL;
	if (message.event != UFFD_EVENT_PAGEFAULT)
		fatal("userfaultfd: event %u", message.event);
	return (void *)(uintptr_t)(message.arg.pagefault.address & ~4095ull);
}

/* Brings a page in that is filled with a byte. */
static inline void userfault_resolve(int fd, void *page, uint8_t byte)
{
	static __thread uint8_t contents[4096] __attribute__((aligned(4096)));
	struct uffdio_copy copy = { .dst = (uintptr_t)page, .src = (uintptr_t)contents, .len = 4096 };

	memset(contents, byte, sizeof(contents));
	if (ioctl(fd, UFFDIO_COPY, &copy) && errno != EEXIST)
		fatal("UFFDIO_COPY: %s", strerror(errno));
}

#endif
