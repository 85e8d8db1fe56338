// SPDX-License-Identifier: GPL-2.0

//! A VM's memory: slots, second-level tables, and keeping both true while the VMM's mappings change.
//!
//! # Locks
//!
//! 1. `update`, a mutex: one change of the slots, or harvest of a dirty log, at a time.
//! 2. a guest file's mutex (`guest_file`).
//! 3. the mutex in `Rings`: the list of the vCPUs' dirty rings.
//! 4. `guarded`, a spin lock: tables and the count of invalidations under way. Nothing sleeps under it.
//! 5. the spin lock in `Current`: the current slots.
//!
//! # How a mapping stays true
//!
//! A fault looks the page up without a lock and maps it under `guarded`, unless an invalidation is under way, or one has
//! ended (`sequence`) or the slots have changed (`generation`) since the look-up: then the guest faults again. An invalidation
//! clears the entries under `guarded` and then has every CPU that may hold them in its TLB flush: it raises `flushes`, which each
//! vCPU compares before it enters the guest, and waits for those that are in the guest to leave it. Who finds the entries
//! cleared already flushes as well, unless a flush has come after: `cleared` and `flushed` tell.

use super::access::View;
use super::as_id;
use super::attributes::Attributes;
use super::ring::Rings;
use super::slots::Change;
use super::slots::Current;
use super::tables::Tables;
use super::AsId;
use super::Bitmap;
use super::PageFormat;
use super::Region;
use crate::linux::mmu_notifier::MmuNotifier;
use crate::xvm::kick::Kick;
use core::ops::Range;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::sync::new_mutex;
use kernel::sync::new_spinlock;
use kernel::sync::Arc;
use kernel::sync::Mutex;
use kernel::sync::SpinLock;

/// How much of the tables is changed before the lock is given up for a moment.
pub(super) const CHUNK: u64 = 1 << 30;

pub(super) struct Guarded<F: PageFormat> {
    /// Those of each address space.
    pub(super) tables: [Tables<F>; as_id::COUNT],
    /// What of the main address space is private.
    pub(super) attributes: Attributes,
    /// Invalidations of user addresses that have started and not ended, and the range around them.
    pub(super) invalidations: usize,
    pub(super) invalid: Range<usize>,
    /// Counts ended invalidations, and conversions between private and shared.
    pub(super) sequence: u64,
    /// Counts times at which entries were cleared, and how many of these a flush has followed.
    pub(super) cleared: u64,
    flushed: u64,
}

/// How dirty logs are handled (api.rst, 7.18).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LogOptions {
    /// Asking for a log doesn't clear it: `KVM_CLEAR_DIRTY_LOG` does.
    pub(super) manual: bool,
    /// All pages of a slot count as written to when its log is made.
    pub(super) initially_set: bool,
}

/// A VM's memory.
#[pin_data]
pub(crate) struct Memory<F: PageFormat> {
    /// How dirty logs are handled, and what holds one change of the slots, or harvest of a log, at a time.
    #[pin]
    pub(super) update: Mutex<LogOptions>,
    #[pin]
    pub(super) guarded: SpinLock<Guarded<F>>,
    pub(super) current: Arc<Current>,
    pub(super) rings: Arc<Rings>,
    /// Counts what vCPUs must flush their TLBs for.
    flushes: AtomicU64,
    roots: [u64; as_id::COUNT],
    /// It can be private (`KVM_X86_SW_PROTECTED_VM`); then there is one address space.
    pub(super) protected: bool,
    kick: Arc<Kick>,
}

impl<F: PageFormat> Memory<F> {
    /// No memory yet. It can be private if `protected`. `kick` reaches the VM's vCPUs.
    pub(crate) fn new(kick: Arc<Kick>, protected: bool) -> Result<Arc<Self>> {
        let tables = [Tables::<F>::new()?, Tables::<F>::new()?];
        let roots = tables.each_ref().map(Tables::root);
        Arc::pin_init(
            try_pin_init!(Self {
                update <- new_mutex!(LogOptions::default(), "xvm_memory_update"),
                guarded <- new_spinlock!(Guarded {
                    tables,
                    attributes: Attributes::new(),
                    invalidations: 0,
                    invalid: 0..0,
                    sequence: 0,
                    cleared: 0,
                    flushed: 0,
                }, "xvm_tables"),
                current: Current::new()?,
                rings: Rings::new()?,
                flushes: AtomicU64::new(1),
                roots,
                protected,
                kick,
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Physical address of the second-level root table of an address space; constant.
    pub(crate) fn root(&self, as_id: AsId) -> u64 {
        self.roots[as_id.index()]
    }

    /// The number that a vCPU must have flushed its TLB for before it enters the guest.
    #[inline]
    pub(crate) fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::SeqCst)
    }

    /// A new vCPU's view of it, with its dirty ring if it is to have one. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn view(&self) -> Result<View> {
        View::new(self.current.clone(), self.rings.clone())
    }

    /// Whether it can be private.
    pub(crate) fn is_protected(&self) -> bool {
        self.protected
    }

    /// The slots, for who may not wait for them.
    pub(crate) fn current(&self) -> Arc<Current> {
        self.current.clone()
    }

    /// Adds, moves or deletes a slot, or turns logging of its writes on or off. May sleep.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a second address space where memory can be private; as [`Slots::change`](super::Slots::change), or [`Memory::bind`] for a slot that is bound to a file; `ENOMEM`.
    pub(crate) fn set_region(&self, mut region: Region) -> Result {
        if self.protected && region.as_id != AsId::Main {
            return Err(EINVAL);
        }
        let options = self.update.lock();
        let current = self.current.get();
        let change = current.change(&region)?;
        if change == Change::Nothing {
            return Ok(());
        }
        let old = current.by_id(region.id);
        if change != Change::Delete && region.logged && !self.rings.are_used() {
            region.dirty = Some(match old.and_then(|old| old.dirty.clone()) {
                Some(dirty) => dirty,
                None => {
                    let dirty = Bitmap::new(region.pages(), options.initially_set)?;
                    Arc::new(dirty, GFP_KERNEL_ACCOUNT)?
                }
            });
        }
        let (id, logged) = (region.id, region.logged);
        if let (Change::Add, Some((fd, offset))) = (change, region.file) {
            region.backing = Some(self.bind(&region, fd, offset)?);
        }
        let backing = region.backing.clone();
        let set = current.with(region).and_then(|new| self.current.set(new));
        if let (Err(_), Some(backing)) = (set, backing) {
            backing.store.unbind(id);
        }
        set?;
        if change != Change::Add {
            // What the kernel has begun to read or write for guests by the old slots ends before this returns.
            self.current.wait_for_accesses();
        }
        // Mappings made from the old slots before the change are here; later ones are refused by their generation.
        match (change, old) {
            (Change::Flags, Some(old)) if logged => {
                let all_set = options.initially_set && !self.rings.are_used();
                self.begin_log(old, all_set);
            }
            // Larger pages come back by faults.
            (_, Some(old)) => self.unmap(old.as_id, &old.range()),
            _ => {}
        }
        if let (Change::Delete, Some(backing)) = (change, old.and_then(|old| old.backing.as_ref()))
        {
            backing.store.unbind(id);
        }
        Ok(())
    }

    /// The first writes from now on are to be seen: nothing is writable; or, if all pages are taken for written to, not by
    /// pages that are larger than the log's.
    fn begin_log(&self, region: &Region, initially_set: bool) {
        self.change(
            region.as_id,
            &region.range(),
            |tables, part| match initially_set {
                true => tables.protect_large(part),
                false => tables.protect(part),
            },
        );
        self.flush_cleared();
    }

    /// Has every vCPU flush what it knows of the second-level tables: when this returns, none uses an old entry. Does not sleep.
    pub(super) fn flush(&self) {
        // SeqCst, with the vCPU's own order (mode first, then this number): either it sees the new number, or we see that it is in the guest.
        self.flushes.fetch_add(1, Ordering::SeqCst);
        self.kick.all_and_wait();
    }

    /// Changes the tables of an address space in a guest-physical range, part by part; `each` says whether it took something away.
    fn change(
        &self,
        as_id: AsId,
        range: &Range<u64>,
        each: impl Fn(&mut Tables<F>, &Range<u64>) -> bool,
    ) {
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min((start / CHUNK + 1) * CHUNK);
            let mut guarded = self.guarded.lock();
            if each(&mut guarded.tables[as_id.index()], &(start..end)) {
                guarded.cleared += 1;
            }
            start = end;
        }
    }

    /// Has TLBs flushed if something was taken from the tables since they were last.
    pub(super) fn flush_cleared(&self) {
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

    /// Takes the mappings of a guest-physical range away, in the tables and in all TLBs.
    pub(super) fn unmap(&self, as_id: AsId, range: &Range<u64>) {
        self.change(as_id, range, Tables::unmap);
        self.flush_cleared();
    }

    /// Takes the mappings of user addresses away.
    fn unmap_users(&self, users: &Range<usize>) {
        let slots = self.current.get();
        slots.each_at_user(users, &mut |region| {
            if let Some(range) = region.guest_range(users) {
                self.change(region.as_id, &range, Tables::unmap);
            }
        });
        self.flush_cleared();
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
        let slots = self.current.get();
        let mut young = false;
        slots.each_at_user(&range, &mut |region| {
            if let Some(range) = region.guest_range(&range) {
                let tables = &mut self.guarded.lock().tables[region.as_id.index()];
                young |= tables.test_young(&range, clear);
            }
        });
        young
    }

    fn release(&self) {
        // `invalidations` stays above zero from here on: nothing is mapped again.
        self.invalidate_start(0..usize::MAX);
    }
}
