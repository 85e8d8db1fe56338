// SPDX-License-Identifier: GPL-2.0

//! `KVM_TRANSLATE` (api.rst, 4.15).

use super::control::cr0;
use super::emulate::walk;
use super::emulate::walk::Access;
use super::guest_memory::Sleeping;
use super::vcpu::Vcpu;
use super::XvmOps;
use crate::linux::user;
use crate::uapi::kvm_translation;
use kernel::prelude::*;

impl<V: XvmOps> Vcpu<V> {
    /// `KVM_TRANSLATE`: where a linear address leads in the guest's present paging mode; changes no accessed bit. Without
    /// paging an address of more than 32 bits leads nowhere.
    ///
    /// # Errors
    ///
    /// `EFAULT`. An address that leads nowhere is no error: `valid` is 0.
    pub(crate) fn translate(&mut self, arg: usize) -> Result<isize> {
        let asked: kvm_translation = user::read(arg)?;
        let paging = self.paging(&V::code_context(&self.arch));
        // As the kernel of the guest reads it, with SMAP put aside.
        let access = Access {
            ac: true,
            ..Access::default()
        };
        let slots = self.current_slots();
        let linear = asked.linear_address;
        let found = Some(linear)
            .filter(|linear| paging.cr0 & cr0::PG != 0 || linear >> 32 == 0)
            .and_then(|linear| walk::inspect(&mut Sleeping(slots), &paging, linear, access).ok());
        let answer = kvm_translation {
            linear_address: linear,
            physical_address: found.map_or(u64::MAX, |found| found.gpa),
            valid: found.is_some().into(),
            writeable: found.is_some_and(|found| found.writable).into(),
            usermode: found.is_some_and(|found| found.user).into(),
            pad: [0; 5],
        };
        user::write(arg, &answer)?;
        Ok(0)
    }
}
