// SPDX-License-Identifier: GPL-2.0
/* KVM_VCPU_EVENTS and KVM_MP_STATE: what is saved is what is restored, and what is refused. */
#include "test.h"

FIXTURE(events)
{
	struct vm vm;
	struct vcpu vcpu;
	struct kvm_vcpu_events events;
};

GUEST_CODE64(mask_events, out %al, $PORT_SYNC; 1: inc %rbx; out %al, $PORT_SYNC; jmp 1b);

FIXTURE_SETUP(events)
{
	guest_start(&self->vm, &self->vcpu, mask_events);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_GET_VCPU_EVENTS, &self->events));
}

FIXTURE_TEARDOWN(events)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

#define set_events() try_ioctl(self->vcpu.fd, KVM_SET_VCPU_EVENTS, &self->events)
#define get_events() try_ioctl(self->vcpu.fd, KVM_GET_VCPU_EVENTS, &self->events)

TEST_F(events, quiet_guest)
{
	EXPECT_EQ(0, self->events.exception.injected);
	EXPECT_EQ(0, self->events.interrupt.injected);
	EXPECT_EQ(0, self->events.interrupt.shadow);
	EXPECT_EQ(0, self->events.nmi.injected);
	EXPECT_EQ(0, self->events.nmi.pending);
	EXPECT_EQ(0, self->events.nmi.masked);
	EXPECT_EQ(0, set_events());
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
}

/* Queued events survive a save and a restore without the guest running. */
TEST_F(events, exception)
{
	struct kvm_vcpu_events seen;

	self->events.exception.injected = 1;
	self->events.exception.nr = 13;
	self->events.exception.has_error_code = 1;
	self->events.exception.error_code = 0x1238;
	ASSERT_EQ(0, set_events());
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_GET_VCPU_EVENTS, &seen));
	EXPECT_EQ(1, seen.exception.injected | seen.exception.pending);
	EXPECT_EQ(13, seen.exception.nr);
	EXPECT_EQ(1, seen.exception.has_error_code);
	EXPECT_EQ(0x1238, seen.exception.error_code);
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_SET_VCPU_EVENTS, &seen));
	EXPECT_EQ(13, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	EXPECT_EQ(0x1238, guest_report(&self->vm)->error);
	/* Delivered once. */
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	EXPECT_EQ(1, guest_report(&self->vm)->count);
}

TEST_F(events, interrupt)
{
	struct kvm_regs regs = vcpu_regs(&self->vcpu);

	regs.rflags |= 1 << 9;
	vcpu_set_regs(&self->vcpu, &regs);
	self->events.interrupt.injected = 1;
	self->events.interrupt.nr = 0x66;
	ASSERT_EQ(0, set_events());
	ASSERT_EQ(0, get_events());
	EXPECT_EQ(1, self->events.interrupt.injected);
	EXPECT_EQ(0x66, self->events.interrupt.nr);
	EXPECT_EQ(0x66, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
}

TEST_F(events, nmi)
{
	/* Masked by the VMM: a new one waits. */
	self->events.flags = KVM_VCPUEVENT_VALID_NMI_PENDING;
	self->events.nmi.masked = 1;
	self->events.nmi.pending = 1;
	ASSERT_EQ(0, set_events());
	for (int i = 0; i < 3; i++)
		vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	ASSERT_EQ(0, get_events());
	EXPECT_EQ(1, self->events.nmi.masked);
	EXPECT_EQ(1, self->events.nmi.pending);
	/* Unmasked, it comes. */
	self->events.nmi.masked = 0;
	ASSERT_EQ(0, set_events());
	EXPECT_EQ(2, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
}

TEST_F(events, shadow)
{
	struct kvm_regs regs = vcpu_regs(&self->vcpu);

	/* Interrupts are on, but for one instruction more, as behind STI. */
	regs.rflags |= 1 << 9;
	vcpu_set_regs(&self->vcpu, &regs);
	self->events.flags = KVM_VCPUEVENT_VALID_SHADOW;
	self->events.interrupt.shadow = KVM_X86_SHADOW_INT_STI;
	ASSERT_EQ(0, set_events());
	ASSERT_EQ(0, get_events());
	EXPECT_NE(0, self->events.interrupt.shadow);
	self->vcpu.run->request_interrupt_window = 1;
	self->vcpu.run->immediate_exit = 0;
	vcpu_run_to(&self->vcpu, KVM_EXIT_IRQ_WINDOW_OPEN);
	ASSERT_EQ(0, get_events());
	EXPECT_EQ(0, self->events.interrupt.shadow);
}

TEST_F(events, refused)
{
	struct kvm_vcpu_events good = self->events;

#define EXPECT_REFUSED(statement) do { \
		self->events = good; \
		statement; \
		EXPECT_EQ(-EINVAL, set_events()) TH_LOG("%s", #statement); \
	} while (0)
	EXPECT_REFUSED(self->events.flags = 1u << 31);
	EXPECT_REFUSED(self->events.flags = 1u << 10);
	EXPECT_REFUSED(self->events.exception.injected = 1; self->events.exception.nr = 32);
	EXPECT_REFUSED(self->events.exception.injected = 1; self->events.exception.nr = 255);
	EXPECT_REFUSED(self->events.exception.injected = 1; self->events.exception.nr = 2);
	/* Payloads need a capability that nobody has enabled. */
	EXPECT_REFUSED(self->events.flags = KVM_VCPUEVENT_VALID_PAYLOAD; self->events.exception.pending = 1; self->events.exception.nr = 14;
		       self->events.exception_has_payload = 1);
	EXPECT_EQ(-EFAULT, try_ioctl(self->vcpu.fd, KVM_GET_VCPU_EVENTS, 8));
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	EXPECT_EQ(0, guest_report(&self->vm)->count);
}

/* Any bytes at all: the host does not mind. */
TEST_F(events, hostile)
{
	uint64_t seed = random_seed();

	let_signal_interrupt(SIGALRM);
	for (unsigned long i = 0; i < scaled(200); i++) {
		struct itimerval timer = { .it_value.tv_usec = 10000 };

		for (unsigned int j = 0; j < sizeof(self->events); j++)
			((uint8_t *)&self->events)[j] = random_next(&seed) >> 20;
		self->events.flags &= 0x2f;
		self->events.exception.nr &= 31;
		set_events();
		setitimer(ITIMER_REAL, &timer, NULL);
		vcpu_run(&self->vcpu);
		timer.it_value.tv_usec = 0;
		setitimer(ITIMER_REAL, &timer, NULL);
		guest_set_mode(&self->vcpu, MODE_LONG);
	}
}

TEST_F(events, mp_state)
{
	struct kvm_mp_state state = { .mp_state = 99 };

	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_GET_MP_STATE, &state));
	EXPECT_EQ(KVM_MP_STATE_RUNNABLE, state.mp_state);
	EXPECT_EQ(0, try_ioctl(self->vcpu.fd, KVM_SET_MP_STATE, &state));
	/* Nothing can wake it without the in-kernel APIC. */
	state.mp_state = KVM_MP_STATE_SIPI_RECEIVED;
	EXPECT_EQ(-EINVAL, try_ioctl(self->vcpu.fd, KVM_SET_MP_STATE, &state));
	for (uint32_t i = KVM_MP_STATE_STOPPED; i < 20; i++) {
		state.mp_state = i;
		EXPECT_EQ(-EINVAL, try_ioctl(self->vcpu.fd, KVM_SET_MP_STATE, &state)) TH_LOG("state %u", i);
	}
	state.mp_state = 0xffffffff;
	EXPECT_EQ(-EINVAL, try_ioctl(self->vcpu.fd, KVM_SET_MP_STATE, &state));
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
}

GUEST_CODE64(after_halt, out %al, $PORT_SYNC; 1: inc %rbx; out %al, $PORT_SYNC; jmp 1b);

TEST(halted_state)
{
	struct vm vm = vm_create();
	struct kvm_mp_state state = { .mp_state = KVM_MP_STATE_HALTED };
	struct itimerval timer = { .it_value.tv_usec = 20000 };
	struct vcpu vcpu;

	vm_create_irqchip(&vm);
	vcpu = vcpu_create(&vm, 0);
	vcpu_set_supported_cpuid(&vcpu);
	guest_load(&vm, after_halt);
	guest_set_mode(&vcpu, MODE_LONG);
	vcpu_run_to_port(&vcpu, PORT_SYNC);
	/* Halted by the VMM: it does not run until something comes. */
	ASSERT_EQ(0, try_ioctl(vcpu.fd, KVM_SET_MP_STATE, &state));
	let_signal_interrupt(SIGALRM);
	setitimer(ITIMER_REAL, &timer, NULL);
	EXPECT_EQ(-EINTR, vcpu_run(&vcpu));
	EXPECT_EQ(0, vcpu_regs(&vcpu).rbx);
	ASSERT_EQ(0, try_ioctl(vcpu.fd, KVM_GET_MP_STATE, &state));
	EXPECT_EQ(KVM_MP_STATE_HALTED, state.mp_state);
	ASSERT_EQ(0, try_ioctl(vcpu.fd, KVM_NMI, 0));
	EXPECT_EQ(2, vcpu_run_to_port(&vcpu, PORT_EXCEPTION));
	ASSERT_EQ(0, try_ioctl(vcpu.fd, KVM_GET_MP_STATE, &state));
	EXPECT_EQ(KVM_MP_STATE_RUNNABLE, state.mp_state);
}

XVM_TEST_MAIN
