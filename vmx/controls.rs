// SPDX-License-Identifier: GPL-2.0

//! The controls of a VMCS, chosen from what the CPU offers (SDM vol 3, 26.6 to 26.8 and A.2 to A.5).

use super::capability;
use super::capability::EptVpid;
use super::field::entry;
use super::field::exit;
use super::field::pin;
use super::field::primary;
use super::field::secondary;
use super::instruction::Scope;
use crate::linux::x86;
use kernel::prelude::*;

const IA32_VMX_PINBASED_CTLS: u32 = 0x481;
const IA32_VMX_PROCBASED_CTLS: u32 = 0x482;
const IA32_VMX_EXIT_CTLS: u32 = 0x483;
const IA32_VMX_ENTRY_CTLS: u32 = 0x484;
const IA32_VMX_CR0_FIXED0: u32 = 0x486;
const IA32_VMX_CR4_FIXED0: u32 = 0x488;
const IA32_VMX_PROCBASED_CTLS2: u32 = 0x48b;

/// CR0.PE and PG, which an unrestricted guest chooses (A.7).
const CR0_PE_PG: u64 = 0x8000_0001;

/// What xvm makes of a control.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    /// It must be on.
    Need,
    /// It is on if the CPU has it.
    Want,
    /// It must be off.
    Never,
}

/// Bits, their name in the manual, and what xvm makes of them. Those in no table are as the CPU demands.
type Table = [(u32, &'static str, Use)];

const PIN: &Table = &[
    (
        pin::EXTERNAL_INTERRUPT_EXITING,
        "external-interrupt exiting",
        Use::Need,
    ),
    (pin::NMI_EXITING, "NMI exiting", Use::Need),
    (pin::VIRTUAL_NMIS, "virtual NMIs", Use::Need),
    (pin::PREEMPTION_TIMER, "VMX-preemption timer", Use::Want),
];

const PRIMARY: &Table = &[
    (primary::ACTIVATE_SECONDARY, "secondary controls", Use::Need),
    (primary::USE_MSR_BITMAPS, "MSR bitmaps", Use::Need),
    (primary::USE_TSC_OFFSETTING, "TSC offsetting", Use::Need),
    (primary::HLT_EXITING, "HLT exiting", Use::Need),
    (primary::MWAIT_EXITING, "MWAIT exiting", Use::Need),
    (primary::MONITOR_EXITING, "MONITOR exiting", Use::Need),
    (primary::RDPMC_EXITING, "RDPMC exiting", Use::Need),
    (primary::MOV_DR_EXITING, "MOV-DR exiting", Use::Need),
    (
        primary::UNCONDITIONAL_IO_EXITING,
        "unconditional I/O exiting",
        Use::Need,
    ),
    // With EPT, the guest's page tables are its own.
    (
        primary::CR3_LOAD_EXITING,
        "MOV to CR3 without exit",
        Use::Never,
    ),
    (
        primary::CR3_STORE_EXITING,
        "MOV from CR3 without exit",
        Use::Never,
    ),
    (primary::INVLPG_EXITING, "INVLPG without exit", Use::Never),
];

/// One of the two: CR8 in the virtual-APIC page, or an exit for each access to it.
const TPR_SHADOW: &Table = &[(primary::USE_TPR_SHADOW, "TPR shadow", Use::Need)];
const CR8_EXITS: &Table = &[
    (primary::CR8_LOAD_EXITING, "CR8-load exiting", Use::Need),
    (primary::CR8_STORE_EXITING, "CR8-store exiting", Use::Need),
];

const SECONDARY: &Table = &[
    (secondary::ENABLE_EPT, "EPT", Use::Need),
    (
        secondary::UNRESTRICTED_GUEST,
        "unrestricted guest",
        Use::Need,
    ),
    (secondary::WBINVD_EXITING, "WBINVD exiting", Use::Need),
    (secondary::ENABLE_VPID, "VPID", Use::Want),
    (secondary::ENABLE_RDTSCP, "RDTSCP", Use::Want),
    (secondary::ENABLE_INVPCID, "INVPCID", Use::Want),
    (
        secondary::PAUSE_LOOP_EXITING,
        "PAUSE-loop exiting",
        Use::Want,
    ),
    (secondary::USE_TSC_SCALING, "TSC scaling", Use::Want),
];

const EXIT: &Table = &[
    (
        exit::SAVE_DEBUG_CONTROLS,
        "saving of debug controls",
        Use::Need,
    ),
    (exit::HOST_ADDRESS_SPACE_SIZE, "64-bit hosts", Use::Need),
    (exit::SAVE_PAT, "saving of IA32_PAT", Use::Need),
    (exit::LOAD_PAT, "loading of IA32_PAT at exit", Use::Need),
    (exit::SAVE_EFER, "saving of IA32_EFER", Use::Need),
    (exit::LOAD_EFER, "loading of IA32_EFER at exit", Use::Need),
];

const ENTRY: &Table = &[
    (
        entry::LOAD_DEBUG_CONTROLS,
        "loading of debug controls",
        Use::Need,
    ),
    (entry::LOAD_PAT, "loading of IA32_PAT at entry", Use::Need),
    (entry::LOAD_EFER, "loading of IA32_EFER at entry", Use::Need),
    (entry::IA32E_MODE_GUEST, "32-bit guests", Use::Never),
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
    pub(super) huge_1g: bool,
}

/// A capability MSR of a word of controls: bits that must be 1, bits that may be (A.2).
#[derive(Clone, Copy)]
struct Word {
    must: u32,
    may: u32,
}

impl Word {
    /// The word of MSR `plain`, or, if the CPU has them, of its "true" twin (A.2 to A.5), which is `0x48d` to
    /// `0x490` for `0x481` to `0x484`.
    fn read(plain: u32) -> Self {
        let twin = capability::has_true_controls() && plain != IA32_VMX_PROCBASED_CTLS2;
        let msr = if twin { plain + 0xc } else { plain };
        // SAFETY: These exist with VMX, the true ones as was just asked, the secondary one with the primary control
        // for it, which the caller has chosen before.
        let value = unsafe { x86::rdmsr(msr) };
        Self {
            must: value as u32,
            may: (value >> 32) as u32,
        }
    }

    /// The word with the bits of `table` as it says.
    fn choose(self, table: &Table) -> Result<u32> {
        let mut word = self.must;
        for &(bit, name, usage) in table {
            let suits = match usage {
                Use::Need => self.may & bit != 0,
                Use::Want => true,
                Use::Never => self.must & bit == 0,
            };
            if !suits {
                return Err(capability::missing(name));
            }
            if usage != Use::Never {
                word |= bit & self.may;
            }
        }
        Ok(word)
    }
}

impl Controls {
    /// Chooses the controls from what this CPU offers.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP`, logged, when it lacks what can't be done without.
    pub(super) fn read() -> Result<Self> {
        let pin = Word::read(IA32_VMX_PINBASED_CTLS).choose(PIN)?;
        let primary = Self::choose_primary()?;
        let mut secondary = Word::read(IA32_VMX_PROCBASED_CTLS2).choose(SECONDARY)?;
        let ept = EptVpid::read();
        let invept = ept.invept()?;
        let invvpid = match secondary & secondary::ENABLE_VPID {
            0 => None,
            _ => ept.invvpid(),
        };
        if invvpid.is_none() {
            secondary &= !secondary::ENABLE_VPID;
        }
        // SAFETY: The MSRs exist with VMX.
        let fixed = |msr| unsafe { x86::rdmsr(msr) };
        Ok(Self {
            pin,
            primary,
            secondary,
            exit: Word::read(IA32_VMX_EXIT_CTLS).choose(EXIT)?,
            entry: Word::read(IA32_VMX_ENTRY_CTLS).choose(ENTRY)?,
            cr0_fixed: fixed(IA32_VMX_CR0_FIXED0) & !CR0_PE_PG,
            cr4_fixed: fixed(IA32_VMX_CR4_FIXED0),
            invept,
            invvpid,
            accessed_dirty: ept.accessed_dirty(),
            huge_1g: ept.huge_1g(),
        })
    }

    fn choose_primary() -> Result<u32> {
        let offered = Word::read(IA32_VMX_PROCBASED_CTLS);
        let tpr = match offered.may & primary::USE_TPR_SHADOW {
            0 => CR8_EXITS,
            _ => TPR_SHADOW,
        };
        Ok(offered.choose(PRIMARY)? | offered.choose(tpr)?)
    }
}
