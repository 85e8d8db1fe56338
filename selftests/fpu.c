// SPDX-License-Identifier: GPL-2.0
/*
 * FPU state: x87, SSE and AVX registers across exits, other processes and other guests; XCR0 isolated from the host;
 * GET/SET of FPU, XSAVE and XCRS, hostile values among them.
 */
#include "test.h"
#include <cpuid.h>

FIXTURE(fpu)
{
	struct vm vm;
	struct vcpu vcpu;
	bool xsave, avx;
};

/* Fills every register from memory at GUEST_FREE, then compares and counts in RBX, exiting now and then; UD2 if wrong. */
#define XMM_ALL(what) what(0) what(1) what(2) what(3) what(4) what(5) what(6) what(7) \
	what(8) what(9) what(10) what(11) what(12) what(13) what(14) what(15)
#define LOAD_XMM(n) movdqu GUEST_FREE + 16 * n, %xmm##n;
#define CHECK_XMM(n) movdqu %xmm##n, GUEST_FREE + 0x800; mov GUEST_FREE + 0x800, %rax; cmp %rax, GUEST_FREE + 16 * n; jne 9f; \
	mov GUEST_FREE + 0x808, %rax; cmp %rax, GUEST_FREE + 16 * n + 8; jne 9f;

GUEST_CODE64(sse,
	fninit; fldpi; fldl2e; fld1; mov $0x9fc0, %eax; mov %eax, GUEST_FREE + 0x900; ldmxcsr GUEST_FREE + 0x900;
	XMM_ALL(LOAD_XMM)
	mov $64, %r15d;
1:	out %al, $PORT_SYNC;
2:	XMM_ALL(CHECK_XMM)
	stmxcsr GUEST_FREE + 0x900; cmpl $0x9fc0, GUEST_FREE + 0x900; jne 9f;
	fstpt GUEST_FREE + 0x910; cmpl $0x80000000, GUEST_FREE + 0x914; jne 9f; cmpw $0x3fff, GUEST_FREE + 0x918; jne 9f; fld1;
	inc %rbx; dec %r15; jnz 2b; mov $64, %r15d; jmp 1b;
9:	ud2);

#define LOAD_YMM(n) vmovdqu GUEST_FREE + 32 * n, %ymm##n;
#define CHECK_YMM(n) vmovdqu %ymm##n, GUEST_FREE + 0x800; mov GUEST_FREE + 0x800, %rax; cmp %rax, GUEST_FREE + 32 * n; jne 9f; \
	mov GUEST_FREE + 0x818, %rax; cmp %rax, GUEST_FREE + 32 * n + 24; jne 9f;

GUEST_CODE64(avx,
	mov %cr4, %rax; bts $18, %rax; mov %rax, %cr4; xor %ecx, %ecx; mov $7, %eax; xor %edx, %edx; xsetbv;
	XMM_ALL(LOAD_YMM)
	mov $64, %r15d;
1:	out %al, $PORT_SYNC;
2:	XMM_ALL(CHECK_YMM)
	inc %rbx; dec %r15; jnz 2b; mov $64, %r15d; xor %ecx, %ecx; xgetbv; cmp $7, %eax; jne 9f; jmp 1b;
9:	ud2);

FIXTURE_SETUP(fpu)
{
	struct kvm_cpuid_entry2 *one = cpuid_entry(supported_cpuid(), 1, 0), *state = cpuid_entry(supported_cpuid(), 0xd, 0);

	guest_start(&self->vm, &self->vcpu, sse);
	self->xsave = one && one->ecx & bit_XSAVE;
	self->avx = self->xsave && one->ecx & bit_AVX && state && (state->eax & 7) == 7;
}

FIXTURE_TEARDOWN(fpu)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

static void fill(struct vm *vm, uint8_t seed)
{
	for (unsigned int i = 0; i < 0x800; i++)
		*(uint8_t *)vm_at(vm, GUEST_FREE + i) = i * 13 + seed;
}

/* The host's own use of all of it, with other values, at each exit. */
static void clobber(bool avx)
{
	static const uint8_t zeros[64] __attribute__((aligned(64)));
	uint32_t mxcsr = 0x1f80;

	asm volatile("fninit; fldz; fldz; fldz; fldz; fldz; fldz; fldz; fldz; ldmxcsr %0" : : "m"(mxcsr));
	if (avx)
		asm volatile("vmovdqu %0, %%ymm0; vmovdqu %0, %%ymm7; vmovdqu %0, %%ymm15; vpxor %%ymm3, %%ymm3, %%ymm3; vzeroupper"
			     : : "m"(zeros) : "xmm0", "xmm3", "xmm7", "xmm15");
	else
		asm volatile("movdqu %0, %%xmm0; movdqu %0, %%xmm7; movdqu %0, %%xmm15; pxor %%xmm3, %%xmm3"
			     : : "m"(zeros) : "xmm0", "xmm3", "xmm7", "xmm15");
	asm volatile("fninit");
}

static volatile bool clobbering;

static void *clobber_for_ever(void *argument)
{
	pin_to_cpu(0);
	while (clobbering)
		clobber(*(bool *)argument);
	return NULL;
}

static void check_patterns(struct __test_metadata *_metadata, struct vcpu *vcpu, bool avx)
{
	pthread_t thread;

	pin_to_cpu(0);
	clobbering = true;
	ASSERT_EQ(0, pthread_create(&thread, NULL, clobber_for_ever, &avx));
	for (unsigned long i = 0; i < scaled(300); i++) {
		vcpu_run_to_port(vcpu, PORT_SYNC);
		clobber(avx);
		EXPECT_EQ(i * 64, vcpu_regs(vcpu).rbx);
	}
	clobbering = false;
	pthread_join(thread, NULL);
}

TEST_F(fpu, x87_and_sse)
{
	fill(&self->vm, 1);
	check_patterns(_metadata, &self->vcpu, false);
}

TEST_F(fpu, avx)
{
	if (!self->avx)
		SKIP(return, "no AVX here");
	fill(&self->vm, 2);
	guest_load(&self->vm, avx);
	check_patterns(_metadata, &self->vcpu, true);
}

/* Two guests in turn in one thread. */
TEST_F(fpu, two_guests)
{
	struct vm other_vm;
	struct vcpu other;

	guest_start(&other_vm, &other, sse);
	fill(&self->vm, 3);
	fill(&other_vm, 77);
	for (unsigned long i = 0; i < scaled(200); i++) {
		vcpu_run_to_port(&self->vcpu, PORT_SYNC);
		vcpu_run_to_port(&other, PORT_SYNC);
	}
	EXPECT_EQ(vcpu_regs(&self->vcpu).rbx, vcpu_regs(&other).rbx);
	vcpu_free(&other);
	vm_free(&other_vm);
}

/* The host's registers are as they were after the guest has filled its own. */
TEST_F(fpu, host_is_kept)
{
	uint8_t before[16 * 16] __attribute__((aligned(16))), after[16 * 16] __attribute__((aligned(16)));
	uint32_t mxcsr = 0x5f80, mxcsr_after;
	uint16_t control = 0x27f, control_after;
	long result;

	for (unsigned int i = 0; i < sizeof(before); i++)
		before[i] = 255 - i;
	fill(&self->vm, 5);
	/* All in one piece of assembly, so that no code of the compiler's comes between. */
	asm volatile("fldcw %[control]; ldmxcsr %[mxcsr];"
		     "movdqa (%[before]), %%xmm0; movdqa 16(%[before]), %%xmm1; movdqa 112(%[before]), %%xmm7;"
		     "movdqa 128(%[before]), %%xmm8; movdqa 240(%[before]), %%xmm15;"
		     "syscall;"
		     "movdqa %%xmm0, (%[after]); movdqa %%xmm1, 16(%[after]); movdqa %%xmm7, 112(%[after]);"
		     "movdqa %%xmm8, 128(%[after]); movdqa %%xmm15, 240(%[after]);"
		     "stmxcsr %[mxcsr_after]; fnstcw %[control_after]"
		     : "=a"(result), [mxcsr_after] "=m"(mxcsr_after), [control_after] "=m"(control_after)
		     : "a"(16), "D"(self->vcpu.fd), "S"(KVM_RUN), "d"(0), [before] "r"(before), [after] "r"(after),
		       [control] "m"(control), [mxcsr] "m"(mxcsr)
		     : "rcx", "r11", "memory", "xmm0", "xmm1", "xmm7", "xmm8", "xmm15");
	EXPECT_EQ(0, result);
	EXPECT_EQ(KVM_EXIT_IO, self->vcpu.run->exit_reason);
	static const int saved[] = { 0, 1, 7, 8, 15 };

	for (unsigned int i = 0; i < ARRAY_SIZE(saved); i++) {
		EXPECT_EQ(0, memcmp(before + saved[i] * 16, after + saved[i] * 16, 16)) TH_LOG("xmm%d", saved[i]);
	}
	EXPECT_EQ(mxcsr, mxcsr_after);
	EXPECT_EQ(control, control_after);
}

/* The guest's XCR0 does not become the host's, nor the other way round. */
static uint64_t xgetbv0(void)
{
	uint32_t low, high;

	asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	return low | (uint64_t)high << 32;
}

GUEST_CODE64(only_x87, mov %cr4, %rax; bts $18, %rax; mov %rax, %cr4; xor %ecx, %ecx; mov $1, %eax; xor %edx, %edx; xsetbv;
	1: out %al, $PORT_SYNC; xor %ecx, %ecx; xgetbv; mov %rax, %rbx; jmp 1b);

TEST_F(fpu, xcr0)
{
	uint64_t host;

	if (!self->xsave)
		SKIP(return, "no XSAVE here");
	host = xgetbv0();
	guest_load(&self->vm, only_x87);
	for (int i = 0; i < 20; i++) {
		vcpu_run_to_port(&self->vcpu, PORT_SYNC);
		EXPECT_EQ(host, xgetbv0());
		if (i) {
			EXPECT_EQ(1, vcpu_regs(&self->vcpu).rbx);
		}
	}
}

/* What the VMM reads is what the guest has, and what it writes the guest gets. */
TEST_F(fpu, get_and_set)
{
	struct kvm_fpu state, seen;

	fill(&self->vm, 6);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_GET_FPU, &state));
	EXPECT_EQ(0x37f, state.fcw);
	for (int i = 0; i < 16; i++) {
		EXPECT_EQ(0, memcmp(state.xmm[i], vm_at(&self->vm, GUEST_FREE + i * 16), 16)) TH_LOG("xmm%d", i);
	}
	/* Other values in registers and memory alike: the guest finds them equal. */
	fill(&self->vm, 99);
	memcpy(state.xmm, vm_at(&self->vm, GUEST_FREE), sizeof(state.xmm));
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_SET_FPU, &state));
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_GET_FPU, &seen));
	EXPECT_EQ(0, memcmp(state.xmm, seen.xmm, sizeof(seen.xmm)));
	EXPECT_EQ(0, memcmp(state.fpr, seen.fpr, sizeof(seen.fpr)));
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	EXPECT_EQ(64, vcpu_regs(&self->vcpu).rbx);
}

TEST_F(fpu, xsave_round_trip)
{
	struct kvm_xsave state, seen;

	fill(&self->vm, 7);
	if (self->avx)
		guest_load(&self->vm, avx);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_GET_XSAVE, &state));
	/* XMM0 is at byte 160 of the legacy area (Intel SDM volume 1, 10.5.1); its features are in the header at 512. */
	EXPECT_EQ(0, memcmp((char *)state.region + 160, vm_at(&self->vm, GUEST_FREE), 16));
	if (self->xsave) {
		EXPECT_EQ(self->avx ? 7 : 3, state.region[128] | 1);
	}
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_SET_XSAVE, &state));
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_GET_XSAVE, &seen));
	EXPECT_EQ(0, memcmp(&state, &seen, 512 + 64));
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	EXPECT_EQ(64, vcpu_regs(&self->vcpu).rbx);
}

/* States that XRSTOR would fault on must not reach it. */
TEST_F(fpu, hostile_states)
{
	struct kvm_xsave good, bad;
	struct kvm_fpu state;
	uint64_t seed = random_seed();

	fill(&self->vm, 8);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_GET_XSAVE, &good));
	if (self->xsave) {
		bad = good;
		bad.region[128] = 0xffffffff;	/* XSTATE_BV: features that are not */
		bad.region[129] = 0xffffffff;
		EXPECT_EQ(-EINVAL, try_ioctl(self->vcpu.fd, KVM_SET_XSAVE, &bad));
		bad = good;
		bad.region[131] = 0x80000000;	/* XCOMP_BV: compacted */
		EXPECT_EQ(-EINVAL, try_ioctl(self->vcpu.fd, KVM_SET_XSAVE, &bad));
		bad = good;
		bad.region[140] = 1;		/* reserved bytes of the header */
		EXPECT_EQ(-EINVAL, try_ioctl(self->vcpu.fd, KVM_SET_XSAVE, &bad));
		bad = good;
		bad.region[6] = 0xffffffff;	/* MXCSR */
		EXPECT_EQ(-EINVAL, try_ioctl(self->vcpu.fd, KVM_SET_XSAVE, &bad));
	}
	/* KVM_SET_FPU has no refusal for MXCSR's reserved bits: they are dropped. */
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_GET_FPU, &state));
	for (unsigned long i = 0; i < scaled(200); i++) {
		for (unsigned int j = 0; j < sizeof(state) / 4; j++)
			((uint32_t *)&state)[j] = random_next(&seed);
		for (unsigned int j = 0; j < sizeof(bad) / 4; j++)
			((uint32_t *)&bad)[j] = random_next(&seed);
		if (i & 1)
			memset((char *)&bad + 512, 0, 64);
		try_ioctl(self->vcpu.fd, KVM_SET_FPU, &state);
		try_ioctl(self->vcpu.fd, KVM_SET_XSAVE, &bad);
		vcpu_run(&self->vcpu);
		guest_set_mode(&self->vcpu, MODE_LONG);
	}
	/* With a good state it works as before. */
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_SET_XSAVE, &good));
	guest_set_mode(&self->vcpu, MODE_LONG);
	fill(&self->vm, 8);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
}

/* What a new vCPU has. */
TEST(initial_state)
{
	struct vm vm = vm_create();
	struct vcpu vcpu = vcpu_create(&vm, 0);
	struct kvm_fpu state;

	ASSERT_EQ(0, try_ioctl(vcpu.fd, KVM_GET_FPU, &state));
	/* FNINIT's, as with KVM, or that of power-up (Intel SDM volume 3, table 11-1). */
	EXPECT_TRUE(state.fcw == 0x37f || state.fcw == 0x40) TH_LOG("control word %#x", state.fcw);
	EXPECT_EQ(0, state.fsw);
	for (unsigned int i = 0; i < sizeof(state.xmm); i++) {
		EXPECT_EQ(0, ((uint8_t *)state.xmm)[i]);
	}
}

XVM_TEST_MAIN
