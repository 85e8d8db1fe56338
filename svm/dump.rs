// SPDX-License-Identifier: GPL-2.0

//! Tells the log why VMRUN refused a VMCB: the checks of APM vol 2, 15.5.1, made again, and the state that they look at.

use super::cpu::EFER_SVME;
use super::vcpu::Vcpu;
use super::vmcb::EventField;
use super::vmcb::Save;
use super::vmcb::Vmcb;
use crate::linux::ratelimit;
use kernel::prelude::*;

/// Logs a VMCB that VMRUN refused. Rate-limited. Outside of the window.
#[cold]
pub(super) fn invalid(vcpu: &Vcpu) {
    if !ratelimit::allow() {
        return;
    }
    let vmcb = vcpu.vmcb();
    let save = &vmcb.save;
    pr_err!("svm: VMRUN refused a guest's state\n");
    for (broken, rule) in checks(vmcb, vcpu.events.last_injected) {
        if broken {
            pr_err!("svm:   {}\n", rule);
        }
    }
    pr_err!(
        "svm:   cr0 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x} dr6 {:#x} dr7 {:#x}\n",
        save.cr0,
        save.cr3,
        save.cr4,
        save.efer,
        save.dr6,
        save.dr7
    );
    pr_err!(
        "svm:   rip {:#x} rflags {:#x} cpl {} cs {:?} ss {:?}\n",
        save.rip,
        save.rflags,
        save.cpl,
        save.cs,
        save.ss
    );
    pr_err!(
        "svm:   asid {} event {:#x} interrupt {:#x} nested cr3 {:#x}\n",
        vmcb.control.asid,
        vcpu.events.last_injected.into_raw(),
        vmcb.control.interrupt.into_raw(),
        vmcb.control.nested_cr3
    );
}

/// The rules and whether they are broken.
fn checks(vmcb: &Vmcb, injected: EventField) -> [(bool, &'static str); 8] {
    let save = &vmcb.save;
    let bit = |value: u64, n: u32| value & (1 << n) != 0;
    let long = long_mode(save);
    [
        (save.efer & EFER_SVME == 0, "EFER.SVME is 0"),
        (save.cr0 >> 32 != 0, "CR0[63:32] are not 0"),
        (
            save.dr6 >> 32 != 0 || save.dr7 >> 32 != 0,
            "DR6[63:32] or DR7[63:32] are not 0",
        ),
        (
            long && !bit(save.cr4, 5),
            "long mode paging is on and CR4.PAE is 0",
        ),
        (
            long && !bit(save.cr0, 0),
            "long mode paging is on and CR0.PE is 0",
        ),
        (
            long && bit(save.cr4, 5) && save.cs.attributes & 0x600 == 0x600,
            "CS.L and CS.D are both 1 in long mode",
        ),
        (vmcb.control.asid == 0, "the ASID is 0"),
        (
            injected.valid(),
            "an event is injected (its type or vector may be illegal)",
        ),
    ]
}

/// EFER.LME and CR0.PG.
fn long_mode(save: &Save) -> bool {
    save.efer & (1 << 8) != 0 && save.cr0 & (1 << 31) != 0
}
