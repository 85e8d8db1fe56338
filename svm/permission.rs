// SPDX-License-Identifier: GPL-2.0

//! The permission maps for I/O ports and MSRs (APM vol 2, 15.10 and 15.11): everything exits but a short list of MSRs.

use crate::linux::page::Pages;
use kernel::prelude::*;

/// MSRs that the guest reads and writes by itself: VMLOAD and VMSAVE switch them, and WRMSR checks that addresses are
/// canonical. Where SYSENTER goes is not among them: how much of it is kept is the guest's model's to say (`msr::check`).
const PASSED_THROUGH: [u32; 8] = [
    0x0000_0174, // SYSENTER_CS
    0xc000_0081, // STAR
    0xc000_0082, // LSTAR
    0xc000_0083, // CSTAR
    0xc000_0084, // SFMASK
    0xc000_0100, // FS_BASE
    0xc000_0101, // GS_BASE
    0xc000_0102, // KERNEL_GS_BASE
];

/// Both maps. They are the same for all guests.
pub(super) struct PermissionMaps {
    /// 12 KiB, one bit a port, and 16 KiB so that the page allocator can give them.
    io: Pages<2>,
    /// 8 KiB, two bits an MSR.
    msr: Pages<1>,
}

impl PermissionMaps {
    /// Makes them. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(super) fn new() -> Result<Self> {
        let maps = Self {
            io: Pages::new()?,
            msr: Pages::new()?,
        };
        // SAFETY: The pages are 16 KiB and ours alone.
        unsafe { maps.io.as_ptr().write_bytes(0xff, 4 << 12) };
        // SAFETY: The pages are 8 KiB and ours alone, until this function returns.
        let msr = unsafe { core::slice::from_raw_parts_mut(maps.msr.as_ptr(), 2 << 12) };
        msr.fill(0xff);
        for number in PASSED_THROUGH {
            if let Some((byte, shift)) = msr_position(number) {
                msr[byte] &= !(0b11 << shift);
            }
        }
        Ok(maps)
    }

    /// Physical address of the I/O permission map.
    pub(super) fn io_base(&self) -> u64 {
        self.io.phys()
    }

    /// Physical address of an MSR permission map by which every MSR exits: all bits of the ports' map are set, too.
    pub(super) fn closed_msr_base(&self) -> u64 {
        self.io.phys()
    }

    /// Physical address of the MSR permission map.
    pub(super) fn msr_base(&self) -> u64 {
        self.msr.phys()
    }
}

/// Where an MSR's two bits (read, write) are: byte and shift. `None` for an MSR that the map doesn't have, which always exits.
fn msr_position(number: u32) -> Option<(usize, u32)> {
    let vector = match number >> 13 {
        0 => 0,
        0x6_0000 => 0x800,
        0x6_0008 => 0x1000,
        _ => return None,
    };
    let index = number & 0x1fff;
    Some((vector + (index / 4) as usize, index % 4 * 2))
}
