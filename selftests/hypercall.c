// SPDX-License-Identifier: GPL-2.0
/* VMCALL and VMMCALL: both of either vendor's, answered in the kernel; a number that nobody knows is -KVM_ENOSYS. */
#include "test.h"
#include <linux/kvm_para.h>
#include <time.h>

FIXTURE(hypercall)
{
	struct vm vm;
	struct vcpu vcpu;
};

GUEST_CODE64(both, mov $0x7777, %eax; vmcall; mov %rax, %rbx; mov $0x7777, %eax; vmmcall; mov %rax, %rsi; GUEST_DONE);
GUEST_CODE64(both_as_user,
	pushq $SELECTOR_USER_DATA; pushq $GUEST_STACK; pushq $0x3002; pushq $SELECTOR_USER_CODE; pushq $(GUEST_AT(both_as_user, 1f)); iretq;
	1: mov $0x7777, %eax; vmcall; mov %rax, %rbx; mov $0x7777, %eax; vmmcall; mov %rax, %rsi; GUEST_DONE);

FIXTURE_SETUP(hypercall)
{
	guest_start(&self->vm, &self->vcpu, both);
}

FIXTURE_TEARDOWN(hypercall)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

TEST_F(hypercall, unknown_number)
{
	struct kvm_regs regs;

	vcpu_run_to_port(&self->vcpu, PORT_DONE);
	regs = vcpu_regs(&self->vcpu);
	EXPECT_EQ(-KVM_ENOSYS, (int64_t)regs.rbx);
	EXPECT_EQ(-KVM_ENOSYS, (int64_t)regs.rsi);
}

/* Any call: the VMM sets the registers. */
GUEST_CODE64(call, vmmcall; GUEST_DONE);
GUEST_CODE32(call32, vmmcall; GUEST_DONE);

static int64_t make_call(struct vcpu *vcpu, uint64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
	struct kvm_regs regs;

	guest_load(vcpu->vm, call);
	guest_set_mode(vcpu, MODE_LONG);
	regs = vcpu_regs(vcpu);
	regs.rax = number;
	regs.rbx = a;
	regs.rcx = b;
	regs.rdx = c;
	regs.rsi = d;
	vcpu_set_regs(vcpu, &regs);
	vcpu_run_to_port(vcpu, PORT_DONE);
	return vcpu_regs(vcpu).rax;
}

TEST_F(hypercall, poll_and_yield)
{
	EXPECT_EQ(0, make_call(&self->vcpu, KVM_HC_VAPIC_POLL_IRQ, 0, 0, 0, 0));
	for (uint64_t id = 0; id < 3; id++)
		EXPECT_EQ(0, make_call(&self->vcpu, KVM_HC_SCHED_YIELD, id, 0, 0, 0));
	EXPECT_EQ(0, make_call(&self->vcpu, KVM_HC_SCHED_YIELD, UINT64_MAX, 0, 0, 0));
	for (uint64_t number = 13; number < 64; number++)
		EXPECT_EQ(-KVM_ENOSYS, make_call(&self->vcpu, number, 0, 0, 0, 0));
	EXPECT_EQ(-KVM_ENOSYS, make_call(&self->vcpu, (1ull << 32) | KVM_HC_VAPIC_POLL_IRQ, 0, 0, 0, 0));
}

/* 32-bit code: the low halves count, and what is answered has 32 bits. */
TEST_F(hypercall, in_32_bits)
{
	for (int i = 0; i < 2; i++) {
		struct kvm_regs regs;

		guest_load(&self->vm, call32);
		guest_set_mode(&self->vcpu, MODE_PROTECTED);
		regs = vcpu_regs(&self->vcpu);
		regs.rax = i ? KVM_HC_VAPIC_POLL_IRQ : 0x7777;
		vcpu_set_regs(&self->vcpu, &regs);
		vcpu_run_to_port(&self->vcpu, PORT_DONE);
		EXPECT_EQ(i ? 0 : (uint32_t)-KVM_ENOSYS, vcpu_regs(&self->vcpu).rax);
	}
}

/* Without a feature in CPUID, and with CPUID to be obeyed, there is no such call. */
TEST_F(hypercall, enforced)
{
	static const int calls[][2] = { { KVM_HC_KICK_CPU, KVM_FEATURE_PV_UNHALT }, { KVM_HC_SEND_IPI, KVM_FEATURE_PV_SEND_IPI },
		{ KVM_HC_SCHED_YIELD, KVM_FEATURE_PV_SCHED_YIELD } };
	struct kvm_cpuid2 *cpuid = supported_cpuid();
	struct kvm_cpuid_entry2 *leaf = cpuid_entry(cpuid, KVM_CPUID_FEATURES, 0);
	struct kvm_enable_cap cap = { .cap = KVM_CAP_ENFORCE_PV_FEATURE_CPUID, .args = { 1 } };

	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
	self->vm = vm_create();
	vm_create_irqchip(&self->vm);
	for (int i = 0; i < 3; i++) {
		for (int has = 0; has < 2; has++) {
			self->vcpu = vcpu_create(&self->vm, 2 * i + has);
			if (i + has) {
				struct kvm_mp_state runnable = { .mp_state = KVM_MP_STATE_RUNNABLE };

				do_ioctl(self->vcpu.fd, KVM_SET_MP_STATE, &runnable);
			}
			leaf->eax = has << calls[i][1];
			do_ioctl(self->vcpu.fd, KVM_SET_CPUID2, cpuid);
			do_ioctl(self->vcpu.fd, KVM_ENABLE_CAP, &cap);
			EXPECT_EQ(has ? 0 : -KVM_ENOSYS, make_call(&self->vcpu, calls[i][0], 0, 0, 0, 0x40));
			vcpu_free(&self->vcpu);
		}
	}
	self->vcpu = vcpu_create(&self->vm, 100);
}

/* The host's time and the guest's TSC at one moment. */
TEST_F(hypercall, clock_pairing)
{
	struct kvm_clock_pairing *pairing = vm_at(&self->vm, GUEST_FREE + 0x100);
	int64_t answer;
	uint64_t tsc;

	memset(pairing, 0xff, 2 * sizeof(*pairing));
	answer = make_call(&self->vcpu, KVM_HC_CLOCK_PAIRING, GUEST_FREE + 0x100, KVM_CLOCK_PAIRING_WALLCLOCK, 0, 0);
	EXPECT_EQ(-KVM_EOPNOTSUPP, make_call(&self->vcpu, KVM_HC_CLOCK_PAIRING, GUEST_FREE + 0x100, 1, 0, 0));
	if (answer == -KVM_EOPNOTSUPP)
		SKIP(return, "the host doesn't keep time by its TSC");
	EXPECT_EQ(0, answer);
	EXPECT_LT(llabs(time(NULL) - pairing->sec), 30);
	EXPECT_LT(pairing->nsec, 1000000000);
	ASSERT_EQ(1, vcpu_get_msr(&self->vcpu, 0x10, &tsc));
	EXPECT_LT(pairing->tsc, tsc);
	EXPECT_EQ(0, pairing->flags);
	for (int i = 0; i < 9; i++)
		EXPECT_EQ(0, pairing->pad[i]);
	EXPECT_EQ(-1, pairing[1].sec);
	/* Across a page's end, into nothing, at the end of the address space. */
	EXPECT_EQ(0, make_call(&self->vcpu, KVM_HC_CLOCK_PAIRING, GUEST_FREE + 0xff0, KVM_CLOCK_PAIRING_WALLCLOCK, 0, 0));
	EXPECT_EQ(-KVM_EFAULT, make_call(&self->vcpu, KVM_HC_CLOCK_PAIRING, GUEST_MEMORY - 8, KVM_CLOCK_PAIRING_WALLCLOCK, 0, 0));
	EXPECT_EQ(-KVM_EFAULT, make_call(&self->vcpu, KVM_HC_CLOCK_PAIRING, UINT64_MAX - 7, KVM_CLOCK_PAIRING_WALLCLOCK, 0, 0));
}

/* A hypercall that the VMM makes, when it has asked for it. */
TEST_F(hypercall, for_the_vmm)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_EXIT_HYPERCALL, .args = { 1 << KVM_HC_MAP_GPA_RANGE } };
	struct kvm_regs regs;

	EXPECT_EQ(1 << KVM_HC_MAP_GPA_RANGE, device_extension(KVM_CAP_EXIT_HYPERCALL));
	EXPECT_EQ(-KVM_ENOSYS, make_call(&self->vcpu, KVM_HC_MAP_GPA_RANGE, 0x1000, 1, 0, 0));
	for (int bit = 0; bit < 64; bit++) {
		if (bit == KVM_HC_MAP_GPA_RANGE)
			continue;
		cap.args[0] = 1ull << bit;
		EXPECT_EQ(-EINVAL, try_ioctl(self->vm.fd, KVM_ENABLE_CAP, &cap));
	}
	cap.args[0] = 1 << KVM_HC_MAP_GPA_RANGE;
	EXPECT_EQ(0, try_ioctl(self->vm.fd, KVM_ENABLE_CAP, &cap));
	EXPECT_EQ(-KVM_EINVAL, make_call(&self->vcpu, KVM_HC_MAP_GPA_RANGE, 0x1001, 1, 0, 0));
	EXPECT_EQ(-KVM_EINVAL, make_call(&self->vcpu, KVM_HC_MAP_GPA_RANGE, 0x1000, 0, 0, 0));
	EXPECT_EQ(-KVM_EINVAL, make_call(&self->vcpu, KVM_HC_MAP_GPA_RANGE, 0x1000, UINT64_MAX, 0, 0));
	guest_load(&self->vm, call);
	for (int i = 0; i < 2; i++) {
		guest_set_mode(&self->vcpu, MODE_LONG);
		regs = vcpu_regs(&self->vcpu);
		regs.rax = KVM_HC_MAP_GPA_RANGE;
		regs.rbx = 0x5000;
		regs.rcx = 7;
		regs.rdx = 0x10;
		vcpu_set_regs(&self->vcpu, &regs);
		vcpu_run_to(&self->vcpu, KVM_EXIT_HYPERCALL);
		EXPECT_EQ(KVM_HC_MAP_GPA_RANGE, self->vcpu.run->hypercall.nr);
		EXPECT_EQ(0x5000, self->vcpu.run->hypercall.args[0]);
		EXPECT_EQ(7, self->vcpu.run->hypercall.args[1]);
		EXPECT_EQ(0x10, self->vcpu.run->hypercall.args[2]);
		EXPECT_EQ(0, self->vcpu.run->hypercall.ret);
		EXPECT_EQ(KVM_EXIT_HYPERCALL_LONG_MODE, self->vcpu.run->hypercall.flags);
		if (i)
			self->vcpu.run->hypercall.ret = 0x123456789abcdef;
		vcpu_run_to_port(&self->vcpu, PORT_DONE);
		EXPECT_EQ(i ? 0x123456789abcdef : 0, vcpu_regs(&self->vcpu).rax);
	}
}

/* The other vendor's instruction becomes this one's, where the guest could write that itself; or #UD. */
TEST_F(hypercall, patched)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_DISABLE_QUIRKS2, .args = { KVM_X86_QUIRK_FIX_HYPERCALL_INSN } };
	const uint8_t *code = vm_at(&self->vm, GUEST_CODE);
	uint8_t native = host_is_amd() ? 0xd9 : 0xc1;

	EXPECT_NE(0, device_extension(KVM_CAP_DISABLE_QUIRKS2) & KVM_X86_QUIRK_FIX_HYPERCALL_INSN);
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
	EXPECT_EQ(native, code[7]);
	EXPECT_EQ(native, code[18]);
	guest_load(&self->vm, both);
	guest_set_mode(&self->vcpu, MODE_LONG);
	do_ioctl(self->vm.fd, KVM_ENABLE_CAP, &cap);
	guest_report(&self->vm)->fixup = 0;
	vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION);
	EXPECT_EQ(6, guest_report(&self->vm)->vector);
	EXPECT_EQ(0xc1, code[7]);
	EXPECT_EQ(0xd9, code[18]);
	cap.args[0] = 1ull << 63;
	EXPECT_EQ(-EINVAL, try_ioctl(self->vm.fd, KVM_ENABLE_CAP, &cap));
	cap.args[0] = 0;
	cap.flags = 1;
	EXPECT_EQ(-EINVAL, try_ioctl(self->vm.fd, KVM_ENABLE_CAP, &cap));
}

/* IPIs and the end of another vCPU's HLT. */
#define APIC 0xfee00000
GUEST_CODE64(wait_for_ipi, mov $APIC, %r14d; movl $0x1ff, 0xf0(%r14); out %al, $PORT_SYNC; sti; hlt; ud2);
/* KVM finds a vCPU by its APIC's number only after something was written to that APIC, or another vCPU was made. */
GUEST_CODE64(wait_for_kick, mov $APIC, %r14d; movl $0x1ff, 0xf0(%r14); out %al, $PORT_SYNC; cli; hlt; GUEST_DONE);

static void *run_to_end(void *vcpu)
{
	vcpu_run_to(vcpu, KVM_EXIT_IO);
	return (void *)(uintptr_t)((struct vcpu *)vcpu)->run->io.port;
}

TEST_F(hypercall, between_vcpus)
{
	struct vcpu others[2];
	pthread_t threads[2];
	void *port;

	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
	self->vm = vm_create();
	vm_create_irqchip(&self->vm);
	self->vcpu = vcpu_create(&self->vm, 0);
	vcpu_set_supported_cpuid(&self->vcpu);
	for (int kick = 0; kick < 2; kick++) {
		for (int i = 0; i < 2; i++) {
			struct kvm_mp_state runnable = { .mp_state = KVM_MP_STATE_RUNNABLE };

			others[i] = vcpu_create(&self->vm, 3 + 70 * i + kick);
			vcpu_set_supported_cpuid(&others[i]);
			do_ioctl(others[i].fd, KVM_SET_MP_STATE, &runnable);
			if (kick)
				guest_load(&self->vm, wait_for_kick);
			else
				guest_load(&self->vm, wait_for_ipi);
			guest_set_mode(&others[i], MODE_LONG);
			vcpu_run_to_port(&others[i], PORT_SYNC);
		}
		guest_report(&self->vm)->fixup = 0;
		if (kick) {
			/* Before the HLT of the first, and while the second one sleeps, or before: one HLT each. */
			EXPECT_EQ(0, make_call(&self->vcpu, KVM_HC_KICK_CPU, 0, 4, 0, 0));
			guest_load(&self->vm, wait_for_kick);
			run_to_end(&others[0]);
			EXPECT_EQ(PORT_DONE, others[0].run->io.port);
			ASSERT_EQ(0, pthread_create(&threads[1], NULL, run_to_end, &others[1]));
			/* There is room for the call behind the code that waits. */
			struct kvm_regs regs;

			guest_set_mode(&self->vcpu, MODE_LONG);
			regs = vcpu_regs(&self->vcpu);
			memcpy(vm_at(&self->vm, GUEST_CODE + 0x1000), guest_call, guest_call_end - guest_call);
			regs.rip = GUEST_CODE + 0x1000;
			regs.rax = KVM_HC_KICK_CPU;
			regs.rcx = 74;
			vcpu_set_regs(&self->vcpu, &regs);
			vcpu_run_to_port(&self->vcpu, PORT_DONE);
			pthread_join(threads[1], &port);
			EXPECT_EQ(PORT_DONE, (uintptr_t)port);
		} else {
			EXPECT_EQ(-KVM_EINVAL, make_call(&self->vcpu, KVM_HC_SEND_IPI, 1, 0, 3, 0x840));
			EXPECT_EQ(-KVM_EINVAL, make_call(&self->vcpu, KVM_HC_SEND_IPI, 1, 0, 3, 0x80040));
			EXPECT_EQ(0, make_call(&self->vcpu, KVM_HC_SEND_IPI, 0, 0, 3, 0x40));
			EXPECT_EQ(0, make_call(&self->vcpu, KVM_HC_SEND_IPI, UINT64_MAX, UINT64_MAX, 100, 0x40));
			EXPECT_EQ(0, make_call(&self->vcpu, KVM_HC_SEND_IPI, UINT64_MAX, 0, 0xffffffff, 0x40));
			/* The first by the lower half, the other by the upper one. */
			EXPECT_EQ(2, make_call(&self->vcpu, KVM_HC_SEND_IPI, 2, 1ull << 7, 2, 0x40));
			guest_load(&self->vm, wait_for_ipi);
			for (int i = 0; i < 2; i++) {
				run_to_end(&others[i]);
				EXPECT_EQ(PORT_EXCEPTION, others[i].run->io.port);
				EXPECT_EQ(0x40, guest_report(&self->vm)->vector);
			}
		}
		for (int i = 0; i < 2; i++)
			vcpu_free(&others[i]);
	}
}

/* At privilege level 3 there is nothing to be had. */
TEST_F(hypercall, user_mode)
{
	struct kvm_regs regs;

	guest_load(&self->vm, both_as_user);
	guest_set_mode(&self->vcpu, MODE_LONG);
	vcpu_run_to(&self->vcpu, KVM_EXIT_IO);
	/* Either an answer that refuses, or an exception, but not the kernel's service. */
	if (self->vcpu.run->io.port == PORT_EXCEPTION) {
		EXPECT_TRUE(guest_report(&self->vm)->vector == 6 || guest_report(&self->vm)->vector == 13);
		return;
	}
	regs = vcpu_regs(&self->vcpu);
	EXPECT_EQ(-KVM_EPERM, (int64_t)regs.rbx);
	EXPECT_EQ(-KVM_EPERM, (int64_t)regs.rsi);
}

XVM_TEST_MAIN
