// SPDX-License-Identifier: GPL-2.0

//! What follows from a vCPU's CPUID: the bits of control registers and MSRs that it has. Features that the VMM sets
//! in CPUID without their being supported are not there for these.

use super::features::Words;
use super::guest::GuestCpuid;
use super::EXTENDED;

/// CR4 bits that every virtual CPU has: VME, PVI, TSD, DE, PSE, PAE, MCE, PGE, PCE, OSFXSR, OSXMMEXCPT.
const CR4_ALWAYS: u64 = 0x7ff;
/// EFER bits that every virtual CPU has: SCE.
const EFER_ALWAYS: u64 = 1;

/// EFER.LMA.
const EFER_LMA: u64 = 1 << 10;

/// Bits of MSR SPEC_CTRL.
mod spec_ctrl {
    pub(super) const IBRS: u64 = 1 << 0;
    pub(super) const STIBP: u64 = 1 << 1;
    pub(super) const SSBD: u64 = 1 << 2;
}

/// Bits and limits of a virtual CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Model {
    /// Width of a physical address, in bits.
    pub(crate) maxphyaddr: u8,
    /// The bits of CR4 that it has.
    pub(crate) cr4: u64,
    /// The bits of EFER that it has, LMA among them.
    pub(crate) efer: u64,
    /// The bits of XCR0 that it has.
    pub(crate) xcr0: u64,
    /// The bits of MSR SPEC_CTRL that it has.
    pub(crate) spec_ctrl: u64,
    /// It has MSR PRED_CMD with IBPB.
    pub(crate) ibpb: bool,
    /// It has the x2APIC.
    pub(crate) x2apic: bool,
    /// It has RDTSCP or RDPID, and with them MSR TSC_AUX.
    pub(crate) tsc_aux: bool,
    /// It has MSR TSC_ADJUST.
    pub(crate) tsc_adjust: bool,
    /// It has MSR ARCH_CAPABILITIES.
    pub(crate) arch_capabilities: bool,
    /// It has 1 GiB pages.
    pub(crate) gigabyte_pages: bool,
}

impl Model {
    /// Without any CPUID: what every virtual CPU has, and 36 bits of physical address (SDM vol 3, 4.1.4).
    pub(super) const NONE: Self = Self {
        maxphyaddr: 36,
        cr4: CR4_ALWAYS,
        efer: EFER_ALWAYS,
        xcr0: 1,
        spec_ctrl: 0,
        ibpb: false,
        x2apic: false,
        tsc_aux: false,
        tsc_adjust: false,
        arch_capabilities: false,
        gigabyte_pages: false,
    };

    /// By CPUID `guest` on a machine that supports `words` and the extended states `xcr0`.
    pub(super) fn new(guest: &GuestCpuid, words: &Words, xcr0: u64) -> Self {
        let leaf = |leaf, subleaf| guest.exact(leaf, subleaf).unwrap_or_default();
        let (one, seven, e1) = (leaf(1, 0), leaf(7, 0), leaf(0x8000_0001, 0));
        let has = |word: u32, supported: u32, bit: u32| word & supported & (1 << bit) != 0;
        let one_ecx = |bit| has(one.ecx, words.leaf_1_ecx, bit);
        let seven_ebx = |bit| has(seven.ebx, words.leaf_7_ebx, bit);
        let seven_ecx = |bit| has(seven.ecx, words.leaf_7_ecx, bit);
        let seven_edx = |bit| has(seven.edx, words.leaf_7_edx, bit);
        let e1_edx = |bit| has(e1.edx, words.leaf_e1_edx, bit);
        let e8_ebx = |bit| has(leaf(0x8000_0008, 0).ebx, words.leaf_e8_ebx, bit);
        let states = leaf(0xd, 0);
        let states = u64::from(states.edx) << 32 | u64::from(states.eax);
        Self {
            maxphyaddr: maxphyaddr(guest),
            cr4: CR4_ALWAYS
                | mask(&[
                    (seven_ecx(2), 1 << 11),
                    (seven_ebx(0), 1 << 16),
                    (one_ecx(17), 1 << 17),
                    (one_ecx(26), 1 << 18),
                    (seven_ebx(7), 1 << 20),
                    (seven_ebx(20), 1 << 21),
                ]),
            efer: EFER_ALWAYS
                | mask(&[
                    (e1_edx(29), 1 << 8 | 1 << 10),
                    (e1_edx(20), 1 << 11),
                    (e1_edx(25), 1 << 14),
                ]),
            xcr0: states & xcr0 | 1,
            spec_ctrl: mask(&[
                (seven_edx(26) || e8_ebx(14), spec_ctrl::IBRS),
                (seven_edx(27) || e8_ebx(15), spec_ctrl::STIBP),
                (seven_edx(31) || e8_ebx(24), spec_ctrl::SSBD),
            ]),
            ibpb: seven_edx(26) || e8_ebx(12),
            x2apic: one_ecx(21),
            tsc_aux: e1_edx(27) || seven.ecx & words.emulated_rdpid() != 0,
            tsc_adjust: seven_ebx(1),
            arch_capabilities: seven_edx(29),
            gigabyte_pages: e1_edx(26),
        }
    }

    /// Whether it has long mode.
    pub(crate) fn has_long_mode(&self) -> bool {
        self.efer & EFER_LMA != 0
    }

    /// The bits of a physical address that it doesn't have.
    pub(crate) fn beyond_physical(&self) -> u64 {
        u64::MAX.checked_shl(self.maxphyaddr.into()).unwrap_or(0)
    }
}

/// All bits whose condition holds.
fn mask(bits: &[(bool, u64)]) -> u64 {
    let held = bits.iter().filter(|(holds, _)| *holds);
    held.fold(0, |all, (_, bits)| all | bits)
}

fn maxphyaddr(guest: &GuestCpuid) -> u8 {
    let last = guest.exact(EXTENDED, 0).map_or(0, |leaf| leaf.eax);
    match guest.exact(0x8000_0008, 0) {
        Some(sizes) if last >= 0x8000_0008 => (sizes.eax as u8).min(52),
        _ => Model::NONE.maxphyaddr,
    }
}
