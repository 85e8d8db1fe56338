// SPDX-License-Identifier: GPL-2.0

//! `KVM_GET_ONE_REG`, `KVM_SET_ONE_REG` and `KVM_GET_REG_LIST` (api.rst, 4.68, 4.69, 4.85): MSRs by another name.

use crate::linux::user;
use crate::uapi;
use crate::xvm::vcpu::Vcpu;
use crate::xvm::XvmOps;
use kernel::prelude::*;

/// The upper half of the ID of an MSR's register; the lower one is the MSR's number.
const MSR: u64 =
    (uapi::KVM_REG_X86 | uapi::KVM_REG_SIZE_U64) >> 32 | uapi::KVM_X86_REG_TYPE_MSR as u64;

impl<V: XvmOps> Vcpu<V> {
    /// `KVM_GET_ONE_REG`, and `KVM_SET_ONE_REG` if `set`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for what is no MSR's, an MSR that there isn't, or a value that it doesn't take; `EFAULT`.
    pub(crate) fn one_reg(&mut self, arg: usize, set: bool) -> Result<isize> {
        let asked: uapi::kvm_one_reg = user::read(arg)?;
        if asked.id >> 32 != MSR {
            return Err(EINVAL);
        }
        let (msr, address) = (asked.id as u32, asked.addr as usize);
        if set {
            let value = user::read(address)?;
            let effect = self.write_msr(msr, value, true).map_err(|_| EINVAL)?;
            self.apply(effect);
            self.serve_at_once();
        } else {
            let value = self.read_msr(msr, true).map_err(|_| EINVAL)?;
            user::write(address, &value)?;
        }
        Ok(0)
    }

    /// `KVM_GET_REG_LIST`: registers that aren't in any other list, of which there are none.
    ///
    /// # Errors
    ///
    /// `EFAULT`.
    pub(crate) fn reg_list(&self, arg: usize) -> Result<isize> {
        user::read::<u64>(arg)?;
        user::write(arg, &0u64)?;
        Ok(0)
    }
}
