// SPDX-License-Identifier: GPL-2.0

//! Extended page tables: the format of their entries (SDM vol 3, 30.3.2) and the pointer to them (26.6.11).

use crate::xvm::memory::PageFormat;

const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const EXECUTE: u64 = 1 << 2;
/// Memory type write-back, in bits 5:3 of an entry that maps a page.
const WRITE_BACK: u64 = 6 << 3;
/// The guest's PAT is ignored: its memory is the host's write-back memory, which must not have two memory types
/// at a time.
const IGNORE_PAT: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;

/// The format of EPT entries.
pub(crate) struct Ept;

impl PageFormat for Ept {
    const TABLE: u64 = READ | WRITE | EXECUTE;
    const LEAF: u64 = READ | EXECUTE | WRITE_BACK | IGNORE_PAT | ACCESSED;
    const LARGE: u64 = LARGE;
    const WRITABLE: u64 = WRITE | DIRTY;
    const ACCESSED: u64 = ACCESSED;
    const PRESENT: u64 = READ | WRITE | EXECUTE;
}

/// The EPT pointer for tables with root page `root`: accessed in write-back memory, a walk of 4 levels, with
/// accessed and dirty bits if the CPU has them.
pub(super) fn pointer(root: u64, accessed_dirty: bool) -> u64 {
    root | 6 | (4 - 1) << 3 | u64::from(accessed_dirty) << 6
}
