// SPDX-License-Identifier: GPL-2.0
/* KVM_REINJECT_CONTROL: ticks of the PIT that come while the guest is at an earlier one are made up for, or not. */
#include "irqchip.h"

#define MILLISECOND 1000000ull
#define PERIOD (10 * MILLISECOND)
#define HELD (30 * PERIOD)

/* Channel 0 in mode 2 at 100 Hz. */
#define START_PIT mov $0x34, %al; out %al, $0x43; mov $0x9c, %al; out %al, $0x40; mov $0x2e, %al; out %al, $0x40

/* By the 8259 pair and LINT0, in three ways, and by the IOAPIC. */
GUEST_CODE64(by_pic,
	ENABLE_APIC; movl $0x700, APIC_LVT_LINT0(%r14);
	mov $0x11, %al; out %al, $0x20; mov $0x20, %al; out %al, $0x21; mov $4, %al; out %al, $0x21; mov $1, %al; out %al, $0x21;
	mov $0xfe, %al; out %al, $0x21; GUEST_SYNC; START_PIT;
	1: sti; hlt; cli; mov $0x20, %al; out %al, $0x20; jmp 1b);
GUEST_CODE64(by_pic_auto_eoi,
	ENABLE_APIC; movl $0x700, APIC_LVT_LINT0(%r14);
	mov $0x11, %al; out %al, $0x20; mov $0x20, %al; out %al, $0x21; mov $4, %al; out %al, $0x21; mov $3, %al; out %al, $0x21;
	mov $0xfe, %al; out %al, $0x21; GUEST_SYNC; START_PIT;
	1: sti; hlt; cli; jmp 1b);
/* It masks the line while it is at it, as Linux does. */
GUEST_CODE64(by_masked_pic,
	ENABLE_APIC; movl $0x700, APIC_LVT_LINT0(%r14);
	mov $0x11, %al; out %al, $0x20; mov $0x20, %al; out %al, $0x21; mov $4, %al; out %al, $0x21; mov $1, %al; out %al, $0x21;
	mov $0xfe, %al; out %al, $0x21; GUEST_SYNC; START_PIT;
	1: sti; hlt; cli; mov $0xff, %al; out %al, $0x21; mov $0x20, %al; out %al, $0x20; mov $0xfe, %al; out %al, $0x21; jmp 1b);
GUEST_CODE64(by_ioapic,
	ENABLE_APIC; NO_PIC; movl $0x10, (%r13); movl $0x20, 0x10(%r13); GUEST_SYNC; START_PIT; WAIT_LOOP);

struct ticks {
	uint64_t begin;
	uint64_t count;
};

/* How long ago the last tick was due of which the guest has not been told. */
static int64_t behind(struct ticks *ticks)
{
	return now_ns() - ticks->begin - ticks->count * PERIOD;
}

static void take(FIXTURE_DATA(irqchip) *self, struct ticks *ticks)
{
	if (vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION) != 0x20)
		fatal("another interrupt");
	ticks->count++;
}

/* The guest is kept from running in its first tick. */
static struct ticks hold(FIXTURE_DATA(irqchip) *self)
{
	struct ticks ticks;

	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	ticks = (struct ticks){ now_ns() };
	take(self, &ticks);
	for (uint64_t start = now_ns(); now_ns() < start + HELD; )
		;
	return ticks;
}

static int reinject(FIXTURE_DATA(irqchip) *self, unsigned int wanted)
{
	struct kvm_reinject_control control = { .pit_reinject = wanted };

	return try_ioctl(self->vm.fd, KVM_REINJECT_CONTROL, &control);
}

#define expect_made_up() do { \
	struct ticks ticks = hold(self); \
\
	EXPECT_LT((int64_t)HELD - (int64_t)PERIOD, behind(&ticks)); \
	for (int i = 0; i < 1000 && behind(&ticks) > (int64_t)PERIOD; i++) { \
		take(self, &ticks); \
		/* None is made up for that wasn't. */ \
		ASSERT_LT(-(int64_t)PERIOD, behind(&ticks)); \
	} \
	EXPECT_GE((int64_t)PERIOD, behind(&ticks)); \
	TH_LOG("%lu ticks, %ld us behind", ticks.count, behind(&ticks) / 1000); \
} while (0)

#define expect_lost() do { \
	struct ticks ticks = hold(self); \
\
	for (int i = 0; i < 10; i++) \
		take(self, &ticks); \
	/* One was latched. */ \
	EXPECT_LT((int64_t)HELD - 3 * (int64_t)PERIOD, behind(&ticks)); \
} while (0)

TEST_F(irqchip, made_up_by_default)
{
	start(by_pic);
	expect_made_up();
}

TEST_F(irqchip, made_up_through_ioapic)
{
	start(by_ioapic);
	expect_made_up();
}

TEST_F(irqchip, made_up_with_masking)
{
	if (!device_is_xvm())
		SKIP(return, "kvm forgets ticks when the line is opened again");
	start(by_masked_pic);
	expect_made_up();
}

TEST_F(irqchip, made_up_with_auto_eoi)
{
	struct ticks ticks;

	start(by_pic_auto_eoi);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	ticks = (struct ticks){ now_ns() };
	for (int i = 0; i < 20; i++)
		take(self, &ticks);
	EXPECT_LE(0, behind(&ticks) + (int64_t)PERIOD);
}

TEST_F(irqchip, lost_if_asked_for)
{
	start(by_pic);
	ASSERT_EQ(0, reinject(self, 0));
	expect_lost();
}

TEST_F(irqchip, lost_through_ioapic)
{
	start(by_ioapic);
	ASSERT_EQ(0, reinject(self, 0));
	expect_lost();
}

/* What was kept is forgotten with the wish for it, and with a new state. */
TEST_F(irqchip, forgotten)
{
	struct kvm_pit_state2 state;
	struct ticks ticks;

	start(by_pic);
	ticks = hold(self);
	ASSERT_EQ(0, reinject(self, 0));
	ASSERT_EQ(0, reinject(self, 255));
	for (int i = 0; i < 5; i++)
		take(self, &ticks);
	EXPECT_LT((int64_t)HELD - 3 * (int64_t)PERIOD, behind(&ticks));
	for (uint64_t start = now_ns(); now_ns() < start + HELD; )
		;
	do_ioctl(self->vm.fd, KVM_GET_PIT2, &state);
	do_ioctl(self->vm.fd, KVM_SET_PIT2, &state);
	for (int i = 0; i < 5; i++)
		take(self, &ticks);
	EXPECT_LT(2 * (int64_t)HELD - 6 * (int64_t)PERIOD, behind(&ticks));
}

/* Both lines masked: nothing waits for the guest that begins to listen, and it isn't deaf either. */
GUEST_CODE64(late,
	ENABLE_APIC; NO_PIC; START_PIT; GUEST_SYNC; movl $0x10, (%r13); movl $0x20, 0x10(%r13); WAIT_LOOP);

TEST_F(irqchip, masked)
{
	struct ticks ticks;

	start(late);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	for (uint64_t start = now_ns(); now_ns() < start + HELD; )
		;
	ticks = (struct ticks){ now_ns() };
	for (int i = 0; i < 5; i++)
		take(self, &ticks);
	EXPECT_LE(0, behind(&ticks) + (int64_t)PERIOD);
}

TEST_F(irqchip, errors)
{
	struct kvm_reinject_control control;
	struct vm vm = vm_create();
	struct kvm_enable_cap split = { .cap = KVM_CAP_SPLIT_IRQCHIP, .args = { 24 } };

	EXPECT_EQ(1, try_ioctl(self->vm.fd, KVM_CHECK_EXTENSION, KVM_CAP_REINJECT_CONTROL));
	EXPECT_EQ(-EFAULT, try_ioctl(self->vm.fd, KVM_REINJECT_CONTROL, NULL));
	memset(&control, 0xff, sizeof(control));
	EXPECT_EQ(0, try_ioctl(self->vm.fd, KVM_REINJECT_CONTROL, &control));
	EXPECT_EQ(-ENXIO, try_ioctl(vm.fd, KVM_REINJECT_CONTROL, &control));
	ASSERT_EQ(0, try_ioctl(vm.fd, KVM_ENABLE_CAP, &split));
	EXPECT_EQ(-ENXIO, try_ioctl(vm.fd, KVM_REINJECT_CONTROL, &control));
	vm_free(&vm);
	vm = vm_create();
	vm_create_irqchip(&vm);
	EXPECT_EQ(-ENXIO, try_ioctl(vm.fd, KVM_REINJECT_CONTROL, &control));
	vm_free(&vm);
}

static volatile bool enough;

static void *change_mind(void *data)
{
	FIXTURE_DATA(irqchip) *self = data;
	unsigned int i = 0;

	while (!enough) {
		struct kvm_irqchip chip = { .chip_id = KVM_IRQCHIP_IOAPIC };

		if (reinject(self, i & 1))
			return data;
		if (!(i++ & 7)) {
			do_ioctl(self->vm.fd, KVM_GET_IRQCHIP, &chip);
			do_ioctl(self->vm.fd, KVM_SET_IRQCHIP, &chip);
		}
	}
	return NULL;
}

/* The ticks go on, whatever happens around them. */
TEST_F(irqchip, racing)
{
	struct ticks ticks;
	pthread_t thread;
	void *failed;

	start(by_ioapic);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	ticks = (struct ticks){ now_ns() };
	ASSERT_EQ(0, pthread_create(&thread, NULL, change_mind, self));
	for (int i = 0; i < 30; i++)
		take(self, &ticks);
	enough = true;
	pthread_join(thread, &failed);
	EXPECT_EQ(NULL, failed);
	EXPECT_LE(0, behind(&ticks) + (int64_t)PERIOD);
}

XVM_TEST_MAIN
