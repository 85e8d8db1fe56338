// SPDX-License-Identifier: GPL-2.0

//! The IOAPIC (82093AA datasheet, 290566): 24 pins, each with an entry that says where its interrupts go.
//!
//! Edges on a masked pin are lost, as on the chip. A level-triggered pin sends one message and then waits for the EOI of its
//! vector (remote IRR); if its line is still high then, it sends another.

use super::message::Delivery;
use super::message::Message;

/// Number of pins.
pub const PINS: usize = 24;

/// Size of the register window.
const WINDOW: u64 = 0x100;

/// Where the window is after reset.
const DEFAULT_BASE: u64 = 0xfec0_0000;

/// Version register: version 0x11, whose last entry is number 23 (section 3.2.2).
const VERSION: u32 = 0x0017_0011;

register! {
    /// Entry of the redirection table (section 3.2.4).
    struct Redirection(u64) {
        vector: u8 = 7..0;
        delivery_bits: u8 = 10..8;
        logical: bool = 11;
        remote_irr / set_remote_irr: bool = 14;
        trigger_level: bool = 15;
        masked: bool = 16;
        dest: u8 = 63..56;
    }
}

impl Redirection {
    const RESET: Redirection = Redirection(0x0001_0000);

    /// All fields but the delivery status (bit 12) and the remote IRR, which are read-only. A delivery is never seen
    /// pending: it takes no time.
    const WRITABLE: u64 = 0xff00_0000_0001_afff;

    const REMOTE_IRR: u64 = 0x4000;

    /// Takes new values for the bits in `mask`. An edge-triggered pin has no remote IRR; software that has no EOI register
    /// clears it by going to edge and back.
    fn update(&mut self, value: u64, mask: u64) {
        self.0 = self.0 & !mask | value & mask;
        if !self.level() {
            self.set_remote_irr(false);
        }
    }

    fn delivery(self) -> Delivery {
        match Delivery::from_bits(self.delivery_bits()) {
            // Reserved in this table.
            Delivery::Startup => Delivery::Reserved,
            delivery => delivery,
        }
    }

    /// Whether it is level-triggered: only deliveries with an EOI can be.
    fn level(self) -> bool {
        self.trigger_level()
            && matches!(self.delivery(), Delivery::Fixed | Delivery::LowestPriority)
    }

    fn message(self) -> Message {
        Message {
            dest: self.dest().into(),
            logical: self.logical(),
            delivery: self.delivery(),
            vector: self.vector(),
            level: self.level(),
        }
    }
}

/// State, with the fields of struct kvm_ioapic_state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoApicState {
    /// Physical address of the window.
    pub base_address: u64,
    /// Index register.
    pub ioregsel: u32,
    /// ID, 0 to 15.
    pub id: u32,
    /// Pins that request an interrupt: level-triggered ones whose line is high.
    pub irr: u32,
    /// Redirection table.
    pub redirtbl: [u64; PINS],
}

/// The IOAPIC.
///
/// Its methods send messages through a `sink`, which returns whether any local APIC took it. Where it merged with a pending
/// interrupt of the same vector, either answer will do: the EOI of that one serves the pin again.
pub struct IoApic {
    base: u64,
    select: u8,
    id: u8,
    /// Levels of the lines.
    lines: u32,
    table: [Redirection; PINS],
}

impl IoApic {
    /// As after reset.
    pub const fn new() -> Self {
        Self {
            base: DEFAULT_BASE,
            select: 0,
            id: 0,
            lines: 0,
            table: [Redirection::RESET; PINS],
        }
    }

    /// The offset of a physical address in the register window, if it is there.
    pub fn offset(&self, address: u64) -> Option<u64> {
        address
            .checked_sub(self.base)
            .filter(|offset| *offset < WINDOW)
    }

    /// Reads the 32-bit register at an offset in the window.
    pub fn read(&self, offset: u64) -> u32 {
        match offset {
            0x00 => self.select.into(),
            0x10 => self.read_selected(),
            _ => 0,
        }
    }

    fn read_selected(&self) -> u32 {
        let id = u32::from(self.id) << 24;
        match self.select {
            0 => id,
            1 => VERSION,
            // The arbitration ID is that of the last time the ID was written (section 3.2.3).
            2 => id,
            index => match self.table.get(Self::entry(index)) {
                Some(entry) if index & 1 == 0 => entry.0 as u32,
                Some(entry) => (entry.0 >> 32) as u32,
                None => u32::MAX,
            },
        }
    }

    /// The entry that an index register value selects a half of; out of the table if none.
    fn entry(select: u8) -> usize {
        usize::from(select.wrapping_sub(0x10) >> 1)
    }

    /// Writes the 32-bit register at an offset in the window.
    pub fn write(&mut self, offset: u64, value: u32, sink: &mut impl FnMut(&Message) -> bool) {
        match offset {
            0x00 => self.select = value as u8,
            0x10 => self.write_selected(value, sink),
            _ => {}
        }
    }

    fn write_selected(&mut self, value: u32, sink: &mut impl FnMut(&Message) -> bool) {
        if self.select == 0 {
            self.id = (value >> 24) as u8 & 0xf;
            return;
        }
        let pin = Self::entry(self.select);
        let Some(entry) = self.table.get_mut(pin) else {
            return;
        };
        let (value, half) = match self.select & 1 {
            0 => (u64::from(value), u64::from(u32::MAX)),
            _ => (u64::from(value) << 32, u64::from(u32::MAX) << 32),
        };
        entry.update(value, Redirection::WRITABLE & half);
        self.service(pin, sink);
    }

    /// Sends the interrupt of a level-triggered pin if there is one to send.
    fn service(&mut self, pin: usize, sink: &mut impl FnMut(&Message) -> bool) {
        let Some(entry) = self.table.get_mut(pin) else {
            return;
        };
        let requests = (self.lines >> pin) & 1 != 0 && entry.level();
        if requests && !entry.masked() && !entry.remote_irr() && sink(&entry.message()) {
            entry.set_remote_irr(true);
        }
    }

    /// Sets the level of a pin's line; pins from 24 on are not there. The polarity bit is kept but means nothing: `level` is
    /// whether the line is asserted.
    pub fn set_irq(&mut self, pin: u8, level: bool, sink: &mut impl FnMut(&Message) -> bool) {
        let Some(entry) = self.table.get(usize::from(pin)) else {
            return;
        };
        let bit = 1 << pin;
        let rises = level && self.lines & bit == 0;
        if !level {
            self.lines &= !bit;
            return;
        }
        self.lines |= bit;
        if entry.level() {
            self.service(pin.into(), sink);
        } else if rises && !entry.masked() {
            sink(&entry.message());
        }
    }

    /// A local APIC has ended a level-triggered interrupt (section 3.2.4, "remote IRR").
    pub fn eoi(&mut self, vector: u8, sink: &mut impl FnMut(&Message) -> bool) {
        for pin in 0..PINS {
            let Some(entry) = self.table.get_mut(pin) else {
                return;
            };
            if entry.level() && entry.vector() == vector {
                entry.set_remote_irr(false);
                self.service(pin, sink);
            }
        }
    }

    /// The pins whose interrupt a local APIC ends with that of a level-triggered `vector`.
    pub fn ended_by(&self, vector: u8) -> u32 {
        (0..)
            .zip(&self.table)
            .filter(|(_, entry)| entry.level() && entry.vector() == vector)
            .fold(0, |pins, (pin, _)| pins | (1 << pin))
    }

    /// The vector of a pin that isn't masked.
    pub fn open_vector(&self, pin: u8) -> Option<u8> {
        let entry = self.table.get(usize::from(pin))?;
        (!entry.masked()).then(|| entry.vector())
    }

    /// Which pins are level-triggered.
    fn level_pins(&self) -> u32 {
        (0..)
            .zip(&self.table)
            .filter(|(_, entry)| entry.level())
            .fold(0, |pins, (pin, _)| pins | (1 << pin))
    }

    /// Saves it.
    pub fn state(&self) -> IoApicState {
        IoApicState {
            base_address: self.base,
            ioregsel: self.select.into(),
            id: self.id.into(),
            irr: self.lines & self.level_pins(),
            redirtbl: self.table.map(|entry| entry.0),
        }
    }

    /// Restores it, and sends what the requests in `irr` call for. Bits that a register doesn't have are dropped.
    pub fn set_state(&mut self, state: &IoApicState, sink: &mut impl FnMut(&Message) -> bool) {
        self.base = state.base_address;
        self.select = state.ioregsel as u8;
        self.id = state.id as u8 & 0xf;
        self.lines = 0;
        for (entry, value) in self.table.iter_mut().zip(state.redirtbl) {
            *entry = Redirection(0);
            entry.update(value, Redirection::WRITABLE | Redirection::REMOTE_IRR);
        }
        for pin in 0..PINS as u8 {
            if (state.irr >> pin) & 1 != 0 {
                self.set_irq(pin, true, sink);
            }
        }
    }
}

impl Default for IoApic {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// An IOAPIC and the messages it has sent.
    struct Bench {
        ioapic: IoApic,
        sent: Vec<Message>,
    }

    impl Bench {
        fn new() -> Self {
            Self {
                ioapic: IoApic::new(),
                sent: Vec::new(),
            }
        }

        fn select_and_write(&mut self, index: u32, value: u32) {
            let sent = &mut self.sent;
            let mut sink = |message: &Message| {
                sent.push(*message);
                true
            };
            self.ioapic.write(0, index, &mut sink);
            self.ioapic.write(0x10, value, &mut sink);
        }

        fn select_and_read(&mut self, index: u32) -> u32 {
            self.ioapic.write(0, index, &mut |_| false);
            self.ioapic.read(0x10)
        }

        fn set(&mut self, pin: u8, level: bool) -> usize {
            let before = self.sent.len();
            let sent = &mut self.sent;
            self.ioapic.set_irq(pin, level, &mut |message| {
                sent.push(*message);
                true
            });
            self.sent.len() - before
        }

        fn eoi(&mut self, vector: u8) -> usize {
            let before = self.sent.len();
            let sent = &mut self.sent;
            self.ioapic.eoi(vector, &mut |message| {
                sent.push(*message);
                true
            });
            self.sent.len() - before
        }
    }

    #[test]
    fn registers() {
        let mut bench = Bench::new();
        bench.select_and_write(0, 0xffff_ffff);
        assert_eq!(bench.select_and_read(0), 0x0f00_0000);
        assert_eq!(bench.select_and_read(1), VERSION);
        bench.select_and_write(0x3f, 0xffff_ffff);
        bench.select_and_write(0x3e, 0xffff_ffff);
        assert_eq!(bench.select_and_read(0x3f), 0xff00_0000);
        assert_eq!(bench.select_and_read(0x3e), 0x0001_afff);
        assert_eq!(bench.select_and_read(0x40), u32::MAX);
        assert_eq!(bench.select_and_read(0x03), u32::MAX);
        assert_eq!(bench.ioapic.offset(0xfec0_0010), Some(0x10));
        assert_eq!(bench.ioapic.offset(0xfec0_0100), None);
        assert_eq!(bench.ioapic.offset(0xfebf_ffff), None);
    }

    #[test]
    fn an_edge_is_one_message() {
        let mut bench = Bench::new();
        assert_eq!(bench.set(1, true), 0);
        bench.select_and_write(0x13, 0x0300_0000);
        bench.select_and_write(0x12, 0x0000_0031);
        assert!(bench.sent.is_empty());
        assert_eq!((bench.set(1, true), bench.set(1, false)), (0, 0));
        assert_eq!((bench.set(1, true), bench.set(1, true)), (1, 0));
        let message = bench.sent[0];
        assert_eq!((message.dest, message.vector), (3, 0x31));
        assert!(!message.level && !message.logical);
        assert_eq!(bench.eoi(0x31), 0);
    }

    #[test]
    fn a_level_is_sent_again_after_its_end() {
        let mut bench = Bench::new();
        bench.select_and_write(0x18, 0x0000_8041);
        assert_eq!((bench.set(4, true), bench.set(4, true)), (1, 0));
        assert_eq!(bench.select_and_read(0x18), 0x0000_c041);
        assert_eq!(bench.eoi(0x40), 0);
        assert_eq!(bench.eoi(0x41), 1);
        assert_eq!((bench.set(4, false), bench.eoi(0x41)), (0, 0));
        assert_eq!(bench.select_and_read(0x18), 0x0000_8041);
    }

    #[test]
    fn unmasking_sends_what_is_requested() {
        let mut bench = Bench::new();
        bench.select_and_write(0x18, 0x0001_8041);
        assert_eq!(bench.set(4, true), 0);
        bench.select_and_write(0x18, 0x0000_8041);
        assert_eq!(bench.sent.len(), 1);
        // Going to edge and back clears the remote IRR.
        bench.select_and_write(0x18, 0x0001_0041);
        bench.select_and_write(0x18, 0x0000_8041);
        assert_eq!(bench.sent.len(), 2);
    }

    #[test]
    fn what_nobody_takes_is_not_in_flight() {
        let mut bench = Bench::new();
        bench.select_and_write(0x18, 0x0000_8041);
        bench.ioapic.set_irq(4, true, &mut |_| false);
        assert_eq!(bench.select_and_read(0x18), 0x0000_8041);
        assert_eq!(bench.set(4, true), 1);
    }

    #[test]
    fn the_end_of_an_interrupt_serves_all_pins_of_its_vector() {
        let mut bench = Bench::new();
        bench.select_and_write(0x18, 0x0000_8041);
        bench.select_and_write(0x1a, 0x0000_8041);
        assert_eq!(bench.set(4, true), 1);
        // Merges with the first one, and the sink says so.
        bench.ioapic.set_irq(5, true, &mut |_| false);
        bench.set(4, false);
        assert_eq!((bench.eoi(0x41), bench.eoi(0x41)), (1, 1));
        bench.set(5, false);
        assert_eq!(bench.eoi(0x41), 0);
    }

    #[test]
    fn restoring_sends_pending_requests() {
        let mut bench = Bench::new();
        let mut state = bench.ioapic.state();
        state.redirtbl[5] = 0x0000_8050;
        state.redirtbl[6] = 0x0000_c060;
        state.irr = 0xff00_0060;
        let mut vectors = Vec::new();
        bench.ioapic.set_state(&state, &mut |message| {
            vectors.push(message.vector);
            true
        });
        assert_eq!(vectors, [0x50]);
        assert_eq!(bench.ioapic.state().irr, 0x60);
        assert_eq!(bench.eoi(0x60), 1);
    }
}
