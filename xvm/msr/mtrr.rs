// SPDX-License-Identifier: GPL-2.0

//! Memory type range registers (SDM vol 3, 13.11). They are kept and have no effect, as in KVM: guest memory is
//! write-back, by the second-level tables, for what PAT doesn't say otherwise.

use super::index;
use crate::xvm::platform::Gp;

/// Variable ranges.
const VARIABLE: usize = 8;
/// Fixed-range registers: one of 64 KiB ranges, two of 16 KiB, eight of 4 KiB.
const FIXED: usize = 11;

/// IA32_MTRRCAP: eight variable ranges, fixed ranges, write-combining.
const CAP: u64 = VARIABLE as u64 | 1 << 8 | 1 << 10;

/// IA32_MTRR_DEF_TYPE: type, fixed ranges on, MTRRs on.
const DEF_TYPE: u64 = 0xff | 1 << 10 | 1 << 11;
/// IA32_MTRR_PHYSMASKn: valid.
const VALID: u64 = 1 << 11;

/// UC, WC, WT, WP, WB.
fn is_type(kind: u8) -> bool {
    matches!(kind, 0 | 1 | 4 | 5 | 6)
}

/// The registers.
pub(super) struct Mtrrs {
    def_type: u64,
    fixed: [u64; FIXED],
    /// Base and mask in turns.
    variable: [u64; 2 * VARIABLE],
}

/// Which of them.
enum Register {
    Cap,
    DefType,
    Fixed(usize),
    Variable(usize),
}

fn register(msr: u32) -> Option<Register> {
    let offset = |first: u32| msr.wrapping_sub(first) as usize;
    match msr {
        index::MTRR_CAP => Some(Register::Cap),
        index::MTRR_DEF_TYPE => Some(Register::DefType),
        index::MTRR_FIX_64K => Some(Register::Fixed(0)),
        _ if offset(index::MTRR_FIX_16K) < 2 => {
            Some(Register::Fixed(1 + offset(index::MTRR_FIX_16K)))
        }
        _ if offset(index::MTRR_FIX_4K) < 8 => {
            Some(Register::Fixed(3 + offset(index::MTRR_FIX_4K)))
        }
        _ if offset(index::MTRR_PHYS) < 2 * VARIABLE => {
            Some(Register::Variable(offset(index::MTRR_PHYS)))
        }
        _ => None,
    }
}

impl Mtrrs {
    /// After reset: off.
    pub(super) fn new() -> Self {
        Self {
            def_type: 0,
            fixed: [0; FIXED],
            variable: [0; 2 * VARIABLE],
        }
    }

    /// Reads MSR `msr`; `None` for one that is not here.
    pub(super) fn read(&self, msr: u32) -> Option<u64> {
        match register(msr)? {
            Register::Cap => Some(CAP),
            Register::DefType => Some(self.def_type),
            Register::Fixed(n) => self.fixed.get(n).copied(),
            Register::Variable(n) => self.variable.get(n).copied(),
        }
    }

    /// Writes MSR `msr`; `None` for one that is not here. `beyond` are the bits of an address that the vCPU doesn't
    /// have.
    pub(super) fn write(&mut self, msr: u32, value: u64, beyond: u64) -> Option<Result<(), Gp>> {
        let (slot, legal) = match register(msr)? {
            Register::Cap => return Some(Err(Gp)),
            Register::DefType => (
                &mut self.def_type,
                value & !DEF_TYPE == 0 && is_type(value as u8),
            ),
            Register::Fixed(n) => (
                self.fixed.get_mut(n)?,
                value.to_le_bytes().into_iter().all(is_type),
            ),
            Register::Variable(n) => {
                let reserved = beyond | if n % 2 == 0 { 0xf00 } else { 0xfff & !VALID };
                let kind = n % 2 != 0 || is_type(value as u8);
                (self.variable.get_mut(n)?, value & reserved == 0 && kind)
            }
        };
        if !legal {
            return Some(Err(Gp));
        }
        *slot = value;
        Some(Ok(()))
    }
}
