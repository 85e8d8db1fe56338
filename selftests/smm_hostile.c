// SPDX-License-Identifier: GPL-2.0
/* System management mode: saved states that a guest has spoilt, and interrupts by which the mode is entered. */
#include "apic.h"
#include "smm.h"

GUEST_CODE64(sync, GUEST_SYNC; GUEST_DONE);

FIXTURE(smm_hostile)
{
	struct vm vm;
	struct vcpu vcpu;
	uint8_t *smram;
};

FIXTURE_SETUP(smm_hostile)
{
	guest_start(&self->vm, &self->vcpu, sync);
	self->smram = smram_create(&self->vm);
	smram_load(self->smram, SMBASE, smm_report);
}

FIXTURE_TEARDOWN(smm_hostile)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

#define at64(offset) (*(uint64_t *)(self->smram + SMBASE + (offset)))

/* Has the guest's own state saved, in a mode. */
#define save_in(mode) do { \
	struct kvm_vcpu_events events_ = { .flags = KVM_VCPUEVENT_VALID_SMM }; \
	do_ioctl(self->vcpu.fd, KVM_SET_VCPU_EVENTS, &events_); \
	guest_set_mode(&self->vcpu, mode); \
	ASSERT_FALSE(sync_in_smm(&self->vcpu)); \
	vcpu_smi(&self->vcpu); \
	ASSERT_TRUE(sync_in_smm(&self->vcpu)); \
} while (0)

/* States that no processor can be in end in a shutdown (APM vol 2, 10.3.6; SDM vol 2, RSM). */
TEST_F(smm_hostile, states_that_cannot_be)
{
	static const struct { uint32_t offset; uint64_t set, clear; } spoilt[] = {
		{ AREA64_CR0, 1ull << 32, 0 },		/* reserved */
		{ AREA64_CR0, 0, 1 },			/* PG without PE */
		{ AREA64_CR0, 1 << 29, 1 << 30 },	/* NW without CD */
		{ AREA64_CR4, 1ull << 31, 0 },		/* reserved */
		{ AREA64_CR4, 1ull << 63, 0 },
		{ AREA64_CR4, 1 << 13, 0 },		/* VMXE */
		{ AREA64_CR4, 0, 1 << 5 },		/* long mode without PAE */
		{ AREA64_CR3, 1ull << 60, 0 },		/* beyond physical memory */
		{ AREA64_EFER, 1 << 9, 0 },		/* reserved */
		{ AREA64_EFER, 1ull << 40, 0 },
		{ AREA64_EFER, 1 << 12, 0 },		/* SVME */
		{ AREA64_EFER, 0, 1 << 8 },		/* CS.L without long mode */
		{ AREA64_DR6, 1ull << 32, 0 },
		{ AREA64_DR7, 1ull << 63, 0 },
		{ AREA64_RIP, 1ull << 47, 0 },		/* not canonical */
		{ AREA64_RFLAGS, 1 << 17, 0 },		/* virtual-8086 mode in long mode */
		{ AREA64_SEGMENT(4) + 8, 1ull << 62, 0 },
		{ AREA64_SEGMENT(9) + 8, 1ull << 47, 0 },
		{ AREA64_GDTR + 8, 1ull << 63, 0 },
		{ AREA64_SEGMENT(1), 1ull << 30, 0 },	/* CS with L and D */
	};

	for (int i = 0; i < sizeof(spoilt) / sizeof(spoilt[0]); i++) {
		save_in(MODE_LONG);
		at64(spoilt[i].offset) |= spoilt[i].set;
		at64(spoilt[i].offset) &= ~spoilt[i].clear;
		EXPECT_EQ(KVM_EXIT_SHUTDOWN, vcpu_run(&self->vcpu)) TH_LOG("%d", i);
		EXPECT_FALSE(in_smm(&self->vcpu));
	}
	/* It can be used all the same. */
	save_in(MODE_LONG);
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
}

/* PAE paging has four entries that are looked at. */
TEST_F(smm_hostile, pae_entries)
{
	save_in(MODE_PAE);
	*(uint64_t *)vm_at(&self->vm, GUEST_PAE_PDPT) |= 1 << 1;
	EXPECT_EQ(KVM_EXIT_SHUTDOWN, vcpu_run(&self->vcpu));
	save_in(MODE_PROTECTED);
	at64(AREA64_CR0) |= 1u << 31;
	at64(AREA64_CR4) |= 1 << 5;
	at64(AREA64_CR3) = 0x7ffff000;
	EXPECT_EQ(KVM_EXIT_SHUTDOWN, vcpu_run(&self->vcpu));
}

/* Whatever is in the area, the host goes on: what the guest does then is its own business, for an instant. */
TEST_F(smm_hostile, any_state)
{
	uint64_t seed = random_seed();
	struct itimerval instant = { .it_value = { .tv_usec = 20000 } }, never = { 0 };

	let_signal_interrupt(SIGALRM);
	for (unsigned long i = scaled(150); i; i--) {
		save_in(i % MODE_COUNT);
		for (uint64_t n = random_next(&seed) % 3 + 1; n; n--) {
			uint64_t bit = random_next(&seed) % 4096;

			self->smram[SMBASE + SMM_AREA + bit / 8] ^= 1 << bit % 8;
		}
		setitimer(ITIMER_REAL, &instant, NULL);
		vcpu_run(&self->vcpu);
		setitimer(ITIMER_REAL, &never, NULL);
		vcpu_free(&self->vcpu);
		vm_free(&self->vm);
		munmap(self->smram, GUEST_MEMORY);
		guest_start(&self->vm, &self->vcpu, sync);
		self->smram = smram_create(&self->vm);
		smram_load(self->smram, SMBASE, smm_report);
	}
}

/* By interrupts: the local APIC's own, between processors, of a device, by a pin of the IOAPIC. */
#define DELIVERY_SMI (2 << 8)
#define DELIVERY_INIT (5 << 8)

static int send(struct vm *vm, uint32_t apic_id, uint32_t delivery)
{
	struct kvm_msi msi = { .address_lo = APIC | apic_id << 12, .data = delivery };

	return try_ioctl(vm->fd, KVM_SIGNAL_MSI, &msi);
}

FIXTURE(smi)
{
	struct vm vm;
	struct vcpu vcpu[2];
	uint8_t *smram;
};

FIXTURE_SETUP(smi)
{
	struct kvm_mp_state runnable = { .mp_state = KVM_MP_STATE_RUNNABLE };

	self->vm = vm_create();
	vm_create_irqchip(&self->vm);
	for (int i = 0; i < 2; i++) {
		self->vcpu[i] = vcpu_create(&self->vm, i);
		vcpu_set_supported_cpuid(&self->vcpu[i]);
		guest_set_mode(&self->vcpu[i], MODE_LONG);
		do_ioctl(self->vcpu[i].fd, KVM_SET_MP_STATE, &runnable);
	}
	self->smram = smram_create(&self->vm);
	smram_load(self->smram, SMBASE, smm_report);
}

FIXTURE_TEARDOWN(smi)
{
	vcpu_free(&self->vcpu[0]);
	vcpu_free(&self->vcpu[1]);
	vm_free(&self->vm);
}

GUEST_CODE64(by_xapic, ENABLE_APIC; movl $0x44200, APIC_ICR(%r14); GUEST_SYNC; movl $0x01000000, APIC_ICR + 0x10(%r14);
	movl $0x4200, APIC_ICR(%r14); GUEST_DONE);
GUEST_CODE64(by_x2apic, mov $0x1b, %ecx; rdmsr; or $0xc00, %eax; wrmsr; mov $0x830, %ecx; mov $0x44200, %eax; xor %edx, %edx; wrmsr;
	GUEST_SYNC; mov $0x4200, %eax; mov $1, %edx; wrmsr; GUEST_DONE);

static void between(struct __test_metadata *_metadata, FIXTURE_DATA(smi) *self)
{
	EXPECT_TRUE(sync_in_smm(&self->vcpu[0]));
	EXPECT_FALSE(sync_in_smm(&self->vcpu[0]));
	vcpu_run_to_port(&self->vcpu[0], PORT_DONE);
	EXPECT_EQ(1, vcpu_events(&self->vcpu[1]).smi.pending);
	EXPECT_TRUE(sync_in_smm(&self->vcpu[1]));
	EXPECT_EQ(0, vcpu_events(&self->vcpu[1]).smi.pending);
	EXPECT_EQ(GUEST_CODE, *(uint64_t *)(self->smram + SMBASE + AREA64_RIP));
}

TEST_F(smi, by_xapic)
{
	guest_load(&self->vm, by_xapic);
	between(_metadata, self);
}

TEST_F(smi, by_x2apic)
{
	guest_load(&self->vm, by_x2apic);
	between(_metadata, self);
}

TEST_F(smi, by_device)
{
	struct kvm_irqchip chip = { .chip_id = KVM_IRQCHIP_IOAPIC };

	guest_load(&self->vm, sync);
	EXPECT_EQ(1, send(&self->vm, 1, DELIVERY_SMI));
	EXPECT_TRUE(sync_in_smm(&self->vcpu[1]));
	EXPECT_FALSE(sync_in_smm(&self->vcpu[1]));
	do_ioctl(self->vm.fd, KVM_GET_IRQCHIP, &chip);
	chip.chip.ioapic.redirtbl[20].bits = DELIVERY_SMI;
	do_ioctl(self->vm.fd, KVM_SET_IRQCHIP, &chip);
	ASSERT_EQ(0, irq_line(&self->vm, 20, 1));
	EXPECT_TRUE(sync_in_smm(&self->vcpu[0]));
}

/* An INIT waits for the end of the mode; start-up IPIs are lost. */
TEST_F(smi, init_waits)
{
	struct kvm_mp_state state;

	guest_load(&self->vm, sync);
	ASSERT_EQ(1, send(&self->vm, 1, DELIVERY_SMI));
	ASSERT_TRUE(sync_in_smm(&self->vcpu[1]));
	ASSERT_EQ(1, send(&self->vm, 1, DELIVERY_INIT));
	do_ioctl(self->vcpu[1].fd, KVM_GET_MP_STATE, &state);
	EXPECT_EQ(KVM_MP_STATE_RUNNABLE, state.mp_state);
	EXPECT_EQ(1, vcpu_events(&self->vcpu[1]).smi.latched_init);
	self->vcpu[1].run->immediate_exit = 1;
	EXPECT_EQ(-EINTR, vcpu_run(&self->vcpu[1]));
	self->vcpu[1].run->immediate_exit = 0;
	let_signal_interrupt(SIGALRM);
	/* It waits for a start-up IPI then. */
	alarm(1);
	EXPECT_EQ(-EINTR, vcpu_run(&self->vcpu[1]));
	do_ioctl(self->vcpu[1].fd, KVM_GET_MP_STATE, &state);
	EXPECT_EQ(KVM_MP_STATE_INIT_RECEIVED, state.mp_state);
	EXPECT_EQ(0, vcpu_events(&self->vcpu[1]).smi.smm | vcpu_events(&self->vcpu[1]).smi.latched_init);
	EXPECT_EQ(0xfff0, vcpu_regs(&self->vcpu[1]).rip);
}

/* A halted processor comes for an SMI, and is halted again behind it, unless the handler says otherwise. */
TEST_F(smi, halted)
{
	struct kvm_mp_state halted = { .mp_state = KVM_MP_STATE_HALTED };

	guest_load(&self->vm, sync);
	do_ioctl(self->vcpu[0].fd, KVM_SET_MP_STATE, &halted);
	vcpu_smi(&self->vcpu[0]);
	ASSERT_TRUE(sync_in_smm(&self->vcpu[0]));
	EXPECT_EQ(1, self->smram[SMBASE + AREA64_HALTED]);
	let_signal_interrupt(SIGALRM);
	alarm(1);
	EXPECT_EQ(-EINTR, vcpu_run(&self->vcpu[0]));
	do_ioctl(self->vcpu[0].fd, KVM_GET_MP_STATE, &halted);
	EXPECT_EQ(KVM_MP_STATE_HALTED, halted.mp_state);
	ASSERT_EQ(1, send(&self->vm, 0, DELIVERY_SMI));
	ASSERT_TRUE(sync_in_smm(&self->vcpu[0]));
	self->smram[SMBASE + AREA64_HALTED] = 0;
	EXPECT_FALSE(sync_in_smm(&self->vcpu[0]));
	EXPECT_EQ(0, self->smram[SMBASE + AREA64_HALTED]);
}

/* SMIs from other threads while the guest counts, and the handler too. */
GUEST_CODE64(counts, 1: incq GUEST_DATA; in $PORT_SYNC, %al; jmp 1b);
GUEST_CODE16(handler_counts, addr32 incl GUEST_DATA; rsm);

static volatile bool stop;

static void *send_smis(void *arg)
{
	FIXTURE_DATA(smi) *self = arg;

	while (!stop) {
		send(&self->vm, 0, DELIVERY_SMI);
		try_ioctl(self->vcpu[0].fd, KVM_SMI, 0);
		sched_yield();
	}
	return NULL;
}

TEST_F(smi, race)
{
	volatile uint32_t *handled, *counted = vm_at(&self->vm, GUEST_DATA);
	uint64_t count = 0;
	pthread_t sender;
	uint32_t rounds = 0;

	guest_load(&self->vm, counts);
	smram_load(self->smram, SMBASE, handler_counts);
	handled = (uint32_t *)(self->smram + GUEST_DATA);
	ASSERT_EQ(0, pthread_create(&sender, NULL, send_smis, self));
	while (*handled < scaled(300) || rounds < scaled(300)) {
		ASSERT_EQ(KVM_EXIT_IO, vcpu_run(&self->vcpu[0]));
		rounds++;
	}
	stop = true;
	pthread_join(sender, NULL);
	/* Each exit had its increment, and each SMI counted its own. */
	EXPECT_EQ(rounds, *counted);
	EXPECT_EQ(1, vcpu_get_msr(&self->vcpu[0], MSR_SMI_COUNT, &count));
	EXPECT_EQ(count, *handled);
}

XVM_TEST_MAIN
