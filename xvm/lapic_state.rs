// SPDX-License-Identifier: GPL-2.0

//! `KVM_GET_LAPIC` and `KVM_SET_LAPIC` (api.rst, 4.57, 4.58).

use super::platform::lapic::Effect;
use super::vcpu::Vcpu;
use super::XvmOps;
use crate::linux::timer;
use crate::linux::user;
use kernel::prelude::*;

/// Size of `struct kvm_lapic_state`.
const SIZE: usize = 1024;

impl<V: XvmOps> Vcpu<V> {
    /// `KVM_GET_LAPIC`.
    ///
    /// # Errors
    ///
    /// `EINVAL` without an in-kernel local APIC, `EFAULT`.
    pub(crate) fn get_lapic(&mut self, arg: usize) -> Result<isize> {
        let (now, tsc) = (timer::now(), self.guest_tsc());
        let wide_ids = self.vm.targets().wide_ids();
        let lapic = self.lapic.as_mut().ok_or(EINVAL)?;
        self.shared.mailbox.drain_into(lapic);
        lapic.timer_expired(now, tsc);
        let mut page = [0; SIZE];
        lapic.state(&mut page, wide_ids, now);
        // A timer that was due is not any more.
        self.timer_stale = true;
        user::write_bytes(arg, &page)?;
        Ok(0)
    }

    /// `KVM_SET_LAPIC`.
    ///
    /// # Errors
    ///
    /// `EINVAL` without an in-kernel local APIC, `EFAULT`.
    pub(crate) fn set_lapic(&mut self, arg: usize) -> Result<isize> {
        let wide_ids = self.vm.targets().wide_ids();
        let lapic = self.lapic.as_mut().ok_or(EINVAL)?;
        let mut page = [0; SIZE];
        user::read_bytes(arg, &mut page)?;
        // Vectors that came before belong to the old state.
        self.shared.mailbox.drain_into(lapic);
        lapic
            .set_state(&page, wide_ids, timer::now())
            .map_err(|_| EINVAL)?;
        let priority = lapic.tpr() >> 4;
        self.set_cr8(priority);
        self.apply(Effect::TimerChanged);
        Ok(0)
    }

    /// `KVM_SET_VAPIC_ADDR`: where a guest that was patched not to write to the TPR keeps it. There is no such page
    /// (`KVM_CAP_VAPIC`); VMMs turn it off at each reset all the same.
    ///
    /// # Errors
    ///
    /// `EINVAL` without an in-kernel local APIC, and for a page; `EFAULT`.
    pub(crate) fn set_vapic_address(&mut self, arg: usize) -> Result<isize> {
        if self.lapic.is_none() {
            return Err(EINVAL);
        }
        match user::read::<u64>(arg)? {
            0 => Ok(0),
            _ => Err(EINVAL),
        }
    }
}
