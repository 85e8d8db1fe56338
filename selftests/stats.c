// SPDX-License-Identifier: GPL-2.0
/* KVM_GET_STATS_FD: the file's layout, and that what is counted happens. */
#include "stats.h"

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

TEST_F(stats, counts)
{
	int fd = try_ioctl(self->vcpu.fd, KVM_GET_STATS_FD, 0);
	int64_t exits;

	ASSERT_GE(fd, 0);
	EXPECT_EQ(1, device_extension(KVM_CAP_BINARY_STATS_FD));
	EXPECT_EQ(0, stats_value(fd, "exits"));
	vcpu_run_to(&self->vcpu, KVM_EXIT_MMIO);
	exits = stats_value(fd, "exits");
	EXPECT_GE(exits, 2);
	EXPECT_EQ(1, stats_value(fd, "mmio_exits"));
	EXPECT_EQ(0, stats_value(fd, "io_exits"));
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	EXPECT_EQ(1, stats_value(fd, "mmio_exits"));
	EXPECT_EQ(2, stats_value(fd, "io_exits"));
	EXPECT_GT(stats_value(fd, "exits"), exits);
	EXPECT_EQ(-1, stats_value(fd, "no such thing"));
	close(fd);
}

TEST_F(stats, of_vm)
{
	int fd = try_ioctl(self->vm.fd, KVM_GET_STATS_FD, 0);
	char name[48];

	ASSERT_GE(fd, 0);
	EXPECT_EQ(FD_CLOEXEC, fcntl(fd, F_GETFD));
	EXPECT_GE(stats_value(fd, "remote_tlb_flush"), 0);
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
	EXPECT_EQ(0, stats_value(fd, "exits"));
	EXPECT_GE(stats_value(vm_fd, "remote_tlb_flush"), 0);
	close(fd);
	close(vm_fd);
	self->vm = vm_create();
	self->vcpu = vcpu_create(&self->vm, 0);
}

XVM_TEST_MAIN
