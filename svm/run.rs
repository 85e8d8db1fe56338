// SPDX-License-Identifier: GPL-2.0

//! Running the guest until an exit that the vendor-neutral layer must know of.

use super::asm;
use super::cpu::Cpu;
use super::exit;
use super::vcpu::Vcpu;
use super::vmcb::Clean;
use super::vmcb::TlbControl;
use crate::xvm::Exit;

/// Runs the guest. Within a window.
///
/// Exits that are this vendor's own affair enter again at once. They can't go on for ever: each ends an intercept for the rest of the window
/// (debug registers), or an NMI's handler.
#[inline]
pub(super) fn run(vcpu: &mut Vcpu, cpu: &Cpu) -> Exit {
    loop {
        if vcpu.nmi_window_reached() {
            return Exit::NmiWindow;
        }
        vcpu.prepare(cpu);
        // SAFETY: The window is open with this VMCB loaded, by the contract of `XvmOps::run`; the context is exclusively ours.
        unsafe { asm::xvm_svm_run(&mut vcpu.context) };
        vcpu.settle();
        if vcpu.finish_step(exit::is_debug_exception(vcpu)) {
            continue;
        }
        if let Some(exit) = exit::exit(vcpu) {
            return exit;
        }
    }
}

impl Vcpu {
    /// Before an entry.
    #[inline]
    fn prepare(&mut self, cpu: &Cpu) {
        self.reload();
        self.obey_flush(cpu);
        self.load_enabled_breakpoints();
        self.seek_nmi_window(cpu);
        self.put_rax();
    }

    /// After an exit.
    #[inline]
    fn settle(&mut self) {
        self.set_synced(false);
        self.get_rax();
        let clean = match self.features.clean_bits {
            true => Clean::ALL,
            false => Clean::NONE,
        };
        let control = &mut self.vmcb_mut().control;
        control.tlb_control = TlbControl::KEEP;
        control.clean = clean;
        self.settle_events();
    }
}
