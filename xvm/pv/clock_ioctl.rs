// SPDX-License-Identifier: GPL-2.0

//! `KVM_GET_CLOCK`, `KVM_SET_CLOCK` (api.rst, 4.29, 4.30), `KVM_KVMCLOCK_CTRL` (4.70).

use super::ENABLED;
use crate::linux::user;
use crate::uapi;
use crate::uapi::kvm_clock_data;
use crate::xvm::vcpu::Vcpu;
use crate::xvm::vm::Vm;
use crate::xvm::XvmOps;
use kernel::prelude::*;

/// The flags that there are.
const FLAGS: u32 = uapi::KVM_CLOCK_TSC_STABLE | uapi::KVM_CLOCK_REALTIME | uapi::KVM_CLOCK_HOST_TSC;

impl<V: XvmOps> Vm<V> {
    /// `KVM_GET_CLOCK`.
    ///
    /// # Errors
    ///
    /// `EFAULT`.
    pub(crate) fn get_clock(&self, arg: usize) -> Result<isize> {
        let now = self.clock.now();
        let mut data = kvm_clock_data {
            clock: now.ns,
            ..kvm_clock_data::default()
        };
        if now.line {
            data.flags = uapi::KVM_CLOCK_REALTIME | uapi::KVM_CLOCK_HOST_TSC;
            data.realtime = now.host.real;
            data.host_tsc = now.host.tsc;
        }
        if now.line && self.clock.agrees() {
            data.flags |= uapi::KVM_CLOCK_TSC_STABLE;
        }
        user::write(arg, &data)?;
        Ok(0)
    }

    /// `KVM_SET_CLOCK`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a flag that there isn't, `EFAULT`.
    pub(crate) fn set_clock(&self, arg: usize) -> Result<isize> {
        let data: kvm_clock_data = user::read(arg)?;
        if data.flags & !FLAGS != 0 {
            return Err(EINVAL);
        }
        let real = (data.flags & uapi::KVM_CLOCK_REALTIME != 0).then_some(data.realtime);
        self.clock.set(data.clock, real);
        self.request_updates();
        Ok(0)
    }
}

impl<V: XvmOps> Vcpu<V> {
    /// `KVM_KVMCLOCK_CTRL`: the guest is told that it was stopped, so that its watchdogs don't mind.
    ///
    /// # Errors
    ///
    /// `EINVAL` when it has no kvmclock.
    pub(crate) fn set_guest_stopped(&mut self) -> Result<isize> {
        if self.pv.system_time & ENABLED == 0 {
            return Err(EINVAL);
        }
        self.pv.stopped = true;
        self.pv.clock_changed();
        Ok(0)
    }
}
