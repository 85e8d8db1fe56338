// SPDX-License-Identifier: GPL-2.0
/* Several vCPUs of one VM at once: one memory, interrupts from one to the other, one's page tables under the other's feet. */
#include "test.h"

#define COUNT 4
#define APIC 0xfee00000
#define COUNTER GUEST_FREE

static struct vm vm;
static struct vcpu vcpus[COUNT];

static void start_vm(bool irqchip, int count)
{
	vm = vm_create();
	if (irqchip)
		vm_create_irqchip(&vm);
	for (int i = 0; i < count; i++) {
		vcpus[i] = vcpu_create(&vm, i);
		vcpu_set_supported_cpuid(&vcpus[i]);
	}
}

/* A locked increment and one under a spinlock: no count is lost. RSI: how many. */
GUEST_CODE64(counters,
	1: lock incq COUNTER;
	2: mov $1, %eax; xchg %eax, COUNTER + 0x40; test %eax, %eax; jz 3f; pause; jmp 2b;
	3: mov COUNTER + 0x80, %rbx; inc %rbx; mov %rbx, COUNTER + 0x80; movl $0, COUNTER + 0x40;
	dec %rsi; jnz 1b; GUEST_DONE);

TEST(shared_memory)
{
	pthread_t threads[COUNT];
	uint64_t each = scaled(20000);

	start_vm(false, COUNT);
	guest_load(&vm, counters);
	for (int i = 0; i < COUNT; i++) {
		struct kvm_regs regs;

		guest_start_numbered(&vcpus[i], i);
		regs = vcpu_regs(&vcpus[i]);
		regs.rsi = each;
		vcpu_set_regs(&vcpus[i], &regs);
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, run_to_done, &vcpus[i]));
	}
	for (int i = 0; i < COUNT; i++)
		pthread_join(threads[i], NULL);
	EXPECT_EQ(each * COUNT, *(uint64_t *)vm_at(&vm, COUNTER));
	EXPECT_EQ(each * COUNT, *(uint64_t *)vm_at(&vm, COUNTER + 0x80));
}

/*
 * Ping-pong of interrupts, with HLT in between: vCPU 0 sends to 1, that one back, RSI times. The handler reports, so each one is an
 * exit as well, and the loop goes on behind it.
 */
GUEST_CODE64(ping_pong,
	mov $APIC, %r14d; movl $0x1ff, 0xf0(%r14); mov %edi, %r8d; xor $1, %r8d; shl $24, %r8d;
	movq $(GUEST_AT(ping_pong, 5f)), GUEST_REPORT + REPORT_FIXUP;
	lock incq COUNTER; 8: pause; cmpq $2, COUNTER; jb 8b;
	test %edi, %edi; jnz 2f;
	1: mov %r8d, 0x310(%r14); movl $0x44, 0x300(%r14);
	2: sti; 3: hlt; jmp 3b;
	5: cli; movl $0, 0xb0(%r14); mov $GUEST_STACK, %esp; mov %edi, %eax; shl $9, %eax; sub %eax, %esp; inc %rbx; cmp %rsi, %rbx; jne 1b;
	mov %r8d, 0x310(%r14); movl $0x44, 0x300(%r14); GUEST_DONE);

TEST(interrupts_between_vcpus)
{
	pthread_t threads[2];
	uint64_t times = scaled(2000);

	start_vm(true, 2);
	guest_load(&vm, ping_pong);
	for (int i = 0; i < 2; i++) {
		struct kvm_regs regs;

		guest_start_numbered(&vcpus[i], i);
		regs = vcpu_regs(&vcpus[i]);
		regs.rsi = times;
		vcpu_set_regs(&vcpus[i], &regs);
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, run_to_done, &vcpus[i]));
	}
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	for (int i = 0; i < 2; i++) {
		EXPECT_EQ(times, vcpu_regs(&vcpus[i]).rbx);
	}
}

/* An interrupt for a vCPU that spins in another thread arrives at once, without any exit of its own. */
GUEST_CODE64(spin, mov $APIC, %r14d; movl $0x1ff, 0xf0(%r14); lock incq COUNTER; sti; 1: inc %rbx; jmp 1b);

static void *run_to_exception(void *vcpu)
{
	return (void *)(uintptr_t)vcpu_run_to_port(vcpu, PORT_EXCEPTION);
}

TEST(kick)
{
	struct kvm_msi msi = { .address_lo = 0xfee00000, .data = 0x55 };
	volatile uint64_t *counter;

	start_vm(true, 1);
	counter = vm_at(&vm, COUNTER);
	for (unsigned long i = 0; i < scaled(50); i++) {
		pthread_t thread;
		void *vector;

		*counter = 0;
		guest_load(&vm, spin);
		guest_start_numbered(&vcpus[0], 0);
		ASSERT_EQ(0, pthread_create(&thread, NULL, run_to_exception, &vcpus[0]));
		while (!*counter)
			sched_yield();
		ASSERT_EQ(1, try_ioctl(vm.fd, KVM_SIGNAL_MSI, &msi));
		ASSERT_EQ(0, pthread_join(thread, &vector));
		EXPECT_EQ((void *)0x55, vector);
		/* Its EOI, by the VMM. */
		struct kvm_lapic_state lapic;

		do_ioctl(vcpus[0].fd, KVM_GET_LAPIC, &lapic);
		memset(lapic.regs + 0x100, 0, 0x80);
		do_ioctl(vcpus[0].fd, KVM_SET_LAPIC, &lapic);
	}
}

/*
 * One vCPU changes a page-table entry and tells the other by a flag; that one executes INVLPG and must see the new page. The
 * VMM is not asked.
 */
GUEST_CODE64(shoot_down,
	test %edi, %edi; jnz 5f;
	1: mov COUNTER, %rax; inc %rax; mov %rax, %rcx; and $1, %ecx; shl $12, %rcx; add $(GUEST_FREE + 0x2007), %rcx;
	mov %rcx, GUEST_PT + (GUEST_FREE + 0x4000) / 0x1000 * 8; mov %rax, COUNTER; 2: pause; cmp %rax, COUNTER + 8; jne 2b;
	cmp %rsi, %rax; jb 1b; GUEST_DONE;
	5: xor %ebx, %ebx; 6: pause; mov COUNTER, %rax; cmp %rbx, %rax; je 6b; mov %rax, %rbx; invlpg GUEST_FREE + 0x4000;
	mov GUEST_FREE + 0x4000, %rcx; mov %eax, %edx; and $1, %edx; cmp %rdx, %rcx; jne 9f; mov %rax, COUNTER + 8; cmp %rsi, %rax; jb 6b; GUEST_DONE;
	9: ud2);

TEST(guests_own_shootdown)
{
	pthread_t threads[2];

	start_vm(false, 2);
	guest_load(&vm, shoot_down);
	*(uint64_t *)vm_at(&vm, GUEST_FREE + 0x2000) = 0;
	*(uint64_t *)vm_at(&vm, GUEST_FREE + 0x3000) = 1;
	for (int i = 0; i < 2; i++) {
		struct kvm_regs regs;

		guest_start_numbered(&vcpus[i], i);
		regs = vcpu_regs(&vcpus[i]);
		regs.rsi = scaled(2000);
		vcpu_set_regs(&vcpus[i], &regs);
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, run_to_done, &vcpus[i]));
	}
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	EXPECT_EQ(scaled(2000), *(uint64_t *)vm_at(&vm, COUNTER + 8));
}

XVM_TEST_MAIN
