// SPDX-License-Identifier: GPL-2.0

//! Events: what goes to the guest through EVENTINJ and V_IRQ, and what comes back when its delivery was cut short
//! (APM vol 2, 15.20 and 15.21).
//!
//! External interrupts go through V_IRQ: the CPU itself waits until RFLAGS.IF and the interrupt shadow allow them. It does not look at CR8: writes of
//! that are intercepted, so the virtual APIC has compared it, and the 8259's interrupts don't care for it. One whose delivery was cut short
//! is given back by EXITINTINFO, and then goes through EVENTINJ. A window for userspace's interrupts is a V_IRQ whose delivery
//! is intercepted (VINTR).

use super::vcpu::Vcpu;
use super::vmcb::kind;
use super::vmcb::EventField;
use crate::xvm::ops::Delivery;
use crate::xvm::ops::Offer;
use crate::xvm::state::Event;
use crate::xvm::state::Interruptibility;

/// RFLAGS.IF.
const RFLAGS_IF: u64 = 1 << 9;
/// #BP and #OF.
const INT3: u8 = 3;
const INTO: u8 = 4;

/// An injected software interrupt. Its instruction can't be left to raise it again: it may be one that is intercepted.
#[derive(Clone, Copy, Debug)]
struct Software {
    event: Event,
    /// RIP of its instruction, and the one behind.
    rip: (u64, u64),
}

/// The state of a vCPU's events that the VMCB doesn't hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Events {
    /// The interrupt in V_IRQ.
    offered: Option<u8>,
    /// The guest took the one that was offered.
    taken: bool,
    /// What the vendor-neutral layer wants to be told.
    interrupt_window: bool,
    pub(super) nmi_window: bool,
    /// What is in EVENTINJ, and what was at the last entry: the CPU clears its valid bit.
    pub(super) injected: EventField,
    pub(super) last_injected: EventField,
    /// EXITINTINFO of the last exit, until it is handed out.
    cut_short: Option<EventField>,
    /// A software interrupt was injected.
    software: Option<Software>,
}

impl Events {
    /// Those of a vCPU after power-up: none.
    pub(super) const fn new() -> Self {
        Self {
            offered: None,
            taken: false,
            interrupt_window: false,
            nmi_window: false,
            injected: EventField::NONE,
            last_injected: EventField::NONE,
            cut_short: None,
            software: None,
        }
    }
}

impl EventField {
    fn new(kind: u8, vector: u8, error_code: Option<u32>) -> Self {
        let field = Self::NONE.with_vector(vector).with_valid(true);
        let field = match kind {
            kind::INTERRUPT => field.with_const_kind::<{ kind::INTERRUPT as u64 }>(),
            kind::NMI => field.with_const_kind::<{ kind::NMI as u64 }>(),
            kind::SOFTWARE => field.with_const_kind::<{ kind::SOFTWARE as u64 }>(),
            _ => field.with_const_kind::<{ kind::EXCEPTION as u64 }>(),
        };
        match error_code {
            Some(code) => field.with_has_error_code(true).with_error_code(code),
            None => field,
        }
    }
}

impl EventField {
    /// Whether it is an external interrupt. QEMU's emulation calls those from V_IRQ exceptions; no exception has such a vector.
    fn is_interrupt(self) -> bool {
        let (kind, vector) = (*self.kind() as u8, *self.vector());
        kind == kind::INTERRUPT || kind == kind::EXCEPTION && vector >= 32
    }
}

impl Vcpu {
    /// Delivers `event` at the next entry.
    pub(super) fn inject(&mut self, event: Event) {
        let field = match event {
            Event::Interrupt(vector) => EventField::new(kind::INTERRUPT, vector, None),
            Event::Nmi => {
                self.begin_nmi();
                EventField::new(kind::NMI, 2, None)
            }
            Event::Exception { vector, error_code } => {
                EventField::new(kind::EXCEPTION, vector, error_code)
            }
            Event::Software {
                vector,
                length,
                exception,
            } => {
                self.inject_software(event, length);
                let kind = match exception {
                    true => kind::EXCEPTION,
                    false => kind::SOFTWARE,
                };
                EventField::new(kind, vector, None)
            }
        };
        self.events.injected = field;
        self.vmcb_mut().control.event_injection = field;
    }

    /// The return address of a software interrupt is behind its instruction: in NextRIP, where the CPU has it, and in RIP otherwise.
    fn inject_software(&mut self, event: Event, length: u8) {
        let next_rip = self.features.next_rip;
        let vmcb = self.vmcb_mut();
        let rip = vmcb.save.rip;
        let behind = rip.wrapping_add(u64::from(length));
        if next_rip {
            vmcb.control.next_rip = behind;
        } else {
            vmcb.save.rip = behind;
        }
        self.events.software = Some(Software {
            event,
            rip: (rip, behind),
        });
    }

    /// Offers an interrupt or none, asks for windows or none. Never delivers for certain: the CPU itself waits for the guest.
    #[inline]
    pub(super) fn offer(&mut self, offer: Offer) {
        self.events.taken = false;
        self.events.nmi_window = offer.nmi_window;
        self.attention |= offer.nmi_window;
        let window = offer.interrupt_window;
        if self.events.offered != offer.vector || self.events.interrupt_window != window {
            self.events.offered = offer.vector;
            self.events.interrupt_window = window;
            self.vmcb_mut().control.intercept_virtual_interrupt(window);
            self.request_virtual_interrupt();
        }
    }

    /// What became of events at the last exit; once.
    #[inline]
    pub(super) fn delivery(&mut self) -> Delivery {
        Delivery {
            interrupt_taken: core::mem::take(&mut self.events.taken),
            cut_short: self.take_cut_short(),
            tpr: self.tpr(),
        }
    }

    /// Brings V_IRQ in line with what is offered and asked for.
    fn request_virtual_interrupt(&mut self) {
        let window = self.events.interrupt_window;
        let vector = self.events.offered;
        let control = &mut self.vmcb_mut().control;
        control.interrupt = control
            .interrupt
            .with_irq(window || vector.is_some())
            .with_ignore_tpr(true)
            .with_vector(vector.unwrap_or(0));
        control.clean = control.clean.with_interrupt(false);
    }

    /// After an exit: sees what became of the events.
    #[inline]
    pub(super) fn settle_events(&mut self) {
        let cut_short = self.vmcb().control.exit_event.valid();
        if cut_short || self.events.offered.is_some() || self.events.injected.valid() {
            self.settle_delivery();
        } else {
            self.events.last_injected = EventField::NONE;
        }
    }

    /// The same where a delivery was under way or may have been.
    fn settle_delivery(&mut self) {
        let injected = core::mem::replace(&mut self.events.injected, EventField::NONE);
        self.events.last_injected = injected;
        let control = &mut self.vmcb_mut().control;
        control.event_injection = EventField::NONE;
        let cut_short = control.exit_event;
        let pending = control.interrupt.irq();
        if cut_short.valid() {
            self.events.cut_short = Some(cut_short);
        }
        if self.events.offered.is_none() || self.events.interrupt_window {
            return;
        }
        // The CPU takes V_IRQ back when it begins the delivery; emulators do so at its end.
        let begun = cut_short.valid() && cut_short.is_interrupt() && !injected.valid();
        if begun || !pending {
            self.events.offered = None;
            self.events.taken = true;
            if pending {
                self.request_virtual_interrupt();
            }
        }
    }

    /// The event whose delivery the last exit cut short. Software interrupts that the guest's own instruction raised are not among them: RIP
    /// is at it, and it does it again.
    #[inline]
    fn take_cut_short(&mut self) -> Option<Event> {
        if self.events.cut_short.is_none() && self.events.software.is_none() {
            return None;
        }
        self.take_event_cut_short()
    }

    fn take_event_cut_short(&mut self) -> Option<Event> {
        let software = self.events.software.take();
        let field = self.events.cut_short.take()?;
        let vector = *field.vector() as u8;
        let error_code = field.has_error_code().then(|| *field.error_code() as u32);
        match *field.kind() as u8 {
            _ if field.is_interrupt() => Some(Event::Interrupt(vector)),
            kind::NMI => {
                self.abandon_nmi();
                Some(Event::Nmi)
            }
            kind::EXCEPTION if vector != INT3 && vector != INTO => {
                Some(Event::Exception { vector, error_code })
            }
            _ => {
                let Software { event, rip } = software?;
                let save = &mut self.vmcb_mut().save;
                if save.rip == rip.1 {
                    save.rip = rip.0;
                }
                Some(event)
            }
        }
    }

    /// What keeps interrupts and NMIs from the guest.
    pub(super) fn interruptibility(&self) -> Interruptibility {
        let vmcb = self.vmcb();
        Interruptibility {
            interrupt_flag: vmcb.save.rflags & RFLAGS_IF != 0,
            sti: vmcb.control.interrupt_state.shadow(),
            mov_ss: false,
            nmi: self.nmi_blocked(),
            trap: self.debug.is_trap_due(),
        }
    }

    /// Sets that, but for RFLAGS.
    pub(super) fn set_interruptibility(&mut self, state: Interruptibility) {
        let control = &mut self.vmcb_mut().control;
        control.interrupt_state = control
            .interrupt_state
            .with_shadow(state.sti || state.mov_ss);
        self.set_trap(state.trap);
        if state.nmi != self.nmi_blocked() {
            match state.nmi {
                true => self.begin_nmi(),
                false => self.abandon_nmi(),
            }
        }
    }
}
