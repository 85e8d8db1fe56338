// SPDX-License-Identifier: GPL-2.0
/*
 * MMIO to userspace: the instructions that drivers use, in every operand size, with a memory behind it that the test
 * keeps; page-crossing accesses; writes to read-only memory; faults.
 */
#include "test.h"

/* The device: as many bytes of memory as fit between GUEST_MMIO and 1 MiB. */
#define DEVICE_SIZE (GUEST_HIGH - GUEST_MMIO)

FIXTURE(mmio)
{
	struct vm vm;
	struct vcpu vcpu;
	uint8_t device[DEVICE_SIZE];
	unsigned int reads, writes;
};

FIXTURE_SETUP(mmio)
{
	self->vm = vm_create();
	self->vcpu = vcpu_create(&self->vm, 0);
	vcpu_set_supported_cpuid(&self->vcpu);
	self->reads = self->writes = 0;
	for (unsigned int i = 0; i < DEVICE_SIZE; i++)
		self->device[i] = i * 37 + 11;
}

FIXTURE_TEARDOWN(mmio)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

/* Runs and answers MMIO from the device until the guest writes to a port; returns the port. */
static unsigned int serve(struct __test_metadata *_metadata, FIXTURE_DATA(mmio) *self)
{
	struct kvm_run *run = self->vcpu.run;

	for (;;) {
		int reason = vcpu_run(&self->vcpu);

		if (reason == KVM_EXIT_IO)
			return run->io.port;
		if (reason != KVM_EXIT_MMIO) {
			vcpu_dump(&self->vcpu);
			fatal("exit %s (%d) instead of MMIO", exit_name(reason), reason);
		}
		if (run->mmio.phys_addr < GUEST_MMIO || run->mmio.phys_addr + run->mmio.len > GUEST_HIGH || run->mmio.len > 8)
			fatal("MMIO at %#llx, %u bytes", run->mmio.phys_addr, run->mmio.len);
		if (run->mmio.is_write) {
			memcpy(self->device + run->mmio.phys_addr - GUEST_MMIO, run->mmio.data, run->mmio.len);
			self->writes++;
		} else {
			memcpy(run->mmio.data, self->device + run->mmio.phys_addr - GUEST_MMIO, run->mmio.len);
			self->reads++;
		}
	}
}

/*
 * Each fragment runs twice, with RBX at the device and at memory of the same contents: registers, flags and
 * memory must come out the same. RSI, RDI point at the second half of each page; RAX, RCX, RDX have values.
 */
#define INSTRUCTION(name, ...) GUEST_CODE64(name, __VA_ARGS__; pushfq; pop %r15; GUEST_DONE)

INSTRUCTION(mov_store8, mov %cl, (%rbx));
INSTRUCTION(mov_store16, mov %cx, (%rbx));
INSTRUCTION(mov_store32, mov %ecx, (%rbx));
INSTRUCTION(mov_store64, mov %rcx, (%rbx));
INSTRUCTION(mov_store_high, mov %ch, 3(%rbx));
INSTRUCTION(mov_load8, mov (%rbx), %cl);
INSTRUCTION(mov_load16, mov (%rbx), %cx);
INSTRUCTION(mov_load32, mov (%rbx), %ecx);
INSTRUCTION(mov_load64, mov (%rbx), %r9);
INSTRUCTION(mov_imm8, movb $0x5a, (%rbx));
INSTRUCTION(mov_imm16, movw $0x5a5b, 2(%rbx));
INSTRUCTION(mov_imm32, movl $0x81828384, (%rbx));
INSTRUCTION(mov_imm64, movq $-2, (%rbx));
INSTRUCTION(mov_sib, mov %edx, 8(%rbx,%rbp,4));
INSTRUCTION(movzx8, movzbl (%rbx), %ecx);
INSTRUCTION(movzx16, movzwl (%rbx), %ecx);
INSTRUCTION(movzx64, movzbq 1(%rbx), %rcx);
INSTRUCTION(movsx8, movsbl 5(%rbx), %ecx);
INSTRUCTION(movsx8w, movsbw 5(%rbx), %cx);
INSTRUCTION(movsx16, movswq (%rbx), %rcx);
INSTRUCTION(movsxd, movslq 4(%rbx), %rcx);
INSTRUCTION(xchg8, xchg %cl, (%rbx));
INSTRUCTION(xchg32, xchg %ecx, (%rbx));
INSTRUCTION(xchg64, xchg %rcx, (%rbx));
INSTRUCTION(and8, andb $0x0f, (%rbx));
INSTRUCTION(and32, and %ecx, (%rbx));
INSTRUCTION(and_load, and (%rbx), %rcx);
INSTRUCTION(or16, or %cx, (%rbx));
INSTRUCTION(or32, orl $0x40000001, (%rbx));
INSTRUCTION(or_load, or (%rbx), %ecx);
INSTRUCTION(xor64, xor %rcx, (%rbx));
INSTRUCTION(xor_load, xor (%rbx), %cl);
INSTRUCTION(add32, add %ecx, (%rbx));
INSTRUCTION(add_load, add (%rbx), %rcx);
INSTRUCTION(add_imm, addw $-1, (%rbx));
INSTRUCTION(sub32, sub %ecx, (%rbx));
INSTRUCTION(sub_imm, subq $100, (%rbx));
INSTRUCTION(cmp8, cmpb $11, (%rbx));
INSTRUCTION(cmp32, cmp %ecx, (%rbx));
INSTRUCTION(cmp_load, cmp (%rbx), %rcx);
INSTRUCTION(test8, testb $0x81, (%rbx));
INSTRUCTION(test32, test %ecx, (%rbx));
INSTRUCTION(test64, testq $0x7fff0000, (%rbx));
INSTRUCTION(bt_imm, btl $5, (%rbx));
INSTRUCTION(bts_imm, btsl $6, (%rbx));
INSTRUCTION(btr_imm, btrq $40, (%rbx));
INSTRUCTION(btc_imm, btcw $3, (%rbx));
INSTRUCTION(bt_far, mov $77, %ecx; bt %ecx, (%rbx));
INSTRUCTION(bts_far, mov $77, %ecx; bts %ecx, (%rbx));
INSTRUCTION(bts_before, mov $-3, %rcx; bts %rcx, 64(%rbx));
INSTRUCTION(lock_or, lock orl $0x100, (%rbx));
INSTRUCTION(lock_bts, lock btsl $9, (%rbx));
INSTRUCTION(movabs_load, movabs GUEST_MMIO + 16, %al);
INSTRUCTION(movs8, mov %rbx, %rdi; movsb);
INSTRUCTION(movs_rep32, mov %rbx, %rdi; mov $9, %ecx; rep movsl);
INSTRUCTION(movs_rep64, mov %rbx, %rdi; mov $5, %ecx; rep movsq);
INSTRUCTION(movs_from, mov %rbx, %rsi; mov $17, %ecx; rep movsb);
INSTRUCTION(movs_within, mov %rbx, %rsi; lea 0x100(%rbx), %rdi; mov $6, %ecx; rep movsw);
INSTRUCTION(movs_back, lea 0x40(%rbx), %rdi; mov $4, %ecx; std; rep movsl; cld);
INSTRUCTION(stos8, mov %rbx, %rdi; mov $5, %ecx; rep stosb);
INSTRUCTION(stos32, mov %rbx, %rdi; mov $12, %ecx; rep stosl);
INSTRUCTION(stos_once, mov %rbx, %rdi; stosq);
INSTRUCTION(stos_none, mov %rbx, %rdi; xor %ecx, %ecx; rep stosl);
INSTRUCTION(lods, mov %rbx, %rsi; lodsl);
INSTRUCTION(cross_load64, mov 0xffc(%rbx), %r9);
INSTRUCTION(cross_store64, mov %rcx, 0xffb(%rbx));
INSTRUCTION(cross_store16, mov %cx, 0xfff(%rbx));
INSTRUCTION(cross_add, add %ecx, 0xffe(%rbx));
INSTRUCTION(odd_address, mov %rcx, 0x123(%rbx); mov 0x125(%rbx), %r10w);

#define CASE(name) { #name, guest_##name, guest_##name##_end }
static const struct {
	const char *name;
	const uint8_t *code, *end;
} cases[] = {
	CASE(mov_store8), CASE(mov_store16), CASE(mov_store32), CASE(mov_store64), CASE(mov_store_high), CASE(mov_load8),
	CASE(mov_load16), CASE(mov_load32), CASE(mov_load64), CASE(mov_imm8), CASE(mov_imm16), CASE(mov_imm32), CASE(mov_imm64),
	CASE(mov_sib), CASE(movzx8), CASE(movzx16), CASE(movzx64), CASE(movsx8), CASE(movsx8w), CASE(movsx16), CASE(movsxd),
	CASE(xchg8), CASE(xchg32), CASE(xchg64), CASE(and8), CASE(and32), CASE(and_load), CASE(or16), CASE(or32), CASE(or_load),
	CASE(xor64), CASE(xor_load), CASE(add32), CASE(add_load), CASE(add_imm), CASE(sub32), CASE(sub_imm), CASE(cmp8),
	CASE(cmp32), CASE(cmp_load), CASE(test8), CASE(test32), CASE(test64), CASE(bt_imm), CASE(bts_imm), CASE(btr_imm),
	CASE(btc_imm), CASE(bt_far), CASE(bts_far), CASE(bts_before), CASE(lock_or), CASE(lock_bts), CASE(movs8),
	CASE(movs_rep32), CASE(movs_rep64), CASE(movs_from), CASE(movs_within), CASE(movs_back), CASE(stos8), CASE(stos32),
	CASE(stos_once), CASE(stos_none), CASE(lods), CASE(cross_load64), CASE(cross_store64), CASE(cross_store16),
	CASE(cross_add), CASE(odd_address),
};

/* Where the memory with the device's contents is. */
#define SHADOW 0x40000
#define SHADOW_SIZE 0x3000

static struct kvm_regs run_case(struct __test_metadata *_metadata, FIXTURE_DATA(mmio) *self, unsigned int i, uint64_t base)
{
	struct kvm_regs regs;

	for (unsigned int j = 0; j < SHADOW_SIZE; j++)
		self->device[j] = *(uint8_t *)vm_at(&self->vm, SHADOW + j) = j * 37 + 11;
	for (unsigned int j = 0; j < 0x1000; j++)
		*(uint8_t *)vm_at(&self->vm, GUEST_FREE + j) = j * 91 + 7;
	guest_copy(&self->vm, cases[i].code, cases[i].end);
	guest_set_mode(&self->vcpu, MODE_LONG);
	regs = vcpu_regs(&self->vcpu);
	regs.rbx = base;
	regs.rsi = GUEST_FREE + 0x200;
	regs.rdi = GUEST_FREE + 0x400;
	regs.rax = 0xa1a2a3a4a5a6a7a8;
	regs.rcx = 0xfedcba9876543210;
	regs.rdx = 0x0123456789abcdef;
	regs.rbp = 5;
	vcpu_set_regs(&self->vcpu, &regs);
	if (serve(_metadata, self) != PORT_DONE) {
		vcpu_dump(&self->vcpu);
		fatal("%s: exception %lu", cases[i].name, guest_report(&self->vm)->vector);
	}
	regs = vcpu_regs(&self->vcpu);
	/* Only these hold addresses of the one or the other. */
	regs.rbx -= base;
	if (regs.rsi >= base && regs.rsi < base + SHADOW_SIZE)
		regs.rsi -= base;
	if (regs.rdi >= base && regs.rdi < base + SHADOW_SIZE)
		regs.rdi -= base;
	return regs;
}

TEST_F(mmio, instructions)
{
	static uint8_t buffer[0x1000];

	for (unsigned int i = 0; i < ARRAY_SIZE(cases); i++) {
		struct kvm_regs device, memory;

		device = run_case(_metadata, self, i, GUEST_MMIO);
		EXPECT_TRUE(self->reads + self->writes > 0 || !strcmp(cases[i].name, "stos_none")) TH_LOG("%s: no exit", cases[i].name);
		self->reads = self->writes = 0;
		memcpy(buffer, vm_at(&self->vm, GUEST_FREE), sizeof(buffer));
		/* The memory behind the device, as the instruction has left it, before the second run resets it. */
		uint8_t *after = malloc(SHADOW_SIZE);

		memcpy(after, self->device, SHADOW_SIZE);
		memory = run_case(_metadata, self, i, SHADOW);
		EXPECT_EQ(0, self->reads + self->writes);
		EXPECT_EQ(0, memcmp(&device, &memory, sizeof(device))) {
			TH_LOG("%s: rcx %#llx %#llx r9 %#llx %#llx flags %#llx %#llx rsi %#llx %#llx rdi %#llx %#llx", cases[i].name,
			       device.rcx, memory.rcx, device.r9, memory.r9, device.r15, memory.r15, device.rsi, memory.rsi,
			       device.rdi, memory.rdi);
		}
		EXPECT_EQ(0, memcmp(after, vm_at(&self->vm, SHADOW), SHADOW_SIZE)) TH_LOG("%s: memory", cases[i].name);
		EXPECT_EQ(0, memcmp(buffer, vm_at(&self->vm, GUEST_FREE), sizeof(buffer))) TH_LOG("%s: buffer", cases[i].name);
		free(after);
	}
}

/* One access, whole: a 4-byte store is one exit with its address and data, and is not done again. */
GUEST_CODE64(one_store, movl $0x12345678, GUEST_MMIO + 0x204; incl %ebx; mov GUEST_MMIO + 0x208, %eax; GUEST_DONE);

TEST_F(mmio, exit_fields)
{
	struct kvm_run *run = self->vcpu.run;

	guest_load(&self->vm, one_store);
	guest_set_mode(&self->vcpu, MODE_LONG);
	vcpu_run_to(&self->vcpu, KVM_EXIT_MMIO);
	EXPECT_EQ(GUEST_MMIO + 0x204, run->mmio.phys_addr);
	EXPECT_EQ(4, run->mmio.len);
	EXPECT_EQ(1, run->mmio.is_write);
	EXPECT_EQ(0, memcmp(run->mmio.data, "\x78\x56\x34\x12", 4));
	EXPECT_EQ(0, vcpu_regs(&self->vcpu).rbx);
	vcpu_run_to(&self->vcpu, KVM_EXIT_MMIO);
	EXPECT_EQ(GUEST_MMIO + 0x208, run->mmio.phys_addr);
	EXPECT_EQ(0, run->mmio.is_write);
	EXPECT_EQ(4, run->mmio.len);
	memcpy(run->mmio.data, "\x01\x02\x03\x84", 4);
	EXPECT_EQ(1, vcpu_regs(&self->vcpu).rbx);
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
	EXPECT_EQ(0x84030201, vcpu_regs(&self->vcpu).rax);
}

/* The accumulator with an absolute address, which has an opcode of its own. */
/* The second time all memory of the handler is mapped: from the exception to the access nothing makes the guest exit. */
GUEST_CODE64(after_ud, 1: ud2; inc %ebx; cmp $2, %ebx; jb 1b; movl $0x12345678, GUEST_MMIO; GUEST_DONE);

/* An access that follows an exception is none of its delivery. */
TEST_F(mmio, after_exception)
{
	guest_load(&self->vm, after_ud);
	guest_set_mode(&self->vcpu, MODE_LONG);
	guest_report(&self->vm)->fixup = GUEST_CODE + 2;
	vcpu_run_to(&self->vcpu, KVM_EXIT_MMIO);
	EXPECT_EQ(GUEST_MMIO, self->vcpu.run->mmio.phys_addr);
	EXPECT_EQ(6, guest_report(&self->vm)->vector);
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
	EXPECT_EQ(2, guest_report(&self->vm)->count);
}

GUEST_CODE64(movabs_forms,
	movabs GUEST_MMIO + 16, %al; mov %eax, %ebx; movabs GUEST_MMIO + 24, %rax; mov %rax, %rcx;
	mov $0x7766554433221100, %rax; movabs %rax, GUEST_MMIO + 0x80; movabs %ax, GUEST_MMIO + 0x90; GUEST_DONE);

TEST_F(mmio, movabs)
{
	guest_load(&self->vm, movabs_forms);
	guest_set_mode(&self->vcpu, MODE_LONG);
	ASSERT_EQ(PORT_DONE, serve(_metadata, self));
	EXPECT_EQ(self->device[16], vcpu_regs(&self->vcpu).rbx & 0xff);
	EXPECT_EQ(*(uint64_t *)(self->device + 24), vcpu_regs(&self->vcpu).rcx);
	EXPECT_EQ(0x7766554433221100, *(uint64_t *)(self->device + 0x80));
	EXPECT_EQ(0x1100, *(uint16_t *)(self->device + 0x90));
}

/* An access half in memory, half in the hole: GUEST_MEMORY ends where GUEST_MMIO begins. */
GUEST_CODE64(at_the_edge, mov GUEST_MMIO - 3, %rbx; mov $0x1122334455667788, %rcx; mov %rcx, GUEST_MMIO - 5; GUEST_DONE);

TEST_F(mmio, half_memory)
{
	uint8_t *end = (uint8_t *)vm_at(&self->vm, GUEST_MEMORY - 1) + 1;
	uint64_t expected;

	guest_load(&self->vm, at_the_edge);
	guest_set_mode(&self->vcpu, MODE_LONG);
	memcpy(end - 3, "\xa1\xa2\xa3", 3);
	memcpy(&expected, end - 3, 3);
	memcpy((uint8_t *)&expected + 3, self->device, 5);
	ASSERT_EQ(PORT_DONE, serve(_metadata, self));
	EXPECT_EQ(expected, vcpu_regs(&self->vcpu).rbx);
	EXPECT_EQ(0, memcmp(end - 5, "\x88\x77\x66\x55\x44", 5));
	EXPECT_EQ(0, memcmp(self->device, "\x33\x22\x11", 3));
}

/* Read-only memory: reads come from memory, writes go to userspace, the memory stays. */
GUEST_CODE64(to_rom, mov GUEST_HIGH + 8, %rbx; movl $0xdeadbeef, GUEST_HIGH + 8; mov GUEST_HIGH + 8, %rcx; GUEST_DONE);

TEST_F(mmio, read_only_memory)
{
	uint64_t *rom = mmap(NULL, 0x1000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	rom[1] = 0x0807060504030201;
	ASSERT_EQ(0, vm_set_region(&self->vm, 1, KVM_MEM_READONLY, GUEST_HIGH, 0x1000, rom));
	guest_load(&self->vm, to_rom);
	guest_set_mode(&self->vcpu, MODE_LONG);
	vcpu_run_to(&self->vcpu, KVM_EXIT_MMIO);
	EXPECT_EQ(1, self->vcpu.run->mmio.is_write);
	EXPECT_EQ(GUEST_HIGH + 8, self->vcpu.run->mmio.phys_addr);
	EXPECT_EQ(4, self->vcpu.run->mmio.len);
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
	EXPECT_EQ(0x0807060504030201, vcpu_regs(&self->vcpu).rbx);
	EXPECT_EQ(0x0807060504030201, vcpu_regs(&self->vcpu).rcx);
	EXPECT_EQ(0x0807060504030201, rom[1]);
}

/* Other modes: the same decoder with 16-bit and 32-bit defaults. */
GUEST_CODE16(mmio16,
	mov $0xa000, %ax; mov %ax, %es;
	mov %es:(0x10), %bx; movw $0x1234, %es:(0x20); mov %es:(0x14), %ecx; movzbl %es:(0x18), %edx;
	xor %di, %di; mov $0x5566, %ax; mov $3, %cx; rep stosw; GUEST_DONE);
GUEST_CODE32(mmio32,
	mov GUEST_MMIO + 0x10, %bx; movw $0x1234, GUEST_MMIO + 0x20; mov GUEST_MMIO + 0x14, %ecx; movzbl GUEST_MMIO + 0x18, %edx;
	mov $GUEST_MMIO, %edi; mov $0x5566, %eax; mov $3, %ecx; rep stosw; GUEST_DONE);

static void check_other_mode(struct __test_metadata *_metadata, FIXTURE_DATA(mmio) *self, enum guest_mode mode)
{
	guest_set_mode(&self->vcpu, mode);
	ASSERT_EQ(PORT_DONE, serve(_metadata, self));
	EXPECT_EQ(*(uint16_t *)(self->device + 0x10), vcpu_regs(&self->vcpu).rbx);
	EXPECT_EQ(self->device[0x18], vcpu_regs(&self->vcpu).rdx);
	EXPECT_EQ(0x1234, *(uint16_t *)(self->device + 0x20));
	EXPECT_EQ(0, memcmp(self->device, "\x66\x55\x66\x55\x66\x55", 6));
	EXPECT_EQ(0, vcpu_regs(&self->vcpu).rcx & 0xffff);
}

TEST_F(mmio, real_mode)
{
	guest_load(&self->vm, mmio16);
	check_other_mode(_metadata, self, MODE_REAL);
}

TEST_F(mmio, protected_modes)
{
	for (enum guest_mode mode = MODE_PROTECTED; mode <= MODE_PAE; mode++) {
		guest_load(&self->vm, mmio32);
		check_other_mode(_metadata, self, mode);
	}
}

/* The faults of the emulated access: a page that is write-protected or absent in the guest's own tables. */
GUEST_CODE64(guarded, movl $1, GUEST_MMIO; GUEST_DONE);
GUEST_CODE64(guarded_copy, mov $GUEST_MMIO, %esi; mov $GUEST_FREE, %edi; movsl; GUEST_DONE);

TEST_F(mmio, guest_page_faults)
{
	volatile struct report *report = guest_report(&self->vm);

	guest_load(&self->vm, guarded);
	guest_set_mode(&self->vcpu, MODE_LONG);
	*guest_pte(&self->vm, GUEST_MMIO) = 0;
	EXPECT_EQ(14, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	EXPECT_EQ(GUEST_MMIO, report->cr2);
	EXPECT_EQ(2, report->error);

	/* MOVS from the device to a page that is not there: the read may come first, the fault is the store's. */
	guest_load(&self->vm, guarded_copy);
	guest_set_mode(&self->vcpu, MODE_LONG);
	*guest_pte(&self->vm, GUEST_MMIO) = GUEST_MMIO | 7;
	*guest_pte(&self->vm, GUEST_FREE) = 0;
	EXPECT_EQ(PORT_EXCEPTION, serve(_metadata, self));
	EXPECT_EQ(14, report->vector);
	EXPECT_EQ(GUEST_FREE, report->cr2);
	EXPECT_EQ(2, report->error);
}

/* The VMM goes away in the middle of a page-crossing access, or never answers it (CVE-2026-31588). */
GUEST_CODE64(crossing, mov $0x1122334455667788, %rcx; mov %rcx, GUEST_MMIO + 0xffc; mov GUEST_MMIO + 0xffc, %rdx; GUEST_DONE);

TEST_F(mmio, abandoned_fragments)
{
	for (unsigned long i = 0; i < scaled(40); i++) {
		struct vcpu vcpu = vcpu_create(&self->vm, 1 + i);

		guest_load(&self->vm, crossing);
		vcpu_set_supported_cpuid(&vcpu);
		guest_set_mode(&vcpu, MODE_LONG);
		vcpu_run_to(&vcpu, KVM_EXIT_MMIO);
		EXPECT_LE(vcpu.run->mmio.len, 8);
		if (i & 1)
			vcpu_run_to(&vcpu, KVM_EXIT_MMIO);
		/* Another state, in the middle of it: what was left of the access must not come out in the new one. */
		if (i & 2) {
			guest_load(&self->vm, one_store);
			guest_set_mode(&vcpu, MODE_LONG);
			vcpu_run(&vcpu);
		}
		vcpu_free(&vcpu);
	}
}

XVM_TEST_MAIN
