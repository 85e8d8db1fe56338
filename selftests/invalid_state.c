// SPDX-License-Identifier: GPL-2.0
/*
 * States that no CPU gets into on its own: segments, tables and flags at random, by KVM_SET_SREGS. Refused, or run: then the
 * entry fails with KVM_EXIT_FAIL_ENTRY, the guest faults, or it runs. The host does not mind, and the vCPU can be put right.
 */
#include "test.h"

FIXTURE(invalid)
{
	struct vm vm;
	struct vcpu vcpu;
};

/* The NOP: an OUT that is left behind at its exit is completed at the next entry, if RIP is still there. */
GUEST_CODE64(fine, nop; out %al, $PORT_DONE; hlt);

FIXTURE_SETUP(invalid)
{
	guest_start(&self->vm, &self->vcpu, fine);
	let_signal_interrupt(SIGALRM);
}

FIXTURE_TEARDOWN(invalid)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

/* Runs it for some milliseconds at most; then a good state must work. */
static void run_and_recover(struct __test_metadata *_metadata, FIXTURE_DATA(invalid) *self, const struct kvm_sregs *sregs)
{
	struct itimerval timer = { .it_value.tv_usec = 5000, .it_interval.tv_usec = 5000 };
	int reason;

	if (try_ioctl(self->vcpu.fd, KVM_SET_SREGS, sregs) == 0) {
		setitimer(ITIMER_REAL, &timer, NULL);
		reason = vcpu_run(&self->vcpu);
		timer = (struct itimerval){ 0 };
		setitimer(ITIMER_REAL, &timer, NULL);
		EXPECT_TRUE(reason == -EINTR || reason == KVM_EXIT_IO || reason == KVM_EXIT_MMIO || reason == KVM_EXIT_SHUTDOWN ||
			    reason == KVM_EXIT_FAIL_ENTRY || reason == KVM_EXIT_INTERNAL_ERROR || reason == KVM_EXIT_HLT ||
			    reason == KVM_EXIT_SET_TPR)
			TH_LOG("exit %s (%d)", exit_name(reason), reason);
		/* What an access had left to do, or an event, is not for the next state. */
		self->vcpu.run->immediate_exit = 1;
		vcpu_run(&self->vcpu);
		self->vcpu.run->immediate_exit = 0;
		do_ioctl(self->vcpu.fd, KVM_SET_VCPU_EVENTS, (&(struct kvm_vcpu_events){ 0 }));
	}
	guest_prepare(&self->vm);
	guest_load(&self->vm, fine);
	guest_set_mode(&self->vcpu, MODE_LONG);
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
}

/*
 * QEMU's TCG aborts when a fault of a 32-bit guest needs another stack: it does not know the task register's busy type, which
 * SVM loads (and in 64-bit mode does not look at it).
 */
static enum guest_mode possible_mode(unsigned int i)
{
	return host_is_qemu_tcg() ? MODE_LONG : i % MODE_COUNT;
}

/* One field of one segment, for all of them and all of its values that matter. */
TEST_F(invalid, segments)
{
	struct kvm_sregs good;

	for (unsigned int segment = 0; segment < 8; segment++) {
		for (unsigned int type = 0; type < 64; type++) {
			struct kvm_segment *changed;

			guest_set_mode(&self->vcpu, possible_mode(type));
			good = vcpu_sregs(&self->vcpu);
			/* CS, DS, ES, FS, GS, SS, TR, LDT lie in a row. */
			changed = &good.cs + segment;
			changed->type = type >> 2;
			changed->s = type >> 1 & 1;
			changed->present = type >> 3 & 1;
			changed->l = type >> 4 & 1;
			changed->db = type >> 5 & 1;
			changed->dpl = type & 3;
			run_and_recover(_metadata, self, &good);
		}
	}
}

TEST_F(invalid, tables_and_limits)
{
	static const uint64_t values[] = { 0, 0xfff, 0xfffff000, 0x800000000000, 0xffff800000000000, 0x8000000000000000, ~0ull };

	for (unsigned int i = 0; i < ARRAY_SIZE(values); i++) {
		for (unsigned int field = 0; field < 7; field++) {
			struct kvm_sregs sregs;

			guest_set_mode(&self->vcpu, MODE_LONG);
			sregs = vcpu_sregs(&self->vcpu);
			switch (field) {
			case 0: sregs.gdt.base = values[i]; break;
			case 1: sregs.idt.base = values[i]; break;
			case 2: sregs.tr.base = values[i]; break;
			case 3: sregs.ldt.base = values[i]; break;
			case 4: sregs.fs.base = values[i]; break;
			case 5: sregs.cs.base = values[i]; break;
			case 6: sregs.cs.limit = sregs.ss.limit = values[i]; break;
			}
			run_and_recover(_metadata, self, &sregs);
		}
	}
}

TEST_F(invalid, random_states)
{
	uint64_t seed = random_seed();

	for (unsigned long i = 0; i < scaled(600); i++) {
		struct kvm_sregs sregs;
		struct kvm_regs regs;

		guest_set_mode(&self->vcpu, possible_mode(i));
		sregs = vcpu_sregs(&self->vcpu);
		/* Few bits at a time: most of those are accepted. */
		for (int j = random_next(&seed) % 5; j >= 0; j--) {
			size_t byte = random_next(&seed) % offsetof(struct kvm_sregs, interrupt_bitmap);

			((uint8_t *)&sregs)[byte] ^= 1 << random_next(&seed) % 8;
		}
		if (host_is_qemu_tcg()) {
			sregs.efer = vcpu_sregs(&self->vcpu).efer;
			sregs.cs.l = 1;
		}
		/* The APIC's place is another matter. */
		sregs.apic_base = vcpu_sregs(&self->vcpu).apic_base;
		regs = vcpu_regs(&self->vcpu);
		regs.rflags ^= 1ull << random_next(&seed) % 22;
		if (i % 7 == 0)
			regs.rip = random_next(&seed);
		vcpu_set_regs(&self->vcpu, &regs);
		run_and_recover(_metadata, self, &sregs);
	}
}

XVM_TEST_MAIN
