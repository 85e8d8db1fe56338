// SPDX-License-Identifier: GPL-2.0
/*
 * Asynchronous page faults: a guest whose memory has to be brought in from elsewhere, which userfaultfd does as slowly as the test
 * wants, goes on with something else, or is halted until an interrupt comes.
 */
#include "apic.h"
#include "userfault.h"
#include <sys/wait.h>

#define MSR_EN 0x4b564d02
#define MSR_INT 0x4b564d06
#define MSR_ACK 0x4b564d07
#define ENABLED 1
#define ALWAYS 2
#define BY_INTERRUPT 8
#define ON (GUEST_FREE | ENABLED | BY_INTERRUPT | ALWAYS)
#define VECTOR 0x40
#define OTHER_VECTOR 0x50
#define PAGE 4096ul
#define PAGES 100
#define COUNT (GUEST_DATA + 0x800)
#define ARRIVED (GUEST_DATA + 0x808)
#define TOLD (GUEST_DATA + 0x810)
#define TOKENS (GUEST_DATA + 0x818)
#define EVERYONE 0xffffffff

struct apf_data {
	uint32_t flags;
	uint32_t token;
};

/* With interrupts on: a word at RSI, again and again. */
GUEST_CODE64(touch, mov $APIC, %r14d; sti; nop; 1: mov (%rsi), %rbx; nop; END_OF_INTERRUPT; GUEST_SYNC; jmp 1b);
/* The same with interrupts off. */
GUEST_CODE64(touch_off, 1: mov (%rsi), %rbx; GUEST_SYNC; jmp 1b);

FIXTURE(async_pf)
{
	struct vm vm;
	struct vcpu vcpu;
	uint8_t *memory;
	int fd;
	volatile struct apf_data *data;
	volatile struct report *report;
	pthread_t thread;
};

static void make(FIXTURE_DATA(async_pf) *self)
{
	struct kvm_lapic_state lapic;
	uint32_t enabled = 0x1ff;

	self->vm = vm_create();
	vm_create_irqchip(&self->vm);
	self->vcpu = vcpu_create(&self->vm, 0);
	vcpu_set_supported_cpuid(&self->vcpu);
	do_ioctl(self->vcpu.fd, KVM_GET_LAPIC, &lapic);
	memcpy(lapic.regs + APIC_SVR, &enabled, sizeof(enabled));
	do_ioctl(self->vcpu.fd, KVM_SET_LAPIC, &lapic);
	self->memory = userfault_map(PAGES * PAGE, &self->fd);
	if (vm_set_region(&self->vm, 1, 0, GUEST_HIGH, PAGES * PAGE, self->memory))
		fatal("slot 1");
	self->data = vm_at(&self->vm, GUEST_FREE);
	self->report = guest_report(&self->vm);
}

FIXTURE_SETUP(async_pf)
{
	if (!device_extension(KVM_CAP_ASYNC_PF_INT))
		SKIP(return, "no asynchronous page faults");
	make(self);
}

FIXTURE_TEARDOWN(async_pf)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

#define begin(name, at) do { \
	struct kvm_regs regs_; \
	guest_load(&self->vm, name); \
	guest_set_mode(&self->vcpu, MODE_LONG); \
	regs_ = vcpu_regs(&self->vcpu); \
	regs_.rsi = (at); \
	vcpu_set_regs(&self->vcpu, &regs_); \
} while (0)

/* Runs the vCPU once, in a thread. */
static volatile int reason;
static volatile bool over;

static void *run_once(void *vcpu)
{
	reason = vcpu_run(vcpu);
	over = true;
	return NULL;
}

static void start_run(FIXTURE_DATA(async_pf) *self)
{
	over = false;
	if (pthread_create(&self->thread, NULL, run_once, &self->vcpu))
		fatal("thread");
}

static int end_run(FIXTURE_DATA(async_pf) *self)
{
	pthread_join(self->thread, NULL);
	return reason;
}

/* It was an exit of the exception handlers. */
static bool took(FIXTURE_DATA(async_pf) *self, int result, uint8_t vector)
{
	return result == KVM_EXIT_IO && self->vcpu.run->io.port == PORT_EXCEPTION && self->report->vector == vector;
}

static void acknowledge(FIXTURE_DATA(async_pf) *self)
{
	self->data->token = 0;
	if (vcpu_set_msr(&self->vcpu, MSR_ACK, 1) != 1)
		fatal("MSR_KVM_ASYNC_PF_ACK");
}

/* The guest is told, and who waits for what nobody brings is woken. */
static void turn_on(FIXTURE_DATA(async_pf) *self)
{
	if (vcpu_set_msr(&self->vcpu, MSR_INT, VECTOR) != 1 || vcpu_set_msr(&self->vcpu, MSR_EN, ON) != 1)
		fatal("MSR_KVM_ASYNC_PF_EN");
	self->data->flags = self->data->token = 0;
	begin(touch, GUEST_FREE + 0x100);
	if (!took(self, vcpu_run(&self->vcpu), VECTOR) || self->data->token != EVERYONE)
		fatal("nobody was woken");
	acknowledge(self);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
}

static void set_rsi(FIXTURE_DATA(async_pf) *self, uint64_t at)
{
	struct kvm_regs regs = vcpu_regs(&self->vcpu);

	regs.rsi = at;
	vcpu_set_regs(&self->vcpu, &regs);
}

TEST_F(async_pf, told)
{
	uint32_t token, last = 0;

	turn_on(self);
	for (int page = 0; page < 4; page++) {
		void *where = self->memory + page * PAGE;

		set_rsi(self, GUEST_HIGH + page * PAGE);
		ASSERT_TRUE(took(self, vcpu_run(&self->vcpu), 14));
		EXPECT_EQ(1, self->data->flags);
		EXPECT_EQ(0, self->report->error);
		token = self->report->cr2;
		EXPECT_NE(0, token);
		EXPECT_NE(last, token);
		EXPECT_EQ(0, self->data->token);
		last = token;
		self->data->flags = 0;
		ASSERT_EQ(where, userfault_wait(self->fd, 20000));
		/* Who tries again regardless is halted until it is there. */
		start_run(self);
		usleep(20000);
		ASSERT_FALSE(over);
		userfault_resolve(self->fd, where, 0x10 + page);
		ASSERT_TRUE(took(self, end_run(self), VECTOR));
		EXPECT_EQ(token, self->data->token);
		EXPECT_EQ(0, self->data->flags);
		acknowledge(self);
		vcpu_run_to_port(&self->vcpu, PORT_SYNC);
		EXPECT_EQ(0x1010101010101010 + page * 0x101010101010101, vcpu_regs(&self->vcpu).rbx);
		/* There is no second word of it. */
		vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	}
}

/* After a #PF the guest counts, until the interrupt comes. */
GUEST_CODE64(count, mov $APIC, %r14d; mov $(GUEST_AT(count, 2f)), %eax; mov %rax, GUEST_REPORT + REPORT_FIXUP; sti; nop; mov (%rsi), %rbx; ud2;
	2: cmpb $VECTOR, GUEST_REPORT + REPORT_VECTOR; je 4f; 3: incq COUNT; jmp 3b; 4: movq $0, GUEST_REPORT + REPORT_FIXUP; GUEST_DONE);

TEST_F(async_pf, goes_on)
{
	volatile uint64_t *count = vm_at(&self->vm, COUNT);
	uint64_t end = now_ns() + 20000000000, before;

	turn_on(self);
	*count = 0;
	begin(count, GUEST_HIGH);
	start_run(self);
	ASSERT_EQ(self->memory, userfault_wait(self->fd, 20000));
	while (!*count && now_ns() < end)
		sched_yield();
	before = *count;
	while (*count == before && now_ns() < end)
		sched_yield();
	EXPECT_LT(before, *count);
	ASSERT_FALSE(over);
	userfault_resolve(self->fd, self->memory, 1);
	ASSERT_EQ(KVM_EXIT_IO, end_run(self));
	EXPECT_EQ(PORT_DONE, self->vcpu.run->io.port);
	EXPECT_EQ(self->report->cr2, self->data->token);
}

static void send_interrupt(FIXTURE_DATA(async_pf) *self)
{
	struct kvm_msi msi = { .address_lo = APIC, .data = OTHER_VECTOR };

	if (try_ioctl(self->vm.fd, KVM_SIGNAL_MSI, &msi) <= 0)
		fatal("KVM_SIGNAL_MSI");
}

/* A guest that knows nothing of it takes interrupts while it waits, and its VMM signals. */
TEST_F(async_pf, halted)
{
	struct kvm_mp_state state;

	let_signal_interrupt(SIGUSR1);
	begin(touch, GUEST_HIGH);
	start_run(self);
	ASSERT_EQ(self->memory, userfault_wait(self->fd, 20000));
	ASSERT_FALSE(over);
	send_interrupt(self);
	ASSERT_TRUE(took(self, end_run(self), OTHER_VECTOR));
	for (int round = 0; round < 3; round++) {
		start_run(self);
		usleep(20000);
		ASSERT_FALSE(over);
		while (!over) {
			pthread_kill(self->thread, SIGUSR1);
			usleep(1000);
		}
		ASSERT_EQ(-EINTR, end_run(self));
		do_ioctl(self->vcpu.fd, KVM_GET_MP_STATE, &state);
		EXPECT_EQ(KVM_MP_STATE_RUNNABLE, state.mp_state);
	}
	start_run(self);
	userfault_resolve(self->fd, self->memory, 0x66);
	ASSERT_EQ(KVM_EXIT_IO, end_run(self));
	ASSERT_EQ(PORT_SYNC, self->vcpu.run->io.port);
	EXPECT_EQ(0x6666666666666666, vcpu_regs(&self->vcpu).rbx);
}

/* Who can take no interrupt waits, and the others aren't told where they don't want to be. */
TEST_F(async_pf, waits)
{
	turn_on(self);
	begin(touch_off, GUEST_HIGH);
	start_run(self);
	ASSERT_EQ(self->memory, userfault_wait(self->fd, 20000));
	usleep(20000);
	ASSERT_FALSE(over);
	userfault_resolve(self->fd, self->memory, 2);
	ASSERT_EQ(KVM_EXIT_IO, end_run(self));
	EXPECT_EQ(PORT_SYNC, self->vcpu.run->io.port);
	EXPECT_EQ(0, self->data->flags);
	/* At privilege level 0 without the bit for it. */
	ASSERT_EQ(1, vcpu_set_msr(&self->vcpu, MSR_EN, ON & ~ALWAYS));
	begin(touch, GUEST_HIGH);
	ASSERT_TRUE(took(self, vcpu_run(&self->vcpu), VECTOR));
	EXPECT_EQ(EVERYONE, self->data->token);
	acknowledge(self);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
	set_rsi(self, GUEST_HIGH + PAGE);
	start_run(self);
	ASSERT_EQ(self->memory + PAGE, userfault_wait(self->fd, 20000));
	usleep(20000);
	ASSERT_FALSE(over);
	userfault_resolve(self->fd, self->memory + PAGE, 3);
	ASSERT_EQ(KVM_EXIT_IO, end_run(self));
	EXPECT_EQ(PORT_SYNC, self->vcpu.run->io.port);
	EXPECT_EQ(0, self->data->flags);
	EXPECT_EQ(0, self->data->token);
}

/*
 * All pages one after the other, those that are missing later: TOLD is how many, TOKENS the sum of their tokens less those that have
 * arrived, of which ARRIVED is the number. Then all again, which are summed up in RBX. The labels 6 and 7 are handlers.
 */
GUEST_CODE64(many, mov $APIC, %r14d; mov $GUEST_HIGH, %r12d; sti; nop;
	1: mov (%r12), %rax; 2: add $0x1000, %r12; cmp $(GUEST_HIGH + PAGES * 0x1000), %r12; jb 1b;
	3: cli; mov ARRIVED, %rax; cmp TOLD, %rax; je 4f; sti; hlt; jmp 3b;
	4: sti; xor %ebx, %ebx; mov $GUEST_HIGH, %r12d;
	5: add (%r12), %rbx; add $0x1000, %r12; cmp $(GUEST_HIGH + PAGES * 0x1000), %r12; jb 5b; GUEST_DONE;
	.globl many_fault, many_arrival;
	many_fault: movl $0, GUEST_FREE; mov %cr2, %rax; add %rax, TOKENS; incq TOLD; add $8, %rsp; movq $(GUEST_AT(many, 2b)), (%rsp); iretq;
	many_arrival: push %rax; push %rcx; push %rdx; mov GUEST_FREE + 4, %eax; sub %rax, TOKENS; incq ARRIVED; movl $0, GUEST_FREE + 4;
	END_OF_INTERRUPT; mov $MSR_ACK, %ecx; mov $1, %eax; xor %edx, %edx; wrmsr; pop %rdx; pop %rcx; pop %rax; iretq);
extern const uint8_t many_fault[], many_arrival[];

/* An interrupt gate's offset: code of the fragment. */
static void set_gate(struct vm *vm, uint8_t vector, uint64_t offset)
{
	uint16_t *gate = vm_at(vm, GUEST_IDT + vector * 16);

	gate[0] = offset;
	gate[3] = offset >> 16;
}

struct resolver {
	int fd;
	volatile bool stop;
	uint64_t seed;
	unsigned int most;
};

/* Brings pages in, some at a time and in no order. */
static void *resolve(void *argument)
{
	struct resolver *resolver = argument;
	void *waiting[PAGES];
	unsigned int count = 0;

	while (!resolver->stop) {
		void *page = count < PAGES ? userfault_wait(resolver->fd, 20) : NULL;

		if (page) {
			waiting[count++] = page;
			resolver->most = count > resolver->most ? count : resolver->most;
		}
		while (count && (!page || random_next(&resolver->seed) % 40 == 0)) {
			unsigned int n = random_next(&resolver->seed) % count;

			userfault_resolve(resolver->fd, waiting[n], 1);
			waiting[n] = waiting[--count];
		}
	}
	return NULL;
}

TEST_F(async_pf, many)
{
	volatile uint64_t *told = vm_at(&self->vm, TOLD), *arrived = vm_at(&self->vm, ARRIVED), *tokens = vm_at(&self->vm, TOKENS);
	struct resolver resolver = { .fd = self->fd, .seed = random_seed() };
	unsigned long sum = 0;
	pthread_t thread;

	turn_on(self);
	ASSERT_EQ(0, pthread_create(&thread, NULL, resolve, &resolver));
	for (int round = 0; round < 4; round++) {
		*told = *arrived = *tokens = 0;
		madvise(self->memory, PAGES * PAGE, MADV_DONTNEED);
		begin(many, 0);
		set_gate(&self->vm, 14, GUEST_CODE + (many_fault - guest_many));
		set_gate(&self->vm, VECTOR, GUEST_CODE + (many_arrival - guest_many));
		vcpu_run_to_port(&self->vcpu, PORT_DONE);
		EXPECT_EQ(PAGES * 0x101010101010101, vcpu_regs(&self->vcpu).rbx);
		EXPECT_EQ(*told, *arrived);
		EXPECT_EQ(0, *tokens);
		EXPECT_EQ(0, self->data->token);
		sum += *told;
	}
	resolver.stop = true;
	pthread_join(thread, NULL);
	TH_LOG("%lu times told, %u pages at a time", sum, resolver.most);
	EXPECT_LT(0, sum);
	EXPECT_LT(1, resolver.most);
}

/* Turned off nothing comes any more; turned on again everyone is woken. */
TEST_F(async_pf, turned_off)
{
	turn_on(self);
	set_rsi(self, GUEST_HIGH);
	ASSERT_TRUE(took(self, vcpu_run(&self->vcpu), 14));
	ASSERT_EQ(self->memory, userfault_wait(self->fd, 20000));
	ASSERT_EQ(1, vcpu_set_msr(&self->vcpu, MSR_EN, 0));
	self->data->flags = 0;
	start_run(self);
	usleep(20000);
	userfault_resolve(self->fd, self->memory, 5);
	ASSERT_EQ(KVM_EXIT_IO, end_run(self));
	EXPECT_EQ(PORT_SYNC, self->vcpu.run->io.port);
	EXPECT_EQ(0, self->data->token);
	turn_on(self);
	set_rsi(self, GUEST_HIGH);
	vcpu_run_to_port(&self->vcpu, PORT_SYNC);
}

/* Who goes leaves nothing behind but the page, and waits for nobody. */
TEST_F(async_pf, outlived)
{
	for (int round = 0; round < 20; round++) {
		FIXTURE_DATA(async_pf) own;

		make(&own);
		turn_on(&own);
		for (int page = 0; page < 5; page++) {
			set_rsi(&own, GUEST_HIGH + page * PAGE);
			reason = vcpu_run(&own.vcpu);
			ASSERT_TRUE(took(&own, reason, 14)) TH_LOG("round %d page %d: %d port %x vector %ld", round, page, reason, own.vcpu.run->io.port, own.report->vector);
			own.data->flags = 0;
			/* Something else instead of the handler's end. */
			guest_set_mode(&own.vcpu, MODE_LONG);
		}
		vcpu_free(&own.vcpu);
		vm_free(&own.vm);
		for (int page = 0; page < 5 && round % 2; page++) {
			void *where = userfault_wait(own.fd, 20000);

			ASSERT_NE(NULL, where);
			userfault_resolve(own.fd, where, 1);
		}
		close(own.fd);
		munmap(own.memory, PAGES * PAGE);
	}
}

TEST_F(async_pf, killed)
{
	int ready[2], status;
	pid_t child;
	char byte;

	ASSERT_EQ(0, pipe(ready));
	child = fork();
	ASSERT_LE(0, child);
	if (child == 0) {
		FIXTURE_DATA(async_pf) own;

		make(&own);
		turn_on(&own);
		set_rsi(&own, GUEST_HIGH);
		if (!took(&own, vcpu_run(&own.vcpu), 14) || !userfault_wait(own.fd, 20000) || write(ready[1], "", 1) != 1)
			fatal("no fault");
		vcpu_run(&own.vcpu);
		fatal("it went on");
	}
	ASSERT_EQ(1, read(ready[0], &byte, 1));
	usleep(20000);
	ASSERT_EQ(0, kill(child, SIGKILL));
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

TEST_F(async_pf, bad_values)
{
	uint64_t value = 1;
	struct vm other = vm_create();
	struct vcpu vcpu = vcpu_create(&other, 0);

	EXPECT_EQ(1, device_extension(KVM_CAP_ASYNC_PF));
	EXPECT_EQ(0x4010, cpuid_entry(supported_cpuid(), 0x40000001, 0)->eax & 0x4010);
	EXPECT_EQ(0, vcpu_set_msr(&self->vcpu, MSR_EN, ON | 0x10));
	EXPECT_EQ(0, vcpu_set_msr(&self->vcpu, MSR_EN, ON | 0x20));
	EXPECT_EQ(0, vcpu_set_msr(&self->vcpu, MSR_EN, GUEST_MMIO | (ON & 15)));
	EXPECT_EQ(0, vcpu_set_msr(&self->vcpu, MSR_EN, 0xffffffffffffffc0 | (ON & 15)));
	EXPECT_EQ(0, vcpu_set_msr(&self->vcpu, MSR_INT, 0x100));
	EXPECT_EQ(0, vcpu_set_msr(&self->vcpu, MSR_INT, 1ul << 63));
	EXPECT_EQ(1, vcpu_get_msr(&self->vcpu, MSR_EN, &value));
	EXPECT_EQ(0, value);
	EXPECT_EQ(1, vcpu_set_msr(&self->vcpu, MSR_INT, 0xff));
	EXPECT_EQ(1, vcpu_set_msr(&self->vcpu, MSR_EN, ON));
	EXPECT_EQ(1, vcpu_get_msr(&self->vcpu, MSR_EN, &value));
	EXPECT_EQ(ON, value);
	EXPECT_EQ(1, vcpu_get_msr(&self->vcpu, MSR_INT, &value));
	EXPECT_EQ(0xff, value);
	EXPECT_EQ(1, vcpu_get_msr(&self->vcpu, MSR_ACK, &value));
	EXPECT_EQ(0, value);
	/* Without a local APIC in the kernel there are no interrupts to tell by. */
	EXPECT_EQ(0, vcpu_set_msr(&vcpu, MSR_EN, ON));
	EXPECT_EQ(0, vcpu_set_msr(&vcpu, MSR_INT, VECTOR));
	EXPECT_EQ(1, vcpu_set_msr(&vcpu, MSR_EN, 0));
	vcpu_free(&vcpu);
	vm_free(&other);
}

/* The structure's memory goes: the guest isn't told, and gets on. */
TEST_F(async_pf, no_structure)
{
	uint8_t *memory = vm_add_memory(&self->vm, 2, GUEST_HIGH + PAGES * PAGE, PAGE);

	turn_on(self);
	ASSERT_EQ(1, vcpu_set_msr(&self->vcpu, MSR_EN, (GUEST_HIGH + PAGES * PAGE) | ENABLED | BY_INTERRUPT | ALWAYS));
	ASSERT_EQ(0, vm_set_region(&self->vm, 2, 0, 0, 0, NULL));
	begin(touch, GUEST_HIGH);
	start_run(self);
	ASSERT_EQ(self->memory, userfault_wait(self->fd, 20000));
	usleep(20000);
	ASSERT_FALSE(over);
	userfault_resolve(self->fd, self->memory, 1);
	ASSERT_EQ(KVM_EXIT_IO, end_run(self));
	EXPECT_EQ(PORT_SYNC, self->vcpu.run->io.port);
	EXPECT_EQ(0, *(uint64_t *)memory);
}

XVM_TEST_MAIN
