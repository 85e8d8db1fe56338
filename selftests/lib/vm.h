/* SPDX-License-Identifier: GPL-2.0 */
/* Virtual machines for tests: creation, memory, registers, running. What fails here ends the test. */
#ifndef SELFTESTS_VM_H
#define SELFTESTS_VM_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "device.h"
#include "machine.h"

struct vm {
	int device;
	int fd;
	uint8_t *memory;	/* of the guest, addresses 0 to memory_size */
	size_t memory_size;
};

struct vcpu {
	struct vm *vm;
	int fd;
	struct kvm_run *run;
	size_t run_size;
};

/* A VM with GUEST_MEMORY bytes of memory in slot 0, and descriptor tables, page tables and handlers in it. */
struct vm vm_create(void);

/* The same of another type than the default one. */
struct vm vm_create_type(unsigned long type);

/* A VM with nothing. */
struct vm vm_create_bare(void);
void vm_free(struct vm *vm);

/* KVM_SET_USER_MEMORY_REGION: the result, or -errno. */
int vm_set_region(struct vm *vm, uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t size, void *memory);

/* The same with anonymous memory that it maps, fatal on failure; returns the memory. */
void *vm_add_memory(struct vm *vm, uint32_t slot, uint64_t gpa, size_t size);

/* Adds the in-kernel PICs, IOAPIC and, for vCPUs that are made later, local APICs. */
void vm_create_irqchip(struct vm *vm);

/* A pointer into the guest's first memory. */
void *vm_at(struct vm *vm, uint64_t gpa);

struct vcpu vcpu_create(struct vm *vm, unsigned int id);
void vcpu_free(struct vcpu *vcpu);

/* KVM_RUN once: the exit reason, or -errno. */
int vcpu_run(struct vcpu *vcpu);

/* Runs until the guest writes to the port, which must be the next exit but for signals; returns the value written. */
uint32_t vcpu_run_to_port(struct vcpu *vcpu, uint16_t port);

/* Runs until another reason, which must be the next one; says what came instead. */
#define vcpu_run_to(vcpu, reason) vcpu_run_to_at(__FILE__, __LINE__, vcpu, reason)
void vcpu_run_to_at(const char *file, int line, struct vcpu *vcpu, uint32_t reason);

/* Prints the exit and the registers as TAP comments. */
void vcpu_dump(struct vcpu *vcpu);

struct kvm_regs vcpu_regs(struct vcpu *vcpu);
void vcpu_set_regs(struct vcpu *vcpu, const struct kvm_regs *regs);
struct kvm_sregs vcpu_sregs(struct vcpu *vcpu);
void vcpu_set_sregs(struct vcpu *vcpu, const struct kvm_sregs *sregs);

/* One MSR by the VMM: the ioctl's count (1 or 0), or -errno. */
int vcpu_get_msr(struct vcpu *vcpu, uint32_t index, uint64_t *value);
int vcpu_set_msr(struct vcpu *vcpu, uint32_t index, uint64_t value);

/* Gives the guest the CPUID that the device supports. */
void vcpu_set_supported_cpuid(struct vcpu *vcpu);

/* The device's supported CPUID, in static storage; and one leaf's entry of such a list, NULL if it is not there. */
struct kvm_cpuid2 *supported_cpuid(void);
struct kvm_cpuid_entry2 *cpuid_entry(struct kvm_cpuid2 *cpuid, uint32_t function, uint32_t index);

/* The data of a KVM_EXIT_IO, as it lies in the run pages. */
void *vcpu_io_data(struct vcpu *vcpu);

/* A name for an exit reason. */
const char *exit_name(int reason);

#endif
