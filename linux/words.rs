// SPDX-License-Identifier: GPL-2.0

//! Large arrays of words that any thread may change.

use core::mem::ManuallyDrop;
use core::sync::atomic::AtomicU64;
use kernel::alloc::flags::__GFP_NOWARN;
use kernel::alloc::flags::__GFP_ZERO;
use kernel::bindings;
use kernel::prelude::*;

/// An array of words, all 0 at first, charged to the memory cgroup of who made it. It may be dropped in any context but an NMI.
pub(crate) struct Words(ManuallyDrop<KVVec<AtomicU64>>);

impl Words {
    /// Makes `count` words. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(count: usize) -> Result<Self> {
        let flags = GFP_KERNEL_ACCOUNT | __GFP_ZERO | __GFP_NOWARN;
        let mut words = KVVec::with_capacity(count, flags)?;
        // SAFETY: There is room for as many, and zeroed memory is words of value 0.
        unsafe { words.inc_len(count) };
        Ok(Self(ManuallyDrop::new(words)))
    }

    /// The words.
    #[inline]
    pub(crate) fn get(&self) -> &[AtomicU64] {
        &self.0
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        if self.0.capacity() != 0 {
            // SAFETY: The memory is from the allocator that this is the free function of, words need no drop, and nobody has
            // the vector, which isn't dropped, after this.
            unsafe { bindings::kvfree_atomic(self.0.as_mut_ptr().cast()) };
        }
    }
}
