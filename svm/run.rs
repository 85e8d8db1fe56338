// SPDX-License-Identifier: GPL-2.0

//! Running the guest until an exit that the vendor-neutral layer must know of.

use super::asm;
use super::cpu::Cpu;
use super::exit;
use super::vcpu::Vcpu;
use super::vmcb::TlbControl;
use crate::xvm::state::RAX;
use crate::xvm::Exit;

/// Runs the guest. Within a window.
///
/// Exits that are this vendor's own affair enter again at once. They can't go on for ever: each ends an intercept for the rest of the window
/// (debug registers), or an NMI's handler.
#[inline]
pub(super) fn run(vcpu: &mut Vcpu, cpu: &Cpu) -> Exit {
    loop {
        if vcpu.attention {
            if let Some(exit) = vcpu.prepare(cpu) {
                return exit;
            }
        }
        vcpu.enter();
        if vcpu.attention && vcpu.finish_step(exit::is_debug_exception(vcpu)) {
            continue;
        }
        if let Some(exit) = exit::exit(vcpu) {
            return exit;
        }
    }
}

impl Vcpu {
    /// Before an entry that needs more than most. The exit, when there is to be none: a trap is due, or the NMI window is here.
    #[inline(never)]
    fn prepare(&mut self, cpu: &Cpu) -> Option<Exit> {
        if let Some(exit) = self.take_trap() {
            return Some(exit);
        }
        if self.nmi_window_reached() {
            return Some(Exit::NmiWindow);
        }
        self.reload();
        self.obey_flush(cpu);
        self.prepare_debugging();
        self.load_enabled_breakpoints();
        self.seek_nmi_window(cpu);
        self.attention = self.nmi_window_sought() || self.debug.is_vmms();
        None
    }

    /// One entry and exit.
    #[inline]
    fn enter(&mut self) {
        let rax = self.context.gprs.0[RAX];
        self.vmcb_mut().save.rax = rax;
        // SAFETY: The window is open with this VMCB loaded, by the contract of `XvmOps::run`; the context is exclusively ours.
        unsafe { asm::xvm_svm_run(&mut self.context) };
        self.set_synced(false);
        let (clean, vmcb) = (self.clean_after_exit, self.vmcb_mut());
        vmcb.control.tlb_control = TlbControl::KEEP;
        vmcb.control.clean = clean;
        self.context.gprs.0[RAX] = self.vmcb().save.rax;
        self.settle_events();
    }
}
