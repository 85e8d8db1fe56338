// SPDX-License-Identifier: GPL-2.0
/* KVM_CAP_SPLIT_IRQCHIP: local APICs in the kernel, 8259 pair and IOAPIC with the VMM. */
#include "apic.h"
#include "eventfds.h"

#define PINS 24
#define LEVEL 0x8000

static int split(struct vm *vm, uint64_t pins)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_SPLIT_IRQCHIP, .args = { pins } };

	return try_ioctl(vm->fd, KVM_ENABLE_CAP, &cap);
}

FIXTURE(split)
{
	struct vm vm;
	struct vcpu vcpu;
};

FIXTURE_SETUP(split)
{
	self->vm = vm_create();
	ASSERT_EQ(0, split(&self->vm, PINS));
	self->vcpu = vcpu_create(&self->vm, 0);
	vcpu_set_supported_cpuid(&self->vcpu);
}

FIXTURE_TEARDOWN(split)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

TEST(creation)
{
	struct vm vm = vm_create();
	struct kvm_pit_config pit = { 0 };
	struct kvm_irqchip chip = { 0 };
	struct vcpu vcpu;

	EXPECT_EQ(-EINVAL, split(&vm, 4097));
	EXPECT_EQ(-EINVAL, split(&vm, 1ull << 32));
	ASSERT_EQ(0, split(&vm, 4096));
	EXPECT_EQ(-EEXIST, split(&vm, PINS));
	EXPECT_EQ(-EEXIST, try_ioctl(vm.fd, KVM_CREATE_IRQCHIP, 0));
	EXPECT_EQ(-ENOENT, try_ioctl(vm.fd, KVM_CREATE_PIT2, &pit));
	EXPECT_EQ(-ENXIO, try_ioctl(vm.fd, KVM_GET_IRQCHIP, &chip));
	EXPECT_EQ(-ENXIO, try_ioctl(vm.fd, KVM_SET_IRQCHIP, &chip));
	vm_free(&vm);
	vm = vm_create();
	vcpu = vcpu_create(&vm, 0);
	EXPECT_EQ(-EEXIST, split(&vm, PINS));
	vcpu_free(&vcpu);
	vm_free(&vm);
	vm = vm_create();
	vm_create_irqchip(&vm);
	EXPECT_EQ(-EEXIST, split(&vm, PINS));
	vm_free(&vm);
}

static int route(struct vm *vm, uint32_t gsi, uint32_t data)
{
	struct routing table = {
		.header.nr = 1,
		.entries = { { .gsi = gsi, .type = KVM_IRQ_ROUTING_MSI, .u.msi = { .address_lo = 0xfee00000, .data = data } } },
	};

	return try_ioctl(vm->fd, KVM_SET_GSI_ROUTING, &table);
}

GUEST_CODE64(wait_only, ENABLE_APIC; out %al, $PORT_SYNC; WAIT_LOOP);

#define begin(name) do { \
		guest_load(&self->vm, name); \
		guest_set_mode(&self->vcpu, MODE_LONG); \
		vcpu_run_to_port(&self->vcpu, PORT_SYNC); \
	} while (0)
#define expect_silence() do { \
		ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_NMI, 0)); \
		EXPECT_EQ(2, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION)); \
	} while (0)

TEST_F(split, end_of_interrupt)
{
	struct routing chips = {
		.header.nr = 1,
		.entries = { { .gsi = 3, .type = KVM_IRQ_ROUTING_IRQCHIP, .u.irqchip = { .irqchip = KVM_IRQCHIP_IOAPIC, .pin = 3 } } },
	};

	EXPECT_EQ(-EINVAL, try_ioctl(self->vm.fd, KVM_SET_GSI_ROUTING, &chips));
	begin(wait_only);
	/* A level of one of the IOAPIC's pins: the VMM is told of the end, once. */
	ASSERT_EQ(0, route(&self->vm, PINS - 1, 0x61 | LEVEL));
	ASSERT_EQ(0, irq_line(&self->vm, PINS - 1, 1));
	EXPECT_EQ(0x61, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	vcpu_run_to(&self->vcpu, KVM_EXIT_IOAPIC_EOI);
	EXPECT_EQ(0x61, self->vcpu.run->eoi.vector);
	expect_silence();
	/* An edge, and a level that isn't the IOAPIC's: not. */
	ASSERT_EQ(0, route(&self->vm, PINS - 1, 0x62));
	ASSERT_EQ(0, irq_line(&self->vm, PINS - 1, 1));
	EXPECT_EQ(0x62, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	expect_silence();
	ASSERT_EQ(0, route(&self->vm, PINS, 0x63 | LEVEL));
	ASSERT_EQ(0, irq_line(&self->vm, PINS, 1));
	EXPECT_EQ(0x63, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	expect_silence();
	/* immediate_exit doesn't lose it. */
	ASSERT_EQ(0, route(&self->vm, 0, 0x64 | LEVEL));
	ASSERT_EQ(0, irq_line(&self->vm, 0, 1));
	EXPECT_EQ(0x64, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	self->vcpu.run->immediate_exit = 1;
	EXPECT_EQ(-EINTR, vcpu_run(&self->vcpu));
	self->vcpu.run->immediate_exit = 0;
	vcpu_run_to(&self->vcpu, KVM_EXIT_IOAPIC_EOI);
	EXPECT_EQ(0x64, self->vcpu.run->eoi.vector);
}

/* The ports and the IOAPIC's page are the VMM's. */
GUEST_CODE64(devices, ENABLE_APIC; out %al, $PORT_SYNC; in $0x20, %al; in $0x40, %al; mov (%r13), %eax; GUEST_DONE);

TEST_F(split, devices)
{
	begin(devices);
	vcpu_run_to(&self->vcpu, KVM_EXIT_IO);
	EXPECT_EQ(0x20, self->vcpu.run->io.port);
	vcpu_run_to(&self->vcpu, KVM_EXIT_IO);
	EXPECT_EQ(0x40, self->vcpu.run->io.port);
	vcpu_run_to(&self->vcpu, KVM_EXIT_MMIO);
	EXPECT_EQ(IOAPIC, self->vcpu.run->mmio.phys_addr);
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
}

TEST_F(split, eventfd)
{
	int fd = event_new();

	begin(wait_only);
	ASSERT_EQ(0, route(&self->vm, 40, 0x71));
	EXPECT_EQ(-EINVAL, irqfd(&self->vm, fd, 40, KVM_IRQFD_FLAG_RESAMPLE, fd));
	ASSERT_EQ(0, irqfd(&self->vm, fd, 40, 0, 0));
	event_signal(fd);
	EXPECT_EQ(0x71, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	close(fd);
}

/* LINT0 brings the VMM's 8259 pair; interrupts off, then on, then HLT. */
GUEST_CODE64(through_lint0, ENABLE_APIC; movl $0x700, APIC_LVT_LINT0(%r14); out %al, $PORT_SYNC; out %al, $PORT_SYNC; sti; nop;
	out %al, $PORT_SYNC; out %al, $PORT_SYNC; 1: hlt; jmp 1b);

TEST_F(split, external_interrupts)
{
	struct kvm_interrupt interrupt = { .irq = 0x81 };
	struct kvm_run *run = self->vcpu.run;
	struct kvm_msi msi = { .address_lo = 0xfee00000, .data = 0x91 };

	begin(through_lint0);
	EXPECT_EQ(0, run->ready_for_interrupt_injection);
	/* The window opens behind STI. */
	run->request_interrupt_window = 1;
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	vcpu_run_to(&self->vcpu, KVM_EXIT_IRQ_WINDOW_OPEN);
	EXPECT_EQ(1, run->ready_for_interrupt_injection);
	run->request_interrupt_window = 0;
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_INTERRUPT, &interrupt));
	EXPECT_EQ(-EEXIST, try_ioctl(self->vcpu.fd, KVM_INTERRUPT, &interrupt));
	EXPECT_EQ(0x81, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	EXPECT_EQ(1, run->ready_for_interrupt_injection);
	/* Beside one from the local APIC: both come. */
	interrupt.irq = 0x82;
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_INTERRUPT, &interrupt));
	ASSERT_EQ(1, try_ioctl(self->vm.fd, KVM_SIGNAL_MSI, &msi));
	EXPECT_EQ(0x82 + 0x91, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION) + vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	/* It wakes from HLT, which is the kernel's business. */
	interrupt.irq = 0x83;
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_INTERRUPT, &interrupt));
	EXPECT_EQ(0x83, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
}

/* LINT0 is masked: whoever asks for a window doesn't get one, and the guest isn't held up. */
GUEST_CODE64(masked_lint0, ENABLE_APIC; movl $0x10700, APIC_LVT_LINT0(%r14); out %al, $PORT_SYNC; sti; nop; mov $1000, %ecx; 1: loop 1b;
	out %al, $PORT_SYNC; END_OF_INTERRUPT; movl $0x700, APIC_LVT_LINT0(%r14); nop; out %al, $PORT_SYNC; hlt);

TEST_F(split, masked_lint0)
{
	struct kvm_run *run = self->vcpu.run;
	struct kvm_msi msi = { .address_lo = 0xfee00000, .data = 0x91 };

	begin(masked_lint0);
	run->request_interrupt_window = 1;
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	EXPECT_EQ(0, run->ready_for_interrupt_injection);
	ASSERT_EQ(1, try_ioctl(self->vm.fd, KVM_SIGNAL_MSI, &msi));
	EXPECT_EQ(0x91, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	/* Open: it does. */
	vcpu_run_to(&self->vcpu, KVM_EXIT_IRQ_WINDOW_OPEN);
	EXPECT_EQ(1, run->ready_for_interrupt_injection);
}

static int x2apic_api(struct vm *vm, uint64_t flags)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_X2APIC_API, .args = { flags } };

	return try_ioctl(vm->fd, KVM_ENABLE_CAP, &cap);
}

#define ENABLE KVM_X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST
#define DISABLE KVM_X2APIC_DISABLE_SUPPRESS_EOI_BROADCAST

TEST_F(split, eoi_suppression_flags)
{
	struct vm full = vm_create(), none = vm_create();

	vm_create_irqchip(&full);
	EXPECT_EQ(ENABLE | DISABLE, try_ioctl(self->vm.fd, KVM_CHECK_EXTENSION, KVM_CAP_X2APIC_API) & (ENABLE | DISABLE));
	EXPECT_EQ(DISABLE, try_ioctl(full.fd, KVM_CHECK_EXTENSION, KVM_CAP_X2APIC_API) & (ENABLE | DISABLE));
	EXPECT_EQ(-EINVAL, x2apic_api(&self->vm, ENABLE | DISABLE));
	EXPECT_EQ(-EINVAL, x2apic_api(&self->vm, 1 << 4));
	EXPECT_EQ(-EINVAL, x2apic_api(&self->vm, 1ull << 63));
	EXPECT_EQ(-EINVAL, x2apic_api(&full, ENABLE));
	EXPECT_EQ(-EINVAL, x2apic_api(&none, ENABLE));
	EXPECT_EQ(0, x2apic_api(&full, DISABLE));
	EXPECT_EQ(0, x2apic_api(&self->vm, ENABLE));
	EXPECT_EQ(0, x2apic_api(&self->vm, DISABLE));
	vm_free(&full);
	vm_free(&none);
}

/* RSI is written to the spurious-interrupt vector register; RBP: what is in it then, RDI: the version. */
GUEST_CODE64(suppress, ENABLE_APIC; mov %esi, APIC_SVR(%r14); mov APIC_SVR(%r14), %ebp; mov 0x30(%r14), %edi; out %al, $PORT_SYNC;
	sti; hlt; cli; END_OF_INTERRUPT; GUEST_DONE);

/* Whether the VMM was told of the end of a level-triggered interrupt. */
static bool told_of_end(FIXTURE_DATA(split) *self, bool offered)
{
	struct kvm_regs regs;
	uint32_t end;

	vcpu_set_supported_cpuid(&self->vcpu);
	guest_load(&self->vm, suppress);
	guest_set_mode(&self->vcpu, MODE_LONG);
	regs = vcpu_regs(&self->vcpu);
	regs.rsi = 0x11ff;
	vcpu_set_regs(&self->vcpu, &regs);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	regs = vcpu_regs(&self->vcpu);
	if (regs.rbp != (offered ? 0x11ff : 0x1ff) || !(regs.rdi & 1 << 24) == offered)
		fatal("SVR %#llx, version %#llx", regs.rbp, regs.rdi);
	if (route(&self->vm, 4, 0x61 | LEVEL) || irq_line(&self->vm, 4, 1))
		fatal("no interrupt");
	if (vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION) != 0x61)
		fatal("another interrupt");
	end = vcpu_run(&self->vcpu);
	if (end == KVM_EXIT_IOAPIC_EOI)
		vcpu_run_to_port(&self->vcpu, PORT_DONE);
	else if (end != KVM_EXIT_IO || self->vcpu.run->io.port != PORT_DONE)
		fatal("exit %u", end);
	return end == KVM_EXIT_IOAPIC_EOI;
}

/* By KVM's old way the guest is told that it can, and isn't obeyed. */
TEST_F(split, eoi_suppression)
{
	EXPECT_TRUE(told_of_end(self, true));
}

TEST_F(split, eoi_suppression_on)
{
	ASSERT_EQ(0, x2apic_api(&self->vm, ENABLE));
	EXPECT_FALSE(told_of_end(self, true));
}

TEST_F(split, eoi_suppression_off)
{
	ASSERT_EQ(0, x2apic_api(&self->vm, DISABLE));
	EXPECT_TRUE(told_of_end(self, false));
}

XVM_TEST_MAIN
