// SPDX-License-Identifier: GPL-2.0

//! Events: what the next entry delivers, what the last exit cut short, and when the guest can take more.

use super::cache::Cached;
use super::field;
use super::field::primary;
use super::vcpu::Vcpu;
use crate::xvm::ops::Offer;
use crate::xvm::state::Event;
use crate::xvm::state::Interruptibility;

/// Blocking by STI, in the interruptibility state (SDM vol 3, table 26-3).
const BLOCKING_BY_STI: u64 = 1 << 0;
/// Blocking by MOV SS.
const BLOCKING_BY_MOV_SS: u64 = 1 << 1;
/// Blocking by NMI: with virtual NMIs, that of the guest.
const BLOCKING_BY_NMI: u64 = 1 << 3;

const RFLAGS_TF: u64 = 1 << 8;
const RFLAGS_IF: u64 = 1 << 9;
const RFLAGS_RF: u64 = 1 << 16;
const DEBUGCTL_BTF: u64 = 1 << 1;
const CR0_PE: u64 = 1;
/// Single-step, in the pending debug exceptions (SDM vol 3, table 26-4).
const PENDING_BS: u64 = 1 << 14;

/// The format shared by VM-entry, VM-exit interruption and IDT-vectoring information (SDM vol 3, 26.8.3 and 26.9.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Info(pub(super) u32);

impl Info {
    const EXTERNAL: u32 = 0;
    const NMI: u32 = 2;
    const HARDWARE_EXCEPTION: u32 = 3;
    const SOFTWARE_INTERRUPT: u32 = 4;
    const PRIVILEGED_SOFTWARE_EXCEPTION: u32 = 5;
    const SOFTWARE_EXCEPTION: u32 = 6;
    const ERROR_CODE: u32 = 1 << 11;
    /// Exit interruption information: an IRET had ended blocking by NMI when it faulted.
    const NMI_UNBLOCKED: u32 = 1 << 12;
    const VALID: u32 = 1 << 31;

    fn new(vector: u8, kind: u32, error_code: bool) -> Self {
        Self(
            u32::from(vector)
                | kind << 8
                | if error_code { Self::ERROR_CODE } else { 0 }
                | Self::VALID,
        )
    }

    /// Whether there is an event at all.
    pub(super) fn is_valid(self) -> bool {
        self.0 & Self::VALID != 0
    }

    /// Its vector.
    pub(super) fn vector(self) -> u8 {
        self.0 as u8
    }

    fn kind(self) -> u32 {
        self.0 >> 8 & 7
    }

    /// Whether it has an error code.
    pub(super) fn has_error_code(self) -> bool {
        self.0 & Self::ERROR_CODE != 0
    }

    /// Whether it is an NMI.
    pub(super) fn is_nmi(self) -> bool {
        self.kind() == Self::NMI
    }

    /// Whether it is INT1, which the manual calls a privileged software exception.
    pub(super) fn is_int1(self) -> bool {
        self.kind() == Self::PRIVILEGED_SOFTWARE_EXCEPTION
    }
}

/// What the next entry delivers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Injection {
    info: Info,
    error_code: u32,
    length: u8,
}

impl From<Event> for Injection {
    fn from(event: Event) -> Self {
        let (info, error_code, length) = match event {
            Event::Interrupt(vector) => (Info::new(vector, Info::EXTERNAL, false), None, 0),
            Event::Nmi => (Info::new(2, Info::NMI, false), None, 0),
            Event::Exception { vector, error_code } => (
                Info::new(vector, Info::HARDWARE_EXCEPTION, error_code.is_some()),
                error_code,
                0,
            ),
            Event::Software {
                vector,
                length,
                exception,
            } => {
                let kind = match (exception, vector) {
                    (false, _) => Info::SOFTWARE_INTERRUPT,
                    (true, 1) => Info::PRIVILEGED_SOFTWARE_EXCEPTION,
                    (true, _) => Info::SOFTWARE_EXCEPTION,
                };
                (Info::new(vector, kind, false), None, length)
            }
        };
        Self {
            info,
            error_code: error_code.unwrap_or(0),
            length,
        }
    }
}

/// A vCPU's events.
#[derive(Debug)]
pub(super) struct Events {
    /// For the next entry.
    pub(super) injection: Option<Injection>,
    /// Cut short by the last exit, not handed out yet.
    pub(super) vectoring: Option<Event>,
}

impl Events {
    pub(super) fn new() -> Self {
        Self {
            injection: None,
            vectoring: None,
        }
    }
}

/// `XvmOps::inject_exception`.
pub(super) fn inject(vcpu: &mut Vcpu, event: Event) {
    if event == Event::Nmi {
        // An NMI that is delivered blocks others by itself; with the blocking set already, entry fails (SDM vol
        // 3, 28.2.1.3).
        set_blocking(vcpu, BLOCKING_BY_NMI, false);
    }
    // An entry that delivers an event forgets the traps that are due (SDM vol 3, 28.7.3).
    vcpu.debug.trap = false;
    vcpu.events.injection = Some(event.into());
}

/// `XvmOps::offer_interrupt`.
#[inline]
pub(super) fn offer(vcpu: &mut Vcpu, offer: Offer) -> bool {
    let delivered = match offer.vector {
        Some(vector) if can_take_interrupt(vcpu) => {
            vcpu.events.injection = Some(Event::Interrupt(vector).into());
            true
        }
        _ => false,
    };
    let interrupt = offer.interrupt_window || offer.vector.is_some() && !delivered;
    vcpu.primary
        .set_bits(primary::INTERRUPT_WINDOW_EXITING, interrupt);
    vcpu.primary
        .set_bits(primary::NMI_WINDOW_EXITING, offer.nmi_window);
    delivered
}

fn can_take_interrupt(vcpu: &Vcpu) -> bool {
    vcpu.events.injection.is_none()
        && vcpu.cache.get(&vcpu.vmcs, Cached::Rflags) & RFLAGS_IF != 0
        && blocking(vcpu) & (BLOCKING_BY_STI | BLOCKING_BY_MOV_SS) == 0
        && !vcpu.debug.trap
}

fn blocking(vcpu: &Vcpu) -> u64 {
    vcpu.cache.get(&vcpu.vmcs, Cached::Interruptibility)
}

fn set_blocking(vcpu: &Vcpu, bits: u64, on: bool) {
    let old = blocking(vcpu);
    let new = if on { old | bits } else { old & !bits };
    if new != old {
        vcpu.cache.set(Cached::Interruptibility, new);
    }
}

/// `XvmOps::interruptibility`.
pub(super) fn interruptibility(vcpu: &Vcpu) -> Interruptibility {
    let state = blocking(vcpu);
    Interruptibility {
        interrupt_flag: vcpu.cache.get(&vcpu.vmcs, Cached::Rflags) & RFLAGS_IF != 0,
        sti: state & BLOCKING_BY_STI != 0,
        mov_ss: state & BLOCKING_BY_MOV_SS != 0,
        nmi: state & BLOCKING_BY_NMI != 0,
        trap: vcpu.debug.trap,
    }
}

/// `XvmOps::set_interruptibility`.
pub(super) fn set_interruptibility(vcpu: &mut Vcpu, state: Interruptibility) {
    set_blocking(vcpu, BLOCKING_BY_STI, state.sti);
    set_blocking(vcpu, BLOCKING_BY_MOV_SS, state.mov_ss);
    set_blocking(vcpu, BLOCKING_BY_NMI, state.nmi);
    if vcpu.debug.trap != state.trap {
        set_trap(vcpu, state.trap);
    }
}

/// Makes the trap of a single step due, or no longer.
#[cold]
fn set_trap(vcpu: &mut Vcpu, due: bool) {
    vcpu.debug.trap = due;
    let pending = vcpu.vmcs.read(field::GUEST_PENDING_DEBUG);
    let wanted = match due {
        true => pending | PENDING_BS,
        false => pending & !PENDING_BS,
    };
    vcpu.vmcs.write(field::GUEST_PENDING_DEBUG, wanted);
}

/// After an instruction was carried out for the guest, with these RFLAGS and interruptibility: ends the interrupt shadow and
/// RFLAGS.RF, and makes the trap of a single-step due.
#[inline]
pub(super) fn note_retired(vcpu: &mut Vcpu, rflags: u64, blocking: u64) {
    let shadow = BLOCKING_BY_STI | BLOCKING_BY_MOV_SS;
    if blocking & shadow != 0 {
        vcpu.cache.set(Cached::Interruptibility, blocking & !shadow);
    }
    if rflags & (RFLAGS_RF | RFLAGS_TF) != 0 {
        note_rare_retired(vcpu, rflags);
    }
}

#[cold]
fn note_rare_retired(vcpu: &mut Vcpu, rflags: u64) {
    if rflags & RFLAGS_RF != 0 {
        vcpu.cache.set(Cached::Rflags, rflags & !RFLAGS_RF);
    }
    if rflags & RFLAGS_TF != 0 {
        set_trap(vcpu, true);
    }
}

/// Makes interruptibility, RFLAGS and pending debug exceptions agree, as entry demands (SDM vol 3, 28.3.1.5).
/// Before an entry, when one of the first two was changed.
pub(super) fn reconcile(vcpu: &Vcpu) {
    let state = blocking(vcpu);
    if state & (BLOCKING_BY_STI | BLOCKING_BY_MOV_SS) == 0 {
        return;
    }
    if vcpu.debug.steps() {
        // Entry would demand a trap that is due now, and the guest never get anywhere. Interrupts are held back by whoever steps.
        return set_blocking(vcpu, BLOCKING_BY_STI | BLOCKING_BY_MOV_SS, false);
    }
    let rflags = vcpu.cache.get(&vcpu.vmcs, Cached::Rflags);
    // Blocking by STI needs IF, and doesn't go with blocking by MOV SS.
    if rflags & RFLAGS_IF == 0 || state & BLOCKING_BY_MOV_SS != 0 {
        set_blocking(vcpu, BLOCKING_BY_STI, false);
        if state & BLOCKING_BY_MOV_SS == 0 {
            return;
        }
    }
    // A single-step trap that is due while they are blocked must be pending, one that isn't due must not.
    let due = rflags & RFLAGS_TF != 0 && vcpu.vmcs.read(field::GUEST_DEBUGCTL) & DEBUGCTL_BTF == 0;
    let pending = vcpu.vmcs.read(field::GUEST_PENDING_DEBUG);
    let wanted = if due {
        pending | PENDING_BS
    } else {
        pending & !PENDING_BS
    };
    if wanted != pending {
        vcpu.vmcs.write(field::GUEST_PENDING_DEBUG, wanted);
    }
}

/// Writes what the next entry delivers. Window only.
#[inline]
pub(super) fn write_injection(vcpu: &Vcpu) {
    let Some(injection) = vcpu.events.injection else {
        return;
    };
    let mut info = injection.info;
    // Real mode pushes no error codes, and entry fails when asked to (SDM vol 3, 28.2.1.3).
    if info.has_error_code() && vcpu.vmcs.read(field::GUEST_CR0) & CR0_PE == 0 {
        info.0 &= !Info::ERROR_CODE;
    }
    vcpu.vmcs
        .write(field::ENTRY_INTERRUPTION_INFO, u64::from(info.0));
    if info.has_error_code() {
        // The upper half of an error code is 0; entry demands it.
        vcpu.vmcs.write(
            field::ENTRY_EXCEPTION_ERROR_CODE,
            u64::from(injection.error_code as u16),
        );
    }
    if injection.length != 0 {
        vcpu.vmcs
            .write(field::ENTRY_INSTRUCTION_LENGTH, u64::from(injection.length));
    }
}

/// After an exit: keeps the event whose delivery it cut short.
#[inline]
pub(super) fn note_vectoring(vcpu: &mut Vcpu) {
    let info = Info(vcpu.vmcs.known(field::IDT_VECTORING_INFO) as u32);
    vcpu.events.vectoring = match info.is_valid() {
        false => None,
        true => Some(interrupted(vcpu, info)),
    };
}

fn interrupted(vcpu: &Vcpu, info: Info) -> Event {
    let vector = info.vector();
    let length = || vcpu.cache.get(&vcpu.vmcs, Cached::InstructionLength) as u8;
    match info.kind() {
        Info::EXTERNAL => Event::Interrupt(vector),
        Info::NMI => {
            // Its delivery began to block NMIs; it is to be delivered again.
            set_blocking(vcpu, BLOCKING_BY_NMI, false);
            Event::Nmi
        }
        Info::SOFTWARE_INTERRUPT => Event::Software {
            vector,
            length: length(),
            exception: false,
        },
        Info::PRIVILEGED_SOFTWARE_EXCEPTION | Info::SOFTWARE_EXCEPTION => Event::Software {
            vector,
            length: length(),
            exception: true,
        },
        _ => Event::Exception {
            vector,
            error_code: info
                .has_error_code()
                .then(|| vcpu.vmcs.read(field::IDT_VECTORING_ERROR_CODE) as u32),
        },
    }
}

/// After an exit that an IRET may have caused by its fault, with `bit_12` of the interruption information or
/// the exit qualification: the IRET had ended blocking by NMI but will be executed again, so the blocking comes
/// back (SDM vol 3, 29.2.3). Undefined, and so ignored, for exits in an event's delivery.
pub(super) fn block_nmis_again(vcpu: &Vcpu, bit_12: bool) {
    if bit_12 && vcpu.events.vectoring.is_none() {
        set_blocking(vcpu, BLOCKING_BY_NMI, true);
    }
}

impl Info {
    /// Whether an IRET ended blocking by NMI before it faulted. Undefined for #DF.
    pub(super) fn nmi_unblocked(self) -> bool {
        self.0 & Self::NMI_UNBLOCKED != 0 && self.vector() != 8
    }
}
