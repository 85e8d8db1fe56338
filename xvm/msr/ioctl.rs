// SPDX-License-Identifier: GPL-2.0

//! `KVM_GET_MSRS` and `KVM_SET_MSRS` (api.rst, 4.18, 4.19): `struct kvm_msrs` is a count, padding, and as many entries.

use crate::linux::user;
use crate::uapi::kvm_msr_entry;
use crate::xvm::vcpu::Vcpu;
use crate::xvm::XvmOps;
use core::mem::size_of;
use kernel::prelude::*;

/// Fewer entries than this are taken at a time, as in KVM.
const LIMIT: u32 = 256;

/// Offset of the entries.
const ENTRIES: usize = 8;

/// The addresses of the entries.
///
/// # Errors
///
/// `E2BIG` for too many, `EFAULT`.
fn entries(arg: usize) -> Result<impl Iterator<Item = usize>> {
    let count: u32 = user::read(arg)?;
    if count >= LIMIT {
        return Err(E2BIG);
    }
    let size = count as usize * size_of::<kvm_msr_entry>();
    let start = arg.checked_add(ENTRIES).ok_or(EFAULT)?;
    let end = start.checked_add(size).ok_or(EFAULT)?;
    Ok((start..end).step_by(size_of::<kvm_msr_entry>()))
}

/// Fills in the values of the MSRs that are asked for, until `value` doesn't know one. Returns how many it knew.
///
/// # Errors
///
/// As [`entries`].
pub(super) fn read_all(arg: usize, mut value: impl FnMut(u32) -> Option<u64>) -> Result<isize> {
    let mut done = 0;
    for at in entries(arg)? {
        let mut entry: kvm_msr_entry = user::read(at)?;
        let Some(data) = value(entry.index) else {
            break;
        };
        entry.data = data;
        user::write(at, &entry)?;
        done += 1;
    }
    Ok(done)
}

impl<V: XvmOps> Vcpu<V> {
    /// `KVM_GET_MSRS`. Returns how many were read: it stops at one that can't be.
    ///
    /// # Errors
    ///
    /// `E2BIG` for more than 255, `EFAULT`.
    pub(crate) fn get_msrs(&mut self, arg: usize) -> Result<isize> {
        read_all(arg, |msr| self.read_msr(msr, true).ok())
    }

    /// `KVM_SET_MSRS`. Returns how many were written: it stops at one that can't be.
    ///
    /// # Errors
    ///
    /// `E2BIG` for more than 255, `EFAULT`; those before a faulting address have been written.
    pub(crate) fn set_msrs(&mut self, arg: usize) -> Result<isize> {
        let mut done = 0;
        for at in entries(arg)? {
            let entry: kvm_msr_entry = user::read(at)?;
            let Ok(effect) = self.write_msr(entry.index, entry.data, true) else {
                break;
            };
            self.apply(effect);
            self.serve_at_once();
            done += 1;
        }
        Ok(done)
    }
}
