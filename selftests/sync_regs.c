// SPDX-License-Identifier: GPL-2.0
/* KVM_CAP_SYNC_REGS: registers in struct kvm_run, taken before and given after KVM_RUN. */
#include "test.h"

#define ALL (KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS)

FIXTURE(sync)
{
	struct vm vm;
	struct vcpu vcpu;
	struct kvm_run *run;
};

/* RBX counts the rounds. */
GUEST_CODE64(rounds, 1: GUEST_SYNC; inc %rbx; jmp 1b);

FIXTURE_SETUP(sync)
{
	guest_start(&self->vm, &self->vcpu, rounds);
	self->run = self->vcpu.run;
}

FIXTURE_TEARDOWN(sync)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

TEST_F(sync, given)
{
	struct kvm_vcpu_events events;
	struct kvm_sregs sregs;
	struct kvm_regs regs;

	EXPECT_EQ(ALL, device_extension(KVM_CAP_SYNC_REGS));
	memset(&self->run->s, 0xee, sizeof(struct kvm_sync_regs));
	self->run->kvm_valid_regs = KVM_SYNC_X86_REGS;
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	regs = vcpu_regs(&self->vcpu);
	EXPECT_EQ(0, memcmp(&regs, &self->run->s.regs.regs, sizeof(regs)));
	/* No more than asked for. */
	EXPECT_EQ(0xeeeeeeeeeeeeeeee, self->run->s.regs.sregs.cr0);
	self->run->kvm_valid_regs = ALL;
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	sregs = vcpu_sregs(&self->vcpu);
	EXPECT_EQ(0, memcmp(&sregs, &self->run->s.regs.sregs, sizeof(sregs)));
	do_ioctl(self->vcpu.fd, KVM_GET_VCPU_EVENTS, &events);
	EXPECT_EQ(0, memcmp(&events, &self->run->s.regs.events, sizeof(events)));
	EXPECT_EQ(1, self->run->s.regs.regs.rbx);
}

TEST_F(sync, taken)
{
	self->run->kvm_valid_regs = ALL;
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	self->run->s.regs.regs.rbx = 0x1000;
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	EXPECT_EQ(1, self->run->s.regs.regs.rbx);
	self->run->s.regs.regs.rbx = 0x1000;
	self->run->s.regs.sregs.cr2 = 0x123000;
	self->run->kvm_dirty_regs = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS;
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	EXPECT_EQ(0, self->run->kvm_dirty_regs);
	EXPECT_EQ(0x1001, self->run->s.regs.regs.rbx);
	EXPECT_EQ(0x123000, vcpu_sregs(&self->vcpu).cr2);
	/* An exception. */
	self->run->s.regs.events.exception.injected = 1;
	self->run->s.regs.events.exception.nr = 6;
	self->run->kvm_dirty_regs = KVM_SYNC_X86_EVENTS;
	EXPECT_EQ(6, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
}

TEST_F(sync, refused)
{
	self->run->kvm_valid_regs = 1ull << 31;
	EXPECT_EQ(-EINVAL, vcpu_run(&self->vcpu));
	self->run->kvm_valid_regs = ALL | 1ull << 63;
	EXPECT_EQ(-EINVAL, vcpu_run(&self->vcpu));
	self->run->kvm_valid_regs = ALL;
	self->run->kvm_dirty_regs = 8;
	EXPECT_EQ(-EINVAL, vcpu_run(&self->vcpu));
	/* Registers that can't be: the sets before stay taken. */
	self->run->kvm_dirty_regs = 0;
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	self->run->s.regs.regs.rbx = 77;
	self->run->s.regs.sregs.cr4 &= ~0x20ull;
	self->run->kvm_dirty_regs = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS;
	EXPECT_EQ(-EINVAL, vcpu_run(&self->vcpu));
	EXPECT_EQ(KVM_SYNC_X86_SREGS, self->run->kvm_dirty_regs);
	EXPECT_EQ(77, vcpu_regs(&self->vcpu).rbx);
	EXPECT_EQ(0x20, vcpu_sregs(&self->vcpu).cr4 & 0x20);
	self->run->s.regs.events.exception.injected = 1;
	self->run->s.regs.events.exception.nr = 32;
	self->run->kvm_dirty_regs = KVM_SYNC_X86_EVENTS;
	EXPECT_EQ(-EINVAL, vcpu_run(&self->vcpu));
	self->run->kvm_dirty_regs = 0;
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
}

/* Another thread changes everything meanwhile. */
static volatile bool racing;

static void *race(void *arg)
{
	struct kvm_run *run = arg;
	uint64_t state = random_seed();

	while (racing) {
		run->kvm_dirty_regs = random_next(&state) & ALL;
		run->s.regs.events.exception.nr = random_next(&state);
		run->s.regs.events.exception.injected = 1;
		run->s.regs.sregs.cr4 ^= 0x20;
		run->s.regs.sregs.efer ^= 0x100;
	}
	return NULL;
}

TEST_F(sync, raced)
{
	uint64_t end = now_ns() + scaled(1000) * 1000000;
	struct kvm_translation translation = { 0 };
	pthread_t thread;

	self->run->kvm_valid_regs = ALL;
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	racing = true;
	ASSERT_EQ(0, pthread_create(&thread, NULL, race, self->run));
	while (now_ns() < end) {
		int reason = vcpu_run(&self->vcpu);
		struct kvm_sregs sregs = vcpu_sregs(&self->vcpu);

		/* Long mode without PAE never gets in. */
		EXPECT_FALSE((sregs.efer & 0x400) && !(sregs.cr4 & 0x20));
		try_ioctl(self->vcpu.fd, KVM_TRANSLATE, &translation);
		if (reason == KVM_EXIT_SHUTDOWN)
			guest_set_mode_if_possible(&self->vcpu, MODE_LONG);
	}
	racing = false;
	pthread_join(thread, NULL);
}

XVM_TEST_MAIN
