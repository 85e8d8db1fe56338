// SPDX-License-Identifier: GPL-2.0

//! The Rust side of `world_switch.S`.

use crate::xvm::state::Gprs;
use core::mem::offset_of;

/// What the assembly reads and writes around VMRUN.
#[repr(C)]
pub(super) struct Context {
    /// The guest's general registers. RAX and RSP are in the VMCB while the guest runs.
    pub(super) gprs: Gprs,
    /// Physical address of the guest's VMCB.
    pub(super) vmcb: u64,
    /// The guest's GS base, within a window.
    pub(super) gs_base: u64,
    /// SPEC_CTRL of the guest and of the host, where VMRUN does not switch it; equal where there is nothing to do.
    pub(super) guest_spec_ctrl: u64,
    /// See above.
    pub(super) host_spec_ctrl: u64,
}

impl Context {
    /// A guest with all registers 0, whose VMCB is at physical address `vmcb`.
    pub(super) fn new(vmcb: u64) -> Self {
        Self {
            gprs: Gprs::default(),
            vmcb,
            gs_base: 0,
            guest_spec_ctrl: 0,
            host_spec_ctrl: 0,
        }
    }
}

const _: () = {
    assert!(offset_of!(Context, gprs) == 0);
    assert!(offset_of!(Context, vmcb) == 0x80);
    assert!(offset_of!(Context, gs_base) == 0x88);
    assert!(offset_of!(Context, guest_spec_ctrl) == 0x90);
    assert!(offset_of!(Context, host_spec_ctrl) == 0x98);
};

extern "C" {
    /// EFER.SVME must be set, and both addresses be those of VMCBs. Until [`xvm_svm_unload`] the CPU takes no interrupt, and
    /// FS, TR and the system call MSRs are the guest's.
    pub(super) fn xvm_svm_load(host_vmcb: u64, guest_vmcb: u64) -> u64;

    /// Ends what [`xvm_svm_load`] began, with the same addresses.
    pub(super) fn xvm_svm_unload(host_vmcb: u64, guest_vmcb: u64, guest_gs_base: u64);

    /// Only between the two above. Writes to the VMCB.
    pub(super) fn xvm_svm_save_guest(guest_vmcb: u64);

    /// Only between the two above.
    pub(super) fn xvm_svm_reload_guest(guest_vmcb: u64) -> u64;

    /// Only between the two above, on the VMCB that was loaded. Writes to the context, the VMCB and the host save area.
    pub(super) fn xvm_svm_run(context: *mut Context);

    /// Only between the two above, on a VMCB whose guest exits before it executes an instruction.
    pub(super) fn xvm_svm_flush(vmcb: u64);

    /// The CPU must have MSR PRED_CMD.
    pub(super) fn xvm_svm_ibpb();
}
