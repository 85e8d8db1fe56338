// SPDX-License-Identifier: GPL-2.0

//! Events as the VMM sees them: `KVM_GET_VCPU_EVENTS`, `KVM_SET_VCPU_EVENTS` (api.rst, 4.31, 4.32), `KVM_INTERRUPT`
//! (4.16), `KVM_NMI` (4.64).

use super::enable_cap::Switches;
use super::state::Event;
use super::vcpu::Vcpu;
use super::vectors::BREAKPOINT;
use super::vectors::DEBUG;
use super::vectors::OVERFLOW;
use super::vectors::PAGE_FAULT;
use super::XvmOps;
use crate::linux::user;
use crate::uapi;
use crate::uapi::kvm_interrupt;
use crate::uapi::kvm_vcpu_events;
use kernel::prelude::*;

/// A CPU holds one NMI while it handles another.
const NMIS_MAX: u8 = 2;

/// The flags that `KVM_SET_VCPU_EVENTS` takes.
const FLAGS: u32 = uapi::KVM_VCPUEVENT_VALID_NMI_PENDING
    | uapi::KVM_VCPUEVENT_VALID_SIPI_VECTOR
    | uapi::KVM_VCPUEVENT_VALID_SHADOW
    | uapi::KVM_VCPUEVENT_VALID_SMM
    | uapi::KVM_VCPUEVENT_VALID_PAYLOAD
    | uapi::KVM_VCPUEVENT_VALID_TRIPLE_FAULT;

/// Vectors below this are exceptions.
const EXCEPTIONS: u8 = 32;
/// The vector of NMIs, which are no exceptions.
const NMI_VECTOR: u8 = 2;

/// Checks what can be checked before anything changes. Returns the events with what doesn't count cleared.
fn check(events: &kvm_vcpu_events, switches: &Switches) -> Result<kvm_vcpu_events> {
    let mut events = *events;
    let flag = |flag| events.flags & flag != 0;
    let payload = flag(uapi::KVM_VCPUEVENT_VALID_PAYLOAD);
    let triple_fault = flag(uapi::KVM_VCPUEVENT_VALID_TRIPLE_FAULT);
    if events.flags & !FLAGS != 0
        || payload && !switches.exception_payload()
        || triple_fault && !switches.triple_fault_event()
    {
        return Err(EINVAL);
    }
    match payload {
        true if events.exception.pending != 0 => events.exception.injected = 0,
        true => events.exception_has_payload = 0,
        false => {
            events.exception.pending = 0;
            events.exception_has_payload = 0;
        }
    }
    let exception = &events.exception;
    let raised = exception.injected | exception.pending != 0;
    if raised && (exception.nr >= EXCEPTIONS || exception.nr == NMI_VECTOR) {
        return Err(EINVAL);
    }
    Ok(events)
}

impl<V: XvmOps> Vcpu<V> {
    /// `KVM_GET_VCPU_EVENTS`. Software interrupts whose delivery was cut short are not among them: RIP is at their
    /// instruction, which is executed again.
    ///
    /// # Errors
    ///
    /// `EFAULT`.
    pub(crate) fn get_vcpu_events(&mut self, arg: usize) -> Result<isize> {
        user::write(arg, &self.shown_events())?;
        Ok(0)
    }

    /// What `KVM_GET_VCPU_EVENTS` says.
    pub(super) fn shown_events(&mut self) -> kvm_vcpu_events {
        self.take_nmis();
        let mut events = kvm_vcpu_events::default();
        if let Some(Event::Exception { vector, error_code }) = self.events.injected {
            events.exception.injected = 1;
            events.exception.nr = vector;
            events.exception.has_error_code = error_code.is_some().into();
            events.exception.error_code = error_code.unwrap_or(0);
        }
        if let Some(vector) = self.interrupt_in_flight() {
            events.interrupt.injected = 1;
            events.interrupt.nr = vector;
        }
        let state = V::interruptibility(&self.arch);
        let shadow = |set, flag: u32| if set { flag as u8 } else { 0 };
        events.interrupt.shadow = shadow(state.sti, uapi::KVM_X86_SHADOW_INT_STI)
            | shadow(state.mov_ss, uapi::KVM_X86_SHADOW_INT_MOV_SS);
        events.nmi.injected = (self.events.injected == Some(Event::Nmi)).into();
        events.nmi.pending = self.events.nmis;
        events.nmi.masked = state.nmi.into();
        events.flags = uapi::KVM_VCPUEVENT_VALID_NMI_PENDING | uapi::KVM_VCPUEVENT_VALID_SHADOW;
        self.show_smm(&mut events);
        if self.vm.switches.exception_payload() {
            // An exception that the CPU has not attempted yet. What it says in CR2 or DR6 is there already.
            events.exception.pending = events.exception.injected & u8::from(self.events.fresh);
            events.exception.injected &= !events.exception.pending;
            events.flags |= uapi::KVM_VCPUEVENT_VALID_PAYLOAD;
        }
        if self.vm.switches.triple_fault_event() {
            events.triple_fault.pending = self.events.triple_fault.into();
            events.flags |= uapi::KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
        }
        events
    }

    /// `KVM_SET_VCPU_EVENTS`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for unknown flags, and a vector that is no exception's; `EFAULT`.
    pub(crate) fn set_vcpu_events(&mut self, arg: usize) -> Result<isize> {
        self.change_events(&user::read(arg)?)?;
        Ok(0)
    }

    /// What `KVM_SET_VCPU_EVENTS` does.
    ///
    /// # Errors
    ///
    /// `EINVAL`, as it.
    pub(super) fn change_events(&mut self, events: &kvm_vcpu_events) -> Result {
        let switches = &self.vm.switches;
        let events = &check(events, switches)?;
        let flag = |flag| events.flags & flag != 0;
        // What came before belongs to the old state.
        self.take_nmis();
        self.set_events_in_flight(events);
        if flag(uapi::KVM_VCPUEVENT_VALID_TRIPLE_FAULT) {
            self.events.triple_fault = events.triple_fault.pending != 0;
        }
        if flag(uapi::KVM_VCPUEVENT_VALID_NMI_PENDING) {
            self.events.nmis = events.nmi.pending.min(NMIS_MAX);
        }
        let mut state = V::interruptibility(&self.arch);
        state.nmi = events.nmi.masked != 0;
        if flag(uapi::KVM_VCPUEVENT_VALID_SHADOW) {
            let shadow = u32::from(events.interrupt.shadow);
            state.sti = shadow & uapi::KVM_X86_SHADOW_INT_STI != 0;
            state.mov_ss = shadow & uapi::KVM_X86_SHADOW_INT_MOV_SS != 0;
        }
        V::set_interruptibility(&mut self.arch, state);
        if self.lapic.is_some() && flag(uapi::KVM_VCPUEVENT_VALID_SIPI_VECTOR) {
            self.sipi_vector = events.sipi_vector as u8;
        }
        if flag(uapi::KVM_VCPUEVENT_VALID_SMM) {
            self.change_smm(events);
        }
        Ok(())
    }

    /// Replaces what is on its way to the guest. One event goes first, as in an entry; the others wait.
    fn set_events_in_flight(&mut self, events: &kvm_vcpu_events) {
        let exception = &events.exception;
        let pending = exception.pending != 0;
        let mut first = (exception.injected != 0 || pending).then_some(match exception.nr {
            BREAKPOINT | OVERFLOW => Event::software_exception(exception.nr),
            vector => Event::Exception {
                vector,
                error_code: (exception.has_error_code != 0).then_some(exception.error_code),
            },
        });
        if events.nmi.injected != 0 {
            match first {
                None => first = Some(Event::Nmi),
                Some(_) => self.events.nmis = self.events.nmis.saturating_add(1).min(NMIS_MAX),
            }
        }
        self.events.interrupt = None;
        // A software interrupt's instruction is executed again.
        if events.interrupt.injected != 0 && events.interrupt.soft == 0 {
            match first {
                None => first = Some(Event::Interrupt(events.interrupt.nr)),
                Some(_) => self.events.interrupt = Some(events.interrupt.nr),
            }
        }
        self.events.injected = first;
        self.events.fresh = pending;
        if events.exception_has_payload != 0 {
            self.deliver_payload(exception.nr, events.exception_payload);
        }
    }

    /// Puts what an exception that is pending says where the guest will look for it (`KVM_CAP_EXCEPTION_PAYLOAD`, 7.17).
    fn deliver_payload(&mut self, vector: u8, payload: u64) {
        let mut system = V::system_regs(&self.arch);
        match vector {
            DEBUG => system.note_debug(payload),
            PAGE_FAULT => system.cr2 = payload,
            _ => return,
        }
        V::set_system_regs(&mut self.arch, &system);
    }

    /// `KVM_INTERRUPT`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a vector above 255, `ENXIO` when the interrupt controllers are in the kernel, `EEXIST` when an
    /// interrupt waits already; `EFAULT`.
    pub(crate) fn queue_interrupt(&mut self, arg: usize) -> Result<isize> {
        let interrupt: kvm_interrupt = user::read(arg)?;
        let vector = u8::try_from(interrupt.irq).map_err(|_| EINVAL)?;
        if self.has_pic() {
            return Err(ENXIO);
        }
        if self.events.interrupt.is_some() {
            return Err(EEXIST);
        }
        self.events.interrupt = Some(vector);
        Ok(0)
    }

    /// `KVM_NMI`.
    ///
    /// # Errors
    ///
    /// None.
    pub(crate) fn queue_nmi(&mut self) -> Result<isize> {
        self.add_nmis(1);
        Ok(0)
    }
}
