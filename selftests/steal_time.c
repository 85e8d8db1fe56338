// SPDX-License-Identifier: GPL-2.0
/* Steal time: what a vCPU's thread waits for its CPU, whether it is off its CPU, and the word that its TLB is to be flushed then. */
#include "test.h"

#define MSR_STEAL_TIME 0x4b564d03
#define ENABLED 1
#define OFF 1
#define FLUSH_TLB 2
#define FLAG (GUEST_DATA + 0x800)

struct steal_time {
	uint64_t steal;
	uint32_t version;
	uint32_t flags;
	uint8_t preempted;
	uint8_t pads[3];
	uint32_t pad[11];
};

GUEST_CODE64(tell, 1: out %al, $PORT_SYNC; jmp 1b);

FIXTURE(steal_time)
{
	struct vm vm;
	struct vcpu vcpu;
	volatile struct steal_time *steal;
};

FIXTURE_SETUP(steal_time)
{
	guest_start(&self->vm, &self->vcpu, tell);
	self->steal = vm_at(&self->vm, GUEST_FREE);
}

FIXTURE_TEARDOWN(steal_time)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

/* What the calling thread has waited for a CPU, in ns. */
static uint64_t run_delay(void)
{
	unsigned long long ran, delay = 0;
	FILE *file = fopen("/proc/thread-self/schedstat", "r");

	if (!file || fscanf(file, "%llu %llu", &ran, &delay) != 2)
		fatal("schedstat");
	fclose(file);
	return delay;
}

static volatile int stop;

static void *hog(void *cpu)
{
	pin_to_cpu(0);
	while (!stop)
		;
	return NULL;
}

TEST_F(steal_time, accounted)
{
	uint64_t value = 0, before, after, stolen;
	uint32_t version;
	pthread_t thread;

	pin_to_cpu(0);
	ASSERT_EQ(1, vcpu_set_msr(&self->vcpu, MSR_STEAL_TIME, GUEST_FREE | ENABLED));
	ASSERT_EQ(1, vcpu_get_msr(&self->vcpu, MSR_STEAL_TIME, &value));
	EXPECT_EQ(GUEST_FREE | ENABLED, value);
	self->steal->version = 0x12345;
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	version = self->steal->version;
	EXPECT_EQ(0, version % 2);
	EXPECT_GT(version, 0x12345);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	EXPECT_GT(self->steal->version, version);
	EXPECT_EQ(0, self->steal->flags);
	EXPECT_EQ(0, self->steal->preempted);
	/* Another thread wants the same CPU. */
	before = run_delay();
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	stolen = self->steal->steal;
	after = run_delay();
	stop = 0;
	ASSERT_EQ(0, pthread_create(&thread, NULL, hog, NULL));
	while (run_delay() < after + 50000000)
		sched_yield();
	stop = 1;
	pthread_join(thread, NULL);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	EXPECT_GE(self->steal->steal - stolen, 50000000);
	EXPECT_LE(self->steal->steal - stolen, run_delay() - before);
	/* Turned off it stays. */
	ASSERT_EQ(1, vcpu_set_msr(&self->vcpu, MSR_STEAL_TIME, 0));
	version = self->steal->version;
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	EXPECT_EQ(version, self->steal->version);
}

/* While the guest runs its byte says so, whatever others see. */
GUEST_CODE64(watch, 1: inc %rbx; cmpb $0, GUEST_FREE + 16; jne 9f; cmpl $0, FLAG; je 1b; GUEST_DONE; 9: ud2);

static void *run_pinned(void *vcpu)
{
	pin_to_cpu(0);
	vcpu_run_to_port(vcpu, PORT_DONE);
	return NULL;
}

TEST_F(steal_time, preempted)
{
	volatile uint32_t *flag = vm_at(&self->vm, FLAG);
	unsigned long seen = 0, flushed = 0;
	pthread_t runner, thread;
	uint64_t end;

	guest_load(&self->vm, watch);
	guest_set_mode(&self->vcpu, MODE_LONG);
	ASSERT_EQ(1, vcpu_set_msr(&self->vcpu, MSR_STEAL_TIME, GUEST_FREE | ENABLED));
	stop = 0;
	*flag = 0;
	ASSERT_EQ(0, pthread_create(&runner, NULL, run_pinned, &self->vcpu));
	ASSERT_EQ(0, pthread_create(&thread, NULL, hog, NULL));
	end = now_ns() + 20000000000;
	while (flushed < scaled(50) && now_ns() < end) {
		uint8_t off = OFF;

		if (self->steal->preempted & OFF)
			seen++;
		/* What a guest's other vCPU does in place of an IPI. */
		if (__atomic_compare_exchange_n((uint8_t *)&self->steal->preempted, &off, OFF | FLUSH_TLB, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
			flushed++;
		sched_yield();
	}
	EXPECT_GT(seen, 0);
	EXPECT_EQ(scaled(50), flushed);
	*flag = 1;
	stop = 1;
	pthread_join(thread, NULL);
	pthread_join(runner, NULL);
	EXPECT_EQ(0, self->steal->version % 2);
}

/* Reserved bits; where nothing can be written nothing happens. */
TEST_F(steal_time, bad_addresses)
{
	static const uint64_t addresses[] = { GUEST_MMIO, 0xfee00000, 0x7ffffffff000, 0xffffffffffffffc0, 0x8000000000000000 };
	uint8_t *page = vm_at(&self->vm, GUEST_FREE);

	for (int bit = 1; bit < 6; bit++)
		EXPECT_EQ(0, vcpu_set_msr(&self->vcpu, MSR_STEAL_TIME, GUEST_FREE | ENABLED | 1 << bit));
	memset(page, 0x55, 4096);
	for (int i = 0; i < 5; i++) {
		ASSERT_EQ(1, vcpu_set_msr(&self->vcpu, MSR_STEAL_TIME, addresses[i] | ENABLED));
		vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	}
	/* Without the enable bit. */
	ASSERT_EQ(1, vcpu_set_msr(&self->vcpu, MSR_STEAL_TIME, GUEST_FREE));
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	for (int n = 0; n < 4096; n++)
		ASSERT_EQ(0x55, page[n]);
	/* The last 64 bytes of a page, and no byte before. */
	ASSERT_EQ(1, vcpu_set_msr(&self->vcpu, MSR_STEAL_TIME, (GUEST_FREE + 4032) | ENABLED));
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	EXPECT_EQ(0, page[4032 + 16]);
	EXPECT_EQ(0x55, page[4031]);
	EXPECT_EQ(0x55, page[4032 + 63]);
}

/* A slot that goes while it is in use, with the thread being taken off its CPU all the time; one that is read-only. */
TEST_F(steal_time, slots)
{
	uint8_t *memory = vm_add_memory(&self->vm, 5, GUEST_HIGH, 4096);
	volatile uint32_t *flag = vm_at(&self->vm, FLAG);
	pthread_t runner, thread;
	uint8_t copy[64];

	ASSERT_EQ(1, vcpu_set_msr(&self->vcpu, MSR_STEAL_TIME, GUEST_HIGH | ENABLED));
	guest_load(&self->vm, watch);
	guest_set_mode(&self->vcpu, MODE_LONG);
	*flag = stop = 0;
	ASSERT_EQ(0, pthread_create(&runner, NULL, run_pinned, &self->vcpu));
	ASSERT_EQ(0, pthread_create(&thread, NULL, hog, NULL));
	for (unsigned long n = 0; n < scaled(100); n++) {
		ASSERT_EQ(0, vm_set_region(&self->vm, 5, 0, GUEST_HIGH, 0, memory));
		/* From now on it is no longer the guest's, nor is a write under way that had begun. */
		memcpy(copy, memory, 64);
		usleep(1000);
		ASSERT_EQ(0, memcmp(copy, memory, 64));
		ASSERT_EQ(0, vm_set_region(&self->vm, 5, n % 2 ? KVM_MEM_READONLY : 0, GUEST_HIGH, 4096, memory));
		usleep(1000);
		if (n % 2)
			EXPECT_EQ(0, memcmp(copy, memory, 64));
	}
	*flag = 1;
	stop = 1;
	pthread_join(thread, NULL);
	pthread_join(runner, NULL);
	ASSERT_EQ(0, munmap(memory, 4096));
	guest_load(&self->vm, tell);
	guest_set_mode(&self->vcpu, MODE_LONG);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
}

XVM_TEST_MAIN
