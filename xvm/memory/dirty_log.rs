// SPDX-License-Identifier: GPL-2.0

//! The dirty log: which pages of a slot were written to since the VMM last asked (api.rst, 4.8, 4.117, 7.18).
//!
//! While a slot is logged its pages are mapped by 4 KiB, and not for writing but after a write fault, which sets the page's bit
//! under the tables' lock. A harvest takes bits and, under the same lock, the right to write to their pages: so what is
//! writable has its bit set. Before the VMM gets the bits, TLBs are flushed: what is written afterwards faults, and is
//! in the next harvest.

use super::bitmap::WORD;
use super::region::as_id_of;
use super::slots::Slots;
use super::Bitmap;
use super::Memory;
use super::PageFormat;
use super::Region;
use crate::linux::task;
use crate::linux::user;
use crate::uapi;
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;
use kernel::sync::Arc;

/// Words that are collected between two flushes: 2 GiB of guest memory.
const BATCH: usize = 8192;

/// Words whose pages are protected before the tables' lock is given up for a moment: 16 MiB.
const LOCKED: usize = 64;

/// Bytes that a word stands for.
const WORD_BYTES: u64 = WORD * PAGE_SIZE as u64;

/// The log of a slot.
fn logged(slots: &Slots, slot: u32) -> Result<(&Arc<Region>, &Arc<Bitmap>)> {
    as_id_of(slot)?;
    let region = slots.by_id(slot).ok_or(ENOENT)?;
    Ok((region, region.dirty.as_ref().ok_or(ENOENT)?))
}

impl<F: PageFormat> Memory<F> {
    /// `KVM_ENABLE_CAP` of `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for unknown options, or the second without the first.
    pub(crate) fn set_log_options(&self, asked: u64) -> Result {
        const MANUAL: u64 = uapi::KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE as u64;
        const INITIALLY_SET: u64 = uapi::KVM_DIRTY_LOG_INITIALLY_SET as u64;
        let manual = asked & MANUAL != 0;
        let initially_set = asked & INITIALLY_SET != 0;
        if asked & !(MANUAL | INITIALLY_SET) != 0 || initially_set && !manual {
            return Err(EINVAL);
        }
        let mut options = self.update.lock();
        options.manual = manual;
        options.initially_set = initially_set;
        Ok(())
    }

    /// `KVM_GET_DIRTY_LOG`: gives out the log of `slot` to user address `to`, and begins a new one unless that is left to
    /// [`Memory::clear_dirty_log`]. May sleep.
    ///
    /// # Errors
    ///
    /// `ENXIO` when there are dirty rings instead, `EINVAL` for a number that no slot can have, `ENOENT` when the slot isn't there or not logged, `EFAULT` (then the pages that
    /// nobody was told of stay in the log), `ENOMEM`.
    pub(crate) fn get_dirty_log(&self, slot: u32, to: usize) -> Result {
        let options = self.update.lock();
        if self.rings.are_used() {
            return Err(ENXIO);
        }
        let slots = self.current.get();
        let (region, dirty) = logged(&slots, slot)?;
        let mut batch = KVVec::with_capacity(dirty.len().min(BATCH), GFP_KERNEL_ACCOUNT)?;
        for first in (0..dirty.len()).step_by(BATCH) {
            let words = first..dirty.len().min(first + BATCH);
            batch.clear();
            for word in words {
                batch.push(dirty.peek(word), GFP_KERNEL_ACCOUNT)?;
            }
            if !options.manual {
                self.take(region, dirty, first, &mut batch);
            }
            let copied = to
                .checked_add(first * 8)
                .ok_or(EFAULT)
                .and_then(|to| user::write_words(to, &batch));
            if copied.is_err() && !options.manual {
                for (i, bits) in batch.iter().enumerate() {
                    dirty.restore(first + i, *bits);
                }
            }
            copied?;
            task::cond_resched();
        }
        Ok(())
    }

    /// `KVM_CLEAR_DIRTY_LOG`: takes the pages with bits set at user address `from` out of the log of `slot`, bit 0 being page
    /// `first`; writes to them are logged again. May sleep.
    ///
    /// # Errors
    ///
    /// As [`Memory::get_dirty_log`], and `EINVAL` when `first` or `pages` aren't multiples of 64, unless they end with the slot,
    /// or go beyond it.
    pub(crate) fn clear_dirty_log(&self, slot: u32, first: u64, pages: u32, from: usize) -> Result {
        let _options = self.update.lock();
        if self.rings.are_used() {
            return Err(ENXIO);
        }
        let slots = self.current.get();
        if first % WORD != 0 {
            return Err(EINVAL);
        }
        let (region, dirty) = logged(&slots, slot)?;
        let pages = u64::from(pages);
        let left = region.pages().checked_sub(first).ok_or(EINVAL)?;
        if pages > left || pages < left && pages % WORD != 0 {
            return Err(EINVAL);
        }
        let mut words = user::read_words(from, pages.div_ceil(WORD) as usize)?;
        if let (Some(last), true) = (words.last_mut(), pages % WORD != 0) {
            *last &= (1 << (pages % WORD)) - 1;
        }
        self.take(region, dirty, (first / WORD) as usize, &mut words);
        Ok(())
    }

    /// Takes the bits that are set in `words`, which are those of the log from `first` on, out of it, and from the guest the
    /// right to write to their pages. Leaves in `words` which were in the log. Nobody writes to them any more without
    /// a bit when this returns.
    fn take(&self, region: &Region, dirty: &Bitmap, first: usize, words: &mut [u64]) {
        for (i, words) in words.chunks_mut(LOCKED).enumerate() {
            let mut guarded = self.guarded.lock();
            let mut any = false;
            for (j, bits) in words.iter_mut().enumerate() {
                let word = first + i * LOCKED + j;
                *bits = dirty.take(word, *bits);
                let start = region.gpa + word as u64 * WORD_BYTES;
                // Runs of pages, one at a time.
                let mut left = *bits;
                while left != 0 {
                    let run = left.trailing_zeros();
                    let length = (left >> run).trailing_ones();
                    let from = start + u64::from(run) * PAGE_SIZE as u64;
                    let to = from + u64::from(length) * PAGE_SIZE as u64;
                    any |= guarded.tables[region.as_id.index()].protect(&(from..to));
                    left &= match run + length {
                        64.. => 0,
                        end => u64::MAX << end,
                    };
                }
            }
            if any {
                guarded.cleared += 1;
            }
            drop(guarded);
            task::cond_resched();
        }
        self.flush_cleared();
    }
}
