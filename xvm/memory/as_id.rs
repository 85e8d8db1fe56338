// SPDX-License-Identifier: GPL-2.0

//! The two guest-physical address spaces of a VM (api.rst, 4.35, `KVM_CAP_MULTI_ADDRESS_SPACE`).

/// Number of address spaces.
pub(crate) const COUNT: usize = 2;

/// Where the number of the address space is in the slot numbers of the ABI.
const SHIFT: u32 = 16;

/// An address space, by its number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum AsId {
    /// What a vCPU finds.
    #[default]
    Main = 0,
    /// What it finds in system management mode.
    Smm = 1,
}

impl AsId {
    /// Splits a slot number as the ABI has it; `None` where there is no such address space. The number in the address space is not checked.
    pub(super) const fn split(slot: u32) -> Option<(Self, u32)> {
        let id = slot & ((1 << SHIFT) - 1);
        match slot >> SHIFT {
            0 => Some((Self::Main, id)),
            1 => Some((Self::Smm, id)),
            _ => None,
        }
    }

    /// Its place in an array of one element for each.
    #[inline]
    pub(super) const fn index(self) -> usize {
        self as usize
    }
}
