// SPDX-License-Identifier: GPL-2.0

//! NMI blocking, from the delivery of an NMI to the end of the next IRET (APM vol 2, 8.1.4 and 15.20), and the NMI window.
//!
//! The CPU tells of IRET by its intercept, which comes before the instruction. The vCPU then goes on without the intercept until it is seen
//! behind that IRET. When an NMI waits for this, or for the end of an interrupt shadow, the vCPU is made to exit after one
//! instruction, by RFLAGS.TF.

use super::cpu::Cpu;
use super::vcpu::Vcpu;
use crate::linux::cpus;

/// RFLAGS.TF.
const RFLAGS_TF: u64 = 1 << 8;
/// DR6: what a #DB may be of besides a single step: B0 to B3, BD, BT.
const DR6_OTHER: u64 = 0xf | 1 << 13 | 1 << 15;

/// How far the guest is from taking another NMI.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Blocking {
    /// It can.
    #[default]
    None,
    /// It handles one; IRET is intercepted.
    Handler,
    /// It is at the IRET that ends the handler.
    Return {
        /// RIP of the IRET.
        rip: u64,
    },
}

/// A single step, over an IRET or out of an interrupt shadow.
#[derive(Clone, Copy, Debug)]
struct Step {
    /// Where it began.
    rip: u64,
    /// RFLAGS.TF of the guest.
    tf: bool,
    /// DR6 of the guest.
    dr6: u64,
}

/// A vCPU's NMI state.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Nmi {
    blocking: Blocking,
    step: Option<Step>,
}

impl Vcpu {
    /// Whether an NMI must wait for the end of another's handler.
    pub(super) fn nmi_blocked(&self) -> bool {
        self.nmi.blocking != Blocking::None
    }

    /// Whether entries and exits are to be watched for the window, or for the end of an IRET.
    pub(super) fn nmi_window_sought(&self) -> bool {
        let returns = matches!(self.nmi.blocking, Blocking::Return { .. });
        self.events.nmi_window || self.nmi.step.is_some() || returns
    }

    /// Whether the window that was asked for is here.
    pub(super) fn nmi_window_reached(&self) -> bool {
        if !self.events.nmi_window || self.nmi_blocked() {
            return false;
        }
        let shadow = self.vmcb().control.interrupt_state.shadow();
        !shadow && !self.events.injected.valid()
    }

    /// The guest is given an NMI.
    pub(super) fn begin_nmi(&mut self) {
        self.nmi.blocking = Blocking::Handler;
        self.vmcb_mut().control.intercept_iret(true);
    }

    /// It is not in an NMI's handler.
    pub(super) fn abandon_nmi(&mut self) {
        self.nmi.blocking = Blocking::None;
        self.vmcb_mut().control.intercept_iret(false);
    }

    /// It is about to execute the IRET.
    pub(super) fn reach_iret(&mut self) {
        let rip = self.vmcb().save.rip;
        self.nmi.blocking = Blocking::Return { rip };
        self.attention = true;
        self.vmcb_mut().control.intercept_iret(false);
    }

    /// Before an entry: makes it end soon if an NMI waits.
    pub(super) fn seek_nmi_window(&mut self, cpu: &Cpu) {
        if !self.events.nmi_window || self.nmi.blocking == Blocking::Handler {
            return;
        }
        if self.events.injected.valid() {
            // An interrupt of this CPU that waits ends the guest's run right after the event's delivery.
            cpus::kick(cpu.number());
            return;
        }
        let save = &mut self.vmcb_mut().save;
        let step = Step {
            rip: save.rip,
            tf: save.rflags & RFLAGS_TF != 0,
            dr6: save.dr6,
        };
        save.rflags |= RFLAGS_TF;
        self.nmi.step = Some(step);
    }

    /// After an exit: looks whether the IRET is done, and ends a step. True when the exit was but the step's #DB;
    /// `debug_exception` says that it was one.
    #[inline(never)]
    pub(super) fn finish_step(&mut self, debug_exception: bool) -> bool {
        let now = self.vmcb().save.rip;
        let mut returned = false;
        if let Blocking::Return { rip } = self.nmi.blocking {
            returned = now != rip;
            if returned {
                self.nmi.blocking = Blocking::None;
            }
        }
        let Some(step) = self.nmi.step.take() else {
            return false;
        };
        let vmcb = self.vmcb_mut();
        // IRET has loaded the flags anew.
        if !returned && !step.tf {
            vmcb.save.rflags &= !RFLAGS_TF;
        }
        // A guest that steps itself, or met a breakpoint as well, gets its #DB.
        let other = vmcb.save.dr6 & !step.dr6 & DR6_OTHER != 0;
        let ours = debug_exception && !step.tf && !other && now != step.rip;
        if ours {
            vmcb.save.dr6 = step.dr6;
            vmcb.control.clean = vmcb.control.clean.with_debug_registers(false);
        }
        ours
    }
}
