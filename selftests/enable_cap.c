// SPDX-License-Identifier: GPL-2.0
/* KVM_ENABLE_CAP: what is refused, and what each capability that has no test of its own changes. */
#include "stats.h"

static int enable(int fd, uint32_t capability, uint32_t flags, uint64_t value)
{
	struct kvm_enable_cap cap = { .cap = capability, .flags = flags, .args = { value } };

	return try_ioctl(fd, KVM_ENABLE_CAP, &cap);
}

FIXTURE(enable)
{
	struct vm vm;
	struct vcpu vcpu;
};

/* An instruction that no emulator knows, on memory of a device. */
GUEST_CODE64(unknown, nop; nop; aesenc GUEST_MMIO, %xmm0; GUEST_DONE);

FIXTURE_SETUP(enable)
{
	guest_start(&self->vm, &self->vcpu, unknown);
}

FIXTURE_TEARDOWN(enable)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

TEST_F(enable, refused)
{
	int fd = self->vm.fd;

	EXPECT_GT(try_ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_ENABLE_CAP_VM), 0);
	EXPECT_EQ(-EFAULT, try_ioctl(fd, KVM_ENABLE_CAP, 8));
	/* Nobody knows it, nothing to be enabled, another architecture's. */
	EXPECT_EQ(-EINVAL, enable(fd, 0xffffffff, 0, 0));
	EXPECT_EQ(-EINVAL, enable(fd, KVM_CAP_USER_MEMORY, 0, 1));
	EXPECT_EQ(-EINVAL, enable(fd, KVM_CAP_S390_IRQCHIP, 0, 0));
	EXPECT_EQ(-EINVAL, enable(fd, KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1, 1));
	EXPECT_EQ(-EINVAL, enable(fd, KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1u << 31, 1));
	EXPECT_EQ(-EINVAL, enable(fd, KVM_CAP_EXIT_ON_EMULATION_FAILURE, 0, 2));
	EXPECT_EQ(-EINVAL, enable(fd, KVM_CAP_EXIT_ON_EMULATION_FAILURE, 0, 1ull << 32));
}

static void enter_user_mode(struct vcpu *vcpu)
{
	struct kvm_sregs sregs;
	struct kvm_regs regs;

	guest_set_mode(vcpu, MODE_LONG);
	sregs = vcpu_sregs(vcpu);
	sregs.cs.selector = SELECTOR_USER_CODE;
	sregs.cs.dpl = 3;
	sregs.ss.selector = SELECTOR_USER_DATA;
	sregs.ss.dpl = 3;
	vcpu_set_sregs(vcpu, &sregs);
	regs = vcpu_regs(vcpu);
	regs.rsp = GUEST_STACK;
	vcpu_set_regs(vcpu, &regs);
}

/* User code that does what no emulator can do gets #UD, and the VM lives on; unless the VMM wants to know of it. */
TEST_F(enable, emulation_failure)
{
	volatile struct report *report = guest_report(&self->vm);
	struct kvm_run *run = self->vcpu.run;

	enter_user_mode(&self->vcpu);
	EXPECT_EQ(6, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	EXPECT_EQ(GUEST_CODE + 2, report->rip);

	ASSERT_EQ(0, enable(self->vm.fd, KVM_CAP_EXIT_ON_EMULATION_FAILURE, 0, 1));
	enter_user_mode(&self->vcpu);
	vcpu_run_to(&self->vcpu, KVM_EXIT_INTERNAL_ERROR);
	EXPECT_EQ(KVM_INTERNAL_ERROR_EMULATION, run->emulation_failure.suberror);
	EXPECT_EQ(0, memcmp(run->emulation_failure.insn_bytes, vm_at(&self->vm, GUEST_CODE + 2), 8));
	EXPECT_EQ(GUEST_CODE + 2, vcpu_regs(&self->vcpu).rip);

	ASSERT_EQ(0, enable(self->vm.fd, KVM_CAP_EXIT_ON_EMULATION_FAILURE, 0, 0));
	enter_user_mode(&self->vcpu);
	EXPECT_EQ(6, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
}

GUEST_CODE64(rounds, 1: GUEST_SYNC; jmp 1b);

static struct kvm_vcpu_events get_events(struct vcpu *vcpu)
{
	struct kvm_vcpu_events events;

	do_ioctl(vcpu->fd, KVM_GET_VCPU_EVENTS, &events);
	return events;
}

/* With the capability a raised exception is told from one that is being delivered, and brings CR2 or DR6 along. */
TEST_F(enable, exception_payload)
{
	struct vcpu *vcpu = &self->vcpu;
	struct kvm_vcpu_events events;
	struct kvm_debugregs debug;

	guest_load(&self->vm, rounds);
	vcpu_run_to_port(vcpu, PORT_SYNC);
	events = get_events(vcpu);
	EXPECT_EQ(0, events.flags & KVM_VCPUEVENT_VALID_PAYLOAD);
	/* Without it nothing of this counts, not even a vector that can't be; the flag is refused. */
	events.exception.pending = 1;
	events.exception.nr = 99;
	EXPECT_EQ(0, try_ioctl(vcpu->fd, KVM_SET_VCPU_EVENTS, &events));
	events.flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
	EXPECT_EQ(-EINVAL, try_ioctl(vcpu->fd, KVM_SET_VCPU_EVENTS, &events));

	ASSERT_EQ(0, enable(self->vm.fd, KVM_CAP_EXCEPTION_PAYLOAD, 0, 1));
	EXPECT_NE(0, get_events(vcpu).flags & KVM_VCPUEVENT_VALID_PAYLOAD);
	EXPECT_EQ(-EINVAL, try_ioctl(vcpu->fd, KVM_SET_VCPU_EVENTS, &events));
	events.exception.nr = 14;
	events.exception.has_error_code = 1;
	events.exception.error_code = 2;
	events.exception_has_payload = 1;
	events.exception_payload = 0x7654000;
	ASSERT_EQ(0, try_ioctl(vcpu->fd, KVM_SET_VCPU_EVENTS, &events));
	events = get_events(vcpu);
	EXPECT_EQ(1, events.exception.pending);
	EXPECT_EQ(0, events.exception.injected);
	EXPECT_EQ(14, vcpu_run_to_port(vcpu, PORT_EXCEPTION));
	EXPECT_EQ(0x7654000, guest_report(&self->vm)->cr2);
	EXPECT_EQ(2, guest_report(&self->vm)->error);

	guest_set_mode(vcpu, MODE_LONG);
	vcpu_run_to_port(vcpu, PORT_SYNC);
	events = get_events(vcpu);
	events.exception.pending = 1;
	events.exception.nr = 1;
	events.exception.has_error_code = 0;
	events.exception_has_payload = 1;
	events.exception_payload = 1 << 14 | 2;
	ASSERT_EQ(0, try_ioctl(vcpu->fd, KVM_SET_VCPU_EVENTS, &events));
	EXPECT_EQ(1, vcpu_run_to_port(vcpu, PORT_EXCEPTION));
	do_ioctl(vcpu->fd, KVM_GET_DEBUGREGS, &debug);
	EXPECT_EQ(0xffff4ff2, debug.dr6);
}

TEST_F(enable, triple_fault_event)
{
	struct vcpu *vcpu = &self->vcpu;
	struct kvm_vcpu_events events;

	guest_load(&self->vm, rounds);
	vcpu_run_to_port(vcpu, PORT_SYNC);
	events = get_events(vcpu);
	events.flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
	events.triple_fault.pending = 1;
	EXPECT_EQ(-EINVAL, try_ioctl(vcpu->fd, KVM_SET_VCPU_EVENTS, &events));
	ASSERT_EQ(0, enable(self->vm.fd, KVM_CAP_X86_TRIPLE_FAULT_EVENT, 0, 1));
	ASSERT_EQ(0, try_ioctl(vcpu->fd, KVM_SET_VCPU_EVENTS, &events));
	vcpu->run->immediate_exit = 1;
	EXPECT_EQ(-EINTR, vcpu_run(vcpu));
	vcpu->run->immediate_exit = 0;
	events = get_events(vcpu);
	EXPECT_NE(0, events.flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT);
	EXPECT_EQ(1, events.triple_fault.pending);
	vcpu_run_to(vcpu, KVM_EXIT_SHUTDOWN);
	EXPECT_EQ(0, get_events(vcpu).triple_fault.pending);
}

GUEST_CODE64(halts, sti; 1: hlt; incq GUEST_FREE; jmp 1b);
GUEST_CODE64(pauses, 1: pause; incq GUEST_FREE; jmp 1b);

/* HLT and PAUSE are left to the guest: the VMM hears nothing of them, but can stop it as ever. */
TEST(disable_exits)
{
	struct itimerval timer = { .it_value.tv_usec = 50000, .it_interval.tv_usec = 50000 };
	struct vm vm = vm_create();
	int allowed = device_extension(KVM_CAP_X86_DISABLE_EXITS);
	struct vcpu vcpu;

	ASSERT_EQ(KVM_X86_DISABLE_EXITS_HLT | KVM_X86_DISABLE_EXITS_PAUSE,
		  allowed & (KVM_X86_DISABLE_EXITS_HLT | KVM_X86_DISABLE_EXITS_PAUSE));
	EXPECT_EQ(-EINVAL, enable(vm.fd, KVM_CAP_X86_DISABLE_EXITS, 0, 1 << 8));
	EXPECT_EQ(-EINVAL, enable(vm.fd, KVM_CAP_X86_DISABLE_EXITS, 0, 1ull << 32));
	EXPECT_EQ(-EINVAL, enable(vm.fd, KVM_CAP_X86_DISABLE_EXITS, 1, KVM_X86_DISABLE_EXITS_HLT));
	EXPECT_EQ(0, enable(vm.fd, KVM_CAP_X86_DISABLE_EXITS, 0, KVM_X86_DISABLE_EXITS_HLT));
	EXPECT_EQ(0, enable(vm.fd, KVM_CAP_X86_DISABLE_EXITS, 0, KVM_X86_DISABLE_EXITS_PAUSE));
	vcpu = vcpu_create(&vm, 0);
	vcpu_set_supported_cpuid(&vcpu);
	EXPECT_EQ(-EINVAL, enable(vm.fd, KVM_CAP_X86_DISABLE_EXITS, 0, KVM_X86_DISABLE_EXITS_HLT));
	let_signal_interrupt(SIGALRM);
	setitimer(ITIMER_REAL, &timer, NULL);
	guest_load(&vm, halts);
	guest_set_mode(&vcpu, MODE_LONG);
	EXPECT_EQ(-EINTR, vcpu_run(&vcpu));
	guest_load(&vm, pauses);
	guest_set_mode(&vcpu, MODE_LONG);
	EXPECT_EQ(-EINTR, vcpu_run(&vcpu));
	vcpu_free(&vcpu);
	vm_free(&vm);
}

/* It waits for a write that doesn't come, and has nothing but the host's interrupts to wake it. */
GUEST_CODE64(waits_for_write, 1: mov $GUEST_FREE + 0x800, %eax; xor %ecx, %ecx; xor %edx, %edx; monitor; xor %eax, %eax; mwait;
	incq GUEST_FREE; jmp 1b);

TEST(disable_mwait_exits)
{
	struct itimerval timer = { .it_value.tv_usec = 50000, .it_interval.tv_usec = 50000 }, none = { 0 };
	struct vm vm = vm_create();
	int allowed = device_extension(KVM_CAP_X86_DISABLE_EXITS), stats;
	struct vcpu vcpu;
	volatile uint64_t *times;
	int64_t exits;

	if (!(allowed & KVM_X86_DISABLE_EXITS_MWAIT)) {
		EXPECT_EQ(-EINVAL, enable(vm.fd, KVM_CAP_X86_DISABLE_EXITS, 0, KVM_X86_DISABLE_EXITS_MWAIT));
		SKIP(return, "the CPU can't");
	}
	ASSERT_EQ(0, enable(vm.fd, KVM_CAP_X86_DISABLE_EXITS, 0, KVM_X86_DISABLE_EXITS_MWAIT));
	vcpu = vcpu_create(&vm, 0);
	vcpu_set_supported_cpuid(&vcpu);
	EXPECT_EQ(-EINVAL, enable(vm.fd, KVM_CAP_X86_DISABLE_EXITS, 0, KVM_X86_DISABLE_EXITS_MWAIT));
	let_signal_interrupt(SIGALRM);
	guest_load(&vm, waits_for_write);
	guest_set_mode(&vcpu, MODE_LONG);
	stats = try_ioctl(vcpu.fd, KVM_GET_STATS_FD, 0);
	times = vm_at(&vm, GUEST_FREE);
	setitimer(ITIMER_REAL, &timer, NULL);
	EXPECT_EQ(-EINTR, vcpu_run(&vcpu));
	exits = stats_value(stats, "exits");
	*times = 0;
	for (int i = 0; i < 5; i++)
		EXPECT_EQ(-EINTR, vcpu_run(&vcpu));
	setitimer(ITIMER_REAL, &none, NULL);
	exits = stats_value(stats, "exits") - exits;
	TH_LOG("%lu times, %ld exits", *times, exits);
	EXPECT_LT(0, *times);
	/* With exits there would be two each time. */
	EXPECT_GT(2 * *times, exits);
	close(stats);
	vcpu_free(&vcpu);
	vm_free(&vm);
}

GUEST_CODE64(monitors, mov $GUEST_FREE, %eax; xor %ecx, %ecx; xor %edx, %edx; monitor; mwait; GUEST_DONE);

static void set_monitor(struct vcpu *vcpu, bool on)
{
	struct kvm_cpuid2 *cpuid = supported_cpuid();
	struct kvm_cpuid_entry2 *leaf = cpuid_entry(cpuid, 1, 0);

	leaf->ecx = (leaf->ecx & ~8u) | (on ? 8 : 0);
	do_ioctl(vcpu->fd, KVM_SET_CPUID2, cpuid);
}

/* The exception that MONITOR and MWAIT raise in a new VM, 0 for none. */
static uint32_t monitor(uint64_t quirks, bool in_cpuid, uint64_t misc_enable)
{
	struct vm vm = vm_create();
	struct vcpu vcpu = vcpu_create(&vm, 0);
	uint32_t vector;

	if (enable(vm.fd, KVM_CAP_DISABLE_QUIRKS2, 0, quirks))
		fatal("quirks %#lx", quirks);
	set_monitor(&vcpu, in_cpuid);
	vcpu_set_msr(&vcpu, 0x1a0, misc_enable);
	guest_load(&vm, monitors);
	guest_set_mode(&vcpu, MODE_LONG);
	vcpu_run_to(&vcpu, KVM_EXIT_IO);
	vector = vcpu.run->io.port == PORT_EXCEPTION ? *(uint8_t *)vcpu_io_data(&vcpu) : 0;
	vcpu_free(&vcpu);
	vm_free(&vm);
	return vector;
}

TEST(monitor_quirks)
{
	const uint64_t faults = KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS, follows = KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT;

	EXPECT_EQ(faults | follows, device_extension(KVM_CAP_DISABLE_QUIRKS2) & (faults | follows));
	EXPECT_EQ(0, monitor(0, false, 0));
	EXPECT_EQ(6, monitor(faults, false, 0));
	EXPECT_EQ(0, monitor(faults, true, 0));
	EXPECT_EQ(6, monitor(faults | follows, true, 0));
	EXPECT_EQ(0, monitor(faults | follows, false, 1 << 18));
}

XVM_TEST_MAIN
