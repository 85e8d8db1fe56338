// SPDX-License-Identifier: GPL-2.0

//! From a user address to the physical page behind it, without keeping the page pinned.

use super::ffi;
use kernel::bindings;
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;

/// Pages that are looked up at once.
pub(crate) const RUN: usize = 16;

/// Pages of a 2 MiB page.
const HUGE_PAGES: usize = 512;

/// A page of the calling process, held by a reference. The caller maps it under a lock that orders it with the MMU notifier, then drops this.
///
/// # Invariants
///
/// Holds a reference to `page`.
pub(crate) struct UserPage {
    page: *mut bindings::page,
    /// The process may write to it now: copy-on-write has been done.
    pub(crate) writable: bool,
}

impl UserPage {
    /// Faults the page at user address `address` in, for writing if `write`, when [`UserPage::present`] hasn't found it. May sleep.
    ///
    /// # Errors
    ///
    /// `EFAULT` when nothing is mapped there, the mapping doesn't allow it, or it isn't memory with a `struct page`;
    /// `EHWPOISON` when the memory is broken; `EINTR` when a fatal signal came.
    pub(crate) fn fault_in(address: usize, write: bool) -> Result<Self> {
        Self::get(address, write, 0)?.ok_or(EFAULT)
    }

    fn get(address: usize, write: bool, flags: u32) -> Result<Option<Self>> {
        let mut page = core::ptr::null_mut();
        let access = if write { bindings::FOLL_WRITE } else { 0 };
        let flags = flags | bindings::FOLL_HWPOISON | access;
        // SAFETY: `page` has place for one page; the current task has an address space, as it is in an ioctl.
        let got = unsafe {
            bindings::get_user_pages_unlocked(address & !(PAGE_SIZE - 1), 1, &mut page, flags)
        };
        match got {
            // INVARIANT: The call took a reference.
            1 => Ok(Some(Self {
                page,
                writable: write,
            })),
            error if error < 0 => Err(Error::from_errno(error as i32)),
            _ => Ok(None),
        }
    }

    /// The same as far as nobody has to wait for it; `None` where the page has to be brought in from elsewhere.
    ///
    /// # Errors
    ///
    /// As [`UserPage::fault_in`].
    pub(crate) fn fault_in_at_once(address: usize, write: bool) -> Result<Option<Self>> {
        Self::get(address, write, bindings::FOLL_NOWAIT)
    }

    /// The pages from `address` on, at most [`RUN`] and at most `count`, as far as they are there and the process may write
    /// to them. Doesn't sleep.
    pub(crate) fn present(address: usize, count: usize) -> Run {
        let mut pages = [core::ptr::null_mut(); RUN];
        // SAFETY: There is place for that many; the current task has an address space, as it is in an ioctl.
        let got = unsafe {
            bindings::get_user_pages_fast_only(
                address & !(PAGE_SIZE - 1),
                count.min(RUN) as i32,
                bindings::FOLL_WRITE,
                pages.as_mut_ptr(),
            )
        };
        // INVARIANT: The call took a reference to each of the first `got`.
        Run {
            pages,
            next: 0,
            got: usize::try_from(got).unwrap_or(0),
        }
    }

    /// Its physical address.
    pub(crate) fn phys(&self) -> u64 {
        // SAFETY: The page is valid by the type's invariant.
        unsafe { ffi::xvm_page_to_phys(self.page.cast()) as u64 }
    }

    /// Whether it is a part of a larger folio, so that [`huge_page`] is worth a try.
    pub(crate) fn in_large_folio(&self) -> bool {
        // SAFETY: As in `phys`.
        unsafe { ffi::xvm_page_is_huge(self.page.cast()) }
    }

    /// Whether a write to it is nothing that the kernel has to be told: it is known to differ from what is stored, or is the
    /// process's alone and stored nowhere. An anonymous page of the swap cache is stored, and clean if it was swapped in for a
    /// read: the kernel drops it when it needs the memory.
    pub(crate) fn is_dirty(&self) -> bool {
        // SAFETY: As in `phys`.
        unsafe { ffi::xvm_page_is_dirty(self.page.cast()) }
    }

    /// Tells the kernel that it will have been written to by the guest.
    pub(crate) fn set_dirty(&self) {
        // SAFETY: As in `phys`; only flags are set.
        unsafe { ffi::xvm_set_page_dirty(self.page.cast()) };
    }
}

impl Drop for UserPage {
    fn drop(&mut self) {
        // SAFETY: By the type's invariant.
        unsafe { ffi::xvm_put_page(self.page.cast()) };
    }
}

/// Pages that follow each other, writable.
///
/// # Invariants
///
/// Holds a reference to each page from `next` to `got`.
pub(crate) struct Run {
    pages: [*mut bindings::page; RUN],
    next: usize,
    got: usize,
}

impl Run {
    /// Whether no page is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.next >= self.got
    }
}

impl Iterator for Run {
    type Item = UserPage;

    fn next(&mut self) -> Option<UserPage> {
        if self.is_empty() {
            return None;
        }
        let page = *self.pages.get(self.next)?;
        self.next += 1;
        // INVARIANT: The reference is the new value's.
        Some(UserPage {
            page,
            writable: true,
        })
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.for_each(drop);
    }
}

/// Physical address of the 2 MiB of memory at `address` (2 MiB aligned) if the process has all of it mapped now, adjacent,
/// aligned, and writable. The references taken to find out are dropped again: like a single page's, the result holds until
/// the MMU notifier tells otherwise. May sleep.
pub(crate) fn huge_page(address: usize) -> Option<u64> {
    let mut pages: KVec<*mut bindings::page> = KVec::with_capacity(HUGE_PAGES, GFP_KERNEL).ok()?;
    for _ in 0..HUGE_PAGES {
        pages.push(core::ptr::null_mut(), GFP_KERNEL).ok()?;
    }
    // SAFETY: `pages` has place for them; the current task has an address space.
    let got = unsafe {
        bindings::get_user_pages_fast_only(
            address,
            HUGE_PAGES as i32,
            bindings::FOLL_WRITE,
            pages.as_mut_ptr(),
        )
    };
    let got = usize::try_from(got).unwrap_or(0);
    let mut first = 0;
    let mut adjacent = got == HUGE_PAGES;
    for (i, page) in pages.iter().take(got).enumerate() {
        // INVARIANT: The call took a reference to each, which this value drops.
        let page = UserPage {
            page: *page,
            writable: true,
        };
        if i == 0 {
            first = page.phys();
        }
        // They need not be one folio.
        if !page.is_dirty() {
            page.set_dirty();
        }
        adjacent = adjacent && page.phys() == first + (i * PAGE_SIZE) as u64;
    }
    (adjacent && first % (HUGE_PAGES * PAGE_SIZE) as u64 == 0).then_some(first)
}
