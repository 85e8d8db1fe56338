// SPDX-License-Identifier: GPL-2.0

//! Memory slots: which range of guest-physical addresses is which range of the VMM's addresses.

use crate::linux::user;
use crate::uapi;
use core::ops::Range;
use kernel::alloc::allocator::KVmalloc;
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;

/// Number of slots a VM may have (`KVM_CAP_NR_MEMSLOTS`).
pub(crate) const SLOT_LIMIT: u32 = 512;

/// What `KVM_SET_USER_MEMORY_REGION` asks for, checked for what can be checked without the other slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    /// The slot's number, below [`SLOT_LIMIT`].
    pub(crate) id: u32,
    /// First guest-physical address, page aligned.
    pub(crate) gpa: u64,
    /// Bytes, page aligned.
    pub(crate) size: u64,
    /// First user address, page aligned.
    pub(crate) user: u64,
    /// The guest can't write to it.
    pub(crate) read_only: bool,
}

impl Region {
    /// Checks what userspace passed (api.rst, 4.35). `size` 0 asks for deletion.
    ///
    /// # Errors
    ///
    /// `EINVAL` for an unknown flag, an unknown slot or address space, a misaligned or wrapping range, or a user range outside of userspace.
    pub(crate) fn new(slot: u32, flags: u32, gpa: u64, size: u64, user: u64) -> Result<Self> {
        let page = PAGE_SIZE as u64;
        let aligned = gpa % page == 0 && size % page == 0 && user % page == 0;
        // Second-level tables of four levels reach 48 bits, and page counts must fit 31 bits as in KVM.
        let fits = gpa.checked_add(size).is_some_and(|end| end <= 1 << 48) && size / page < 1 << 31;
        if slot >= SLOT_LIMIT
            || flags & !uapi::KVM_MEM_READONLY != 0
            || !aligned
            || !fits
            || !user::is_user_range(user, size)
        {
            return Err(EINVAL);
        }
        Ok(Self {
            id: slot,
            gpa,
            size,
            user,
            read_only: flags & uapi::KVM_MEM_READONLY != 0,
        })
    }

    /// Whether guest-physical `gpa` is in it.
    #[inline]
    pub(crate) fn holds(&self, gpa: u64) -> bool {
        gpa.wrapping_sub(self.gpa) < self.size
    }

    /// The guest-physical range.
    pub(crate) fn range(&self) -> Range<u64> {
        self.gpa..self.gpa.wrapping_add(self.size)
    }

    /// The guest-physical addresses that are `users` in the VMM, whole pages.
    pub(crate) fn guest_range(&self, users: &Range<usize>) -> Option<Range<u64>> {
        let start = (users.start as u64).max(self.user);
        let end = (users.end as u64).min(self.user.saturating_add(self.size));
        let to_guest = |address: u64| self.gpa.wrapping_add(address.wrapping_sub(self.user));
        (start < end).then(|| to_guest(start) & !0xfff..to_guest(end).wrapping_add(0xfff) & !0xfff)
    }

    /// The user address of guest-physical `gpa`, which is in this region.
    #[inline]
    pub(crate) fn user_address(&self, gpa: u64) -> usize {
        self.user.wrapping_add(gpa.wrapping_sub(self.gpa)) as usize
    }
}

/// All slots of a VM at one time. Immutable: a change makes a new one.
pub(crate) struct Slots {
    /// Sorted by `gpa`, without overlaps.
    regions: Vec<Region, KVmalloc>,
}

impl Slots {
    /// No memory.
    pub(crate) fn new() -> Self {
        Self {
            regions: Vec::new(),
        }
    }

    /// The region of slot `id`.
    pub(crate) fn by_id(&self, id: u32) -> Option<&Region> {
        self.regions.iter().find(|region| region.id == id)
    }

    /// The region that guest-physical `gpa` is in.
    #[inline]
    pub(crate) fn by_gpa(&self, gpa: u64) -> Option<&Region> {
        let holds = |region: &&Region| region.holds(gpa);
        // Most VMs have few slots, and looking at each is the fastest then.
        if self.regions.len() <= 4 {
            return self.regions.iter().find(holds);
        }
        let after = self.regions.partition_point(|region| region.gpa <= gpa);
        self.regions.get(after.checked_sub(1)?).filter(holds)
    }

    /// All regions.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Region> {
        self.regions.iter()
    }

    /// These slots with `new` in place of the one of the same number; a `new` of size 0 takes it away.
    ///
    /// # Errors
    ///
    /// `EEXIST` when it overlaps another slot; `EINVAL` when it takes away a slot that isn't there, changes the size, the user address
    /// or the read-only flag of one that is; `ENOMEM`.
    pub(crate) fn with(&self, new: Region) -> Result<Self> {
        let old = self.by_id(new.id);
        match old {
            None if new.size == 0 => return Err(EINVAL),
            Some(old) if new.size != 0 => {
                if old.size != new.size || old.user != new.user || old.read_only != new.read_only {
                    return Err(EINVAL);
                }
            }
            _ => {}
        }
        let mut regions = Vec::with_capacity(self.regions.len() + 1, GFP_KERNEL_ACCOUNT)?;
        let (mine, others) = (
            new.range(),
            self.regions.iter().filter(|region| region.id != new.id),
        );
        let mut placed = new.size == 0;
        for region in others {
            if new.size != 0 && region.gpa < mine.end && mine.start < region.range().end {
                return Err(EEXIST);
            }
            if !placed && new.gpa < region.gpa {
                regions.push(new, GFP_KERNEL_ACCOUNT)?;
                placed = true;
            }
            regions.push(*region, GFP_KERNEL_ACCOUNT)?;
        }
        if !placed {
            regions.push(new, GFP_KERNEL_ACCOUNT)?;
        }
        Ok(Self { regions })
    }
}
