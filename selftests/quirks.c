// SPDX-License-Identifier: GPL-2.0
/* KVM_CAP_DISABLE_QUIRKS2: each quirk that can be disabled, with it and without (those of MONITOR and hypercalls have their own tests). */
#include "apic.h"

#define MSR_APIC_BASE 0x1b
#define MSR_UCODE_REV 0x8b
#define MSR_ARCH_CAPABILITIES 0x10a
#define MASKED 0x10000

static int disable(struct vm *vm, uint32_t capability, uint64_t quirks)
{
	struct kvm_enable_cap cap = { .cap = capability, .args = { quirks } };

	return try_ioctl(vm->fd, KVM_ENABLE_CAP, &cap);
}

static struct vm vm_without(uint64_t quirks)
{
	struct vm vm = vm_create();

	if (disable(&vm, KVM_CAP_DISABLE_QUIRKS2, quirks))
		fatal("quirks %#lx", quirks);
	return vm;
}

TEST(masks)
{
	uint64_t all = device_extension(KVM_CAP_DISABLE_QUIRKS2);
	struct vm vm = vm_create();

	EXPECT_EQ(all, all & 0xfff);
	EXPECT_EQ(1, device_extension(KVM_CAP_DISABLE_QUIRKS));
	for (int bit = 0; bit < 64; bit++) {
		EXPECT_EQ(all >> bit & 1 ? 0 : -EINVAL, disable(&vm, KVM_CAP_DISABLE_QUIRKS2, 1ull << bit)) TH_LOG("bit %d", bit);
	}
	EXPECT_EQ(-EINVAL, disable(&vm, KVM_CAP_DISABLE_QUIRKS2, -1ull));
	EXPECT_EQ(0, disable(&vm, KVM_CAP_DISABLE_QUIRKS2, all));
	/* The older one ignores what it doesn't know. */
	EXPECT_EQ(0, disable(&vm, KVM_CAP_DISABLE_QUIRKS, -1ull));
	vm_free(&vm);
}

static uint32_t lint0(struct vcpu *vcpu)
{
	struct kvm_lapic_state lapic;

	do_ioctl(vcpu->fd, KVM_GET_LAPIC, &lapic);
	return *(uint32_t *)(lapic.regs + APIC_LVT_LINT0);
}

/* The APIC is turned off and on by its MSR: it is as after a reset. */
GUEST_CODE64(reset_apic, mov $MSR_APIC_BASE, %ecx; rdmsr; btr $11, %eax; wrmsr; bts $11, %eax; wrmsr; GUEST_DONE);

TEST(lint0_reenabled)
{
	for (int i = 0; i < 2; i++) {
		struct vm vm = vm_without(i ? KVM_X86_QUIRK_LINT0_REENABLED : 0);
		struct vcpu first, second;

		vm_create_irqchip(&vm);
		first = vcpu_create(&vm, 0);
		second = vcpu_create(&vm, 1);
		EXPECT_EQ(i ? MASKED : 0x700, lint0(&first));
		EXPECT_EQ(MASKED, lint0(&second));
		vcpu_set_supported_cpuid(&first);
		guest_load(&vm, reset_apic);
		guest_set_mode(&first, MODE_LONG);
		vcpu_run_to_port(&first, PORT_DONE);
		if (device_is_xvm())
			EXPECT_EQ(i ? MASKED : 0x700, lint0(&first));
		vcpu_free(&first);
		vcpu_free(&second);
		vm_free(&vm);
	}
}

/* In x2APIC mode, then with the APIC turned off: a read of 4 bytes, one of 8, and a write. */
GUEST_CODE64(beside_x2apic,
	mov $APIC, %ebx; mov $MSR_APIC_BASE, %ecx; rdmsr; or $0xc00, %eax; wrmsr;
	mov 0x30(%rbx), %esi; mov 0x20(%rbx), %rdi; movl $0x1ff, APIC_SVR(%rbx); mov $0x80f, %ecx; rdmsr; mov %eax, %ebp;
	mov $MSR_APIC_BASE, %ecx; rdmsr; and $~0xc00, %eax; wrmsr; mov 0x30(%rbx), %r8d; GUEST_DONE);

TEST(lapic_mmio_hole)
{
	struct vm vm = vm_without(0);
	struct kvm_run *run;
	struct kvm_regs regs;
	struct vcpu vcpu;

	vm_create_irqchip(&vm);
	vcpu = vcpu_create(&vm, 0);
	vcpu_set_supported_cpuid(&vcpu);
	guest_load(&vm, beside_x2apic);
	guest_set_mode(&vcpu, MODE_LONG);
	vcpu_run_to_port(&vcpu, PORT_DONE);
	regs = vcpu_regs(&vcpu);
	EXPECT_EQ(-1u, regs.rsi);
	EXPECT_EQ(-1ull, regs.rdi);
	/* The write went nowhere. */
	EXPECT_EQ(0xff, regs.rbp);
	EXPECT_EQ(-1u, regs.r8);
	vcpu_free(&vcpu);
	vm_free(&vm);
	vm = vm_without(KVM_X86_QUIRK_LAPIC_MMIO_HOLE);
	vm_create_irqchip(&vm);
	vcpu = vcpu_create(&vm, 0);
	run = vcpu.run;
	vcpu_set_supported_cpuid(&vcpu);
	guest_load(&vm, beside_x2apic);
	guest_set_mode(&vcpu, MODE_LONG);
	for (int i = 0; i < 4; i++) {
		static const uint32_t at[] = { 0x30, 0x20, APIC_SVR, 0x30 };

		vcpu_run_to(&vcpu, KVM_EXIT_MMIO);
		EXPECT_EQ(APIC + at[i], run->mmio.phys_addr);
		EXPECT_EQ(i == 2, run->mmio.is_write);
		memset(run->mmio.data, 0x5a, 8);
	}
	vcpu_run_to_port(&vcpu, PORT_DONE);
	regs = vcpu_regs(&vcpu);
	EXPECT_EQ(0x5a5a5a5a, regs.rsi);
	EXPECT_EQ(0x5a5a5a5a5a5a5a5a, regs.rdi);
	EXPECT_EQ(0xff, regs.rbp);
	EXPECT_EQ(0x5a5a5a5a, regs.r8);
	vcpu_free(&vcpu);
	vm_free(&vm);
}

GUEST_CODE64(out_7e, mov $0x77, %eax; out %al, $0x7e; out %ax, $0x7e; out %eax, $0x7d; in $0x7e, %al; GUEST_DONE);

TEST(out_7e)
{
	/* Where RIP is at each exit, with the quirk: behind the instructions that write to port 0x7e. */
	static const int offsets[2][4] = { { 7, 10, 10, 12 }, { 5, 7, 10, 12 } };

	for (int i = 0; i < 2; i++) {
		struct vm vm = vm_without(i ? KVM_X86_QUIRK_OUT_7E_INC_RIP : 0);
		struct vcpu vcpu = vcpu_create(&vm, 0);

		vcpu_set_supported_cpuid(&vcpu);
		guest_load(&vm, out_7e);
		guest_set_mode(&vcpu, MODE_LONG);
		for (int n = 0; n < 4; n++) {
			vcpu_run_to(&vcpu, KVM_EXIT_IO);
			EXPECT_EQ(n == 2 ? 0x7d : 0x7e, vcpu.run->io.port);
			EXPECT_EQ(n == 1 ? 2 : n == 2 ? 4 : 1, vcpu.run->io.size);
			EXPECT_EQ(GUEST_CODE + offsets[i][n], vcpu_regs(&vcpu).rip) TH_LOG("exit %d, quirk %d", n, !i);
			if (n < 3) {
				EXPECT_EQ(0x77, *(uint8_t *)vcpu_io_data(&vcpu));
				continue;
			}
			*(uint8_t *)vcpu_io_data(&vcpu) = 0x66;
		}
		vcpu_run_to_port(&vcpu, PORT_DONE);
		EXPECT_EQ(0x66, vcpu_regs(&vcpu).rax);
		vcpu_free(&vcpu);
		vm_free(&vm);
	}
}

TEST(stuff_feature_msrs)
{
	for (int i = 0; i < 2; i++) {
		struct vm vm = vm_without(i ? KVM_X86_QUIRK_STUFF_FEATURE_MSRS : 0);
		struct vcpu vcpu = vcpu_create(&vm, 0);
		uint64_t revision = -1, capabilities = -1;

		ASSERT_EQ(1, vcpu_get_msr(&vcpu, MSR_UCODE_REV, &revision));
		ASSERT_EQ(1, vcpu_get_msr(&vcpu, MSR_ARCH_CAPABILITIES, &capabilities));
		if (i) {
			EXPECT_EQ(0, revision);
			EXPECT_EQ(0, capabilities);
		} else {
			EXPECT_NE(0, revision);
		}
		vcpu_free(&vcpu);
		vm_free(&vm);
	}
}

XVM_TEST_MAIN
