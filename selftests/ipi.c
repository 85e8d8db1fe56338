// SPDX-License-Identifier: GPL-2.0
/*
 * Interrupts between processors, in all forms: who gets them, by physical and logical destinations, shorthands and priorities, in
 * xAPIC and x2APIC mode, with IDs above 255; NMI, INIT and start-up. One vCPU sends; the others are only looked at.
 */
#include "apic.h"

#define MOST 9
#define APIC_LDR 0xd0
#define APIC_DFR 0xe0
#define X2APIC_ICR 0x830
#define X2APIC (3 << 10)
#define VECTOR 0x61
#define LOGICAL (1 << 11)
#define LOWEST (1 << 8)
#define NMI (4 << 8)
#define INIT (5 << 8)
#define STARTUP (6 << 8)
#define ASSERT_LEVEL (1 << 14)
#define TO_SELF (1 << 18)
#define TO_ALL (2 << 18)
#define TO_OTHERS (3 << 18)

/* RDI, RSI: the lower and the upper half of the ICR. */
GUEST_CODE64(send_xapic, mov $APIC, %r14d; mov %esi, 0x310(%r14); mov %edi, APIC_ICR(%r14); GUEST_DONE);
GUEST_CODE64(send_x2apic, mov $X2APIC_ICR, %ecx; mov %edi, %eax; mov %esi, %edx; wrmsr; GUEST_DONE);

FIXTURE(ipi)
{
	struct vm vm;
	struct vcpu vcpus[MOST];
	uint32_t ids[MOST];
	int count;
};

FIXTURE_SETUP(ipi)
{
	self->vm = vm_create();
	vm_create_irqchip(&self->vm);
}

FIXTURE_TEARDOWN(ipi)
{
	for (int i = 0; i < self->count; i++)
		vcpu_free(&self->vcpus[i]);
	vm_free(&self->vm);
}

static void set_register(struct kvm_lapic_state *lapic, int offset, uint32_t value)
{
	memcpy(lapic->regs + offset, &value, sizeof(value));
}

static void set_registers(struct vcpu *vcpu, uint32_t ldr, uint32_t dfr, uint32_t tpr)
{
	struct kvm_lapic_state lapic;

	do_ioctl(vcpu->fd, KVM_GET_LAPIC, &lapic);
	set_register(&lapic, APIC_SVR, 0x1ff);
	set_register(&lapic, APIC_LDR, ldr << 24);
	set_register(&lapic, APIC_DFR, dfr);
	set_register(&lapic, APIC_TPR, tpr);
	do_ioctl(vcpu->fd, KVM_SET_LAPIC, &lapic);
}

static void make_vcpus(FIXTURE_DATA(ipi) *self, bool x2apic, int count, const uint32_t *ids)
{
	self->count = count;
	for (int i = 0; i < count; i++) {
		struct vcpu *vcpu = &self->vcpus[i];
		struct kvm_sregs sregs;

		self->ids[i] = ids[i];
		*vcpu = vcpu_create(&self->vm, ids[i]);
		vcpu_set_supported_cpuid(vcpu);
		sregs = vcpu_sregs(vcpu);
		sregs.apic_base |= x2apic ? X2APIC : 0;
		vcpu_set_sregs(vcpu, &sregs);
		set_registers(vcpu, 1 << (i & 7), -1u, 0);
	}
	if (x2apic)
		guest_load(&self->vm, send_x2apic);
	else
		guest_load(&self->vm, send_xapic);
}

static void send(FIXTURE_DATA(ipi) *self, uint32_t high, uint32_t low)
{
	struct kvm_regs regs;

	guest_set_mode(&self->vcpus[0], MODE_LONG);
	regs = vcpu_regs(&self->vcpus[0]);
	regs.rsi = high;
	regs.rdi = low;
	vcpu_set_regs(&self->vcpus[0], &regs);
	vcpu_run_to_port(&self->vcpus[0], PORT_DONE);
}

/* Which vCPUs have VECTOR in their IRRs; it is taken out again. */
static uint32_t receivers(FIXTURE_DATA(ipi) *self)
{
	uint32_t mask = 0;

	for (int i = 0; i < self->count; i++) {
		struct kvm_lapic_state lapic;
		char *irr = lapic.regs + APIC_IRR + VECTOR / 32 * 16 + VECTOR % 32 / 8;

		do_ioctl(self->vcpus[i].fd, KVM_GET_LAPIC, &lapic);
		mask |= (*irr >> VECTOR % 8 & 1) << i;
		*irr = 0;
		do_ioctl(self->vcpus[i].fd, KVM_SET_LAPIC, &lapic);
	}
	return mask;
}

struct ipi {
	uint32_t high, low, receivers;
};

#define CHECK(table) do { \
	for (int i_ = 0; i_ < ARRAY_SIZE(table); i_++) { \
		send(self, (table)[i_].high, (table)[i_].low); \
		EXPECT_EQ((table)[i_].receivers, receivers(self)) \
			TH_LOG("ICR %08x:%08x", (table)[i_].high, (table)[i_].low); \
	} } while (0)

#define CREATE(x2apic, ...) do { \
	static const uint32_t ids_[] = { __VA_ARGS__ }; \
	make_vcpus(self, x2apic, ARRAY_SIZE(ids_), ids_); } while (0)

TEST_F(ipi, flat)
{
	static const struct ipi table[] = {
		{ 0, VECTOR, 1 }, { 2 << 24, VECTOR, 4 }, { 9 << 24, VECTOR, 0 }, { 0xff << 24, VECTOR, 0xf },
		{ 0x05 << 24, LOGICAL | VECTOR, 0x5 }, { 0xf0 << 24, LOGICAL | VECTOR, 0 }, { 0xff << 24, LOGICAL | VECTOR, 0xf },
		{ 2 << 24, TO_SELF | VECTOR, 1 }, { 0, TO_ALL | VECTOR, 0xf }, { 0, TO_OTHERS | VECTOR, 0xe },
	};
	/* KVM goes by the vector alone. */
	static const struct ipi priorities[] = {
		{ 0x0f << 24, LOGICAL | LOWEST | VECTOR, 4 }, { 0x0b << 24, LOGICAL | LOWEST | VECTOR, 8 }, { 2 << 24, LOWEST | VECTOR, 4 },
	};

	CREATE(false, 0, 1, 2, 3);
	for (int i = 0; i < 4; i++)
		set_registers(&self->vcpus[i], 1 << i, -1u, (uint32_t[]){ 0x50, 0x40, 0, 0x10 }[i]);
	CHECK(table);
	if (device_is_xvm())
		CHECK(priorities);
	/* What is software-disabled takes no vectors. */
	struct kvm_lapic_state lapic;

	do_ioctl(self->vcpus[2].fd, KVM_GET_LAPIC, &lapic);
	set_register(&lapic, APIC_SVR, 0xff);
	do_ioctl(self->vcpus[2].fd, KVM_SET_LAPIC, &lapic);
	send(self, 0, TO_ALL | VECTOR);
	EXPECT_EQ(0xb, receivers(self));
}

TEST_F(ipi, clusters)
{
	static const struct ipi table[] = {
		{ 0x13 << 24, LOGICAL | VECTOR, 0x3 }, { 0x12 << 24, LOGICAL | VECTOR, 0x2 }, { 0x22 << 24, LOGICAL | VECTOR, 0x8 },
		{ 0x2f << 24, LOGICAL | VECTOR, 0xc }, { 0x31 << 24, LOGICAL | VECTOR, 0 }, { 0xff << 24, LOGICAL | VECTOR, 0xf },
	};

	CREATE(false, 0, 1, 2, 3);
	for (int i = 0; i < 4; i++)
		set_registers(&self->vcpus[i], (uint32_t[]){ 0x11, 0x12, 0x21, 0x22 }[i], 0x0fffffff, 0);
	CHECK(table);
}

/* The IDs' logical ones are cluster id / 16, bit id % 16. */
TEST_F(ipi, x2apic)
{
	static const struct ipi table[] = {
		{ 0, VECTOR, 0x1 }, { 16, VECTOR, 0x4 }, { 255, VECTOR, 0x10 }, { 256, VECTOR, 0x20 }, { 300, VECTOR, 0x40 }, { 1023, VECTOR, 0x80 },
		{ 4095, VECTOR, 0x100 }, { 2, VECTOR, 0 }, { 4096, VECTOR, 0 }, { 0x01000000, VECTOR, 0 }, { -1u - 1, VECTOR, 0 }, { -1u, VECTOR, 0x1ff },
		{ 0x0003, LOGICAL | VECTOR, 0x3 }, { 0xff00, LOGICAL | VECTOR, 0 }, { 0x10003, LOGICAL | VECTOR, 0xc },
		{ 0xf8000, LOGICAL | VECTOR, 0x10 }, { 0x100001, LOGICAL | VECTOR, 0x20 }, { 0xff8000, LOGICAL | VECTOR, 0x100 },
		{ 0xff7fff, LOGICAL | VECTOR, 0 }, { 0xffff0001, LOGICAL | VECTOR, 0 }, { -1u, LOGICAL | VECTOR, 0x1ff },
		{ 0x10002, LOGICAL | LOWEST | VECTOR, 0x8 }, { 17, LOWEST | VECTOR, 0x8 },
		{ 0, TO_SELF | VECTOR, 0x1 }, { 0, TO_ALL | VECTOR, 0x1ff }, { 0, TO_OTHERS | VECTOR, 0x1fe },
	};

	CREATE(true, 0, 1, 16, 17, 255, 256, 300, 1023, 4095);
	CHECK(table);
}

/* Messages of devices: what an 8-bit broadcast means, and what the upper half of the address means, is the VMM's choice. */
TEST_F(ipi, messages)
{
	struct kvm_enable_cap api = { .cap = KVM_CAP_X2APIC_API, .args = { 1ull << 4 } };
	struct kvm_msi msi = { .address_lo = 0xfee00000 | 0xff << 12, .data = VECTOR };
	struct kvm_lapic_state lapic;
	struct routing routing = {
		.header.nr = 1,
		.entries = { { .gsi = 30, .type = KVM_IRQ_ROUTING_MSI, .u.msi = { .address_lo = 0xfee00000, .address_hi = 0x101 } } },
	};
	uint32_t id;

	CREATE(true, 0, 255, 300);
	ASSERT_LT(0, try_ioctl(self->vm.fd, KVM_SIGNAL_MSI, &msi));
	EXPECT_EQ(7, receivers(self));
	msi.address_hi = 0x101;
	ASSERT_LT(0, try_ioctl(self->vm.fd, KVM_SIGNAL_MSI, &msi));
	EXPECT_EQ(7, receivers(self));
	do_ioctl(self->vcpus[2].fd, KVM_GET_LAPIC, &lapic);
	memcpy(&id, lapic.regs + 0x20, 4);
	EXPECT_EQ(300u << 24, id);

	EXPECT_EQ(-EINVAL, try_ioctl(self->vm.fd, KVM_ENABLE_CAP, &api));
	api.args[0] = -1ull;
	EXPECT_EQ(-EINVAL, try_ioctl(self->vm.fd, KVM_ENABLE_CAP, &api));
	EXPECT_EQ(3, try_ioctl(self->vm.fd, KVM_CHECK_EXTENSION, KVM_CAP_X2APIC_API) & 3);
	api.args[0] = 3;
	ASSERT_EQ(0, try_ioctl(self->vm.fd, KVM_ENABLE_CAP, &api));
	EXPECT_EQ(-EINVAL, try_ioctl(self->vm.fd, KVM_SIGNAL_MSI, &msi));
	EXPECT_EQ(-EINVAL, try_ioctl(self->vm.fd, KVM_SET_GSI_ROUTING, &routing));
	msi.address_hi = 0;
	ASSERT_LT(0, try_ioctl(self->vm.fd, KVM_SIGNAL_MSI, &msi));
	EXPECT_EQ(2, receivers(self));
	msi.address_hi = 0x100;
	msi.address_lo = 0xfee00000 | 44 << 12;
	ASSERT_LT(0, try_ioctl(self->vm.fd, KVM_SIGNAL_MSI, &msi));
	EXPECT_EQ(4, receivers(self));
	msi.address_hi = 0xffffff00;
	msi.address_lo = 0xfee00000 | 0xff << 12;
	ASSERT_LT(0, try_ioctl(self->vm.fd, KVM_SIGNAL_MSI, &msi));
	EXPECT_EQ(7, receivers(self));
	routing.entries[0].u.msi = (struct kvm_irq_routing_msi){ .address_lo = 0xfee00000 | 44 << 12, .address_hi = 0x100, .data = VECTOR };
	ASSERT_EQ(0, try_ioctl(self->vm.fd, KVM_SET_GSI_ROUTING, &routing));
	ASSERT_EQ(0, irq_line(&self->vm, 30, 1));
	EXPECT_EQ(4, receivers(self));
	do_ioctl(self->vcpus[2].fd, KVM_GET_LAPIC, &lapic);
	memcpy(&id, lapic.regs + 0x20, 4);
	EXPECT_EQ(300, id);
	set_register(&lapic, 0x20, 44);
	EXPECT_EQ(-EINVAL, try_ioctl(self->vcpus[2].fd, KVM_SET_LAPIC, &lapic));
}

static uint32_t mp_state(struct vcpu *vcpu)
{
	struct kvm_mp_state state;

	do_ioctl(vcpu->fd, KVM_GET_MP_STATE, &state);
	return state.mp_state;
}

TEST_F(ipi, nmi)
{
	static const uint8_t pending[] = { 0, 2, 1 };
	struct kvm_vcpu_events events;

	CREATE(false, 0, 1, 2);
	send(self, 1 << 24, NMI);
	send(self, 0, TO_OTHERS | NMI);
	for (int i = 0; i < 3; i++) {
		do_ioctl(self->vcpus[i].fd, KVM_GET_VCPU_EVENTS, &events);
		EXPECT_EQ(pending[i], events.nmi.pending) TH_LOG("vCPU %d", i);
	}
	/* No more than two wait. */
	for (int i = 0; i < 5; i++)
		send(self, 2 << 24, NMI);
	do_ioctl(self->vcpus[2].fd, KVM_GET_VCPU_EVENTS, &events);
	EXPECT_EQ(2, events.nmi.pending);
}

/* INIT and start-up, step by step, as MP_STATE shows them. */
TEST_F(ipi, init_and_startup)
{
	struct kvm_msi init = { .address_lo = 0xfee00000, .data = INIT };
	struct vcpu *ap = self->vcpus + 1;
	struct kvm_sregs sregs;
	struct kvm_regs regs;

	CREATE(false, 0, 1, 2);
	EXPECT_EQ(KVM_MP_STATE_UNINITIALIZED, mp_state(ap));
	/* Only who waits for it takes a start-up IPI. */
	send(self, 1 << 24, STARTUP | 0x12);
	EXPECT_EQ(KVM_MP_STATE_UNINITIALIZED, mp_state(ap));
	/* A de-assert is no INIT. */
	send(self, 1 << 24, INIT | 1 << 15);
	EXPECT_EQ(KVM_MP_STATE_UNINITIALIZED, mp_state(ap));
	send(self, 1 << 24, INIT | ASSERT_LEVEL);
	EXPECT_EQ(KVM_MP_STATE_INIT_RECEIVED, mp_state(ap));
	EXPECT_EQ(KVM_MP_STATE_UNINITIALIZED, mp_state(&self->vcpus[2]));
	send(self, 1 << 24, STARTUP | 0x12);
	EXPECT_EQ(KVM_MP_STATE_RUNNABLE, mp_state(ap));
	sregs = vcpu_sregs(ap);
	EXPECT_EQ(0x12000, sregs.cs.base);
	EXPECT_EQ(0x1200, sregs.cs.selector);
	EXPECT_EQ(0, vcpu_regs(ap).rip);
	/* A second one changes nothing. */
	regs = vcpu_regs(ap);
	regs.rip = 0x77;
	vcpu_set_regs(ap, &regs);
	send(self, 1 << 24, STARTUP | 0x34);
	EXPECT_EQ(KVM_MP_STATE_RUNNABLE, mp_state(ap));
	EXPECT_EQ(0x77, vcpu_regs(ap).rip);
	/* An INIT after a start-up IPI that nobody has looked at makes that one void; the mode of the APIC stays. */
	sregs = vcpu_sregs(ap);
	sregs.apic_base |= X2APIC;
	vcpu_set_sregs(ap, &sregs);
	send(self, 1 << 24, STARTUP | 0x34);
	send(self, 0, TO_OTHERS | INIT | ASSERT_LEVEL);
	for (int i = 1; i < 3; i++)
		EXPECT_EQ(KVM_MP_STATE_INIT_RECEIVED, mp_state(&self->vcpus[i]));
	EXPECT_EQ(X2APIC, vcpu_sregs(ap).apic_base & X2APIC);
	EXPECT_EQ(0xfff0, vcpu_regs(ap).rip);
	/* The last vector of several counts. */
	send(self, 0, TO_OTHERS | STARTUP | 0x9a);
	send(self, 0, TO_OTHERS | STARTUP | 0x9f);
	for (int i = 1; i < 3; i++) {
		EXPECT_EQ(KVM_MP_STATE_RUNNABLE, mp_state(&self->vcpus[i]));
		EXPECT_EQ(0x9f000, vcpu_sregs(&self->vcpus[i]).cs.base);
	}
	/* The bootstrap processor does not wait. */
	ASSERT_LT(0, try_ioctl(self->vm.fd, KVM_SIGNAL_MSI, &init));
	EXPECT_EQ(KVM_MP_STATE_RUNNABLE, mp_state(&self->vcpus[0]));
	EXPECT_EQ(0xfff0, vcpu_regs(&self->vcpus[0]).rip);
}

/* A start-up IPI that the VMM restores. */
TEST_F(ipi, restored_startup)
{
	struct kvm_vcpu_events events;
	struct kvm_mp_state state = { .mp_state = 9 };

	CREATE(false, 0, 1);
	do_ioctl(self->vcpus[1].fd, KVM_GET_VCPU_EVENTS, &events);
	events.flags = KVM_VCPUEVENT_VALID_SIPI_VECTOR;
	events.sipi_vector = 0x45;
	do_ioctl(self->vcpus[1].fd, KVM_SET_VCPU_EVENTS, &events);
	for (state.mp_state = KVM_MP_STATE_STOPPED; state.mp_state < 20; state.mp_state++)
		if (device_is_xvm())
			EXPECT_EQ(-EINVAL, try_ioctl(self->vcpus[1].fd, KVM_SET_MP_STATE, &state));
	EXPECT_EQ(KVM_MP_STATE_UNINITIALIZED, mp_state(&self->vcpus[1]));
	state.mp_state = KVM_MP_STATE_SIPI_RECEIVED;
	ASSERT_EQ(0, try_ioctl(self->vcpus[1].fd, KVM_SET_MP_STATE, &state));
	EXPECT_EQ(KVM_MP_STATE_RUNNABLE, mp_state(&self->vcpus[1]));
	EXPECT_EQ(0x45000, vcpu_sregs(&self->vcpus[1]).cs.base);
}

XVM_TEST_MAIN
