// SPDX-License-Identifier: GPL-2.0

//! The operations that a CPU vendor provides: `trait XvmOps`.
//!
//! One of its two implementations, VMX or SVM, is chosen when the module is loaded. Everything above is generic over it, so
//! that calls are direct. Guest CPU state is in the vendor's control block (VMCS or VMCB) and in nothing else: `xvm/`
//! reads and writes it through these operations alone.
//!
//! The seven operations of the design's origin (xen-devel, 6 June 2005) keep their names: `alloc`, `free`,
//! `load_cpu_user_regs`, `store_cpu_user_regs`, `check_guest_faults`, `inject_exception` and `update_eip`.
//!
//! Unless an operation says otherwise it may be called inside and outside of the window, by the thread that holds the
//! vCPU's lock, and does not sleep.

use super::memory::PageFormat;
pub(crate) use super::platform::scaling::TscScaling;
use super::state::CodeContext;
use super::state::Event;
use super::state::Gprs;
use super::state::Interruptibility;
use super::state::SystemRegs;
use super::state::UserRegs;
use super::Exit;
use crate::linux::irq::IrqsOff;
use kernel::fmt;
use kernel::prelude::*;

/// What a vendor found in the CPU at load; the same on every CPU, or the module does not load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capabilities {
    /// The CPU tells the length of an intercepted instruction (VMX: always; SVM: CPUID 8000_000A EDX.NRIPS).
    pub(crate) instruction_length: bool,
    /// How the CPU scales its TSC for guests, if it can (SVM TSC_RATIO, VMX TSC multiplier).
    pub(crate) tsc_scaling: Option<TscScaling>,
    /// What else was looked for: it is logged at load, and a part of what `KVM_GET_SUPPORTED_CPUID` says follows from it.
    pub(crate) features: Features,
}

/// A vendor's list of features, and which of them were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Features {
    /// Their names, as in CPUID or the manual, for instance `"nrips"`. At most 64.
    pub(crate) names: &'static [&'static str],
    /// Bit n: `names[n]` was found.
    pub(crate) found: u64,
}

impl fmt::Display for Features {
    /// The names of those found, for the log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = self.names.iter().enumerate();
        for (i, (_, name)) in found
            .filter(|(n, _)| (self.found >> n) & 1 != 0)
            .enumerate()
        {
            let comma = if i == 0 { "" } else { ", " };
            f.write_str(comma)?;
            f.write_str(name)?;
        }
        Ok(())
    }
}

/// How a vCPU runs: above all what the VMM has set up and can change at any time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Config {
    /// Host physical address of the root of its second-level page tables, 4 KiB aligned: those of the address space that it is in. With a
    /// new one it finds no translation by the one before.
    pub(crate) root: u64,
    /// What the guest's RDTSC adds to the host's TSC, modulo 2^64.
    pub(crate) tsc_offset: u64,
    /// What the host's TSC is multiplied with before that, with [`TscScaling::fraction`] bits behind the point. `None`: 1.
    pub(crate) tsc_ratio: Option<u64>,
    /// HLT doesn't exit: the CPU waits in the guest, until an interrupt for the host.
    pub(crate) free_hlt: bool,
    /// PAUSE never exits.
    pub(crate) free_pause: bool,
    /// MONITOR and MWAIT don't exit: the CPU waits in the guest, in a power state of the guest's choice.
    pub(crate) free_mwait: bool,
    /// All accesses to MSRs exit, also those that a guest could be left to do by itself.
    pub(crate) msrs_exit: bool,
    /// Debugging by the VMM.
    pub(crate) debug: Option<Debugging>,
}

/// What debugging by the VMM takes. As long as there is such, accesses to debug registers exit ([`Exit::Instruction`]), and so does #DB, with
/// [`Exit::Debug`]; the debug registers of [`SystemRegs`] are what the guest sees, and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Debugging {
    /// DR0 to DR3, and DR7, that are in force instead of the guest's.
    pub(crate) breakpoints: Option<([u64; 4], u64)>,
    /// RFLAGS.TF is in force from now on and after each [`Exit::Debug`]; the RFLAGS of [`UserRegs`] have the guest's own.
    pub(crate) step: bool,
    /// INT3 exits: with [`Exit::Exception`], or [`Exit::Instruction`], which may then be an INT n as well.
    pub(crate) int3: bool,
}

/// What the guest is to get, or tell, as soon as it can take it. Each offer replaces the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Offer {
    /// An external interrupt.
    pub(crate) vector: Option<u8>,
    /// Exit with [`Exit::InterruptWindow`] when the guest can take an external interrupt.
    pub(crate) interrupt_window: bool,
    /// Exit with [`Exit::NmiWindow`] when the guest can take an NMI.
    pub(crate) nmi_window: bool,
}

/// What became of events at the last exit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Delivery {
    /// The guest took the interrupt that was offered and not delivered for certain.
    pub(crate) interrupt_taken: bool,
    /// The event whose delivery the exit cut short (SVM EXITINTINFO, VMX IDT-vectoring information).
    pub(crate) cut_short: Option<Event>,
    /// CR8, 0 to 15, as the guest last wrote it.
    pub(crate) tpr: u8,
}

/// A CPU vendor's virtualisation extension.
pub(crate) trait XvmOps: Sized + Send + Sync + 'static {
    /// The vendor's name, `"vmx"` or `"svm"`.
    const NAME: &'static CStr;

    /// The instruction by which its guests make hypercalls: VMCALL, VMMCALL.
    const HYPERCALL: [u8; 3];

    /// How its second-level page tables look.
    type Pages: PageFormat;

    /// What it needs of each physical CPU (VMXON region; host save area).
    type Cpu: Send + Sync;

    /// The vendor's part of a vCPU: one control block and what the hardware doesn't switch.
    type Vcpu: Send;

    // --- the machine ---

    /// Looks whether this machine has the extension, with all that xvm needs, on the calling CPU.
    ///
    /// # Errors
    ///
    /// `ENODEV` when the CPU is not this vendor's or lacks the extension, `EOPNOTSUPP` when it is there and can't be used
    /// (turned off by firmware, EPT or NPT missing…); the second is logged with the name of what is missing.
    fn probe() -> Result<Capabilities>;

    /// Makes what physical CPU `cpu` needs. May sleep.
    fn cpu_alloc(cpu: u32) -> Result<Self::Cpu>;

    // --- a vCPU's life ---

    /// Makes a vCPU in the state that follows power-up (SDM vol 3, table 10-1), with second-level tables whose root is `root`, as in [`Config`]. May sleep.
    fn alloc(caps: &Capabilities, root: u64) -> Result<Self::Vcpu>;

    /// Gives up what the hardware or the vendor's own tables know of a vCPU, which is dropped after this. May sleep.
    fn free(vcpu: &mut Self::Vcpu);

    // --- the window ---

    /// Opens the window: takes this CPU into guest operation with the vCPU's control block current, what the host needs of
    /// its own state put away, and the guest's syscall MSRs and debug registers loaded. FPU state and XCR0 are not the vendor's.
    fn open(vcpu: &mut Self::Vcpu, cpu: &Self::Cpu, irqs: &IrqsOff);

    /// Runs the guest until its next exit. Window only.
    ///
    /// A host NMI or machine check that ended it has been handled by the host when this returns [`Exit::Host`] or, for what
    /// waits for the window's end, will be then.
    fn run(vcpu: &mut Self::Vcpu, cpu: &Self::Cpu) -> Exit;

    /// Closes the window: the host's state is back as `open` found it.
    fn close(vcpu: &mut Self::Vcpu, cpu: &Self::Cpu, irqs: &IrqsOff);

    // --- guest CPU state ---

    /// Sets the general registers, RIP and RFLAGS.
    fn load_cpu_user_regs(vcpu: &mut Self::Vcpu, regs: &UserRegs);

    /// Reads the general registers, RIP and RFLAGS.
    fn store_cpu_user_regs(vcpu: &Self::Vcpu) -> UserRegs;

    /// The general registers but RSP (whose slot means nothing here), in place, for exits that use them.
    fn gprs(vcpu: &mut Self::Vcpu) -> &mut Gprs;

    /// Reads segments, descriptor tables, control registers, EFER and debug registers.
    fn system_regs(vcpu: &Self::Vcpu) -> SystemRegs;

    /// Sets segments, descriptor tables, control registers, EFER and debug registers. The caller has checked them against the manual's
    /// rules (`SystemRegs::check`); what hardware demands beyond the guest's wish (CR0.NE, CR4.VMXE, EFER.SVME) is added here and hidden
    /// from `system_regs`. Guest TLB entries of the old paging mode are dropped.
    fn set_system_regs(vcpu: &mut Self::Vcpu, regs: &SystemRegs);

    /// Reads an MSR that lives in the control block or is switched by the window: FS_BASE, GS_BASE, KERNEL_GS_BASE, STAR,
    /// LSTAR, CSTAR, SYSCALL_MASK, SYSENTER_CS/ESP/EIP, PAT, TSC_AUX, DEBUGCTL, SPEC_CTRL. `None` for any other.
    fn read_msr(vcpu: &Self::Vcpu, msr: u32) -> Option<u64>;

    /// Writes such an MSR; the caller has checked the value (canonical, reserved bits). `false` for any other.
    fn write_msr(vcpu: &mut Self::Vcpu, msr: u32, value: u64) -> bool;

    /// Reads what finding the instruction at RIP takes: a part of the registers above, cheap enough for every exit.
    fn code_context(vcpu: &Self::Vcpu) -> CodeContext;

    /// Sets CR8, 0 to 15.
    fn set_tpr(vcpu: &mut Self::Vcpu, tpr: u8);

    /// Makes the vCPU run as `config` says from its next entry on. Replaces the configuration before; a new vCPU has the default, but for its root.
    fn configure(vcpu: &mut Self::Vcpu, config: &Config);

    // --- events ---

    /// What became of events at the last exit; asked once after each. What was cut short the caller injects again, or turns
    /// into what a fault during delivery makes of it.
    fn check_guest_faults(vcpu: &mut Self::Vcpu) -> Delivery;

    /// Makes the next entry deliver `event` (SVM EVENTINJ, VMX VM-entry interruption information). One event at a time: the
    /// caller has seen that none is waiting.
    fn inject_exception(vcpu: &mut Self::Vcpu, event: Event);

    /// Offers the guest an interrupt, and asks to be told when it can take one or an NMI; replaces the last offer. True when the
    /// next entry delivers `offer.vector` for certain. Else the CPU delivers it by itself as soon as the guest can take it
    /// (then [`Delivery::interrupt_taken`] tells), or exits with [`Exit::InterruptWindow`] then.
    fn offer_interrupt(vcpu: &mut Self::Vcpu, offer: Offer) -> bool;

    /// What keeps interrupts and NMIs from the guest now.
    fn interruptibility(vcpu: &Self::Vcpu) -> Interruptibility;

    /// Sets the interrupt shadow and NMI blocking (RFLAGS.IF in it is ignored: it belongs to the user registers).
    fn set_interruptibility(vcpu: &mut Self::Vcpu, state: Interruptibility);

    // --- instructions and translations ---

    /// Moves RIP behind the instruction that exited, which was carried out for the guest; ends the interrupt shadow and
    /// RFLAGS.RF; with RFLAGS.TF in force the next run ends with the trap, before the guest has executed anything. `length` in bytes (1 to
    /// 15) is what the decoder says, 0 when RIP has been moved already; with `None` the CPU's own word counts. False when the
    /// CPU doesn't tell the length: then nothing has changed, and the caller must decode.
    fn update_eip(vcpu: &mut Self::Vcpu, length: Option<u8>) -> bool;

    /// Before the next entry, drops every translation that CPUs may hold for this vCPU, of both levels. The run loop
    /// calls it when the VM's second-level tables lost an entry, and when the vCPU comes to another CPU.
    fn flush_tlb(vcpu: &mut Self::Vcpu);
}
