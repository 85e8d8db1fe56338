// SPDX-License-Identifier: GPL-2.0
/* Guests in every mode compute the same checksum; one goes through all of them on its own. */
#include "test.h"

#define WORDS 1024

/* A checksum of WORDS 32-bit words at GUEST_DATA, in EAX; the same source for all code sizes. */
#define CHECKSUM(bx, cx) \
	mov $GUEST_DATA, %bx; \
	mov $WORDS, %cx; \
	mov $0x12345678, %eax; \
1:	rol $5, %eax; \
	xor (%bx), %eax; \
	imul $0x01000193, %eax, %eax; \
	add $4, %bx; \
	dec %cx; \
	jnz 1b; \
	out %eax, $PORT_DONE; \
	hlt

GUEST_CODE16(checksum16, CHECKSUM(bx, cx));
GUEST_CODE32(checksum32, CHECKSUM(ebx, ecx));
GUEST_CODE64(checksum64, CHECKSUM(rbx, rcx));

static uint32_t fill_and_sum(struct vm *vm)
{
	uint32_t *words = vm_at(vm, GUEST_DATA), sum = 0x12345678;

	for (int i = 0; i < WORDS; i++) {
		words[i] = i * 2654435761u + 12345;
		sum = sum << 5 | sum >> 27;
		sum = (sum ^ words[i]) * 0x01000193;
	}
	return sum;
}

FIXTURE(modes)
{
	struct vm vm;
	struct vcpu vcpu;
};

FIXTURE_VARIANT(modes)
{
	enum guest_mode mode;
};

FIXTURE_VARIANT_ADD(modes, real) { .mode = MODE_REAL };
FIXTURE_VARIANT_ADD(modes, protected) { .mode = MODE_PROTECTED };
FIXTURE_VARIANT_ADD(modes, paged) { .mode = MODE_PAGED };
FIXTURE_VARIANT_ADD(modes, pae) { .mode = MODE_PAE };
FIXTURE_VARIANT_ADD(modes, long) { .mode = MODE_LONG };

FIXTURE_SETUP(modes)
{
	self->vm = vm_create();
	self->vcpu = vcpu_create(&self->vm, 0);
	vcpu_set_supported_cpuid(&self->vcpu);
	if (variant->mode == MODE_REAL)
		guest_load(&self->vm, checksum16);
	else if (variant->mode == MODE_LONG)
		guest_load(&self->vm, checksum64);
	else
		guest_load(&self->vm, checksum32);
	guest_set_mode(&self->vcpu, variant->mode);
}

FIXTURE_TEARDOWN(modes)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

TEST_F(modes, checksum)
{
	uint32_t sum = fill_and_sum(&self->vm);

	EXPECT_EQ(sum, vcpu_run_to_port(&self->vcpu, PORT_DONE));
	vcpu_run_to(&self->vcpu, KVM_EXIT_HLT);
}

/* The state that was set is the state that is read after the guest has run. */
TEST_F(modes, state_is_kept)
{
	struct kvm_sregs before = vcpu_sregs(&self->vcpu), after;

	vcpu_run_to_port(&self->vcpu, PORT_DONE);
	after = vcpu_sregs(&self->vcpu);
	EXPECT_EQ(before.cr0, after.cr0);
	EXPECT_EQ(before.cr3, after.cr3);
	EXPECT_EQ(before.cr4, after.cr4);
	EXPECT_EQ(before.efer, after.efer);
	EXPECT_EQ(before.cs.selector, after.cs.selector);
	EXPECT_EQ(before.cs.base, after.cs.base);
	EXPECT_EQ(before.cs.limit, after.cs.limit);
	/* In real mode KVM on VMX says "data", for what the CPU does not look at. */
	if (variant->mode != MODE_REAL) {
		EXPECT_EQ(before.cs.type, after.cs.type);
	}
	EXPECT_EQ(before.cs.l, after.cs.l);
	EXPECT_EQ(before.cs.db, after.cs.db);
	EXPECT_EQ(before.ds.limit, after.ds.limit);
	EXPECT_EQ(before.idt.base, after.idt.base);
	EXPECT_EQ(before.idt.limit, after.idt.limit);
	EXPECT_EQ(before.gdt.base, after.gdt.base);
	EXPECT_EQ(before.tr.base, after.tr.base);
}

/* Real to protected to long mode, into compatibility mode and all the way back, by the guest itself. */
GUEST_CODE16(tour,
	mov $0x11, %al;
	out %al, $PORT_SYNC;
	lgdtl %cs:(GUEST_AT(tour, gdt_pointer));
	mov %cr0, %eax;
	or $1, %eax;
	mov %eax, %cr0;
	ljmpl $SELECTOR_CODE32, $(GUEST_AT(tour, protected32));
.code32;
protected32:
	mov $SELECTOR_DATA, %eax;
	mov %eax, %ds;
	mov %eax, %es;
	mov %eax, %ss;
	mov $GUEST_STACK, %esp;
	mov $0x22, %al;
	out %al, $PORT_SYNC;
	mov %cr4, %eax;
	or $0x20, %eax;
	mov %eax, %cr4;
	mov $GUEST_PML4, %eax;
	mov %eax, %cr3;
	mov $0xc0000080, %ecx;
	rdmsr;
	or $0x100, %eax;
	wrmsr;
	mov %cr0, %eax;
	or $0x80000000, %eax;
	mov %eax, %cr0;
	ljmpl $SELECTOR_CODE64, $(GUEST_AT(tour, long64));
.code64;
long64:
	mov $0x1122334455667788, %rbx;
	mov $0x33, %al;
	out %al, $PORT_SYNC;
	push $SELECTOR_CODE32;
	push $(GUEST_AT(tour, compatibility));
	lretq;
.code32;
compatibility:
	mov $0x44, %al;
	out %al, $PORT_SYNC;
	mov %cr0, %eax;
	and $0x7fffffff, %eax;
	mov %eax, %cr0;
	mov $0xc0000080, %ecx;
	rdmsr;
	and $0xfffffeff, %eax;
	wrmsr;
	mov %cr4, %eax;
	and $0xffffffdf, %eax;
	mov %eax, %cr4;
	mov $0x55, %al;
	out %al, $PORT_SYNC;
	mov $SELECTOR_DATA16, %eax;
	mov %eax, %ds;
	mov %eax, %es;
	mov %eax, %ss;
	ljmpl $SELECTOR_CODE16, $(GUEST_AT(tour, protected16));
.code16;
protected16:
	mov %cr0, %eax;
	and $0xfe, %al;
	mov %eax, %cr0;
	ljmpl $0, $(GUEST_AT(tour, real16));
real16:
	xor %ax, %ax;
	mov %ax, %ds;
	mov %ax, %es;
	mov %ax, %ss;
	mov $0x66, %al;
	out %al, $PORT_SYNC;
	GUEST_DONE;
	.balign 4;
gdt_pointer:
	.word 0x7f;
	.long GUEST_GDT
);

TEST(tour)
{
	struct vm vm = vm_create();
	struct vcpu vcpu = vcpu_create(&vm, 0);
	struct kvm_sregs sregs;

	vcpu_set_supported_cpuid(&vcpu);
	guest_load(&vm, tour);
	guest_set_mode(&vcpu, MODE_REAL);
	EXPECT_EQ(0x11, vcpu_run_to_port(&vcpu, PORT_SYNC));
	EXPECT_EQ(0x22, vcpu_run_to_port(&vcpu, PORT_SYNC));
	EXPECT_EQ(1, vcpu_sregs(&vcpu).cs.db);
	EXPECT_EQ(0x33, vcpu_run_to_port(&vcpu, PORT_SYNC));
	sregs = vcpu_sregs(&vcpu);
	EXPECT_EQ(0x500, sregs.efer & 0x500);
	EXPECT_EQ(1, sregs.cs.l);
	EXPECT_EQ(0x1122334455667788, vcpu_regs(&vcpu).rbx);
	EXPECT_EQ(0x44, vcpu_run_to_port(&vcpu, PORT_SYNC));
	sregs = vcpu_sregs(&vcpu);
	EXPECT_EQ(0x500, sregs.efer & 0x500);
	EXPECT_EQ(0, sregs.cs.l);
	EXPECT_EQ(0x55, vcpu_run_to_port(&vcpu, PORT_SYNC));
	EXPECT_EQ(0, vcpu_sregs(&vcpu).efer & 0x500);
	EXPECT_EQ(0x66, vcpu_run_to_port(&vcpu, PORT_SYNC));
	EXPECT_EQ(0, vcpu_sregs(&vcpu).cr0 & 1);
	vcpu_run_to_port(&vcpu, PORT_DONE);
}

/* A new vCPU is at the reset vector. */
TEST(power_up)
{
	struct vm vm = vm_create();
	struct vcpu vcpu = vcpu_create(&vm, 0);
	struct kvm_regs regs = vcpu_regs(&vcpu);
	struct kvm_sregs sregs = vcpu_sregs(&vcpu);

	EXPECT_EQ(0xfff0, regs.rip);
	EXPECT_EQ(2, regs.rflags);
	EXPECT_EQ(0xf000, sregs.cs.selector);
	EXPECT_EQ(0xffff0000, sregs.cs.base);
	EXPECT_EQ(0x60000010, sregs.cr0);
	EXPECT_EQ(0, sregs.cr4);
	EXPECT_EQ(0, sregs.efer);
	EXPECT_EQ(0xffff, sregs.ds.limit);
	EXPECT_EQ(0xffff, sregs.idt.limit);
	EXPECT_EQ(0, sregs.cr8);
}

/* The first instruction of a machine: at the reset vector, in memory just below 4 GiB. */
TEST(reset_vector)
{
	struct vm vm = vm_create();
	struct vcpu vcpu = vcpu_create(&vm, 0);
	uint8_t *rom = vm_add_memory(&vm, 1, 0xffff0000, 0x10000);

	vcpu_set_supported_cpuid(&vcpu);
	memcpy(rom + 0xfff0, "\xe6\xe0\xf4", 3); /* out %al, $PORT_DONE; hlt */
	vcpu_run_to_port(&vcpu, PORT_DONE);
	vcpu_run_to(&vcpu, KVM_EXIT_HLT);
	EXPECT_EQ(0xfff3, vcpu_regs(&vcpu).rip);
}

XVM_TEST_MAIN
