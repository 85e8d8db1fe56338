// SPDX-License-Identifier: GPL-2.0
/* KVM_GET_EMULATED_CPUID: what guests may be told they have whatever the CPU has, and that they have it then. */
#include "test.h"
#include <cpuid.h>

#define MOVBE (1u << 22)
#define RDPID (1u << 22)
#define MSR_TSC_AUX 0xc0000103

struct list {
	struct kvm_cpuid2 header;
	struct kvm_cpuid_entry2 entries[256];
};

static struct list emulated(void)
{
	struct list list = { .header.nent = 256 };
	struct vm vm = vm_create();

	if (try_ioctl(vm.device, KVM_GET_EMULATED_CPUID, &list))
		fatal("KVM_GET_EMULATED_CPUID");
	vm_free(&vm);
	return list;
}

TEST(list)
{
	struct list list = emulated();
	struct kvm_cpuid_entry2 *one = cpuid_entry(&list.header, 1, 0), *seven = cpuid_entry(&list.header, 7, 0);
	struct kvm_cpuid_entry2 *extended = cpuid_entry(supported_cpuid(), 0x80000001, 0);

	EXPECT_EQ(1, device_extension(KVM_CAP_EXT_EMUL_CPUID));
	EXPECT_EQ(3, list.header.nent);
	EXPECT_EQ(7, cpuid_entry(&list.header, 0, 0)->eax);
	ASSERT_NE(NULL, one);
	ASSERT_NE(NULL, seven);
	EXPECT_EQ(MOVBE, one->ecx);
	EXPECT_EQ(0, one->eax | one->ebx | one->edx);
	EXPECT_EQ(extended->edx & 1 << 27 ? RDPID : 0, seven->ecx);
	EXPECT_EQ(0, seven->eax | seven->ebx | seven->edx);
}

TEST(errors)
{
	struct vm vm = vm_create();
	struct list list;
	uint8_t *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	ASSERT_NE(MAP_FAILED, page);
	ASSERT_EQ(0, munmap(page + 4096, 4096));
	for (unsigned int room = 0; room < 3; room++) {
		memset(&list, 0, sizeof(list));
		list.header.nent = room;
		EXPECT_EQ(-E2BIG, try_ioctl(vm.device, KVM_GET_EMULATED_CPUID, &list));
		EXPECT_EQ(room, list.header.nent);
	}
	for (unsigned int room = 4; room <= 256; room += 84) {
		memset(&list, 0, sizeof(list));
		list.header.nent = room;
		EXPECT_EQ(0, try_ioctl(vm.device, KVM_GET_EMULATED_CPUID, &list));
		EXPECT_EQ(3, list.header.nent);
		list.header.nent = room;
		list.entries[room - 1].padding[2] = 1;
		EXPECT_EQ(-EINVAL, try_ioctl(vm.device, KVM_GET_EMULATED_CPUID, &list));
		list.header.nent = room - 1;
		EXPECT_EQ(room > 4 || device_is_xvm() ? 0 : -E2BIG, try_ioctl(vm.device, KVM_GET_EMULATED_CPUID, &list));
	}
	/* More than 256 are as 256. */
	memset(&list, 0, sizeof(list));
	list.header.nent = -1u;
	EXPECT_EQ(0, try_ioctl(vm.device, KVM_GET_EMULATED_CPUID, &list));
	EXPECT_EQ(3, list.header.nent);
	EXPECT_EQ(-EFAULT, try_ioctl(vm.device, KVM_GET_EMULATED_CPUID, NULL));
	*(uint32_t *)(page + 4096 - 64) = 256;
	/* KVM says of such padding that it is bad. */
	EXPECT_EQ(device_is_xvm() ? -EFAULT : -EINVAL, try_ioctl(vm.device, KVM_GET_EMULATED_CPUID, page + 4096 - 64));
	vm_free(&vm);
}

FIXTURE(emulated)
{
	struct vm vm;
	struct vcpu vcpu;
	struct list list;
	bool rdpid;
};

FIXTURE_SETUP(emulated)
{
	struct list more = emulated();

	self->vm = vm_create();
	self->vcpu = vcpu_create(&self->vm, 0);
	memcpy(&self->list, supported_cpuid(), sizeof(self->list.header) + supported_cpuid()->nent * sizeof(self->list.entries[0]));
	cpuid_entry(&self->list.header, 1, 0)->ecx |= MOVBE;
	self->rdpid = cpuid_entry(&more.header, 7, 0)->ecx & RDPID;
	cpuid_entry(&self->list.header, 7, 0)->ecx |= cpuid_entry(&more.header, 7, 0)->ecx;
	do_ioctl(self->vcpu.fd, KVM_SET_CPUID2, &self->list);
}

FIXTURE_TEARDOWN(emulated)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

GUEST_CODE64(swap,
	movabs $0x0123456789abcdef, %rax; mov %rax, GUEST_DATA; mov %rax, GUEST_DATA + 8;
	movbe GUEST_DATA, %rbx; movbe GUEST_DATA, %ecx; mov $-1, %rdx; movbe GUEST_DATA, %dx; movbe GUEST_DATA, %r15;
	movbe %rax, GUEST_DATA + 8; movbe %ax, GUEST_DATA + 16; mov GUEST_DATA + 8, %rsi; GUEST_DONE);

TEST_F(emulated, movbe)
{
	struct kvm_regs regs;

	guest_load(&self->vm, swap);
	guest_set_mode(&self->vcpu, MODE_LONG);
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
	regs = vcpu_regs(&self->vcpu);
	EXPECT_EQ(0xefcdab8967452301, regs.rbx);
	EXPECT_EQ(0xefcdab89, regs.rcx);
	EXPECT_EQ(0xffffffffffffefcd, regs.rdx);
	EXPECT_EQ(regs.rbx, regs.r15);
	EXPECT_EQ(regs.rbx, regs.rsi);
	EXPECT_EQ(0xef, *(uint8_t *)vm_at(&self->vm, GUEST_DATA + 17));
}

GUEST_CODE64(who, mov $-1, %rax; rdpid %rax; rdpid %r9; mov %rsp, %rbp; rdpid %rsp; xchg %rsp, %rbp; GUEST_DONE);
GUEST_CODE32(who32, mov $-1, %eax; rdpid %eax; mov %esp, %ebp; rdpid %esp; xchg %esp, %ebp; GUEST_DONE);

TEST_F(emulated, rdpid)
{
	struct kvm_regs regs;

	if (!self->rdpid)
		SKIP(return, "without RDTSCP there is no MSR TSC_AUX");
	ASSERT_EQ(1, vcpu_set_msr(&self->vcpu, MSR_TSC_AUX, 0xfedcba98));
	for (int i = 0; i < 2; i++) {
		if (i)
			guest_load(&self->vm, who32);
		else
			guest_load(&self->vm, who);
		guest_set_mode(&self->vcpu, i ? MODE_PROTECTED : MODE_LONG);
		vcpu_run_to_port(&self->vcpu, PORT_DONE);
		regs = vcpu_regs(&self->vcpu);
		EXPECT_EQ(0xfedcba98, regs.rax);
		EXPECT_EQ(0xfedcba98, regs.rbp);
		if (!i)
			EXPECT_EQ(0xfedcba98, regs.r9);
	}
}

/* In user code, and with the trap flag: each is an instruction like any other. */
GUEST_CODE64(as_user,
	pushq $SELECTOR_USER_DATA; pushq $GUEST_STACK - 0x400; pushq $0x102; pushq $SELECTOR_USER_CODE; pushq $(GUEST_AT(as_user, 1f));
	movq $0x5a, GUEST_DATA; iretq; 1: movbe GUEST_DATA, %rbx; nop);

TEST_F(emulated, single_step_in_user_code)
{
	volatile struct report *report = guest_report(&self->vm);

	guest_load(&self->vm, as_user);
	guest_set_mode(&self->vcpu, MODE_LONG);
	for (uint64_t page = 0; page < GUEST_MEMORY; page += 4096)
		*guest_pte(&self->vm, page) |= 4;
	EXPECT_EQ(1, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	EXPECT_EQ(0x5a00000000000000, vcpu_regs(&self->vcpu).rbx);
	EXPECT_EQ(SELECTOR_USER_CODE, report->cs);
	/* Behind the MOVBE. */
	EXPECT_EQ(0x90, *(uint8_t *)vm_at(&self->vm, report->rip));
}

/* LOCK, the form with two registers, and memory that isn't there: what the CPU says of them. */
GUEST_CODE64(locked, movq $GUEST_AT(locked, 1f), GUEST_REPORT + REPORT_FIXUP; .byte 0xf0; movbe GUEST_DATA, %rbx;
	1: movl $0, GUEST_REPORT + REPORT_FIXUP; GUEST_DONE);
GUEST_CODE64(registers, movq $GUEST_AT(registers, 1f), GUEST_REPORT + REPORT_FIXUP; .byte 0x0f, 0x38, 0xf0, 0xc3;
	1: movl $0, GUEST_REPORT + REPORT_FIXUP; GUEST_DONE);
GUEST_CODE64(nowhere, movq $GUEST_AT(nowhere, 1f), GUEST_REPORT + REPORT_FIXUP; movabs $0xfff123456000, %rax; movbe %rbx, (%rax);
	1: movl $0, GUEST_REPORT + REPORT_FIXUP; GUEST_DONE);

#define expect_exception(number, name) do { \
	guest_load(&self->vm, name); \
	guest_set_mode(&self->vcpu, MODE_LONG); \
	guest_report(&self->vm)->vector = -1; \
	vcpu_run_to_port(&self->vcpu, PORT_DONE); \
	EXPECT_EQ(number, guest_report(&self->vm)->vector); \
} while (0)

TEST_F(emulated, faults)
{
	expect_exception(6, locked);
	expect_exception(6, registers);
	/* Not canonical. */
	expect_exception(13, nowhere);
}

/* Whoever isn't told that it has the instruction, on a CPU that hasn't, has not. */
GUEST_CODE64(try_movbe, movq $GUEST_AT(try_movbe, 1f), GUEST_REPORT + REPORT_FIXUP; movbe GUEST_DATA, %rbx;
	1: movl $0, GUEST_REPORT + REPORT_FIXUP; GUEST_DONE);
GUEST_CODE64(try_rdpid, movq $GUEST_AT(try_rdpid, 1f), GUEST_REPORT + REPORT_FIXUP; rdpid %rax;
	1: movl $0, GUEST_REPORT + REPORT_FIXUP; GUEST_DONE);

TEST_F(emulated, not_in_cpuid)
{
	struct kvm_cpuid2 *supported = supported_cpuid();
	bool movbe = cpuid_entry(supported, 1, 0)->ecx & MOVBE, rdpid = cpuid_entry(supported, 7, 0)->ecx & RDPID;

	if (movbe && rdpid)
		SKIP(return, "the CPU has them");
	vcpu_set_supported_cpuid(&self->vcpu);
	if (!movbe)
		expect_exception(6, try_movbe);
	if (!rdpid)
		expect_exception(6, try_rdpid);
}

XVM_TEST_MAIN
