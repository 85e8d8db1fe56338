// SPDX-License-Identifier: GPL-2.0

//! Opening and closing the window.

use super::asm;
use super::cpu::Cpu;
use super::cpu::Found;
use super::dump;
use super::msr::Switched;
use super::vcpu::Vcpu;
use crate::linux::irq::IrqsOff;
use crate::linux::x86;

/// What the host had, to be put back, and what waits for that.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) found: Found,
    host_tsc_aux: u64,
    host_debug_control: u64,
    host_xss: u64,
    host_dr7: u64,
    /// A machine check ended the guest's run.
    pub(super) machine_check: bool,
    /// VMRUN refused the guest's state.
    pub(super) refused: bool,
}

/// Opens the window.
#[inline]
pub(super) fn open(vcpu: &mut Vcpu, cpu: &Cpu, irqs: &IrqsOff) {
    let found = cpu.enable(vcpu.tsc_ratio, irqs);
    let host_dr7 = x86::host_dr7();
    if host_dr7 != 0 {
        // A breakpoint of the host could not be delivered with the guest's TR loaded.
        // SAFETY: Nothing is enabled; `restore_host_debug_registers` puts the host's value back.
        unsafe { x86::write_dr7(0) };
    }
    cpu.separate(vcpu.id);
    if vcpu.last_cpu != Some(cpu.number()) {
        // The CPU knows nothing of this VMCB, and has permission maps of its own.
        vcpu.last_cpu = Some(cpu.number());
        let msrs_exit = vcpu.msrs_exit;
        vcpu.vmcb_mut().control.set_maps(cpu.maps(), msrs_exit);
    }
    vcpu.take_asid(cpu, found);
    vcpu.prepare_spec_ctrl();
    vcpu.attention |= vcpu.breakpoints_enabled();
    // SAFETY: SVM is on; both are VMCBs. `close` ends it.
    vcpu.context.gs_base = unsafe { asm::xvm_svm_load(cpu.host_vmcb(), vcpu.context.vmcb) };
    vcpu.window = Some(Window {
        found,
        host_tsc_aux: match vcpu.features.tsc_aux {
            true => Switched::TscAux.swap(vcpu.tsc_aux),
            false => 0,
        },
        host_debug_control: Switched::DebugControl.swap(vcpu.debug_control),
        // XSAVES can't be intercepted: with no state in IA32_XSS it does what XSAVEC does.
        host_xss: match vcpu.features.xsaves {
            true => Switched::Xss.swap(0),
            false => 0,
        },
        host_dr7,
        machine_check: false,
        refused: false,
    });
}

/// Closes it.
#[inline]
pub(super) fn close(vcpu: &mut Vcpu, cpu: &Cpu, irqs: &IrqsOff) {
    vcpu.reload();
    let Some(window) = vcpu.window.take() else {
        return;
    };
    if vcpu.features.tsc_aux {
        Switched::TscAux.restore(window.host_tsc_aux, vcpu.tsc_aux);
    }
    Switched::DebugControl.restore(window.host_debug_control, vcpu.debug_control);
    if vcpu.features.xsaves {
        Switched::Xss.restore(window.host_xss, 0);
    }
    let host_addresses = vcpu.unload_debug_addresses();
    if window.found.borrowed() {
        cpu.flush_before_return();
    }
    // SAFETY: `open` loaded it, on this CPU.
    unsafe { asm::xvm_svm_unload(cpu.host_vmcb(), vcpu.context.vmcb, vcpu.context.gs_base) };
    vcpu.set_synced(true);
    vcpu.restore_host_debug_registers(host_addresses, window.host_dr7);
    cpu.disable(window.found, irqs);
    if vcpu.features.ibpb_exit_to_user {
        x86::set_ibpb_exit_to_user();
    }
    if window.refused {
        dump::invalid(vcpu);
    }
    if window.machine_check {
        // SAFETY: The CPU ended the guest's run with it; interrupts are off and the host's state is back.
        unsafe { x86::machine_check() };
    }
}
