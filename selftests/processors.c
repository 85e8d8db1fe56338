// SPDX-License-Identifier: GPL-2.0
/*
 * What a VMM says of the processors before it makes them: the bootstrap processor, the highest ID, the rate of the APICs' timers; and
 * what it must not do to them: IPIs in masses to vCPUs that come and go.
 */
#include "apic.h"

#define COUNTER (GUEST_FREE + 0x800)
#define INIT_TO_OTHERS 0xc4500
#define STARTUP_TO_OTHERS 0xc4620
#define NMI_TO_OTHERS 0xc4400
#define VECTOR_TO_OTHERS 0xc4062

static int enable(struct vm *vm, uint32_t cap, uint64_t value)
{
	struct kvm_enable_cap request = { .cap = cap, .args = { value } };

	return try_ioctl(vm->fd, KVM_ENABLE_CAP, &request);
}

static uint32_t mp_state(struct vcpu *vcpu)
{
	struct kvm_mp_state state;

	do_ioctl(vcpu->fd, KVM_GET_MP_STATE, &state);
	return state.mp_state;
}

TEST(bootstrap_processor)
{
	struct vm vm = vm_create();
	int limit = device_extension(KVM_CAP_MAX_VCPU_ID);
	struct vcpu first, second;

	ASSERT_EQ(1, device_extension(KVM_CAP_SET_BOOT_CPU_ID));
	EXPECT_EQ(-EINVAL, try_ioctl(vm.fd, KVM_SET_BOOT_CPU_ID, limit + 1));
	EXPECT_EQ(-EINVAL, try_ioctl(vm.fd, KVM_SET_BOOT_CPU_ID, 1ul << 32));
	EXPECT_EQ(-EINVAL, try_ioctl(vm.fd, KVM_SET_BOOT_CPU_ID, -1ul));
	EXPECT_EQ(0, try_ioctl(vm.fd, KVM_SET_BOOT_CPU_ID, limit));
	EXPECT_EQ(0, try_ioctl(vm.fd, KVM_SET_BOOT_CPU_ID, 1));
	vm_create_irqchip(&vm);
	first = vcpu_create(&vm, 0);
	second = vcpu_create(&vm, 1);
	EXPECT_EQ(-EBUSY, try_ioctl(vm.fd, KVM_SET_BOOT_CPU_ID, 0));
	EXPECT_EQ(KVM_MP_STATE_UNINITIALIZED, mp_state(&first));
	EXPECT_EQ(KVM_MP_STATE_RUNNABLE, mp_state(&second));
	EXPECT_EQ(0, vcpu_sregs(&first).apic_base & 1 << 8);
	EXPECT_EQ(1 << 8, vcpu_sregs(&second).apic_base & 1 << 8);
}

TEST(highest_id)
{
	struct vm vm = vm_create_bare();
	int limit = device_extension(KVM_CAP_MAX_VCPU_ID);

	EXPECT_GE(device_extension(KVM_CAP_MAX_VCPUS), 1024);
	EXPECT_GE(limit, device_extension(KVM_CAP_MAX_VCPUS));
	EXPECT_EQ(-EINVAL, enable(&vm, KVM_CAP_MAX_VCPU_ID, limit + 1));
	EXPECT_EQ(-EINVAL, enable(&vm, KVM_CAP_MAX_VCPU_ID, 1ull << 32));
	EXPECT_EQ(0, enable(&vm, KVM_CAP_MAX_VCPU_ID, 0));
	EXPECT_EQ(0, try_ioctl(vm.fd, KVM_SET_BOOT_CPU_ID, 3));
	EXPECT_EQ(-EINVAL, enable(&vm, KVM_CAP_MAX_VCPU_ID, 2));
	EXPECT_EQ(0, enable(&vm, KVM_CAP_MAX_VCPU_ID, 5));
	EXPECT_EQ(0, enable(&vm, KVM_CAP_MAX_VCPU_ID, 5));
	EXPECT_EQ(-EINVAL, enable(&vm, KVM_CAP_MAX_VCPU_ID, 6));
	EXPECT_EQ(-EINVAL, try_ioctl(vm.fd, KVM_SET_BOOT_CPU_ID, 6));
	EXPECT_EQ(-EINVAL, try_ioctl(vm.fd, KVM_CREATE_VCPU, 5));
	EXPECT_GE(try_ioctl(vm.fd, KVM_CREATE_VCPU, 4), 0);
	/* The first vCPU settles it. */
	vm_free(&vm);
	vm = vm_create_bare();
	EXPECT_GE(try_ioctl(vm.fd, KVM_CREATE_VCPU, 0), 0);
	EXPECT_EQ(-EINVAL, enable(&vm, KVM_CAP_MAX_VCPU_ID, 5));
	EXPECT_EQ(0, enable(&vm, KVM_CAP_MAX_VCPU_ID, limit));
}

/* 0xffffffff counts, by 128, in the longest time that fits 64 bits. */
TEST(bus_cycle)
{
	struct vm vm = vm_create();
	uint64_t most = -1ull / (0xffffffffull * 128);

	EXPECT_EQ(1, device_extension(KVM_CAP_X86_APIC_BUS_CYCLES_NS));
	EXPECT_EQ(-ENXIO, enable(&vm, KVM_CAP_X86_APIC_BUS_CYCLES_NS, 40));
	vm_create_irqchip(&vm);
	EXPECT_EQ(-EINVAL, enable(&vm, KVM_CAP_X86_APIC_BUS_CYCLES_NS, 0));
	EXPECT_EQ(-EINVAL, enable(&vm, KVM_CAP_X86_APIC_BUS_CYCLES_NS, most + 1));
	EXPECT_EQ(-EINVAL, enable(&vm, KVM_CAP_X86_APIC_BUS_CYCLES_NS, -1ull));
	EXPECT_EQ(0, enable(&vm, KVM_CAP_X86_APIC_BUS_CYCLES_NS, most));
	EXPECT_EQ(0, enable(&vm, KVM_CAP_X86_APIC_BUS_CYCLES_NS, 40));
	EXPECT_EQ(40, try_ioctl(vm.fd, KVM_CHECK_EXTENSION, KVM_CAP_X86_APIC_BUS_CYCLES_NS));
	EXPECT_GE(try_ioctl(vm.fd, KVM_CREATE_VCPU, 0), 0);
	EXPECT_EQ(-EINVAL, enable(&vm, KVM_CAP_X86_APIC_BUS_CYCLES_NS, 40));
}

/* An ID is free again when its vCPU could not be made. */
TEST(creation_that_fails)
{
	struct vm vm = vm_create_bare();
	struct rlimit before, none;

	getrlimit(RLIMIT_NOFILE, &before);
	none = before;
	none.rlim_cur = 0;
	setrlimit(RLIMIT_NOFILE, &none);
	EXPECT_EQ(-EMFILE, try_ioctl(vm.fd, KVM_CREATE_VCPU, 7));
	setrlimit(RLIMIT_NOFILE, &before);
	EXPECT_GE(try_ioctl(vm.fd, KVM_CREATE_VCPU, 7), 0);
}

/* Every kind of IPI to everybody else, and a vector to each 8-bit ID in turn, until the counter is no longer 0. */
GUEST_CODE64(storm,
	ENABLE_APIC;
	1: inc %ebx; mov %ebx, %eax; shl $24, %eax; mov %eax, 0x310(%r14); movl $0x61, APIC_ICR(%r14);
	movl $VECTOR_TO_OTHERS, APIC_ICR(%r14); movl $NMI_TO_OTHERS, APIC_ICR(%r14);
	test $0xf, %bl; jnz 2f; movl $INIT_TO_OTHERS, APIC_ICR(%r14);
	2: movl $STARTUP_TO_OTHERS, APIC_ICR(%r14); cmpl $0, COUNTER; je 1b; GUEST_DONE);

/* Whatever the vCPU does: NMIs lead it to handlers that report. */
static void *run_until_told(void *arg)
{
	struct vcpu *vcpu = arg;
	volatile uint8_t *stop = &vcpu->run->immediate_exit;

	while (!*stop)
		vcpu_run(vcpu);
	return NULL;
}

TEST(storm_while_vcpus_come_and_go)
{
	enum { ALIVE = 3, MOST = 61 };
	static struct vcpu vcpus[MOST];
	static pthread_t threads[MOST];
	int count = 1 + scaled(MOST - 1);
	struct vm vm = vm_create();

	let_signal_interrupt(SIGUSR1);
	vm_create_irqchip(&vm);
	vcpus[0] = vcpu_create(&vm, 0);
	vcpu_set_supported_cpuid(&vcpus[0]);
	guest_load(&vm, storm);
	guest_set_mode(&vcpus[0], MODE_LONG);
	/* Where the start-up IPI leads: sti; hlt; jmp to it, in real mode. */
	memcpy(vm_at(&vm, GUEST_FREE), "\xfb\xf4\xeb\xfd", 4);
	ASSERT_EQ(0, pthread_create(&threads[0], NULL, run_to_done, &vcpus[0]));
	for (int i = 1; i < count + ALIVE; i++) {
		if (i < count) {
			vcpus[i] = vcpu_create(&vm, i);
			ASSERT_EQ(0, pthread_create(&threads[i], NULL, run_until_told, &vcpus[i]));
		}
		if (i > ALIVE) {
			struct vcpu *gone = &vcpus[i - ALIVE];

			gone->run->immediate_exit = 1;
			pthread_kill(threads[i - ALIVE], SIGUSR1);
			pthread_join(threads[i - ALIVE], NULL);
			vcpu_free(gone);
		}
	}
	*(volatile uint32_t *)vm_at(&vm, COUNTER) = 1;
	pthread_join(threads[0], NULL);
	EXPECT_GT(vcpu_regs(&vcpus[0]).rbx, 0);
}

/* A vCPU that runs takes no start-up IPI: it counts on. */
GUEST_CODE64(counting, 1: lock incq COUNTER; jmp 1b);

TEST(startup_of_who_runs)
{
	struct kvm_mp_state runnable = { .mp_state = KVM_MP_STATE_RUNNABLE };
	struct kvm_regs regs = { 0 };
	struct vm vm = vm_create();
	struct vcpu sender, runner;
	volatile uint64_t *counter;
	pthread_t thread;

	let_signal_interrupt(SIGUSR1);
	vm_create_irqchip(&vm);
	sender = vcpu_create(&vm, 0);
	runner = vcpu_create(&vm, 1);
	vcpu_set_supported_cpuid(&sender);
	vcpu_set_supported_cpuid(&runner);
	counter = vm_at(&vm, COUNTER);
	guest_load(&vm, counting);
	guest_set_mode(&runner, MODE_LONG);
	do_ioctl(runner.fd, KVM_SET_MP_STATE, &runnable);
	ASSERT_EQ(0, pthread_create(&thread, NULL, run_until_told, &runner));
	/* 32-bit code: a start-up IPI to all others, then OUT. */
	memcpy(vm_at(&vm, GUEST_FREE), "\xc7\x05\x00\x03\xe0\xfe\x20\x46\x0c\x00\xe6\xe1\xeb\xf2", 14);
	guest_set_mode(&sender, MODE_PROTECTED);
	regs = vcpu_regs(&sender);
	regs.rip = GUEST_FREE;
	vcpu_set_regs(&sender, &regs);
	for (unsigned long i = 0; i < scaled(100); i++) {
		uint64_t seen = *counter;

		vcpu_run_to_port(&sender, PORT_SYNC);
		while (*counter == seen)
			sched_yield();
	}
	runner.run->immediate_exit = 1;
	pthread_kill(thread, SIGUSR1);
	pthread_join(thread, NULL);
	EXPECT_EQ(KVM_MP_STATE_RUNNABLE, mp_state(&runner));
	EXPECT_EQ(GUEST_CODE, vcpu_regs(&runner).rip & ~0xfull);
}

XVM_TEST_MAIN
