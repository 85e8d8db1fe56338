// SPDX-License-Identifier: GPL-2.0
/* The device's own ioctls (api.rst, "system ioctl"): versions, sizes, lists, and what they refuse. */
#include "test.h"

FIXTURE(api)
{
	int fd;
};

FIXTURE_SETUP(api)
{
	self->fd = device_open();
}

FIXTURE_TEARDOWN(api)
{
	close(self->fd);
}

TEST_F(api, version)
{
	EXPECT_EQ(12, try_ioctl(self->fd, KVM_GET_API_VERSION, 0));
	EXPECT_EQ(-EINVAL, try_ioctl(self->fd, KVM_GET_API_VERSION, 1));
}

TEST_F(api, mmap_size)
{
	int size = try_ioctl(self->fd, KVM_GET_VCPU_MMAP_SIZE, 0);

	EXPECT_GE(size, sizeof(struct kvm_run));
	EXPECT_EQ(0, size % 4096);
	EXPECT_EQ(-EINVAL, try_ioctl(self->fd, KVM_GET_VCPU_MMAP_SIZE, 1));
}

/* Numbers of no system ioctl, among them ones of VMs and vCPUs, and KVM's own with other sizes or directions. */
TEST_F(api, unknown_ioctls)
{
	static const unsigned long requests[] = {
		_IO(KVMIO, 0xff), _IO('x', 0), 0, -1ul, KVM_RUN, KVM_GET_REGS, KVM_CREATE_VCPU, KVM_SET_USER_MEMORY_REGION,
		_IOR(KVMIO, 0x00, int), _IOW(KVMIO, 0x03, int), KVM_CREATE_IRQCHIP,
	};

	for (unsigned int i = 0; i < ARRAY_SIZE(requests); i++) {
		int result = try_ioctl(self->fd, requests[i], 0);

		/* KVM answers what it does not know on the device with EINVAL from its architecture part, else ENOTTY. */
		EXPECT_TRUE(result == -ENOTTY || result == -EINVAL) TH_LOG("ioctl %#lx: %d", requests[i], result);
	}
}

TEST_F(api, create_vm_types)
{
	int vm = try_ioctl(self->fd, KVM_CREATE_VM, 0);

	ASSERT_GE(vm, 0);
	EXPECT_EQ(FD_CLOEXEC, fcntl(vm, F_GETFD) & FD_CLOEXEC);
	EXPECT_EQ(-EINVAL, try_ioctl(self->fd, KVM_CREATE_VM, 0x80));
	EXPECT_EQ(-EINVAL, try_ioctl(self->fd, KVM_CREATE_VM, -1ul));
	EXPECT_EQ(0, close(vm));
}

TEST_F(api, read_write_refused)
{
	char byte;

	EXPECT_EQ(-1, read(self->fd, &byte, 1));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(-1, write(self->fd, &byte, 1));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(MAP_FAILED, mmap(NULL, 4096, PROT_READ, MAP_SHARED, self->fd, 0));
	EXPECT_EQ(ENODEV, errno);
}

/* What every VMM relies on is there; a capability that nobody has is not. */
TEST_F(api, extensions)
{
	static const int wanted[] = {
		KVM_CAP_IRQCHIP, KVM_CAP_HLT, KVM_CAP_USER_MEMORY, KVM_CAP_SET_TSS_ADDR, KVM_CAP_EXT_CPUID, KVM_CAP_NR_VCPUS,
		KVM_CAP_NR_MEMSLOTS, KVM_CAP_MP_STATE, KVM_CAP_DESTROY_MEMORY_REGION_WORKS, KVM_CAP_JOIN_MEMORY_REGIONS_WORKS,
		KVM_CAP_MAX_VCPUS, KVM_CAP_IMMEDIATE_EXIT, KVM_CAP_VCPU_EVENTS, KVM_CAP_XSAVE, KVM_CAP_XCRS, KVM_CAP_IRQ_ROUTING,
		KVM_CAP_SIGNAL_MSI, KVM_CAP_PIT2, KVM_CAP_READONLY_MEM, KVM_CAP_CHECK_EXTENSION_VM, KVM_CAP_GET_TSC_KHZ,
		KVM_CAP_TSC_DEADLINE_TIMER, KVM_CAP_USER_MEMORY2, KVM_CAP_INTERNAL_ERROR_DATA, KVM_CAP_DEBUGREGS, KVM_CAP_USER_NMI,
		KVM_CAP_SET_IDENTITY_MAP_ADDR, KVM_CAP_SYNC_MMU, KVM_CAP_IRQ_INJECT_STATUS, KVM_CAP_PIT_STATE2,
		KVM_CAP_GET_MSR_FEATURES, KVM_CAP_SREGS2,
	};
	int vm = try_ioctl(self->fd, KVM_CREATE_VM, 0);

	ASSERT_GE(vm, 0);
	for (unsigned int i = 0; i < ARRAY_SIZE(wanted); i++) {
		int value = try_ioctl(self->fd, KVM_CHECK_EXTENSION, wanted[i]);

		EXPECT_GT(value, 0) TH_LOG("capability %d: %d", wanted[i], value);
		EXPECT_EQ(value, try_ioctl(vm, KVM_CHECK_EXTENSION, wanted[i])) TH_LOG("capability %d on the VM", wanted[i]);
	}
	EXPECT_EQ(0, try_ioctl(self->fd, KVM_CHECK_EXTENSION, 0x7fffffff));
	EXPECT_EQ(0, try_ioctl(self->fd, KVM_CHECK_EXTENSION, -1ul));
	EXPECT_GE(try_ioctl(self->fd, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS), 509);
	EXPECT_GE(try_ioctl(self->fd, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS),
		  try_ioctl(self->fd, KVM_CHECK_EXTENSION, KVM_CAP_NR_VCPUS));
	close(vm);
}

static void *full_page_end(size_t size)
{
	uint8_t *pages = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	munmap(pages + 4096, 4096);
	return pages + 4096 - size;
}

TEST_F(api, supported_cpuid)
{
	struct {
		struct kvm_cpuid2 header;
		struct kvm_cpuid_entry2 entries[256];
	} list = { .header.nent = 0 };
	uint32_t count;

	EXPECT_EQ(-E2BIG, try_ioctl(self->fd, KVM_GET_SUPPORTED_CPUID, &list));
	list.header.nent = 1;
	EXPECT_EQ(-E2BIG, try_ioctl(self->fd, KVM_GET_SUPPORTED_CPUID, &list));
	list.header.nent = 256;
	ASSERT_EQ(0, try_ioctl(self->fd, KVM_GET_SUPPORTED_CPUID, &list));
	count = list.header.nent;
	/* kvmtool has room for 100. */
	EXPECT_TRUE(count > 10 && count <= 100);
	/* Exactly as many as there are fit. */
	ASSERT_EQ(0, try_ioctl(self->fd, KVM_GET_SUPPORTED_CPUID, &list));
	EXPECT_EQ(count, list.header.nent);
	list.header.nent = count - 1;
	EXPECT_EQ(-E2BIG, try_ioctl(self->fd, KVM_GET_SUPPORTED_CPUID, &list));
	/* A count far too big is cut, not refused and not used for an allocation (CVE-2009-3638). */
	list.header.nent = 0xffffffff;
	EXPECT_EQ(0, try_ioctl(self->fd, KVM_GET_SUPPORTED_CPUID, &list));
	EXPECT_EQ(count, list.header.nent);
	EXPECT_EQ(-EFAULT, try_ioctl(self->fd, KVM_GET_SUPPORTED_CPUID, 0));
	EXPECT_EQ(-EFAULT, try_ioctl(self->fd, KVM_GET_SUPPORTED_CPUID, 0xffffffff80000000));
}

TEST_F(api, supported_cpuid_faults)
{
	struct kvm_cpuid2 *short_list = full_page_end(sizeof(*short_list) + sizeof(struct kvm_cpuid_entry2));

	short_list->nent = 256;
	EXPECT_EQ(-EFAULT, try_ioctl(self->fd, KVM_GET_SUPPORTED_CPUID, short_list));
}

static void check_msr_list(struct __test_metadata *_metadata, int fd, unsigned long request)
{
	struct {
		struct kvm_msr_list header;
		uint32_t indices[1024];
	} list = { .header.nmsrs = 0 };
	uint32_t count;

	/* Too small: the count comes back. */
	EXPECT_EQ(-E2BIG, try_ioctl(fd, request, &list));
	count = list.header.nmsrs;
	ASSERT_TRUE(count > 0 && count < 1024);
	list.header.nmsrs = count - 1;
	EXPECT_EQ(-E2BIG, try_ioctl(fd, request, &list));
	EXPECT_EQ(count, list.header.nmsrs);
	list.indices[count] = 0x5a5a5a5a;
	ASSERT_EQ(0, try_ioctl(fd, request, &list));
	EXPECT_EQ(count, list.header.nmsrs);
	EXPECT_EQ(0x5a5a5a5a, list.indices[count]);
	for (uint32_t i = 0; i < count; i++)
		for (uint32_t j = 0; j < i; j++)
			EXPECT_NE(list.indices[i], list.indices[j]);
	list.header.nmsrs = 0xffffffff;
	EXPECT_EQ(0, try_ioctl(fd, request, &list));
	EXPECT_EQ(-EFAULT, try_ioctl(fd, request, 0));
}

TEST_F(api, msr_index_list)
{
	check_msr_list(_metadata, self->fd, KVM_GET_MSR_INDEX_LIST);
}

TEST_F(api, msr_feature_index_list)
{
	check_msr_list(_metadata, self->fd, KVM_GET_MSR_FEATURE_INDEX_LIST);
}

TEST_F(api, feature_msrs)
{
	struct {
		struct kvm_msrs header;
		struct kvm_msr_entry entries[2];
	} msrs = { .header.nmsrs = 1 };
	struct {
		struct kvm_msr_list header;
		uint32_t indices[1024];
	} list = { .header.nmsrs = 1024 };

	ASSERT_EQ(0, try_ioctl(self->fd, KVM_GET_MSR_FEATURE_INDEX_LIST, &list));
	for (uint32_t i = 0; i < list.header.nmsrs; i++) {
		msrs.entries[0].index = list.indices[i];
		EXPECT_EQ(1, try_ioctl(self->fd, KVM_GET_MSRS, &msrs)) TH_LOG("feature MSR %#x", list.indices[i]);
	}
	/* The list ends at the first that is none. */
	msrs.header.nmsrs = 2;
	msrs.entries[0].index = list.indices[0];
	msrs.entries[1].index = 0x12345678;
	EXPECT_EQ(1, try_ioctl(self->fd, KVM_GET_MSRS, &msrs));
	msrs.entries[0].index = 0x12345678;
	EXPECT_EQ(0, try_ioctl(self->fd, KVM_GET_MSRS, &msrs));
	msrs.header.nmsrs = 0;
	EXPECT_EQ(0, try_ioctl(self->fd, KVM_GET_MSRS, &msrs));
	/* More than a page could ever hold. */
	msrs.header.nmsrs = 0xffffffff;
	EXPECT_EQ(-E2BIG, try_ioctl(self->fd, KVM_GET_MSRS, &msrs));
	EXPECT_EQ(-EFAULT, try_ioctl(self->fd, KVM_GET_MSRS, 0));
}

/* A process without rights to the device gets no further; one with them can open it as often as it likes. */
TEST(many_opens)
{
	int fds[200], count = 0;

	for (; count < 200; count++) {
		fds[count] = open(device_path(), O_RDWR);
		if (fds[count] < 0)
			break;
	}
	EXPECT_EQ(200, count);
	while (count)
		close(fds[--count]);
}

XVM_TEST_MAIN
