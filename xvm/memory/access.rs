// SPDX-License-Identifier: GPL-2.0

//! A vCPU's view of its VM's memory: finding slots, and reading and writing guest memory on the guest's behalf, through
//! the VMM's addresses.

use super::ring::Ring;
use super::ring::Rings;
use super::slots::Current;
use super::AsId;
use super::Region;
use super::Slots;
use crate::linux::user;
use core::ops::Deref;
use core::sync::atomic::fence;
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::sync::srcu;
use kernel::sync::Arc;

/// The slots as a vCPU knows them. They may be out of date until [`View::refresh`].
pub(crate) struct View {
    current: Arc<Current>,
    slots: Arc<Slots>,
    /// The address space that the vCPU is in.
    as_id: AsId,
    /// Where the vCPU's writes are logged, if not in the slots' bitmaps.
    ring: Option<Arc<Ring>>,
    rings: Arc<Rings>,
}

/// A [`View`] of the main address space, which goes back to where it was when this is dropped.
pub(crate) struct MainView<'a> {
    view: &'a mut View,
    before: AsId,
}

impl Deref for MainView<'_> {
    type Target = View;

    fn deref(&self) -> &View {
        self.view
    }
}

impl Drop for MainView<'_> {
    fn drop(&mut self) {
        self.view.as_id = self.before;
    }
}

/// The slots that there are at the begin of an access to guest memory. A change of them waits for its end.
struct Reading<'a> {
    known: &'a Slots,
    /// Newer ones than the vCPU knew.
    newer: Option<Arc<Slots>>,
    _access: srcu::Guard<'a>,
}

impl Reading<'_> {
    fn slots(&self) -> &Slots {
        self.newer.as_deref().unwrap_or(self.known)
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if let Some(ring) = &self.ring {
            self.rings.remove(ring);
        }
    }
}

impl View {
    /// A new vCPU's view. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(super) fn new(current: Arc<Current>, rings: Arc<Rings>) -> Result<Self> {
        Ok(Self {
            slots: current.get(),
            as_id: AsId::Main,
            current,
            ring: rings.add()?,
            rings,
        })
    }

    /// The vCPU's dirty ring, if it has one.
    pub(crate) fn ring(&self) -> Option<&Arc<Ring>> {
        self.ring.as_ref()
    }

    /// Looks whether the slots have changed.
    #[inline]
    pub(crate) fn refresh(&mut self) {
        if !self.is_current() {
            self.slots = self.current.get();
        }
    }

    /// Whether these are the VM's slots now.
    #[inline]
    pub(super) fn is_current(&self) -> bool {
        self.slots.generation() == self.current.generation()
    }

    /// Their version.
    pub(crate) fn generation(&self) -> u64 {
        self.slots.generation()
    }

    /// The address space that it looks at.
    #[inline]
    pub(crate) fn as_id(&self) -> AsId {
        self.as_id
    }

    /// Goes to another address space.
    pub(crate) fn set_as_id(&mut self, as_id: AsId) {
        self.as_id = as_id;
    }

    /// The main address space as long as what is returned lives, wherever the vCPU is.
    pub(crate) fn main(&mut self) -> MainView<'_> {
        let before = core::mem::take(&mut self.as_id);
        MainView { view: self, before }
    }

    /// The slot that guest-physical `gpa` is in.
    #[inline]
    pub(crate) fn by_gpa(&self, gpa: u64) -> Option<&Region> {
        self.slots.by_gpa(self.as_id, gpa)
    }

    /// The page at `gpa` in `region` is being written to: if that is to be logged, it is. Does not sleep.
    pub(super) fn log(&self, region: &Region, gpa: u64) {
        if !region.logged {
            return;
        }
        if let Some(ring) = &self.ring {
            ring.push(region.id, region.page_of(gpa));
        } else if let Some(dirty) = &region.dirty {
            dirty.mark(region.page_of(gpa));
        }
    }

    /// The kernel has written to the page at `gpa` in `region` for the guest. Where logging begins meanwhile, it waits for this.
    fn wrote(&self, region: &Region, gpa: u64) {
        // The write comes before the mark, so that who takes the mark finds the write.
        fence(Ordering::SeqCst);
        self.log(region, gpa);
    }

    /// Begins an access that may sleep.
    fn begin(&self) -> Reading<'_> {
        // First: from here on a change of the slots waits.
        let access = self.current.access();
        Reading {
            known: &self.slots,
            newer: (!self.is_current()).then(|| self.current.get()),
            _access: access,
        }
    }

    /// Splits `length` bytes at `gpa` at page borders and calls `each` with the page's slot, an address in it, and the part of
    /// the bytes.
    fn pieces(
        &self,
        slots: &Slots,
        gpa: u64,
        length: usize,
        mut each: impl FnMut(&Region, u64, core::ops::Range<usize>) -> Result,
    ) -> Result {
        let mut done = 0;
        while done < length {
            let at = gpa.wrapping_add(done as u64);
            let part = (length - done).min(4096 - (at % 4096) as usize);
            let region = slots.by_gpa(self.as_id, at).ok_or(ENXIO)?;
            each(region, at, done..done + part)?;
            done += part;
        }
        Ok(())
    }

    /// Copies guest memory out. May sleep.
    ///
    /// # Errors
    ///
    /// `ENXIO` where there is no memory, `EFAULT` where the VMM has nothing mapped.
    pub(crate) fn read(&self, gpa: u64, to: &mut [u8]) -> Result {
        self.pieces(self.begin().slots(), gpa, to.len(), |region, at, part| {
            user::read_bytes(region.user_address(at), &mut to[part])
        })
    }

    /// Copies guest memory out without sleeping, also inside the window.
    ///
    /// The slots must have been looked at since interrupts are off, or in the same [`rcu::read_side`](crate::linux::rcu::read_side).
    ///
    /// # Errors
    ///
    /// As [`View::read`], and `EFAULT` for what isn't present.
    #[inline]
    pub(crate) fn read_nofault(&self, gpa: u64, to: &mut [u8]) -> Result {
        self.pieces(&self.slots, gpa, to.len(), |region, at, part| {
            user::read_nofault(region.user_address(at), &mut to[part])
        })
    }

    /// Copies into guest memory without sleeping, also inside the window. The slots must be as for [`View::read_nofault`].
    ///
    /// # Errors
    ///
    /// As [`View::write`], and `EFAULT` for what isn't present.
    pub(crate) fn write_nofault(&self, gpa: u64, from: &[u8]) -> Result {
        self.pieces(&self.slots, gpa, from.len(), |region, at, part| {
            if region.read_only {
                return Err(ENXIO);
            }
            let result = user::write_nofault(region.user_address(at), &from[part]);
            self.wrote(region, at);
            result
        })
    }

    /// Reads eight bytes that are inside of one page, if they are present, without sleeping, also inside the window. The slots
    /// must be as for [`View::read_nofault`].
    ///
    /// # Errors
    ///
    /// As [`View::read_nofault`].
    #[inline]
    pub(crate) fn read_word_nofault(&self, gpa: u64) -> Result<u64> {
        let region = self.by_gpa(gpa).ok_or(ENXIO)?;
        user::read_word_nofault(region.user_address(gpa))
    }

    /// Copies into guest memory. May sleep.
    ///
    /// # Errors
    ///
    /// `ENXIO` where there is no memory or it is read-only (then bytes before it may have been written), `EFAULT` where the VMM has nothing mapped.
    pub(crate) fn write(&self, gpa: u64, from: &[u8]) -> Result {
        self.pieces(self.begin().slots(), gpa, from.len(), |region, at, part| {
            if region.read_only {
                return Err(ENXIO);
            }
            let result = user::write_bytes(region.user_address(at), &from[part]);
            // A copy that failed may have written something.
            self.wrote(region, at);
            result
        })
    }

    /// Atomically replaces `old` with `new` (4 or 8 bytes at `gpa`, aligned) in guest memory. Whether it did. May sleep.
    ///
    /// # Errors
    ///
    /// As [`View::write`].
    pub(crate) fn compare_exchange(
        &self,
        gpa: u64,
        size: usize,
        old: u64,
        new: u64,
    ) -> Result<bool> {
        let reading = self.begin();
        let region = reading.slots().by_gpa(self.as_id, gpa).ok_or(ENXIO)?;
        if region.read_only {
            return Err(ENXIO);
        }
        let done = user::compare_exchange(region.user_address(gpa), size, old, new)?;
        if done {
            self.wrote(region, gpa);
        }
        Ok(done)
    }
}
