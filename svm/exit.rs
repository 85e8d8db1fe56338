// SPDX-License-Identifier: GPL-2.0

//! What a #VMEXIT means (APM vol 2, appendix C): exit codes and their information, turned into [`Exit`].

use super::vcpu::Vcpu;
use super::vmcb::Clean;
use crate::xvm::vectors;
use crate::xvm::CrAccess;
use crate::xvm::Exit;
use crate::xvm::MemoryFault;
use crate::xvm::PortAccess;
use kernel::bitfield;

/// Exit codes.
mod code {
    /// MOV from CR0; those of the other control registers follow.
    pub(super) const READ_CR: u64 = 0x00;
    pub(super) const READ_CR15: u64 = 0x0f;
    /// MOV to CR0, CLTS or LMSW.
    pub(super) const WRITE_CR: u64 = 0x10;
    pub(super) const WRITE_CR15: u64 = 0x1f;
    /// Any access to a debug register.
    pub(super) const READ_DR: u64 = 0x20;
    pub(super) const WRITE_DR15: u64 = 0x3f;
    /// Exception 0; the others follow.
    pub(super) const EXCEPTION: u64 = 0x40;
    pub(super) const EXCEPTION_31: u64 = 0x5f;
    pub(super) const INTR: u64 = 0x60;
    pub(super) const NMI: u64 = 0x61;
    pub(super) const SMI: u64 = 0x62;
    pub(super) const INIT: u64 = 0x63;
    pub(super) const VINTR: u64 = 0x64;
    pub(super) const CR0_SELECTIVE: u64 = 0x65;
    pub(super) const RDPMC: u64 = 0x6f;
    pub(super) const CPUID: u64 = 0x72;
    pub(super) const RSM: u64 = 0x73;
    pub(super) const IRET: u64 = 0x74;
    pub(super) const SOFTWARE_INTERRUPT: u64 = 0x75;
    pub(super) const INVD: u64 = 0x76;
    pub(super) const PAUSE: u64 = 0x77;
    pub(super) const HLT: u64 = 0x78;
    pub(super) const INVLPGA: u64 = 0x7a;
    pub(super) const IOIO: u64 = 0x7b;
    pub(super) const MSR: u64 = 0x7c;
    pub(super) const TASK_SWITCH: u64 = 0x7d;
    pub(super) const SHUTDOWN: u64 = 0x7f;
    pub(super) const VMRUN: u64 = 0x80;
    pub(super) const VMMCALL: u64 = 0x81;
    pub(super) const VMLOAD: u64 = 0x82;
    pub(super) const VMSAVE: u64 = 0x83;
    pub(super) const STGI: u64 = 0x84;
    pub(super) const CLGI: u64 = 0x85;
    pub(super) const SKINIT: u64 = 0x86;
    pub(super) const WBINVD: u64 = 0x89;
    pub(super) const MONITOR: u64 = 0x8a;
    pub(super) const MWAIT: u64 = 0x8b;
    pub(super) const MWAIT_ARMED: u64 = 0x8c;
    pub(super) const XSETBV: u64 = 0x8d;
    pub(super) const RDPRU: u64 = 0x8e;
    pub(super) const INVLPGB: u64 = 0xa0;
    pub(super) const INVLPGB_ILLEGAL: u64 = 0xa1;
    pub(super) const MCOMMIT: u64 = 0xa3;
    pub(super) const TLBSYNC: u64 = 0xa4;
    pub(super) const NPF: u64 = 0x400;
    /// VMRUN refused the VMCB: -1, of which emulators may write 32 bits.
    pub(super) const INVALID: u32 = u32::MAX;
}

/// Vectors of the exceptions that are intercepted and mean something here.
const DB: u64 = 1;
const MC: u64 = 18;
/// Vectors whose exceptions have an error code: #DF, #TS, #NP, #SS, #GP, #PF, #AC, #CP, #VC, #SX.
const WITH_ERROR_CODE: u32 = 1 << 8 | 0x1f << 10 | 1 << 17 | 1 << 21 | 1 << 29 | 1 << 30;
/// Instructions are no longer than this.
const MAX_LENGTH: u64 = 15;

bitfield! {
    /// EXITINFO1 of IOIO (15.10.2).
    struct PortInfo(u64) {
        0:0 input => bool;
        2:2 string => bool;
        /// 1, 2 or 4 bytes, as in bits 0, 1, 2.
        6:4 size;
        31:16 port;
    }
}

bitfield! {
    /// EXITINFO1 of a nested page fault (15.25.6).
    struct FaultInfo(u64) {
        1:1 write => bool;
        4:4 fetch => bool;
        33:33 walk => bool;
    }
}

bitfield! {
    /// EXITINFO1 of an access to a control register, where CPUID has decode assists (15.33.1).
    struct CrInfo(u64) {
        3:0 gpr;
        /// A MOV, of which the above tells the operand.
        63:63 mov => bool;
    }
}

/// Whether the last exit was a #DB.
#[inline]
pub(super) fn is_debug_exception(vcpu: &Vcpu) -> bool {
    vcpu.vmcb().control.exit_code == code::EXCEPTION + DB
}

/// What the last exit means; `None` when the vendor has dealt with it and the guest goes on.
#[inline]
pub(super) fn exit(vcpu: &mut Vcpu) -> Option<Exit> {
    let control = &vcpu.vmcb().control;
    let info = control.exit_info_1;
    Some(match control.exit_code {
        code::INTR => Exit::Host,
        code::NPF => Exit::Memory(memory_fault(info, control.exit_info_2)),
        code::MSR => match info {
            0 => Exit::MsrRead,
            _ => Exit::MsrWrite,
        },
        code::IOIO => Exit::Port(port_access(info)),
        code::CPUID => Exit::Cpuid,
        code::HLT => Exit::Hlt,
        code => return rare_exit(vcpu, code),
    })
}

/// The exits that are not frequent.
#[inline(never)]
fn rare_exit(vcpu: &mut Vcpu, code: u64) -> Option<Exit> {
    Some(match code {
        code::NMI | code::SMI | code::INIT => Exit::Host,
        code::VINTR => Exit::InterruptWindow,
        code::PAUSE => Exit::Pause,
        code::VMMCALL => Exit::Hypercall,
        code::XSETBV => Exit::Xsetbv,
        code::INVD | code::WBINVD => Exit::CacheFlush,
        code::RDPMC => Exit::Refused,
        code::TASK_SWITCH => Exit::TaskSwitch,
        code::SHUTDOWN => Exit::TripleFault,
        code::READ_CR..=code::READ_CR15 | code::SOFTWARE_INTERRUPT => Exit::Instruction,
        code::WRITE_CR..=code::WRITE_CR15 => cr_write(vcpu, (code - code::WRITE_CR) as u8),
        code::CR0_SELECTIVE => cr_write(vcpu, 0),
        code::READ_DR..=code::WRITE_DR15 if vcpu.debug.is_vmms() => Exit::Instruction,
        code::READ_DR..=code::WRITE_DR15 => {
            vcpu.load_debug_addresses();
            return None;
        }
        code::IRET => {
            vcpu.reach_iret();
            return None;
        }
        code::EXCEPTION..=code::EXCEPTION_31 => exception(vcpu, code - code::EXCEPTION),
        // Outside of system management mode it is #UD, as on a CPU that doesn't intercept it.
        code::RSM => Exit::Exception {
            vector: vectors::INVALID_OPCODE,
            error_code: None,
        },
        code::INVLPGA | code::RDPRU => Exit::Undefined,
        code::VMRUN | code::VMLOAD | code::VMSAVE => Exit::Undefined,
        code::STGI | code::CLGI | code::SKINIT => Exit::Undefined,
        code::MONITOR | code::MWAIT | code::MWAIT_ARMED => Exit::MonitorMwait,
        code::INVLPGB | code::INVLPGB_ILLEGAL => Exit::Undefined,
        code::MCOMMIT | code::TLBSYNC => Exit::Undefined,
        _ if code as u32 == code::INVALID => {
            if let Some(window) = &mut vcpu.window {
                window.refused = true;
            }
            vcpu.vmcb_mut().control.clean = Clean::NONE;
            Exit::EntryFailure { reason: code }
        }
        _ => Exit::Unknown { code },
    })
}

fn memory_fault(info: u64, gpa: u64) -> MemoryFault {
    let info = FaultInfo::from(info);
    MemoryFault {
        gpa,
        write: info.write(),
        fetch: info.fetch(),
        walk: info.walk(),
    }
}

fn port_access(info: u64) -> PortAccess {
    let info = PortInfo::from(info);
    PortAccess {
        port: *info.port() as u16,
        size: *info.size() as u8,
        input: info.input(),
        string: info.string(),
    }
}

/// A write to a control register: its operand, if the CPU tells it and it is one.
fn cr_write(vcpu: &Vcpu, cr: u8) -> Exit {
    let info = CrInfo::from(vcpu.vmcb().control.exit_info_1);
    if vcpu.features.decode_assists && info.mov() {
        Exit::Cr(CrAccess::Write {
            cr,
            gpr: *info.gpr() as u8,
        })
    } else {
        Exit::Instruction
    }
}

fn exception(vcpu: &mut Vcpu, vector: u64) -> Exit {
    if vector == MC {
        // It is the host's, and is handled when the window has closed.
        if let Some(window) = &mut vcpu.window {
            window.machine_check = true;
        }
        return Exit::Host;
    }
    if vector == DB {
        return vcpu.debug_exit();
    }
    Exit::Exception {
        vector: vector as u8,
        error_code: (WITH_ERROR_CODE & (1 << vector) != 0)
            .then(|| vcpu.vmcb().control.exit_info_1 as u32),
    }
}

/// Length of the instruction that the last exit intercepted, where the CPU tells it: for port accesses it always does.
pub(super) fn instruction_length(vcpu: &Vcpu) -> Option<u8> {
    let vmcb = vcpu.vmcb();
    let next_rip = match vmcb.control.exit_code {
        code::IOIO => vmcb.control.exit_info_2,
        _ if vcpu.features.next_rip => vmcb.control.next_rip,
        _ => return None,
    };
    let length = next_rip.wrapping_sub(vmcb.save.rip);
    (1..=MAX_LENGTH).contains(&length).then_some(length as u8)
}
