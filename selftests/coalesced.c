// SPDX-License-Identifier: GPL-2.0
/* Coalesced I/O: writes that are noted down in a ring, which the VMM writes to as well. */
#include "test.h"

#define PORT 0xc10
#define BELL (GUEST_MMIO + 0x100)
#define NOTES ((4096 - sizeof(struct kvm_coalesced_mmio_ring)) / sizeof(struct kvm_coalesced_mmio))

FIXTURE(ring)
{
	struct vm vm;
	struct vcpu vcpu;
	volatile struct kvm_coalesced_mmio_ring *ring;
};

FIXTURE_SETUP(ring)
{
	int page = device_extension(KVM_CAP_COALESCED_MMIO);

	self->vm = vm_create();
	self->vcpu = vcpu_create(&self->vm, 0);
	vcpu_set_supported_cpuid(&self->vcpu);
	ASSERT_GT(page, 0);
	ASSERT_GE(self->vcpu.run_size, (page + 1) * 4096);
	self->ring = (void *)self->vcpu.run + page * 4096;
}

FIXTURE_TEARDOWN(ring)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

static int zone(struct vm *vm, unsigned long request, uint64_t address, uint32_t size, uint32_t pio)
{
	struct kvm_coalesced_mmio_zone zone = { .addr = address, .size = size, .pio = pio };

	return try_ioctl(vm->fd, request, &zone);
}
#define add(...) zone(&self->vm, KVM_REGISTER_COALESCED_MMIO, __VA_ARGS__)
#define take(...) zone(&self->vm, KVM_UNREGISTER_COALESCED_MMIO, __VA_ARGS__)

/* RBX writes to memory and to a port, of a value that counts. */
GUEST_CODE64(writes, 1: mov %rax, (%rdi); inc %rax; out %ax, %dx; inc %rax; dec %rbx; jnz 1b; GUEST_DONE);

static void begin(struct vm *vm, struct vcpu *vcpu, uint64_t count)
{
	struct kvm_regs regs;

	guest_load(vm, writes);
	guest_set_mode(vcpu, MODE_LONG);
	regs = vcpu_regs(vcpu);
	regs.rbx = count;
	regs.rdi = BELL;
	regs.rdx = PORT;
	vcpu_set_regs(vcpu, &regs);
}

static int exits(struct vcpu *vcpu)
{
	for (int count = 0;; count++) {
		int reason = vcpu_run(vcpu);

		if (reason == KVM_EXIT_IO && vcpu->run->io.port == PORT_DONE)
			return count;
		if (reason != KVM_EXIT_IO && reason != KVM_EXIT_MMIO)
			fatal("exit %s", exit_name(reason));
	}
}

TEST_F(ring, notes)
{
	ASSERT_EQ(0, add(BELL - 8, 16, 0));
	ASSERT_EQ(0, add(PORT, 2, 1));
	begin(&self->vm, &self->vcpu, 60);
	EXPECT_EQ(0, exits(&self->vcpu));
	ASSERT_EQ(0, self->ring->first);
	ASSERT_EQ(120, self->ring->last);
	for (int i = 0; i < 120; i++) {
		volatile struct kvm_coalesced_mmio *note = &self->ring->coalesced_mmio[i];

		EXPECT_EQ(i & 1, note->pio);
		EXPECT_EQ(i & 1 ? PORT : BELL, note->phys_addr);
		EXPECT_EQ(i & 1 ? 2 : 8, note->len);
		EXPECT_EQ(i, i & 1 ? *(uint16_t *)note->data : *(uint64_t *)note->data);
	}
	/* Nobody took them out: 49 more fit, one place stays free, what is beyond is the VMM's. */
	begin(&self->vm, &self->vcpu, 60);
	EXPECT_EQ(120 - (NOTES - 1 - 120), exits(&self->vcpu));
	EXPECT_EQ(NOTES - 1, self->ring->last);
	/* Round the end. */
	self->ring->first = 100;
	begin(&self->vm, &self->vcpu, 40);
	EXPECT_EQ(0, exits(&self->vcpu));
	EXPECT_EQ(NOTES - 1 + 80 - NOTES, self->ring->last);
}

TEST_F(ring, zones)
{
	/* A write that isn't inside as a whole is no part of it. */
	ASSERT_EQ(0, add(BELL + 4, 8, 0));
	ASSERT_EQ(0, add(PORT + 1, 8, 1));
	begin(&self->vm, &self->vcpu, 5);
	EXPECT_EQ(10, exits(&self->vcpu));
	ASSERT_EQ(0, add(0, 0xffffffff, 0));
	begin(&self->vm, &self->vcpu, 5);
	EXPECT_EQ(5, exits(&self->vcpu));
	/* All that the given range is inside of go; ports and memory are apart. */
	ASSERT_EQ(0, add(BELL, 8, 0));
	ASSERT_EQ(0, take(BELL, 8, 1));
	begin(&self->vm, &self->vcpu, 5);
	EXPECT_EQ(5, exits(&self->vcpu));
	ASSERT_EQ(0, take(BELL, 8, 0));
	begin(&self->vm, &self->vcpu, 5);
	EXPECT_EQ(10, exits(&self->vcpu));
	EXPECT_EQ(0, take(BELL, 8, 0));
	EXPECT_EQ(-EINVAL, add(BELL, 8, 2));
	EXPECT_EQ(-EINVAL, take(BELL, 8, 0x80000000));
	EXPECT_EQ(-EFAULT, try_ioctl(self->vm.fd, KVM_REGISTER_COALESCED_MMIO, 8));
	EXPECT_EQ(-EFAULT, try_ioctl(self->vm.fd, KVM_UNREGISTER_COALESCED_MMIO, 8));
}

TEST_F(ring, how_many)
{
	int count = 0, result;

	while ((result = add(BELL + 8 * count, 8, 0)) == 0 && count < 2000)
		count++;
	EXPECT_EQ(-ENOSPC, result);
	EXPECT_LE(900, count);
	EXPECT_EQ(0, add(PORT, 8, 1));
	EXPECT_EQ(0, take(BELL, 8, 0));
	EXPECT_EQ(0, add(BELL, 8, 0));
}

/* The VMM's page is the VMM's: whatever stands in it, nothing but the ring is written, and the guest goes on. */
TEST_F(ring, hostile_indices)
{
	static const uint32_t values[] = { NOTES, NOTES - 1, NOTES + 1, 0x7fffffff, 0x80000000, 0xffffffff, 0 };

	ASSERT_EQ(0, add(BELL, 8, 0));
	for (int i = 0; i < 7; i++) {
		for (int j = 0; j < 7; j++) {
			self->ring->first = values[i];
			self->ring->last = values[j];
			begin(&self->vm, &self->vcpu, 2);
			/* Ports are no zone. */
			int count = exits(&self->vcpu);

			EXPECT_TRUE(values[j] >= NOTES ? count == 4 : count >= 2 && count <= 4) TH_LOG("%d exits", count);
			EXPECT_TRUE(self->ring->last < NOTES || self->ring->last == values[j]);
		}
	}
}

/* The ring is one for all vCPUs. */
TEST_F(ring, is_shared)
{
	struct vcpu other = vcpu_create(&self->vm, 1);
	volatile struct kvm_coalesced_mmio_ring *ring = (void *)other.run + ((char *)self->ring - (char *)self->vcpu.run);

	vcpu_set_supported_cpuid(&other);
	self->ring->first = self->ring->last = 7;
	EXPECT_EQ(7, ring->last);
	ASSERT_EQ(0, add(BELL, 8, 0));
	begin(&self->vm, &other, 1);
	EXPECT_EQ(1, exits(&other));
	EXPECT_EQ(8, self->ring->last);
	/* A mapping ends behind it. */
	EXPECT_EQ(MAP_FAILED, mmap(NULL, 4096, PROT_READ, MAP_SHARED, other.fd, other.run_size));
	EXPECT_EQ(MAP_FAILED, mmap(NULL, 2 * 4096, PROT_READ, MAP_SHARED, other.fd, other.run_size - 4096));
	vcpu_free(&other);
}

XVM_TEST_MAIN
