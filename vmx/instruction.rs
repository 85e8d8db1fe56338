// SPDX-License-Identifier: GPL-2.0

//! The VMX instructions, each with its failure reported (SDM vol 3, chapter 31).

use super::field::Field;
use core::arch::asm;

/// A VMX instruction failed: VMfailInvalid or VMfailValid (31.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failed;

/// What came of a VMX instruction.
pub(super) type Outcome<T = ()> = core::result::Result<T, Failed>;

/// One of the two kinds of INVEPT and INVVPID that are used (31.3); their numbers are the same for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// What belongs to one EPT pointer or VPID.
    Single = 1,
    /// Everything.
    All = 2,
}

fn outcome(failed: u8) -> Outcome {
    match failed {
        0 => Ok(()),
        _ => Err(Failed),
    }
}

/// Enters VMX operation with the VMXON region at physical address `region`.
///
/// # Safety
///
/// Interrupts are off, CR4.VMXE is set, this CPU is not in VMX operation and IA32_FEATURE_CONTROL allows VMXON
/// outside of SMX; the region is a page with the revision identifier that no other CPU uses until VMXOFF.
pub(super) unsafe fn vmxon(region: u64) -> Outcome {
    let failed: u8;
    // SAFETY: By this function's contract.
    unsafe {
        asm!("vmxon [{}]", "setbe {}", in(reg) &region, lateout(reg_byte) failed, options(nostack))
    };
    outcome(failed)
}

/// Leaves VMX operation.
///
/// # Safety
///
/// This CPU entered VMX operation by `vmxon` above, and no VMCS is active on it.
pub(super) unsafe fn vmxoff() -> Outcome {
    let failed: u8;
    // SAFETY: By this function's contract.
    unsafe { asm!("vmxoff", "setbe {}", lateout(reg_byte) failed, options(nostack)) };
    outcome(failed)
}

/// Writes the VMCS at physical address `vmcs` back to memory and makes it inactive and "clear".
///
/// # Safety
///
/// This CPU is in VMX operation; the page is a VMCS that no other CPU has active.
pub(super) unsafe fn vmclear(vmcs: u64) -> Outcome {
    let failed: u8;
    // SAFETY: By this function's contract.
    unsafe {
        asm!("vmclear [{}]", "setbe {}", in(reg) &vmcs, lateout(reg_byte) failed, options(nostack))
    };
    outcome(failed)
}

/// Makes the VMCS at physical address `vmcs` the current one.
///
/// # Safety
///
/// As for `vmclear`.
pub(super) unsafe fn vmptrld(vmcs: u64) -> Outcome {
    let failed: u8;
    // SAFETY: By this function's contract.
    unsafe {
        asm!("vmptrld [{}]", "setbe {}", in(reg) &vmcs, lateout(reg_byte) failed, options(nostack))
    };
    outcome(failed)
}

/// Physical address of the current VMCS, all ones when there is none.
///
/// # Safety
///
/// This CPU is in VMX operation.
pub(super) unsafe fn vmptrst() -> u64 {
    let mut vmcs = u64::MAX;
    // SAFETY: By this function's contract. The instruction doesn't fail in VMX operation, and writes 8 bytes.
    unsafe { asm!("vmptrst [{}]", in(reg) &mut vmcs, options(nostack)) };
    vmcs
}

/// Reads a field of the current VMCS.
///
/// # Safety
///
/// This CPU is in VMX operation.
#[inline(always)]
pub(super) unsafe fn vmread(field: Field) -> Outcome<u64> {
    let failed: u8;
    let value: u64;
    // SAFETY: By this function's contract. The instruction reads what no Rust reference points to.
    unsafe {
        asm!(
            "vmread {value}, {field}",
            "setbe {failed}",
            field = in(reg) u64::from(field.0),
            value = out(reg) value,
            failed = lateout(reg_byte) failed,
            options(nostack)
        )
    };
    outcome(failed).map(|()| value)
}

/// Reads a field of the current VMCS that is there, which is not looked at: what isn't used isn't read.
///
/// # Safety
///
/// This CPU is in VMX operation with a VMCS current, and has the field.
#[inline(always)]
pub(super) unsafe fn vmread_known(field: Field) -> u64 {
    let value: u64;
    // SAFETY: By this function's contract it doesn't fail. It reads what VMWRITE and VM exits have written, which for the compiler
    // may be any memory, and changes nothing.
    unsafe {
        asm!(
            "vmread {value}, {field}",
            field = in(reg) u64::from(field.0),
            value = out(reg) value,
            options(pure, readonly, nostack)
        )
    };
    value
}

/// Writes a field of the current VMCS.
///
/// # Safety
///
/// This CPU is in VMX operation with a VMCS of ours current. The next entry checks guest fields and controls;
/// host fields must be such that the host lives on after an exit.
#[inline(always)]
pub(super) unsafe fn vmwrite(field: Field, value: u64) -> Outcome {
    let failed: u8;
    // SAFETY: By this function's contract.
    unsafe {
        asm!(
            "vmwrite {field}, {value}",
            "setbe {failed}",
            field = in(reg) u64::from(field.0),
            value = in(reg) value,
            failed = lateout(reg_byte) failed,
            options(nostack)
        )
    };
    outcome(failed)
}

/// Writes a field of the current VMCS that is there and can be written to, which is not looked at.
///
/// # Safety
///
/// As for `vmwrite`, and the CPU has the field.
#[inline(always)]
pub(super) unsafe fn vmwrite_known(field: Field, value: u64) {
    // SAFETY: By this function's contract.
    unsafe {
        asm!(
            "vmwrite {field}, {value}",
            field = in(reg) u64::from(field.0),
            value = in(reg) value,
            options(nostack)
        )
    };
}

/// Drops translations derived from EPT, for the EPT pointer `eptp` or all.
///
/// # Safety
///
/// This CPU is in VMX operation and has this kind of INVEPT.
pub(super) unsafe fn invept(scope: Scope, eptp: u64) -> Outcome {
    let descriptor: [u64; 2] = [eptp, 0];
    let failed: u8;
    // SAFETY: By this function's contract; the descriptor (31.3, INVEPT) is 16 bytes.
    unsafe {
        asm!("invept {}, [{}]", "setbe {}", in(reg) scope as u64, in(reg) &descriptor, lateout(reg_byte) failed, options(nostack))
    };
    outcome(failed)
}

/// Drops translations tagged with `vpid`, or with any but the host's.
///
/// # Safety
///
/// This CPU is in VMX operation and has this kind of INVVPID.
pub(super) unsafe fn invvpid(scope: Scope, vpid: u16) -> Outcome {
    let descriptor: [u64; 2] = [u64::from(vpid), 0];
    let failed: u8;
    // SAFETY: By this function's contract; the descriptor (31.3, INVVPID) is 16 bytes.
    unsafe {
        asm!("invvpid {}, [{}]", "setbe {}", in(reg) scope as u64, in(reg) &descriptor, lateout(reg_byte) failed, options(nostack))
    };
    outcome(failed)
}
