// SPDX-License-Identifier: GPL-2.0
/*
 * Model-specific registers, from the VMM and from the guest: lists, refusals, #GP; sweeps of all numbers; and that none of
 * them is shared with the host or with another guest (CVE-2014-3610 and kin).
 */
#include "test.h"

#define MSR_APIC_BASE 0x1b
#define MSR_SYSENTER_CS 0x174
#define MSR_SYSENTER_ESP 0x175
#define MSR_SYSENTER_EIP 0x176
#define MSR_PAT 0x277
#define MSR_EFER 0xc0000080
#define MSR_STAR 0xc0000081
#define MSR_LSTAR 0xc0000082
#define MSR_CSTAR 0xc0000083
#define MSR_SYSCALL_MASK 0xc0000084
#define MSR_FS_BASE 0xc0000100
#define MSR_GS_BASE 0xc0000101
#define MSR_KERNEL_GS_BASE 0xc0000102
#define MSR_TSC_AUX 0xc0000103
#define NOT_CANONICAL 0x8000000000000000

FIXTURE(msrs)
{
	struct vm vm;
	struct vcpu vcpu;
	volatile struct report *report;
};

/* RDMSR or WRMSR of RSI with the value RDI, a fault going on at the end with RBX 1. */
GUEST_CODE64(read_msr,
	1: movq $(GUEST_AT(read_msr, 2f)), GUEST_REPORT + REPORT_FIXUP; mov %esi, %ecx; xor %ebx, %ebx; rdmsr; jmp 3f; 2: mov $1, %ebx;
	3: movq $0, GUEST_REPORT + REPORT_FIXUP; shl $32, %rdx; or %rax, %rdx; out %al, $PORT_SYNC; jmp 1b);
GUEST_CODE64(write_msr,
	1: movq $(GUEST_AT(write_msr, 2f)), GUEST_REPORT + REPORT_FIXUP; mov %esi, %ecx; mov %edi, %eax; mov %rdi, %rdx; shr $32, %rdx;
	xor %ebx, %ebx; wrmsr; jmp 3f; 2: mov $1, %ebx;
	3: movq $0, GUEST_REPORT + REPORT_FIXUP; out %al, $PORT_SYNC; jmp 1b);

FIXTURE_SETUP(msrs)
{
	guest_start(&self->vm, &self->vcpu, read_msr);
	self->report = guest_report(&self->vm);
}

FIXTURE_TEARDOWN(msrs)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

/* Runs a fragment from its start; whether it faulted. The fault must be #GP(0). */
static bool guest_faults(struct vcpu *vcpu, uint32_t index, uint64_t value)
{
	volatile struct report *report = guest_report(vcpu->vm);
	struct kvm_regs regs = vcpu_regs(vcpu);

	regs.rip = GUEST_CODE;
	regs.rsp = GUEST_STACK;
	regs.rsi = index;
	regs.rdi = value;
	vcpu_set_regs(vcpu, &regs);
	vcpu_run_to_port(vcpu, PORT_SYNC);
	if (!vcpu_regs(vcpu).rbx)
		return false;
	if (report->vector != 13 || report->error != 0)
		fatal("MSR %#x: exception %lu, error %#lx", index, report->vector, report->error);
	return true;
}

static bool guest_reads(struct vcpu *vcpu, uint32_t index, uint64_t *value)
{
	guest_load(vcpu->vm, read_msr);
	if (guest_faults(vcpu, index, 0))
		return false;
	*value = vcpu_regs(vcpu).rdx;
	return true;
}

static bool guest_writes(struct vcpu *vcpu, uint32_t index, uint64_t value)
{
	guest_load(vcpu->vm, write_msr);
	return !guest_faults(vcpu, index, value);
}

static const struct {
	uint32_t index;
	uint64_t value;
} plain[] = {
	/* Of these AMD's CPUs have 32 bits. */
	{ MSR_SYSENTER_CS, 0x10 }, { MSR_SYSENTER_ESP, 0x12301000 }, { MSR_SYSENTER_EIP, 0x45602000 },
	{ MSR_STAR, 0x0023001000000000 }, { MSR_LSTAR, 0xffffffff80001000 }, { MSR_CSTAR, 0xffffffff80002000 },
	{ MSR_SYSCALL_MASK, 0x47700 }, { MSR_FS_BASE, 0x7f0000001000 }, { MSR_GS_BASE, 0xffff888000001000 },
	{ MSR_KERNEL_GS_BASE, 0x7f0000002000 }, { MSR_TSC_AUX, 0x123 }, { MSR_PAT, 0x0007010600070106 },
};

/* Each the VMM writes, the guest reads, and the other way round. */
TEST_F(msrs, both_ways)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(plain); i++) {
		uint64_t seen = 0, other = plain[i].value ^ 0x100;

		/* The PAT's bytes are types. */
		if (plain[i].index == MSR_PAT)
			other = 0x0606060606060606;
		EXPECT_EQ(1, vcpu_set_msr(&self->vcpu, plain[i].index, plain[i].value)) TH_LOG("MSR %#x", plain[i].index);
		EXPECT_EQ(1, vcpu_get_msr(&self->vcpu, plain[i].index, &seen));
		EXPECT_EQ(plain[i].value, seen) TH_LOG("MSR %#x", plain[i].index);
		EXPECT_TRUE(guest_reads(&self->vcpu, plain[i].index, &seen)) TH_LOG("MSR %#x", plain[i].index);
		EXPECT_EQ(plain[i].value, seen) TH_LOG("MSR %#x in the guest", plain[i].index);
		EXPECT_TRUE(guest_writes(&self->vcpu, plain[i].index, other)) TH_LOG("MSR %#x", plain[i].index);
		EXPECT_EQ(1, vcpu_get_msr(&self->vcpu, plain[i].index, &seen));
		EXPECT_EQ(other, seen) TH_LOG("MSR %#x after the guest's write", plain[i].index);
	}
}

/* AMD's CPUs keep 32 bits of where SYSENTER goes, Intel's all; whoever writes. QEMU's TCG keeps all if the hypervisor leaves it to it. */
TEST_F(msrs, width_of_sysenter)
{
	uint64_t written = 0x123456789000, kept = host_is_amd() ? 0x56789000 : written, seen = 0;

	for (uint32_t index = MSR_SYSENTER_ESP; index <= MSR_SYSENTER_EIP; index++) {
		EXPECT_EQ(1, vcpu_set_msr(&self->vcpu, index, written));
		EXPECT_EQ(1, vcpu_get_msr(&self->vcpu, index, &seen));
		EXPECT_EQ(kept, seen) TH_LOG("MSR %#x", index);
		if (host_is_qemu_tcg() && !device_is_xvm())
			continue;
		EXPECT_EQ(1, vcpu_set_msr(&self->vcpu, index, 0));
		EXPECT_TRUE(guest_writes(&self->vcpu, index, written));
		EXPECT_TRUE(guest_reads(&self->vcpu, index, &seen));
		EXPECT_EQ(kept, seen) TH_LOG("MSR %#x in the guest", index);
	}
}

/* Addresses that are not canonical, reserved bits and types: #GP for the guest, a short count for the VMM. */
TEST_F(msrs, illegal_values)
{
	static const struct {
		uint32_t index;
		uint64_t value;
		bool guest_only;
	} illegal[] = {
		{ MSR_LSTAR, NOT_CANONICAL, true }, { MSR_CSTAR, NOT_CANONICAL, true }, { MSR_FS_BASE, NOT_CANONICAL, true },
		{ MSR_GS_BASE, NOT_CANONICAL, true }, { MSR_KERNEL_GS_BASE, NOT_CANONICAL, true }, { MSR_PAT, 0x0202020202020202 },
		{ MSR_PAT, 0x08 }, { MSR_EFER, 1 << 9 }, { MSR_EFER, 1ull << 40 }, { MSR_APIC_BASE, 1ull << 60 },
		{ MSR_EFER, 0, true },
	};
	uint64_t before = 0, after = 0;

	for (unsigned int i = 0; i < ARRAY_SIZE(illegal); i++) {
		/* Hypervisors leave these to the CPU, and QEMU's TCG takes any address. */
		if (illegal[i].value == NOT_CANONICAL && host_is_qemu_tcg())
			continue;
		ASSERT_EQ(1, vcpu_get_msr(&self->vcpu, illegal[i].index, &before));
		EXPECT_FALSE(guest_writes(&self->vcpu, illegal[i].index, illegal[i].value))
			TH_LOG("MSR %#x took %#lx from the guest", illegal[i].index, illegal[i].value);
		if (!illegal[i].guest_only) {
			EXPECT_EQ(0, vcpu_set_msr(&self->vcpu, illegal[i].index, illegal[i].value))
				TH_LOG("MSR %#x took %#lx from the VMM", illegal[i].index, illegal[i].value);
		}
		ASSERT_EQ(1, vcpu_get_msr(&self->vcpu, illegal[i].index, &after));
		EXPECT_EQ(before, after) TH_LOG("MSR %#x", illegal[i].index);
	}
	EXPECT_FALSE(guest_reads(&self->vcpu, 0x12345678, &after));
	EXPECT_FALSE(guest_writes(&self->vcpu, 0x12345678, 0));
}

/* What the VMM saves, all of it, it can put back: the list is the state for migration. */
TEST_F(msrs, list_round_trip)
{
	struct {
		struct kvm_msr_list header;
		uint32_t indices[1024];
	} list = { .header.nmsrs = 1024 };
	uint64_t value = 0;

	ASSERT_EQ(0, try_ioctl(self->vm.device, KVM_GET_MSR_INDEX_LIST, &list));
	for (uint32_t i = 0; i < list.header.nmsrs; i++) {
		EXPECT_EQ(1, vcpu_get_msr(&self->vcpu, list.indices[i], &value)) TH_LOG("get MSR %#x", list.indices[i]);
		/* KVM's own, some of which need the in-kernel APIC. */
		if (list.indices[i] >> 12 == 0x4b564)
			continue;
		EXPECT_EQ(1, vcpu_set_msr(&self->vcpu, list.indices[i], value)) TH_LOG("set MSR %#x to %#lx", list.indices[i], value);
	}
	EXPECT_TRUE(guest_reads(&self->vcpu, MSR_STAR, &value));
}

TEST_F(msrs, ioctl_edges)
{
	struct {
		struct kvm_msrs header;
		struct kvm_msr_entry entries[300];
	} msrs = { .header.nmsrs = 3 };

	/* The count is that of the entries before the first that fails. */
	msrs.entries[0].index = MSR_STAR;
	msrs.entries[1].index = 0x12345678;
	msrs.entries[2].index = MSR_LSTAR;
	EXPECT_EQ(1, try_ioctl(self->vcpu.fd, KVM_GET_MSRS, &msrs));
	msrs.entries[0].data = 0x1234500000000;
	msrs.entries[2].data = 0x777000;
	EXPECT_EQ(1, try_ioctl(self->vcpu.fd, KVM_SET_MSRS, &msrs));
	uint64_t value = 0;

	vcpu_get_msr(&self->vcpu, MSR_STAR, &value);
	EXPECT_EQ(0x1234500000000, value);
	vcpu_get_msr(&self->vcpu, MSR_LSTAR, &value);
	EXPECT_NE(0x777000, value);
	msrs.header.nmsrs = 0;
	EXPECT_EQ(0, try_ioctl(self->vcpu.fd, KVM_GET_MSRS, &msrs));
	EXPECT_EQ(0, try_ioctl(self->vcpu.fd, KVM_SET_MSRS, &msrs));
	msrs.header.nmsrs = 256;
	EXPECT_EQ(-E2BIG, try_ioctl(self->vcpu.fd, KVM_GET_MSRS, &msrs));
	msrs.header.nmsrs = 0xffffffff;
	EXPECT_EQ(-E2BIG, try_ioctl(self->vcpu.fd, KVM_SET_MSRS, &msrs));
	msrs.header.nmsrs = 0x10000001;	/* times 16: 16 modulo 2^32 */
	EXPECT_EQ(-E2BIG, try_ioctl(self->vcpu.fd, KVM_GET_MSRS, &msrs));
}

/* The guest's SYSCALL goes where its own LSTAR says, with its own mask and selectors; and SYSRET comes back. */
GUEST_CODE64(system_call,
	mov $0xc0000081, %ecx; xor %eax, %eax; mov $SELECTOR_STAR, %edx; wrmsr;
	mov $0xc0000082, %ecx; mov $(GUEST_AT(system_call, 5f)), %eax; xor %edx, %edx; wrmsr;
	mov $0xc0000084, %ecx; mov $0x200, %eax; wrmsr;
	pushq $SELECTOR_USER_DATA; pushq $GUEST_STACK; pushq $0x3202; pushq $SELECTOR_USER_CODE; pushq $(GUEST_AT(system_call, 1f)); iretq;
	1: mov $0x1111, %ebx; syscall;
	2: mov $0x2222, %esi; mov %cs, %edi; out %al, $PORT_DONE; hlt;
	5: mov %cs, %r8d; pushfq; pop %r9; mov %rcx, %r10; mov %ss, %r12d; sysretq);

TEST_F(msrs, system_call)
{
	struct kvm_regs regs;

	guest_load(&self->vm, system_call);
	guest_set_mode(&self->vcpu, MODE_LONG);
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
	regs = vcpu_regs(&self->vcpu);
	EXPECT_EQ(0x1111, regs.rbx);
	EXPECT_EQ(0x2222, regs.rsi);
	EXPECT_EQ(SELECTOR_USER_CODE, regs.rdi);
	EXPECT_EQ(SELECTOR_CODE64, regs.r8);
	EXPECT_EQ(SELECTOR_DATA, regs.r12);
	EXPECT_EQ(0, regs.r9 & 0x200);
	EXPECT_EQ(0x200, regs.r11 & 0x200);
}

/* SWAPGS exchanges the guest's own two. */
GUEST_CODE64(swap, swapgs; mov $MSR_GS_BASE, %ecx; rdmsr; shl $32, %rdx; or %rdx, %rax; mov %rax, %rbx; GUEST_DONE);

TEST_F(msrs, swapgs)
{
	uint64_t value = 0;

	guest_load(&self->vm, swap);
	guest_set_mode(&self->vcpu, MODE_LONG);
	vcpu_set_msr(&self->vcpu, MSR_GS_BASE, 0x1111000);
	vcpu_set_msr(&self->vcpu, MSR_KERNEL_GS_BASE, 0xffff800022220000);
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
	EXPECT_EQ(0xffff800022220000, vcpu_regs(&self->vcpu).rbx);
	vcpu_get_msr(&self->vcpu, MSR_KERNEL_GS_BASE, &value);
	EXPECT_EQ(0x1111000, value);
	EXPECT_EQ(0xffff800022220000, vcpu_sregs(&self->vcpu).gs.base);
}

/* Two guests in turn on one CPU, and the host's system calls between: everyone has his own. */
TEST_F(msrs, isolated)
{
	struct vm other_vm;
	struct vcpu other;
	uint64_t value = 0;

	pin_to_cpu(0);
	guest_start(&other_vm, &other, read_msr);
	for (unsigned int i = 0; i < ARRAY_SIZE(plain); i++) {
		uint64_t second = plain[i].index == MSR_PAT ? 0x0007040600070406 : plain[i].value ^ 0x1000;

		EXPECT_TRUE(guest_writes(&self->vcpu, plain[i].index, plain[i].value));
		EXPECT_TRUE(guest_writes(&other, plain[i].index, second));
		/* The host makes a system call and uses its thread pointer. */
		errno = EBADMSG;
		EXPECT_EQ(-1, close(-1));
		EXPECT_EQ(EBADF, errno);
		EXPECT_TRUE(guest_reads(&self->vcpu, plain[i].index, &value));
		EXPECT_EQ(plain[i].value, value) TH_LOG("MSR %#x", plain[i].index);
		EXPECT_TRUE(guest_reads(&other, plain[i].index, &value));
		EXPECT_EQ(second, value) TH_LOG("MSR %#x in the other guest", plain[i].index);
	}
	vcpu_free(&other);
	vm_free(&other_vm);
}

/*
 * The sweeps: every number of the three ranges that CPUs use. What is right for each differs; that the host stays as it is,
 * that reads fault with #GP(0) or not at all, and that the guest lives on is what is checked. (The runner looks for warnings.)
 */
GUEST_CODE64(sweep,
	movq $(GUEST_AT(sweep, 2f)), GUEST_REPORT + REPORT_FIXUP; xor %ebx, %ebx; xor %ebp, %ebp;
	1: mov %esi, %ecx; rdmsr; inc %ebx; test %r9d, %r9d; jz 3f; mov %esi, %ecx; wrmsr; inc %ebp; jmp 3f;
	2: cmpq $13, GUEST_REPORT + REPORT_VECTOR; jne 4f; cmpq $0, GUEST_REPORT + REPORT_ERROR; jne 4f;
	3: inc %esi; cmp %esi, %edi; jne 1b; movq $0, GUEST_REPORT + REPORT_FIXUP; out %al, $PORT_DONE; hlt;
	4: movq $0, GUEST_REPORT + REPORT_FIXUP; ud2);

static const uint32_t ranges[][2] = { { 0, 0x2000 }, { 0xc0000000, 0xc0002000 }, { 0xc0010000, 0xc0012000 }, { 0x40000000, 0x40000200 },
				      { 0x4b564d00, 0x4b564d20 } };

static void sweep_by_guest(struct __test_metadata *_metadata, FIXTURE_DATA(msrs) *self, bool write_back)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(ranges); i++) {
		struct kvm_regs regs;
		uint32_t last = ranges[i][0] + scaled(ranges[i][1] - ranges[i][0]);

		guest_load(&self->vm, sweep);
		guest_set_mode(&self->vcpu, MODE_LONG);
		regs = vcpu_regs(&self->vcpu);
		regs.rsi = ranges[i][0];
		regs.rdi = last;
		regs.r9 = write_back;
		vcpu_set_regs(&self->vcpu, &regs);
		vcpu_run_to_port(&self->vcpu, PORT_DONE);
		regs = vcpu_regs(&self->vcpu);
		EXPECT_EQ(last, (uint32_t)regs.rsi);
		TH_LOG("from %#x: %llu can be read, %llu of them take their value back", ranges[i][0], regs.rbx, regs.rbp);
		/* Never all: that would be the host's, or nobody's. */
		if (!host_is_qemu_tcg() || device_is_xvm()) {
			EXPECT_LT(regs.rbx, ranges[i][1] - ranges[i][0]);
		}
	}
}

TEST_F(msrs, guest_reads_all)
{
	sweep_by_guest(_metadata, self, false);
}

TEST_F(msrs, guest_writes_all)
{
	sweep_by_guest(_metadata, self, true);
}

TEST_F(msrs, vmm_reads_and_writes_all)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(ranges); i++) {
		unsigned int count = 0, refused = 0;

		for (uint32_t index = ranges[i][0]; index < ranges[i][0] + scaled(ranges[i][1] - ranges[i][0]); index++) {
			uint64_t value = 0;
			int result = vcpu_get_msr(&self->vcpu, index, &value);

			ASSERT_TRUE(result == 0 || result == 1) TH_LOG("get MSR %#x: %d", index, result);
			count += result;
			if (result)
				result = vcpu_set_msr(&self->vcpu, index, value);
			ASSERT_TRUE(result == 0 || result == 1) TH_LOG("set MSR %#x: %d", index, result);
			/* Values that nobody can mean. */
			result = vcpu_set_msr(&self->vcpu, index, ~0ull);
			ASSERT_TRUE(result == 0 || result == 1) TH_LOG("set MSR %#x: %d", index, result);
			refused += !result;
		}
		TH_LOG("from %#x: %u can be read, %u refuse all ones", ranges[i][0], count, refused);
		EXPECT_GT(refused, 0);
	}
	/* Whatever state that is, the host survives running it. */
	vcpu_run(&self->vcpu);
}

XVM_TEST_MAIN
