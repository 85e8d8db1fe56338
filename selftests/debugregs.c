// SPDX-License-Identifier: GPL-2.0
/* Debug registers: the guest's breakpoints fire in the guest, the host's in the host, and the VMM can save both. */
#include "test.h"
#include <sys/ptrace.h>
#include <sys/user.h>

FIXTURE(debug)
{
	struct vm vm;
	struct vcpu vcpu;
	volatile struct report *report;
};

/* RSI and RDI: DR0 and DR7. Then a write to GUEST_FREE and a NOP at label 2. */
GUEST_CODE64(breakpoints, mov %rsi, %dr0; mov %rdi, %dr7; out %al, $PORT_SYNC; movl $5, GUEST_FREE; 2: nop; GUEST_DONE);

FIXTURE_SETUP(debug)
{
	guest_start(&self->vm, &self->vcpu, breakpoints);
	self->report = guest_report(&self->vm);
}

FIXTURE_TEARDOWN(debug)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

static void start(FIXTURE_DATA(debug) *self, uint64_t dr0, uint64_t dr7)
{
	struct kvm_regs regs;

	guest_set_mode(&self->vcpu, MODE_LONG);
	regs = vcpu_regs(&self->vcpu);
	regs.rsi = dr0;
	regs.rdi = dr7;
	vcpu_set_regs(&self->vcpu, &regs);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
}

TEST_F(debug, data_breakpoint)
{
	struct kvm_debugregs debug;

	/* Enabled, on writes, four bytes long. */
	start(self, GUEST_FREE, 0x000d0002);
	EXPECT_EQ(1, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	EXPECT_EQ(5, *(uint32_t *)vm_at(&self->vm, GUEST_FREE));
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_GET_DEBUGREGS, &debug));
	EXPECT_EQ(GUEST_FREE, debug.db[0]);
	EXPECT_EQ(0x000d0002, debug.dr7 & ~0x400ull);
	EXPECT_EQ(1, debug.dr6 & 0xf);
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
}

TEST_F(debug, code_breakpoint)
{
	uint64_t nop;

	start(self, 0, 0);
	nop = vcpu_regs(&self->vcpu).rip;
	/* At the exit of an OUT, RIP may still be at it: find the NOP (0x90) before the OUT of PORT_DONE (0xe6). */
	while (memcmp(vm_at(&self->vm, nop), "\x90\xe6", 2))
		nop++;
	start(self, nop, 0x2);
	EXPECT_EQ(1, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	EXPECT_EQ(nop, self->report->rip);
}

/* What the VMM sets counts as if the guest had. */
TEST_F(debug, set_by_vmm)
{
	struct kvm_debugregs debug = { .db = { 0, GUEST_FREE, 0, 0x123456789 }, .dr6 = 0xffff0ff0, .dr7 = 0x00d00408 }, seen;

	start(self, 0, 0);
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_SET_DEBUGREGS, &debug));
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_GET_DEBUGREGS, &seen));
	EXPECT_EQ(0, memcmp(debug.db, seen.db, sizeof(seen.db)));
	EXPECT_EQ(debug.dr6, seen.dr6);
	EXPECT_EQ(debug.dr7, seen.dr7);
	EXPECT_EQ(1, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_GET_DEBUGREGS, &seen));
	EXPECT_EQ(2, seen.dr6 & 0xf);
}

TEST_F(debug, refused)
{
	struct kvm_debugregs debug = { .dr6 = 0xffff0ff0, .dr7 = 0x400 };

	debug.dr6 |= 1ull << 32;
	EXPECT_EQ(-EINVAL, try_ioctl(self->vcpu.fd, KVM_SET_DEBUGREGS, &debug));
	debug.dr6 = 0xffff0ff0;
	debug.dr7 |= 1ull << 63;
	EXPECT_EQ(-EINVAL, try_ioctl(self->vcpu.fd, KVM_SET_DEBUGREGS, &debug));
	debug.dr7 = 0x400;
	debug.flags = 1;
	EXPECT_EQ(-EINVAL, try_ioctl(self->vcpu.fd, KVM_SET_DEBUGREGS, &debug));
	debug.flags = 0;
	EXPECT_EQ(0, try_ioctl(self->vcpu.fd, KVM_SET_DEBUGREGS, &debug));
}

/* General detect: with DR7.GD an access of a debug register is #DB with DR6.BD. */
GUEST_CODE64(general_detect, mov $0x2400, %eax; mov %rax, %dr7; 1: mov %dr0, %rbx; GUEST_DONE);

TEST_F(debug, general_detect)
{
	struct kvm_debugregs debug;

	if (host_is_qemu_tcg())
		SKIP(return, "QEMU's TCG has no general detect");
	guest_load(&self->vm, general_detect);
	guest_set_mode(&self->vcpu, MODE_LONG);
	EXPECT_EQ(1, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_GET_DEBUGREGS, &debug));
	EXPECT_EQ(1 << 13, debug.dr6 & 1 << 13);
}

/* All the registers, by the guest, through exits. */
GUEST_CODE64(all_registers,
	mov $0x1000, %eax; mov %rax, %dr0; mov $0x2000, %eax; mov %rax, %dr1; mov $0x3000, %eax; mov %rax, %dr2; mov $0x4000, %eax; mov %rax, %dr3;
	mov $0x500, %eax; mov %rax, %dr7; out %al, $PORT_SYNC;
	mov %dr0, %r8; mov %dr1, %r9; mov %dr2, %r10; mov %dr3, %r11; mov %dr7, %r12; mov %dr6, %r13; GUEST_DONE);

TEST_F(debug, kept_across_exits)
{
	struct kvm_regs regs;

	guest_load(&self->vm, all_registers);
	guest_set_mode(&self->vcpu, MODE_LONG);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
	regs = vcpu_regs(&self->vcpu);
	EXPECT_EQ(0x1000, regs.r8);
	EXPECT_EQ(0x2000, regs.r9);
	EXPECT_EQ(0x3000, regs.r10);
	EXPECT_EQ(0x4000, regs.r11);
	EXPECT_EQ(0x500, regs.r12);
	EXPECT_EQ(0xffff0ff0, regs.r13);
}

/*
 * The host has a breakpoint of its own on a word of the VMM's (as a debugger sets it). The guest writes at the same linear
 * address, and must not trap; it reads its own registers, not the host's; and the host's still fires afterwards.
 */
static volatile uint32_t watched __attribute__((aligned(4)));

GUEST_CODE64(at_the_hosts_address, movl $7, (%rsi); mov %dr0, %rbx; mov %dr7, %rcx; out %al, $PORT_SYNC; jmp guest_at_the_hosts_address);

static int trace_child(struct __test_metadata *_metadata, pid_t child)
{
	int status;

	if (waitpid(child, &status, 0) != child || !WIFSTOPPED(status))
		fatal("the child did not stop");
	if (ptrace(PTRACE_POKEUSER, child, offsetof(struct user, u_debugreg[0]), &watched) ||
	    ptrace(PTRACE_POKEUSER, child, offsetof(struct user, u_debugreg[7]), 0x000d0001))
		fatal("ptrace: %s", strerror(errno));
	ptrace(PTRACE_CONT, child, 0, 0);
	if (waitpid(child, &status, 0) != child)
		fatal("waitpid: %s", strerror(errno));
	return status;
}

TEST_F(debug, hosts_breakpoint)
{
	pid_t child = fork();

	if (!child) {
		uint64_t *pdpt, page = (uintptr_t)&watched & ~0x1fffffull;
		struct kvm_regs regs;

		ptrace(PTRACE_TRACEME, 0, 0, 0);
		raise(SIGSTOP);
		/* The VM must be this process's. */
		guest_start(&self->vm, &self->vcpu, at_the_hosts_address);
		/* A static program lies below 4 GiB: its 2 MiB of addresses lead to the guest's first memory. */
		if (page >= 1ull << 32)
			_exit(2);
		pdpt = vm_at(&self->vm, GUEST_PD);
		pdpt[page >> 21] = GUEST_PT | 7;
		regs = vcpu_regs(&self->vcpu);
		/* Within 2 MiB of it, at a page that the guest may write. */
		*guest_pte(&self->vm, (uintptr_t)&watched & 0x1ff000) = GUEST_FREE | 7;
		regs.rsi = (uintptr_t)&watched;
		vcpu_set_regs(&self->vcpu, &regs);
		for (int i = 0; i < 5; i++) {
			vcpu_run_to_port(&self->vcpu, PORT_SYNC);
			regs = vcpu_regs(&self->vcpu);
			if (regs.rbx || regs.rcx != 0x400)
				_exit(3);
		}
		/* Now the host's own write, which stops it. */
		watched = 1;
		_exit(4);
	}
	int status = trace_child(_metadata, child);

	ASSERT_TRUE(WIFSTOPPED(status)) TH_LOG("the child ended with %d instead of the host's breakpoint", WEXITSTATUS(status));
	EXPECT_EQ(SIGTRAP, WSTOPSIG(status));
	kill(child, SIGKILL);
	waitpid(child, &status, 0);
}

XVM_TEST_MAIN
