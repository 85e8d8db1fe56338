/* SPDX-License-Identifier: GPL-2.0 */
/* For tests of the in-kernel interrupt controllers, the fixture: a VM with all of them and one vCPU. */
#ifndef SELFTESTS_IRQCHIP_H
#define SELFTESTS_IRQCHIP_H

#include "apic.h"

FIXTURE(irqchip)
{
	struct vm vm;
	struct vcpu vcpu;
	volatile struct report *report;
};

FIXTURE_SETUP(irqchip)
{
	struct kvm_pit_config pit = { 0 };

	self->vm = vm_create();
	vm_create_irqchip(&self->vm);
	do_ioctl(self->vm.fd, KVM_CREATE_PIT2, &pit);
	self->vcpu = vcpu_create(&self->vm, 0);
	vcpu_set_supported_cpuid(&self->vcpu);
	self->report = guest_report(&self->vm);
}

FIXTURE_TEARDOWN(irqchip)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

#define start(name) do { \
	guest_load(&self->vm, name); \
	guest_set_mode(&self->vcpu, MODE_LONG); \
} while (0)

#endif
