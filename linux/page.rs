// SPDX-License-Identifier: GPL-2.0

//! Whole pages that hardware reads by physical address: control blocks, bitmaps, save areas.

use super::ffi;
use core::ptr::NonNull;
use kernel::bindings;
use kernel::page::Page;
use kernel::prelude::*;

/// The physical address of a page.
pub(crate) fn phys_of(page: &Page) -> u64 {
    // SAFETY: The page is valid.
    unsafe { ffi::xvm_page_to_phys(page.as_ptr().cast()) as u64 }
}

/// `2^ORDER` adjacent zeroed pages of kernel memory, charged to the current process's memory cgroup.
///
/// # Invariants
///
/// `address` is the address of `2^ORDER` adjacent pages in the direct map, from the page allocator, owned by this value.
pub(crate) struct Pages<const ORDER: u32> {
    address: NonNull<u8>,
}

/// One page.
pub(crate) type Page4k = Pages<0>;

// SAFETY: The pages are plain memory, bound to no thread.
unsafe impl<const ORDER: u32> Send for Pages<ORDER> {}
// SAFETY: `&Pages` gives out addresses alone; who accesses the memory through them argues for it.
unsafe impl<const ORDER: u32> Sync for Pages<ORDER> {}

impl<const ORDER: u32> Pages<ORDER> {
    /// Allocates zeroed pages. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new() -> Result<Self> {
        let gfp = bindings::GFP_KERNEL_ACCOUNT | bindings::__GFP_ZERO;
        // SAFETY: Any flags and order may be asked for; the result is checked.
        let address = unsafe { bindings::get_free_pages_noprof(gfp, ORDER) };
        // INVARIANT: The allocator gave these pages to us.
        NonNull::new(address as *mut u8)
            .map(|address| Self { address })
            .ok_or(ENOMEM)
    }

    /// Takes back pages that were given up as a physical address (with [`core::mem::forget`]).
    ///
    /// # Safety
    ///
    /// `phys` must be what [`Pages::phys`] of a forgotten value of this type was, and be taken back once.
    pub(super) unsafe fn from_phys(phys: u64) -> Self {
        // SAFETY: By this function's contract it is an address in the direct map.
        let address = unsafe { ffi::xvm_phys_to_virt(phys as usize) };
        Self {
            // SAFETY: The direct map has no null address.
            // INVARIANT: The forgotten value owned the pages.
            address: unsafe { NonNull::new_unchecked(address.cast()) },
        }
    }

    /// Physical address of the first byte.
    pub(crate) fn phys(&self) -> u64 {
        // SAFETY: By the type's invariant the address is in the direct map.
        unsafe { ffi::xvm_virt_to_phys(self.address.as_ptr().cast()) as u64 }
    }

    /// Address of the first byte, for accesses by `(4096 << ORDER)` bytes at most. They are the caller's to argue for.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.address.as_ptr()
    }
}

impl<const ORDER: u32> Drop for Pages<ORDER> {
    fn drop(&mut self) {
        // SAFETY: By the type's invariant the pages are ours, and came from the allocator with this order.
        unsafe { bindings::free_pages(self.address.as_ptr() as usize, ORDER) };
    }
}
