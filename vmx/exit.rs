// SPDX-License-Identifier: GPL-2.0

//! From a VM exit to an [`Exit`] (SDM vol 3, chapter 29 and appendix C).

use super::cache::Cached;
use super::debug;
use super::dump;
use super::event;
use super::event::Info;
use super::field;
use super::vcpu::Vcpu;
use crate::xvm::exit::CrAccess;
use crate::xvm::exit::MemoryFault;
use crate::xvm::exit::PortAccess;
use crate::xvm::Exit;
use core::arch::asm;

/// Bit of the exit reason: entry failed, and the guest did not run.
const ENTRY_FAILURE: u32 = 1 << 31;
/// Bits of the exit reason: the basic one.
const BASIC: u32 = 0xffff;
/// The #DB vector.
const DB: u8 = 1;
/// The #MC vector.
const MC: u8 = 18;

/// Basic exit reasons (appendix C).
mod reason {
    pub(super) const EXCEPTION_OR_NMI: u32 = 0;
    pub(super) const EXTERNAL_INTERRUPT: u32 = 1;
    pub(super) const TRIPLE_FAULT: u32 = 2;
    pub(super) const INIT: u32 = 3;
    pub(super) const INTERRUPT_WINDOW: u32 = 7;
    pub(super) const NMI_WINDOW: u32 = 8;
    pub(super) const TASK_SWITCH: u32 = 9;
    pub(super) const CPUID: u32 = 10;
    pub(super) const GETSEC: u32 = 11;
    pub(super) const HLT: u32 = 12;
    pub(super) const INVD: u32 = 13;
    pub(super) const RDPMC: u32 = 15;
    pub(super) const VMCALL: u32 = 18;
    pub(super) const VMCLEAR: u32 = 19;
    pub(super) const VMXON: u32 = 27;
    pub(super) const CONTROL_REGISTER: u32 = 28;
    pub(super) const MOV_DR: u32 = 29;
    pub(super) const IO: u32 = 30;
    pub(super) const RDMSR: u32 = 31;
    pub(super) const WRMSR: u32 = 32;
    pub(super) const MWAIT: u32 = 36;
    pub(super) const MONITOR: u32 = 39;
    pub(super) const PAUSE: u32 = 40;
    pub(super) const TPR_BELOW_THRESHOLD: u32 = 43;
    pub(super) const EPT_VIOLATION: u32 = 48;
    pub(super) const INVEPT: u32 = 50;
    pub(super) const PREEMPTION_TIMER: u32 = 52;
    pub(super) const INVVPID: u32 = 53;
    pub(super) const WBINVD: u32 = 54;
    pub(super) const XSETBV: u32 = 55;
}

/// What the exit that just happened means; `None` if it is dealt with and the guest is to be entered again.
#[inline]
pub(super) fn after(vcpu: &mut Vcpu) -> Option<Exit> {
    let full = vcpu.vmcs.known(field::EXIT_REASON) as u32;
    match instruction(vcpu, full) {
        None => other(vcpu, full),
        exit => exit,
    }
}

/// The exit of an instruction that guests execute often. No event was being delivered then.
#[inline(always)]
fn instruction(vcpu: &Vcpu, full: u32) -> Option<Exit> {
    Some(match full {
        reason::CPUID => Exit::Cpuid,
        reason::RDMSR => Exit::MsrRead,
        reason::WRMSR => Exit::MsrWrite,
        reason::VMCALL => Exit::Hypercall,
        reason::IO => Exit::Port(port(qualification(vcpu))),
        reason::HLT => Exit::Hlt,
        _ => return None,
    })
}

/// Any other exit.
#[inline(never)]
fn other(vcpu: &mut Vcpu, full: u32) -> Option<Exit> {
    event::note_vectoring(vcpu);
    if full & ENTRY_FAILURE != 0 {
        return Some(dump::entry_failure(vcpu, full));
    }
    Some(match full & BASIC {
        reason::EXCEPTION_OR_NMI => exception(vcpu),
        reason::EXTERNAL_INTERRUPT | reason::INIT | reason::PREEMPTION_TIMER => Exit::Host,
        reason::TRIPLE_FAULT => Exit::TripleFault,
        reason::INTERRUPT_WINDOW => Exit::InterruptWindow,
        reason::NMI_WINDOW => Exit::NmiWindow,
        reason::TASK_SWITCH => Exit::TaskSwitch,
        reason::INVD | reason::WBINVD => Exit::CacheFlush,
        reason::RDPMC => Exit::Refused,
        reason::CONTROL_REGISTER => control_register(qualification(vcpu)),
        reason::PAUSE => Exit::Pause,
        reason::MWAIT | reason::MONITOR => Exit::MonitorMwait,
        reason::TPR_BELOW_THRESHOLD => Exit::TprChanged,
        reason::EPT_VIOLATION => memory(vcpu),
        reason::XSETBV => Exit::Xsetbv,
        reason::MOV_DR if vcpu.debug.is_vmms() => Exit::Instruction,
        reason::MOV_DR => {
            debug::load(vcpu);
            return None;
        }
        reason::GETSEC | reason::VMCLEAR..=reason::VMXON | reason::INVEPT | reason::INVVPID => {
            Exit::Undefined
        }
        _ => dump::unknown(vcpu, full),
    })
}

fn qualification(vcpu: &Vcpu) -> u64 {
    vcpu.vmcs.known(field::EXIT_QUALIFICATION)
}

fn exception(vcpu: &mut Vcpu) -> Exit {
    let info = Info(vcpu.vmcs.read(field::EXIT_INTERRUPTION_INFO) as u32);
    if info.is_nmi() {
        // SAFETY: The kernel's NMI handler may run here as anywhere; its IRET ends the blocking of NMIs that
        // the exit left.
        unsafe { asm!("int 2") };
        return Exit::Host;
    }
    event::block_nmis_again(vcpu, info.nmi_unblocked());
    match info.vector() {
        MC => {
            // SAFETY: As above, for the machine-check handler.
            unsafe { asm!("int 18") };
            return Exit::Host;
        }
        DB => {
            if info.is_int1() {
                // A trap, though the exit is before the instruction.
                let length = vcpu.cache.get(&vcpu.vmcs, Cached::InstructionLength);
                let rip = vcpu.cache.get(&vcpu.vmcs, Cached::Rip);
                vcpu.cache.set(Cached::Rip, rip.wrapping_add(length));
            }
            let qualification = qualification(vcpu);
            return debug::exit(vcpu, qualification);
        }
        _ => {}
    }
    Exit::Exception {
        vector: info.vector(),
        error_code: info
            .has_error_code()
            .then(|| vcpu.vmcs.read(field::EXIT_INTERRUPTION_ERROR_CODE) as u32),
    }
}

/// Table 29-3: bits 3:0 the register, 5:4 what is done to it, 11:8 the general register, 31:16 LMSW's operand.
fn control_register(qualification: u64) -> Exit {
    let cr = (qualification & 0xf) as u8;
    let gpr = (qualification >> 8 & 0xf) as u8;
    Exit::Cr(match qualification >> 4 & 3 {
        0 => CrAccess::Write { cr, gpr },
        1 => CrAccess::Read { cr, gpr },
        2 => CrAccess::Clts,
        _ => CrAccess::Lmsw((qualification >> 16) as u16),
    })
}

/// Table 29-5: bits 2:0 the size less one, 3 input, 4 string, 31:16 the port.
fn port(qualification: u64) -> PortAccess {
    PortAccess {
        port: (qualification >> 16) as u16,
        size: (qualification & 7) as u8 + 1,
        input: qualification & 1 << 3 != 0,
        string: qualification & 1 << 4 != 0,
    }
}

/// Table 29-7: bit 1 a write, 2 a fetch, 12 an IRET that had unblocked NMIs.
fn memory(vcpu: &Vcpu) -> Exit {
    let qualification = qualification(vcpu);
    event::block_nmis_again(vcpu, qualification & 1 << 12 != 0);
    Exit::Memory(MemoryFault {
        gpa: vcpu.vmcs.known(field::GUEST_PHYSICAL_ADDRESS),
        write: qualification & 1 << 1 != 0,
        fetch: qualification & 1 << 2 != 0,
        // Bit 7: there is a linear address; bit 8: the access is to its translation.
        walk: qualification & 1 << 8 == 0,
    })
}
