// SPDX-License-Identifier: GPL-2.0
/*
 * What the kernel has begun to read or write for a guest ends before a change of the slot returns: from then on the memory is
 * the VMM's alone. Userfaultfd holds the access up.
 */
#include "test.h"
#include "userfault.h"
#include <sys/wait.h>

#define PAGE 4096ul
#define PORT_DATA 0x80

/* A byte from the port to (RDI), by the emulator; and back. */
GUEST_CODE64(ins, mov $PORT_DATA, %dx; insb; GUEST_DONE);
GUEST_CODE64(outs, mov $PORT_DATA, %dx; outsb; GUEST_DONE);

FIXTURE(slot_accesses)
{
	struct vm vm;
	struct vcpu vcpu;
	uint8_t *memory;
	int fd;
	pthread_t runner;
};

static int reason;

static void *run(void *vcpu)
{
	struct kvm_run *exit = ((struct vcpu *)vcpu)->run;

	for (;;) {
		reason = vcpu_run(vcpu);
		if (reason == KVM_EXIT_IO && exit->io.port == PORT_DATA)
			*(uint8_t *)vcpu_io_data(vcpu) = 0xa5;
		else if (reason != KVM_EXIT_MMIO)
			return NULL;
	}
}

FIXTURE_SETUP(slot_accesses)
{
	guest_start(&self->vm, &self->vcpu, ins);
	self->memory = userfault_map(PAGE, &self->fd);
	ASSERT_EQ(0, vm_set_region(&self->vm, 1, 0, GUEST_HIGH, PAGE, self->memory));
}

FIXTURE_TEARDOWN(slot_accesses)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

static void start(FIXTURE_DATA(slot_accesses) *self)
{
	struct kvm_regs regs = vcpu_regs(&self->vcpu);

	regs.rsi = regs.rdi = GUEST_HIGH;
	vcpu_set_regs(&self->vcpu, &regs);
	if (pthread_create(&self->runner, NULL, run, &self->vcpu))
		fatal("thread");
	if (userfault_wait(self->fd, 20000) != self->memory)
		fatal("the guest's byte wasn't accessed: exit %d", reason);
}

/* A change of slot 1, and how far it is. */
struct change {
	struct vm *vm;
	void *memory;
	uint64_t gpa, size;
	uint32_t flags;
	pid_t thread;
	int result;
	bool done;
};

static void *make_change(void *argument)
{
	struct change *change = argument;
	int result;

	__atomic_store_n(&change->thread, syscall(SYS_gettid), __ATOMIC_RELEASE);
	result = vm_set_region(change->vm, 1, change->flags, change->gpa, change->size, change->memory);
	change->result = result;
	__atomic_store_n(&change->done, true, __ATOMIC_RELEASE);
	return NULL;
}

/* Whether a thread of this process sleeps and takes no signal, as one does in a system call that waits for the kernel. */
static bool waits(pid_t thread)
{
	char path[64], state = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", thread);
	file = fopen(path, "r");
	if (file && fscanf(file, "%*d (%*[^)]) %c", &state) != 1)
		state = 0;
	if (file)
		fclose(file);
	return state == 'D';
}

static pthread_t start_change(struct change *change)
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, make_change, change))
		fatal("thread");
	for (int seen = 0; seen < 20 && !__atomic_load_n(&change->done, __ATOMIC_ACQUIRE); ) {
		pid_t id = __atomic_load_n(&change->thread, __ATOMIC_ACQUIRE);

		/* Often enough that it isn't a lock's short wait. */
		seen = id && waits(id) ? seen + 1 : 0;
		usleep(1000);
	}
	return thread;
}

FIXTURE_VARIANT(slot_accesses)
{
	uint64_t gpa, size;
	uint32_t flags;
};

FIXTURE_VARIANT_ADD(slot_accesses, deleted) {};
FIXTURE_VARIANT_ADD(slot_accesses, moved) { .gpa = GUEST_HIGH + 4 * PAGE, .size = PAGE };
FIXTURE_VARIANT_ADD(slot_accesses, logged) { .gpa = GUEST_HIGH, .size = PAGE, .flags = KVM_MEM_LOG_DIRTY_PAGES };

TEST_F(slot_accesses, write_ends_first)
{
	struct change change = {
		.vm = &self->vm, .memory = self->memory, .gpa = variant->gpa, .size = variant->size, .flags = variant->flags,
	};
	pthread_t thread;

	start(self);
	thread = start_change(&change);
	ASSERT_FALSE(__atomic_load_n(&change.done, __ATOMIC_ACQUIRE));
	userfault_resolve(self->fd, self->memory, 0);
	pthread_join(thread, NULL);
	EXPECT_EQ(0, change.result);
	/* It has been written, and nothing comes after it. */
	EXPECT_EQ(0xa5, self->memory[0]);
	pthread_join(self->runner, NULL);
	EXPECT_EQ(KVM_EXIT_IO, reason);
	EXPECT_EQ(PORT_DONE, self->vcpu.run->io.port);
}

TEST_F(slot_accesses, read_ends_first)
{
	struct change change = {
		.vm = &self->vm, .memory = self->memory, .gpa = variant->gpa, .size = variant->size, .flags = variant->flags,
	};
	pthread_t thread;

	guest_load(&self->vm, outs);
	guest_set_mode(&self->vcpu, MODE_LONG);
	start(self);
	thread = start_change(&change);
	ASSERT_FALSE(__atomic_load_n(&change.done, __ATOMIC_ACQUIRE));
	userfault_resolve(self->fd, self->memory, 0x77);
	pthread_join(thread, NULL);
	EXPECT_EQ(0, change.result);
	/* The instruction may look again when the port has been written: then there is no memory. */
	pthread_join(self->runner, NULL);
	EXPECT_EQ(KVM_EXIT_IO, reason);
	EXPECT_EQ(PORT_DONE, self->vcpu.run->io.port);
}

/* Nobody waits for ever when the process is killed. */
TEST_F(slot_accesses, killed)
{
	struct change change = {
		.vm = &self->vm, .memory = self->memory, .gpa = variant->gpa, .size = variant->size, .flags = variant->flags,
	};
	int ready[2], status;
	pid_t child;
	char byte;

	ASSERT_EQ(0, pipe(ready));
	child = fork();
	ASSERT_LE(0, child);
	if (child == 0) {
		/* A VM of its own: this one is of another address space. */
		FIXTURE_DATA(slot_accesses) own;

		guest_start(&own.vm, &own.vcpu, ins);
		own.memory = userfault_map(PAGE, &own.fd);
		if (vm_set_region(&own.vm, 1, 0, GUEST_HIGH, PAGE, own.memory))
			fatal("slot 1");
		start(&own);
		change.vm = &own.vm;
		change.memory = own.memory;
		start_change(&change);
		if (write(ready[1], "", 1) != 1)
			fatal("pipe");
		for (;;)
			pause();
	}
	ASSERT_EQ(1, read(ready[0], &byte, 1));
	ASSERT_EQ(0, kill(child, SIGKILL));
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

XVM_TEST_MAIN
