// SPDX-License-Identifier: GPL-2.0
/* Dirty rings: KVM_CAP_DIRTY_LOG_RING and _ACQ_REL, KVM_RESET_DIRTY_RINGS, KVM_EXIT_DIRTY_RING_FULL. */
#include "dirty.h"

#define MIB (1024 * 1024ul)
#define SIZE (4 * MIB)
#define PAGES (SIZE / PAGE)
#define RING 4096u	/* bytes */
#define ENTRIES (RING / sizeof(struct kvm_dirty_gfn))
#define RESERVED 64

/* Copies RCX words from a device's memory at RSI to RDI. */
GUEST_CODE64(emulated, rep movsq; GUEST_SYNC);

FIXTURE(dirty_ring)
{
	struct vm vm;
	struct vcpu vcpu;
	uint8_t *memory;
	struct kvm_dirty_gfn *ring;
	unsigned int next;	/* entry to be harvested */
};

static int enable_ring(struct vm *vm, uint32_t cap, uint64_t size)
{
	struct kvm_enable_cap request = { .cap = cap, .args = { size } };

	return try_ioctl(vm->fd, KVM_ENABLE_CAP, &request);
}

static void *map_ring(struct vcpu *vcpu, int protection, int flags, size_t size)
{
	return mmap(NULL, size, protection, flags, vcpu->fd, KVM_DIRTY_LOG_PAGE_OFFSET * PAGE);
}

FIXTURE_SETUP(dirty_ring)
{
	self->vm = vm_create();
	ASSERT_EQ(0, enable_ring(&self->vm, KVM_CAP_DIRTY_LOG_RING, RING));
	self->vcpu = vcpu_create(&self->vm, 0);
	vcpu_set_supported_cpuid(&self->vcpu);
	guest_load(&self->vm, touch);
	guest_set_mode(&self->vcpu, MODE_LONG);
	self->memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->memory);
	ASSERT_EQ(0, vm_set_region(&self->vm, 1, KVM_MEM_LOG_DIRTY_PAGES, GUEST_HIGH, SIZE, self->memory));
	self->ring = map_ring(&self->vcpu, PROT_READ | PROT_WRITE, MAP_SHARED, RING);
	ASSERT_NE(MAP_FAILED, self->ring);
	self->next = 0;
}

FIXTURE_TEARDOWN(dirty_ring)
{
	munmap(self->ring, RING);
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

static int reset(FIXTURE_DATA(dirty_ring) *self)
{
	return try_ioctl(self->vm.fd, KVM_RESET_DIRTY_RINGS, 0);
}

/* The next entry, which is then harvested; NULL if there is none. */
static struct kvm_dirty_gfn *harvest(FIXTURE_DATA(dirty_ring) *self)
{
	struct kvm_dirty_gfn *entry = self->ring + self->next % ENTRIES;

	if (__atomic_load_n(&entry->flags, __ATOMIC_ACQUIRE) != KVM_DIRTY_GFN_F_DIRTY)
		return NULL;
	__atomic_store_n(&entry->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
	self->next++;
	return entry;
}

/* The guest writes to pages, which the ring then says in their order. */
static void expect_touched(struct __test_metadata *_metadata, FIXTURE_DATA(dirty_ring) *self, uint64_t page, uint64_t step, uint64_t count)
{
	dirty_set_touch(&self->vcpu, page, step, count);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	for (uint64_t i = 0; i < count; i++) {
		struct kvm_dirty_gfn *entry = harvest(self);

		ASSERT_NE(NULL, entry);
		EXPECT_EQ(1, entry->slot);
		EXPECT_EQ(page + i * step, entry->offset);
	}
	EXPECT_EQ(NULL, harvest(self));
}

TEST_F(dirty_ring, entries_in_order)
{
	for (int round = 0; round < 5; round++) {
		expect_touched(_metadata, self, 3, 5, 100);
		EXPECT_EQ(100, reset(self));
		EXPECT_EQ(0, reset(self));
	}
	/* What was not reset is still writable, and not told again. */
	expect_touched(_metadata, self, 0, 1, 10);
	dirty_set_touch(&self->vcpu, 0, 1, 10);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	EXPECT_EQ(NULL, harvest(self));
	EXPECT_EQ(10, reset(self));
	expect_touched(_metadata, self, 0, 1, 10);
}

TEST_F(dirty_ring, full)
{
	unsigned int count = 0;

	dirty_set_touch(&self->vcpu, 0, 1, PAGES);
	for (int round = 0; round < 3; round++) {
		vcpu_run_to(&self->vcpu, KVM_EXIT_DIRTY_RING_FULL);
		vcpu_run_to(&self->vcpu, KVM_EXIT_DIRTY_RING_FULL);
		/* Harvested is not yet reset. */
		for (int i = 0; i < ENTRIES - RESERVED; i++, count++) {
			struct kvm_dirty_gfn *entry = harvest(self);

			ASSERT_NE(NULL, entry);
			/* The write that filled the ring had not been made when the vCPU was stopped: it comes again. */
			if (i == 0 && round && entry->offset == count - 1)
				count--;
			ASSERT_EQ(count, entry->offset);
		}
		EXPECT_EQ(NULL, harvest(self));
		vcpu_run_to(&self->vcpu, KVM_EXIT_DIRTY_RING_FULL);
		ASSERT_EQ(ENTRIES - RESERVED, reset(self));
	}
	/* One entry is room enough to go on. */
	vcpu_run_to(&self->vcpu, KVM_EXIT_DIRTY_RING_FULL);
	EXPECT_NE(NULL, harvest(self));
	ASSERT_EQ(1, reset(self));
	vcpu_run_to(&self->vcpu, KVM_EXIT_DIRTY_RING_FULL);
}

/* One entry for a page that the emulator writes word by word. */
TEST_F(dirty_ring, emulated_writes)
{
	struct kvm_regs regs = vcpu_regs(&self->vcpu);
	struct kvm_dirty_gfn *entry;
	int reason;

	guest_load(&self->vm, emulated);
	regs.rip = GUEST_CODE;
	regs.rsi = GUEST_MMIO;
	regs.rdi = GUEST_HIGH + 7 * PAGE - 16;
	regs.rcx = 20;
	vcpu_set_regs(&self->vcpu, &regs);
	while ((reason = vcpu_run(&self->vcpu)) == KVM_EXIT_MMIO)
		memset(self->vcpu.run->mmio.data, 0xa5, 8);
	ASSERT_EQ(KVM_EXIT_IO, reason);
	entry = harvest(self);
	ASSERT_NE(NULL, entry);
	EXPECT_EQ(6, entry->offset);
	for (uint64_t last = 6; (entry = harvest(self)); last = entry->offset)
		EXPECT_TRUE(entry->offset == 7 || entry->offset == last);
	EXPECT_EQ(0xa5a5a5a5a5a5a5a5, *(uint64_t *)(self->memory + 7 * PAGE + 8));
}

TEST_F(dirty_ring, sizes)
{
	const uint32_t largest = device_extension(KVM_CAP_DIRTY_LOG_RING);
	struct vm vm = vm_create();
	struct vcpu vcpu;
	void *ring;

	EXPECT_EQ(1 << 20, largest);
	EXPECT_EQ(largest, device_extension(KVM_CAP_DIRTY_LOG_RING_ACQ_REL));
	EXPECT_EQ(-EINVAL, try_ioctl(vm.fd, KVM_RESET_DIRTY_RINGS, 0));
	EXPECT_EQ(-EINVAL, enable_ring(&vm, KVM_CAP_DIRTY_LOG_RING, 0));
	EXPECT_EQ(-EINVAL, enable_ring(&vm, KVM_CAP_DIRTY_LOG_RING, PAGE / 2));
	EXPECT_EQ(-EINVAL, enable_ring(&vm, KVM_CAP_DIRTY_LOG_RING, 3 * PAGE));
	EXPECT_EQ(-EINVAL, enable_ring(&vm, KVM_CAP_DIRTY_LOG_RING, largest - 1));
	EXPECT_EQ(-E2BIG, enable_ring(&vm, KVM_CAP_DIRTY_LOG_RING, largest * 2));
	EXPECT_EQ(-E2BIG, enable_ring(&vm, KVM_CAP_DIRTY_LOG_RING, 1u << 31));
	EXPECT_EQ(0, enable_ring(&vm, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, largest));
	EXPECT_EQ(-EINVAL, enable_ring(&vm, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, largest));
	EXPECT_EQ(0, try_ioctl(vm.fd, KVM_RESET_DIRTY_RINGS, 0));
	vcpu = vcpu_create(&vm, 0);
	ring = map_ring(&vcpu, PROT_READ | PROT_WRITE, MAP_SHARED, largest);
	ASSERT_NE(MAP_FAILED, ring);
	*(uint8_t *)(ring + largest - 1) = 1;
	munmap(ring, largest);
	EXPECT_EQ(0, try_ioctl(vm.fd, KVM_RESET_DIRTY_RINGS, 0));
	vcpu_free(&vcpu);
	vm_free(&vm);
	/* Too late with a vCPU. */
	vm = vm_create();
	vcpu = vcpu_create(&vm, 0);
	EXPECT_EQ(-EINVAL, enable_ring(&vm, KVM_CAP_DIRTY_LOG_RING, RING));
	vcpu_free(&vcpu);
	vm_free(&vm);
}

TEST_F(dirty_ring, instead_of_bitmaps)
{
	uint64_t bitmap[PAGES / 64];
	struct kvm_dirty_log log = { .slot = 1, .dirty_bitmap = bitmap };
	struct kvm_clear_dirty_log clear = { .slot = 1, .num_pages = 64, .dirty_bitmap = bitmap };

	EXPECT_EQ(-ENXIO, try_ioctl(self->vm.fd, KVM_GET_DIRTY_LOG, &log));
	EXPECT_EQ(-ENXIO, try_ioctl(self->vm.fd, KVM_CLEAR_DIRTY_LOG, &clear));
	EXPECT_EQ(MAP_FAILED, map_ring(&self->vcpu, PROT_READ, MAP_PRIVATE, RING));
	EXPECT_EQ(MAP_FAILED, map_ring(&self->vcpu, PROT_READ | PROT_EXEC, MAP_SHARED, RING));
	EXPECT_EQ(MAP_FAILED, map_ring(&self->vcpu, PROT_READ | PROT_EXEC, MAP_PRIVATE, RING));
}

static volatile bool working;

static void *run_guest(void *argument)
{
	struct vcpu *vcpu = argument;

	let_signal_interrupt(SIGUSR1);
	while (working) {
		int reason = vcpu_run(vcpu);

		if (reason == KVM_EXIT_DIRTY_RING_FULL)
			sched_yield();
		else if (reason != -EINTR && reason != -EAGAIN)
			fatal("exit %s (%d)", exit_name(reason), reason);
	}
	return NULL;
}

static void start_scribbling(FIXTURE_DATA(dirty_ring) *self, pthread_t *thread)
{
	struct kvm_regs regs = vcpu_regs(&self->vcpu);

	guest_load(&self->vm, scribble);
	regs.rip = GUEST_CODE;
	regs.rax = random_seed() | 1;
	regs.rsi = GUEST_HIGH;
	regs.rdi = SIZE / 8 - 1;
	vcpu_set_regs(&self->vcpu, &regs);
	working = true;
	if (pthread_create(thread, NULL, run_guest, &self->vcpu))
		fatal("no thread");
}

static void stop_guest(FIXTURE_DATA(dirty_ring) *self, pthread_t thread)
{
	working = false;
	self->vcpu.run->immediate_exit = 1;
	pthread_kill(thread, SIGUSR1);
	pthread_join(thread, NULL);
}

/* Takes some entries, resets, and only then copies what they say. */
static unsigned int collect(FIXTURE_DATA(dirty_ring) *self, uint8_t *copy)
{
	uint64_t pages[ENTRIES];
	struct kvm_dirty_gfn *entry;
	unsigned int count = 0;
	int result;

	while (count < ENTRIES && (entry = harvest(self)))
		pages[count++] = entry->offset;
	result = reset(self);
	if (result != count)
		fatal("%d entries reset, %u harvested", result, count);
	for (unsigned int i = 0; i < count; i++) {
		if (pages[i] >= PAGES)
			fatal("page %#lx", pages[i]);
		memcpy(copy + pages[i] * PAGE, self->memory + pages[i] * PAGE, PAGE);
	}
	return count;
}

TEST_F(dirty_ring, nothing_lost)
{
	uint8_t *copy = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unsigned long pages = 0;
	pthread_t guest;
	uint64_t end;

	start_scribbling(self, &guest);
	for (end = now_ns() + scaled(2500) * 1000000; now_ns() < end; ) {
		unsigned int count = collect(self, copy);

		pages += count;
		if (!count)
			sched_yield();
	}
	stop_guest(self, guest);
	pages += collect(self, copy);
	TH_LOG("%lu pages, %llu writes", pages, vcpu_regs(&self->vcpu).rdx);
	EXPECT_GT(pages, ENTRIES);
	for (int i = 0; i < PAGES; i++) {
		ASSERT_EQ(0, memcmp(copy + i * PAGE, self->memory + i * PAGE, PAGE)) TH_LOG("page %d", i);
	}
}

/* A VMM that writes anything into the ring hurts itself alone. */
TEST_F(dirty_ring, hostile_contents)
{
	uint64_t seed = random_seed(), *words = (uint64_t *)self->ring;
	unsigned long resets = 0;
	pthread_t guest;
	uint64_t end;

	/* Entries that were never there cannot be reset. */
	for (int i = 0; i < ENTRIES; i++)
		self->ring[i].flags = ~0u;
	EXPECT_EQ(0, reset(self));
	start_scribbling(self, &guest);
	for (end = now_ns() + scaled(1500) * 1000000; now_ns() < end; ) {
		for (int i = 0; i < 100; i++)
			words[random_next(&seed) % (RING / 8)] = random_next(&seed) >> random_next(&seed) % 64;
		if (random_next(&seed) % 8 == 0)
			memset(self->ring, 0xff, RING);
		resets += reset(self);
	}
	stop_guest(self, guest);
	TH_LOG("%lu entries", resets);
	/* Whole again, with a well-behaved one: at most all that the ring has is to be reset. */
	for (int i = 0; i < ENTRIES; i++)
		self->ring[i].flags = KVM_DIRTY_GFN_F_RESET;
	EXPECT_GE(ENTRIES, reset(self));
	memset(self->ring, 0, RING);
	guest_load(&self->vm, touch);
	self->vcpu.run->immediate_exit = 0;
	dirty_set_touch(&self->vcpu, 0, 1, 100);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
}

XVM_TEST_MAIN
