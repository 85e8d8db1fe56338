// SPDX-License-Identifier: GPL-2.0

//! `KVM_GET_REGS` and `KVM_SET_REGS` (api.rst, 4.11, 4.12).

use super::state::Gprs;
use super::state::UserRegs;
use super::vcpu::Vcpu;
use super::XvmOps;
use crate::linux::user;
use crate::uapi::kvm_regs;
use kernel::prelude::*;

/// RFLAGS bit 1, which is always set.
const RFLAGS_FIXED: u64 = 2;

impl<V: XvmOps> Vcpu<V> {
    /// `KVM_GET_REGS`.
    ///
    /// # Errors
    ///
    /// `EFAULT`.
    pub(crate) fn get_regs(&mut self, arg: usize) -> Result<isize> {
        user::write(arg, &self.shown_regs())?;
        Ok(0)
    }

    /// What `KVM_GET_REGS` says.
    pub(super) fn shown_regs(&self) -> kvm_regs {
        to_user(&V::store_cpu_user_regs(&self.arch))
    }

    /// `KVM_SET_REGS`. An exception that was raised and not yet delivered was one of the old state, and goes.
    ///
    /// # Errors
    ///
    /// `EFAULT`.
    pub(crate) fn set_regs(&mut self, arg: usize) -> Result<isize> {
        self.change_regs(&user::read(arg)?);
        Ok(0)
    }

    /// What `KVM_SET_REGS` does.
    pub(super) fn change_regs(&mut self, regs: &kvm_regs) {
        V::load_cpu_user_regs(&mut self.arch, &from_user(regs));
        if core::mem::take(&mut self.events.fresh) {
            self.events.injected = None;
        }
    }
}

fn to_user(regs: &UserRegs) -> kvm_regs {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] =
        regs.gprs.0;
    kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip: regs.rip,
        rflags: regs.rflags,
    }
}

fn from_user(regs: &kvm_regs) -> UserRegs {
    UserRegs {
        gprs: Gprs([
            regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi,
            regs.r8, regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
        ]),
        rip: regs.rip,
        rflags: regs.rflags | RFLAGS_FIXED,
    }
}
