// SPDX-License-Identifier: GPL-2.0

//! Reading and writing guest memory on the guest's behalf, through the VMM's addresses.

use super::Slots;
use crate::linux::user;
use kernel::prelude::*;

impl Slots {
    /// Splits `length` bytes at `gpa` at page borders and calls `each` with a user address, the page's slot being writable or not,
    /// and the part of the bytes.
    fn pieces(
        &self,
        gpa: u64,
        length: usize,
        mut each: impl FnMut(usize, bool, core::ops::Range<usize>) -> Result,
    ) -> Result {
        let mut done = 0;
        while done < length {
            let at = gpa.wrapping_add(done as u64);
            let part = (length - done).min(4096 - (at % 4096) as usize);
            let region = self.by_gpa(at).ok_or(ENXIO)?;
            each(
                region.user_address(at),
                !region.read_only,
                done..done + part,
            )?;
            done += part;
        }
        Ok(())
    }

    /// Copies guest memory out. May sleep.
    ///
    /// # Errors
    ///
    /// `ENXIO` where there is no memory, `EFAULT` where the VMM has nothing mapped.
    pub(crate) fn read(&self, gpa: u64, to: &mut [u8]) -> Result {
        self.pieces(gpa, to.len(), |address, _, part| {
            user::read_bytes(address, &mut to[part])
        })
    }

    /// Copies guest memory out without sleeping, also inside the window.
    ///
    /// # Errors
    ///
    /// As [`Slots::read`], and `EFAULT` for what isn't present.
    #[inline]
    pub(crate) fn read_nofault(&self, gpa: u64, to: &mut [u8]) -> Result {
        self.pieces(gpa, to.len(), |address, _, part| {
            user::read_nofault(address, &mut to[part])
        })
    }

    /// Reads eight bytes that are inside of one page, if they are present, without sleeping, also inside the window.
    ///
    /// # Errors
    ///
    /// As [`Slots::read_nofault`].
    #[inline]
    pub(crate) fn read_word_nofault(&self, gpa: u64) -> Result<u64> {
        let region = self.by_gpa(gpa).ok_or(ENXIO)?;
        user::read_word_nofault(region.user_address(gpa))
    }

    /// Copies into guest memory. May sleep.
    ///
    /// # Errors
    ///
    /// `ENXIO` where there is no memory or it is read-only (then bytes before it may have been written), `EFAULT` where the VMM has nothing mapped.
    pub(crate) fn write(&self, gpa: u64, from: &[u8]) -> Result {
        self.pieces(gpa, from.len(), |address, writable, part| {
            if !writable {
                return Err(ENXIO);
            }
            user::write_bytes(address, &from[part])
        })
    }

    /// Atomically replaces `old` with `new` (4 or 8 bytes at `gpa`, aligned) in guest memory. Whether it did. May sleep.
    ///
    /// # Errors
    ///
    /// As [`Slots::write`].
    pub(crate) fn compare_exchange(
        &self,
        gpa: u64,
        size: usize,
        old: u64,
        new: u64,
    ) -> Result<bool> {
        let region = self.by_gpa(gpa).ok_or(ENXIO)?;
        if region.read_only {
            return Err(ENXIO);
        }
        user::compare_exchange(region.user_address(gpa), size, old, new)
    }
}
