// SPDX-License-Identifier: GPL-2.0
/* KVM_SET_GUEST_DEBUG: breakpoints, watchpoints and steps of the VMM's, which the guest knows nothing of. */
#include "test.h"

#define DR6_NOTHING 0xffff0ff0ull
#define DR6_BS (1ull << 14)
#define DR6_BD (1ull << 13)
#define TF (1ull << 8)
#define DEBUG_VECTOR 1
#define BREAKPOINT 3

FIXTURE(debugger)
{
	struct vm vm;
	struct vcpu vcpu;
	volatile struct report *report;
};

GUEST_CODE64(nothing, nop; nop; nop; GUEST_DONE);

FIXTURE_SETUP(debugger)
{
	guest_start(&self->vm, &self->vcpu, nothing);
	self->report = guest_report(&self->vm);
}

FIXTURE_TEARDOWN(debugger)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

#define start(name) do { \
	guest_load(&self->vm, name); \
	guest_set_mode(&self->vcpu, MODE_LONG); \
} while (0)

static int debug(struct vcpu *vcpu, uint32_t control)
{
	struct kvm_guest_debug debug = { .control = control };

	return try_ioctl(vcpu->fd, KVM_SET_GUEST_DEBUG, &debug);
}

static void watch(struct vcpu *vcpu, int n, uint64_t address, uint64_t dr7)
{
	struct kvm_guest_debug debug = { .control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP };

	debug.arch.debugreg[n] = address;
	debug.arch.debugreg[7] = dr7 | 0x400;
	do_ioctl(vcpu->fd, KVM_SET_GUEST_DEBUG, &debug);
}

#define STEP (KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP)
#define INT3S (KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP)

/* Runs until the debugger is called, and says why and where. */
#define expect_debug(why, where) do { \
	vcpu_run_to(&self->vcpu, KVM_EXIT_DEBUG); \
	EXPECT_EQ(why, self->vcpu.run->debug.arch.exception); \
	EXPECT_EQ(where, self->vcpu.run->debug.arch.pc); \
	EXPECT_EQ(where, vcpu_regs(&self->vcpu).rip); \
} while (0)

#define expect_step(offset) do { \
	expect_debug(DEBUG_VECTOR, GUEST_CODE + (offset)); \
	EXPECT_EQ(DR6_NOTHING | DR6_BS, self->vcpu.run->debug.arch.dr6); \
} while (0)

TEST_F(debugger, refused)
{
	EXPECT_EQ(-EFAULT, try_ioctl(self->vcpu.fd, KVM_SET_GUEST_DEBUG, 8));
	EXPECT_GT(device_extension(KVM_CAP_SET_GUEST_DEBUG), 0);
	EXPECT_GT(device_extension(KVM_CAP_X86_ROBUST_SINGLESTEP), 0);
	EXPECT_EQ(STEP | INT3S | KVM_GUESTDBG_USE_HW_BP | KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP | KVM_GUESTDBG_BLOCKIRQ,
		  device_extension(KVM_CAP_SET_GUEST_DEBUG2));
	/* Without ENABLE the rest means nothing. */
	ASSERT_EQ(0, debug(&self->vcpu, KVM_GUESTDBG_SINGLESTEP));
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
}

/* Steps over plain instructions, those that exit, those that the VMM carries out, PUSHF and POPF. */
GUEST_CODE64(steps, nop; xor %eax, %eax; cpuid; mov $0xe1, %dl; in $0xe1, %al; mov GUEST_MMIO, %ebx; pushfq; popfq; nop; GUEST_DONE);

TEST_F(debugger, steps)
{
	static const uint8_t input = 0x5a;

	start(steps);
	ASSERT_EQ(0, debug(&self->vcpu, STEP));
	expect_step(1);
	EXPECT_EQ(0, vcpu_regs(&self->vcpu).rflags & TF);
	expect_step(3);
	expect_step(5);
	expect_step(7);
	vcpu_run_to(&self->vcpu, KVM_EXIT_IO);
	memcpy(vcpu_io_data(&self->vcpu), &input, 1);
	expect_step(9);
	EXPECT_EQ(0x5a, vcpu_regs(&self->vcpu).rax & 0xff);
	vcpu_run_to(&self->vcpu, KVM_EXIT_MMIO);
	memcpy(self->vcpu.run->mmio.data, "\x11\x22\x33\x44", 4);
	expect_step(16);
	EXPECT_EQ(0x44332211, vcpu_regs(&self->vcpu).rbx);
	expect_step(17);
	/* The guest doesn't find the VMM's TF; KVM lets it. */
	if (device_is_xvm()) {
		EXPECT_EQ(0, *(uint64_t *)vm_at(&self->vm, GUEST_STACK - 8) & TF);
	}
	expect_step(18);
	expect_step(19);
	ASSERT_EQ(0, debug(&self->vcpu, 0));
	EXPECT_EQ(0, vcpu_regs(&self->vcpu).rflags & TF);
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
}

/* The shadow of STI and of MOV SS, and HLT. */
GUEST_CODE64(shadows, sti; nop; mov %ss, %eax; mov %eax, %ss; nop; cli; nop; GUEST_DONE);

TEST_F(debugger, shadows)
{
	uint64_t rip = 0;

	start(shadows);
	ASSERT_EQ(0, debug(&self->vcpu, STEP));
	expect_step(1);
	expect_step(2);
	expect_step(4);
	/* The CPU may hold the trap back until after the next instruction. */
	vcpu_run_to(&self->vcpu, KVM_EXIT_DEBUG);
	rip = self->vcpu.run->debug.arch.pc;
	EXPECT_TRUE(rip == GUEST_CODE + 6 || rip == GUEST_CODE + 7) TH_LOG("rip %#lx", rip);
	if (rip == GUEST_CODE + 6)
		expect_step(7);
	expect_step(8);
	expect_step(9);
}

/* A guest that steps itself does so on, when the VMM is through; each instruction that exits counts. */
GUEST_CODE64(steps_itself, pushfq; orl $0x100, (%rsp); popfq; xor %eax, %eax; cpuid; wrmsr; nop);

TEST_F(debugger, guest_steps_itself)
{
	static const int after[] = { 11, 13 };

	start(steps_itself);
	/* POPF sets TF: the trap comes after the next instruction, XOR; then after CPUID. */
	for (unsigned int i = 0; i < ARRAY_SIZE(after); i++) {
		struct kvm_debugregs debugregs;
		struct kvm_regs regs;

		EXPECT_EQ(DEBUG_VECTOR, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
		EXPECT_EQ(GUEST_CODE + after[i], self->report->rip);
		do_ioctl(self->vcpu.fd, KVM_GET_DEBUGREGS, &debugregs);
		EXPECT_EQ(DR6_NOTHING | DR6_BS, debugregs.dr6);
		debugregs.dr6 = DR6_NOTHING;
		do_ioctl(self->vcpu.fd, KVM_SET_DEBUGREGS, &debugregs);
		regs = vcpu_regs(&self->vcpu);
		regs.rip = self->report->rip;
		regs.rflags = self->report->flags;
		regs.rsp = self->report->rsp;
		EXPECT_EQ(TF, regs.rflags & TF);
		vcpu_set_regs(&self->vcpu, &regs);
	}
}

GUEST_CODE64(has_int3, nop; int3; nop; GUEST_DONE);
GUEST_CODE64(has_ints, int $0x20; 1: nop; int3; GUEST_DONE);

TEST_F(debugger, software_breakpoints)
{
	struct kvm_regs regs;

	start(has_int3);
	ASSERT_EQ(0, debug(&self->vcpu, INT3S));
	expect_debug(BREAKPOINT, GUEST_CODE + 1ul);
	/* Again, if the VMM does nothing about it. */
	expect_debug(BREAKPOINT, GUEST_CODE + 1ul);
	regs = vcpu_regs(&self->vcpu);
	regs.rip++;
	vcpu_set_regs(&self->vcpu, &regs);
	vcpu_run_to_port(&self->vcpu, PORT_DONE);

	/* It was the guest's own, then. */
	start(has_int3);
	expect_debug(BREAKPOINT, GUEST_CODE + 1ul);
	ASSERT_EQ(0, debug(&self->vcpu, INT3S | KVM_GUESTDBG_INJECT_BP));
	EXPECT_EQ(BREAKPOINT, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	EXPECT_EQ(GUEST_CODE + 2, self->report->rip);

	/* Off: the guest gets its own. */
	ASSERT_EQ(0, debug(&self->vcpu, 0));
	start(has_int3);
	EXPECT_EQ(BREAKPOINT, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	EXPECT_EQ(GUEST_CODE + 2, self->report->rip);

	/* Other software interrupts are nobody's business. */
	ASSERT_EQ(0, debug(&self->vcpu, INT3S));
	start(has_ints);
	EXPECT_EQ(0x20, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	EXPECT_EQ(GUEST_CODE + 2, self->report->rip);
}

GUEST_CODE64(writes, nop; movl $5, GUEST_FREE; 1: nop; mov GUEST_FREE, %eax; nop; GUEST_DONE);

TEST_F(debugger, hardware_breakpoints)
{
	struct kvm_debugregs debugregs;

	start(writes);
	for (int n = 0; n < 4; n++) {
		watch(&self->vcpu, n, GUEST_CODE + 1, 2ull << n * 2);
		expect_debug(DEBUG_VECTOR, GUEST_CODE + 1ul);
		EXPECT_EQ(DR6_NOTHING | 1 << n, self->vcpu.run->debug.arch.dr6);
		EXPECT_EQ(0x400ull | 2ull << n * 2, self->vcpu.run->debug.arch.dr7);
	}
	do_ioctl(self->vcpu.fd, KVM_GET_DEBUGREGS, &debugregs);
	EXPECT_EQ(DR6_NOTHING, debugregs.dr6);
	EXPECT_EQ(0x400, debugregs.dr7);
	EXPECT_EQ(0, debugregs.db[0]);
	/* A write of four bytes: the trap comes behind it. Then any access. */
	watch(&self->vcpu, 2, GUEST_FREE, 0x0d000020);
	expect_debug(DEBUG_VECTOR, GUEST_CODE + 12ul);
	EXPECT_EQ(DR6_NOTHING | 1 << 2, self->vcpu.run->debug.arch.dr6);
	EXPECT_EQ(5, *(uint32_t *)vm_at(&self->vm, GUEST_FREE));
	watch(&self->vcpu, 1, GUEST_FREE, 0x00f00008);
	expect_debug(DEBUG_VECTOR, GUEST_CODE + 20ul);
	ASSERT_EQ(0, debug(&self->vcpu, 0));
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
	/* Nonsense in DR7 doesn't keep the guest from running. */
	start(writes);
	watch(&self->vcpu, 0, -1ull, ~0xffull);
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
}

/* The guest reads and writes debug registers of its own while the VMM's are in force. */
GUEST_CODE64(uses_its_own, mov $GUEST_FREE, %eax; mov %rax, %dr0; mov $0xd0002, %eax; mov %rax, %dr7;
	mov %dr0, %r8; mov %dr7, %r9; mov %dr6, %r10; movl $1, GUEST_FREE; out %al, $PORT_SYNC; movl $2, GUEST_FREE; 3: nop; GUEST_DONE);

TEST_F(debugger, guests_own_registers)
{
	struct kvm_debugregs debugregs;
	struct kvm_regs regs;

	start(uses_its_own);
	watch(&self->vcpu, 3, GUEST_DATA, 0xd0000080);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	regs = vcpu_regs(&self->vcpu);
	EXPECT_EQ(GUEST_FREE, regs.r8);
	EXPECT_EQ(0xd0402, regs.r9);
	EXPECT_EQ(DR6_NOTHING, regs.r10);
	do_ioctl(self->vcpu.fd, KVM_GET_DEBUGREGS, &debugregs);
	EXPECT_EQ(GUEST_FREE, debugregs.db[0]);
	EXPECT_EQ(0xd0402, debugregs.dr7);
	EXPECT_EQ(0, debugregs.db[3]);
	/* They are in force again when the VMM's are not; also if it has INT3s alone. */
	ASSERT_EQ(0, debug(&self->vcpu, INT3S));
	EXPECT_EQ(DEBUG_VECTOR, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	do_ioctl(self->vcpu.fd, KVM_GET_DEBUGREGS, &debugregs);
	EXPECT_EQ(DR6_NOTHING | 1, debugregs.dr6);
}

GUEST_CODE64(touches_dr0, nop; mov %dr0, %rax; GUEST_DONE);

TEST_F(debugger, general_detect)
{
	start(touches_dr0);
	watch(&self->vcpu, 0, 0, 1 << 13);
	expect_debug(DEBUG_VECTOR, GUEST_CODE + 1ul);
	EXPECT_EQ(DR6_NOTHING | DR6_BD, self->vcpu.run->debug.arch.dr6);
}

TEST_F(debugger, inject)
{
	struct kvm_vcpu_events events;

	start(nothing);
	ASSERT_EQ(0, debug(&self->vcpu, KVM_GUESTDBG_INJECT_DB));
	EXPECT_EQ(-EBUSY, debug(&self->vcpu, KVM_GUESTDBG_INJECT_DB));
	EXPECT_EQ(-EBUSY, debug(&self->vcpu, KVM_GUESTDBG_INJECT_BP));
	do_ioctl(self->vcpu.fd, KVM_GET_VCPU_EVENTS, &events);
	EXPECT_EQ(1, events.exception.injected);
	EXPECT_EQ(DEBUG_VECTOR, events.exception.nr);
	EXPECT_EQ(DEBUG_VECTOR, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	EXPECT_EQ(GUEST_CODE, self->report->rip);
}

/* Interrupts come while stepping, unless the VMM holds them back. */
GUEST_CODE64(with_interrupts, sti; nop; nop; nop; nop; GUEST_DONE);

TEST_F(debugger, blocked_interrupts)
{
	struct kvm_interrupt interrupt = { .irq = 0x50 };

	start(with_interrupts);
	ASSERT_EQ(0, debug(&self->vcpu, STEP | KVM_GUESTDBG_BLOCKIRQ));
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_INTERRUPT, &interrupt));
	expect_step(1);
	expect_step(2);
	expect_step(3);
	ASSERT_EQ(0, debug(&self->vcpu, 0));
	EXPECT_EQ(0x50, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	EXPECT_EQ(GUEST_CODE + 3, self->report->rip);
}

/* Stepping does not stop at HLT. */
GUEST_CODE64(halts, nop; hlt; nop; GUEST_DONE);

TEST(halt)
{
	struct vm vm = vm_create();
	struct vcpu vcpu;

	vm_create_irqchip(&vm);
	vcpu = vcpu_create(&vm, 0);
	vcpu_set_supported_cpuid(&vcpu);
	guest_load(&vm, halts);
	guest_set_mode(&vcpu, MODE_LONG);
	ASSERT_EQ(0, debug(&vcpu, STEP));
	for (int i = 1; i < 4; i++) {
		vcpu_run_to(&vcpu, KVM_EXIT_DEBUG);
		EXPECT_EQ(GUEST_CODE + i, vcpu.run->debug.arch.pc);
	}
	vcpu_free(&vcpu);
	vm_free(&vm);
}

/* Every mode, all at once, in random order: the guest gets where it has to, and nobody falls. */
GUEST_CODE64(loop, mov $0x100, %ecx; 1: mov %rcx, GUEST_FREE; pushfq; popfq; push %rcx; xor %eax, %eax; cpuid; pop %rcx; mov %dr6, %rax;
	mov %rcx, %dr1; dec %ecx; jnz 1b; GUEST_DONE);

TEST_F(debugger, mixed)
{
	uint64_t state = random_seed(), exits = 0;

	start(loop);
	for (unsigned long i = 0; i < scaled(100); i++) {
		struct kvm_guest_debug debug = { .control = random_next(&state) & (STEP | INT3S | KVM_GUESTDBG_USE_HW_BP | KVM_GUESTDBG_BLOCKIRQ) };
		int reason;

		debug.arch.debugreg[0] = GUEST_FREE;
		debug.arch.debugreg[1] = GUEST_CODE + random_next(&state) % 32;
		debug.arch.debugreg[7] = random_next(&state) & 0xd2002f;
		do_ioctl(self->vcpu.fd, KVM_SET_GUEST_DEBUG, &debug);
		reason = vcpu_run(&self->vcpu);
		if (reason == KVM_EXIT_IO) {
			ASSERT_EQ(PORT_DONE, self->vcpu.run->io.port);
			start(loop);
			continue;
		}
		ASSERT_EQ(KVM_EXIT_DEBUG, reason) TH_LOG("%s", exit_name(reason));
		exits++;
		/* Off the breakpoint. */
		if (self->vcpu.run->debug.arch.dr6 & 0xf) {
			ASSERT_EQ(0, debug.control & KVM_GUESTDBG_USE_HW_BP ? 0 : 1);
		}
	}
	EXPECT_GT(exits, 0);
	ASSERT_EQ(0, debug(&self->vcpu, 0));
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
}

XVM_TEST_MAIN
