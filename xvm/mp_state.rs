// SPDX-License-Identifier: GPL-2.0

//! `KVM_GET_MP_STATE`, `KVM_SET_MP_STATE` (api.rst, 4.38, 4.39), `KVM_SET_SIGNAL_MASK` (4.21).

use super::vcpu::MpState;
use super::vcpu::Vcpu;
use super::XvmOps;
use crate::linux::user;
use crate::uapi;
use crate::uapi::kvm_mp_state;
use core::mem::size_of;
use kernel::prelude::*;

/// Offset of the signals in `struct kvm_signal_mask`, behind their size.
const SIGNALS: usize = size_of::<u32>();

impl<V: XvmOps> Vcpu<V> {
    /// `KVM_GET_MP_STATE`.
    ///
    /// # Errors
    ///
    /// `EFAULT`.
    pub(crate) fn get_mp_state(&mut self, arg: usize) -> Result<isize> {
        // What an INIT or start-up IPI makes of it, which nobody has looked at yet.
        self.take_init();
        let mp_state = match self.mp_state {
            MpState::Runnable => uapi::KVM_MP_STATE_RUNNABLE,
            MpState::Uninitialized => uapi::KVM_MP_STATE_UNINITIALIZED,
            MpState::InitReceived => uapi::KVM_MP_STATE_INIT_RECEIVED,
            MpState::Halted => uapi::KVM_MP_STATE_HALTED,
        };
        user::write(arg, &mp_state)?;
        Ok(0)
    }

    /// `KVM_SET_MP_STATE`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for an unknown state, and for any but `RUNNABLE` when the local APIC is in userspace; `EFAULT`.
    pub(crate) fn set_mp_state(&mut self, arg: usize) -> Result<isize> {
        let wanted: kvm_mp_state = user::read(arg)?;
        let state = match wanted.mp_state {
            uapi::KVM_MP_STATE_RUNNABLE => MpState::Runnable,
            uapi::KVM_MP_STATE_UNINITIALIZED => MpState::Uninitialized,
            uapi::KVM_MP_STATE_INIT_RECEIVED | uapi::KVM_MP_STATE_SIPI_RECEIVED => {
                MpState::InitReceived
            }
            uapi::KVM_MP_STATE_HALTED => MpState::Halted,
            _ => return Err(EINVAL),
        };
        if self.lapic.is_none() && state != MpState::Runnable {
            return Err(EINVAL);
        }
        self.mp_state = state;
        if wanted.mp_state == uapi::KVM_MP_STATE_SIPI_RECEIVED {
            self.shared.mailbox.post_startup(self.sipi_vector);
        }
        Ok(0)
    }

    /// `KVM_SET_SIGNAL_MASK`: the signals that are blocked while the vCPU runs; none of its own with a null pointer.
    ///
    /// # Errors
    ///
    /// `EINVAL` when the set isn't of 8 bytes, `EFAULT`.
    pub(crate) fn set_signal_mask(&mut self, arg: usize) -> Result<isize> {
        if arg == 0 {
            self.signal_mask = None;
            return Ok(0);
        }
        let size: u32 = user::read(arg)?;
        if size as usize != size_of::<u64>() {
            return Err(EINVAL);
        }
        self.signal_mask = Some(user::read(arg.checked_add(SIGNALS).ok_or(EFAULT)?)?);
        Ok(0)
    }
}
