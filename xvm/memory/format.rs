// SPDX-License-Identifier: GPL-2.0

//! How entries of second-level page tables look.

/// The format of a vendor's second-level page tables. All have four levels of 512 entries with the physical address in
/// bits 51:12; bit 11 is left to software.
pub(crate) trait PageFormat: Send + Sync + 'static {
    /// What an entry that points to another table says besides its address: everything is allowed there.
    const TABLE: u64;

    /// What an entry that maps a page of write-back memory says: readable and executable, not writable, accessed.
    const LEAF: u64;

    /// Added to [`PageFormat::LEAF`] when the page is larger than 4 KiB.
    const LARGE: u64;

    /// Added to [`PageFormat::LEAF`] when the page is writable; with the dirty bit, so that the CPU need not set it.
    const WRITABLE: u64;

    /// The bit that the CPU sets when it uses the entry.
    const ACCESSED: u64;

    /// Any of these bits makes an entry present.
    const PRESENT: u64;
}
