// SPDX-License-Identifier: GPL-2.0
/*
 * Memory that the kernel shares with the VMM changes while the kernel looks at it (CVE-2021-29657, 2025-40026): kvm_run and
 * the I/O data during KVM_RUN, and the arguments of ioctls. The guest and the VMM may come to harm, the host may not.
 */
#include "test.h"

FIXTURE(fetch)
{
	struct vm vm;
	struct vcpu vcpu;
};

/* Every kind of exit that has something in kvm_run. */
GUEST_CODE64(exits,
	mov $GUEST_FREE, %esi; mov $GUEST_FREE + 0x1000, %edi; mov $0x180, %edx; mov $300, %ecx; rep outsb; mov $300, %ecx; rep insb;
	mov $0x12345678, %eax; out %eax, %dx; in %dx, %eax; mov %rax, GUEST_MMIO + 0xffc; mov GUEST_MMIO + 0xffd, %rbx;
	mov $9, %eax; mov %rax, %cr8; xor %eax, %eax; mov %rax, %cr8; hlt; jmp guest_exits);

FIXTURE_SETUP(fetch)
{
	guest_start(&self->vm, &self->vcpu, exits);
}

FIXTURE_TEARDOWN(fetch)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

static volatile bool scribbling;

struct target {
	volatile uint8_t *bytes;
	size_t size;
	bool whole_words;
};

static void *scribble(void *argument)
{
	struct target *target = argument;
	uint64_t seed = random_seed();

	while (scribbling) {
		uint64_t value = random_next(&seed);

		if (target->whole_words) {
			size_t word = value % (target->size / 8);

			/* The first has immediate_exit, which would be all that is ever looked at. */
			((volatile uint64_t *)target->bytes)[word] = random_next(&seed) & (word ? ~0ull : ~0xff00ull);
		} else {
			size_t at = value % target->size;
			size_t cr8 = at - offsetof(struct kvm_run, cr8);
			size_t synced = at - offsetof(struct kvm_run, kvm_valid_regs);

			/* What makes KVM_RUN return at once is not left there, or nothing else would ever be looked at. */
			if (at == offsetof(struct kvm_run, immediate_exit))
				target->bytes[at] = 0;
			else if (target->size == sizeof(struct kvm_run) && cr8 < 8)
				target->bytes[at] = cr8 ? 0 : value >> 60;
			else if (target->size == sizeof(struct kvm_run) && synced < 16)
				/* Seldom a group of registers, then one that there is: few of their random values are taken. */
				target->bytes[at] = synced % 8 || (value >> 40 & 15) ? 0 : value >> 61;
			else
				target->bytes[at] = value >> 56;
		}
	}
	return NULL;
}

static void run_scribbled(struct __test_metadata *_metadata, FIXTURE_DATA(fetch) *self, struct target *target)
{
	uint64_t end = now_ns() + scaled(1500) * 1000000;
	struct itimerval timer = { .it_value.tv_usec = 10000, .it_interval.tv_usec = 10000 };
	pthread_t thread;
	unsigned int good = 0;

	let_signal_interrupt(SIGALRM);
	scribbling = true;
	ASSERT_EQ(0, pthread_create(&thread, NULL, scribble, target));
	setitimer(ITIMER_REAL, &timer, NULL);
	while (now_ns() < end) {
		int result = try_ioctl(self->vcpu.fd, KVM_RUN, 0);

		/* Nothing but what KVM_RUN may return. */
		ASSERT_TRUE(result == 0 || result == -EINTR || result == -EINVAL || result == -EFAULT) TH_LOG("KVM_RUN: %d", result);
		good += result == 0;
		if (guest_report(&self->vm)->count) {
			guest_report(&self->vm)->count = 0;
			guest_set_mode(&self->vcpu, MODE_LONG);
		}
	}
	scribbling = false;
	pthread_join(thread, NULL);
	timer = (struct itimerval){ 0 };
	setitimer(ITIMER_REAL, &timer, NULL);
	EXPECT_GT(good, 0);
	/* With the scribbler gone a new start works. */
	memset(self->vcpu.run, 0, sizeof(struct kvm_run));
	guest_set_mode(&self->vcpu, MODE_LONG);
	do_ioctl(self->vcpu.fd, KVM_SET_VCPU_EVENTS, (&(struct kvm_vcpu_events){ 0 }));
	for (int i = 0; i < 3; i++) {
		int result = try_ioctl(self->vcpu.fd, KVM_RUN, 0);

		EXPECT_EQ(0, result);
	}
}

TEST_F(fetch, whole_of_kvm_run)
{
	struct target target = { (void *)self->vcpu.run, sizeof(struct kvm_run), false };

	run_scribbled(_metadata, self, &target);
}

TEST_F(fetch, words_of_kvm_run)
{
	struct target target = { (void *)self->vcpu.run, 256, true };

	run_scribbled(_metadata, self, &target);
}

/* The rest of the mapping: what the guest reads by IN is then anybody's, and nothing else. */
TEST_F(fetch, data_pages)
{
	struct target target = { (uint8_t *)self->vcpu.run + 4096, self->vcpu.run_size - 4096, true };

	run_scribbled(_metadata, self, &target);
}

/* io.count, size, data_offset and direction after the exit, before the completion. */
GUEST_CODE64(string_in, mov $GUEST_FREE, %edi; mov $0x180, %edx; mov $64, %ecx; rep insl; hlt);

TEST_F(fetch, io_fields_before_completion)
{
	uint64_t seed = random_seed();

	for (unsigned long i = 0; i < scaled(2000); i++) {
		guest_load(&self->vm, string_in);
		guest_set_mode(&self->vcpu, MODE_LONG);
		if (vcpu_run(&self->vcpu) != KVM_EXIT_IO)
			continue;
		self->vcpu.run->io.count = random_next(&seed);
		self->vcpu.run->io.size = random_next(&seed);
		self->vcpu.run->io.direction = random_next(&seed);
		self->vcpu.run->io.data_offset = random_next(&seed);
		int reason = vcpu_run(&self->vcpu);

		ASSERT_TRUE(reason == KVM_EXIT_IO || reason == KVM_EXIT_HLT) TH_LOG("exit %s (%d)", exit_name(reason), reason);
	}
	/* What the guest got is within its buffer. */
	EXPECT_EQ(0, *(uint32_t *)vm_at(&self->vm, GUEST_FREE + 64 * 4));
}

/* Counts in the arguments of ioctls: checked and used must be one value. */
TEST_F(fetch, ioctl_arguments)
{
	static union {
		struct kvm_cpuid2 cpuid;
		struct kvm_msrs msrs;
		struct kvm_irq_routing routing;
		struct kvm_msr_list list;
		uint64_t bytes[0x4000];
	} shared;
	struct target target = { (void *)&shared, 16, true };
	uint64_t end = now_ns() + scaled(1500) * 1000000;
	pthread_t thread;

	memcpy(&shared, supported_cpuid(), 4096);
	scribbling = true;
	ASSERT_EQ(0, pthread_create(&thread, NULL, scribble, &target));
	while (now_ns() < end) {
		try_ioctl(self->vcpu.fd, KVM_SET_CPUID2, &shared);
		try_ioctl(self->vcpu.fd, KVM_GET_CPUID2, &shared);
		try_ioctl(self->vcpu.fd, KVM_SET_MSRS, &shared);
		try_ioctl(self->vcpu.fd, KVM_GET_MSRS, &shared);
		try_ioctl(self->vm.fd, KVM_SET_GSI_ROUTING, &shared);
		try_ioctl(self->vm.device, KVM_GET_SUPPORTED_CPUID, &shared);
		try_ioctl(self->vm.device, KVM_GET_MSR_INDEX_LIST, &shared);
		try_ioctl(self->vcpu.fd, KVM_SET_SIGNAL_MASK, &shared);
	}
	scribbling = false;
	pthread_join(thread, NULL);
	do_ioctl(self->vcpu.fd, KVM_SET_SIGNAL_MASK, 0);
	EXPECT_EQ(12, try_ioctl(self->vm.device, KVM_GET_API_VERSION, 0));
}

XVM_TEST_MAIN
