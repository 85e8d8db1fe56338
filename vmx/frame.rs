// SPDX-License-Identifier: GPL-2.0

//! The Rust side of `world_switch.S`.

use crate::xvm::state::Gprs;

/// What the assembly reads and writes, by the offsets that it names.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct Frame {
    /// The guest's general registers but RSP.
    pub(super) gprs: Gprs,
    /// HOST_RSP as it was last written; 0 when it must be written again.
    pub(super) host_rsp: u64,
    /// The host's IA32_SPEC_CTRL, 0 if the CPU has none.
    pub(super) host_spec_ctrl: u64,
    /// The guest's IA32_SPEC_CTRL. It can't change it without an exit.
    pub(super) guest_spec_ctrl: u64,
}

const _: () = {
    use core::mem::offset_of;
    assert!(offset_of!(Frame, gprs) == 0);
    assert!(offset_of!(Frame, host_rsp) == 128);
    assert!(offset_of!(Frame, host_spec_ctrl) == 136);
    assert!(offset_of!(Frame, guest_spec_ctrl) == 144);
};

extern "C" {
    /// Enters the guest by VMRESUME if `launched`, by VMLAUNCH otherwise. 0 after an exit, 1 on failure.
    pub(super) fn xvm_vmx_enter(frame: *mut Frame, launched: bool) -> u8;

    /// Where an exit goes on: a label in `xvm_vmx_enter`, not to be called.
    fn xvm_vmx_exit();
}

/// The value of HOST_RIP.
pub(super) fn exit_address() -> u64 {
    xvm_vmx_exit as usize as u64
}
