// SPDX-License-Identifier: GPL-2.0

//! All memory slots of a VM: immutable, each change makes a new version that shares most of the one before.

use super::as_id;
use super::tree::ByGpa;
use super::tree::ById;
use super::tree::ByUser;
use super::tree::Tree;
use super::AsId;
use super::Region;
use crate::linux::rcu;
use core::ops::Range;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::sync::new_spinlock;
use kernel::sync::srcu;
use kernel::sync::srcu::new_srcu;
use kernel::sync::Arc;
use kernel::sync::SpinLock;
use kernel::sync::Srcu;

/// All slots of a VM at one time.
pub(crate) struct Slots {
    /// Counts changes.
    generation: u64,
    /// Those of each address space.
    by_gpa: [Tree<ByGpa>; as_id::COUNT],
    by_user: Tree<ByUser>,
    by_id: Tree<ById>,
}

impl Slots {
    /// No memory.
    pub(super) const fn new() -> Self {
        Self {
            generation: 0,
            by_gpa: [const { Tree::new() }; as_id::COUNT],
            by_user: Tree::new(),
            by_id: Tree::new(),
        }
    }

    /// How many changes made it.
    #[inline]
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// The slot that guest-physical `gpa` of an address space is in.
    #[inline]
    pub(crate) fn by_gpa(&self, as_id: AsId, gpa: u64) -> Option<&Region> {
        let region = self.by_gpa[as_id.index()].last_from(gpa)?;
        region.holds(gpa).then_some(region)
    }

    /// The slot with a number.
    pub(super) fn by_id(&self, id: u32) -> Option<&Arc<Region>> {
        let region = self.by_id.last_from(id.into())?;
        (region.id == id).then_some(region)
    }

    /// Calls `each` for the slots that user addresses are in.
    pub(super) fn each_at_user(&self, users: &Range<usize>, each: &mut impl FnMut(&Arc<Region>)) {
        self.by_user
            .each_touching(&(users.start as u64..users.end as u64), each);
    }

    /// These slots with `new` in place of the one of the same number, of which [`Slots::change`] has said what becomes of
    /// it; without it for a `new` of size 0.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(super) fn with(&self, new: Region) -> Result<Self> {
        let mut next = Self {
            generation: self.generation.wrapping_add(1),
            by_gpa: self.by_gpa.clone(),
            by_user: self.by_user.clone(),
            by_id: self.by_id.clone(),
        };
        if let Some(old) = self.by_id(new.id) {
            let by_gpa = &mut next.by_gpa[new.as_id.index()];
            *by_gpa = by_gpa.without(old)?;
            next.by_user = next.by_user.without(old)?;
            next.by_id = next.by_id.without(old)?;
        }
        if new.size != 0 {
            let new = Arc::new(new, GFP_KERNEL_ACCOUNT)?;
            let by_gpa = &mut next.by_gpa[new.as_id.index()];
            *by_gpa = by_gpa.with(&new)?;
            next.by_user = next.by_user.with(&new)?;
            next.by_id = next.by_id.with(&new)?;
        }
        Ok(next)
    }

    /// What `new` asks for.
    ///
    /// # Errors
    ///
    /// `EEXIST` when it overlaps another slot of its address space; `EINVAL` when it takes away a slot that isn't there, changes the size, the user
    /// address or the read-only flag of one that is, or anything of one that is bound to a file.
    pub(super) fn change(&self, new: &Region) -> Result<Change> {
        let old = self.by_id(new.id);
        let change = match old {
            None if new.size == 0 => return Err(EINVAL),
            None => Change::Add,
            Some(_) if new.size == 0 => return Ok(Change::Delete),
            Some(old)
                if old.size != new.size
                    || old.user != new.user
                    || old.read_only != new.read_only
                    // What is bound to a file stays as it is, and what isn't can't be bound.
                    || old.file.is_some()
                    || new.file.is_some() =>
            {
                return Err(EINVAL)
            }
            Some(old) if old.same(new) => return Ok(Change::Nothing),
            Some(old) if old.gpa == new.gpa => return Ok(Change::Flags),
            Some(_) => Change::Move,
        };
        let mut free = true;
        self.by_gpa[new.as_id.index()].each_touching(&new.range(), &mut |region| {
            free = free && region.id == new.id;
        });
        if free {
            Ok(change)
        } else {
            Err(EEXIST)
        }
    }
}

/// What `KVM_SET_USER_MEMORY_REGION` does to a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It is new.
    Add,
    /// It goes away.
    Delete,
    /// It comes to another guest-physical address.
    Move,
    /// Whether writes are logged.
    Flags,
    /// It is as before.
    Nothing,
}

/// The slots as they are now.
#[pin_data]
pub(crate) struct Current {
    #[pin]
    slots: SpinLock<Arc<Slots>>,
    generation: AtomicU64,
    /// Those who access guest memory by these slots, and may sleep at it.
    #[pin]
    accesses: Srcu,
}

impl Current {
    /// No memory yet.
    pub(super) fn new() -> Result<Arc<Self>> {
        let slots = Arc::new(Slots::new(), GFP_KERNEL_ACCOUNT)?;
        Arc::pin_init(
            try_pin_init!(Self {
                slots <- new_spinlock!(slots, "xvm_slots"),
                generation: AtomicU64::new(0),
                accesses <- new_srcu!("xvm_accesses"),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// The number of the present version: what has another one is out of date.
    #[inline]
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The present version.
    pub(super) fn get(&self) -> Arc<Slots> {
        self.slots.lock().clone()
    }

    /// Does `action` if version `generation` is the present one, which stays so meanwhile. Not if that is just changing: who calls this
    /// can't wait. From any context.
    pub(crate) fn if_still(&self, generation: u64, action: impl FnOnce()) {
        if let Some(slots) = self.slots.try_lock() {
            if slots.generation == generation {
                action();
            }
        }
    }

    /// Keeps [`Current::wait_for_accesses`] from returning. May sleep, and be held while sleeping.
    pub(super) fn access(&self) -> srcu::Guard<'_> {
        self.accesses.read_lock()
    }

    /// Waits until all accesses by a version before the present one have ended: those that may sleep, and those with
    /// interrupts off or in a [`rcu::read_side`]. May sleep.
    pub(super) fn wait_for_accesses(&self) {
        self.accesses.synchronize_expedited();
        rcu::wait_for_readers();
    }

    /// Replaces it. The caller lets one change happen at a time.
    pub(super) fn set(&self, slots: Slots) -> Result {
        let generation = slots.generation;
        let mut slots = Arc::new(slots, GFP_KERNEL_ACCOUNT)?;
        core::mem::swap(&mut *self.slots.lock(), &mut slots);
        // Release: who reads the new number reads the new slots.
        self.generation.store(generation, Ordering::Release);
        Ok(())
    }
}
