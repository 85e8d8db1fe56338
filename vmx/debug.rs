// SPDX-License-Identifier: GPL-2.0

//! The guest's debug registers, and single-stepping.
//!
//! DR7 is in the VMCS. DR0-3 and DR6 are in the CPU only from the guest's first MOV DR in a window, or from its
//! opening when breakpoints are armed; most windows never load them. #DB always exits (CVE-2015-8104), so that
//! the CPU never writes the guest's DR6.
//!
//! When the VMM debugs, MOV DR exits always, and the registers that the guest sees are kept here; DR7 in the VMCS and the
//! addresses in the CPU are the VMM's then, if it has any.

use super::cache::Cached;
use super::field;
use super::field::primary;
use super::vcpu::Vcpu;
use super::vcpu::EXCEPTIONS;
use crate::linux::x86;
use crate::xvm::ops::Debugging;
use crate::xvm::state::DebugRegs;
use crate::xvm::Exit;

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
/// DR7: bit 10 reads as 1; bits 12, 14, 15 and the upper half are 0.
const DR7_FIXED: u64 = 1 << 10;
const DR7_DEFINED: u64 = 0xffff_2fff;
/// RFLAGS.TF.
const RFLAGS_TF: u64 = 1 << 8;
/// #BP, among the exceptions that exit.
const BREAKPOINT: u64 = 1 << 3;
/// #DB.
const DB: u8 = 1;

/// The registers while they are not in the CPU or the VMCS.
#[derive(Debug)]
pub(super) struct Debug {
    guest: DebugRegs,
    /// DR0-3 and DR6 are in the CPU, and, unless the VMM debugs, MOV DR doesn't exit.
    loaded: bool,
    /// What the VMM's debugging asks for.
    asked: Option<Debugging>,
    /// The guest's RFLAGS.TF, while the VMM steps.
    tf: bool,
    /// The trap of a single step is due: it is among the pending debug exceptions.
    pub(super) trap: bool,
    host_address: [u64; 4],
    host_dr7: u64,
}

impl Debug {
    pub(super) fn new() -> Self {
        Self {
            guest: DebugRegs::at_power_up(),
            loaded: false,
            asked: None,
            tf: false,
            trap: false,
            host_address: [0; 4],
            host_dr7: 0,
        }
    }

    /// Whether the VMM debugs.
    pub(super) fn is_vmms(&self) -> bool {
        self.asked.is_some()
    }

    /// Whether the VMM steps.
    pub(super) fn steps(&self) -> bool {
        self.asked.is_some_and(|asked| asked.step)
    }

    /// The guest's RFLAGS, where the VMCS has `rflags`.
    pub(super) fn hide_step(&self, rflags: u64) -> u64 {
        match self.steps() {
            true => rflags & !RFLAGS_TF | if self.tf { RFLAGS_TF } else { 0 },
            false => rflags,
        }
    }

    /// The addresses and DR7 that are in force.
    fn in_force(&self) -> ([u64; 4], u64) {
        let own = (self.guest.address, self.guest.dr7);
        match self.asked {
            None => own,
            Some(asked) => {
                let (addresses, dr7) = asked.breakpoints.unwrap_or(own);
                // General detect is looked after where the access is carried out.
                (addresses, dr7 & DR7_DEFINED & !DR7_GD | DR7_FIXED)
            }
        }
    }
}

/// Opening the window.
#[inline]
pub(super) fn open(vcpu: &mut Vcpu) {
    vcpu.debug.host_dr7 = x86::host_dr7();
    if vcpu.debug.guest.dr7 & DR7_ARMED != 0 || vcpu.debug.is_vmms() {
        load(vcpu);
    }
}

/// Loads DR0-3 and DR6 and, unless the VMM debugs, lets the guest access them. Window only.
pub(super) fn load(vcpu: &mut Vcpu) {
    let debug = &mut vcpu.debug;
    if debug.host_dr7 != 0 {
        debug.host_address = x86::dr0_to_dr3();
        // SAFETY: No breakpoint is enabled.
        unsafe { x86::write_dr7(0x400) };
    }
    debug.loaded = true;
    write(vcpu);
    let exiting = vcpu.debug.is_vmms();
    vcpu.primary.set_bits(primary::MOV_DR_EXITING, exiting);
}

/// Writes DR0-3 and DR6. Window only.
fn write(vcpu: &mut Vcpu) {
    let debug = &vcpu.debug;
    // SAFETY: In the window DR7 has no breakpoint enabled: an exit clears it, and before the first entry `load` does.
    unsafe { x86::write_dr0_to_dr3(&debug.in_force().0) };
    x86::write_dr6(match debug.is_vmms() {
        true => DR6_NOTHING,
        false => debug.guest.dr6,
    });
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

/// Reads those of the guest.
pub(super) fn get(vcpu: &Vcpu) -> DebugRegs {
    if !vcpu.debug.loaded || vcpu.debug.is_vmms() {
        return vcpu.debug.guest;
    }
    DebugRegs {
        address: x86::dr0_to_dr3(),
        dr6: x86::dr6(),
        dr7: vcpu.vmcs.read(field::GUEST_DR7),
    }
}

/// Sets those of the guest.
pub(super) fn set(vcpu: &mut Vcpu, regs: &DebugRegs) {
    if get(vcpu) == *regs {
        return;
    }
    vcpu.debug.guest = *regs;
    enforce(vcpu);
}

/// Brings what is in force to the VMCS and, where it is needed there, to the CPU.
fn enforce(vcpu: &mut Vcpu) {
    let dr7 = vcpu.debug.in_force().1;
    vcpu.vmcs.write(field::GUEST_DR7, dr7);
    if vcpu.debug.loaded {
        write(vcpu);
    } else if vcpu.vmcs.is_current() && dr7 & DR7_ARMED != 0 {
        load(vcpu);
    }
}

/// Begins, changes or ends debugging by the VMM. INT3 is one of the exceptions that exit, if it asks for that.
pub(super) fn set_debugging(vcpu: &mut Vcpu, asked: Option<Debugging>) {
    if vcpu.debug.asked == asked {
        return;
    }
    vcpu.debug.guest = get(vcpu);
    let mut rflags = vcpu
        .debug
        .hide_step(vcpu.cache.get(&vcpu.vmcs, Cached::Rflags));
    vcpu.debug.tf = rflags & RFLAGS_TF != 0;
    vcpu.debug.asked = asked;
    enforce(vcpu);
    if vcpu.debug.steps() {
        rflags |= RFLAGS_TF;
    }
    vcpu.cache.set(Cached::Rflags, rflags);
    let exceptions = match asked.is_some_and(|asked| asked.int3) {
        true => EXCEPTIONS | BREAKPOINT,
        false => EXCEPTIONS,
    };
    vcpu.vmcs.write(field::EXCEPTION_BITMAP, exceptions);
}

/// RFLAGS for the VMCS, when the guest's become `rflags`: a step of the VMM's that is in force stays so.
pub(super) fn show_rflags(vcpu: &mut Vcpu, rflags: u64) -> u64 {
    if !vcpu.debug.steps() {
        return rflags;
    }
    vcpu.debug.tf = rflags & RFLAGS_TF != 0;
    rflags & !RFLAGS_TF | vcpu.cache.get(&vcpu.vmcs, Cached::Rflags) & RFLAGS_TF
}

/// What an exit for #DB with `qualification` is (SDM vol 3, table 29-1). If the VMM doesn't debug, does to DR6 and DR7 what the CPU
/// would have done before it delivered the exception; else its next step begins.
pub(super) fn exit(vcpu: &mut Vcpu, qualification: u64) -> Exit {
    vcpu.debug.trap = false;
    let happened = qualification & (DR6_MATCHES | DR6_BD_BS);
    let inverted = qualification & DR6_INVERTED;
    if vcpu.debug.is_vmms() {
        if vcpu.debug.steps() {
            let rflags = vcpu.cache.get(&vcpu.vmcs, Cached::Rflags);
            // The instruction has cleared it: POPF, IRET.
            vcpu.debug.tf &= rflags & RFLAGS_TF != 0;
            vcpu.cache.set(Cached::Rflags, rflags | RFLAGS_TF);
        }
        return Exit::Debug {
            dr6: (DR6_NOTHING | happened) & !inverted,
            dr7: vcpu.debug.in_force().1,
        };
    }
    let mut regs = get(vcpu);
    regs.dr6 = regs.dr6 & !DR6_MATCHES | happened | DR6_INVERTED & DR6_NOTHING;
    regs.dr6 &= !inverted;
    regs.dr7 &= !DR7_GD;
    set(vcpu, &regs);
    Exit::Exception {
        vector: DB,
        error_code: None,
    }
}
