// SPDX-License-Identifier: GPL-2.0

//! `KVM_GET_DEBUGREGS` and `KVM_SET_DEBUGREGS` (api.rst, 4.33, 4.34).

use super::state::DebugRegs;
use super::vcpu::Vcpu;
use super::XvmOps;
use crate::linux::user;
use crate::uapi::kvm_debugregs;
use kernel::prelude::*;

impl<V: XvmOps> Vcpu<V> {
    /// `KVM_GET_DEBUGREGS`.
    ///
    /// # Errors
    ///
    /// `EFAULT`.
    pub(crate) fn get_debugregs(&mut self, arg: usize) -> Result<isize> {
        let debug = V::system_regs(&self.arch).debug;
        let regs = kvm_debugregs {
            db: debug.address,
            dr6: debug.dr6,
            dr7: debug.dr7,
            ..kvm_debugregs::default()
        };
        user::write(arg, &regs)?;
        Ok(0)
    }

    /// `KVM_SET_DEBUGREGS`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a flag (none is defined), and when the upper half of DR6 or DR7 isn't zero; `EFAULT`.
    pub(crate) fn set_debugregs(&mut self, arg: usize) -> Result<isize> {
        let regs: kvm_debugregs = user::read(arg)?;
        if regs.flags != 0 || regs.dr6 >> 32 != 0 || regs.dr7 >> 32 != 0 {
            return Err(EINVAL);
        }
        let mut system = V::system_regs(&self.arch);
        system.debug = DebugRegs {
            address: regs.db,
            dr6: regs.dr6,
            dr7: regs.dr7,
        };
        V::set_system_regs(&mut self.arch, &system);
        Ok(0)
    }
}
