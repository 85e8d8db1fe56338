// SPDX-License-Identifier: GPL-2.0

//! The host's side of the window: what exits restore, and what they don't.

use super::cache::Sticky;
use super::capability;
use super::cpu::Cpu;
use super::field;
use super::frame;
use super::vmcs::Found;
use super::vmcs::Vmcs;
use super::vmcs::CR4_VMXE;
use crate::linux::irq::IrqsOff;
use crate::linux::x86;
use crate::linux::x86::Selectors;
use kernel::bindings;

const IA32_SPEC_CTRL: u32 = 0x48;
const IA32_PRED_CMD: u32 = 0x49;
const IA32_FLUSH_CMD: u32 = 0x10b;
const IA32_SYSENTER_CS: u32 = 0x174;
const IA32_SYSENTER_ESP: u32 = 0x175;
const IA32_SYSENTER_EIP: u32 = 0x176;
const IA32_DEBUGCTL: u32 = 0x1d9;
const IA32_PAT: u32 = 0x277;
const IA32_PEBS_ENABLE: u32 = 0x3f1;
const IA32_RTIT_CTL: u32 = 0x570;
const IA32_EFER: u32 = 0xc000_0080;
const IA32_FS_BASE: u32 = 0xc000_0100;
const IA32_GS_BASE: u32 = 0xc000_0101;
const IA32_KERNEL_GS_BASE: u32 = 0xc000_0102;

/// IA32_RTIT_CTL.TraceEn (SDM vol 3, 34.2.8.2).
const TRACE_EN: u64 = 1;

/// The kernel's selectors (asm/segment.h).
const KERNEL_CS: u64 = 0x10;
const KERNEL_SS: u64 = 0x18;
const KERNEL_TSS: u64 = 0x40;

/// `X86_BUG_L1TF` (asm/cpufeatures.h): bindgen doesn't see it, a macro with an argument.
const X86_BUG_L1TF: u32 = bindings::NCAPINTS * 32 + 18;

/// What the host's CPUs have, asked once.
#[derive(Clone, Copy, Debug)]
struct Traits {
    spec_ctrl: bool,
    /// IBPB when another vCPU ran on this CPU before.
    ibpb: bool,
    /// L1TF: what the guest may not see leaves the L1 data cache.
    flush_l1d: bool,
    /// VMSCAPE: IBPB before the kernel returns to userspace.
    ibpb_exit_to_user: bool,
    pebs: bool,
    /// Processor Trace is there and must be off in VMX operation.
    stop_trace: bool,
}

impl Traits {
    fn read() -> Self {
        Self {
            spec_ctrl: x86::host_has(bindings::X86_FEATURE_MSR_SPEC_CTRL),
            ibpb: x86::host_has(bindings::X86_FEATURE_IBPB),
            flush_l1d: x86::host_has_bug(X86_BUG_L1TF)
                && x86::host_has(bindings::X86_FEATURE_FLUSH_L1D),
            ibpb_exit_to_user: x86::host_has(bindings::X86_FEATURE_IBPB_EXIT_TO_USER),
            pebs: x86::host_has(bindings::X86_FEATURE_PEBS),
            stop_trace: x86::host_has(bindings::X86_FEATURE_INTEL_PT)
                && !capability::trace_in_vmx(),
        }
    }
}

/// The host's state, while a vCPU has the CPU.
#[derive(Debug)]
pub(super) struct Host {
    traits: Traits,
    cr3: Sticky,
    cr4: Sticky,
    fs_base: Sticky,
    /// The CPU that the host fields which are the same for every window on a CPU were written for.
    cpu: Option<u32>,
    found: Option<Found>,
    selectors: Selectors,
    debugctl: u64,
    pebs: u64,
    trace: u64,
}

impl Host {
    pub(super) fn new() -> Self {
        Self {
            traits: Traits::read(),
            cr3: Sticky::new(field::HOST_CR3, 0),
            cr4: Sticky::new(field::HOST_CR4, 0),
            fs_base: Sticky::new(field::HOST_FS_BASE, 0),
            cpu: None,
            found: None,
            selectors: Selectors::default(),
            debugctl: 0,
            pebs: 0,
            trace: 0,
        }
    }

    /// Whether the CPU has IA32_SPEC_CTRL.
    pub(super) fn has_spec_ctrl(&self) -> bool {
        self.traits.spec_ctrl
    }

    /// The host's IA32_SPEC_CTRL now, 0 if there is none.
    #[inline]
    pub(super) fn spec_ctrl(&self) -> u64 {
        match self.traits.spec_ctrl {
            // SAFETY: The CPU has it.
            true => unsafe { x86::rdmsr(IA32_SPEC_CTRL) },
            false => 0,
        }
    }

    /// Fills in what of the host state never changes, and a first value of what does. The VMCS must be current.
    pub(super) fn initialise(&self, vmcs: &Vmcs) {
        write_constant(vmcs);
        for field in [&self.cr3, &self.cr4, &self.fs_base] {
            field.initialise(vmcs);
        }
    }

    /// Enters VMX operation with `vmcs` current and fills in its host state. True if the vCPU comes from
    /// another CPU. When it fails, the VMCS is not current and nothing has changed.
    #[inline]
    pub(super) fn open(&mut self, vmcs: &Vmcs, cpu: &Cpu, irqs: &IrqsOff) -> bool {
        self.selectors = Selectors::read();
        // SAFETY: Every CPU with VMX has it.
        self.debugctl = unsafe { x86::rdmsr(IA32_DEBUGCTL) };
        self.stop_tracing();
        self.found = vmcs.enter(irqs);
        if self.found.is_none() {
            self.resume_tracing();
            return false;
        }
        // SAFETY: The MSR exists in long mode.
        self.fs_base.set(unsafe { x86::rdmsr(IA32_FS_BASE) });
        self.fs_base.write_back(vmcs);
        self.cr3.set(x86::cr3());
        self.cr3.write_back(vmcs);
        self.cr4.set(x86::cr4() | CR4_VMXE);
        self.cr4.write_back(vmcs);
        let moved = self.cpu != Some(cpu.number());
        if moved {
            self.cpu = Some(cpu.number());
            write_per_cpu(vmcs);
        }
        moved
    }

    /// Leaves VMX operation and puts back what exits have changed of the host. Nothing if `open` failed. The
    /// switched MSRs are the host's already.
    #[inline]
    pub(super) fn close(&mut self, vmcs: &Vmcs) {
        let Some(found) = self.found.take() else {
            return;
        };
        vmcs.leave(found);
        // An exit leaves a GDT limit of 0xffff and a TSS limit of 0x67 (SDM vol 3, 29.5.2); the kernel wants its own.
        x86::load_fixmap_gdt();
        x86::invalidate_tss_limit();
        if self.selectors != Selectors::default() {
            self.reload_selectors();
        }
        if self.debugctl != 0 {
            // SAFETY: That is the value that it had.
            unsafe { x86::wrmsr(IA32_DEBUGCTL, self.debugctl) };
        }
        self.resume_tracing();
        if self.traits.ibpb_exit_to_user {
            x86::set_ibpb_exit_to_user();
        }
    }

    /// For tasks that use segments: 32-bit ones.
    #[cold]
    fn reload_selectors(&self) {
        // SAFETY: It exists in long mode. It is the user's GS base, which the caller has put back.
        let user_gs_base = unsafe { x86::rdmsr(IA32_KERNEL_GS_BASE) };
        // SAFETY: They were read on this CPU when the window was opened; the bases come next.
        unsafe { self.selectors.load() };
        // SAFETY: That is the value that it had.
        unsafe { x86::wrmsr(IA32_FS_BASE, self.fs_base.get()) };
        // SAFETY: As above.
        unsafe { x86::wrmsr(IA32_KERNEL_GS_BASE, user_gs_base) };
    }

    /// Precise event sampling would write its records through the guest's linear addresses; Processor Trace is
    /// not allowed where the CPU says so.
    #[inline]
    fn stop_tracing(&mut self) {
        if self.traits.pebs {
            // SAFETY: The kernel found it in the CPU.
            self.pebs = unsafe { x86::rdmsr(IA32_PEBS_ENABLE) };
            if self.pebs != 0 {
                // SAFETY: Turns sampling off until `resume_tracing`.
                unsafe { x86::wrmsr(IA32_PEBS_ENABLE, 0) };
            }
        }
        if self.traits.stop_trace {
            // SAFETY: The kernel found it in the CPU.
            self.trace = unsafe { x86::rdmsr(IA32_RTIT_CTL) };
            if self.trace & TRACE_EN != 0 {
                // SAFETY: Turns the trace off until `resume_tracing`; nothing else changes.
                unsafe { x86::wrmsr(IA32_RTIT_CTL, self.trace & !TRACE_EN) };
            }
        }
    }

    #[inline]
    fn resume_tracing(&self) {
        if self.traits.stop_trace && self.trace & TRACE_EN != 0 {
            // SAFETY: That is the value that it had, outside of VMX operation.
            unsafe { x86::wrmsr(IA32_RTIT_CTL, self.trace) };
        }
        if self.traits.pebs && self.pebs != 0 {
            // SAFETY: That is the value that it had.
            unsafe { x86::wrmsr(IA32_PEBS_ENABLE, self.pebs) };
        }
    }

    /// Once a window, before its first entry: what the guest may not learn of who ran before it.
    #[inline]
    pub(super) fn forget_others(&self, another_ran: bool) {
        if another_ran && self.traits.ibpb {
            // SAFETY: The CPU has it; a command, not a state.
            unsafe { x86::wrmsr(IA32_PRED_CMD, 1) };
        }
        if self.traits.flush_l1d {
            // SAFETY: As above.
            unsafe { x86::wrmsr(IA32_FLUSH_CMD, 1) };
        }
    }
}

/// Host state that is the same for every window on this CPU. The VMCS must be current.
fn write_per_cpu(vmcs: &Vmcs) {
    // SAFETY: These MSRs exist in long mode.
    let msr = |number| unsafe { x86::rdmsr(number) };
    vmcs.write(field::HOST_GS_BASE, msr(IA32_GS_BASE));
    vmcs.write(field::HOST_TR_BASE, x86::tss_address());
    vmcs.write(field::HOST_GDTR_BASE, x86::sgdt().base);
    vmcs.write(field::HOST_IDTR_BASE, x86::sidt().base);
    vmcs.write(field::HOST_SYSENTER_ESP, msr(IA32_SYSENTER_ESP));
}

/// Host state that never changes. The VMCS must be current.
fn write_constant(vmcs: &Vmcs) {
    // SAFETY: These MSRs exist in every CPU with VMX and long mode.
    let msr = |number| unsafe { x86::rdmsr(number) };
    vmcs.write(field::HOST_CR0, x86::cr0());
    vmcs.write(field::HOST_CS_SELECTOR, KERNEL_CS);
    vmcs.write(field::HOST_SS_SELECTOR, KERNEL_SS);
    vmcs.write(field::HOST_TR_SELECTOR, KERNEL_TSS);
    for zero in [
        field::HOST_ES_SELECTOR,
        field::HOST_DS_SELECTOR,
        field::HOST_FS_SELECTOR,
        field::HOST_GS_SELECTOR,
    ] {
        vmcs.write(zero, 0);
    }
    vmcs.write(field::HOST_RIP, frame::exit_address());
    vmcs.write(field::HOST_SYSENTER_CS, msr(IA32_SYSENTER_CS));
    vmcs.write(field::HOST_SYSENTER_EIP, msr(IA32_SYSENTER_EIP));
    vmcs.write(field::HOST_PAT, msr(IA32_PAT));
    vmcs.write(field::HOST_EFER, msr(IA32_EFER));
}
