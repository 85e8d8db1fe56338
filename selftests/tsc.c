// SPDX-License-Identifier: GPL-2.0
/* The guest's TSC: its rate, its offset, and that it never goes back. */
#include "test.h"

#define MSR_TSC 0x10
#define MSR_TSC_ADJUST 0x3b

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
