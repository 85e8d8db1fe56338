// SPDX-License-Identifier: GPL-2.0
/* kvmclock: the VM's clock by ioctl, its structure in guest memory, the wall clock, and what the stable bit says. */
#include "test.h"
#include <time.h>

#define MSR_TSC 0x10
#define MSR_WALL_CLOCK_OLD 0x11
#define MSR_SYSTEM_TIME_OLD 0x12
#define MSR_WALL_CLOCK 0x4b564d00
#define MSR_SYSTEM_TIME 0x4b564d01
#define ENABLED 1
#define STABLE 1
#define STOPPED 2
#define NS 1000000000ull
#define FLAGS (KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC)

/* Where the clock structures, and the latest time that a vCPU has read, are. */
#define CLOCKS GUEST_FREE
#define LAST (GUEST_DATA + 0x800)

struct clock {
	uint32_t version;
	uint32_t pad;
	uint64_t tsc;
	uint64_t ns;
	uint32_t mul;
	int8_t shift;
	uint8_t flags;
	uint8_t pads[2];
};

/* RAX: the time by the structure at RDI. RDX, RCX, R9 and R10 are lost. */
#define READ_CLOCK 91: mov (%rdi), %r9d; test $1, %r9d; jnz 91b; lfence; rdtsc; shl $32, %rdx; or %rdx, %rax; sub 8(%rdi), %rax; \
	movsbl 28(%rdi), %ecx; test %ecx, %ecx; js 92f; shl %cl, %rax; jmp 93f; 92: neg %ecx; shr %cl, %rax; \
	93: mov 24(%rdi), %r10d; mul %r10; shrd $32, %rdx, %rax; add 16(%rdi), %rax; cmp (%rdi), %r9d; jne 91b

GUEST_CODE64(tell, 1: READ_CLOCK; mov %rax, %rbx; out %al, $PORT_SYNC; jmp 1b);

FIXTURE(kvmclock)
{
	struct vm vm;
	struct vcpu vcpu;
	struct clock *clock;
};

FIXTURE_SETUP(kvmclock)
{
	struct kvm_regs regs;

	guest_start(&self->vm, &self->vcpu, tell);
	self->clock = vm_at(&self->vm, CLOCKS);
	regs = vcpu_regs(&self->vcpu);
	regs.rdi = CLOCKS;
	vcpu_set_regs(&self->vcpu, &regs);
}

FIXTURE_TEARDOWN(kvmclock)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

static struct kvm_clock_data get_clock(struct vm *vm)
{
	struct kvm_clock_data data;

	memset(&data, 0xff, sizeof(data));
	do_ioctl(vm->fd, KVM_GET_CLOCK, &data);
	return data;
}

static uint64_t guest_clock(struct vcpu *vcpu)
{
	vcpu_run_to_port(vcpu, PORT_SYNC);
	return vcpu_regs(vcpu).rbx;
}

static uint64_t real_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return now.tv_sec * NS + now.tv_nsec;
}

/* Whether the host keeps time by its TSC, which decides on the flags. */
static bool host_by_tsc(void)
{
	char name[16] = "";
	FILE *file = fopen("/sys/devices/system/clocksource/clocksource0/current_clocksource", "r");

	if (!file)
		return false;
	if (!fgets(name, sizeof(name), file))
		name[0] = 0;
	fclose(file);
	return !strncmp(name, "tsc", 3);
}

/* A clock by ioctl alone: it starts near zero and goes on; what is set counts from there. */
TEST_F(kvmclock, get_and_set)
{
	struct kvm_clock_data first, second, set = { .clock = 1000 * NS };
	uint64_t before = real_ns();

	*self->clock = (struct clock){ 0 };
	/* KVM looks at its vCPUs when they run. */
	guest_clock(&self->vcpu);
	first = get_clock(&self->vm);
	EXPECT_EQ(0, first.flags & ~FLAGS);
	EXPECT_EQ(host_by_tsc() ? FLAGS : 0, first.flags);
	EXPECT_EQ(0, first.pad0);
	EXPECT_LT(first.clock, 60 * NS);
	second = get_clock(&self->vm);
	EXPECT_GE(second.clock, first.clock);
	if (second.flags & KVM_CLOCK_REALTIME) {
		EXPECT_GE(second.realtime, before);
		EXPECT_LE(second.realtime, real_ns());
	}
	if (second.flags & KVM_CLOCK_HOST_TSC)
		EXPECT_GT(second.host_tsc, first.host_tsc);
	do_ioctl(self->vm.fd, KVM_SET_CLOCK, &set);
	second = get_clock(&self->vm);
	EXPECT_GE(second.clock, 1000 * NS);
	EXPECT_LT(second.clock, 1030 * NS);
	/* What was read may be set again. */
	EXPECT_EQ(0, try_ioctl(self->vm.fd, KVM_SET_CLOCK, &second));
}

/* Time that has passed since is added, time to come is not taken away. */
TEST_F(kvmclock, set_with_realtime)
{
	struct kvm_clock_data set = { .clock = 5 * NS, .flags = KVM_CLOCK_REALTIME, .realtime = real_ns() - 100 * NS };

	do_ioctl(self->vm.fd, KVM_SET_CLOCK, &set);
	EXPECT_GE(get_clock(&self->vm).clock, 105 * NS);
	EXPECT_LT(get_clock(&self->vm).clock, 135 * NS);
	set.realtime = real_ns() + 100 * NS;
	do_ioctl(self->vm.fd, KVM_SET_CLOCK, &set);
	EXPECT_GE(get_clock(&self->vm).clock, 5 * NS);
	EXPECT_LT(get_clock(&self->vm).clock, 35 * NS);
}

TEST_F(kvmclock, refusals)
{
	struct kvm_clock_data set = { .clock = 5000 * NS };

	EXPECT_EQ(FLAGS, device_extension(KVM_CAP_ADJUST_CLOCK));
	for (int bit = 0; bit < 32; bit++) {
		set.flags = 1u << bit;
		if (!(set.flags & FLAGS))
			EXPECT_EQ(-EINVAL, try_ioctl(self->vm.fd, KVM_SET_CLOCK, &set));
	}
	EXPECT_EQ(-EFAULT, try_ioctl(self->vm.fd, KVM_SET_CLOCK, NULL));
	EXPECT_EQ(-EFAULT, try_ioctl(self->vm.fd, KVM_GET_CLOCK, NULL));
	EXPECT_LT(get_clock(&self->vm).clock, 1000 * NS);
	/* Extremes are times like others. */
	set.clock = UINT64_MAX;
	set.flags = KVM_CLOCK_REALTIME;
	set.realtime = 0;
	EXPECT_EQ(0, try_ioctl(self->vm.fd, KVM_SET_CLOCK, &set));
	set.realtime = UINT64_MAX;
	EXPECT_EQ(0, try_ioctl(self->vm.fd, KVM_SET_CLOCK, &set));
	guest_clock(&self->vcpu);
}

/* What the guest computes is between what the VMM reads before and after. */
TEST_F(kvmclock, structure)
{
	static const uint32_t msrs[] = { MSR_SYSTEM_TIME, MSR_SYSTEM_TIME_OLD };

	for (int i = 0; i < 2; i++) {
		struct kvm_clock_data set = { .clock = (i + 1) * 100 * NS };
		uint64_t value = 0, before, seen;

		memset(self->clock, 0xff, sizeof(*self->clock));
		ASSERT_EQ(1, vcpu_set_msr(&self->vcpu, msrs[i], CLOCKS | ENABLED));
		ASSERT_EQ(1, vcpu_get_msr(&self->vcpu, msrs[i], &value));
		EXPECT_EQ(CLOCKS | ENABLED, value);
		do_ioctl(self->vm.fd, KVM_SET_CLOCK, &set);
		for (unsigned long n = 0; n < scaled(200); n++) {
			before = get_clock(&self->vm).clock;
			seen = guest_clock(&self->vcpu);
			/* Without a TSC that keeps the host's time either clock has an error of its own. */
			EXPECT_GE(seen + (host_by_tsc() ? 0 : NS / 1000), before);
			EXPECT_LE(seen, get_clock(&self->vm).clock + (host_by_tsc() ? 0 : NS / 1000));
		}
		EXPECT_EQ(0, self->clock->version % 2);
		EXPECT_EQ(0, self->clock->pad);
		EXPECT_EQ(STOPPED | (host_by_tsc() ? STABLE : 0), self->clock->flags);
		self->clock->flags = 0;
	}
	/* Turned off it stays as it was, whatever the clock does. */
	ASSERT_EQ(1, vcpu_set_msr(&self->vcpu, MSR_SYSTEM_TIME, 0));
	struct clock copy = *self->clock;
	struct kvm_clock_data set = { .clock = 7777 * NS };

	do_ioctl(self->vm.fd, KVM_SET_CLOCK, &set);
	guest_clock(&self->vcpu);
	EXPECT_EQ(0, memcmp(&copy, self->clock, sizeof(copy)));
}

/* The guest is told that it was stopped, and keeps the word until it takes it away itself. */
TEST_F(kvmclock, stopped)
{
	struct kvm_clock_data set = { .clock = NS };

	EXPECT_EQ(-EINVAL, try_ioctl(self->vcpu.fd, KVM_KVMCLOCK_CTRL, 0));
	ASSERT_EQ(1, vcpu_set_msr(&self->vcpu, MSR_SYSTEM_TIME, CLOCKS | ENABLED));
	guest_clock(&self->vcpu);
	EXPECT_EQ(0, self->clock->flags & STOPPED);
	EXPECT_EQ(0, try_ioctl(self->vcpu.fd, KVM_KVMCLOCK_CTRL, 0));
	guest_clock(&self->vcpu);
	EXPECT_EQ(STOPPED, self->clock->flags & STOPPED);
	do_ioctl(self->vm.fd, KVM_SET_CLOCK, &set);
	guest_clock(&self->vcpu);
	EXPECT_EQ(STOPPED, self->clock->flags & STOPPED);
	self->clock->flags &= ~STOPPED;
	do_ioctl(self->vm.fd, KVM_SET_CLOCK, &set);
	guest_clock(&self->vcpu);
	EXPECT_EQ(0, self->clock->flags & STOPPED);
}

/* The guest asks itself, and its write and the structure come before its next instruction. */
GUEST_CODE64(ask, mov $MSR_SYSTEM_TIME, %ecx; mov $(CLOCKS | ENABLED), %eax; xor %edx, %edx; wrmsr; mov $CLOCKS, %edi; mov 24(%rdi), %ebx;
	mov $MSR_WALL_CLOCK, %ecx; mov $(CLOCKS + 0x100), %eax; xor %edx, %edx; wrmsr; mov CLOCKS + 0x104, %esi; GUEST_DONE);

TEST_F(kvmclock, by_the_guest)
{
	struct kvm_regs regs;

	guest_load(&self->vm, ask);
	guest_set_mode(&self->vcpu, MODE_LONG);
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
	regs = vcpu_regs(&self->vcpu);
	EXPECT_EQ(self->clock->mul, regs.rbx);
	EXPECT_NE(0, regs.rbx);
	EXPECT_GT(regs.rsi, 1000000000);
}

/* The wall clock: the time when the clock was zero. */
TEST_F(kvmclock, wall_clock)
{
	static const uint32_t msrs[] = { MSR_WALL_CLOCK, MSR_WALL_CLOCK_OLD };
	uint32_t *wall = vm_at(&self->vm, CLOCKS + 0x100);
	uint64_t value;

	for (int i = 0; i < 2; i++) {
		uint64_t now, then;

		memset(wall, 0xff, 12);
		ASSERT_EQ(1, vcpu_set_msr(&self->vcpu, msrs[i], CLOCKS + 0x100));
		guest_clock(&self->vcpu);
		then = wall[1] * NS + wall[2];
		now = real_ns() - get_clock(&self->vm).clock;
		EXPECT_EQ(0, wall[0] % 2);
		EXPECT_LT(wall[2], NS);
		EXPECT_LT(then, now + NS);
		EXPECT_GT(then, now - NS);
		ASSERT_EQ(1, vcpu_get_msr(&self->vcpu, msrs[!i], &value));
		EXPECT_EQ(CLOCKS + 0x100, value);
	}
	/* Nowhere, and where nothing is. */
	ASSERT_EQ(1, vcpu_set_msr(&self->vcpu, MSR_WALL_CLOCK, 0));
	ASSERT_EQ(1, vcpu_set_msr(&self->vcpu, MSR_WALL_CLOCK, 0x7ffffffff000));
	ASSERT_EQ(1, vcpu_set_msr(&self->vcpu, MSR_WALL_CLOCK, UINT64_MAX));
	guest_clock(&self->vcpu);
}

/* Where it can't be written nothing happens, and what is around it stays. */
TEST_F(kvmclock, bad_addresses)
{
	static const uint64_t addresses[] = {
		CLOCKS + 4096 - 30, CLOCKS + 4096 - 1, CLOCKS + 4096 - 4, GUEST_MEMORY - 4, GUEST_MMIO, 0xfee00000, 0x7ffffffff000,
		0x1000000000000, 0xfffffffffffffffe, 0x8000000000000000,
	};
	struct kvm_clock_data set = { .clock = NS };
	uint8_t *page = vm_at(&self->vm, CLOCKS);

	for (unsigned int i = 0; i < sizeof(addresses) / sizeof(addresses[0]); i++) {
		memset(page, 0x55, 8192);
		vcpu_set_msr(&self->vcpu, MSR_SYSTEM_TIME, addresses[i] | ENABLED);
		do_ioctl(self->vm.fd, KVM_SET_CLOCK, &set);
		page[0] = 0;
		guest_clock(&self->vcpu);
		page[0] = 0x55;
		/* One of an odd address that fits is an even one. */
		for (int n = 0; n < 8192; n++) {
			if (page[n] != 0x55) {
				EXPECT_EQ(0x55, page[n]);
				TH_LOG("byte %d with address %#llx", n, (unsigned long long)addresses[i]);
				break;
			}
		}
	}
	/* The last bytes of a page. */
	ASSERT_EQ(1, vcpu_set_msr(&self->vcpu, MSR_SYSTEM_TIME, (CLOCKS + 4096 - 32) | ENABLED));
	page[0] = 0;
	guest_clock(&self->vcpu);
	EXPECT_NE(0x55555555, ((struct clock *)(page + 4096 - 32))->mul);
}

/* A slot that is taken away, comes back, and is read-only: written when it can be. */
TEST_F(kvmclock, slots)
{
	uint8_t *memory = vm_add_memory(&self->vm, 5, GUEST_HIGH, 4096);
	struct clock *clock = (struct clock *)memory, copy;
	struct kvm_clock_data set = { .clock = NS };

	ASSERT_EQ(1, vcpu_set_msr(&self->vcpu, MSR_SYSTEM_TIME, GUEST_HIGH | ENABLED));
	guest_clock(&self->vcpu);
	EXPECT_NE(0, clock->mul);
	copy = *clock;
	ASSERT_EQ(0, vm_set_region(&self->vm, 5, 0, GUEST_HIGH, 0, memory));
	do_ioctl(self->vm.fd, KVM_SET_CLOCK, &set);
	guest_clock(&self->vcpu);
	EXPECT_EQ(0, memcmp(&copy, clock, sizeof(copy)));
	ASSERT_EQ(0, vm_set_region(&self->vm, 5, KVM_MEM_READONLY, GUEST_HIGH, 4096, memory));
	do_ioctl(self->vm.fd, KVM_SET_CLOCK, &set);
	guest_clock(&self->vcpu);
	EXPECT_EQ(0, memcmp(&copy, clock, sizeof(copy)));
	ASSERT_EQ(0, vm_set_region(&self->vm, 5, 0, GUEST_HIGH, 0, memory));
	ASSERT_EQ(0, vm_set_region(&self->vm, 5, 0, GUEST_HIGH, 4096, memory));
	do_ioctl(self->vm.fd, KVM_SET_CLOCK, &set);
	guest_clock(&self->vcpu);
	EXPECT_NE(copy.version, clock->version);
	/* The VMM takes the memory away under the slot. */
	ASSERT_EQ(0, munmap(memory, 4096));
	do_ioctl(self->vm.fd, KVM_SET_CLOCK, &set);
	guest_clock(&self->vcpu);
}

/* RSI times: the latest time that any vCPU has read is no later than what is read after it. */
GUEST_CODE64(in_step, 1: mov LAST, %r8; READ_CLOCK; cmp %r8, %rax; jb 9f; mov %rax, %r11; mov %r8, %rax;
	4: cmp %r11, %rax; jae 5f; lock cmpxchg %r11, LAST; jnz 4b; 5: dec %rsi; jnz 1b; GUEST_DONE; 9: ud2);

/* Two vCPUs read one structure, as the stable bit allows; the other one's TSC apart from the first's ends that. */
TEST_F(kvmclock, stable)
{
	struct clock *clocks[2] = { self->clock, vm_at(&self->vm, CLOCKS + 0x40) };
	uint64_t offset, other;
	struct kvm_device_attr attr = { .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (uintptr_t)&offset };
	struct vcpu vcpus[2] = { self->vcpu, vcpu_create(&self->vm, 1) };
	pthread_t threads[2];
	struct kvm_regs regs;

	if (!host_by_tsc())
		SKIP(return, "the host doesn't keep time by its TSC");
	guest_load(&self->vm, in_step);
	*(uint64_t *)vm_at(&self->vm, LAST) = 0;
	vcpu_set_supported_cpuid(&vcpus[1]);
	for (int i = 0; i < 2; i++) {
		guest_set_mode(&vcpus[i], MODE_LONG);
		ASSERT_EQ(1, vcpu_set_msr(&vcpus[i], MSR_SYSTEM_TIME, (CLOCKS + i * 0x40) | ENABLED));
		regs = vcpu_regs(&vcpus[i]);
		regs.rdi = CLOCKS;
		regs.rsi = 1;
		vcpu_set_regs(&vcpus[i], &regs);
		vcpu_run_to_port(&vcpus[i], PORT_DONE);
	}
	for (int i = 0; i < 2; i++) {
		EXPECT_EQ(STABLE, clocks[i]->flags);
		guest_set_mode(&vcpus[i], MODE_LONG);
		regs = vcpu_regs(&vcpus[i]);
		regs.rdi = CLOCKS;
		regs.rsi = scaled(200000);
		vcpu_set_regs(&vcpus[i], &regs);
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, run_to_done, &vcpus[i]));
	}
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	do_ioctl(vcpus[1].fd, KVM_GET_DEVICE_ATTR, &attr);
	other = offset;
	/* KVM doesn't find out that they agree again, and tells vCPU 0 after vCPU 1 has run. */
	for (int apart = 1; apart >= !device_is_xvm(); apart--) {
		offset = other + apart * 1000000000000;
		do_ioctl(vcpus[1].fd, KVM_SET_DEVICE_ATTR, &attr);
		for (int i = 1; i >= 0; i--) {
			uint64_t before = get_clock(&self->vm).clock;

			guest_load(&self->vm, tell);
			guest_set_mode(&vcpus[i], MODE_LONG);
			regs = vcpu_regs(&vcpus[i]);
			regs.rdi = CLOCKS + i * 0x40;
			vcpu_set_regs(&vcpus[i], &regs);
			/* Its own structure is right for either. */
			EXPECT_GE(guest_clock(&vcpus[i]) + 1000, before);
			EXPECT_LE(vcpu_regs(&vcpus[i]).rbx, get_clock(&self->vm).clock + 1000);
			EXPECT_EQ(apart ? 0 : STABLE, clocks[i]->flags);
		}
		EXPECT_EQ(apart ? 0 : KVM_CLOCK_TSC_STABLE, get_clock(&self->vm).flags & KVM_CLOCK_TSC_STABLE);
	}
	vcpu_free(&vcpus[1]);
}

/* The clock is set while the guest reads it: it never sees half a structure, and has the new one when the ioctl is through. */
GUEST_CODE64(watch, 1: READ_CLOCK; mov %rax, LAST; cmpl $0, LAST + 8; je 1b; GUEST_DONE);

TEST_F(kvmclock, set_while_it_runs)
{
	volatile uint64_t *last = vm_at(&self->vm, LAST);
	pthread_t thread;
	struct kvm_regs regs;

	ASSERT_EQ(1, vcpu_set_msr(&self->vcpu, MSR_SYSTEM_TIME, CLOCKS | ENABLED));
	guest_load(&self->vm, watch);
	guest_set_mode(&self->vcpu, MODE_LONG);
	regs = vcpu_regs(&self->vcpu);
	regs.rdi = CLOCKS;
	vcpu_set_regs(&self->vcpu, &regs);
	last[0] = last[1] = 0;
	ASSERT_EQ(0, pthread_create(&thread, NULL, run_to_done, &self->vcpu));
	while (!*last)
		sched_yield();
	for (uint64_t n = 1; n <= scaled(200); n++) {
		struct kvm_clock_data set = { .clock = n * 1000000 * NS };

		do_ioctl(self->vm.fd, KVM_SET_CLOCK, &set);
		/* It may be about to store what it has read before. */
		while (*last < set.clock)
			sched_yield();
		EXPECT_LT(*last, set.clock + 100 * NS);
	}
	*(volatile uint32_t *)(last + 1) = 1;
	pthread_join(thread, NULL);
}

/* With KVM_CAP_ENFORCE_PV_FEATURE_CPUID the guest has what its CPUID names, and no more. */
GUEST_CODE64(touch, mov $(GUEST_AT(touch, 1f)), %eax; mov %rax, GUEST_REPORT + REPORT_FIXUP; mov %esi, %ecx; xor %ebx, %ebx; rdmsr; inc %ebx; 1: GUEST_DONE);

TEST_F(kvmclock, enforced)
{
	static const uint32_t msrs[] = { MSR_WALL_CLOCK_OLD, MSR_SYSTEM_TIME_OLD, MSR_WALL_CLOCK, MSR_SYSTEM_TIME, 0x4b564dff };
	static const uint32_t features[] = { 1, 1, 8, 8, 0 };
	struct kvm_cpuid2 *cpuid = supported_cpuid();
	struct kvm_cpuid_entry2 *leaf = cpuid_entry(cpuid, 0x40000001, 0);
	struct kvm_enable_cap cap = { .cap = KVM_CAP_ENFORCE_PV_FEATURE_CPUID, .args = { 1 } };

	ASSERT_NE(NULL, leaf);
	for (int enforce = 0; enforce < 2; enforce++) {
		for (uint32_t eax = 0; eax <= 9; eax += 1) {
			for (int i = 0; i < 5; i++) {
				struct vcpu vcpu = vcpu_create(&self->vm, 1 + i + 5 * (eax + 10 * enforce));
				struct kvm_regs regs;

				leaf->eax = eax;
				do_ioctl(vcpu.fd, KVM_SET_CPUID2, cpuid);
				if (enforce)
					do_ioctl(vcpu.fd, KVM_ENABLE_CAP, &cap);
				guest_load(&self->vm, touch);
				guest_set_mode(&vcpu, MODE_LONG);
				regs = vcpu_regs(&vcpu);
				regs.rsi = msrs[i];
				vcpu_set_regs(&vcpu, &regs);
				vcpu_run_to_port(&vcpu, PORT_DONE);
				EXPECT_EQ(i < 4 && (!enforce || eax & features[i]), vcpu_regs(&vcpu).rbx);
				vcpu_free(&vcpu);
			}
			if (eax == 1)
				eax = 7;
		}
	}
	cap.flags = 1;
	EXPECT_EQ(-EINVAL, try_ioctl(self->vcpu.fd, KVM_ENABLE_CAP, &cap));
	EXPECT_EQ(-EFAULT, try_ioctl(self->vcpu.fd, KVM_ENABLE_CAP, NULL));
}

XVM_TEST_MAIN
