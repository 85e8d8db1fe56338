// SPDX-License-Identifier: GPL-2.0

//! What is logged when the CPU refuses to enter a guest, or leaves it for an unknown reason: at most a few
//! times a minute, as a VMM can make it happen at will.

use super::field;
use super::field::Field;
use super::registers;
use super::vcpu::Vcpu;
use crate::linux::ratelimit;
use crate::xvm::state::Segment;
use crate::xvm::Exit;
use kernel::prelude::*;

/// Reported when VMX operation can't even be entered, or a field not be accessed, and no number of the CPU's tells.
const NO_NUMBER: u64 = u64::MAX;

/// VMLAUNCH or VMRESUME failed.
#[cold]
pub(super) fn instruction_failure(vcpu: &Vcpu) -> Exit {
    let error = vcpu.vmcs.instruction_error();
    if ratelimit::allow() {
        pr_err!(
            "VM entry failed, instruction error {error}: {}\n",
            instruction_error(error)
        );
        dump(vcpu);
    }
    Exit::EntryFailure {
        reason: u64::from(error),
    }
}

/// The guest state was refused. `reason` is the full exit reason.
#[cold]
pub(super) fn entry_failure(vcpu: &Vcpu, reason: u32) -> Exit {
    if ratelimit::allow() {
        let qualification = vcpu.vmcs.read(field::EXIT_QUALIFICATION);
        pr_err!(
            "VM entry failed, {} (reason {reason:#x}), qualification {qualification:#x}\n",
            entry_failure_name(reason)
        );
        dump(vcpu);
    }
    Exit::EntryFailure {
        reason: u64::from(reason),
    }
}

/// An access to the VMCS failed before the entry.
#[cold]
pub(super) fn field_failure(vcpu: &Vcpu) -> Exit {
    let failure = vcpu.vmcs.take_failure();
    if ratelimit::allow() {
        match failure {
            Some(failure) => pr_err!(
                "{} failed for field {:#x}, instruction error {}: {}\n",
                failure.what,
                failure.field.map_or(0, |Field(encoding)| encoding),
                failure.error,
                instruction_error(failure.error)
            ),
            None => pr_err!("a guest was to run outside of the window\n"),
        }
    }
    Exit::EntryFailure {
        reason: failure.map_or(NO_NUMBER, |failure| u64::from(failure.error)),
    }
}

/// An exit that isn't known, such as EPT misconfiguration.
#[cold]
pub(super) fn unknown(vcpu: &Vcpu, reason: u32) -> Exit {
    if ratelimit::allow() {
        let qualification = vcpu.vmcs.read(field::EXIT_QUALIFICATION);
        let gpa = vcpu.vmcs.read(field::GUEST_PHYSICAL_ADDRESS);
        pr_err!("unknown VM exit {reason:#x}, qualification {qualification:#x}, guest-physical {gpa:#x}\n");
        dump(vcpu);
    }
    Exit::Unknown {
        code: u64::from(reason),
    }
}

fn dump(vcpu: &Vcpu) {
    let vmcs = &vcpu.vmcs;
    let user = registers::store_user(vcpu);
    let system = registers::system(vcpu);
    pr_err!(
        "  rip {:#x} rsp {:#x} rflags {:#x} cr0 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x}\n",
        user.rip,
        user.gprs.0[crate::xvm::state::RSP],
        user.rflags,
        vmcs.read(field::GUEST_CR0),
        system.cr3,
        vmcs.read(field::GUEST_CR4),
        system.efer
    );
    for (name, segment) in ["es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr"]
        .iter()
        .zip(&system.segments)
    {
        dump_segment(name, segment);
    }
    pr_err!(
        "  gdtr {:#x}/{:#x} idtr {:#x}/{:#x} pdptes {:x?}\n",
        system.gdtr.base,
        system.gdtr.limit,
        system.idtr.base,
        system.idtr.limit,
        system.pdptrs
    );
    for (name, field) in NUMBERS {
        pr_err!("  {name} {:#x}\n", vmcs.read(*field));
    }
}

fn dump_segment(name: &str, segment: &Segment) {
    pr_err!(
        "  {name} {:#x} base {:#x} limit {:#x} attributes {:#x}\n",
        segment.selector,
        segment.base,
        segment.limit,
        segment.attributes
    );
}

/// What else entry checks.
const NUMBERS: &[(&str, Field)] = &[
    ("pin-based controls", field::PIN_CONTROLS),
    ("primary controls", field::PRIMARY_CONTROLS),
    ("secondary controls", field::SECONDARY_CONTROLS),
    ("exit controls", field::EXIT_CONTROLS),
    ("entry controls", field::ENTRY_CONTROLS),
    ("EPT pointer", field::EPT_POINTER),
    ("event to deliver", field::ENTRY_INTERRUPTION_INFO),
    ("its error code", field::ENTRY_EXCEPTION_ERROR_CODE),
    ("its instruction length", field::ENTRY_INSTRUCTION_LENGTH),
    ("interruptibility", field::GUEST_INTERRUPTIBILITY),
    ("activity", field::GUEST_ACTIVITY),
    ("pending debug exceptions", field::GUEST_PENDING_DEBUG),
    ("DR7", field::GUEST_DR7),
    ("IA32_DEBUGCTL", field::GUEST_DEBUGCTL),
    ("IA32_PAT", field::GUEST_PAT),
    ("TPR threshold", field::TPR_THRESHOLD),
    ("host CR3", field::HOST_CR3),
    ("host CR4", field::HOST_CR4),
];

/// Basic exit reasons of failed entries (SDM vol 3, 28.8).
fn entry_failure_name(reason: u32) -> &'static str {
    match reason as u16 {
        33 => "invalid guest state",
        34 => "an MSR can't be loaded",
        41 => "machine check",
        _ => "unknown",
    }
}

/// VM-instruction errors (SDM vol 3, 31.4).
fn instruction_error(number: u32) -> &'static str {
    match number {
        0 => "no current VMCS",
        2 => "VMCLEAR with an invalid address",
        3 => "VMCLEAR with the VMXON region",
        4 => "VMLAUNCH with a VMCS that isn't clear",
        5 => "VMRESUME with a VMCS that isn't launched",
        6 => "VMRESUME after VMXOFF",
        7 => "invalid control fields",
        8 => "invalid host state",
        9 => "VMPTRLD with an invalid address",
        10 => "VMPTRLD with the VMXON region",
        11 => "VMPTRLD with a wrong revision",
        12 => "no such field",
        13 => "read-only field",
        15 => "VMXON in VMX operation",
        26 => "entry with events blocked by MOV SS",
        28 => "invalid operand of INVEPT or INVVPID",
        _ => "unknown",
    }
}
