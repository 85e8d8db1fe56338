// SPDX-License-Identifier: GPL-2.0
/* The guest's TSC: its rate, its offset, and that it never goes back. */
#include "test.h"

#define MSR_TSC 0x10
#define MSR_TSC_ADJUST 0x3b
#define MSR_SYSTEM_TIME 0x4b564d01

FIXTURE(tsc)
{
	struct vm vm;
	struct vcpu vcpu;
	int khz;
};

GUEST_CODE64(read_tsc, 1: rdtsc; shl $32, %rdx; or %rdx, %rax; mov %rax, %rbx; out %al, $PORT_SYNC; jmp 1b);

FIXTURE_SETUP(tsc)
{
	guest_start(&self->vm, &self->vcpu, read_tsc);
	self->khz = try_ioctl(self->vcpu.fd, KVM_GET_TSC_KHZ, 0);
	ASSERT_GT(self->khz, 0);
}

FIXTURE_TEARDOWN(tsc)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

static uint64_t guest_tsc(struct vcpu *vcpu)
{
	vcpu_run_to_port(vcpu, PORT_SYNC);
	return vcpu_regs(vcpu).rbx;
}

TEST_F(tsc, rate)
{
	uint64_t before, after, first, last, elapsed;

	EXPECT_EQ(self->khz, try_ioctl(self->vm.fd, KVM_GET_TSC_KHZ, 0));
	/* Two readings, each between two of the host's clock. */
	before = now_ns();
	first = guest_tsc(&self->vcpu);
	while (now_ns() < before + 200000000)
		;
	last = guest_tsc(&self->vcpu);
	after = now_ns();
	elapsed = (last - first) * 1000000 / self->khz;
	/* 20 ms short for the first exit; a tenth for clocks that emulators keep apart. */
	EXPECT_GT(elapsed, 160000000);
	EXPECT_LT(elapsed, (after - before) * 11 / 10);
}

TEST_F(tsc, set_rate)
{
	EXPECT_EQ(0, try_ioctl(self->vcpu.fd, KVM_SET_TSC_KHZ, self->khz));
	EXPECT_EQ(self->khz, try_ioctl(self->vcpu.fd, KVM_GET_TSC_KHZ, 0));
	/* Without scaling in hardware a slower guest is refused. */
	if (try_ioctl(self->vm.device, KVM_CHECK_EXTENSION, KVM_CAP_TSC_CONTROL) == 0) {
		EXPECT_NE(0, try_ioctl(self->vcpu.fd, KVM_SET_TSC_KHZ, self->khz / 2));
	}
	/* A far faster one may be refused or imitated. */
	try_ioctl(self->vcpu.fd, KVM_SET_TSC_KHZ, 0xffffffff);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	EXPECT_EQ(0, try_ioctl(self->vcpu.fd, KVM_SET_TSC_KHZ, self->khz));
	EXPECT_EQ(self->khz, try_ioctl(self->vcpu.fd, KVM_GET_TSC_KHZ, 0));
}

/* With scaling the guest's TSC runs at the rate that was asked for, and the clock structure says which. */
TEST_F(tsc, scaled_rate)
{
	struct clock { uint32_t version, pad; uint64_t tsc, ns; uint32_t mul; int8_t shift; uint8_t rest[3]; } *clock = vm_at(&self->vm, GUEST_FREE);

	if (device_extension(KVM_CAP_TSC_CONTROL) == 0) {
		EXPECT_EQ(0, device_extension(KVM_CAP_VM_TSC_CONTROL));
		SKIP(return, "the CPU doesn't scale the TSC");
	}
	for (int i = 0; i < 4; i++) {
		static const int percent[] = { 50, 150, 37, 1000 };
		uint64_t khz = self->khz * (uint64_t)percent[i] / 100, before, between, first, last, elapsed;
		double told;

		ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_SET_TSC_KHZ, khz));
		EXPECT_EQ(khz, try_ioctl(self->vcpu.fd, KVM_GET_TSC_KHZ, 0));
		ASSERT_EQ(1, vcpu_set_msr(&self->vcpu, MSR_SYSTEM_TIME, GUEST_FREE | 1));
		guest_tsc(&self->vcpu);
		before = now_ns();
		first = guest_tsc(&self->vcpu);
		between = now_ns();
		while (now_ns() < between + 200000000)
			;
		last = guest_tsc(&self->vcpu);
		elapsed = (last - first) * 1000000 / khz;
		EXPECT_GT(elapsed, 180000000);
		EXPECT_LT(elapsed, (now_ns() - before) * 11 / 10);
		told = 1000000.0 * 4294967296.0 / clock->mul;
		for (int n = clock->shift; n > 0; n--)
			told /= 2;
		for (int n = clock->shift; n < 0; n++)
			told *= 2;
		EXPECT_GT(told, khz * 0.9999 - 2);
		EXPECT_LT(told, khz * 1.0001 + 2);
		/* The register is what the guest reads. */
		ASSERT_EQ(1, vcpu_set_msr(&self->vcpu, MSR_TSC, 0x123456789abc));
		first = guest_tsc(&self->vcpu);
		EXPECT_GE(first, 0x123456789abc);
		ASSERT_EQ(1, vcpu_get_msr(&self->vcpu, MSR_TSC, &last));
		EXPECT_GE(last, first);
		EXPECT_LT(last, first + khz * 5000);
	}
	EXPECT_EQ(-EINVAL, try_ioctl(self->vcpu.fd, KVM_SET_TSC_KHZ, 0x7fffffff));
}

/* Of the VM: of vCPUs to come, and only before there is one. */
TEST_F(tsc, rate_of_the_vm)
{
	struct vm vm = vm_create_bare();
	struct vcpu vcpu;
	/* Within the tolerance the CPU's own rate does. */
	int near = self->khz + self->khz / 10000;

	EXPECT_EQ(-EINVAL, try_ioctl(self->vm.fd, KVM_SET_TSC_KHZ, self->khz));
	EXPECT_EQ(self->khz, try_ioctl(vm.fd, KVM_GET_TSC_KHZ, 0));
	EXPECT_EQ(0, try_ioctl(vm.fd, KVM_SET_TSC_KHZ, near));
	EXPECT_EQ(near, try_ioctl(vm.fd, KVM_GET_TSC_KHZ, 0));
	vcpu = vcpu_create(&vm, 0);
	EXPECT_EQ(near, try_ioctl(vcpu.fd, KVM_GET_TSC_KHZ, 0));
	EXPECT_EQ(-EINVAL, try_ioctl(vm.fd, KVM_SET_TSC_KHZ, 0));
	EXPECT_EQ(0, try_ioctl(vcpu.fd, KVM_SET_TSC_KHZ, 0));
	EXPECT_EQ(self->khz, try_ioctl(vcpu.fd, KVM_GET_TSC_KHZ, 0));
	vcpu_free(&vcpu);
	vm_free(&vm);
}

static int offset_attr(struct vcpu *vcpu, unsigned long request, uint64_t *offset)
{
	struct kvm_device_attr attr = { .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (uintptr_t)offset };

	return try_ioctl(vcpu->fd, request, &attr);
}

/* The offset by itself, which is the one way of setting it that doesn't take time. */
TEST_F(tsc, offset)
{
	struct kvm_device_attr attr = { .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = 8 };
	uint64_t offset, back = 0, value, seen;

	EXPECT_EQ(1, device_extension(KVM_CAP_VCPU_ATTRIBUTES));
	EXPECT_EQ(0, offset_attr(&self->vcpu, KVM_HAS_DEVICE_ATTR, NULL));
	for (int i = 0; i < 4; i++) {
		offset = (uint64_t[]){ 0, 0x123456789abcdef0, -0x123456789abcdef0, UINT64_MAX }[i];
		ASSERT_EQ(0, offset_attr(&self->vcpu, KVM_SET_DEVICE_ATTR, &offset));
		ASSERT_EQ(0, offset_attr(&self->vcpu, KVM_GET_DEVICE_ATTR, &back));
		EXPECT_EQ(offset, back);
		value = __builtin_ia32_rdtsc() + offset;
		seen = guest_tsc(&self->vcpu);
		EXPECT_LT(seen - value, self->khz * 5000ull);
		EXPECT_LT(__builtin_ia32_rdtsc() + offset - seen, self->khz * 5000ull);
	}
	EXPECT_EQ(-EFAULT, offset_attr(&self->vcpu, KVM_SET_DEVICE_ATTR, NULL));
	EXPECT_EQ(-EFAULT, offset_attr(&self->vcpu, KVM_GET_DEVICE_ATTR, NULL));
	EXPECT_EQ(-EFAULT, try_ioctl(self->vcpu.fd, KVM_HAS_DEVICE_ATTR, NULL));
	for (int i = 0; i < 3; i++) {
		unsigned long request = (unsigned long[]){ KVM_HAS_DEVICE_ATTR, KVM_GET_DEVICE_ATTR, KVM_SET_DEVICE_ATTR }[i];

		attr.attr = KVM_VCPU_TSC_OFFSET + 1;
		EXPECT_EQ(-ENXIO, try_ioctl(self->vcpu.fd, request, &attr));
		attr.attr = KVM_VCPU_TSC_OFFSET;
		attr.group = 12345;
		EXPECT_EQ(-ENXIO, try_ioctl(self->vcpu.fd, request, &attr));
		attr.group = KVM_VCPU_TSC_CTRL;
	}
	ASSERT_EQ(0, offset_attr(&self->vcpu, KVM_GET_DEVICE_ATTR, &back));
	EXPECT_EQ(offset, back);
}

/* What a VMM writes to one vCPU after the other means one time for all, unless it is far from the others'. */
TEST_F(tsc, kept_together)
{
	struct vcpu other = vcpu_create(&self->vm, 1);
	uint64_t first, second, value;

	ASSERT_EQ(0, offset_attr(&self->vcpu, KVM_GET_DEVICE_ATTR, &first));
	ASSERT_EQ(0, offset_attr(&other, KVM_GET_DEVICE_ATTR, &second));
	EXPECT_EQ(first, second);
	/* The first value that is written counts, however near. */
	ASSERT_EQ(1, vcpu_get_msr(&self->vcpu, MSR_TSC, &value));
	ASSERT_EQ(1, vcpu_set_msr(&self->vcpu, MSR_TSC, value + self->khz * 100ull));
	ASSERT_EQ(0, offset_attr(&self->vcpu, KVM_GET_DEVICE_ATTR, &second));
	EXPECT_NE(first, second);
	first = second;
	/* Then the others follow: nearly the same value, or zero. */
	ASSERT_EQ(1, vcpu_get_msr(&self->vcpu, MSR_TSC, &value));
	ASSERT_EQ(1, vcpu_set_msr(&other, MSR_TSC, value - self->khz * 50ull));
	ASSERT_EQ(0, offset_attr(&other, KVM_GET_DEVICE_ATTR, &second));
	EXPECT_EQ(first, second);
	ASSERT_EQ(1, vcpu_set_msr(&other, MSR_TSC, 0));
	ASSERT_EQ(0, offset_attr(&other, KVM_GET_DEVICE_ATTR, &second));
	EXPECT_EQ(first, second);
	/* A minute apart is another time. */
	ASSERT_EQ(1, vcpu_set_msr(&other, MSR_TSC, value + self->khz * 60000ull));
	ASSERT_EQ(0, offset_attr(&other, KVM_GET_DEVICE_ATTR, &second));
	EXPECT_GT(second - first, self->khz * 50000ull);
	vcpu_free(&other);
	/* A new one is like the last that was set. */
	other = vcpu_create(&self->vm, 2);
	ASSERT_EQ(0, offset_attr(&other, KVM_GET_DEVICE_ATTR, &first));
	EXPECT_EQ(first, second);
	vcpu_free(&other);
}

/* The VMM writes the register: the guest counts on from there. */
TEST_F(tsc, written_by_vmm)
{
	uint64_t start = 0x123456789000, seen = 0;

	ASSERT_EQ(1, vcpu_set_msr(&self->vcpu, MSR_TSC, start));
	seen = guest_tsc(&self->vcpu);
	EXPECT_GE(seen, start);
	EXPECT_LT(seen, start + self->khz * 5000ull);
	ASSERT_EQ(1, vcpu_get_msr(&self->vcpu, MSR_TSC, &start));
	EXPECT_GE(start, seen);
	EXPECT_GE(guest_tsc(&self->vcpu), start);
}

/* The guest writes it itself, and through TSC_ADJUST. */
GUEST_CODE64(write_tsc, mov $MSR_TSC, %ecx; mov $0x40000000, %eax; mov $0x55, %edx; wrmsr; rdtsc; shl $32, %rdx; or %rdx, %rax; mov %rax, %rbx;
	out %al, $PORT_SYNC; mov $MSR_TSC_ADJUST, %ecx; rdmsr; add $0x66, %edx; wrmsr; rdtsc; shl $32, %rdx; or %rdx, %rax; mov %rax, %rsi; GUEST_DONE);

TEST_F(tsc, written_by_guest)
{
	struct kvm_cpuid_entry2 *seven = cpuid_entry(supported_cpuid(), 7, 0);
	uint64_t first, second;

	guest_load(&self->vm, write_tsc);
	guest_set_mode(&self->vcpu, MODE_LONG);
	first = guest_tsc(&self->vcpu);
	EXPECT_GE(first, 0x5540000000);
	EXPECT_LT(first, 0x5540000000 + self->khz * 5000ull);
	if (!seven || !(seven->ebx & 2))
		SKIP(return, "no TSC_ADJUST here");
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
	second = vcpu_regs(&self->vcpu).rsi;
	EXPECT_GE(second, first + 0x6600000000);
	EXPECT_LT(second, first + 0x6600000000 + self->khz * 5000ull);
}

/* It never goes back, on whatever CPU the thread is. */
GUEST_CODE64(watch_tsc, xor %ebx, %ebx; 1: mov $1000, %r15d; 2: rdtsc; shl $32, %rdx; or %rdx, %rax; cmp %rbx, %rax; jb 9f; mov %rax, %rbx;
	dec %r15; jnz 2b; out %al, $PORT_SYNC; jmp 1b; 9: ud2);

TEST_F(tsc, monotonic)
{
	int cpus = cpu_count();

	guest_load(&self->vm, watch_tsc);
	guest_set_mode(&self->vcpu, MODE_LONG);
	for (unsigned long i = 0; i < scaled(200); i++) {
		pin_to_cpu(i % cpus);
		vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	}
}

XVM_TEST_MAIN
