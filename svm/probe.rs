// SPDX-License-Identifier: GPL-2.0

//! What a CPU has of SVM: CPUID 8000_000A (APM vol 3, E.4.9), VM_CR (APM vol 2, 15.30.1).

use super::asid::Pool;
use super::cpu;
use super::vmcb::TlbControl;
use crate::linux::x86;
use crate::xvm::ops;
use crate::xvm::ops::Capabilities;
use kernel::bindings;
use kernel::prelude::*;
use kernel::sync::SetOnce;

/// VM_CR.
const MSR_VM_CR: u32 = 0xc001_0114;
/// VM_CR.SVMDIS: EFER.SVME can't be set.
const VM_CR_SVMDIS: u64 = 1 << 4;
/// CR4.FSGSBASE.
const CR4_FSGSBASE: u64 = 1 << 16;
/// CR4.LA57.
const CR4_LA57: u64 = 1 << 12;

/// What the vendor's code does differently on different CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Features {
    /// Number of ASIDs, that of the host included.
    pub(super) asids: u32,
    /// The VMCB tells the RIP behind an intercepted instruction.
    pub(super) next_rip: bool,
    /// VMRUN may skip what the clean bits name.
    pub(super) clean_bits: bool,
    /// TLB_CONTROL can flush one ASID.
    pub(super) flush_by_asid: bool,
    /// EXITINFO1 tells the operand of MOV to and from control registers.
    pub(super) decode_assists: bool,
    /// PAUSE is intercepted after a count alone.
    pub(super) pause_filter: bool,
    /// The count starts anew after a while without PAUSE.
    pub(super) pause_threshold: bool,
    /// MSR TSC_RATIO is there.
    pub(super) tsc_scaling: bool,
    /// The VMCB switches SPEC_CTRL.
    pub(super) virtual_spec_ctrl: bool,
    /// INVLPGB and TLBSYNC are there, and must be intercepted.
    pub(super) invlpgb: bool,
    /// MCOMMIT is there, and must be intercepted.
    pub(super) mcommit: bool,
    /// RDTSCP or RDPID is there, and with it MSR TSC_AUX.
    pub(super) tsc_aux: bool,
    /// XSAVES is there, and with it MSR IA32_XSS.
    pub(super) xsaves: bool,
    /// Bits of MSR SPEC_CTRL that a guest may set; 0 when the MSR isn't there.
    pub(super) spec_ctrl_bits: u64,
    /// MSR PRED_CMD is there.
    pub(super) ibpb: bool,
    /// The host needs an IBPB before it returns to userspace after a guest ran.
    pub(super) ibpb_exit_to_user: bool,
    /// Nested page tables have five levels, as the host's own.
    pub(super) five_levels: bool,
}

/// Names of what [`Features::list`] tells, in its order.
const NAMES: &[&str] = &[
    "npt",
    "nrips",
    "clean_bits",
    "flush_by_asid",
    "decode_assists",
    "pause_filter",
    "pause_threshold",
    "tsc_scaling",
    "virt_spec_ctrl",
];

/// What the first CPU that was probed has.
static FEATURES: SetOnce<Features> = SetOnce::new();

/// The machine's features, after a successful [`probe`].
///
/// # Errors
///
/// `ENODEV` before.
pub(super) fn features() -> Result<Features> {
    FEATURES.copy().ok_or(ENODEV)
}

/// Looks at this CPU. The module's load and a CPU's coming online call it on each.
///
/// # Errors
///
/// `ENODEV` when there is no SVM here; `EOPNOTSUPP`, logged, when there is and can't be used, or not as on the other CPUs.
pub(super) fn probe() -> Result<Capabilities> {
    let extended = x86::cpuid(0x8000_0000, 0).eax;
    if extended < 0x8000_0001 || x86::cpuid(0x8000_0001, 0).ecx & (1 << 2) == 0 {
        return Err(ENODEV);
    }
    if let Err(missing) = usable(extended) {
        pr_err!("svm: this CPU has SVM, but {}\n", missing);
        return Err(EOPNOTSUPP);
    }
    let features = Features::read();
    if features.asids < Pool::MIN_COUNT {
        pr_err!("svm: this CPU has {} ASIDs, too few\n", features.asids);
        return Err(EOPNOTSUPP);
    }
    FEATURES.populate(features);
    if FEATURES.copy() != Some(features) {
        pr_err!("svm: this CPU's SVM features differ from the others'\n");
        return Err(EOPNOTSUPP);
    }
    Ok(features.capabilities())
}

/// Tells what keeps xvm from using this CPU's SVM, if anything.
fn usable(extended: u32) -> core::result::Result<(), &'static str> {
    if extended < 0x8000_000a || x86::cpuid(0x8000_000a, 0).edx & 1 == 0 {
        return Err("nested paging (NPT) is missing");
    }
    // A hypervisor below us may not know the MSR; then nothing is turned off by it.
    if x86::rdmsr_safe(MSR_VM_CR).is_ok_and(|vm_cr| vm_cr & VM_CR_SVMDIS != 0) {
        return Err("the firmware has turned it off (VM_CR.SVMDIS)");
    }
    if x86::cr4() & CR4_FSGSBASE == 0 {
        return Err("the host doesn't use FSGSBASE");
    }
    if x86::host_encrypts_memory() {
        return Err("the host uses memory encryption (SME or SEV), which xvm doesn't handle");
    }
    Ok(())
}

/// The bits of MSR SPEC_CTRL that CPUID 8000_0008 EBX names (APM vol 2, 3.2.9): IBRS, STIBP, SSBD, PSFD.
fn spec_ctrl_bits(ebx: u32) -> u64 {
    [(14, 0), (15, 1), (24, 2), (28, 7)]
        .into_iter()
        .filter(|&(cpuid, _)| ebx & (1 << cpuid) != 0)
        .fold(0, |bits, (_, bit)| bits | (1 << bit))
}

impl Features {
    fn read() -> Self {
        let svm = x86::cpuid(0x8000_000a, 0);
        let has = |bit: u32| svm.edx & (1 << bit) != 0;
        let more = match x86::cpuid(0x8000_0000, 0).eax {
            0x8000_0008.. => x86::cpuid(0x8000_0008, 0).ebx,
            _ => 0,
        };
        let spec_ctrl = x86::host_has(bindings::X86_FEATURE_MSR_SPEC_CTRL);
        Self {
            asids: svm.ebx,
            next_rip: has(3),
            clean_bits: has(5),
            flush_by_asid: has(6),
            decode_assists: has(7),
            pause_filter: has(10),
            pause_threshold: has(10) && has(12),
            tsc_scaling: has(4),
            virtual_spec_ctrl: spec_ctrl && has(20),
            invlpgb: more & (1 << 3) != 0,
            mcommit: more & (1 << 8) != 0,
            tsc_aux: x86::host_has(bindings::X86_FEATURE_RDTSCP)
                || x86::host_has(bindings::X86_FEATURE_RDPID),
            xsaves: x86::host_has(bindings::X86_FEATURE_XSAVES),
            spec_ctrl_bits: match spec_ctrl {
                true => spec_ctrl_bits(more),
                false => 0,
            },
            ibpb_exit_to_user: x86::host_has(bindings::X86_FEATURE_IBPB_EXIT_TO_USER),
            ibpb: x86::host_has(bindings::X86_FEATURE_IBPB),
            five_levels: x86::cr4() & CR4_LA57 != 0,
        }
    }

    /// One for each of [`NAMES`].
    fn list(&self) -> [bool; NAMES.len()] {
        [
            true,
            self.next_rip,
            self.clean_bits,
            self.flush_by_asid,
            self.decode_assists,
            self.pause_filter,
            self.pause_threshold,
            self.tsc_scaling,
            self.virtual_spec_ctrl,
        ]
    }

    /// What makes VMRUN drop all entries of its ASID, at least.
    pub(super) fn flush(&self) -> TlbControl {
        if self.flush_by_asid {
            TlbControl::FLUSH_ASID
        } else {
            TlbControl::FLUSH_ALL
        }
    }

    fn capabilities(&self) -> Capabilities {
        let bits = self.list().into_iter().enumerate();
        Capabilities {
            instruction_length: self.next_rip,
            tsc_scaling: self.tsc_scaling.then_some(cpu::TSC_SCALING),
            features: ops::Features {
                names: NAMES,
                found: bits.fold(0, |found, (n, has)| found | (u64::from(has) << n)),
            },
        }
    }
}
