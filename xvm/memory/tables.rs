// SPDX-License-Identifier: GPL-2.0

//! The second-level page tables of a VM: four levels, filled page by page, cleared by range.

use super::PageFormat;
use crate::linux::table::Table;
use crate::linux::table::View;
use crate::linux::table::ADDRESS;
use crate::linux::table::ENTRIES;
use core::marker::PhantomData;
use core::ops::Range;
use kernel::prelude::*;

/// Levels are counted as in the manuals: 4 is the root, 1 maps 4 KiB pages, 2 maps 2 MiB pages.
const ROOT_LEVEL: u32 = 4;

/// Addresses are below this: four levels of nine bits.
pub(super) const END: u64 = 1 << 48;

/// Bytes that an entry of `level` covers.
const fn span(level: u32) -> u64 {
    1 << (12 + 9 * (level - 1))
}

/// Index of the entry for `gpa` in a table of `level`.
fn index(gpa: u64, level: u32) -> usize {
    ((gpa >> (12 + 9 * (level - 1))) % ENTRIES as u64) as usize
}

/// Tables made before a lock is taken under which none can be made. What isn't used is kept for the next time.
#[derive(Default)]
pub(crate) struct Spare {
    tables: [Option<Table>; 3],
}

impl Spare {
    /// Makes it enough for any one page. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(super) fn fill(&mut self) -> Result {
        for slot in &mut self.tables {
            if slot.is_none() {
                *slot = Some(Table::new()?);
            }
        }
        Ok(())
    }

    fn take(&mut self) -> Option<Table> {
        self.tables.iter_mut().find_map(Option::take)
    }
}

/// A mapping to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapping {
    /// Guest-physical address, aligned to the page's size.
    pub(crate) gpa: u64,
    /// Host-physical address, aligned to the page's size.
    pub(crate) phys: u64,
    /// The guest may write.
    pub(crate) writable: bool,
    /// 2 MiB, not 4 KiB.
    pub(crate) large: bool,
}

/// What TLBs may still hold after a page was mapped: they are to be flushed, and only then may this, a table that was
/// replaced, go.
#[must_use]
pub(crate) struct Stale {
    _replaced: Option<Table>,
}

/// The tables.
pub(crate) struct Tables<F: PageFormat> {
    root: Table,
    _format: PhantomData<fn() -> F>,
}

impl<F: PageFormat> Tables<F> {
    /// Empty tables. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            root: Table::new()?,
            _format: PhantomData,
        })
    }

    /// Physical address of the root table.
    pub(crate) fn root(&self) -> u64 {
        self.root.phys()
    }

    /// Maps a page; an entry that maps one of the same size already is replaced, unless that allows more.
    ///
    /// Addresses beyond four levels are left alone.
    pub(crate) fn map(&mut self, mapping: &Mapping, spare: &mut Spare) -> Option<Stale> {
        if mapping.gpa >= END {
            return None;
        }
        let leaf_level = if mapping.large { 2 } else { 1 };
        let mut entry = F::LEAF | (mapping.phys & ADDRESS);
        if mapping.writable {
            entry |= F::WRITABLE;
        }
        if mapping.large {
            entry |= F::LARGE;
        }
        let mut stale = None;
        let mut view = self.root.view();
        for level in (leaf_level + 1..=ROOT_LEVEL).rev() {
            let at = index(mapping.gpa, level);
            if !view.owns(at) {
                let larger = view.get(at);
                if larger & F::WRITABLE != 0 {
                    // Another vCPU was faster, and mapped all around it.
                    return None;
                }
                let mut table = spare.take()?;
                if larger & F::PRESENT != 0 {
                    Self::split(&mut table, larger);
                    stale = Some(Stale { _replaced: None });
                }
                view.adopt(at, table, F::TABLE);
            }
            view = view.child(at)?;
        }
        let at = index(mapping.gpa, leaf_level);
        if let Some(replaced) = view.detach(at) {
            stale = Some(Stale {
                _replaced: Some(replaced),
            });
        } else if view.get(at) & F::WRITABLE != 0 && !mapping.writable {
            return stale;
        }
        view.set_leaf(at, entry);
        stale
    }

    /// Maps pages that follow the one at `gpa`, which [`Tables::map`] has mapped, where nothing is mapped yet: `pages` are their physical
    /// addresses, and whether they are writable. They don't count as accessed. No further than the table reaches.
    pub(crate) fn map_behind(&mut self, gpa: u64, pages: impl Iterator<Item = (u64, bool)>) {
        let mut view = self.root.view();
        for level in (2..=ROOT_LEVEL).rev() {
            match view.child(index(gpa, level)) {
                Some(child) => view = child,
                None => return,
            }
        }
        for (at, (phys, writable)) in (index(gpa, 1) + 1..ENTRIES).zip(pages) {
            if view.get(at) & F::PRESENT == 0 {
                let writable = if writable { F::WRITABLE } else { 0 };
                view.set_leaf(at, F::LEAF & !F::ACCESSED | phys & ADDRESS | writable);
            }
        }
    }

    /// Fills an empty table with what a page of 2 MiB maps, of which `large` is the entry.
    fn split(table: &mut Table, large: u64) {
        let mut view = table.view();
        for at in 0..ENTRIES {
            view.set_leaf(at, (large & !F::LARGE) + ((at as u64) << 12));
        }
    }

    /// Takes the right to write to `range` away. Whether there was any.
    pub(crate) fn protect(&mut self, range: &Range<u64>) -> bool {
        let mut any = false;
        Self::visit(self.root.view(), ROOT_LEVEL, 0, range, &mut |view, at| {
            let entry = view.get(at);
            if entry & F::WRITABLE != 0 {
                view.set_leaf(at, entry & !F::WRITABLE);
                any = true;
            }
        });
        any
    }

    /// The same for pages larger than 4 KiB alone.
    pub(crate) fn protect_large(&mut self, range: &Range<u64>) -> bool {
        let mut any = false;
        Self::visit(self.root.view(), ROOT_LEVEL, 0, range, &mut |view, at| {
            let entry = view.get(at);
            if entry & F::LARGE != 0 && entry & F::WRITABLE != 0 {
                view.set_leaf(at, entry & !F::WRITABLE);
                any = true;
            }
        });
        any
    }

    /// Takes all mappings of `range` away, whole pages of whatever size touch it. Whether there was any.
    pub(crate) fn unmap(&mut self, range: &Range<u64>) -> bool {
        let mut any = false;
        Self::visit(self.root.view(), ROOT_LEVEL, 0, range, &mut |view, at| {
            view.set_leaf(at, 0);
            any = true;
        });
        any
    }

    /// Whether the CPU used a mapping in `range` since it was last asked with `clear`.
    pub(crate) fn test_young(&mut self, range: &Range<u64>, clear: bool) -> bool {
        let mut young = false;
        Self::visit(self.root.view(), ROOT_LEVEL, 0, range, &mut |view, at| {
            let entry = view.get(at);
            if entry & F::ACCESSED != 0 {
                young = true;
                if clear {
                    view.set_leaf(at, entry & !F::ACCESSED);
                }
            }
        });
        young
    }

    /// Calls `each` for the present entries that map pages in `range`. `base` is the first address of `view`'s table.
    fn visit(
        mut view: View<'_>,
        level: u32,
        base: u64,
        range: &Range<u64>,
        each: &mut impl FnMut(&mut View<'_>, usize),
    ) {
        let span = span(level);
        let whole = span * ENTRIES as u64;
        let start = range.start.max(base);
        let end = range.end.min(base.saturating_add(whole));
        if start >= end {
            return;
        }
        for at in ((start - base) / span) as usize..(end - base).div_ceil(span) as usize {
            if view.owns(at) {
                if let Some(child) = view.reborrow().child(at) {
                    Self::visit(child, level - 1, base + at as u64 * span, range, each);
                }
            } else if view.get(at) & F::PRESENT != 0 {
                each(&mut view, at);
            }
        }
    }
}
