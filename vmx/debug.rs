// SPDX-License-Identifier: GPL-2.0

//! The guest's debug registers.
//!
//! DR7 is in the VMCS. DR0-3 and DR6 are in the CPU only from the guest's first MOV DR in a window, or from its
//! opening when breakpoints are armed; most windows never load them. #DB always exits (CVE-2015-8104), so that
//! the CPU never writes the guest's DR6.

use super::field;
use super::field::primary;
use super::vcpu::Vcpu;
use crate::linux::x86;
use crate::xvm::state::DebugRegs;

/// DR6 when no condition is reported; the kernel keeps the host's so.
const DR6_NOTHING: u64 = 0xffff_0ff0;
/// DR6: which breakpoints matched.
const DR6_MATCHES: u64 = 0xf;
/// DR6: a debug register was accessed with DR7.GD set; single-step.
const DR6_BD_BS: u64 = 1 << 13 | 1 << 14;
/// DR6: bus lock, RTM: 0 when the condition is there. The exit qualification has them the other way round.
const DR6_INVERTED: u64 = 1 << 11 | 1 << 16;
/// DR7: any breakpoint enabled, or general detect.
const DR7_ARMED: u64 = 0x20ff;
/// DR7: general detect.
const DR7_GD: u64 = 1 << 13;

/// The registers while they are not in the CPU or the VMCS.
#[derive(Debug)]
pub(super) struct Debug {
    guest: DebugRegs,
    /// DR0-3 and DR6 are in the CPU, and MOV DR doesn't exit.
    loaded: bool,
    host_address: [u64; 4],
    host_dr7: u64,
}

impl Debug {
    pub(super) fn new() -> Self {
        Self {
            guest: DebugRegs::at_power_up(),
            loaded: false,
            host_address: [0; 4],
            host_dr7: 0,
        }
    }
}

/// Opening the window.
#[inline]
pub(super) fn open(vcpu: &mut Vcpu) {
    vcpu.debug.host_dr7 = x86::host_dr7();
    if vcpu.debug.guest.dr7 & DR7_ARMED != 0 {
        load(vcpu);
    }
}

/// Loads DR0-3 and DR6 and lets the guest access them. Window only.
pub(super) fn load(vcpu: &mut Vcpu) {
    let debug = &mut vcpu.debug;
    if debug.host_dr7 != 0 {
        debug.host_address = x86::dr0_to_dr3();
        // SAFETY: No breakpoint is enabled.
        unsafe { x86::write_dr7(0x400) };
    }
    // SAFETY: In the window DR7 has no breakpoint enabled: an exit clears it, and before the first entry the
    // line above does.
    unsafe { x86::write_dr0_to_dr3(&debug.guest.address) };
    x86::write_dr6(debug.guest.dr6);
    debug.loaded = true;
    vcpu.primary.set_bits(primary::MOV_DR_EXITING, false);
}

/// Closing the window.
#[inline]
pub(super) fn close(vcpu: &mut Vcpu) {
    if vcpu.debug.loaded {
        unload(vcpu);
    }
    if vcpu.debug.host_dr7 != 0 {
        // SAFETY: DR0-3 are the host's again, which this DR7 belongs to. An exit has cleared it.
        unsafe { x86::write_dr7(vcpu.debug.host_dr7) };
    }
}

fn unload(vcpu: &mut Vcpu) {
    vcpu.debug.guest = get(vcpu);
    vcpu.debug.loaded = false;
    vcpu.primary.set_bits(primary::MOV_DR_EXITING, true);
    x86::write_dr6(DR6_NOTHING);
    if vcpu.debug.host_dr7 != 0 {
        // SAFETY: After an exit, and since `load`, no breakpoint is enabled.
        unsafe { x86::write_dr0_to_dr3(&vcpu.debug.host_address) };
    }
}

/// Reads them.
pub(super) fn get(vcpu: &Vcpu) -> DebugRegs {
    if !vcpu.debug.loaded {
        return vcpu.debug.guest;
    }
    DebugRegs {
        address: x86::dr0_to_dr3(),
        dr6: x86::dr6(),
        dr7: vcpu.vmcs.read(field::GUEST_DR7),
    }
}

/// Sets them.
pub(super) fn set(vcpu: &mut Vcpu, regs: &DebugRegs) {
    if get(vcpu) == *regs {
        return;
    }
    vcpu.debug.guest = *regs;
    vcpu.vmcs.write(field::GUEST_DR7, regs.dr7);
    if vcpu.debug.loaded || vcpu.vmcs.is_current() && regs.dr7 & DR7_ARMED != 0 {
        load_again(vcpu);
    }
}

/// `load`, when the host's values may have been put away already.
fn load_again(vcpu: &mut Vcpu) {
    if !vcpu.debug.loaded {
        return load(vcpu);
    }
    // SAFETY: In the window, after an exit or `load`, DR7 has no breakpoint enabled.
    unsafe { x86::write_dr0_to_dr3(&vcpu.debug.guest.address) };
    x86::write_dr6(vcpu.debug.guest.dr6);
}

/// After an exit for #DB: does to DR6 and DR7 what the CPU would have done before it delivered the exception.
/// `qualification` is that of the exit (SDM vol 3, table 29-1).
pub(super) fn note_exception(vcpu: &mut Vcpu, qualification: u64) {
    let mut regs = get(vcpu);
    regs.dr6 = regs.dr6 & !DR6_MATCHES
        | qualification & (DR6_MATCHES | DR6_BD_BS)
        | DR6_INVERTED & DR6_NOTHING;
    regs.dr6 &= !(qualification & DR6_INVERTED);
    regs.dr7 &= !DR7_GD;
    set(vcpu, &regs);
}
