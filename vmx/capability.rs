// SPDX-License-Identifier: GPL-2.0

//! Whether this CPU has VMX with all that xvm needs, from CPUID and the VMX capability MSRs (SDM vol 3, appendix A).

use super::controls::Controls;
use super::field::primary;
use super::field::secondary;
use super::instruction::Scope;
use crate::linux::x86;
use crate::xvm::ops::Capabilities;
use crate::xvm::ops::Features;
use crate::xvm::ops::TscScaling;
use kernel::prelude::*;

const IA32_FEATURE_CONTROL: u32 = 0x3a;
const IA32_VMX_BASIC: u32 = 0x480;
const IA32_VMX_CR0_FIXED0: u32 = 0x486;
const IA32_VMX_CR0_FIXED1: u32 = 0x487;
const IA32_VMX_CR4_FIXED0: u32 = 0x488;
const IA32_VMX_CR4_FIXED1: u32 = 0x489;
const IA32_VMX_MISC: u32 = 0x485;
const IA32_VMX_EPT_VPID_CAP: u32 = 0x48c;

/// CR4.FRED: the host takes events by flexible return and event delivery, for which an NMI can't be handed on by INT.
const CR4_FRED: u64 = 1 << 32;

/// Names of the bits of [`Features::found`], by their place.
const FEATURES: &[&str] = &[
    "ept",
    "unrestricted_guest",
    "vpid",
    "tpr_shadow",
    "virtual_nmis",
    "rdtscp",
    "invpcid",
    "ple",
    "tsc_scaling",
    "ept_ad",
    "ept_1g",
    "invept_single",
    "invvpid_single",
];

/// IA32_VMX_EPT_VPID_CAP (A.10).
#[derive(Clone, Copy)]
pub(super) struct EptVpid(u64);

impl EptVpid {
    /// Reads it. EPT must have been found.
    pub(super) fn read() -> Self {
        // SAFETY: The MSR exists where EPT does.
        Self(unsafe { x86::rdmsr(IA32_VMX_EPT_VPID_CAP) })
    }

    /// Bit 21: the CPU sets accessed and dirty bits in EPT entries.
    pub(super) fn accessed_dirty(self) -> bool {
        self.has(21)
    }

    /// Bit 17: EPT entries may map 1 GiB.
    pub(super) fn huge_1g(self) -> bool {
        self.has(17)
    }

    fn has(self, bit: u32) -> bool {
        self.0 & (1 << bit) != 0
    }

    /// Bits: 6 walk of 4 levels, 14 write-back, 16 2 MiB pages, 20 INVEPT, 25 single-context, 26 all-context.
    pub(super) fn invept(self) -> Result<Scope> {
        for (bit, what) in [
            (6, "EPT with 4 levels"),
            (14, "EPT with write-back memory"),
            (16, "EPT with 2 MiB pages"),
            (20, "INVEPT"),
        ] {
            if !self.has(bit) {
                return Err(missing(what));
            }
        }
        match (self.has(25), self.has(26)) {
            (true, _) => Ok(Scope::Single),
            (false, true) => Ok(Scope::All),
            (false, false) => Err(missing("INVEPT of one or all contexts")),
        }
    }

    /// Bits: 32 INVVPID, 41 single-context, 42 all-context.
    pub(super) fn invvpid(self) -> Option<Scope> {
        match (self.has(32), self.has(41), self.has(42)) {
            (true, true, _) => Some(Scope::Single),
            (true, false, true) => Some(Scope::All),
            _ => None,
        }
    }
}

/// The VMCS revision identifier (A.1).
pub(super) fn revision() -> u32 {
    basic() as u32 & 0x7fff_ffff
}

fn basic() -> u64 {
    // SAFETY: `probe` found VMX on every CPU before anything else of this vendor is called, and the MSR exists
    // with it.
    unsafe { x86::rdmsr(IA32_VMX_BASIC) }
}

/// Whether the "true" capability MSRs are there, which allow more controls to be off (A.2).
pub(super) fn has_true_controls() -> bool {
    basic() & (1 << 55) != 0
}

/// IA32_VMX_MISC (A.6).
fn misc() -> u64 {
    // SAFETY: The MSR exists wherever VMX does, which `probe` found.
    unsafe { x86::rdmsr(IA32_VMX_MISC) }
}

/// Whether Processor Trace may go on in VMX operation (bit 14).
pub(super) fn trace_in_vmx() -> bool {
    misc() & (1 << 14) != 0
}

/// The VMX-preemption timer counts once when this bit of the TSC changes (bits 4:0).
pub(super) fn preemption_timer_shift() -> u32 {
    (misc() & 0x1f) as u32
}

/// Says what a CPU with VMX lacks.
#[cold]
pub(super) fn missing(what: &str) -> Error {
    pr_err!("VMX is there but can't be used: this CPU lacks {what}\n");
    EOPNOTSUPP
}

/// The TSC multiplier (26.6.5): 48 bits behind the point, and any value.
const TSC_SCALING: TscScaling = TscScaling {
    fraction: 48,
    limit: u64::MAX,
};

/// The TSC multiplier of 1.
pub(super) const TSC_UNSCALED: u64 = 1 << TSC_SCALING.fraction;

/// Looks at the calling CPU.
pub(super) fn probe() -> Result<Capabilities> {
    if x86::cpuid(1, 0).ecx & (1 << 5) == 0 {
        return Err(ENODEV);
    }
    // Bit 0 locks the register, bit 2 allows VMXON outside of SMX (25.7).
    if x86::rdmsr_safe(IA32_FEATURE_CONTROL)? & 0b101 != 0b101 {
        pr_err!("VMX is turned off by firmware (IA32_FEATURE_CONTROL)\n");
        return Err(EOPNOTSUPP);
    }
    if x86::cr4() & CR4_FRED != 0 {
        pr_err!("VMX can't be used: this kernel runs with FRED, boot it with fred=off\n");
        return Err(EOPNOTSUPP);
    }
    let controls = Controls::read()?;
    check_host()?;
    Ok(Capabilities {
        instruction_length: true,
        tsc_scaling: (controls.secondary & secondary::USE_TSC_SCALING != 0).then_some(TSC_SCALING),
        features: features(&controls),
    })
}

/// VMXON demands some bits of CR0 and CR4, which the kernel's values must have (A.7, A.8).
fn check_host() -> Result {
    // SAFETY: The MSRs exist with VMX.
    let fixed = |msr| unsafe { x86::rdmsr(msr) };
    let (cr0, cr4) = (x86::cr0(), x86::cr4() | super::vmcs::CR4_VMXE);
    let cr0_bad = fixed(IA32_VMX_CR0_FIXED0) & !cr0 | cr0 & !fixed(IA32_VMX_CR0_FIXED1);
    let cr4_bad = fixed(IA32_VMX_CR4_FIXED0) & !cr4 | cr4 & !fixed(IA32_VMX_CR4_FIXED1);
    if cr0_bad != 0 || cr4_bad != 0 {
        pr_err!(
            "VMX can't be used: the kernel's CR0 {cr0:#x} or CR4 {cr4:#x} doesn't suit VMXON\n"
        );
        return Err(EOPNOTSUPP);
    }
    Ok(())
}

/// The list for `xvm info`.
fn features(controls: &Controls) -> Features {
    let found = [
        true,
        true,
        controls.invvpid.is_some(),
        controls.primary & primary::USE_TPR_SHADOW != 0,
        true,
        controls.secondary & secondary::ENABLE_RDTSCP != 0,
        controls.secondary & secondary::ENABLE_INVPCID != 0,
        controls.secondary & secondary::PAUSE_LOOP_EXITING != 0,
        controls.secondary & secondary::USE_TSC_SCALING != 0,
        controls.accessed_dirty,
        controls.huge_1g,
        controls.invept == Scope::Single,
        controls.invvpid == Some(Scope::Single),
    ];
    Features {
        names: FEATURES,
        found: found
            .iter()
            .enumerate()
            .fold(0, |bits, (n, &has)| bits | u64::from(has) << n),
    }
}
