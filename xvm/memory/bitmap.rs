// SPDX-License-Identifier: GPL-2.0

//! Which pages of a slot were written to: one bit a page, set from any context, collected 64 at a time.

use crate::linux::words::Words;
use core::sync::atomic::Ordering;
use kernel::prelude::*;

/// Pages of one word.
pub(super) const WORD: u64 = 64;

/// One bit for each page of a slot.
pub(crate) struct Bitmap {
    words: Words,
    pages: u64,
}

impl Bitmap {
    /// A bitmap for `pages` pages, all bits `set` or none, charged to the current memory cgroup. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(super) fn new(pages: u64, set: bool) -> Result<Self> {
        let bitmap = Self {
            words: Words::new(pages.div_ceil(WORD) as usize)?,
            pages,
        };
        if set {
            for word in 0..bitmap.len() {
                bitmap.restore(word, bitmap.valid(word));
            }
        }
        Ok(bitmap)
    }

    /// Number of words.
    pub(super) fn len(&self) -> usize {
        self.words.get().len()
    }

    /// The bits of a word that stand for pages.
    fn valid(&self, word: usize) -> u64 {
        match self.pages.saturating_sub(word as u64 * WORD) {
            left if left >= WORD => u64::MAX,
            left => (1 << left) - 1,
        }
    }

    /// Page `page` was written to, or is about to be.
    #[inline]
    pub(super) fn mark(&self, page: u64) {
        let bit = 1 << (page % WORD);
        if let Some(word) = self.words.get().get((page / WORD) as usize) {
            // SeqCst: a harvest that doesn't see the bit comes before what follows the mark.
            if word.load(Ordering::SeqCst) & bit == 0 {
                word.fetch_or(bit, Ordering::SeqCst);
            }
        }
    }

    /// The bits of `word` as they are.
    pub(super) fn peek(&self, word: usize) -> u64 {
        let word = self.words.get().get(word);
        word.map_or(0, |word| word.load(Ordering::SeqCst))
    }

    /// Clears those of `mask` in `word`, and returns which were set.
    pub(super) fn take(&self, word: usize, mask: u64) -> u64 {
        match self.words.get().get(word) {
            Some(word) if word.load(Ordering::SeqCst) & mask != 0 => {
                word.fetch_and(!mask, Ordering::SeqCst) & mask
            }
            _ => 0,
        }
    }

    /// Sets bits again that nobody was told of.
    pub(super) fn restore(&self, word: usize, bits: u64) {
        if let Some(word) = self.words.get().get(word) {
            word.fetch_or(bits, Ordering::SeqCst);
        }
    }
}
