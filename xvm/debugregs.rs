// SPDX-License-Identifier: GPL-2.0

//! Debug registers: `KVM_GET_DEBUGREGS` and `KVM_SET_DEBUGREGS` (api.rst, 4.33, 4.34), and the guest's accesses while they exit.

use super::emulate::Fault;
use super::state::DebugRegs;
use super::state::SystemRegs;
use super::vcpu::Vcpu;
use super::XvmOps;
use crate::linux::user;
use crate::uapi::kvm_debugregs;
use kernel::prelude::*;

/// CR4.DE: DR4 and DR5 aren't other names of DR6 and DR7.
const CR4_DE: u64 = 1 << 3;
/// DR6: the bits that can be written, and those that read as 1.
const DR6_DEFINED: u64 = 0xe00f;
const DR6_FIXED: u64 = 0xffff_0ff0;
/// DR7: the same.
const DR7_DEFINED: u64 = 0xffff_23ff;
const DR7_FIXED: u64 = 1 << 10;

impl SystemRegs {
    /// The number, 0 to 3, 6 or 7, of the debug register that an instruction names `dr`.
    fn debug_number(&self, dr: u8) -> Result<u8, Fault> {
        match dr {
            0..=3 | 6 | 7 => Ok(dr),
            4 | 5 if self.cr4 & CR4_DE == 0 => Ok(dr + 2),
            _ => Err(Fault::INVALID_OPCODE),
        }
    }
}

impl<V: XvmOps> Vcpu<V> {
    /// MOV from a debug register, with CPL 0.
    ///
    /// # Errors
    ///
    /// #UD for one that there isn't.
    pub(crate) fn read_dr(&self, dr: u8) -> Result<u64, Fault> {
        let system = V::system_regs(&self.arch);
        let debug = &system.debug;
        Ok(match system.debug_number(dr)? {
            6 => debug.dr6,
            7 => debug.dr7,
            n => debug.address[usize::from(n & 3)],
        })
    }

    /// MOV to a debug register, with CPL 0.
    ///
    /// # Errors
    ///
    /// #UD for one that there isn't, #GP for a value of DR6 or DR7 above 32 bits.
    pub(crate) fn write_dr(&mut self, dr: u8, value: u64) -> Result<(), Fault> {
        let mut system = V::system_regs(&self.arch);
        let number = system.debug_number(dr)?;
        let debug = &mut system.debug;
        match number {
            6 | 7 if value >> 32 != 0 => return Err(Fault::GENERAL_PROTECTION),
            6 => debug.dr6 = value & DR6_DEFINED | DR6_FIXED,
            7 => debug.dr7 = value & DR7_DEFINED | DR7_FIXED,
            n => debug.address[usize::from(n & 3)] = value,
        }
        V::set_system_regs(&mut self.arch, &system);
        Ok(())
    }

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
