// SPDX-License-Identifier: GPL-2.0
/* KVM_GET_STATS_FD: the file's layout, and that what is counted happens. */
#include "test.h"

FIXTURE(stats)
{
	struct vm vm;
	struct vcpu vcpu;
};

GUEST_CODE64(works, xor %eax, %eax; cpuid; mov GUEST_MMIO, %eax; GUEST_SYNC; GUEST_SYNC; GUEST_DONE);

FIXTURE_SETUP(stats)
{
	guest_start(&self->vm, &self->vcpu, works);
}

FIXTURE_TEARDOWN(stats)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

/* The value of a statistic; -1 if there is none of that name. */
static int64_t value_of(int fd, const char *name)
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

TEST_F(stats, counts)
{
	int fd = try_ioctl(self->vcpu.fd, KVM_GET_STATS_FD, 0);
	int64_t exits;

	ASSERT_GE(fd, 0);
	EXPECT_EQ(1, device_extension(KVM_CAP_BINARY_STATS_FD));
	EXPECT_EQ(0, value_of(fd, "exits"));
	vcpu_run_to(&self->vcpu, KVM_EXIT_MMIO);
	exits = value_of(fd, "exits");
	EXPECT_GE(exits, 2);
	EXPECT_EQ(1, value_of(fd, "mmio_exits"));
	EXPECT_EQ(0, value_of(fd, "io_exits"));
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	EXPECT_EQ(1, value_of(fd, "mmio_exits"));
	EXPECT_EQ(2, value_of(fd, "io_exits"));
	EXPECT_GT(value_of(fd, "exits"), exits);
	EXPECT_EQ(-1, value_of(fd, "no such thing"));
	close(fd);
}

TEST_F(stats, of_vm)
{
	int fd = try_ioctl(self->vm.fd, KVM_GET_STATS_FD, 0);
	char name[48];

	ASSERT_GE(fd, 0);
	EXPECT_EQ(FD_CLOEXEC, fcntl(fd, F_GETFD));
	EXPECT_GE(value_of(fd, "remote_tlb_flush"), 0);
	ASSERT_EQ(sizeof(name), pread(fd, name, sizeof(name), sizeof(struct kvm_stats_header)));
	EXPECT_EQ(0, strncmp(name, "kvm-", 4));
	close(fd);
}

/* Reads that make no sense, and a file that outlives what it tells of. */
TEST_F(stats, hostile)
{
	int fd = try_ioctl(self->vcpu.fd, KVM_GET_STATS_FD, 0), vm_fd = try_ioctl(self->vm.fd, KVM_GET_STATS_FD, 0);
	uint8_t all[4096], part[4096];
	void *volatile nowhere = (void *)8;
	ssize_t size = pread(fd, all, sizeof(all), 0);

	ASSERT_GT(size, 0);
	EXPECT_EQ(0, pread(fd, part, 1, size));
	EXPECT_EQ(0, pread(fd, part, sizeof(part), 0x7fffffffffff0000));
	EXPECT_EQ(-1, pread(fd, part, 1, -1));
	EXPECT_EQ(-1, pread(fd, nowhere, 16, 0));
	EXPECT_EQ(EFAULT, errno);
	EXPECT_EQ(-1, write(fd, part, 1));
	EXPECT_EQ(-1, ioctl(fd, KVM_GET_REGS, part));
	EXPECT_EQ(MAP_FAILED, mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0));
	for (ssize_t at = 0; at < size; at++) {
		ASSERT_EQ(1, pread(fd, part, 1, at));
		EXPECT_EQ(all[at], part[0]);
	}
	/* In order, as cat does. */
	EXPECT_EQ(size, read(fd, part, sizeof(part)));
	EXPECT_EQ(0, read(fd, part, sizeof(part)));
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
	EXPECT_EQ(0, value_of(fd, "exits"));
	EXPECT_GE(value_of(vm_fd, "remote_tlb_flush"), 0);
	close(fd);
	close(vm_fd);
	self->vm = vm_create();
	self->vcpu = vcpu_create(&self->vm, 0);
}

XVM_TEST_MAIN
