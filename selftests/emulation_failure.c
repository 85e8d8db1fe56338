// SPDX-License-Identifier: GPL-2.0
/* Instructions that the emulator does not know, and fetches from where no memory is: told with the bytes, never guessed. */
#include "test.h"

FIXTURE(failure)
{
	struct vm vm;
	struct vcpu vcpu;
};

/* AES-NI and friends have no business with MMIO. */
GUEST_CODE64(aesenc_mmio, nop; nop; aesenc GUEST_MMIO, %xmm0; GUEST_DONE);
GUEST_CODE64(pshufd_mmio, nop; nop; pcmpistri $0, GUEST_MMIO, %xmm0; GUEST_DONE);
GUEST_CODE64(jump_to_mmio, mov $GUEST_MMIO, %eax; jmp *%rax);

FIXTURE_SETUP(failure)
{
	guest_start(&self->vm, &self->vcpu, aesenc_mmio);
}

FIXTURE_TEARDOWN(failure)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

static void expect_failure(struct __test_metadata *_metadata, FIXTURE_DATA(failure) *self, const uint8_t *code, const uint8_t *end)
{
	struct kvm_run *run = self->vcpu.run;
	struct kvm_regs regs;

	guest_copy(&self->vm, code, end);
	guest_set_mode(&self->vcpu, MODE_LONG);
	vcpu_run_to(&self->vcpu, KVM_EXIT_INTERNAL_ERROR);
	EXPECT_EQ(KVM_INTERNAL_ERROR_EMULATION, run->emulation_failure.suberror);
	/* RIP is at the instruction. */
	regs = vcpu_regs(&self->vcpu);
	EXPECT_EQ(GUEST_CODE + 2, regs.rip);
	EXPECT_GE(run->emulation_failure.ndata, 1);
	EXPECT_LE(run->emulation_failure.ndata, 16);
	ASSERT_TRUE(run->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES);
	EXPECT_TRUE(run->emulation_failure.insn_size > 0 && run->emulation_failure.insn_size <= 15);
	EXPECT_EQ(0, memcmp(run->emulation_failure.insn_bytes, vm_at(&self->vm, regs.rip), run->emulation_failure.insn_size));
}

TEST_F(failure, unknown_instruction)
{
	expect_failure(_metadata, self, guest_aesenc_mmio, guest_aesenc_mmio_end);
	expect_failure(_metadata, self, guest_pshufd_mmio, guest_pshufd_mmio_end);
	/* The VMM can go on: it steps over the instruction. */
	struct kvm_regs regs = vcpu_regs(&self->vcpu);
	struct kvm_vcpu_events events;

	while (memcmp(vm_at(&self->vm, regs.rip), "\xe6\xe0", 2))
		regs.rip++;
	vcpu_set_regs(&self->vcpu, &regs);
	/* KVM has queued #UD as well. */
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_GET_VCPU_EVENTS, &events));
	events.exception.injected = events.exception.pending = 0;
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_SET_VCPU_EVENTS, &events));
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
}

TEST_F(failure, fetch_from_hole)
{
	int reason;

	guest_load(&self->vm, jump_to_mmio);
	guest_set_mode(&self->vcpu, MODE_LONG);
	reason = vcpu_run(&self->vcpu);
	EXPECT_EQ(KVM_EXIT_INTERNAL_ERROR, reason) TH_LOG("exit %s", exit_name(reason));
	/* Again the same, if it is tried again; never an endless loop in the kernel. */
	reason = vcpu_run(&self->vcpu);
	EXPECT_NE(KVM_EXIT_HLT, reason);
}

/* Page tables where no memory is: whatever comes of it, KVM_RUN does not fail. */
TEST_F(failure, tables_in_hole)
{
	struct itimerval timer = { .it_value.tv_usec = 20000, .it_interval.tv_usec = 20000 };
	static const uint64_t holes[] = { GUEST_MMIO, GUEST_HIGH, 0xfee00000, 0x100000000, 0xfffff000 };

	/* KVM has the guest try for ever, which a signal ends. */
	let_signal_interrupt(SIGALRM);
	setitimer(ITIMER_REAL, &timer, NULL);
	for (unsigned int i = 0; i < ARRAY_SIZE(holes); i++) {
		for (int level = 0; level < 3; level++) {
			struct kvm_sregs sregs;
			int reason;

			guest_prepare(&self->vm);
			guest_load(&self->vm, aesenc_mmio);
			guest_set_mode(&self->vcpu, MODE_LONG);
			sregs = vcpu_sregs(&self->vcpu);
			if (level == 0)
				sregs.cr3 = holes[i];
			else if (level == 1)
				*(uint64_t *)vm_at(&self->vm, GUEST_PML4) = holes[i] | 7;
			else
				*(uint64_t *)vm_at(&self->vm, GUEST_PDPT) = holes[i] | 7;
			vcpu_set_sregs(&self->vcpu, &sregs);
			reason = vcpu_run(&self->vcpu);
			EXPECT_TRUE(reason == KVM_EXIT_SHUTDOWN || reason == KVM_EXIT_INTERNAL_ERROR || reason == KVM_EXIT_MMIO ||
				    reason == -EINTR)
				TH_LOG("table of level %d at %#lx: exit %s (%d)", 4 - level, holes[i], exit_name(reason), reason);
			do_ioctl(self->vcpu.fd, KVM_SET_VCPU_EVENTS, (&(struct kvm_vcpu_events){ 0 }));
		}
	}
}

/* The instruction changes while it is emulated: another thread writes it over and over. */
static volatile bool changing;

static void *change_code(void *at)
{
	static const uint8_t variants[][8] = {
		{ 0x8b, 0x04, 0x25, 0x00, 0x00, 0x0a, 0x00, 0x90 },	/* mov GUEST_MMIO, %eax */
		{ 0x89, 0x04, 0x25, 0x00, 0x00, 0x0a, 0x00, 0x90 },
		{ 0x66, 0x0f, 0x38, 0xdc, 0x04, 0x25, 0x00, 0x00 },	/* aesenc */
		{ 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90 },
	};

	for (unsigned int i = 0; changing; i++)
		*(volatile uint64_t *)at = *(const uint64_t *)variants[i % 4];
	return NULL;
}

GUEST_CODE64(changed, .balign 8; nop; nop; nop; nop; nop; nop; nop; nop; out %al, $PORT_SYNC; jmp guest_changed);

TEST_F(failure, changing_instruction)
{
	uint64_t end = now_ns() + scaled(1000) * 1000000;
	pthread_t thread;

	guest_load(&self->vm, changed);
	guest_set_mode(&self->vcpu, MODE_LONG);
	changing = true;
	ASSERT_EQ(0, pthread_create(&thread, NULL, change_code, vm_at(&self->vm, GUEST_CODE)));
	while (now_ns() < end) {
		int reason = vcpu_run(&self->vcpu);

		ASSERT_TRUE(reason == KVM_EXIT_MMIO || reason == KVM_EXIT_IO || reason == KVM_EXIT_INTERNAL_ERROR || reason == KVM_EXIT_SHUTDOWN)
			TH_LOG("exit %s (%d)", exit_name(reason), reason);
		if (reason == KVM_EXIT_INTERNAL_ERROR || reason == KVM_EXIT_SHUTDOWN ||
		    (reason == KVM_EXIT_IO && self->vcpu.run->io.port == PORT_EXCEPTION))
			guest_set_mode(&self->vcpu, MODE_LONG);
	}
	changing = false;
	pthread_join(thread, NULL);
}

XVM_TEST_MAIN
