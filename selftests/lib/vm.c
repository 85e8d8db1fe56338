// SPDX-License-Identifier: GPL-2.0
/* Virtual machines for tests. */
#include <pthread.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include "guest.h"
#include "vm.h"

static struct vm create(unsigned long type)
{
	struct vm vm = { .device = device_open() };

	vm.fd = do_ioctl(vm.device, KVM_CREATE_VM, type);
	return vm;
}

struct vm vm_create_bare(void)
{
	return create(0);
}

struct vm vm_create(void)
{
	return vm_create_type(0);
}

struct vm vm_create_type(unsigned long type)
{
	struct vm vm = create(type);
	uint64_t identity_map = 0xfffbc000;

	/* What every VMM does first; CPUs without unrestricted guest need it. */
	do_ioctl(vm.fd, KVM_SET_IDENTITY_MAP_ADDR, &identity_map);
	do_ioctl(vm.fd, KVM_SET_TSS_ADDR, 0xfffbd000);
	vm.memory_size = GUEST_MEMORY;
	vm.memory = vm_add_memory(&vm, 0, 0, vm.memory_size);
	guest_prepare(&vm);
	return vm;
}

void vm_free(struct vm *vm)
{
	close(vm->fd);
	close(vm->device);
	if (vm->memory)
		munmap(vm->memory, vm->memory_size);
}

int vm_set_region(struct vm *vm, uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t size, void *memory)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot,
		.flags = flags,
		.guest_phys_addr = gpa,
		.memory_size = size,
		.userspace_addr = (uintptr_t)memory,
	};

	return try_ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &region);
}

void *vm_add_memory(struct vm *vm, uint32_t slot, uint64_t gpa, size_t size)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int result;

	if (memory == MAP_FAILED)
		fatal("mmap of %zu bytes: %s", size, strerror(errno));
	result = vm_set_region(vm, slot, 0, gpa, size, memory);
	if (result)
		fatal("KVM_SET_USER_MEMORY_REGION slot %u, %#lx: %s", slot, gpa, strerror(-result));
	return memory;
}

void vm_create_irqchip(struct vm *vm)
{
	do_ioctl(vm->fd, KVM_CREATE_IRQCHIP, 0);
}

void *vm_at(struct vm *vm, uint64_t gpa)
{
	if (gpa >= vm->memory_size)
		fatal("no memory at %#lx", gpa);
	return vm->memory + gpa;
}

struct vcpu vcpu_create(struct vm *vm, unsigned int id)
{
	struct vcpu vcpu = { .vm = vm };

	vcpu.fd = do_ioctl(vm->fd, KVM_CREATE_VCPU, id);
	vcpu.run_size = do_ioctl(vm->device, KVM_GET_VCPU_MMAP_SIZE, 0);
	vcpu.run = mmap(NULL, vcpu.run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu.fd, 0);
	if (vcpu.run == MAP_FAILED)
		fatal("mmap of kvm_run: %s", strerror(errno));
	return vcpu;
}

void vcpu_free(struct vcpu *vcpu)
{
	munmap(vcpu->run, vcpu->run_size);
	close(vcpu->fd);
}

int vcpu_run(struct vcpu *vcpu)
{
	int result = try_ioctl(vcpu->fd, KVM_RUN, 0);

	return result < 0 ? result : (int)vcpu->run->exit_reason;
}

uint32_t vcpu_run_to_port(struct vcpu *vcpu, uint16_t port)
{
	struct kvm_run *run = vcpu->run;
	uint32_t value = 0;
	int reason;

	do
		reason = vcpu_run(vcpu);
	while (reason == -EINTR);
	if (reason != KVM_EXIT_IO || run->io.direction != KVM_EXIT_IO_OUT || run->io.port != port) {
		vcpu_dump(vcpu);
		if (reason < 0)
			fatal("KVM_RUN: %s, waiting for port %#x", strerror(-reason), port);
		fatal("exit %s instead of a write to port %#x", exit_name(reason), port);
	}
	memcpy(&value, vcpu_io_data(vcpu), run->io.size);
	return value;
}

void vcpu_run_to_at(const char *file, int line, struct vcpu *vcpu, uint32_t wanted)
{
	int reason;

	do
		reason = vcpu_run(vcpu);
	while (reason == -EINTR);
	if (reason == (int)wanted)
		return;
	vcpu_dump(vcpu);
	if (reason < 0)
		fatal_at(file, line, "KVM_RUN: %s, waiting for %s", strerror(-reason), exit_name(wanted));
	fatal_at(file, line, "exit %s instead of %s", exit_name(reason), exit_name(wanted));
}

static void dump_exit(const struct kvm_run *run)
{
	printf("# exit %u %s", run->exit_reason, exit_name(run->exit_reason));
	if (run->exit_reason == KVM_EXIT_IO)
		printf(": %s port %#x, %u x %u bytes", run->io.direction ? "out" : "in", run->io.port, run->io.count, run->io.size);
	if (run->exit_reason == KVM_EXIT_MMIO)
		printf(": %s %#llx, %u bytes", run->mmio.is_write ? "write" : "read", run->mmio.phys_addr, run->mmio.len);
	if (run->exit_reason == KVM_EXIT_FAIL_ENTRY)
		printf(": hardware reason %#llx", run->fail_entry.hardware_entry_failure_reason);
	if (run->exit_reason == KVM_EXIT_INTERNAL_ERROR) {
		printf(": suberror %u,", run->internal.suberror);
		for (unsigned int i = 0; i < run->internal.ndata && i < 16; i++)
			printf(" %#llx", run->internal.data[i]);
	}
	printf("\n");
}

void vcpu_dump(struct vcpu *vcpu)
{
	struct kvm_regs regs = vcpu_regs(vcpu);
	struct kvm_sregs sregs = vcpu_sregs(vcpu);
	const struct report *report = vcpu->vm->memory ? vm_at(vcpu->vm, GUEST_REPORT) : NULL;

	dump_exit(vcpu->run);
	printf("# rip %#llx flags %#llx rsp %#llx rbp %#llx\n", regs.rip, regs.rflags, regs.rsp, regs.rbp);
	printf("# rax %#llx rbx %#llx rcx %#llx rdx %#llx rsi %#llx rdi %#llx\n", regs.rax, regs.rbx, regs.rcx, regs.rdx,
	       regs.rsi, regs.rdi);
	printf("# cr0 %#llx cr2 %#llx cr3 %#llx cr4 %#llx efer %#llx cs %#x base %#llx\n", sregs.cr0, sregs.cr2, sregs.cr3,
	       sregs.cr4, sregs.efer, sregs.cs.selector, sregs.cs.base);
	if (report && report->count)
		printf("# last exception %lu error %#lx rip %#lx cs %#lx cr2 %#lx (%lu so far)\n", report->vector, report->error,
		       report->rip, report->cs, report->cr2, report->count);
	fflush(stdout);
}

struct kvm_regs vcpu_regs(struct vcpu *vcpu)
{
	struct kvm_regs regs;

	do_ioctl(vcpu->fd, KVM_GET_REGS, &regs);
	return regs;
}

void vcpu_set_regs(struct vcpu *vcpu, const struct kvm_regs *regs)
{
	do_ioctl(vcpu->fd, KVM_SET_REGS, regs);
}

struct kvm_sregs vcpu_sregs(struct vcpu *vcpu)
{
	struct kvm_sregs sregs;

	do_ioctl(vcpu->fd, KVM_GET_SREGS, &sregs);
	return sregs;
}

void vcpu_set_sregs(struct vcpu *vcpu, const struct kvm_sregs *sregs)
{
	do_ioctl(vcpu->fd, KVM_SET_SREGS, sregs);
}

struct one_msr {
	struct kvm_msrs header;
	struct kvm_msr_entry entry;
};

int vcpu_get_msr(struct vcpu *vcpu, uint32_t index, uint64_t *value)
{
	struct one_msr msr = { .header.nmsrs = 1, .entry.index = index };
	int result = try_ioctl(vcpu->fd, KVM_GET_MSRS, &msr);

	*value = msr.entry.data;
	return result;
}

int vcpu_set_msr(struct vcpu *vcpu, uint32_t index, uint64_t value)
{
	struct one_msr msr = { .header.nmsrs = 1, .entry = { .index = index, .data = value } };

	return try_ioctl(vcpu->fd, KVM_SET_MSRS, &msr);
}

static struct kvm_cpuid2 *supported;

static void read_supported_cpuid(void)
{
	const int entries = 256;
	int fd = device_open();

	supported = calloc(1, sizeof(*supported) + entries * sizeof(supported->entries[0]));
	supported->nent = entries;
	do_ioctl(fd, KVM_GET_SUPPORTED_CPUID, supported);
	close(fd);
}

struct kvm_cpuid2 *supported_cpuid(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, read_supported_cpuid);
	return supported;
}

struct kvm_cpuid_entry2 *cpuid_entry(struct kvm_cpuid2 *cpuid, uint32_t function, uint32_t index)
{
	for (unsigned int i = 0; i < cpuid->nent; i++) {
		struct kvm_cpuid_entry2 *entry = &cpuid->entries[i];

		if (entry->function == function && (!(entry->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) || entry->index == index))
			return entry;
	}
	return NULL;
}

void vcpu_set_supported_cpuid(struct vcpu *vcpu)
{
	do_ioctl(vcpu->fd, KVM_SET_CPUID2, supported_cpuid());
}

void *vcpu_io_data(struct vcpu *vcpu)
{
	return (uint8_t *)vcpu->run + vcpu->run->io.data_offset;
}

const char *exit_name(int reason)
{
	switch (reason) {
	case KVM_EXIT_UNKNOWN: return "UNKNOWN";
	case KVM_EXIT_EXCEPTION: return "EXCEPTION";
	case KVM_EXIT_IO: return "IO";
	case KVM_EXIT_HYPERCALL: return "HYPERCALL";
	case KVM_EXIT_DEBUG: return "DEBUG";
	case KVM_EXIT_HLT: return "HLT";
	case KVM_EXIT_MMIO: return "MMIO";
	case KVM_EXIT_IRQ_WINDOW_OPEN: return "IRQ_WINDOW_OPEN";
	case KVM_EXIT_SHUTDOWN: return "SHUTDOWN";
	case KVM_EXIT_FAIL_ENTRY: return "FAIL_ENTRY";
	case KVM_EXIT_INTR: return "INTR";
	case KVM_EXIT_SET_TPR: return "SET_TPR";
	case KVM_EXIT_INTERNAL_ERROR: return "INTERNAL_ERROR";
	case KVM_EXIT_SYSTEM_EVENT: return "SYSTEM_EVENT";
	case KVM_EXIT_MEMORY_FAULT: return "MEMORY_FAULT";
	default: return "of another kind";
	}
}
