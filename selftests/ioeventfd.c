// SPDX-License-Identifier: GPL-2.0
/* KVM_IOEVENTFD: writes to memory and ports that signal an eventfd, and those that don't. */
#include "eventfds.h"

#define DATAMATCH KVM_IOEVENTFD_FLAG_DATAMATCH
#define PIO KVM_IOEVENTFD_FLAG_PIO
#define DEASSIGN KVM_IOEVENTFD_FLAG_DEASSIGN
#define PORT 0xc10
#define BELL (GUEST_MMIO + 0x100)

FIXTURE(doorbell)
{
	struct vm vm;
	struct vcpu vcpu;
	int fd;
};

FIXTURE_SETUP(doorbell)
{
	self->vm = vm_create();
	self->vcpu = vcpu_create(&self->vm, 0);
	vcpu_set_supported_cpuid(&self->vcpu);
	self->fd = event_new();
}

FIXTURE_TEARDOWN(doorbell)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
	close(self->fd);
}

/* A write of each size to RDI, or port DX, of the value in RAX. */
GUEST_CODE64(memory_writes, mov %al, (%rdi); mov %ax, (%rdi); mov %eax, (%rdi); mov %rax, (%rdi); GUEST_DONE);
GUEST_CODE64(port_writes, out %al, %dx; out %ax, %dx; out %eax, %dx; GUEST_DONE);

#define begin(name, value) do { \
		struct kvm_regs regs_; \
		guest_load(&self->vm, name); \
		guest_set_mode(&self->vcpu, MODE_LONG); \
		regs_ = vcpu_regs(&self->vcpu); \
		regs_.rax = (value); \
		regs_.rdi = BELL; \
		regs_.rsi = GUEST_DATA; \
		regs_.rdx = PORT; \
		vcpu_set_regs(&self->vcpu, &regs_); \
	} while (0)

/* Runs to the end: a bit for each size of write that the VMM was asked to make. */
static unsigned int run_to_end(struct vcpu *vcpu)
{
	unsigned int asked = 0;

	for (;;) {
		int reason = vcpu_run(vcpu);

		if (reason == KVM_EXIT_MMIO && vcpu->run->mmio.is_write && vcpu->run->mmio.phys_addr == BELL)
			asked |= vcpu->run->mmio.len;
		else if (reason == KVM_EXIT_IO && vcpu->run->io.port == PORT && vcpu->run->io.direction == KVM_EXIT_IO_OUT)
			asked |= vcpu->run->io.size;
		else if (reason == KVM_EXIT_IO && vcpu->run->io.port == PORT_DONE)
			return asked;
		else if (reason != -EINTR)
			fatal("exit %s", exit_name(reason));
	}
}

TEST_F(doorbell, lengths)
{
	for (unsigned int length = 0; length <= 8; length = length ? length * 2 : 1) {
		ASSERT_EQ(0, ioeventfd(&self->vm, self->fd, BELL, length, 0, 0));
		begin(memory_writes, 0x1122334455667788);
		EXPECT_EQ(length ? 15 - length : 0, run_to_end(&self->vcpu)) TH_LOG("memory, length %u", length);
		EXPECT_EQ(length ? 1 : 4, event_count(self->fd));
		ASSERT_EQ(0, ioeventfd(&self->vm, self->fd, BELL, length, DEASSIGN, 0));
		ASSERT_EQ(0, ioeventfd(&self->vm, self->fd, PORT, length, PIO, 0));
		begin(port_writes, 0x55667788);
		EXPECT_EQ(length ? 7 & ~length : 0, run_to_end(&self->vcpu)) TH_LOG("ports, length %u", length);
		EXPECT_EQ(length == 8 ? 0 : length ? 1 : 3, event_count(self->fd));
		ASSERT_EQ(0, ioeventfd(&self->vm, self->fd, PORT, length, PIO | DEASSIGN, 0));
	}
	begin(memory_writes, 0);
	EXPECT_EQ(15, run_to_end(&self->vcpu));
	EXPECT_EQ(0, event_count(self->fd));
}

TEST_F(doorbell, values)
{
	int other = event_new();

	/* One for each of two values; the upper bits of the register are no part of the write. */
	ASSERT_EQ(0, ioeventfd(&self->vm, self->fd, BELL, 2, DATAMATCH, 0x7788));
	ASSERT_EQ(0, ioeventfd(&self->vm, other, BELL, 2, DATAMATCH, 0x7789));
	ASSERT_EQ(0, ioeventfd(&self->vm, other, BELL, 8, DATAMATCH, 0x1122334455667788));
	begin(memory_writes, 0x1122334455667788);
	EXPECT_EQ(1 | 4, run_to_end(&self->vcpu));
	EXPECT_EQ(1, event_count(self->fd));
	EXPECT_EQ(1, event_count(other));
	begin(memory_writes, 0x7789);
	EXPECT_EQ(1 | 4 | 8, run_to_end(&self->vcpu));
	EXPECT_EQ(0, event_count(self->fd));
	EXPECT_EQ(1, event_count(other));
	/* A value that no write of two bytes has never rings. */
	ASSERT_EQ(0, ioeventfd(&self->vm, other, PORT, 2, PIO | DATAMATCH, 0x17788));
	begin(port_writes, 0x17788);
	EXPECT_EQ(7, run_to_end(&self->vcpu));
	close(other);
}

/* What drivers do besides MOV, and strings; reads are the VMM's. */
GUEST_CODE64(other_writes, stosl; sub $4, %rdi; mov $1, %ecx; rep movsl; sub $4, %rdi; xchg %eax, (%rdi); orl $1, (%rdi); movl $5, (%rdi);
	GUEST_DONE);
GUEST_CODE64(port_string, mov $3, %ecx; rep outsw; GUEST_DONE);
GUEST_CODE64(read, mov (%rdi), %eax; in %dx, %eax; GUEST_DONE);

TEST_F(doorbell, other_instructions)
{
	int reads = 0, reason;

	ASSERT_EQ(0, ioeventfd(&self->vm, self->fd, BELL, 4, 0, 0));
	ASSERT_EQ(0, ioeventfd(&self->vm, self->fd, PORT, 0, PIO, 0));
	begin(other_writes, 7);
	while ((reason = vcpu_run(&self->vcpu)) == KVM_EXIT_MMIO) {
		EXPECT_FALSE(self->vcpu.run->mmio.is_write);
		reads++;
	}
	EXPECT_EQ(KVM_EXIT_IO, reason);
	EXPECT_EQ(2, reads);
	EXPECT_EQ(5, event_count(self->fd));
	begin(port_string, 0);
	EXPECT_EQ(0, run_to_end(&self->vcpu));
	EXPECT_EQ(3, event_count(self->fd));
	EXPECT_EQ(GUEST_DATA + 6, vcpu_regs(&self->vcpu).rsi);
	begin(read, 0);
	EXPECT_EQ(KVM_EXIT_MMIO, vcpu_run(&self->vcpu));
	EXPECT_EQ(KVM_EXIT_IO, vcpu_run(&self->vcpu));
	EXPECT_EQ(KVM_EXIT_IO_IN, self->vcpu.run->io.direction);
	EXPECT_EQ(0, event_count(self->fd));
}

TEST_F(doorbell, memory_goes_first)
{
	begin(memory_writes, 0x42);
	ASSERT_EQ(0, ioeventfd(&self->vm, self->fd, GUEST_HIGH, 0, 0, 0));
	uint8_t *memory = vm_add_memory(&self->vm, 1, GUEST_HIGH, 4096);
	struct kvm_regs regs = vcpu_regs(&self->vcpu);

	regs.rdi = GUEST_HIGH;
	vcpu_set_regs(&self->vcpu, &regs);
	EXPECT_EQ(0, run_to_end(&self->vcpu));
	EXPECT_EQ(0x42, memory[0]);
	EXPECT_EQ(0, event_count(self->fd));
}

TEST_F(doorbell, conflicts)
{
	int other = event_new();

	ASSERT_EQ(0, ioeventfd(&self->vm, self->fd, BELL, 2, DATAMATCH, 5));
	EXPECT_EQ(-EEXIST, ioeventfd(&self->vm, other, BELL, 2, DATAMATCH, 5));
	EXPECT_EQ(-EEXIST, ioeventfd(&self->vm, other, BELL, 2, 0, 0));
	EXPECT_EQ(-EEXIST, ioeventfd(&self->vm, other, BELL, 0, 0, 0));
	EXPECT_EQ(0, ioeventfd(&self->vm, other, BELL, 2, DATAMATCH, 6));
	EXPECT_EQ(0, ioeventfd(&self->vm, other, BELL, 4, 0, 0));
	EXPECT_EQ(0, ioeventfd(&self->vm, other, BELL, 0, PIO, 0));
	EXPECT_EQ(-EEXIST, ioeventfd(&self->vm, other, BELL, 1, PIO, 0));
	EXPECT_EQ(-ENOENT, ioeventfd(&self->vm, other, BELL, 2, DATAMATCH | DEASSIGN, 5));
	EXPECT_EQ(-ENOENT, ioeventfd(&self->vm, self->fd, BELL, 2, DATAMATCH | DEASSIGN, 6));
	EXPECT_EQ(-ENOENT, ioeventfd(&self->vm, self->fd, BELL, 2, DEASSIGN, 5));
	EXPECT_EQ(-ENOENT, ioeventfd(&self->vm, self->fd, BELL + 1, 2, DATAMATCH | DEASSIGN, 5));
	EXPECT_EQ(-ENOENT, ioeventfd(&self->vm, self->fd, BELL, 2, DATAMATCH | DEASSIGN | PIO, 5));
	EXPECT_EQ(-ENOENT, ioeventfd(&self->vm, self->fd, BELL, 3, DEASSIGN, 5));
	EXPECT_EQ(0, ioeventfd(&self->vm, self->fd, BELL, 2, DATAMATCH | DEASSIGN, 5));
	EXPECT_EQ(-ENOENT, ioeventfd(&self->vm, self->fd, BELL, 2, DATAMATCH | DEASSIGN, 5));
	close(other);
}

TEST_F(doorbell, refusals)
{
	for (unsigned int length = 3; length < 20; length++)
		if (length != 4 && length != 8)
			EXPECT_EQ(-EINVAL, ioeventfd(&self->vm, self->fd, BELL, length, 0, 0));
	EXPECT_EQ(-EINVAL, ioeventfd(&self->vm, self->fd, BELL, 0xffffffff, 0, 0));
	EXPECT_EQ(-EINVAL, ioeventfd(&self->vm, self->fd, BELL, 0x104, 0, 0));
	EXPECT_EQ(-EINVAL, ioeventfd(&self->vm, self->fd, -2ull, 4, 0, 0));
	EXPECT_EQ(-EINVAL, ioeventfd(&self->vm, self->fd, BELL, 0, DATAMATCH, 0));
	EXPECT_EQ(-EINVAL, ioeventfd(&self->vm, self->fd, BELL, 4, 0x10, 0));
	EXPECT_EQ(-EBADF, ioeventfd(&self->vm, -1, BELL, 4, 0, 0));
	EXPECT_EQ(-EBADF, ioeventfd(&self->vm, -1, BELL, 4, DEASSIGN, 0));
	EXPECT_EQ(-EINVAL, ioeventfd(&self->vm, self->vm.fd, BELL, 4, 0, 0));
	EXPECT_EQ(-EFAULT, try_ioctl(self->vm.fd, KVM_IOEVENTFD, 8));
	begin(memory_writes, 0);
	EXPECT_EQ(15, run_to_end(&self->vcpu));
	EXPECT_EQ(0, event_count(self->fd));
}

TEST_F(doorbell, many)
{
	int count = scaled(300);

	for (int i = 0; i < count; i++)
		ASSERT_EQ(0, ioeventfd(&self->vm, self->fd, BELL + 0x1000 + 8 * ((i * 7919) % count), 4, 0, 0));
	ASSERT_EQ(0, ioeventfd(&self->vm, self->fd, BELL, 4, 0, 0));
	begin(memory_writes, 0);
	EXPECT_EQ(1 | 2 | 8, run_to_end(&self->vcpu));
	EXPECT_EQ(1, event_count(self->fd));
	/* The eventfd goes with the VM only: what is closed rings on. */
	close(self->fd);
	begin(memory_writes, 0);
	EXPECT_EQ(1 | 2 | 8, run_to_end(&self->vcpu));
	self->fd = event_new();
}

GUEST_CODE64(keep_writing, 1: mov %eax, (%rdi); out %eax, %dx; dec %rbx; jnz 1b; GUEST_DONE);

struct switcher {
	struct vm *vm;
	int fd;
	volatile bool done;
};

static void *keep_switching(void *data)
{
	struct switcher *switcher = data;

	while (!switcher->done) {
		if (ioeventfd(switcher->vm, switcher->fd, BELL, 4, 0, 0) ||
		    ioeventfd(switcher->vm, switcher->fd, PORT, 0, PIO, 0) ||
		    ioeventfd(switcher->vm, switcher->fd, BELL, 4, DEASSIGN, 0) ||
		    ioeventfd(switcher->vm, switcher->fd, PORT, 0, PIO | DEASSIGN, 0))
			fatal("switching: %m");
	}
	return NULL;
}

/* No write is lost and none counts twice, whenever it meets the change. */
TEST_F(doorbell, races)
{
	struct switcher switcher = { .vm = &self->vm, .fd = self->fd };
	uint64_t asked = 0, count = scaled(20000);
	struct kvm_regs regs;
	pthread_t thread;

	begin(keep_writing, 1);
	regs = vcpu_regs(&self->vcpu);
	regs.rbx = count;
	vcpu_set_regs(&self->vcpu, &regs);
	ASSERT_EQ(0, pthread_create(&thread, NULL, keep_switching, &switcher));
	for (;;) {
		int reason = vcpu_run(&self->vcpu);

		if (reason == KVM_EXIT_IO && self->vcpu.run->io.port == PORT_DONE)
			break;
		ASSERT_TRUE(reason == KVM_EXIT_IO || reason == KVM_EXIT_MMIO);
		asked++;
	}
	switcher.done = true;
	pthread_join(thread, NULL);
	EXPECT_EQ(2 * count, asked + event_count(self->fd));
	TH_LOG("%llu of %llu by exit", (unsigned long long)asked, (unsigned long long)(2 * count));
}

XVM_TEST_MAIN
