// SPDX-License-Identifier: GPL-2.0

//! Registers in `struct kvm_run` (`KVM_CAP_SYNC_REGS`; api.rst, section 6.74): what the VMM would set before `KVM_RUN` and get after
//! it, without the ioctls. All that is read there is copied once, and checked as the ioctls do it.

use super::vcpu::Vcpu;
use super::XvmOps;
use crate::uapi;
use crate::uapi::kvm_regs;
use crate::uapi::kvm_run;
use crate::uapi::kvm_sregs;
use crate::uapi::kvm_sync_regs;
use crate::uapi::kvm_vcpu_events;
use core::mem::offset_of;
use kernel::prelude::*;

/// The sets of registers, as bits of `kvm_valid_regs` and `kvm_dirty_regs`.
const REGS: u64 = uapi::KVM_SYNC_X86_REGS as u64;
const SREGS: u64 = uapi::KVM_SYNC_X86_SREGS as u64;
const EVENTS: u64 = uapi::KVM_SYNC_X86_EVENTS as u64;
const ALL: u64 = REGS | SREGS | EVENTS;

/// Where they are.
const VALID_AT: usize = offset_of!(kvm_run, kvm_valid_regs);
const DIRTY_AT: usize = offset_of!(kvm_run, kvm_dirty_regs);
const AT: usize = offset_of!(kvm_run, s);
const REGS_AT: usize = AT + offset_of!(kvm_sync_regs, regs);
const SREGS_AT: usize = AT + offset_of!(kvm_sync_regs, sregs);
const EVENTS_AT: usize = AT + offset_of!(kvm_sync_regs, events);

impl<V: XvmOps> Vcpu<V> {
    /// Takes what the VMM has changed, before the vCPU runs.
    ///
    /// # Errors
    ///
    /// `EINVAL` for sets that nobody knows, and registers that the ioctls refuse; sets before those have been taken.
    #[inline]
    pub(super) fn take_synced(&mut self) -> Result {
        let valid = self.pages.get::<u64>(VALID_AT).unwrap_or(0);
        let dirty = self.pages.get::<u64>(DIRTY_AT).unwrap_or(0);
        if (valid | dirty) & !ALL != 0 {
            return Err(EINVAL);
        }
        match dirty {
            0 => Ok(()),
            sets => self.take_sets(sets),
        }
    }

    #[inline(never)]
    fn take_sets(&mut self, mut sets: u64) -> Result {
        let pages = self.pages.clone();
        if sets & REGS != 0 {
            let regs: kvm_regs = pages.copy_out(REGS_AT).ok_or(EINVAL)?;
            self.change_regs(&regs);
            sets &= !REGS;
            pages.set(DIRTY_AT, sets);
        }
        if sets & SREGS != 0 {
            let sregs: kvm_sregs = pages.copy_out(SREGS_AT).ok_or(EINVAL)?;
            self.change_sregs(&sregs)?;
            sets &= !SREGS;
            pages.set(DIRTY_AT, sets);
        }
        if sets & EVENTS != 0 {
            let events: kvm_vcpu_events = pages.copy_out(EVENTS_AT).ok_or(EINVAL)?;
            self.change_events(&events)?;
            pages.set(DIRTY_AT, 0u64);
        }
        Ok(())
    }

    /// Gives the VMM what it wants to have, after the vCPU has run.
    #[inline]
    pub(super) fn give_synced(&mut self) {
        match self.pages.get::<u64>(VALID_AT).unwrap_or(0) {
            0 => {}
            sets => self.give_sets(sets),
        }
    }

    #[inline(never)]
    fn give_sets(&mut self, sets: u64) {
        let pages = self.pages.clone();
        if sets & REGS != 0 {
            pages.copy_in(REGS_AT, &self.shown_regs());
        }
        if sets & SREGS != 0 {
            pages.copy_in(SREGS_AT, &self.shown_sregs());
        }
        if sets & EVENTS != 0 {
            pages.copy_in(EVENTS_AT, &self.shown_events());
        }
    }
}
