// SPDX-License-Identifier: GPL-2.0

//! Ends of interrupts: who is asked or told then.

use super::pin_bit;
use super::Chips;
use super::IrqChip;
use super::Kind;
use super::Source;
use super::PIC_PINS;
use crate::linux::eventfd::EventFd;
use crate::linux::rcu;
use crate::xvm::platform::routing;
use crate::xvm::platform::Message;
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::sync::Arc;

/// Who is asked after the end of an interrupt on a GSI.
pub(super) struct Resampler {
    gsi: u32,
    event: Arc<EventFd>,
    /// It is to be asked now.
    due: bool,
}

impl IrqChip {
    /// Drives a GSI's line up until the interrupt's end. From any context.
    pub(crate) fn raise_resampled(&self, gsi: u32) {
        let mut chips = self.chips.lock();
        self.drive(&mut chips, gsi, Source::Resampled, true);
    }

    /// Asks `event` after the end of each interrupt on a GSI. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn add_resampler(&self, gsi: u32, event: Arc<EventFd>) -> Result {
        loop {
            let want = self.chips.lock().resamplers.len() + 1;
            let mut larger = KVec::with_capacity(want, GFP_KERNEL_ACCOUNT)?;
            let mut chips = self.chips.lock();
            if chips.resamplers.len() + 1 != want {
                continue;
            }
            for one in chips.resamplers.drain_all() {
                larger.push(one, GFP_ATOMIC)?;
            }
            let due = false;
            larger.push(Resampler { gsi, event, due }, GFP_ATOMIC)?;
            core::mem::swap(&mut chips.resamplers, &mut larger);
            drop(chips);
            return Ok(());
        }
    }

    /// Undoes `add_resampler`. The line falls when nobody is left who is asked.
    pub(crate) fn remove_resampler(&self, gsi: u32, event: &Arc<EventFd>) {
        let mut chips = self.chips.lock();
        let resamplers = &mut chips.resamplers;
        let same = |one: &Resampler| one.gsi == gsi && Arc::ptr_eq(&one.event, event);
        if let Some(at) = resamplers.iter().position(same) {
            // There is such an entry.
            let _ = resamplers.remove(at);
        }
        if !resamplers.iter().any(|one| one.gsi == gsi) {
            self.drive(&mut chips, gsi, Source::Resampled, false);
        }
    }

    /// Whether the VMM, whose IOAPIC it is, is to be told of the end of a level-triggered interrupt.
    pub(crate) fn forwards_end(&self, vector: u8) -> bool {
        let Kind::Split(pins) = self.kind else {
            return false;
        };
        let chips = self.chips.lock();
        let mut routes = chips.routes.iter().take_while(|route| route.gsi < pins);
        routes.any(|route| match route.target {
            routing::Target::Msi { address, data } => {
                let message = Message::from_msi(address, data, false);
                message.level && message.vector == vector
            }
            _ => false,
        })
    }

    /// Whether the end of an edge-triggered interrupt is to be told to [`IrqChip::end_of_interrupt`], too.
    #[inline]
    pub(crate) fn wants_end(&self, vector: u8) -> bool {
        self.pit_vector.load(Ordering::Relaxed) == vector.into()
    }

    /// A local APIC ended an interrupt.
    pub(crate) fn end_of_interrupt(&self, vector: u8, level: bool) {
        let mut chips = self.chips.lock();
        let mut pins = 0;
        if level {
            pins = u64::from(chips.ioapic.ended_by(vector)) << PIC_PINS;
        }
        let due = self.ended(&mut chips, pins);
        if level {
            chips
                .ioapic
                .eoi(vector, &mut |message| self.targets.send(message));
        }
        if self.wants_end(vector) {
            self.pit_ended(&mut chips);
        }
        drop(chips);
        self.ask(due);
    }

    pub(super) fn pic_ended(&self, chips: &mut Chips) -> bool {
        let pins = chips.pic.take_ended();
        let due = self.ended(chips, pins.into());
        if u64::from(pins) & Self::pit_pins(chips) != 0 {
            self.pit_ended(chips);
        }
        due
    }

    /// Interrupts of `pins`, numbered as in `Chips::drivers`, have ended: lets go of the lines of who is to be asked then. Whether there
    /// is anyone.
    fn ended(&self, chips: &mut Chips, pins: u64) -> bool {
        let mut any = false;
        if pins == 0 {
            return any;
        }
        for i in 0..chips.resamplers.len() {
            let gsi = chips.resamplers[i].gsi;
            let mut routes = routing::lookup(&chips.routes, gsi).iter();
            if routes.any(|route| pins & pin_bit(route.target) != 0) {
                chips.resamplers[i].due = true;
                self.drive(chips, gsi, Source::Resampled, false);
                any = true;
            }
        }
        any
    }

    /// Asks those who are due. Without the chips' lock, because the answer may be a line that rises.
    pub(super) fn ask(&self, any: bool) {
        if !any {
            return;
        }
        let _reader = rcu::read_side();
        loop {
            let event = {
                let mut chips = self.chips.lock();
                let Some(one) = chips.resamplers.iter_mut().find(|one| one.due) else {
                    return;
                };
                one.due = false;
                one.event.clone()
            };
            event.signal();
        }
    }
}
