// SPDX-License-Identifier: GPL-2.0

//! The pages that a vCPU shares with its VMM (`struct kvm_run` and the port I/O data), and those that a VM's vCPUs have in common.
//!
//! The VMM may write to them at any time: values are copied from and to, each once, and there is never a reference to
//! the contents.

use super::ffi;
use super::user::Plain;
use core::mem::align_of;
use core::mem::size_of;
use kernel::alloc::flags::__GFP_ZERO;
use kernel::mm::virt::VmaNew;
use kernel::page::Page;
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::transmute::AsBytes;
use kernel::transmute::FromBytes;

/// The number of the file's page that a mapping begins with.
pub(crate) fn first_page(vma: &VmaNew) -> usize {
    // SAFETY: The vma is being set up by this task, which nobody changes meanwhile.
    unsafe { (*vma.as_ptr()).vm_pgoff }
}

/// Pages shared with userspace.
///
/// # Invariants
///
/// `starts[i]` is the direct-map address of `pages[i]`; `first` is `starts[0]`.
pub(crate) struct RunPages {
    pages: KVec<Page>,
    starts: KVec<*mut u8>,
    /// Of the page with `struct kvm_run`, which every return to userspace writes to.
    first: *mut u8,
    /// What a mapping finds behind them.
    then: Option<Arc<RunPages>>,
}

// SAFETY: The pages are plain memory that is accessed by volatile and byte-wise copies alone, from whichever thread.
unsafe impl Send for RunPages {}
// SAFETY: As above.
unsafe impl Sync for RunPages {}

impl RunPages {
    /// Allocates `count` zeroed pages, at least one, charged to the caller's memory cgroup. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(count: usize) -> Result<Self> {
        let mut pages = KVec::with_capacity(count, GFP_KERNEL)?;
        let mut starts = KVec::with_capacity(count, GFP_KERNEL)?;
        for _ in 0..count {
            let page = Page::alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO)?;
            // SAFETY: The page is ours, and all memory is in the direct map.
            let phys = unsafe { ffi::xvm_page_to_phys(page.as_ptr().cast()) };
            // SAFETY: As above.
            let start = unsafe { ffi::xvm_phys_to_virt(phys) };
            // INVARIANT: Both get the same page.
            starts.push(start.cast(), GFP_KERNEL)?;
            pages.push(page, GFP_KERNEL)?;
        }
        let first = *starts.first().ok_or(EINVAL)?;
        Ok(Self {
            pages,
            starts,
            first,
            then: None,
        })
    }

    /// The same, followed in mappings by those of `then`.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn followed(count: usize, then: Arc<RunPages>) -> Result<Self> {
        Ok(Self {
            then: Some(then),
            ..Self::new(count)?
        })
    }

    /// The page at a place in a mapping.
    fn page(&self, at: usize) -> Option<&Page> {
        let then = self.then.as_ref().map_or(&[][..], |then| &then.pages);
        match at.checked_sub(self.pages.len()) {
            None => self.pages.get(at),
            Some(at) => then.get(at),
        }
    }

    /// Maps the pages into a process, from number `first` on.
    ///
    /// # Errors
    ///
    /// `EINVAL` when the mapping goes beyond them; else what `vm_insert_page` says.
    pub(crate) fn map(&self, vma: &VmaNew, first: usize) -> Result {
        let count = (vma.end() - vma.start()) / PAGE_SIZE;
        let end = first.checked_add(count).ok_or(EINVAL)?;
        if end > first && self.page(end - 1).is_none() {
            return Err(EINVAL);
        }
        vma.set_dontexpand();
        let vma = vma.set_mixedmap();
        for i in 0..count {
            let page = self.page(first + i).ok_or(EINVAL)?;
            vma.vm_insert_page(vma.start() + i * PAGE_SIZE, page)?;
        }
        Ok(())
    }

    /// Address of `size` bytes at `offset`, if they are inside of one page.
    #[inline]
    fn address(&self, offset: usize, size: usize) -> Option<*mut u8> {
        let start = match offset / PAGE_SIZE {
            0 => self.first,
            n => *self.starts.get(n)?,
        };
        let within = offset % PAGE_SIZE;
        (size <= PAGE_SIZE - within).then(|| start.wrapping_add(within))
    }

    /// Reads a value at `offset`, once. `None` when it isn't inside of one page, aligned.
    #[inline]
    pub(crate) fn get<T: FromBytes + Copy>(&self, offset: usize) -> Option<T> {
        let address = self.address(offset, size_of::<T>())?.cast::<T>();
        (offset % align_of::<T>() == 0).then(|| {
            // SAFETY: The address is valid for `T`, aligned because pages are, and every bit pattern is one. The read is
            // volatile: userspace may be writing.
            unsafe { address.read_volatile() }
        })
    }

    /// Writes a value at `offset`. Does nothing when it isn't inside of one page, aligned.
    #[inline]
    pub(crate) fn set<T: AsBytes + Copy>(&self, offset: usize, value: T) {
        if let Some(address) = self.address(offset, size_of::<T>()) {
            if offset % align_of::<T>() == 0 {
                // SAFETY: The address is valid for `T`, which has no padding that could leak. Aligned and volatile as in `get`.
                unsafe { address.cast::<T>().write_volatile(value) };
            }
        }
    }

    /// Copies a structure out, once. `None` when it isn't inside of one page.
    pub(crate) fn copy_out<T: Plain>(&self, offset: usize) -> Option<T> {
        let from = self.address(offset, size_of::<T>())?.cast::<T>();
        // SAFETY: `from` is valid for that many bytes, whatever their alignment; every bit pattern is a value. What a racing VMM
        // leaves in it is the VMM's own doing.
        Some(unsafe { from.read_unaligned() })
    }

    /// Copies a structure in. Does nothing when it isn't inside of one page.
    pub(crate) fn copy_in<T: Plain>(&self, offset: usize, value: &T) {
        if let Some(to) = self.address(offset, size_of::<T>()) {
            // SAFETY: `to` is valid for that many bytes, and no Rust reference to them exists; a plain value has no padding.
            unsafe { to.cast::<T>().write_unaligned(*value) };
        }
    }

    /// Copies bytes out, from `offset` on, as far as they are inside of one page.
    pub(crate) fn read(&self, offset: usize, to: &mut [u8]) {
        if let Some(from) = self.address(offset, to.len()) {
            // SAFETY: `from` is valid for that many bytes, and no Rust reference to them exists. A torn value from a racing VMM is the VMM's own doing.
            unsafe { core::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
        }
    }

    /// Copies bytes in, from `offset` on, as far as they are inside of one page.
    pub(crate) fn write(&self, offset: usize, from: &[u8]) {
        if let Some(to) = self.address(offset, from.len()) {
            // SAFETY: As in `read`.
            unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
        }
    }
}
