// SPDX-License-Identifier: GPL-2.0

//! The PIT: an 8254 with three counters, and port 0x61, which controls the third (8254 datasheet, 231164; 82371SB
//! datasheet, 290550, for port 0x61).
//!
//! - this file: ports, and the interrupts of counter 0;
//! - [`counter`]: one counter;
//! - [`clock`]: nanoseconds and ticks;
//! - [`ticks`]: which of its rises become interrupts;
//! - [`state`]: what the VMM saves and restores.

mod clock;
mod counter;
mod state;
mod ticks;

use counter::Counter;
use ticks::Ticks;

pub use state::ChannelState;
pub use state::PitState;

/// Ticks that interrupts are apart at least (200 µs): a guest can't keep the host busy with them. The counter itself is not
/// held back; interrupts in between merge.
const MIN_TICKS: u64 = 239;

register! {
    /// Control word, port 0x43.
    struct Control(u8) {
        bcd: bool = 0;
        mode: u8 = 3..1;
        access: u8 = 5..4;
        counter: u8 = 7..6;
    }
}

register! {
    /// Read-back command: a control word for counter 3. The two latch bits are active low.
    struct ReadBack(u8) {
        counters: u8 = 3..1;
        no_status: bool = 4;
        no_count: bool = 5;
    }
}

register! {
    /// Port 0x61, as far as it is writable.
    struct SystemControl(u8) {
        gate: bool = 0;
        speaker: bool = 1;
    }
}

/// The PIT. Counter 0 makes interrupts, counter 1 was for memory refresh, counter 2 for the speaker.
pub struct Pit {
    counters: [Counter; 3],
    /// Rises of counter 0's output that [`Pit::fire`] has consumed since its start.
    consumed: u64,
    ticks: Ticks,
    speaker: bool,
    /// The HPET has taken over the interrupts of counter 0.
    hpet_legacy: bool,
}

impl Pit {
    /// As after power-up: no counter runs, and only the third one's GATE is low.
    pub const fn new() -> Self {
        Self {
            counters: [Counter::new(true), Counter::new(true), Counter::new(false)],
            consumed: 0,
            ticks: Ticks::new(),
            speaker: false,
            hpet_legacy: false,
        }
    }

    /// Reads port 0x40 to 0x43 or 0x61 at `now` (nanoseconds). Port 0x43 can't be read, and others are not its own: 0xff.
    pub fn read(&mut self, port: u16, now: u64) -> u8 {
        match port {
            0x40..=0x42 => match self.counters.get_mut(usize::from(port & 3)) {
                Some(counter) => counter.read(now),
                None => 0xff,
            },
            0x61 => self.system_control(now),
            _ => 0xff,
        }
    }

    /// Writes port 0x40 to 0x43 or 0x61; others are ignored. [`Pit::next_edge`] may say something new then.
    pub fn write(&mut self, port: u16, value: u8, now: u64) {
        match port {
            0x40..=0x42 => self.write_counter(usize::from(port & 3), value, now),
            0x43 => self.write_control(Control(value), now),
            0x61 => {
                let value = SystemControl(value);
                self.speaker = value.speaker();
                self.counters[2].set_gate(value.gate(), now);
            }
            _ => {}
        }
    }

    fn write_counter(&mut self, index: usize, value: u8, now: u64) {
        let Some(counter) = self.counters.get_mut(index) else {
            return;
        };
        if counter.write(value, now) && index == 0 {
            self.restart();
        }
    }

    fn write_control(&mut self, control: Control, now: u64) {
        let index = usize::from(control.counter());
        let Some(counter) = self.counters.get_mut(index) else {
            self.read_back(ReadBack(control.0), now);
            return;
        };
        if control.access() == 0 {
            counter.latch_count(now);
            return;
        }
        counter.program(control.access(), control.mode(), control.bcd());
        if index == 0 {
            self.restart();
        }
    }

    /// Counter 0 takes a new course.
    fn restart(&mut self) {
        self.consumed = 0;
        self.ticks.forget();
    }

    fn read_back(&mut self, command: ReadBack, now: u64) {
        for (index, counter) in self.counters.iter_mut().enumerate() {
            if (command.counters() >> index) & 1 == 0 {
                continue;
            }
            if !command.no_count() {
                counter.latch_count(now);
            }
            if !command.no_status() {
                counter.latch_status(now);
            }
        }
    }

    /// Port 0x61: GATE and OUT of counter 2 in bits 0 and 5, the speaker in bit 1. Bit 4 toggles with memory refresh, every
    /// 15 µs, which old software measures time with.
    fn system_control(&self, now: u64) -> u8 {
        const REFRESH_NS: u64 = 15_085;
        let [_, _, counter] = &self.counters;
        u8::from(counter.gate)
            | (u8::from(self.speaker) << 1)
            | (u8::from(now / REFRESH_NS % 2 != 0) << 4)
            | (u8::from(counter.output(now)) << 5)
    }

    /// When to call [`Pit::fire`], in nanoseconds: at the next rise of counter 0's output, IRQ 0. It may be past; `None` if
    /// there is no next one.
    pub fn next_edge(&self) -> Option<u64> {
        if self.hpet_legacy {
            return None;
        }
        self.counters[0].next_rise(self.consumed, MIN_TICKS)
    }

    /// Consumes the rises that have come until `now`. `true`: pulse IRQ 0. What comes while the guest is at an earlier one waits for
    /// [`Pit::ended`], or merges if it isn't to be made up for, or if IRQ 0 is `masked` wherever it goes.
    pub fn fire(&mut self, now: u64, masked: bool) -> bool {
        let rises = self.counters[0].rises(now);
        let new = rises.saturating_sub(self.consumed);
        self.consumed = rises;
        let ticks = new.div_ceil(self.counters[0].merged(MIN_TICKS));
        !self.hpet_legacy && self.ticks.tick(ticks, masked)
    }

    /// The guest has ended an interrupt of IRQ 0. `true`: pulse it again.
    pub fn ended(&mut self) -> bool {
        self.ticks.end()
    }

    /// IRQ 0 was to be pulsed, and nobody took it as something new.
    pub fn refused(&mut self) {
        self.ticks.refused();
    }

    /// Nobody will tell of the end of an interrupt of IRQ 0 that was made.
    pub fn lost_track(&mut self) {
        self.ticks.give_up();
    }

    /// Forgets ticks that are to be made up for.
    pub fn forget_ticks(&mut self) {
        self.ticks.forget();
    }

    /// Whether ticks are made up for. They are unless the VMM says otherwise.
    pub fn makes_up(&self) -> bool {
        self.ticks.are_kept()
    }

    /// Says whether ticks are made up for.
    pub fn make_up(&mut self, wanted: bool) {
        self.ticks.keep(wanted);
    }
}

impl Default for Pit {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn program(pit: &mut Pit, control: u8, count: u16, now: u64) {
        pit.write(0x43, control, now);
        for byte in count.to_le_bytes() {
            pit.write(0x40 + u16::from(control >> 6), byte, now);
        }
    }

    #[test]
    fn ticks_come_in_time_whenever_they_are_looked_at() {
        let mut pit = Pit::new();
        assert_eq!(pit.next_edge(), None);
        // 100 Hz, as Linux programs it.
        program(&mut pit, 0x34, 11932, 5);
        assert_eq!(pit.next_edge(), Some(5 + 10_000_151));
        assert!(!pit.fire(10 * MS, false));
        assert!(pit.fire(11 * MS, false));
        assert_eq!(pit.next_edge(), Some(5 + 20_000_302));
        // A late look has what was missed wait, and the next one is in time again.
        assert!(!pit.ended());
        assert!(pit.fire(58 * MS, false));
        assert!(!pit.fire(58 * MS, false));
        assert_eq!([(); 4].map(|()| pit.ended()), [true, true, true, false]);
        assert_eq!(pit.next_edge(), Some(5 + 60_000_906));
    }

    #[test]
    fn short_periods_merge() {
        let mut pit = Pit::new();
        program(&mut pit, 0x34, 2, 0);
        assert_eq!(pit.next_edge(), Some(201_143));
        // They merge whether or not ticks are made up for.
        assert!(pit.fire(201_143, false));
        assert!(!pit.ended());
    }

    #[test]
    fn a_new_count_forgets_ticks() {
        let mut pit = Pit::new();
        program(&mut pit, 0x34, 1193, 0);
        assert!(pit.fire(3 * MS, false));
        program(&mut pit, 0x34, 1193, 3 * MS);
        assert!(pit.fire(4 * MS, false));
        assert!(!pit.ended());
        assert!(pit.fire(7 * MS, false));
        let state = pit.state(7 * MS);
        pit.set_state(&state, 7 * MS);
        assert!(!pit.ended());
        pit.make_up(false);
        assert!(!pit.makes_up());
        assert!(pit.fire(9 * MS, false));
        assert!(!pit.ended());
    }

    #[test]
    fn one_shot_fires_once() {
        let mut pit = Pit::new();
        program(&mut pit, 0x38, 1000, 0);
        let edge = pit.next_edge().unwrap();
        assert!(!pit.fire(edge - 1, false));
        assert!(pit.fire(edge, false));
        assert_eq!(pit.next_edge(), None);
        program(&mut pit, 0x38, 1000, edge);
        assert!(pit.next_edge().is_some());
    }

    #[test]
    fn port_61_shows_counter_2() {
        let mut pit = Pit::new();
        assert_eq!(pit.read(0x61, 0) & 0x2f, 0x20);
        program(&mut pit, 0xb0, 1193, 0);
        assert_eq!(pit.read(0x61, MS) & 0x2f, 0x00);
        pit.write(0x61, 0x03, MS);
        assert_eq!(pit.read(0x61, MS) & 0x2f, 0x03);
        assert_eq!(pit.read(0x61, 2 * MS) & 0x2f, 0x23);
        assert_ne!(pit.read(0x61, 0) & 0x10, pit.read(0x61, 15_085) & 0x10);
    }

    #[test]
    fn read_back_latches_several_counters() {
        let mut pit = Pit::new();
        program(&mut pit, 0x34, 0x100, 0);
        program(&mut pit, 0x74, 0x200, 0);
        pit.write(0x43, 0xc6, 0);
        assert_eq!([(); 3].map(|()| pit.read(0x40, MS)), [0xb4, 0x00, 0x01]);
        assert_eq!([(); 3].map(|()| pit.read(0x41, MS)), [0xb4, 0x00, 0x02]);
        pit.write(0x43, 0xb0, 0);
        pit.write(0x43, 0xe8, 0);
        assert_eq!(pit.read(0x42, 0), 0x70);
    }
}
