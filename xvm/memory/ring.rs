// SPDX-License-Identifier: GPL-2.0

//! The dirty ring: which pages a vCPU wrote to, in memory that it shares with the VMM (api.rst, 7.36).
//!
//! The vCPU's thread alone adds entries, [`Memory::reset_rings`] alone takes harvested ones out, and both count for
//! themselves: whatever the VMM writes into the ring can make it lose entries of its own, and nothing else.

use super::slots::Slots;
use super::Memory;
use super::PageFormat;
use crate::linux::run_pages::RunPages;
use crate::linux::task;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering;
use kernel::mm::virt::flags;
use kernel::mm::virt::VmaNew;
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;
use kernel::sync::new_mutex;
use kernel::sync::Arc;
use kernel::sync::Mutex;

/// Bytes of an entry: flags, slot, number of the page in the slot (`struct kvm_dirty_gfn`).
const ENTRY: usize = 16;

/// Offsets in an entry.
const FLAGS: usize = 0;
const SLOT: usize = 4;
const PAGE: usize = 8;

/// What `flags` says: there is a page in the entry; the VMM has harvested it.
const DIRTY: u32 = 1 << 0;
const HARVESTED: u32 = 1 << 1;

/// The most bytes that a ring may have, which is what `KVM_CHECK_EXTENSION` answers.
const BYTES_MAX: u32 = 1 << 20;

/// Entries that are kept free for what one exit may add after the ring counts as full.
const RESERVED: u32 = 64;

/// Pages whose protection is taken before the tables' lock is given up for a moment.
const LOCKED: usize = 64;

/// A vCPU's ring.
pub(crate) struct Ring {
    pages: RunPages,
    /// Number of entries, a power of two.
    size: u32,
    /// Counts entries added, modulo 2^32.
    added: AtomicU32,
    /// Counts entries taken out.
    reset: AtomicU32,
}

impl Ring {
    /// A ring of `bytes`, as [`Rings::set_size`] has checked. May sleep.
    fn new(bytes: u32) -> Result<Self> {
        Ok(Self {
            pages: RunPages::new((bytes as usize).div_ceil(PAGE_SIZE))?,
            size: bytes / ENTRY as u32,
            added: AtomicU32::new(0),
            reset: AtomicU32::new(0),
        })
    }

    /// Maps a part of it into a process, from page `first` on. The mapping must be shared, and not for execution.
    ///
    /// # Errors
    ///
    /// `EINVAL`, or what `vm_insert_page` says.
    pub(crate) fn map(&self, vma: &VmaNew, first: usize) -> Result {
        if vma.flags() & flags::EXEC != 0 || vma.flags() & flags::SHARED == 0 {
            return Err(EINVAL);
        }
        self.pages.map(vma, first)
    }

    fn used(&self) -> u32 {
        let added = self.added.load(Ordering::Acquire);
        added.wrapping_sub(self.reset.load(Ordering::Acquire))
    }

    /// Whether the VMM must make room before the vCPU may go on.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.used() >= self.size - RESERVED
    }

    /// Where an entry is.
    fn entry(&self, count: u32) -> usize {
        (count & (self.size - 1)) as usize * ENTRY
    }

    /// Adds a page, unless the entry before is the same and the VMM hasn't seen it yet. By the vCPU's thread.
    pub(super) fn push(&self, slot: u32, page: u64) {
        let added = self.added.load(Ordering::Relaxed);
        let last = self.entry(added.wrapping_sub(1));
        if self.used() != 0
            && self.pages.get(last + PAGE) == Some(page)
            && self.pages.get(last + SLOT) == Some(slot)
            && self.pages.get(last + FLAGS) == Some(DIRTY)
        {
            return;
        }
        // Only a VMM that harvests entries while one instruction is emulated, again and again, can get here.
        if self.used() >= self.size {
            return;
        }
        let entry = self.entry(added);
        self.pages.set(entry + SLOT, slot);
        self.pages.set(entry + PAGE, page);
        // Volatile stores stay in this order, and x86 makes them visible in it.
        self.pages.set(entry + FLAGS, DIRTY);
        self.added.store(added.wrapping_add(1), Ordering::Release);
    }

    /// Takes the next entry out if the VMM has harvested it: the slot and the page that it says now. By one thread at a time.
    fn take(&self) -> Option<(u32, u64)> {
        let reset = self.reset.load(Ordering::Relaxed);
        let entry = self.entry(reset);
        let state: u32 = self.pages.get(entry + FLAGS)?;
        if self.used() == 0 || state & HARVESTED == 0 {
            return None;
        }
        let slot = self.pages.get(entry + SLOT)?;
        let page = self.pages.get(entry + PAGE)?;
        self.pages.set(entry + FLAGS, 0u32);
        self.reset.store(reset.wrapping_add(1), Ordering::Release);
        Some((slot, page))
    }
}

/// The rings of a VM's vCPUs.
#[pin_data]
pub(super) struct Rings {
    #[pin]
    list: Mutex<List>,
}

#[derive(Default)]
struct List {
    /// Bytes of each; 0: vCPUs have none.
    bytes: u32,
    rings: KVec<Arc<Ring>>,
}

impl Rings {
    /// None yet.
    pub(super) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                list <- new_mutex!(List::default(), "xvm_rings"),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Whether vCPUs have rings, so that slots have no bitmaps.
    pub(super) fn are_used(&self) -> bool {
        self.list.lock().bytes != 0
    }

    /// Makes the ring of a new vCPU, if it is to have one.
    pub(super) fn add(&self) -> Result<Option<Arc<Ring>>> {
        let mut list = self.list.lock();
        if list.bytes == 0 {
            return Ok(None);
        }
        let ring = Arc::new(Ring::new(list.bytes)?, GFP_KERNEL_ACCOUNT)?;
        list.rings.push(ring.clone(), GFP_KERNEL_ACCOUNT)?;
        Ok(Some(ring))
    }

    /// Takes the ring of a vCPU that goes away out.
    pub(super) fn remove(&self, ring: &Arc<Ring>) {
        let mut list = self.list.lock();
        list.rings.retain(|one| !Arc::ptr_eq(one, ring));
    }

    fn set_size(&self, bytes: u32) -> Result {
        if !bytes.is_power_of_two() || (bytes as usize) < PAGE_SIZE {
            return Err(EINVAL);
        }
        if bytes > BYTES_MAX {
            return Err(E2BIG);
        }
        let mut list = self.list.lock();
        if list.bytes != 0 {
            return Err(EINVAL);
        }
        list.bytes = bytes;
        Ok(())
    }
}

impl<F: PageFormat> Memory<F> {
    /// `KVM_ENABLE_CAP` of `KVM_CAP_DIRTY_LOG_RING`, of which KVM looks at the lower half of the argument. The caller has seen
    /// that there is no vCPU, and lets none be made.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a size that is none, or when there is one already; `E2BIG`.
    pub(crate) fn use_rings(&self, bytes: u64) -> Result {
        self.rings.set_size(bytes as u32)
    }

    /// `KVM_RESET_DIRTY_RINGS`: takes what the VMM has harvested out of all rings, and the right to write to those pages
    /// from the guest. Returns how many entries these were. May sleep.
    ///
    /// # Errors
    ///
    /// `EINVAL` without rings.
    pub(crate) fn reset_rings(&self) -> Result<isize> {
        let _options = self.update.lock();
        let slots = self.current.get();
        let list = self.rings.list.lock();
        if list.bytes == 0 {
            return Err(EINVAL);
        }
        let mut count = 0;
        for ring in list.rings.iter() {
            // What is there now: a vCPU and a VMM that go on don't keep us here.
            let mut left = ring.used();
            while left != 0 {
                let (taken, more) = self.reset_some(&slots, ring, &mut left);
                count += taken;
                if !more {
                    break;
                }
                task::cond_resched();
            }
        }
        drop(list);
        self.flush_cleared();
        Ok(count)
    }

    /// Takes at most `left` entries out, a few under one hold of the lock. How many, and whether there are more.
    fn reset_some(&self, slots: &Slots, ring: &Ring, left: &mut u32) -> (isize, bool) {
        let mut guarded = self.guarded.lock();
        let (mut count, mut any, mut more) = (0, false, true);
        for _ in 0..LOCKED {
            if *left == 0 {
                break;
            }
            let Some((slot, page)) = ring.take() else {
                more = false;
                break;
            };
            *left -= 1;
            count += 1;
            // The VMM may have written anything.
            let region = slots.by_id(slot);
            if let Some(region) = region.filter(|region| page < region.pages()) {
                let start = region.gpa + page * PAGE_SIZE as u64;
                any |= guarded.tables[region.as_id.index()]
                    .protect(&(start..start + PAGE_SIZE as u64));
            }
        }
        if any {
            guarded.cleared += 1;
        }
        (count, more)
    }
}
