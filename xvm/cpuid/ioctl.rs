// SPDX-License-Identifier: GPL-2.0

//! `KVM_GET_SUPPORTED_CPUID`, `KVM_GET_EMULATED_CPUID`, `KVM_SET_CPUID`, `KVM_SET_CPUID2`, `KVM_GET_CPUID2` (api.rst, 4.46, 4.88,
//! 4.20, 4.45).
//!
//! The argument is `struct kvm_cpuid2`: a count, padding, and as many entries.

use super::emulated::emulated;
use super::features::Words;
use super::guest::GuestCpuid;
use super::supported::supported;
use super::ENTRIES_MAX;
use crate::linux::user;
use crate::uapi::kvm_cpuid_entry;
use crate::uapi::kvm_cpuid_entry2;
use crate::xvm::machine::Machine;
use crate::xvm::pv;
use crate::xvm::vcpu::Vcpu;
use crate::xvm::XvmOps;
use core::mem::size_of;
use kernel::prelude::*;

/// Offset of the entries in `struct kvm_cpuid`, behind their count and padding.
const OLD_ENTRIES: usize = 8;

/// Offset of the entries in `struct kvm_cpuid2`.
const ENTRIES: usize = 8;

/// Address of entry `n`.
fn entry_address(arg: usize, n: usize) -> Result<usize> {
    let offset = n.checked_mul(size_of::<kvm_cpuid_entry2>()).ok_or(EFAULT)?;
    arg.checked_add(ENTRIES)
        .and_then(|start| start.checked_add(offset))
        .ok_or(EFAULT)
}

/// Copies entries out, then their count.
fn write_entries(arg: usize, entries: impl ExactSizeIterator<Item = kvm_cpuid_entry2>) -> Result {
    let count = entries.len() as u32;
    for (n, entry) in entries.enumerate() {
        user::write(entry_address(arg, n)?, &entry)?;
    }
    user::write(arg, &count)
}

/// `KVM_GET_SUPPORTED_CPUID`.
///
/// # Errors
///
/// `E2BIG` when there is room for fewer entries than there are, `EFAULT`, `ENOMEM`.
pub(in super::super) fn get_supported<V: XvmOps>(
    machine: &Machine<V>,
    arg: usize,
) -> Result<isize> {
    let room: u32 = user::read(arg)?;
    let entries = supported(machine)?;
    if (room as usize) < entries.len() {
        return Err(E2BIG);
    }
    write_entries(arg, entries.iter().copied())?;
    Ok(0)
}

/// `KVM_GET_EMULATED_CPUID`.
///
/// # Errors
///
/// `E2BIG` when there is room for fewer entries than there are; `EINVAL` when the padding of an entry that there is room for isn't
/// zero; `EFAULT`.
pub(in super::super) fn get_emulated<V: XvmOps>(machine: &Machine<V>, arg: usize) -> Result<isize> {
    let room: u32 = user::read(arg)?;
    if room == 0 {
        return Err(E2BIG);
    }
    for n in 0..room.min(ENTRIES_MAX) as usize {
        let entry: kvm_cpuid_entry2 = user::read(entry_address(arg, n)?)?;
        if entry.padding != [0; 3] {
            return Err(EINVAL);
        }
    }
    let entries = emulated(machine);
    if (room as usize) < entries.len() {
        return Err(E2BIG);
    }
    write_entries(arg, entries.into_iter())?;
    Ok(0)
}

impl<V: XvmOps> Vcpu<V> {
    /// `KVM_SET_CPUID2`.
    ///
    /// # Errors
    ///
    /// `E2BIG` with more than 256 entries; `EINVAL` when linear addresses would have another width than 48 bits, or
    /// the vCPU has run and the CPUID would change; `EFAULT`, `ENOMEM`.
    pub(crate) fn set_cpuid2(&mut self, arg: usize) -> Result<isize> {
        let count: u32 = user::read(arg)?;
        if count > ENTRIES_MAX {
            return Err(E2BIG);
        }
        let mut entries = KVec::with_capacity(count as usize, GFP_KERNEL_ACCOUNT)?;
        for n in 0..count as usize {
            entries.push(user::read(entry_address(arg, n)?)?, GFP_KERNEL_ACCOUNT)?;
        }
        self.take_cpuid(entries)
    }

    /// `KVM_SET_CPUID`, from before leaves had subleaves.
    ///
    /// # Errors
    ///
    /// As [`Vcpu::set_cpuid2`].
    pub(crate) fn set_cpuid(&mut self, arg: usize) -> Result<isize> {
        let count: u32 = user::read(arg)?;
        if count > ENTRIES_MAX {
            return Err(E2BIG);
        }
        let mut entries = KVec::with_capacity(count as usize, GFP_KERNEL_ACCOUNT)?;
        for n in 0..count as usize {
            let offset = OLD_ENTRIES + n * size_of::<kvm_cpuid_entry>();
            let at = arg.checked_add(offset).ok_or(EFAULT)?;
            let old: kvm_cpuid_entry = user::read(at)?;
            let entry = kvm_cpuid_entry2 {
                function: old.function,
                eax: old.eax,
                ebx: old.ebx,
                ecx: old.ecx,
                edx: old.edx,
                ..kvm_cpuid_entry2::default()
            };
            entries.push(entry, GFP_KERNEL_ACCOUNT)?;
        }
        self.take_cpuid(entries)
    }

    fn take_cpuid(&mut self, entries: KVec<kvm_cpuid_entry2>) -> Result<isize> {
        let machine = &self.vm.machine;
        let words = Words::of_machine(&machine.fpu, &machine.caps.features);
        let mut cpuid =
            GuestCpuid::from_entries(entries, &words, machine.fpu.guest_xcr0, self.cpuid.os_xsave);
        check_linear_width(&cpuid)?;
        if self.config.free_hlt {
            // A HLT that doesn't exit is ended by nobody but the CPU.
            cpuid.hide_pv_feature(pv::Features::PV_UNHALT);
        }
        if self.has_run() && !self.is_same_cpuid(&cpuid) {
            return Err(EINVAL);
        }
        self.cpuid = cpuid;
        self.update_monitor();
        self.offer_eoi_suppression();
        Ok(0)
    }

    /// Whether the vCPU has been in the guest: what it is must not change any more.
    fn has_run(&self) -> bool {
        self.last_cpu != u32::MAX
    }

    fn is_same_cpuid(&self, new: &GuestCpuid) -> bool {
        let (old, new) = (self.cpuid.entries(), new.entries());
        old.len() == new.len()
            && old.iter().zip(new).all(|(old, new)| {
                let (old, new) = (self.current_entry(old), self.current_entry(new));
                let key = |entry: &kvm_cpuid_entry2| (entry.function, entry.index, entry.flags);
                let data = |entry: &kvm_cpuid_entry2| (entry.eax, entry.ebx, entry.ecx, entry.edx);
                key(&old) == key(&new) && data(&old) == data(&new)
            })
    }

    /// `KVM_GET_CPUID2`.
    ///
    /// # Errors
    ///
    /// `E2BIG` when there is room for fewer entries than there are, `EFAULT`.
    pub(crate) fn get_cpuid2(&mut self, arg: usize) -> Result<isize> {
        let room: u32 = user::read(arg)?;
        let entries = self.cpuid.entries();
        if (room as usize) < entries.len() {
            return Err(E2BIG);
        }
        write_entries(arg, entries.iter().map(|entry| self.current_entry(entry)))?;
        Ok(0)
    }
}

/// Linear addresses of 48 bits are what there is; 0 says nothing about them.
fn check_linear_width(cpuid: &GuestCpuid) -> Result {
    match cpuid
        .exact(0x8000_0008, 0)
        .map(|sizes| sizes.eax >> 8 & 0xff)
    {
        None | Some(0 | 48) => Ok(()),
        Some(_) => Err(EINVAL),
    }
}
