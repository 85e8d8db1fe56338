// SPDX-License-Identifier: GPL-2.0

//! Pages of second-level page tables (EPT, NPT) as a tree of owned values.
//!
//! What an entry means to the CPU is the caller's business. One bit, which the CPU ignores in both formats, says that the
//! entry's physical address is that of a table which the entry owns.

use super::ffi;
use super::page::Page4k;
use core::marker::PhantomData;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering;
use kernel::prelude::*;

/// Marks an owned table: ignored in EPT entries (SDM vol 3, 30.3.2), software's in NPT entries (APM vol 2, 5.4.1).
const CHILD: u64 = 1 << 11;

/// Bits 51:12: the physical address in an entry.
pub(crate) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Entries of a table.
pub(crate) const ENTRIES: usize = 512;

type Entries = [AtomicU64; ENTRIES];

/// An owned table of 512 entries, with all tables below it. CPUs may read it, and set accessed and dirty bits, at any time.
///
/// # Invariants
///
/// An entry with [`CHILD`] holds in its address bits the physical address of a page that was a `Table` and is owned by
/// this one.
pub(crate) struct Table(Page4k);

impl Table {
    /// An empty table, charged to the current memory cgroup. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new() -> Result<Self> {
        // INVARIANT: A zeroed page has no child.
        Ok(Self(Page4k::new()?))
    }

    /// Its physical address, 4 KiB aligned.
    pub(crate) fn phys(&self) -> u64 {
        self.0.phys()
    }

    /// The table, to be read and changed.
    pub(crate) fn view(&mut self) -> View<'_> {
        View {
            // SAFETY: The page is owned by `self`, aligned, initialised, and accessed as atomics alone.
            entries: unsafe { &*self.0.as_ptr().cast() },
            _exclusive: PhantomData,
        }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        let mut view = self.view();
        for index in 0..ENTRIES {
            // The recursion ends at the lowest level: four tables deep at most.
            drop(view.detach(index));
        }
    }
}

/// A table that is accessed through the exclusive borrow of its root.
///
/// # Invariants
///
/// `entries` are those of a live table, whose children are accessed through this view alone while it lives.
pub(crate) struct View<'a> {
    entries: &'a Entries,
    _exclusive: PhantomData<&'a mut Table>,
}

impl<'a> View<'a> {
    /// Entry `index`, below 512, as it is now.
    #[inline]
    pub(crate) fn get(&self, index: usize) -> u64 {
        self.entries[index].load(Ordering::Relaxed) & !CHILD
    }

    /// Sets an entry that owns no table (where it does, nothing is changed), and returns what it was.
    #[inline]
    pub(crate) fn set_leaf(&mut self, index: usize, entry: u64) -> u64 {
        let old = self.get(index);
        if !self.owns(index) {
            // One atomic exchange: an accessed or dirty bit that a CPU sets at this moment is in the result.
            return self.entries[index].swap(entry & !CHILD, Ordering::SeqCst);
        }
        old
    }

    /// Whether entry `index` owns a table.
    #[inline]
    pub(crate) fn owns(&self, index: usize) -> bool {
        self.entries[index].load(Ordering::Relaxed) & CHILD != 0
    }

    /// The table that entry `index` owns.
    pub(crate) fn child(self, index: usize) -> Option<View<'a>> {
        if !self.owns(index) {
            return None;
        }
        let phys = self.entries[index].load(Ordering::Relaxed) & ADDRESS;
        // SAFETY: By `Table`'s invariant it is the address of a table's page, in the direct map.
        let page = unsafe { ffi::xvm_phys_to_virt(phys as usize) };
        Some(View {
            // SAFETY: The child lives as long as its parent, or until `detach`, which needs the view that was given up for this one.
            // INVARIANT: `self` is consumed, so that this view is the only one of the child.
            entries: unsafe { &*page.cast::<Entries>() },
            _exclusive: PhantomData,
        })
    }

    /// A view for a shorter time.
    pub(crate) fn reborrow(&mut self) -> View<'_> {
        View {
            entries: self.entries,
            _exclusive: PhantomData,
        }
    }

    /// Makes entry `index` own `table`, with `flags` outside of the address bits for the CPU. Returns what the entry owned.
    pub(crate) fn adopt(&mut self, index: usize, table: Table, flags: u64) -> Option<Table> {
        let old = self.detach(index);
        let entry = table.phys() | (flags & !ADDRESS) | CHILD;
        core::mem::forget(table);
        // INVARIANT: The table's ownership has just moved to the entry. Release: a CPU that sees the entry sees the table's contents.
        self.entries[index].store(entry, Ordering::Release);
        old
    }

    /// Clears entry `index` and gives out the table that it owned. CPUs may walk through it until their TLBs are flushed:
    /// it must live until then.
    pub(crate) fn detach(&mut self, index: usize) -> Option<Table> {
        if !self.owns(index) {
            return None;
        }
        let entry = self.entries[index].swap(0, Ordering::SeqCst);
        // SAFETY: By `Table`'s invariant it is the address of a page that this entry owned, and no longer does.
        Some(Table(unsafe { Page4k::from_phys(entry & ADDRESS) }))
    }
}
