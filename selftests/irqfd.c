// SPDX-License-Identifier: GPL-2.0
/* KVM_IRQFD: eventfds that raise interrupts, edges and levels, while routes change, descriptors close and threads race. */
#include "irqchip.h"
#include "eventfds.h"

#define RESAMPLE KVM_IRQFD_FLAG_RESAMPLE
#define DEASSIGN KVM_IRQFD_FLAG_DEASSIGN
#define LEVEL 0x8000

GUEST_CODE64(wait_only, ENABLE_APIC; NO_PIC; out %al, $PORT_SYNC; WAIT_LOOP);

/* RSI: pin; RDI: the low half of its entry in the IOAPIC. */
GUEST_CODE64(through_ioapic,
	ENABLE_APIC; NO_PIC;
	lea 0x11(%rsi,%rsi), %eax; mov %eax, (%r13); movl $0, 0x10(%r13);
	lea 0x10(%rsi,%rsi), %eax; mov %eax, (%r13); mov %edi, 0x10(%r13);
	out %al, $PORT_SYNC; WAIT_LOOP);

static void route_msi(struct vm *vm, uint32_t gsi, uint8_t vector)
{
	struct routing table = {
		.header.nr = 1,
		.entries = { { .gsi = gsi, .type = KVM_IRQ_ROUTING_MSI, .u.msi = { .address_lo = 0xfee00000, .data = vector } } },
	};

	do_ioctl(vm->fd, KVM_SET_GSI_ROUTING, &table);
}

/* Runs until the guest waits in HLT: what came is done with. Another interrupt before that is returned. */
static uint32_t settle(struct vcpu *vcpu)
{
	struct itimerval soon = { .it_value.tv_usec = 5000 };
	struct kvm_mp_state state;

	let_signal_interrupt(SIGALRM);
	do {
		int reason;

		setitimer(ITIMER_REAL, &soon, NULL);
		reason = vcpu_run(vcpu);
		if (reason == KVM_EXIT_IO && vcpu->run->io.port == PORT_EXCEPTION)
			return *(uint8_t *)vcpu_io_data(vcpu);
		if (reason != -EINTR)
			fatal("exit %s", exit_name(reason));
		do_ioctl(vcpu->fd, KVM_GET_MP_STATE, &state);
	} while (state.mp_state != KVM_MP_STATE_HALTED);
	return 0;
}

#define expect_silence() EXPECT_EQ(0, settle(&self->vcpu))
#define expect_interrupt(vector) EXPECT_EQ(vector, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION))

static void start_waiting(FIXTURE_DATA(irqchip) *self)
{
	start(wait_only);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
}

static void start_level(FIXTURE_DATA(irqchip) *self, unsigned int pin, uint8_t vector)
{
	struct kvm_regs regs;

	start(through_ioapic);
	regs = vcpu_regs(&self->vcpu);
	regs.rsi = pin;
	regs.rdi = vector | LEVEL;
	vcpu_set_regs(&self->vcpu, &regs);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
}

TEST_F(irqchip, edges)
{
	int fd = event_new();

	start_waiting(self);
	route_msi(&self->vm, 40, 0x91);
	ASSERT_EQ(0, irqfd(&self->vm, fd, 40, 0, 0));
	for (int i = 0; i < 3; i++) {
		event_signal(fd);
		expect_interrupt(0x91);
	}
	/* The counter was read for each, so that nobody else sees it. */
	EXPECT_EQ(0, event_count(fd));
	/* In use, the route leads elsewhere, then nowhere, then back. */
	route_msi(&self->vm, 40, 0x92);
	event_signal(fd);
	expect_interrupt(0x92);
	route_msi(&self->vm, 41, 0x92);
	event_signal(fd);
	expect_silence();
	route_msi(&self->vm, 40, 0x93);
	event_signal(fd);
	expect_interrupt(0x93);
	ASSERT_EQ(0, irqfd(&self->vm, fd, 40, DEASSIGN, 0));
	event_signal(fd);
	expect_silence();
	EXPECT_EQ(1, event_count(fd));
	/* What came before it was assigned counts. */
	event_signal(fd);
	ASSERT_EQ(0, irqfd(&self->vm, fd, 40, 0, 0));
	expect_interrupt(0x93);
	close(fd);
}

TEST_F(irqchip, through_the_chips)
{
	int fd = event_new();

	start_level(self, 9, 0x59);
	ASSERT_EQ(0, irqfd(&self->vm, fd, 9, 0, 0));
	/* A level that has fallen again: once. */
	event_signal(fd);
	expect_interrupt(0x59);
	expect_silence();
	close(fd);
}

TEST_F(irqchip, resampling)
{
	int fd[2] = { event_new(), event_new() }, resample[2] = { event_new(), event_new() };

	start_level(self, 10, 0x5a);
	ASSERT_EQ(0, irqfd(&self->vm, fd[0], 10, RESAMPLE, resample[0]));
	ASSERT_EQ(0, irqfd(&self->vm, fd[1], 10, RESAMPLE, resample[1]));
	for (int i = 0; i < 3; i++) {
		event_signal(fd[i & 1]);
		expect_interrupt(0x5a);
		/* Before its end nobody is asked. */
		EXPECT_EQ(0, event_count(resample[0]));
		expect_silence();
		/* After it all are, and the line has fallen. */
		EXPECT_EQ(1, event_count(resample[0]));
		EXPECT_EQ(1, event_count(resample[1]));
	}
	/* The VMM holds the line as well: it stays up, and all are asked each time. */
	ASSERT_EQ(0, irq_line(&self->vm, 10, 1));
	event_signal(fd[0]);
	expect_interrupt(0x5a);
	expect_interrupt(0x5a);
	EXPECT_EQ(1, event_count(resample[0]));
	expect_interrupt(0x5a);
	EXPECT_EQ(1, event_count(resample[0]));
	ASSERT_EQ(0, irq_line(&self->vm, 10, 0));
	expect_silence();
	/* One goes, the other is still asked; when both are gone the line falls. */
	ASSERT_EQ(0, irqfd(&self->vm, fd[0], 10, DEASSIGN, 0));
	event_count(resample[0]);
	event_count(resample[1]);
	event_signal(fd[1]);
	expect_interrupt(0x5a);
	expect_silence();
	EXPECT_EQ(0, event_count(resample[0]));
	EXPECT_EQ(1, event_count(resample[1]));
	event_signal(fd[1]);
	ASSERT_EQ(0, irqfd(&self->vm, fd[1], 10, DEASSIGN, 0));
	expect_interrupt(0x5a);
	expect_silence();
	EXPECT_EQ(0, event_count(resample[1]));
}

/* The 8259 pair at vectors 0x20 and 0x28, all lines open, line 11 a level; ends are told to both. */
GUEST_CODE64(through_pic,
	ENABLE_APIC; movl $0x700, APIC_LVT_LINT0(%r14);
	mov $0x11, %al; out %al, $0x20; out %al, $0xa0; mov $0x20, %al; out %al, $0x21; mov $0x28, %al; out %al, $0xa1;
	mov $4, %al; out %al, $0x21; mov $2, %al; out %al, $0xa1; mov $1, %al; out %al, $0x21; out %al, $0xa1;
	mov $8, %al; mov $0x4d1, %edx; out %al, %dx;
	xor %eax, %eax; out %al, $0x21; out %al, $0xa1; out %al, $PORT_SYNC;
	1: sti; hlt; cli; mov $0x20, %al; out %al, $0xa0; out %al, $0x20; jmp 1b);

TEST_F(irqchip, resampling_by_pic)
{
	int fd = event_new(), resample = event_new();

	start(through_pic);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	ASSERT_EQ(0, irqfd(&self->vm, fd, 11, RESAMPLE, resample));
	for (int i = 0; i < 3; i++) {
		event_signal(fd);
		expect_interrupt(0x2b);
		EXPECT_EQ(0, event_count(resample));
		expect_silence();
		EXPECT_EQ(1, event_count(resample));
	}
}

/* The answer to the end of an interrupt is another one: a storm for the guest, and nothing else. */
TEST_F(irqchip, resampling_itself)
{
	int fd = event_new(), other = event_new();

	start_level(self, 10, 0x5a);
	ASSERT_EQ(0, irqfd(&self->vm, fd, 10, RESAMPLE, fd));
	event_signal(fd);
	for (int i = 0; i < 50; i++)
		expect_interrupt(0x5a);
	ASSERT_EQ(0, irqfd(&self->vm, fd, 10, DEASSIGN, 0));
	/* Two on one pin, each the other's answer. */
	ASSERT_EQ(0, irqfd(&self->vm, fd, 10, RESAMPLE, other));
	ASSERT_EQ(0, irqfd(&self->vm, other, 10, RESAMPLE, fd));
	event_signal(fd);
	for (int i = 0; i < 50; i++)
		expect_interrupt(0x5a);
}

TEST_F(irqchip, one_eventfd_one_line)
{
	struct vm other = vm_create();
	int fd = event_new(), copy = dup(fd);

	vm_create_irqchip(&other);
	ASSERT_EQ(0, irqfd(&self->vm, fd, 10, 0, 0));
	EXPECT_EQ(-EBUSY, irqfd(&self->vm, fd, 10, 0, 0));
	EXPECT_EQ(-EBUSY, irqfd(&self->vm, fd, 11, 0, 0));
	EXPECT_EQ(-EBUSY, irqfd(&self->vm, copy, 11, RESAMPLE, fd));
	EXPECT_EQ(-EBUSY, irqfd(&other, fd, 10, 0, 0));
	/* Any number of lines may be let go of, whoever had them. */
	EXPECT_EQ(0, irqfd(&self->vm, fd, 11, DEASSIGN, 0));
	EXPECT_EQ(0, irqfd(&other, fd, 10, DEASSIGN, 0));
	EXPECT_EQ(-EBUSY, irqfd(&other, fd, 10, 0, 0));
	EXPECT_EQ(0, irqfd(&self->vm, copy, 10, DEASSIGN, 0));
	ASSERT_EQ(0, irqfd(&other, fd, 10, 0, 0));
	/* A VM's descriptor is what holds it, also while a vCPU's keeps the VM. */
	ASSERT_EQ(0, irqfd(&other, fd, 10, DEASSIGN, 0));
	ASSERT_EQ(0, irqfd(&self->vm, fd, 10, 0, 0));
	close(self->vm.fd);
	EXPECT_EQ(0, irqfd(&other, fd, 10, 0, 0));
	self->vm.fd = dup(other.fd);
	/* Two eventfds on one line. */
	close(copy);
	copy = event_new();
	EXPECT_EQ(0, irqfd(&other, copy, 10, 0, 0));
	vm_free(&other);
}

TEST_F(irqchip, closed_eventfd)
{
	/* More than fit into any table of descriptors at once. */
	for (int i = 0; i < scaled(3000); i++) {
		int fd = event_new(), resample = event_new();

		ASSERT_EQ(0, irqfd(&self->vm, fd, 10, i & 1 ? RESAMPLE : 0, resample));
		if (i & 2)
			event_signal(fd);
		close(fd);
		close(resample);
	}
}

TEST_F(irqchip, refusals)
{
	int fd = event_new(), pipes[2];
	struct vm bare = vm_create();

	ASSERT_EQ(0, pipe(pipes));
	EXPECT_EQ(-EINVAL, irqfd(&bare, fd, 0, 0, 0));
	EXPECT_EQ(-EINVAL, irqfd(&self->vm, fd, 0, 4, 0));
	EXPECT_EQ(-EINVAL, irqfd(&self->vm, fd, 0, 0x80000000, 0));
	EXPECT_EQ(-EINVAL, irqfd(&self->vm, fd, 0, DEASSIGN | 4, 0));
	EXPECT_EQ(-EBADF, irqfd(&self->vm, -1, 0, 0, 0));
	EXPECT_EQ(-EBADF, irqfd(&self->vm, 1000, 0, DEASSIGN, 0));
	EXPECT_EQ(-EINVAL, irqfd(&self->vm, pipes[0], 0, 0, 0));
	EXPECT_EQ(-EINVAL, irqfd(&self->vm, self->vm.fd, 0, DEASSIGN, 0));
	EXPECT_EQ(-EBADF, irqfd(&self->vm, fd, 0, RESAMPLE, -1));
	EXPECT_EQ(-EINVAL, irqfd(&self->vm, fd, 0, RESAMPLE, pipes[1]));
	EXPECT_EQ(-EFAULT, try_ioctl(self->vm.fd, KVM_IRQFD, 8));
	/* None of them has taken it; a GSI that leads nowhere is one all the same. */
	EXPECT_EQ(0, irqfd(&self->vm, fd, 0xffffffff, 0, 0));
	event_signal(fd);
	EXPECT_EQ(0, irqfd(&self->vm, fd, 0xffffffff, DEASSIGN, 0));
	vm_free(&bare);
}

struct racer {
	struct vm *vm;
	int fd, resample;
	volatile bool done;
};

static void *keep_signalling(void *data)
{
	struct racer *racer = data;

	while (!racer->done)
		event_signal(racer->fd);
	return NULL;
}

static void *keep_routing(void *data)
{
	struct racer *racer = data;

	for (int i = 0; !racer->done; i++)
		route_msi(racer->vm, 40, 0x91 + i % 4);
	return NULL;
}

static void *keep_assigning(void *data)
{
	struct racer *racer = data;
	int fd = event_new();

	while (!racer->done) {
		irqfd(racer->vm, racer->fd, 40, DEASSIGN, 0);
		irqfd(racer->vm, fd, 10, RESAMPLE, racer->resample);
		irqfd(racer->vm, racer->fd, 40, 0, 0);
		irqfd(racer->vm, fd, 10, DEASSIGN, 0);
	}
	return NULL;
}

/* Signals, routes, assignments and the guest at once; what comes is one of the vectors that there are. */
TEST_F(irqchip, races)
{
	struct racer racer = { .vm = &self->vm, .fd = event_new(), .resample = event_new() };
	void *(*work[])(void *) = { keep_signalling, keep_routing, keep_assigning };
	pthread_t threads[3];

	start_waiting(self);
	ASSERT_EQ(0, irqfd(&self->vm, racer.fd, 40, 0, 0));
	for (int i = 0; i < 3; i++)
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, work[i], &racer));
	for (int i = 0; i < scaled(500); i++) {
		uint32_t vector = vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION);

		EXPECT_TRUE(vector >= 0x91 && vector <= 0x94) TH_LOG("vector 0x%x", vector);
	}
	racer.done = true;
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
}

XVM_TEST_MAIN
