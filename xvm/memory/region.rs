// SPDX-License-Identifier: GPL-2.0

//! One memory slot: a range of guest-physical addresses that is a range of the VMM's addresses.

use super::AsId;
use super::Backing;
use super::Bitmap;
use crate::linux::user;
use crate::uapi;
use core::ops::Range;
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;
use kernel::sync::Arc;

/// Number of slots an address space may have (`KVM_CAP_NR_MEMSLOTS`).
pub(crate) const SLOT_LIMIT: u32 = 32764;

/// The most pages a slot may have: fewer than 2^31, as in KVM, so that a dirty bitmap's bits have numbers of 31 bits.
const PAGES_LIMIT: u64 = 1 << 31;

/// Second-level tables of four levels reach 48 bits.
const GPA_LIMIT: u64 = 1 << 48;

/// The address space of slot number `slot`, as the ABI has it.
///
/// # Errors
///
/// `EINVAL` for a number that no slot can have.
pub(super) fn as_id_of(slot: u32) -> Result<AsId> {
    match AsId::split(slot) {
        Some((as_id, id)) if id < SLOT_LIMIT => Ok(as_id),
        _ => Err(EINVAL),
    }
}

/// What `KVM_SET_USER_MEMORY_REGION` asks for, checked for what can be checked without the other slots, and the log of
/// writes that a slot has.
#[derive(Clone)]
pub(crate) struct Region {
    /// The slot's number with that of its address space in the upper half, as the ABI has it.
    pub(crate) id: u32,
    /// The address space.
    pub(crate) as_id: AsId,
    /// First guest-physical address, page aligned.
    pub(crate) gpa: u64,
    /// Bytes, page aligned.
    pub(crate) size: u64,
    /// First user address, page aligned.
    pub(crate) user: u64,
    /// The guest can't write to it.
    pub(crate) read_only: bool,
    /// Writes are logged (`KVM_MEM_LOG_DIRTY_PAGES`).
    pub(crate) logged: bool,
    /// Where they are logged, once the slot is the VM's.
    pub(crate) dirty: Option<Arc<Bitmap>>,
    /// It is bound to a file (`KVM_MEM_GUEST_MEMFD`): a descriptor, and bytes from its start.
    pub(crate) file: Option<(u32, u64)>,
    /// The file, once the slot is the VM's.
    pub(crate) backing: Option<Backing>,
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
        let end = gpa.checked_add(size);
        let fits = end.is_some_and(|end| end <= GPA_LIMIT) && size / page < PAGES_LIMIT;
        let known = uapi::KVM_MEM_READONLY | uapi::KVM_MEM_LOG_DIRTY_PAGES;
        let as_id = as_id_of(slot)?;
        if flags & !known != 0 || !aligned || !fits || !user::is_user_range(user, size) {
            return Err(EINVAL);
        }
        Ok(Self {
            id: slot,
            as_id,
            gpa,
            size,
            user,
            read_only: flags & uapi::KVM_MEM_READONLY != 0,
            logged: flags & uapi::KVM_MEM_LOG_DIRTY_PAGES != 0,
            dirty: None,
            file: None,
            backing: None,
        })
    }

    /// The same for `KVM_SET_USER_MEMORY_REGION2`, which may have a file besides (api.rst, 4.140): such a slot can be neither
    /// logged nor read-only.
    ///
    /// # Errors
    ///
    /// As [`Region::new`].
    pub(crate) fn with_file(asked: &uapi::kvm_userspace_memory_region2) -> Result<Self> {
        let bound = asked.flags & uapi::KVM_MEM_GUEST_MEMFD != 0;
        let offset = asked.guest_memfd_offset;
        let end = offset.checked_add(asked.memory_size);
        if bound
            && (asked.flags != uapi::KVM_MEM_GUEST_MEMFD
                || offset % PAGE_SIZE as u64 != 0
                || end.is_none())
        {
            return Err(EINVAL);
        }
        let mut region = Self::new(
            asked.slot,
            asked.flags & !uapi::KVM_MEM_GUEST_MEMFD,
            asked.guest_phys_addr,
            asked.memory_size,
            asked.userspace_addr,
        )?;
        region.file = bound.then_some((asked.guest_memfd, offset));
        Ok(region)
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

    /// Number of its pages.
    pub(crate) fn pages(&self) -> u64 {
        self.size / PAGE_SIZE as u64
    }

    /// The number of guest-physical `gpa`'s page in it.
    pub(crate) fn page_of(&self, gpa: u64) -> u64 {
        gpa.wrapping_sub(self.gpa) / PAGE_SIZE as u64
    }

    /// The guest-physical addresses that are `users` in the VMM, whole pages.
    pub(crate) fn guest_range(&self, users: &Range<usize>) -> Option<Range<u64>> {
        let start = (users.start as u64).max(self.user);
        let end = (users.end as u64).min(self.user.saturating_add(self.size));
        let to_guest = |address: u64| self.gpa.wrapping_add(address.wrapping_sub(self.user));
        (start < end).then(|| to_guest(start) & !0xfff..to_guest(end).wrapping_add(0xfff) & !0xfff)
    }

    /// Reads eight bytes at guest-physical `gpa`, which is in this region, if they are there: also inside the window. The region
    /// must be known as for [`View::read_nofault`](super::View::read_nofault).
    #[inline]
    pub(crate) fn read_word_nofault(&self, gpa: u64) -> Option<u64> {
        user::read_word_nofault(self.user_address(gpa)).ok()
    }

    /// The user address of guest-physical `gpa`, which is in this region.
    #[inline]
    pub(crate) fn user_address(&self, gpa: u64) -> usize {
        self.user.wrapping_add(gpa.wrapping_sub(self.gpa)) as usize
    }

    /// Whether the two differ in nothing that a VMM sets.
    pub(super) fn same(&self, other: &Self) -> bool {
        self.gpa == other.gpa && self.logged == other.logged
    }
}
