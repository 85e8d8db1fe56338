// SPDX-License-Identifier: GPL-2.0

//! The timer of a VM, and the line that its ticks go by.
//!
//! Where ticks are made up for ([`Pit::makes_up`]) it is told when an interrupt of its line has ended: by the 8259 pair, or by the local
//! APIC that got it through the IOAPIC, although it is an edge there.

use super::routing;
use super::Chips;
use super::IrqChip;
use super::Pit;
use super::Source;
use super::Timed;
use super::NO_VECTOR;
use super::PIC_PINS;
use crate::linux::timer;
use crate::linux::timer::TimerTarget;
use core::sync::atomic::Ordering;
use kernel::prelude::*;

/// The GSI of the PIT.
const GSI: u32 = 0;

impl TimerTarget for IrqChip {
    fn expired(&self) -> Option<u64> {
        let mut chips = self.chips.lock();
        let masked = chips.pit_open == 0;
        let pit = chips.pit.as_mut();
        if pit.is_some_and(|pit| pit.fire(timer::now(), masked)) {
            self.pulse_pit(&mut chips);
        }
        chips.pit.as_ref().and_then(Pit::next_edge)
    }
}

impl IrqChip {
    /// Makes the PIT.
    ///
    /// # Errors
    ///
    /// `EEXIST` when there is one.
    pub(crate) fn create_pit(&self, speaker: bool) -> Result {
        let mut chips = self.chips.lock();
        if chips.pit.is_some() {
            return Err(EEXIST);
        }
        chips.pit = Some(Pit::new());
        chips.speaker = speaker;
        self.pit_wiring(&mut chips);
        Ok(())
    }

    /// An edge: the line goes low at once.
    fn pulse_pit(&self, chips: &mut Chips) {
        let seen = self.drive(chips, GSI, Source::Pit, true);
        self.drive(chips, GSI, Source::Pit, false);
        // Of messages that go around the chips no end is heard.
        let ends = seen && Self::pit_pins(chips) != 0;
        if let (false, Some(pit)) = (ends, &mut chips.pit) {
            pit.refused();
        }
    }

    /// An interrupt of the PIT's line has ended.
    pub(super) fn pit_ended(&self, chips: &mut Chips) {
        if chips.pit.as_mut().is_some_and(Pit::ended) {
            self.pulse_pit(chips);
        }
    }

    /// The pins that the PIT's line goes to, a bit each.
    pub(super) fn pit_pins(chips: &Chips) -> u64 {
        let routes = routing::lookup(&chips.routes, GSI).iter();
        routes.fold(0, |pins, route| pins | super::pin_bit(route.target))
    }

    /// The chips, or what is routed to them, may have changed: finds out anew how the PIT will learn of its interrupts' ends.
    ///
    /// A pin of the IOAPIC loses the edges that come while it is masked, and when it is masked there is no telling any more whose the
    /// vector was. The 8259 pair keeps them. What has waited when the guest turns to the IOAPIC is from before.
    pub(super) fn pit_wiring(&self, chips: &mut Chips) {
        if chips.pit.is_none() {
            return;
        }
        let (mut open, mut vector) = (0, None);
        for route in routing::lookup(&chips.routes, GSI) {
            let is_open = match route.target {
                routing::Target::Pic { pin } => chips.pic.is_open(pin),
                routing::Target::IoApic { pin } => {
                    vector = chips.ioapic.open_vector(pin);
                    vector.is_some()
                }
                routing::Target::Msi { .. } => true,
            };
            if is_open {
                open |= super::pin_bit(route.target);
            }
        }
        let changed = (open ^ chips.pit_open) >> PIC_PINS;
        chips.pit_open = open;
        let Some(pit) = &mut chips.pit else { return };
        if changed & (open >> PIC_PINS) != 0 {
            pit.forget_ticks();
        } else if changed != 0 {
            pit.lost_track();
        }
        let vector = vector.filter(|_| pit.makes_up());
        let vector = vector.map_or(NO_VECTOR, u32::from);
        self.pit_vector.store(vector, Ordering::Relaxed);
    }

    /// Whether a port may be one of the PIT's, which costs no lock.
    #[inline]
    pub(crate) fn may_be_pit_port(port: u16) -> bool {
        matches!(port, 0x40..=0x43 | 0x61)
    }

    /// Reads a port of the PIT; `None` when it isn't one. Not inside the window.
    pub(crate) fn pit_read(&self, port: u16) -> Option<u8> {
        let mut chips = self.chips.lock();
        if !is_port(&chips, port) {
            return None;
        }
        chips.pit.as_mut().map(|pit| pit.read(port, timer::now()))
    }
}

impl Timed<IrqChip> {
    /// Writes a port of the PIT; `None` when it isn't one. Not inside the window.
    pub(crate) fn pit_write(&self, port: u16, value: u8) -> Option<()> {
        if !is_port(&self.chips.lock(), port) {
            return None;
        }
        self.with(|chips| {
            chips
                .pit
                .as_mut()
                .map(|pit| pit.write(port, value, timer::now()))
        })
    }
}

fn is_port(chips: &Chips, port: u16) -> bool {
    chips.pit.is_some() && (matches!(port, 0x40..=0x43) || port == 0x61 && chips.speaker)
}
