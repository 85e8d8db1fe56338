// SPDX-License-Identifier: GPL-2.0

//! What this CPU's VMX can do, from CPUID and the VMX capability MSRs (SDM vol 3, appendix A).

use super::field::entry;
use super::field::exit;
use super::field::pin;
use super::field::primary;
use super::field::secondary;
use super::instruction::Scope;
use crate::linux::x86;
use crate::xvm::ops::Capabilities;
use crate::xvm::ops::Features;
use kernel::prelude::*;

const IA32_FEATURE_CONTROL: u32 = 0x3a;
const IA32_VMX_BASIC: u32 = 0x480;
const IA32_VMX_CR0_FIXED0: u32 = 0x486;
const IA32_VMX_CR0_FIXED1: u32 = 0x487;
const IA32_VMX_CR4_FIXED0: u32 = 0x488;
const IA32_VMX_CR4_FIXED1: u32 = 0x489;
const IA32_VMX_MISC: u32 = 0x485;
const IA32_VMX_PROCBASED_CTLS2: u32 = 0x48b;
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
    "ept_ad",
    "ept_1g",
    "invept_single",
    "invvpid_single",
];

/// The controls of every VMCS: what the CPU demands and what xvm wants of what it offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Controls {
    /// Pin-based controls.
    pub(super) pin: u32,
    /// Primary processor-based controls, without windows.
    pub(super) primary: u32,
    /// Secondary processor-based controls.
    pub(super) secondary: u32,
    /// VM-exit controls.
    pub(super) exit: u32,
    /// VM-entry controls, but for the guest's mode.
    pub(super) entry: u32,
    /// Bits of CR0 that must be 1 in VMX operation even with an unrestricted guest: NE.
    pub(super) cr0_fixed: u64,
    /// Bits of CR4 that must be 1: VMXE.
    pub(super) cr4_fixed: u64,
    /// What INVEPT can be told.
    pub(super) invept: Scope,
    /// What INVVPID can be told; `None` without VPID.
    pub(super) invvpid: Option<Scope>,
    /// The CPU sets accessed and dirty bits in EPT entries.
    pub(super) accessed_dirty: bool,
    /// EPT entries may map 1 GiB.
    huge_1g: bool,
}

/// IA32_VMX_EPT_VPID_CAP (A.10).
#[derive(Clone, Copy)]
struct EptVpid(u64);

impl EptVpid {
    fn has(self, bit: u32) -> bool {
        self.0 & (1 << bit) != 0
    }

    /// Bits: 6 walk of 4 levels, 14 write-back, 16 2 MiB pages, 20 INVEPT, 25 single-context, 26 all-context.
    fn invept(self) -> Result<Scope> {
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
    fn invvpid(self) -> Option<Scope> {
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

/// Whether Processor Trace may go on in VMX operation (A.6, bit 14).
pub(super) fn trace_in_vmx() -> bool {
    // SAFETY: The MSR exists wherever VMX does, which `probe` found.
    let misc = unsafe { x86::rdmsr(IA32_VMX_MISC) };
    misc & (1 << 14) != 0
}

#[cold]
fn missing(what: &str) -> Error {
    pr_err!("VMX is there but can't be used: this CPU lacks {what}\n");
    EOPNOTSUPP
}

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
    controls.check_host()?;
    Ok(Capabilities {
        instruction_length: true,
        huge_1g: controls.huge_1g,
        tsc_scaling: false,
        features: controls.features(),
    })
}

/// A capability MSR of a word of controls: bits that must be 1, bits that may be (A.2).
#[derive(Clone, Copy)]
struct Word {
    must: u32,
    may: u32,
    name: &'static str,
}

impl Word {
    /// The word of MSR `plain`, or, if the CPU has them, of its "true" twin (A.2 to A.5), which is `0x48d` to
    /// `0x490` for `0x481` to `0x484`.
    fn read(plain: u32, name: &'static str) -> Self {
        let msr = match basic() & (1 << 55) != 0 && plain != IA32_VMX_PROCBASED_CTLS2 {
            true => plain + 0xc,
            false => plain,
        };
        // SAFETY: These exist with VMX, the true ones with bit 55 of IA32_VMX_BASIC, the secondary one where it
        // is asked for.
        let value = unsafe { x86::rdmsr(msr) };
        Self {
            must: value as u32,
            may: (value >> 32) as u32,
            name,
        }
    }

    /// The value with all bits of `need` and those of `want` that the CPU has.
    fn choose(self, need: u32, want: u32, never: u32) -> Result<u32> {
        let lacks = need & !self.may | never & self.must;
        if lacks != 0 {
            pr_err!(
                "VMX is there but can't be used: {} controls {lacks:#x} don't suit\n",
                self.name
            );
            return Err(EOPNOTSUPP);
        }
        Ok(self.must | need | want & self.may)
    }
}

impl Controls {
    /// Chooses the controls from what this CPU offers.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP`, logged, when it lacks what can't be done without.
    pub(super) fn read() -> Result<Self> {
        let pin = Word::read(0x481, "pin-based").choose(
            pin::EXTERNAL_INTERRUPT_EXITING | pin::NMI_EXITING | pin::VIRTUAL_NMIS,
            0,
            0,
        )?;
        let primary = Self::choose_primary()?;
        // EPT and unrestricted guest are what the rest hangs on: name them, not their bits.
        let offered = Word::read(IA32_VMX_PROCBASED_CTLS2, "secondary");
        for (bit, name) in [
            (secondary::ENABLE_EPT, "EPT"),
            (secondary::UNRESTRICTED_GUEST, "unrestricted guest"),
        ] {
            if offered.may & bit == 0 {
                return Err(missing(name));
            }
        }
        // SAFETY: The MSR exists where EPT or VPID do, and EPT was just found.
        let ept = EptVpid(unsafe { x86::rdmsr(IA32_VMX_EPT_VPID_CAP) });
        let invvpid = ept.invvpid();
        let vpid = if invvpid.is_some() {
            secondary::ENABLE_VPID
        } else {
            0
        };
        let secondary = offered.choose(
            secondary::ENABLE_EPT | secondary::UNRESTRICTED_GUEST | secondary::WBINVD_EXITING,
            vpid | secondary::ENABLE_RDTSCP
                | secondary::ENABLE_INVPCID
                | secondary::PAUSE_LOOP_EXITING,
            0,
        )?;
        // SAFETY: The MSRs exist with VMX.
        let fixed = |msr| unsafe { x86::rdmsr(msr) };
        Ok(Self {
            pin,
            primary,
            secondary,
            exit: Word::read(0x483, "exit").choose(
                exit::SAVE_DEBUG_CONTROLS
                    | exit::HOST_ADDRESS_SPACE_SIZE
                    | exit::SAVE_PAT
                    | exit::LOAD_PAT
                    | exit::SAVE_EFER
                    | exit::LOAD_EFER,
                0,
                0,
            )?,
            entry: Word::read(0x484, "entry").choose(
                entry::LOAD_DEBUG_CONTROLS | entry::LOAD_PAT | entry::LOAD_EFER,
                0,
                entry::IA32E_MODE_GUEST,
            )?,
            // PE and PG are the guest's to choose when it is unrestricted (A.7).
            cr0_fixed: fixed(IA32_VMX_CR0_FIXED0) & !0x8000_0001,
            cr4_fixed: fixed(IA32_VMX_CR4_FIXED0),
            invept: ept.invept()?,
            invvpid: (secondary & secondary::ENABLE_VPID != 0)
                .then_some(invvpid)
                .flatten(),
            accessed_dirty: ept.has(21),
            huge_1g: ept.has(17),
        })
    }

    fn choose_primary() -> Result<u32> {
        let offered = Word::read(0x482, "primary");
        let tpr = match offered.may & primary::USE_TPR_SHADOW != 0 {
            true => primary::USE_TPR_SHADOW,
            false => primary::CR8_LOAD_EXITING | primary::CR8_STORE_EXITING,
        };
        offered.choose(
            tpr | primary::USE_TSC_OFFSETTING
                | primary::HLT_EXITING
                | primary::MWAIT_EXITING
                | primary::RDPMC_EXITING
                | primary::MOV_DR_EXITING
                | primary::UNCONDITIONAL_IO_EXITING
                | primary::USE_MSR_BITMAPS
                | primary::MONITOR_EXITING
                | primary::ACTIVATE_SECONDARY,
            0,
            primary::CR3_LOAD_EXITING | primary::CR3_STORE_EXITING | primary::INVLPG_EXITING,
        )
    }

    /// VMXON demands some bits of CR0 and CR4, which the kernel's values must have (A.7, A.8).
    fn check_host(&self) -> Result {
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

    fn features(&self) -> Features {
        let found = [
            true,
            true,
            self.invvpid.is_some(),
            self.primary & primary::USE_TPR_SHADOW != 0,
            true,
            self.secondary & secondary::ENABLE_RDTSCP != 0,
            self.secondary & secondary::ENABLE_INVPCID != 0,
            self.secondary & secondary::PAUSE_LOOP_EXITING != 0,
            self.accessed_dirty,
            self.huge_1g,
            self.invept == Scope::Single,
            self.invvpid == Some(Scope::Single),
        ];
        Features {
            names: FEATURES,
            found: found
                .iter()
                .enumerate()
                .fold(0, |bits, (n, &has)| bits | u64::from(has) << n),
        }
    }
}
