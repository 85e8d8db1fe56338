// SPDX-License-Identifier: GPL-2.0
/* Port I/O to userspace: sizes, directions, strings with counts, page-crossing, and what the VMM may do meanwhile. */
#include "test.h"

#define PORT 0x180

FIXTURE(io)
{
	struct vm vm;
	struct vcpu vcpu;
};

FIXTURE_SETUP(io)
{
	self->vm = vm_create();
	self->vcpu = vcpu_create(&self->vm, 0);
	vcpu_set_supported_cpuid(&self->vcpu);
}

FIXTURE_TEARDOWN(io)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

#define expect_io(vcpu, dir, width, number) do { \
	struct kvm_run *run_ = (vcpu)->run; \
	vcpu_run_to(vcpu, KVM_EXIT_IO); \
	EXPECT_EQ(dir, run_->io.direction); \
	EXPECT_EQ(width, run_->io.size); \
	EXPECT_EQ(PORT, run_->io.port); \
	EXPECT_EQ(number, run_->io.count); \
} while (0)

GUEST_CODE64(single,
	mov $PORT, %edx;
	mov $0x11223344, %eax;
	out %al, %dx;
	out %ax, %dx;
	out %eax, %dx;
	mov $-1, %rax;
	in %dx, %al;
	mov %rax, %rbx;
	mov $-1, %rax;
	in %dx, %ax;
	mov %rax, %rcx;
	mov $-1, %rax;
	in %dx, %eax;
	mov %rax, %rsi;
	GUEST_DONE
);

TEST_F(io, sizes)
{
	struct kvm_regs regs;

	guest_load(&self->vm, single);
	guest_set_mode(&self->vcpu, MODE_LONG);
	expect_io(&self->vcpu, KVM_EXIT_IO_OUT, 1, 1);
	EXPECT_EQ(0x44, *(uint8_t *)vcpu_io_data(&self->vcpu));
	expect_io(&self->vcpu, KVM_EXIT_IO_OUT, 2, 1);
	EXPECT_EQ(0x3344, *(uint16_t *)vcpu_io_data(&self->vcpu));
	expect_io(&self->vcpu, KVM_EXIT_IO_OUT, 4, 1);
	EXPECT_EQ(0x11223344, *(uint32_t *)vcpu_io_data(&self->vcpu));
	for (int size = 1; size <= 4; size *= 2) {
		expect_io(&self->vcpu, KVM_EXIT_IO_IN, size, 1);
		memcpy(vcpu_io_data(&self->vcpu), "\xa1\xb2\xc3\xd4", size);
	}
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
	regs = vcpu_regs(&self->vcpu);
	EXPECT_EQ(0xffffffffffffffa1, regs.rbx);
	EXPECT_EQ(0xffffffffffffb2a1, regs.rcx);
	EXPECT_EQ(0xd4c3b2a1, regs.rsi);
}

/* The immediate forms, and RIP: at an OUT exit the instruction may be done or not, but it is never done twice. */
GUEST_CODE64(immediate,
	xor %ebx, %ebx;
1:	inc %ebx;
	out %al, $0x80;
	in $0x80, %al;
	cmp $5, %ebx;
	jne 1b;
	GUEST_DONE
);

TEST_F(io, immediate_forms)
{
	guest_load(&self->vm, immediate);
	guest_set_mode(&self->vcpu, MODE_LONG);
	for (int i = 1; i <= 5; i++) {
		vcpu_run_to(&self->vcpu, KVM_EXIT_IO);
		EXPECT_EQ(KVM_EXIT_IO_OUT, self->vcpu.run->io.direction);
		EXPECT_EQ(0x80, self->vcpu.run->io.port);
		if (i > 1)
			EXPECT_EQ(0x40 + i - 1, *(uint8_t *)vcpu_io_data(&self->vcpu));
		EXPECT_EQ(i, vcpu_regs(&self->vcpu).rbx);
		vcpu_run_to(&self->vcpu, KVM_EXIT_IO);
		EXPECT_EQ(KVM_EXIT_IO_IN, self->vcpu.run->io.direction);
		*(uint8_t *)vcpu_io_data(&self->vcpu) = 0x40 + i;
	}
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
}

/* Registers: RSI and RCX for OUTS, RDI and RCX for INS, set by the test. */
GUEST_CODE64(outs1, mov $PORT, %edx; rep outsb; GUEST_DONE);
GUEST_CODE64(outs2, mov $PORT, %edx; rep outsw; GUEST_DONE);
GUEST_CODE64(outs4, mov $PORT, %edx; rep outsl; GUEST_DONE);
GUEST_CODE64(ins1, mov $PORT, %edx; rep insb; GUEST_DONE);
GUEST_CODE64(ins2, mov $PORT, %edx; rep insw; GUEST_DONE);
GUEST_CODE64(ins4, mov $PORT, %edx; rep insl; GUEST_DONE);
GUEST_CODE64(outs_once, mov $PORT, %edx; outsl; GUEST_DONE);
GUEST_CODE64(ins_once, mov $PORT, %edx; insl; GUEST_DONE);

static const struct {
	const uint8_t *code, *end;
	unsigned int size;
	bool in;
} strings[] = {
	{ guest_outs1, guest_outs1_end, 1, false },
	{ guest_outs2, guest_outs2_end, 2, false },
	{ guest_outs4, guest_outs4_end, 4, false },
	{ guest_ins1, guest_ins1_end, 1, true },
	{ guest_ins2, guest_ins2_end, 2, true },
	{ guest_ins4, guest_ins4_end, 4, true },
};

/* Runs a string instruction at an address, with the direction flag or without; checks every byte, and RSI/RDI and RCX. */
static void check_string(struct __test_metadata *_metadata, FIXTURE_DATA(io) *self, unsigned int which, uint64_t address,
			 uint64_t count, bool backwards)
{
	unsigned int size = strings[which].size, bytes = 0;
	bool in = strings[which].in;
	struct kvm_run *run = self->vcpu.run;
	uint8_t *memory = vm_at(&self->vm, address - (backwards ? (count - 1) * size : 0));
	uint8_t *expected = malloc(count * size);
	int64_t step = backwards ? -(int64_t)size : size;
	struct kvm_regs regs;

	for (uint64_t i = 0; i < count * size; i++) {
		expected[i] = i * 7 + which;
		memory[i] = in ? 0xcc : expected[i];
	}
	guest_copy(&self->vm, strings[which].code, strings[which].end);
	guest_set_mode(&self->vcpu, MODE_LONG);
	regs = vcpu_regs(&self->vcpu);
	regs.rsi = regs.rdi = address;
	regs.rcx = count;
	if (backwards)
		regs.rflags |= 1 << 10;
	vcpu_set_regs(&self->vcpu, &regs);
	while (bytes < count * size) {
		uint8_t *data = vcpu_io_data(&self->vcpu);

		vcpu_run_to(&self->vcpu, KVM_EXIT_IO);
		data = vcpu_io_data(&self->vcpu);
		ASSERT_EQ(PORT, run->io.port);
		ASSERT_EQ(in ? KVM_EXIT_IO_IN : KVM_EXIT_IO_OUT, run->io.direction);
		ASSERT_EQ(size, run->io.size);
		ASSERT_LE(bytes + run->io.count * size, count * size);
		for (unsigned int i = 0; i < run->io.count; i++, bytes += size) {
			/* The bytes of this element, in the order of memory. */
			uint8_t *here = expected + (backwards ? count * size - bytes - size : bytes);

			if (in)
				memcpy(data + i * size, here, size);
			else
				EXPECT_EQ(0, memcmp(data + i * size, here, size)) TH_LOG("element at byte %u", bytes);
		}
	}
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
	regs = vcpu_regs(&self->vcpu);
	EXPECT_EQ(0, regs.rcx);
	EXPECT_EQ(address + step * (int64_t)count, in ? regs.rdi : regs.rsi);
	EXPECT_EQ(0, memcmp(memory, expected, count * size)) TH_LOG("memory after string %u, count %lu", which, count);
	free(expected);
}

TEST_F(io, strings)
{
	for (unsigned int which = 0; which < ARRAY_SIZE(strings); which++) {
		check_string(_metadata, self, which, GUEST_FREE, 1, false);
		check_string(_metadata, self, which, GUEST_FREE, 37, false);
		check_string(_metadata, self, which, GUEST_FREE + 0x800, 37, true);
	}
}

/* More than fits one exit, and elements that lie in two pages. */
TEST_F(io, long_strings)
{
	for (unsigned int which = 0; which < ARRAY_SIZE(strings); which++) {
		unsigned int size = strings[which].size;

		check_string(_metadata, self, which, GUEST_FREE, scaled(3000), false);
		check_string(_metadata, self, which, GUEST_FREE + 0x1000 - size / 2, 5, false);
		check_string(_metadata, self, which, GUEST_FREE + 0x1000 + size / 2, 5, true);
		check_string(_metadata, self, which, GUEST_FREE + 0x1ff9, 20, false);
	}
}

TEST_F(io, zero_count)
{
	guest_load(&self->vm, outs4);
	guest_set_mode(&self->vcpu, MODE_LONG);
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
}

TEST_F(io, without_rep)
{
	struct kvm_regs regs;

	guest_load(&self->vm, outs_once);
	guest_set_mode(&self->vcpu, MODE_LONG);
	regs = vcpu_regs(&self->vcpu);
	regs.rsi = regs.rdi = GUEST_FREE;
	regs.rcx = 99;
	vcpu_set_regs(&self->vcpu, &regs);
	memcpy(vm_at(&self->vm, GUEST_FREE), "abcd", 4);
	expect_io(&self->vcpu, KVM_EXIT_IO_OUT, 4, 1);
	EXPECT_EQ(0, memcmp(vcpu_io_data(&self->vcpu), "abcd", 4));
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
	EXPECT_EQ(99, vcpu_regs(&self->vcpu).rcx);
	EXPECT_EQ(GUEST_FREE + 4, vcpu_regs(&self->vcpu).rsi);

	guest_load(&self->vm, ins_once);
	vcpu_set_regs(&self->vcpu, &regs);
	expect_io(&self->vcpu, KVM_EXIT_IO_IN, 4, 1);
	memcpy(vcpu_io_data(&self->vcpu), "wxyz", 4);
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
	EXPECT_EQ(0, memcmp(vm_at(&self->vm, GUEST_FREE), "wxyz", 4));
	EXPECT_EQ(99, vcpu_regs(&self->vcpu).rcx);
}

/* A string in the middle of which a page is not there: what was done is counted, the rest faults. */
TEST_F(io, string_faults)
{
	struct kvm_regs regs;

	guest_load(&self->vm, outs4);
	guest_set_mode(&self->vcpu, MODE_LONG);
	*guest_pte(&self->vm, GUEST_FREE + 0x1000) = 0;
	regs = vcpu_regs(&self->vcpu);
	regs.rsi = GUEST_FREE + 0xff8;
	regs.rcx = 4;
	vcpu_set_regs(&self->vcpu, &regs);
	for (unsigned int done = 0; done < 2; ) {
		vcpu_run_to(&self->vcpu, KVM_EXIT_IO);
		ASSERT_EQ(PORT, self->vcpu.run->io.port);
		done += self->vcpu.run->io.count;
		ASSERT_LE(done, 2);
	}
	EXPECT_EQ(14, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	EXPECT_EQ(GUEST_FREE + 0x1000, guest_report(&self->vm)->cr2);
	EXPECT_EQ(0, guest_report(&self->vm)->error & ~4);
	EXPECT_EQ(2, vcpu_regs(&self->vcpu).rcx);
}

/* Segments and 16-bit addresses: strings at another segment in real mode, the index wrapping at 64 KiB. */
GUEST_CODE16(real_outs, mov $0x2000, %ax; mov %ax, %fs; mov $PORT, %dx; mov $0xfffe, %si; mov $3, %cx;
	rep outsw %fs:(%si), %dx; GUEST_DONE);
GUEST_CODE16(real_ins, mov $0x2000, %ax; mov %ax, %es; mov $PORT, %dx; mov $0xfffe, %di; mov $3, %cx;
	rep insw; GUEST_DONE);

TEST_F(io, real_mode_outs)
{
	uint16_t *segment = vm_at(&self->vm, 0x20000), seen[3];
	struct kvm_run *run = self->vcpu.run;

	guest_load(&self->vm, real_outs);
	guest_set_mode(&self->vcpu, MODE_REAL);
	segment[0x7fff] = 0xaaaa;
	segment[0] = 0xbbbb;
	segment[1] = 0xcccc;
	for (unsigned int done = 0; done < 3; done += run->io.count) {
		vcpu_run_to(&self->vcpu, KVM_EXIT_IO);
		ASSERT_EQ(KVM_EXIT_IO_OUT, run->io.direction);
		ASSERT_TRUE(run->io.count > 0 && done + run->io.count <= 3);
		memcpy(seen + done, vcpu_io_data(&self->vcpu), run->io.count * 2);
	}
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
	EXPECT_EQ(0xaaaa, seen[0]);
	EXPECT_EQ(0xbbbb, seen[1]);
	EXPECT_EQ(0xcccc, seen[2]);
}

TEST_F(io, real_mode_ins)
{
	uint16_t *segment = vm_at(&self->vm, 0x20000), answer[3] = { 0x1111, 0x2222, 0x3333 };
	struct kvm_run *run = self->vcpu.run;

	/* It reads two elements ahead at the last word of the segment, then finds their four bytes beyond the limit. */
	if (!device_is_xvm())
		SKIP(return, "KVM's INS faults when a 16-bit index wraps");
	guest_load(&self->vm, real_ins);
	guest_set_mode(&self->vcpu, MODE_REAL);
	for (unsigned int done = 0; done < 3; done += run->io.count) {
		vcpu_run_to(&self->vcpu, KVM_EXIT_IO);
		ASSERT_EQ(KVM_EXIT_IO_IN, run->io.direction);
		ASSERT_TRUE(run->io.count > 0 && done + run->io.count <= 3);
		memcpy(vcpu_io_data(&self->vcpu), answer + done, run->io.count * 2);
	}
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
	EXPECT_EQ(0x1111, segment[0x7fff]);
	EXPECT_EQ(0x2222, segment[0]);
	EXPECT_EQ(0x3333, segment[1]);
}

/* The VMM reads and writes registers between an IN and its completion. */
TEST_F(io, registers_before_completion)
{
	struct kvm_regs regs;

	guest_load(&self->vm, single);
	guest_set_mode(&self->vcpu, MODE_LONG);
	for (int i = 0; i < 3; i++)
		vcpu_run_to(&self->vcpu, KVM_EXIT_IO);
	expect_io(&self->vcpu, KVM_EXIT_IO_IN, 1, 1);
	*(uint8_t *)vcpu_io_data(&self->vcpu) = 0x77;
	/* immediate_exit completes the IN and goes no further. */
	self->vcpu.run->immediate_exit = 1;
	EXPECT_EQ(-EINTR, vcpu_run(&self->vcpu));
	self->vcpu.run->immediate_exit = 0;
	regs = vcpu_regs(&self->vcpu);
	EXPECT_EQ(0x77, regs.rax & 0xff);
	regs.rdi = 0x1234;
	vcpu_set_regs(&self->vcpu, &regs);
	expect_io(&self->vcpu, KVM_EXIT_IO_IN, 2, 1);
	EXPECT_EQ(0xffffffffffffff77, vcpu_regs(&self->vcpu).rbx);
	EXPECT_EQ(0x1234, vcpu_regs(&self->vcpu).rdi);
}

XVM_TEST_MAIN
