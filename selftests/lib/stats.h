/* SPDX-License-Identifier: GPL-2.0 */
/* Reading the files of KVM_GET_STATS_FD. */
#ifndef SELFTESTS_STATS_H
#define SELFTESTS_STATS_H

#include "test.h"

/* The value of a statistic; -1 if there is none of that name. */
static inline int64_t stats_value(int fd, const char *name)
{
	struct kvm_stats_header header;
	char buffer[sizeof(struct kvm_stats_desc) + 256];
	struct kvm_stats_desc *desc = (void *)buffer;

	if (pread(fd, &header, sizeof(header), 0) != sizeof(header))
		fatal("header: %s", strerror(errno));
	for (uint32_t n = 0; n < header.num_desc; n++) {
		size_t size = sizeof(*desc) + header.name_size;
		int64_t value;

		if (pread(fd, desc, size, header.desc_offset + n * size) != (ssize_t)size)
			fatal("descriptor %u: %s", n, strerror(errno));
		if (strcmp(desc->name, name))
			continue;
		if (pread(fd, &value, sizeof(value), header.data_offset + desc->offset) != sizeof(value))
			fatal("value of %s: %s", name, strerror(errno));
		return value;
	}
	return -1;
}

#endif
