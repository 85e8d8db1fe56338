// SPDX-License-Identifier: GPL-2.0
/* The module in the running kernel: its device node, its entry in sysfs, and that it stays while it is in use. */
#include "test.h"
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

#define SYSFS "/sys/module/xvm"

FIXTURE(module)
{
};

FIXTURE_SETUP(module)
{
	if (!device_is_xvm())
		SKIP(return, "about xvm itself");
}

FIXTURE_TEARDOWN(module)
{
}

static bool is_loaded(void)
{
	return access(SYSFS "/initstate", R_OK) == 0;
}

/* A file's first line without its newline. */
static const char *read_line(const char *path)
{
	static char line[256];
	FILE *file = fopen(path, "r");

	line[0] = 0;
	if (file) {
		if (fgets(line, sizeof(line), file))
			line[strcspn(line, "\n")] = 0;
		fclose(file);
	}
	return line;
}

TEST_F(module, device_node)
{
	char path[64];
	unsigned int major, minor;
	struct stat stat_;

	ASSERT_EQ(0, stat(device_path(), &stat_));
	EXPECT_TRUE(S_ISCHR(stat_.st_mode));
	ASSERT_EQ(2, sscanf(read_line("/sys/class/misc/xvm/dev"), "%u:%u", &major, &minor));
	EXPECT_EQ(makedev(major, minor), stat_.st_rdev);
	EXPECT_EQ(10, major);
	snprintf(path, sizeof(path), "/sys/dev/char/%u:%u", major, minor);
	EXPECT_EQ(0, access(path, F_OK));
}

TEST_F(module, sysfs)
{
	EXPECT_STREQ("live", read_line(SYSFS "/initstate"));
	/* Out of tree, and not proprietary. */
	EXPECT_EQ(NULL, strchr(read_line(SYSFS "/taint"), 'P'));
}

/* Each of these alone keeps the module: the device, a VM, a vCPU, the mapping of a vCPU's run pages. */
static void expect_kept(struct __test_metadata *_metadata, const char *by)
{
	int result = syscall(SYS_delete_module, "xvm", O_NONBLOCK);

	EXPECT_EQ(-1, result) TH_LOG("unloaded under %s", by);
	EXPECT_TRUE(errno == EWOULDBLOCK || errno == EBUSY) TH_LOG("%s: errno %d", by, errno);
	ASSERT_TRUE(is_loaded());
}

TEST_F(module, kept_while_used)
{
	struct vm vm;
	struct vcpu vcpu;

	if (geteuid())
		SKIP(return, "only root may unload modules");
	/* A module that is built in, or that the harness' other processes use, can't be asked. */
	vm = vm_create_bare();
	vcpu = vcpu_create(&vm, 0);
	expect_kept(_metadata, "everything");
	close(vm.device);
	expect_kept(_metadata, "a VM");
	close(vm.fd);
	expect_kept(_metadata, "a vCPU");
	close(vcpu.fd);
	expect_kept(_metadata, "run pages");
	vcpu.run->immediate_exit = 1;
	munmap(vcpu.run, vcpu.run_size);
	vm.device = device_open();
	expect_kept(_metadata, "an open device");
	EXPECT_EQ(12, try_ioctl(vm.device, KVM_GET_API_VERSION, 0));
}

XVM_TEST_MAIN
