// SPDX-License-Identifier: GPL-2.0
/*
 * vCPUs that wait, and who waits for vCPUs: interrupts between CPUs are sent only where they are needed, HLT is polled only when
 * nobody else wants the CPU, and a vCPU that spins lets the one that it waits for go first.
 */
#include "apic.h"
#include "stats.h"
#include <signal.h>
#include <linux/kvm_para.h>

#define COUNTER GUEST_FREE
#define TICK_NS 4000000

static struct vm vm;
static struct vcpu vcpus[5];

/* Interrupts between CPUs that the kernel counts as rescheduling ones, on all CPUs together. */
static unsigned long host_ipis(void)
{
	FILE *file = fopen("/proc/interrupts", "r");
	unsigned long sum = 0;
	char line[4096];

	if (!file)
		fatal("/proc/interrupts: %s", strerror(errno));
	while (fgets(line, sizeof(line), file)) {
		char *at = strstr(line, "RES:");

		for (at = at ? at + 4 : NULL; at; ) {
			char *end;
			unsigned long count = strtoul(at, &end, 10);

			at = end == at ? NULL : end;
			sum += at ? count : 0;
		}
	}
	fclose(file);
	return sum;
}

static void start(int count)
{
	vm = vm_create();
	vm_create_irqchip(&vm);
	for (int i = 0; i < count; i++) {
		vcpus[i] = vcpu_create(&vm, i);
		vcpu_set_supported_cpuid(&vcpus[i]);
		guest_start_numbered(&vcpus[i], i);
	}
}

static void *run_on_first_cpu(void *vcpu)
{
	pin_to_cpu(0);
	return run_to_done(vcpu);
}

/* With interrupts off: the vectors are not taken, so that no interrupt is spared by the guest having just exited for another. */
GUEST_CODE64(busy, ENABLE_APIC; movl $1, COUNTER; 1: pause; cmpl $1, COUNTER; je 1b; GUEST_DONE);

static int send_all_vectors(void)
{
	int sent = 0;

	for (struct kvm_msi msi = { .address_lo = APIC, .data = 32 }; msi.data < 256; msi.data++)
		sent += try_ioctl(vm.fd, KVM_SIGNAL_MSI, &msi) > 0;
	return sent;
}

TEST(interrupts_only_for_guest_mode)
{
	int cpus = cpu_count();
	volatile uint32_t *counter;
	unsigned long before;
	pthread_t thread;

	start(1);
	guest_load(&vm, busy);
	counter = vm_at(&vm, COUNTER);
	pin_to_cpu(cpus - 1);
	/* The vCPU's APIC takes them once it is enabled. */
	ASSERT_EQ(0, pthread_create(&thread, NULL, run_on_first_cpu, &vcpus[0]));
	while (!*counter)
		sched_yield();
	before = host_ipis();
	EXPECT_EQ(224, send_all_vectors());
	/* It may have been outside just then, and the other CPU takes its time to take an interrupt. */
	for (uint64_t start = now_ns(); cpus > 1 && host_ipis() == before && now_ns() < start + 5000000000ull; )
		send_all_vectors();
	if (cpus > 1)
		EXPECT_LT(before, host_ipis());
	*counter = 2;
	pthread_join(thread, NULL);
	/* Now it isn't in guest mode: the counter moves for other reasons alone. */
	struct kvm_lapic_state lapic;

	do_ioctl(vcpus[0].fd, KVM_GET_LAPIC, &lapic);
	memset(lapic.regs + APIC_IRR, 0, 0x80);
	do_ioctl(vcpus[0].fd, KVM_SET_LAPIC, &lapic);
	before = host_ipis();
	EXPECT_EQ(224, send_all_vectors());
	EXPECT_GT(before + 112, host_ipis());
}

/* HLT until the timer's interrupt, RSI times. */
GUEST_CODE64(ticks,
	ENABLE_APIC; movl $TIMER_VECTOR, APIC_LVT_TIMER(%r14); movl $0xb, APIC_TIMER_DIVIDE(%r14);
	movq $(GUEST_AT(ticks, 5f)), GUEST_REPORT + REPORT_FIXUP;
	1: movl $TICK_NS, APIC_TIMER_INITIAL(%r14); sti; 2: hlt; jmp 2b;
	5: cli; END_OF_INTERRUPT; mov $GUEST_STACK, %esp; dec %rsi; jnz 1b; GUEST_DONE);

static uint64_t thread_ns(void)
{
	struct timespec time;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
	return time.tv_sec * 1000000000ull + time.tv_nsec;
}

#define MSR_POLL_CONTROL 0x4b564d05

/* Percents of the time that the thread used the CPU while its vCPU halted, mostly. */
static int busy_percent(uint64_t limit, unsigned int times, uint64_t poll_control)
{
	struct kvm_enable_cap poll = { .cap = KVM_CAP_HALT_POLL, .args = { limit } };
	uint64_t begin, cpu;
	struct kvm_regs regs;

	start(1);
	guest_load(&vm, ticks);
	do_ioctl(vm.fd, KVM_ENABLE_CAP, &poll);
	if (vcpu_set_msr(&vcpus[0], MSR_POLL_CONTROL, poll_control) != 1)
		fatal("MSR_KVM_POLL_CONTROL");
	regs = vcpu_regs(&vcpus[0]);
	regs.rsi = times;
	vcpu_set_regs(&vcpus[0], &regs);
	begin = now_ns();
	cpu = thread_ns();
	vcpu_run_to_port(&vcpus[0], PORT_DONE);
	begin = now_ns() - begin;
	cpu = thread_ns() - cpu;
	vcpu_free(&vcpus[0]);
	vm_free(&vm);
	return cpu * 100 / begin;
}

static volatile bool enough;

static void *burn(void *unused)
{
	pin_to_cpu(0);
	while (!enough)
		;
	return NULL;
}

TEST(halt_polling)
{
	int polled, slept, shared, by_guest;
	pthread_t thread;

	if (!device_is_xvm())
		SKIP(return, "kvm has its own idea of who else wants the CPU");
	pin_to_cpu(0);
	slept = busy_percent(0, 50, 1);
	polled = busy_percent(1000000000, 50, 1);
	by_guest = busy_percent(1000000000, 50, 0);
	ASSERT_EQ(0, pthread_create(&thread, NULL, burn, NULL));
	shared = busy_percent(1000000000, 50, 1);
	enough = true;
	pthread_join(thread, NULL);
	TH_LOG("CPU used in HLT: %d %% without polling, %d %% with, %d %% if the guest polls, %d %% when another thread wants the CPU",
	       slept, polled, by_guest, shared);
	EXPECT_LT(slept, 60);
	EXPECT_LT(by_guest, 60);
	EXPECT_GT(polled, slept + 20);
	EXPECT_LT(shared, 60);
}

TEST(halt_polling_limits)
{
	struct kvm_enable_cap poll = { .cap = KVM_CAP_HALT_POLL, .args = { 1ull << 32 } };

	vm = vm_create();
	EXPECT_EQ(1, try_ioctl(vm.fd, KVM_CHECK_EXTENSION, KVM_CAP_HALT_POLL));
	EXPECT_EQ(-EINVAL, try_ioctl(vm.fd, KVM_ENABLE_CAP, &poll));
	poll.args[0] = -1ull;
	EXPECT_EQ(-EINVAL, try_ioctl(vm.fd, KVM_ENABLE_CAP, &poll));
	poll = (struct kvm_enable_cap){ .cap = KVM_CAP_HALT_POLL, .flags = 1 };
	EXPECT_EQ(-EINVAL, try_ioctl(vm.fd, KVM_ENABLE_CAP, &poll));
	poll = (struct kvm_enable_cap){ .cap = KVM_CAP_HALT_POLL, .args = { -1u } };
	EXPECT_EQ(0, try_ioctl(vm.fd, KVM_ENABLE_CAP, &poll));
}

TEST(poll_control)
{
	static const uint64_t bad[] = { 2, 3, 1ull << 63, -1ull };
	struct kvm_enable_cap enforce = { .cap = KVM_CAP_ENFORCE_PV_FEATURE_CPUID, .args = { 1 } };
	struct kvm_cpuid_entry2 *features = cpuid_entry(supported_cpuid(), KVM_CPUID_FEATURES, 0);
	struct kvm_cpuid2 none = { 0 };
	uint64_t value;

	ASSERT_NE(NULL, features);
	EXPECT_NE(0, features->eax & 1 << KVM_FEATURE_POLL_CONTROL);
	start(1);
	ASSERT_EQ(1, vcpu_get_msr(&vcpus[0], MSR_POLL_CONTROL, &value));
	EXPECT_EQ(1, value);
	EXPECT_EQ(1, vcpu_set_msr(&vcpus[0], MSR_POLL_CONTROL, 0));
	for (unsigned int i = 0; i < ARRAY_SIZE(bad); i++)
		EXPECT_EQ(0, vcpu_set_msr(&vcpus[0], MSR_POLL_CONTROL, bad[i]));
	ASSERT_EQ(1, vcpu_get_msr(&vcpus[0], MSR_POLL_CONTROL, &value));
	EXPECT_EQ(0, value);
	/* Without the feature, for a VMM that wants it so, there is no such register. */
	ASSERT_EQ(0, try_ioctl(vcpus[0].fd, KVM_SET_CPUID2, &none));
	ASSERT_EQ(0, try_ioctl(vcpus[0].fd, KVM_ENABLE_CAP, &enforce));
	EXPECT_EQ(0, vcpu_get_msr(&vcpus[0], MSR_POLL_CONTROL, &value));
	EXPECT_EQ(0, vcpu_set_msr(&vcpus[0], MSR_POLL_CONTROL, 1));
}

/* They take turns RSI times; the other one's turn can only come when it has the CPU. */
GUEST_CODE64(turns, 1: 2: pause; mov COUNTER, %eax; xor %edi, %eax; test $1, %al; jnz 2b; lock incl COUNTER; dec %rsi; jnz 1b; GUEST_DONE);

/* A scheduler's time slice takes milliseconds: without yielding each turn costs one. */
TEST(spinning_gives_way)
{
	unsigned int times = 100;
	uint64_t begin;
	pthread_t threads[2];

	start(2);
	guest_load(&vm, turns);
	for (int i = 0; i < 2; i++) {
		struct kvm_regs regs = vcpu_regs(&vcpus[i]);

		regs.rsi = times;
		vcpu_set_regs(&vcpus[i], &regs);
	}
	begin = now_ns();
	for (int i = 0; i < 2; i++)
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, run_on_first_cpu, &vcpus[i]));
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	TH_LOG("%llu us for a turn", (unsigned long long)(now_ns() - begin) / 2000 / times);
	EXPECT_EQ(2 * times, *(uint32_t *)vm_at(&vm, COUNTER));
	if (!host_is_qemu_tcg())
		EXPECT_LT(now_ns() - begin, 2 * times * 1000000ull);
}

/* vCPU 0 names vCPU RBP, RSI times; vCPU 1 is busy, vCPU 2 halts, and there are others that never run. */
GUEST_CODE64(call_by_name,
	cmp $1, %edi; jb 1f; je 3f; movl $1, COUNTER; hlt;
	1: mov %rbp, %rbx; mov $KVM_HC_SCHED_YIELD, %eax; vmmcall; or %rax, %r12; dec %rsi; jnz 1b; GUEST_DONE;
	3: movl $1, COUNTER + 4; 4: cmpl $2, COUNTER; jne 4b; GUEST_DONE);

static void name(uint64_t named, unsigned int times)
{
	struct kvm_regs regs;

	guest_set_mode(&vcpus[0], MODE_LONG);
	regs = vcpu_regs(&vcpus[0]);
	regs.rsi = times;
	regs.rbp = named;
	vcpu_set_regs(&vcpus[0], &regs);
	vcpu_run_to_port(&vcpus[0], PORT_DONE);
	if (vcpu_regs(&vcpus[0]).r12)
		fatal("KVM_HC_SCHED_YIELD failed");
}

static void *halt_on_first_cpu(void *vcpu)
{
	pin_to_cpu(0);
	while (vcpu_run(vcpu) == -EINTR && *(volatile uint32_t *)vm_at(&vm, COUNTER) == 1)
		;
	return NULL;
}

TEST(yield_by_name)
{
	static const uint64_t not_waiting[] = { 0, 2, 3, 4, 5, 1000, 4096, -1u, 1ull << 32 | 1, -1ull };
	volatile uint32_t *counter;
	int64_t successful = 0;
	pthread_t threads[2];
	int stats;

	start(5);
	guest_load(&vm, call_by_name);
	counter = vm_at(&vm, COUNTER);
	stats = try_ioctl(vcpus[0].fd, KVM_GET_STATS_FD, 0);
	ASSERT_LE(0, stats);
	let_signal_interrupt(SIGUSR1);
	pin_to_cpu(0);
	ASSERT_EQ(0, pthread_create(&threads[0], NULL, run_to_done, &vcpus[1]));
	ASSERT_EQ(0, pthread_create(&threads[1], NULL, halt_on_first_cpu, &vcpus[2]));
	while (!counter[0] || !counter[1])
		sched_yield();
	/* Somebody else waits for the CPU, but not who was named. */
	for (unsigned int i = 0; i < ARRAY_SIZE(not_waiting); i++)
		name(not_waiting[i], 100);
	EXPECT_EQ(0, stats_value(stats, "directed_yield_successful"));
	EXPECT_EQ(100 * ARRAY_SIZE(not_waiting), stats_value(stats, "directed_yield_attempted"));
	/* It waits whenever this one has the CPU, and is on its way to guest mode at most for an instant. */
	for (int i = 0; i < 100 && successful < 20; i++) {
		name(1, 10);
		successful = stats_value(stats, "directed_yield_successful");
	}
	EXPECT_LE(20, successful);
	counter[0] = 2;
	pthread_join(threads[0], NULL);
	pthread_kill(threads[1], SIGUSR1);
	pthread_join(threads[1], NULL);
	close(stats);
}

XVM_TEST_MAIN
