// SPDX-License-Identifier: GPL-2.0

//! The MSRs that are in the VMCB or are switched by the window.

use super::vcpu::Vcpu;
use crate::linux::x86;

const SYSENTER_CS: u32 = 0x174;
const SYSENTER_ESP: u32 = 0x175;
const SYSENTER_EIP: u32 = 0x176;
const SPEC_CTRL: u32 = 0x48;
const PAT: u32 = 0x277;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const CSTAR: u32 = 0xc000_0083;
const SYSCALL_MASK: u32 = 0xc000_0084;
const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
/// What RDTSCP and RDPID tell. Not switched by the hardware.
const TSC_AUX: u32 = 0xc000_0103;
/// Switched by the hardware only with LBR virtualisation, which isn't used.
const DEBUGCTL: u32 = 0x1d9;
/// What XSAVES saves beyond XCR0. Not switched by the hardware.
const XSS: u32 = 0xda0;

/// Bits of DEBUGCTL that a guest may have in the CPU: LBR and BTF (APM vol 2, 13.1.1.6).
const DEBUGCTL_ALLOWED: u64 = 0b11;

/// An MSR that the window switches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Switched {
    /// TSC_AUX, where `Features` has it.
    TscAux,
    /// DEBUGCTL.
    DebugControl,
    /// IA32_XSS, where `Features` has XSAVES.
    Xss,
}

impl Switched {
    fn number(self) -> u32 {
        match self {
            Self::TscAux => TSC_AUX,
            Self::DebugControl => DEBUGCTL,
            Self::Xss => XSS,
        }
    }

    /// Loads the guest's value, returns the host's.
    #[inline]
    pub(super) fn swap(self, guest: u64) -> u64 {
        // SAFETY: DEBUGCTL is in every CPU with SVM; callers have asked `Features` for the others.
        let host = unsafe { x86::rdmsr(self.number()) };
        self.restore(guest, host);
        host
    }

    /// Writes `value`, if it isn't what the MSR has: `current`.
    #[inline]
    pub(super) fn restore(self, value: u64, current: u64) {
        if value != current {
            // SAFETY: As in `swap`. They change what RDTSCP returns, what branches are recorded and what XSAVES saves, nothing that
            // the kernel relies on within a window; at its end they are the host's again.
            unsafe { x86::wrmsr(self.number(), value) };
        }
    }
}

impl Vcpu {
    /// Reads an MSR; `None` for one that is not here.
    pub(super) fn read_msr(&self, msr: u32) -> Option<u64> {
        let value = match msr {
            FS_BASE => self.half_switched().save.fs.base,
            GS_BASE => self.half_switched().save.gs.base,
            KERNEL_GS_BASE => self.half_switched().save.kernel_gs_base,
            STAR => self.half_switched().save.star,
            LSTAR => self.half_switched().save.lstar,
            CSTAR => self.half_switched().save.cstar,
            SYSCALL_MASK => self.half_switched().save.sfmask,
            SYSENTER_CS => self.half_switched().save.sysenter_cs,
            SYSENTER_ESP => self.half_switched().save.sysenter_esp,
            SYSENTER_EIP => self.half_switched().save.sysenter_eip,
            PAT => self.vmcb().save.pat,
            TSC_AUX => self.tsc_aux,
            DEBUGCTL => self.debug_control,
            SPEC_CTRL if self.features.spec_ctrl_bits != 0 => self.spec_ctrl,
            _ => return None,
        };
        Some(value)
    }

    /// Writes an MSR whose value has been checked; false for one that is not here, or a value that this CPU doesn't know.
    pub(super) fn write_msr(&mut self, msr: u32, value: u64) -> bool {
        match msr {
            FS_BASE => self.half_switched_mut().save.fs.base = value,
            GS_BASE => self.half_switched_mut().save.gs.base = value,
            KERNEL_GS_BASE => self.half_switched_mut().save.kernel_gs_base = value,
            STAR => self.half_switched_mut().save.star = value,
            LSTAR => self.half_switched_mut().save.lstar = value,
            CSTAR => self.half_switched_mut().save.cstar = value,
            SYSCALL_MASK => self.half_switched_mut().save.sfmask = value,
            SYSENTER_CS => self.half_switched_mut().save.sysenter_cs = value,
            SYSENTER_ESP => self.half_switched_mut().save.sysenter_esp = value,
            SYSENTER_EIP => self.half_switched_mut().save.sysenter_eip = value,
            PAT => {
                let vmcb = self.vmcb_mut();
                vmcb.save.pat = value;
                vmcb.control.clean = vmcb.control.clean.with_nested_paging(false);
            }
            TSC_AUX => return self.set_tsc_aux(value),
            DEBUGCTL => return self.set_debug_control(value),
            SPEC_CTRL => return self.set_spec_ctrl(value),
            _ => return false,
        }
        true
    }

    fn set_tsc_aux(&mut self, value: u64) -> bool {
        if value > u64::from(u32::MAX) {
            return false;
        }
        if self.window.is_some() && self.features.tsc_aux {
            Switched::TscAux.restore(value, self.tsc_aux);
        }
        self.tsc_aux = value;
        true
    }

    fn set_debug_control(&mut self, value: u64) -> bool {
        if value & !DEBUGCTL_ALLOWED != 0 {
            return false;
        }
        if self.window.is_some() {
            Switched::DebugControl.restore(value, self.debug_control);
        }
        self.debug_control = value;
        true
    }

    fn set_spec_ctrl(&mut self, value: u64) -> bool {
        if self.features.spec_ctrl_bits == 0 || value & !self.features.spec_ctrl_bits != 0 {
            return false;
        }
        self.spec_ctrl = value;
        self.prepare_spec_ctrl();
        true
    }

    /// Tells VMRUN, or the code around it, what SPEC_CTRL is to be. When a window opens, and when the guest's changed.
    #[inline]
    pub(super) fn prepare_spec_ctrl(&mut self) {
        if self.features.virtual_spec_ctrl {
            self.vmcb_mut().save.spec_ctrl = self.spec_ctrl;
        } else if self.features.spec_ctrl_bits != 0 {
            self.context.host_spec_ctrl = x86::host_spec_ctrl();
            self.context.guest_spec_ctrl = self.spec_ctrl;
        }
    }
}
