// SPDX-License-Identifier: GPL-2.0

//! A VM's memory: slots, second-level tables, and keeping both true while the VMM's mappings change.
//!
//! # Locks
//!
//! 1. `update`, a mutex: one change of the slots at a time.
//! 2. `guarded`, a spin lock: tables and the count of invalidations under way. Nothing sleeps under it.
//! 3. `slots`, a spin lock: the current slots.
//!
//! # How a mapping stays true
//!
//! A fault looks the page up without a lock and maps it under `guarded`, unless an invalidation is under way, or one has
//! ended (`sequence`) or the slots have changed (`generation`) since the look-up: then the guest faults again. An invalidation
//! clears the entries under `guarded` and then has every CPU that may hold them in its TLB flush: it raises `flushes`, which each
//! vCPU compares before it enters the guest, and waits for those that are in the guest to leave it. Who finds the entries
//! cleared already flushes as well, unless a flush has come after: `cleared` and `flushed` tell.

use super::tables::Mapping;
use super::tables::Spare;
use super::tables::Tables;
use super::PageFormat;
use super::Region;
use super::Slots;
use crate::linux::gup;
use crate::linux::gup::UserPage;
use crate::linux::mmu_notifier::MmuNotifier;
use crate::linux::task;
use crate::linux::x86;
use crate::module_parameters;
use crate::xvm::kick::Kick;
use core::ops::Range;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering;
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;
use kernel::sync::new_mutex;
use kernel::sync::new_spinlock;
use kernel::sync::Arc;
use kernel::sync::Mutex;
use kernel::sync::SpinLock;

const PAGE_2M: u64 = 2 << 20;

/// How much of the tables is cleared before the lock is given up for a moment.
const CHUNK: u64 = 1 << 30;

/// What became of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filled {
    /// The guest can go on (or fault again, if something changed meanwhile).
    Done,
    /// There is no memory, or it is read-only and the access a write: a device's business.
    Device,
}

struct Guarded<F: PageFormat> {
    tables: Tables<F>,
    /// Invalidations of user addresses that have started and not ended, and the range around them.
    invalidations: usize,
    invalid: Range<usize>,
    /// Counts ended invalidations.
    sequence: u64,
    /// Counts times at which entries were cleared, and how many of these a flush has followed.
    cleared: u64,
    flushed: u64,
}

/// A VM's memory.
#[pin_data]
pub(crate) struct Memory<F: PageFormat> {
    #[pin]
    update: Mutex<()>,
    #[pin]
    guarded: SpinLock<Guarded<F>>,
    #[pin]
    slots: SpinLock<Arc<Slots>>,
    /// Counts changes of the slots.
    generation: AtomicU64,
    /// Counts what vCPUs must flush their TLBs for.
    flushes: AtomicU64,
    root: u64,
    kick: Arc<Kick>,
}

impl<F: PageFormat> Memory<F> {
    /// No memory yet. `kick` reaches the VM's vCPUs.
    pub(crate) fn new(kick: Arc<Kick>) -> Result<Arc<Self>> {
        let tables = Tables::<F>::new()?;
        let root = tables.root();
        let slots = Arc::new(Slots::new(), GFP_KERNEL)?;
        Arc::pin_init(
            pin_init!(Self {
                update <- new_mutex!((), "xvm_memory_update"),
                guarded <- new_spinlock!(Guarded {
                    tables,
                    invalidations: 0,
                    invalid: 0..0,
                    sequence: 0,
                    cleared: 0,
                    flushed: 0,
                }, "xvm_tables"),
                slots <- new_spinlock!(slots, "xvm_slots"),
                generation: AtomicU64::new(0),
                flushes: AtomicU64::new(1),
                root,
                kick,
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Physical address of the second-level root table; constant.
    pub(crate) fn root(&self) -> u64 {
        self.root
    }

    /// The number that a vCPU must have flushed its TLB for before it enters the guest.
    #[inline]
    pub(crate) fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::SeqCst)
    }

    /// Counts changes of the slots: a copy of [`Memory::slots`] is current while it stays the same.
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The slots as they are now, with their generation.
    pub(crate) fn slots(&self) -> (Arc<Slots>, u64) {
        let slots = self.slots.lock();
        ((*slots).clone(), self.generation())
    }

    /// Adds, moves or deletes a slot. May sleep.
    ///
    /// # Errors
    ///
    /// As [`Slots::with`].
    pub(crate) fn set_region(&self, region: Region) -> Result {
        let _one = self.update.lock();
        let (current, _) = self.slots();
        let new = Arc::new(current.with(region)?, GFP_KERNEL_ACCOUNT)?;
        let gone = current.by_id(region.id).map(Region::range);
        {
            let mut slots = self.slots.lock();
            *slots = new;
            // Release: a fault that reads the new number reads the new slots, and under `tables` compares numbers.
            self.generation.fetch_add(1, Ordering::Release);
        }
        if let Some(range) = gone {
            // Mappings made from the old slots before the change are here; later ones are refused by their generation.
            self.unmap(range);
        }
        Ok(())
    }

    /// Has every vCPU flush what it knows of the second-level tables: when this returns, none uses an old entry. Does not sleep.
    fn flush(&self) {
        // SeqCst, with the vCPU's own order (mode first, then this number): either it sees the new number, or we see that it is in the guest.
        self.flushes.fetch_add(1, Ordering::SeqCst);
        self.kick.all_and_wait();
    }

    /// Takes the mappings of a guest-physical range away, in the tables and in all TLBs.
    fn unmap(&self, range: Range<u64>) {
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min((start / CHUNK + 1) * CHUNK);
            let mut guarded = self.guarded.lock();
            if guarded.tables.unmap(&(start..end)) {
                guarded.cleared += 1;
            }
            start = end;
        }
        let (cleared, flushed) = {
            let guarded = self.guarded.lock();
            (guarded.cleared, guarded.flushed)
        };
        if cleared != flushed {
            self.flush();
            let mut guarded = self.guarded.lock();
            guarded.flushed = guarded.flushed.max(cleared);
        }
    }

    /// Takes the mappings of user addresses away.
    fn unmap_users(&self, users: &Range<usize>) {
        let (slots, _) = self.slots();
        for region in slots.iter() {
            if let Some(range) = region.guest_range(users) {
                self.unmap(range);
            }
        }
    }

    /// Makes guest-physical `gpa` accessible to the guest, by `slots` (and their `generation`), with tables from `spare`. In
    /// the VMM's process. May sleep.
    ///
    /// # Errors
    ///
    /// `EFAULT` when the VMM has nothing mapped there, `EHWPOISON`, `EINTR`, `ENOMEM`.
    pub(crate) fn fill(
        &self,
        slots: &Slots,
        generation: u64,
        gpa: u64,
        write: bool,
        spare: &mut Spare,
    ) -> Result<Filled> {
        let Some(region) = slots.by_gpa(gpa) else {
            return Ok(Filled::Device);
        };
        if write && region.read_only {
            return Ok(Filled::Device);
        }
        spare.fill()?;
        let sequence = self.guarded.lock().sequence;
        let user = region.user_address(gpa & !0xfff);
        let page = UserPage::fault_in(user, write)?;
        let mapping = Self::large(region, gpa, &page).unwrap_or(Mapping {
            gpa: gpa & !0xfff,
            phys: page.phys(),
            writable: page.writable && !region.read_only,
            large: false,
        });
        if mapping.writable {
            page.set_dirty();
        }
        let replaced = {
            let mut guarded = self.guarded.lock();
            let (size, start) = match mapping.large {
                true => (PAGE_2M as usize, region.user_address(mapping.gpa)),
                false => (PAGE_SIZE, user),
            };
            let touched =
                guarded.invalid.start < start.saturating_add(size) && start < guarded.invalid.end;
            let busy = guarded.invalidations != 0 && touched;
            if busy || guarded.sequence != sequence || self.generation() != generation {
                drop(guarded);
                task::cond_resched();
                return Ok(Filled::Done);
            }
            guarded.tables.map(&mapping, spare)
        };
        if replaced.is_some() {
            self.flush();
        }
        Ok(Filled::Done)
    }

    /// A mapping of 2 MiB, where slot and memory allow it. CPUs that may hang when a page's size changes while they execute from it
    /// (ITLB_MULTIHIT, CVE-2018-12207) get none.
    fn large(region: &Region, gpa: u64, page: &UserPage) -> Option<Mapping> {
        let start = gpa & !(PAGE_2M - 1);
        let user = region.user_address(start);
        let inside = start >= region.gpa && start + PAGE_2M <= region.range().end;
        if !inside
            || region.read_only
            || !*module_parameters::large_pages.value_ref()
            || x86::itlb_multihit()
            || user as u64 % PAGE_2M != 0
            || !page.in_large_folio()
        {
            return None;
        }
        Some(Mapping {
            gpa: start,
            phys: gup::huge_page(user)?,
            writable: true,
            large: true,
        })
    }
}

impl<F: PageFormat> MmuNotifier for Memory<F> {
    fn invalidate_start(&self, range: Range<usize>) {
        {
            let mut guarded = self.guarded.lock();
            guarded.invalid = if guarded.invalidations == 0 {
                range.clone()
            } else {
                guarded.invalid.start.min(range.start)..guarded.invalid.end.max(range.end)
            };
            guarded.invalidations += 1;
        }
        self.unmap_users(&range);
    }

    fn invalidate_end(&self, _: Range<usize>) {
        let mut guarded = self.guarded.lock();
        guarded.sequence = guarded.sequence.wrapping_add(1);
        guarded.invalidations = guarded.invalidations.saturating_sub(1);
    }

    fn test_young(&self, range: Range<usize>, clear: bool) -> bool {
        let (slots, _) = self.slots();
        let mut young = false;
        for region in slots.iter() {
            if let Some(range) = region.guest_range(&range) {
                young |= self.guarded.lock().tables.test_young(&range, clear);
            }
        }
        young
    }

    fn release(&self) {
        // `invalidations` stays above zero from here on: nothing is mapped again.
        self.invalidate_start(0..usize::MAX);
    }
}
