// SPDX-License-Identifier: GPL-2.0

//! Events that wait to be delivered to the guest, and what becomes of an exception during the delivery of another.

use super::delivery::Offered;
use super::state::Event;
use super::vectors::DOUBLE_FAULT;
use super::vectors::PAGE_FAULT;

/// Events of a vCPU that wait for the next entry.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Events {
    /// Goes first: an exception, or an event whose delivery was cut short.
    pub(crate) injected: Option<Event>,
    /// The exception in `injected` was raised by software (emulation or the VMM) and not yet attempted by the CPU.
    pub(crate) fresh: bool,
    /// NMIs that wait, 0 to 2.
    pub(crate) nmis: u8,
    /// An external interrupt from the VMM (`KVM_INTERRUPT`).
    pub(crate) interrupt: Option<u8>,
    /// The interrupt that the vendor was offered and has not yet delivered for certain.
    pub(crate) offered: Option<Offered>,
    /// An exception during the delivery of a double fault: the vCPU shuts down.
    pub(crate) triple_fault: bool,
    /// The VMM debugs, and doesn't want interrupts and NMIs to come in between.
    pub(crate) held: bool,
}

/// How exceptions combine (SDM vol 3, 7.15, table 7-4).
#[derive(PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

fn class(vector: u8) -> Class {
    match vector {
        0 | 10..=13 => Class::Contributory,
        PAGE_FAULT => Class::PageFault,
        DOUBLE_FAULT => Class::DoubleFault,
        _ => Class::Benign,
    }
}

impl Events {
    /// Makes room for an exception that the guest's instruction has nothing to do with: what was cut short waits for its turn behind
    /// it. An exception was a fault, and comes again; so does a software interrupt.
    pub(crate) fn make_room(&mut self) {
        match self.injected.take() {
            Some(Event::Nmi) => self.nmis = self.nmis.saturating_add(1),
            Some(Event::Interrupt(vector)) if self.interrupt.is_none() => {
                self.interrupt = Some(vector);
            }
            // Of two interrupts that were acknowledged one is lost: there is but one place for them.
            _ => {}
        }
    }

    /// Queues an exception that the guest's instruction raised, or that came up while `injected` was delivered.
    ///
    /// An interrupt whose delivery faulted gives way to the fault, as in hardware.
    pub(crate) fn queue_exception(&mut self, vector: u8, error_code: Option<u32>) {
        let mut new = Event::Exception { vector, error_code };
        if let Some(Event::Exception { vector: first, .. }) = self.injected {
            match (class(first), class(vector)) {
                (Class::DoubleFault, Class::Contributory | Class::PageFault) => {
                    self.triple_fault = true;
                    self.injected = None;
                    return;
                }
                (Class::Contributory, Class::Contributory)
                | (Class::PageFault, Class::Contributory | Class::PageFault) => {
                    new = Event::Exception {
                        vector: DOUBLE_FAULT,
                        error_code: Some(0),
                    };
                }
                _ => {}
            }
        }
        self.injected = Some(new);
        self.fresh = true;
    }
}
