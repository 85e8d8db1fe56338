// SPDX-License-Identifier: GPL-2.0
/* System management mode: what is saved and comes back, what waits meanwhile, and what the guest may spoil. */
#include "apic.h"
#include "smm.h"

/* The same bytes in every mode. */
GUEST_CODE64(twice, GUEST_SYNC; GUEST_SYNC; GUEST_DONE);
GUEST_CODE64(done, GUEST_DONE);

FIXTURE(smm)
{
	struct vm vm;
	struct vcpu vcpu;
	uint8_t *smram;
};

FIXTURE_SETUP(smm)
{
	guest_start(&self->vm, &self->vcpu, twice);
	self->smram = smram_create(&self->vm);
	smram_load(self->smram, SMBASE, smm_report);
}

FIXTURE_TEARDOWN(smm)
{
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
}

#define at64(offset) (*(uint64_t *)(self->smram + SMBASE + (offset)))
#define at32(offset) (*(uint32_t *)(self->smram + SMBASE + (offset)))

/* Brings a vCPU to its handler's report. */
#define enter() do { \
	ASSERT_FALSE(sync_in_smm(&self->vcpu)); \
	vcpu_smi(&self->vcpu); \
	ASSERT_TRUE(sync_in_smm(&self->vcpu)); \
} while (0)

static void without_long_mode(struct vcpu *vcpu)
{
	struct kvm_cpuid2 *cpuid = supported_cpuid();
	struct kvm_cpuid_entry2 *leaf = cpuid_entry(cpuid, 0x80000001, 0);

	leaf->edx &= ~(1u << 29);
	do_ioctl(vcpu->fd, KVM_SET_CPUID2, cpuid);
	leaf->edx |= 1u << 29;
}

TEST_F(smm, capabilities)
{
	EXPECT_EQ(1, device_extension(KVM_CAP_X86_SMM));
	EXPECT_EQ(2, device_extension(KVM_CAP_MULTI_ADDRESS_SPACE));
	EXPECT_EQ(2, try_ioctl(self->vm.fd, KVM_CHECK_EXTENSION, KVM_CAP_MULTI_ADDRESS_SPACE));
}

/* APM vol 2, 10.3.1; SDM vol 3, 33.4 and 33.5. */
TEST_F(smm, state_at_entry)
{
	struct kvm_vcpu_events events;
	struct kvm_debugregs debug;
	struct kvm_sregs sregs;
	struct kvm_regs regs, before;

	before = vcpu_regs(&self->vcpu);
	before.r15 = 0x1122334455667788;
	vcpu_set_regs(&self->vcpu, &before);
	enter();
	sregs = vcpu_sregs(&self->vcpu);
	EXPECT_EQ(SMBASE, sregs.cs.base);
	EXPECT_EQ(SMBASE >> 4, sregs.cs.selector);
	EXPECT_EQ(~0u, sregs.cs.limit);
	EXPECT_EQ(0, sregs.cs.db | sregs.cs.l);
	EXPECT_EQ(0, sregs.ds.base | sregs.ss.base | sregs.es.base | sregs.fs.base | sregs.gs.base);
	EXPECT_EQ(~0u, sregs.ds.limit);
	EXPECT_EQ(0, sregs.ds.selector | sregs.ss.selector);
	EXPECT_EQ(0, sregs.cr0 & 0x8000000d);
	EXPECT_EQ(0, sregs.cr4);
	EXPECT_EQ(0, sregs.efer);
	EXPECT_EQ(0, sregs.idt.base | sregs.idt.limit);
	regs = vcpu_regs(&self->vcpu);
	EXPECT_EQ(SMM_ENTRY, regs.rip & ~3);
	EXPECT_EQ(2, regs.rflags);
	EXPECT_EQ(before.r15, regs.r15);
	EXPECT_EQ(before.rsp, regs.rsp);
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_GET_DEBUGREGS, &debug));
	EXPECT_EQ(0x400, debug.dr7);
	events = vcpu_events(&self->vcpu);
	EXPECT_NE(0, events.flags & KVM_VCPUEVENT_VALID_SMM);
	EXPECT_EQ(1, events.smi.smm);
	EXPECT_EQ(0, events.smi.pending | events.smi.smm_inside_nmi | events.smi.latched_init);
	EXPECT_EQ(1, events.nmi.masked);
}

/* QEMU's TCG sets the accessed bit of the four highest entries of PAE paging, which have none: RSM refuses them then. */
static void clear_accessed(struct vm *vm)
{
	uint64_t *pdpt = vm_at(vm, GUEST_PAE_PDPT);

	for (int i = 0; i < 4; i++)
		pdpt[i] &= ~(1ull << 5);
}

/* The state comes back in every mode, as does the layout that firmware knows. */
TEST_F(smm, every_mode)
{
	for (enum guest_mode mode = 0; mode < MODE_COUNT; mode++) {
		struct kvm_sregs sregs, later;
		struct kvm_regs regs;

		guest_set_mode(&self->vcpu, mode);
		regs = vcpu_regs(&self->vcpu);
		regs.rax = 0x5a;
		regs.rdi = 0x1234567;
		vcpu_set_regs(&self->vcpu, &regs);
		ASSERT_FALSE(sync_in_smm(&self->vcpu));
		sregs = vcpu_sregs(&self->vcpu);
		vcpu_smi(&self->vcpu);
		ASSERT_TRUE(sync_in_smm(&self->vcpu));
		EXPECT_EQ(0x20064, at32(AREA64_REVISION));
		EXPECT_EQ(SMBASE, at32(AREA64_SMBASE));
		EXPECT_EQ(GUEST_CODE + 2, at64(AREA64_RIP));
		EXPECT_EQ(0x5a, at64(AREA64_RAX));
		EXPECT_EQ(sregs.cr0, at64(AREA64_CR0));
		EXPECT_EQ(sregs.efer, at64(AREA64_EFER));
		EXPECT_EQ(sregs.cs.selector, at64(AREA64_SEGMENT(1)) & 0xffff);
		at64(AREA64_RAX) = 0x77;
		clear_accessed(&self->vm);
		EXPECT_FALSE(sync_in_smm(&self->vcpu)) TH_LOG("%s", guest_mode_name(mode));
		EXPECT_EQ(0x77, vcpu_regs(&self->vcpu).rax);
		EXPECT_EQ(0x1234567, vcpu_regs(&self->vcpu).rdi);
		later = vcpu_sregs(&self->vcpu);
		EXPECT_EQ(0, memcmp(&sregs, &later, sizeof(sregs))) TH_LOG("%s", guest_mode_name(mode));
		vcpu_run_to_port(&self->vcpu, PORT_DONE);
	}
}

TEST_F(smm, cpu_without_long_mode)
{
	without_long_mode(&self->vcpu);
	for (enum guest_mode mode = 0; mode < MODE_LONG; mode++) {
		struct kvm_sregs sregs, later;

		guest_set_mode(&self->vcpu, mode);
		ASSERT_FALSE(sync_in_smm(&self->vcpu));
		sregs = vcpu_sregs(&self->vcpu);
		vcpu_smi(&self->vcpu);
		ASSERT_TRUE(sync_in_smm(&self->vcpu));
		EXPECT_EQ(0x20000, at32(AREA32_REVISION));
		EXPECT_EQ(SMBASE, at32(AREA32_SMBASE));
		EXPECT_EQ(GUEST_CODE + 2, at32(AREA32_EIP));
		at32(AREA32_EAX) = 0x42;
		clear_accessed(&self->vm);
		EXPECT_FALSE(sync_in_smm(&self->vcpu)) TH_LOG("%s", guest_mode_name(mode));
		EXPECT_EQ(0x42, vcpu_regs(&self->vcpu).rax);
		later = vcpu_sregs(&self->vcpu);
		EXPECT_EQ(0, memcmp(&sregs, &later, sizeof(sregs))) TH_LOG("%s", guest_mode_name(mode));
		vcpu_run_to_port(&self->vcpu, PORT_DONE);
	}
}

/* The handler moves SMBASE; where it is only the VMM knows besides. */
TEST_F(smm, relocation)
{
	uint64_t base = 0;

	EXPECT_EQ(1, vcpu_get_msr(&self->vcpu, MSR_SMBASE, &base));
	EXPECT_EQ(SMBASE, base);
	enter();
	at32(AREA64_SMBASE) = 0x50000;
	ASSERT_FALSE(sync_in_smm(&self->vcpu));
	EXPECT_EQ(1, vcpu_get_msr(&self->vcpu, MSR_SMBASE, &base));
	EXPECT_EQ(0x50000, base);
	smram_load(self->smram, 0x50000, smm_report);
	vcpu_smi(&self->vcpu);
	ASSERT_TRUE(sync_in_smm(&self->vcpu));
	EXPECT_EQ(0x50000, vcpu_sregs(&self->vcpu).cs.base);
	EXPECT_EQ(0x50000, *(uint32_t *)(self->smram + 0x50000 + AREA64_SMBASE));
	/* The VMM moves it at any time: the state is looked for there. */
	EXPECT_EQ(1, vcpu_set_msr(&self->vcpu, MSR_SMBASE, 0x60000));
	memcpy(self->smram + 0x60000 + SMM_AREA, self->smram + 0x50000 + SMM_AREA, 512);
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
}

GUEST_CODE64(read_smbase, mov $MSR_SMBASE, %ecx; rdmsr; GUEST_DONE);
GUEST_CODE64(write_smbase, mov $MSR_SMBASE, %ecx; xor %eax, %eax; xor %edx, %edx; wrmsr; GUEST_DONE);
GUEST_CODE64(read_count, mov $MSR_SMI_COUNT, %ecx; rdmsr; GUEST_DONE);
GUEST_CODE64(write_count, mov $MSR_SMI_COUNT, %ecx; wrmsr; GUEST_DONE);

TEST_F(smm, msrs)
{
	static const uint8_t *const refused[] = { guest_read_smbase, guest_write_smbase, guest_write_count };

	for (int i = 0; i < 3; i++) {
		guest_copy(&self->vm, refused[i], refused[i] + 16);
		guest_set_mode(&self->vcpu, MODE_LONG);
		EXPECT_EQ(13, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	}
	guest_load(&self->vm, read_count);
	guest_set_mode(&self->vcpu, MODE_LONG);
	EXPECT_EQ(1, vcpu_set_msr(&self->vcpu, MSR_SMI_COUNT, 41));
	vcpu_smi(&self->vcpu);
	ASSERT_TRUE(sync_in_smm(&self->vcpu));
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
	EXPECT_EQ(42, vcpu_regs(&self->vcpu).rax);
}

/* One SMI waits while another is handled. */
TEST_F(smm, one_after_the_other)
{
	uint64_t count = 0;

	enter();
	vcpu_smi(&self->vcpu);
	vcpu_smi(&self->vcpu);
	EXPECT_EQ(1, vcpu_events(&self->vcpu).smi.pending);
	EXPECT_TRUE(sync_in_smm(&self->vcpu));
	EXPECT_EQ(0, vcpu_events(&self->vcpu).smi.pending);
	EXPECT_EQ(GUEST_CODE + 2, at64(AREA64_RIP));
	EXPECT_FALSE(sync_in_smm(&self->vcpu));
	EXPECT_EQ(1, vcpu_get_msr(&self->vcpu, MSR_SMI_COUNT, &count));
	EXPECT_EQ(2, count);
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
}

GUEST_CODE16(slow, GUEST_SYNC; GUEST_SYNC; rsm);

TEST_F(smm, nmi_waits)
{
	smram_load(self->smram, SMBASE, slow);
	enter();
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_NMI, 0));
	EXPECT_TRUE(sync_in_smm(&self->vcpu));
	EXPECT_EQ(1, vcpu_events(&self->vcpu).nmi.pending);
	EXPECT_EQ(2, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	EXPECT_FALSE(in_smm(&self->vcpu));
	EXPECT_EQ(GUEST_CODE + 2, guest_report(&self->vm)->rip);
}

/* An NMI's handler is interrupted: NMIs stay blocked. */
TEST_F(smm, inside_nmi)
{
	struct kvm_vcpu_events events;

	ASSERT_FALSE(sync_in_smm(&self->vcpu));
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_NMI, 0));
	EXPECT_EQ(2, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	vcpu_smi(&self->vcpu);
	ASSERT_TRUE(sync_in_smm(&self->vcpu));
	events = vcpu_events(&self->vcpu);
	EXPECT_EQ(1, events.smi.smm_inside_nmi);
	EXPECT_EQ(1, events.nmi.masked);
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_NMI, 0));
	/* The handler ends with IRET; then the second NMI comes. */
	EXPECT_EQ(2, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	EXPECT_EQ(2, guest_report(&self->vm)->count);
	EXPECT_FALSE(in_smm(&self->vcpu));
	EXPECT_EQ(0, vcpu_events(&self->vcpu).smi.smm_inside_nmi);
	EXPECT_FALSE(sync_in_smm(&self->vcpu));
}

/* An exception that the VMM injects is delivered first; the SMI comes before the handler is through. */
TEST_F(smm, behind_an_exception)
{
	struct kvm_vcpu_events events;

	ASSERT_FALSE(sync_in_smm(&self->vcpu));
	events = vcpu_events(&self->vcpu);
	events.exception.injected = 1;
	events.exception.nr = 6;
	events.smi.pending = 1;
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_SET_VCPU_EVENTS, &events));
	for (int i = 0; i < 2; i++) {
		ASSERT_EQ(KVM_EXIT_IO, vcpu_run(&self->vcpu));
		if (!in_smm(&self->vcpu)) {
			EXPECT_EQ(PORT_EXCEPTION, self->vcpu.run->io.port);
			EXPECT_EQ(6, guest_report(&self->vm)->vector);
			continue;
		}
		EXPECT_EQ(PORT_SYNC, self->vcpu.run->io.port);
		EXPECT_LE(GUEST_HANDLERS, at64(AREA64_RIP));
		EXPECT_GT(GUEST_CODE, at64(AREA64_RIP));
	}
	EXPECT_FALSE(sync_in_smm(&self->vcpu));
}

/* Segments of 4 GiB: code of 16 bits may be anywhere, also when its instructions exit. */
GUEST_CODE16(jumps, mov $0x20000, %ebp; jmp *%ebp);
GUEST_CODE16(far_away, mov %eax, %esi; xor %eax, %eax; cpuid; mov %esi, %eax; GUEST_SYNC; rsm);

TEST_F(smm, code_above_64k)
{
	smram_load(self->smram, SMBASE, jumps);
	memcpy(self->smram + SMBASE + 0x20000, guest_far_away, guest_far_away_end - guest_far_away);
	enter();
	EXPECT_EQ(0x20000, vcpu_regs(&self->vcpu).rip & ~0xfull);
	EXPECT_FALSE(sync_in_smm(&self->vcpu));
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
}

GUEST_CODE64(resume, rsm; GUEST_DONE);

TEST_F(smm, resume_outside)
{
	guest_load(&self->vm, resume);
	guest_set_mode(&self->vcpu, MODE_LONG);
	EXPECT_EQ(6, vcpu_run_to_port(&self->vcpu, PORT_EXCEPTION));
	EXPECT_EQ(GUEST_CODE, guest_report(&self->vm)->rip);
}

/* Nothing but other registers: the VMM moves a vCPU to the mode and out of it. */
TEST_F(smm, by_events)
{
	struct kvm_vcpu_events events = vcpu_events(&self->vcpu);

	EXPECT_EQ(0, events.smi.smm | events.smi.pending);
	events.flags = KVM_VCPUEVENT_VALID_SMM;
	events.smi.smm = 1;
	events.smi.smm_inside_nmi = 1;
	events.smi.pending = 1;
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_SET_VCPU_EVENTS, &events));
	events = vcpu_events(&self->vcpu);
	EXPECT_EQ(1, events.smi.smm & events.smi.smm_inside_nmi & events.smi.pending);
	/* The guest's code isn't there. */
	memcpy(self->smram + GUEST_CODE, guest_done, guest_done_end - guest_done);
	guest_set_mode(&self->vcpu, MODE_REAL);
	vcpu_run_to_port(&self->vcpu, PORT_DONE);
	EXPECT_TRUE(in_smm(&self->vcpu));
	events.smi.smm = 0;
	events.smi.pending = 0;
	events.flags = KVM_VCPUEVENT_VALID_SMM;
	ASSERT_EQ(0, try_ioctl(self->vcpu.fd, KVM_SET_VCPU_EVENTS, &events));
	EXPECT_EQ(0, vcpu_events(&self->vcpu).smi.smm_inside_nmi);
	guest_set_mode(&self->vcpu, MODE_LONG);
	EXPECT_FALSE(sync_in_smm(&self->vcpu));
	events.flags = 1u << 31;
	EXPECT_EQ(-EINVAL, try_ioctl(self->vcpu.fd, KVM_SET_VCPU_EVENTS, &events));
}

/* Without memory for the state the vCPU shuts down, and with it gone meanwhile. */
TEST_F(smm, no_memory)
{
	enter();
	ASSERT_EQ(0, vm_set_region(&self->vm, SMM_SLOT, 0, 0, 0, NULL));
	ASSERT_EQ(0, vm_set_region(&self->vm, SMM_SLOT, 0, 0, SMBASE + SMM_AREA - 0xe00, self->smram));
	vcpu_run_to(&self->vcpu, KVM_EXIT_SHUTDOWN);
	ASSERT_EQ(0, vm_set_region(&self->vm, SMM_SLOT, 0, 0, 0, NULL));
	EXPECT_EQ(1, vcpu_events(&self->vcpu).smi.smm);
	vcpu_free(&self->vcpu);
	vm_free(&self->vm);
	guest_start(&self->vm, &self->vcpu, twice);
	ASSERT_FALSE(sync_in_smm(&self->vcpu));
	vcpu_smi(&self->vcpu);
	vcpu_run_to(&self->vcpu, KVM_EXIT_SHUTDOWN);
	EXPECT_FALSE(in_smm(&self->vcpu));
}

XVM_TEST_MAIN
