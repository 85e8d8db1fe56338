// SPDX-License-Identifier: GPL-2.0

//! Nested page tables: they look like the host's own long-mode tables (APM vol 2, 15.25.5).

use crate::xvm::memory::PageFormat;

/// P, of every entry.
const PRESENT: u64 = 1 << 0;
/// R/W.
const WRITE: u64 = 1 << 1;
/// U/S. Accesses of a guest count as a user's, whatever its CPL.
const USER: u64 = 1 << 2;
/// A.
const ACCESSED: u64 = 1 << 5;
/// D, of an entry that maps a page.
const DIRTY: u64 = 1 << 6;
/// PS, of an entry that maps a page larger than 4 KiB.
const LARGE: u64 = 1 << 7;

/// The format of nested page tables.
///
/// PWT, PCD and PAT are 0: with the PAT that the host uses, entry 0 is write-back, and the guest's own memory type decides (15.25.8).
pub(crate) struct NestedPages;

impl PageFormat for NestedPages {
    const TABLE: u64 = PRESENT | WRITE | USER | ACCESSED;
    const LEAF: u64 = PRESENT | USER | ACCESSED;
    const LARGE: u64 = LARGE;
    const WRITABLE: u64 = WRITE | DIRTY;
    const ACCESSED: u64 = ACCESSED;
    const PRESENT: u64 = PRESENT;
}

/// An entry that points to the table at `phys`, for the fifth level that the hardware adds where the host has five (15.25.3:
/// nested paging uses the paging mode of the host).
pub(super) const fn table(phys: u64) -> u64 {
    phys | NestedPages::TABLE
}
