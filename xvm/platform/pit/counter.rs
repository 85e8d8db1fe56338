// SPDX-License-Identifier: GPL-2.0

//! One counter of the 8254 (datasheet 231164).
//!
//! The clock that transfers a written count into the counter is not modelled (0.8 µs), and a count written in the middle of
//! a period takes effect at once, not with the next period.

use super::clock;

/// Counter mode ("mode definitions" in the datasheet).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// 0: OUT rises when the count is over.
    TerminalCount,
    /// 1: OUT is low for the count, from a rise of GATE on.
    OneShot,
    /// 2: OUT is low for the last tick of each period.
    RateGenerator,
    /// 3: OUT is low for the second half of each period.
    SquareWave,
    /// 4: OUT is low for a tick when the count is over.
    SoftwareStrobe,
    /// 5: as 4, from a rise of GATE on.
    HardwareStrobe,
}

impl Mode {
    /// Decodes the field of the control word: modes 2 and 3 have two encodings.
    pub(super) fn from_bits(bits: u8) -> Mode {
        match bits & 7 {
            0 => Mode::TerminalCount,
            1 => Mode::OneShot,
            2 | 6 => Mode::RateGenerator,
            4 => Mode::SoftwareStrobe,
            5 => Mode::HardwareStrobe,
            _ => Mode::SquareWave,
        }
    }

    /// Whether the count starts anew by itself.
    fn periodic(self) -> bool {
        matches!(self, Mode::RateGenerator | Mode::SquareWave)
    }

    /// Whether only a rise of GATE starts it.
    fn triggered(self) -> bool {
        matches!(self, Mode::OneShot | Mode::HardwareStrobe)
    }
}

/// Which byte of the count is read or written next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Byte {
    /// The low byte, always.
    Low,
    /// The high byte, always.
    High,
    /// The low byte, then the high one.
    WordLow,
    /// The high byte, then the low one of the next word.
    WordHigh,
}

/// Whether and since when a counter counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counting {
    /// No count was written since the mode was set ("null count").
    Unloaded,
    /// It waits for GATE to start from the full count.
    Waiting,
    /// GATE has stopped it after so many ticks.
    Stopped {
        /// Ticks.
        ticks: u64,
    },
    /// It was started at this time.
    Since {
        /// Nanoseconds.
        ns: u64,
    },
}

/// A counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counter {
    /// The count that was written: 1 to 65536, also in BCD.
    pub(super) count: u32,
    /// `None`: never programmed.
    pub(super) mode: Option<Mode>,
    pub(super) bcd: bool,
    /// Bits 5:4 of the control word: which bytes are read and written.
    pub(super) access: u8,
    pub(super) gate: bool,
    pub(super) counting: Counting,
    pub(super) latched_count: Option<(Byte, u16)>,
    pub(super) latched_status: Option<u8>,
    pub(super) next_read: Byte,
    pub(super) next_write: Byte,
    pub(super) written_low: u8,
}

impl Counter {
    pub(super) const fn new(gate: bool) -> Self {
        Self {
            count: 0x10000,
            mode: None,
            bcd: false,
            access: 3,
            gate,
            counting: Counting::Unloaded,
            latched_count: None,
            latched_status: None,
            next_read: Byte::WordLow,
            next_write: Byte::WordLow,
            written_low: 0,
        }
    }

    /// A control word selects mode and format; the counter then waits for a count.
    pub(super) fn program(&mut self, access: u8, mode: u8, bcd: bool) {
        *self = Self {
            count: self.count,
            mode: Some(Mode::from_bits(mode)),
            bcd,
            access,
            next_read: first_byte(access),
            next_write: first_byte(access),
            ..Self::new(self.gate)
        };
    }

    /// A byte is written. `true` if the counter has changed its course.
    pub(super) fn write(&mut self, value: u8, now: u64) -> bool {
        match self.next_write {
            Byte::Low => self.load(value.into(), now),
            Byte::High => self.load(u16::from(value) << 8, now),
            Byte::WordLow => {
                self.written_low = value;
                self.next_write = Byte::WordHigh;
                // "Writing the first byte disables counting" in mode 0.
                let stops = self.mode == Some(Mode::TerminalCount);
                if stops {
                    self.counting = Counting::Unloaded;
                }
                return stops;
            }
            Byte::WordHigh => {
                self.next_write = Byte::WordLow;
                self.load(u16::from_le_bytes([self.written_low, value]), now);
            }
        }
        true
    }

    fn load(&mut self, written: u16, now: u64) {
        self.count = match (written, self.bcd) {
            (0, _) => self.modulus(),
            (_, false) => written.into(),
            (_, true) => from_bcd(written),
        };
        let Some(mode) = self.mode else { return };
        self.counting = match self.counting {
            // A trigger that came before goes on; the count is for the next one.
            Counting::Since { .. } if mode.triggered() => self.counting,
            _ => self.loaded(mode, now, now),
        };
    }

    /// What a counter does that was loaded at `since`, if neither a trigger nor GATE has come since.
    pub(super) fn loaded(&self, mode: Mode, since: u64, now: u64) -> Counting {
        if mode.triggered() {
            Counting::Waiting
        } else if self.gate {
            Counting::Since { ns: since }
        } else if mode.periodic() {
            Counting::Waiting
        } else {
            Counting::Stopped {
                ticks: clock::ticks(now.saturating_sub(since)),
            }
        }
    }

    /// The level of GATE.
    pub(super) fn set_gate(&mut self, gate: bool, now: u64) {
        if self.gate == gate {
            return;
        }
        self.gate = gate;
        let Some(mode) = self.mode else { return };
        self.counting = match (self.counting, gate) {
            (Counting::Unloaded, _) => Counting::Unloaded,
            (Counting::Stopped { ticks }, true) => Counting::Since {
                ns: now.saturating_sub(clock::ns(ticks)),
            },
            (_, true) => Counting::Since { ns: now },
            (counting, false) if mode.triggered() => counting,
            (Counting::Since { .. }, false) if mode.periodic() => Counting::Waiting,
            (Counting::Since { ns }, false) => Counting::Stopped {
                ticks: clock::ticks(now.saturating_sub(ns)),
            },
            (counting, false) => counting,
        };
    }

    /// Ticks since it was started.
    fn elapsed(&self, now: u64) -> Option<u64> {
        match self.counting {
            Counting::Unloaded | Counting::Waiting => None,
            Counting::Stopped { ticks } => Some(ticks),
            Counting::Since { ns } => Some(clock::ticks(now.saturating_sub(ns))),
        }
    }

    /// How many values the counter has.
    fn modulus(&self) -> u32 {
        if self.bcd {
            10_000
        } else {
            0x10000
        }
    }

    /// Ticks from one start to the next in the periodic modes, where a count of 1 is illegal.
    fn period(&self) -> u64 {
        u64::from(self.count.max(2))
    }

    /// What a read of the counter would show.
    fn current(&self, now: u64) -> u16 {
        let elapsed = self.elapsed(now).unwrap_or(0);
        let count = u64::from(self.count.max(1));
        // A count of 10000 or 65536 shows as 0.
        let wrap = |left: u64| {
            if self.bcd {
                left % 10_000
            } else {
                left % 0x10000
            }
        };
        let left = match self.mode {
            // It goes down by two, twice a period.
            Some(Mode::SquareWave) => (count - 2 * elapsed % self.period() % count) & !1,
            Some(Mode::RateGenerator) => count - elapsed % self.period() % count,
            _ => count + u64::from(self.modulus()) - wrap(elapsed),
        };
        let left = wrap(left) as u16;
        if self.bcd {
            to_bcd(left)
        } else {
            left
        }
    }

    /// The OUT pin.
    pub(super) fn output(&self, now: u64) -> bool {
        let Some(mode) = self.mode else { return true };
        let count = u64::from(self.count);
        match (mode, self.elapsed(now)) {
            (mode, None) => mode != Mode::TerminalCount,
            (Mode::TerminalCount | Mode::OneShot, Some(elapsed)) => elapsed >= count,
            (Mode::RateGenerator, Some(elapsed)) => elapsed % self.period() != self.period() - 1,
            (Mode::SquareWave, Some(elapsed)) => {
                elapsed % self.period() < self.period().div_ceil(2)
            }
            (Mode::SoftwareStrobe | Mode::HardwareStrobe, Some(elapsed)) => elapsed != count,
        }
    }

    /// How often OUT has risen since the counter was started.
    pub(super) fn rises(&self, now: u64) -> u64 {
        let count = u64::from(self.count);
        match (self.mode, self.elapsed(now)) {
            (None, _) | (_, None) => 0,
            (Some(Mode::RateGenerator | Mode::SquareWave), Some(elapsed)) => {
                elapsed / self.period()
            }
            (Some(Mode::TerminalCount | Mode::OneShot), Some(elapsed)) => (elapsed >= count).into(),
            (Some(Mode::SoftwareStrobe | Mode::HardwareStrobe), Some(elapsed)) => {
                (elapsed > count).into()
            }
        }
    }

    /// When OUT rises after it has risen `past` times since the start. In the periodic modes, rises that follow within
    /// `apart` ticks are passed over.
    pub(super) fn next_rise(&self, past: u64, apart: u64) -> Option<u64> {
        let Counting::Since { ns: start } = self.counting else {
            return None;
        };
        let count = u64::from(self.count);
        let ticks = match self.mode? {
            Mode::RateGenerator | Mode::SquareWave => past
                .saturating_add(self.merged(apart))
                .saturating_mul(self.period()),
            _ if past > 0 => return None,
            Mode::TerminalCount | Mode::OneShot => count,
            Mode::SoftwareStrobe | Mode::HardwareStrobe => count + 1,
        };
        Some(start.saturating_add(clock::ns(ticks)))
    }

    /// How many rises go as one, where they are to be `apart` ticks apart at least.
    pub(super) fn merged(&self, apart: u64) -> u64 {
        match self.mode {
            Some(mode) if mode.periodic() => apart.div_ceil(self.period()).max(1),
            _ => 1,
        }
    }

    /// Latches the count, unless one is latched.
    pub(super) fn latch_count(&mut self, now: u64) {
        if self.latched_count.is_none() {
            self.latched_count = Some((first_byte(self.access), self.current(now)));
        }
    }

    /// Latches the status, unless one is latched.
    pub(super) fn latch_status(&mut self, now: u64) {
        if self.latched_status.is_none() {
            self.latched_status = Some(self.status(now));
        }
    }

    /// The status byte of the read-back command.
    fn status(&self, now: u64) -> u8 {
        (u8::from(self.output(now)) << 7)
            | (u8::from(self.counting == Counting::Unloaded) << 6)
            | ((self.access & 3) << 4)
            | (self.mode.map_or(0, |mode| mode as u8) << 1)
            | u8::from(self.bcd)
    }

    /// A byte is read: of the latched status, the latched count or the count.
    pub(super) fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        if let Some((byte, count)) = self.latched_count.take() {
            let [low, high] = count.to_le_bytes();
            return match byte {
                Byte::Low => low,
                Byte::High | Byte::WordHigh => high,
                Byte::WordLow => {
                    self.latched_count = Some((Byte::High, count));
                    low
                }
            };
        }
        let [low, high] = self.current(now).to_le_bytes();
        let (value, next) = match self.next_read {
            Byte::Low => (low, Byte::Low),
            Byte::High => (high, Byte::High),
            Byte::WordLow => (low, Byte::WordHigh),
            Byte::WordHigh => (high, Byte::WordLow),
        };
        self.next_read = next;
        value
    }
}

/// The first byte to read or write, by the access field.
pub(super) fn first_byte(access: u8) -> Byte {
    match access & 3 {
        1 => Byte::Low,
        2 => Byte::High,
        _ => Byte::WordLow,
    }
}

/// The number that four decimal digits make. Digits above 9 are undefined; they count as what they are.
fn from_bcd(digits: u16) -> u32 {
    let digit = |place: u32| u32::from((digits >> (4 * place)) & 0xf);
    digit(0) + 10 * digit(1) + 100 * digit(2) + 1000 * digit(3)
}

/// The four decimal digits of a number below 10000.
fn to_bcd(number: u16) -> u16 {
    let digit = |divisor| number / divisor % 10;
    (digit(1000) << 12) | (digit(100) << 8) | (digit(10) << 4) | digit(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In binary, both bytes, with GATE high and started at 0.
    fn started(mode: u8, count: u16) -> Counter {
        let mut counter = Counter::new(true);
        counter.program(3, mode, false);
        for byte in count.to_le_bytes() {
            counter.write(byte, 0);
        }
        counter
    }

    #[test]
    fn outputs_by_mode() {
        // OUT in the ticks from 0 on, and when it rises first.
        for (mode, count, output, rise) in [
            (0, 3, [false, false, false, true, true, true, true], Some(3)),
            (2, 3, [true, true, false, true, true, false, true], Some(3)),
            (3, 4, [true, true, false, false, true, true, false], Some(4)),
            (3, 3, [true, true, false, true, true, false, true], Some(3)),
            (4, 3, [true, true, true, false, true, true, true], Some(4)),
            (1, 3, [true; 7], None),
            (5, 3, [true; 7], None),
        ] {
            let counter = started(mode, count);
            for (tick, level) in (0..).zip(output) {
                assert_eq!(
                    counter.output(clock::ns(tick)),
                    level,
                    "mode {mode} tick {tick}"
                );
            }
            assert_eq!(counter.next_rise(0, 1), rise.map(clock::ns), "mode {mode}");
        }
    }

    #[test]
    fn gate_triggers_modes_1_and_5() {
        for (mode, output) in [(1, [false, false, true]), (5, [true, true, false])] {
            let mut counter = started(mode, 2);
            counter.set_gate(false, 3);
            counter.set_gate(true, 5);
            let seen = [0, 1, 2].map(|tick| counter.output(5 + clock::ns(tick)));
            assert_eq!(seen, output, "mode {mode}");
        }
    }

    #[test]
    fn gate_stops_the_count() {
        let mut counter = started(0, 100);
        counter.set_gate(false, clock::ns(40));
        assert_eq!(counter.current(clock::ns(1000)), 60);
        assert_eq!(counter.next_rise(0, 1), None);
        counter.set_gate(true, clock::ns(1000));
        assert_eq!(counter.current(clock::ns(1010)), 50);
        let mut counter = started(2, 100);
        counter.set_gate(false, clock::ns(40));
        counter.set_gate(true, clock::ns(1000));
        assert_eq!(counter.current(clock::ns(1010)), 90);
    }

    #[test]
    fn binary_coded_decimal() {
        let mut counter = Counter::new(true);
        counter.program(3, 2, true);
        for byte in 0x1000_u16.to_le_bytes() {
            counter.write(byte, 0);
        }
        assert_eq!(counter.count, 1000);
        assert_eq!(counter.current(clock::ns(1)), 0x0999);
        counter.program(1, 0, true);
        counter.write(0, 0);
        assert_eq!(
            (counter.count, counter.current(clock::ns(1))),
            (10_000, 0x9999)
        );
    }

    #[test]
    fn latches_hold_until_they_are_read() {
        let mut counter = started(0, 0x1234);
        counter.latch_count(clock::ns(4));
        counter.latch_count(clock::ns(8));
        counter.latch_status(clock::ns(8));
        let later = clock::ns(0x34);
        let read = [(); 5].map(|()| counter.read(later));
        assert_eq!(read, [0x30, 0x30, 0x12, 0x00, 0x12]);
    }
}
