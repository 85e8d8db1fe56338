// SPDX-License-Identifier: GPL-2.0

//! The window: the time in which this CPU is the vCPU's.

use super::cpu::Cpu;
use super::debug;
use super::dump;
use super::event;
use super::exit;
use super::frame::xvm_vmx_enter;
use super::registers;
use super::vcpu::Vcpu;
use crate::linux::irq::IrqsOff;
use crate::linux::x86;
use crate::xvm::Exit;

/// `XvmOps::open`. When VMX operation can't be entered, `run` tells.
pub(super) fn open(vcpu: &mut Vcpu, cpu: &Cpu, irqs: &IrqsOff) {
    let moved = vcpu.host.open(&vcpu.vmcs, cpu, irqs);
    if !vcpu.vmcs.is_current() {
        return;
    }
    if moved {
        vcpu.tlb.flush_all();
    }
    // It changes outside of windows alone, and without scaling never.
    vcpu.tsc_multiplier.write_back(&vcpu.vmcs);
    vcpu.launched = false;
    vcpu.frame.host_spec_ctrl = vcpu.host.spec_ctrl();
    vcpu.msrs.load_guest();
    debug::open(vcpu);
    vcpu.host.forget_others(cpu.take_over(vcpu.id));
}

/// `XvmOps::close`.
#[inline]
pub(super) fn close(vcpu: &mut Vcpu) {
    if !vcpu.vmcs.is_current() {
        return;
    }
    vcpu.cache.complete(&vcpu.vmcs);
    debug::close(vcpu);
    vcpu.msrs.load_host();
    vcpu.host.close(&vcpu.vmcs);
}

/// `XvmOps::run`.
#[inline]
pub(super) fn run(vcpu: &mut Vcpu) -> Exit {
    loop {
        if let Some(failure) = prepare(vcpu) {
            return failure;
        }
        // SAFETY: In the window interrupts are off and the VMCS is current, with its host state filled in by
        // `Host::open`; the guest state may be anything, the CPU checks it. The frame is this vCPU's own.
        let failed = unsafe { xvm_vmx_enter(&mut vcpu.frame, vcpu.launched) };
        if failed != 0 {
            return dump::instruction_failure(vcpu);
        }
        vcpu.launched = true;
        vcpu.cr2 = x86::cr2();
        vcpu.cache.forget();
        vcpu.events.injection = None;
        if let Some(exit) = exit::after(vcpu) {
            return exit;
        }
    }
}

/// Brings the VMCS and the CPU up to date before an entry. The exit to report instead, if that isn't possible.
#[inline]
fn prepare(vcpu: &mut Vcpu) -> Option<Exit> {
    if !vcpu.vmcs.is_current() {
        return Some(dump::field_failure(vcpu));
    }
    if vcpu.cache.is_blocking_changed() {
        event::reconcile(vcpu);
    }
    vcpu.cache.write_back(&vcpu.vmcs);
    registers::write_tpr_threshold(vcpu);
    vcpu.primary.write_back(&vcpu.vmcs);
    vcpu.tlb.flush(&vcpu.vmcs);
    event::write_injection(vcpu);
    if x86::cr2() != vcpu.cr2 {
        x86::write_cr2(vcpu.cr2);
    }
    match vcpu.vmcs.has_failed() {
        true => Some(dump::field_failure(vcpu)),
        false => None,
    }
}
