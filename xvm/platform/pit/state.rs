// SPDX-License-Identifier: GPL-2.0

//! Saving and restoring the PIT: KVM_GET_PIT2 and KVM_SET_PIT2 (api.rst 4.72, 4.73).

use super::clock;
use super::counter::first_byte;
use super::counter::Byte;
use super::counter::Counter;
use super::counter::Counting;
use super::counter::Mode;
use super::Pit;

/// Flag: the HPET has taken over the interrupts (KVM_PIT_FLAGS_HPET_LEGACY).
const HPET_LEGACY: u32 = 1 << 0;
/// Flag: the speaker's data bit (KVM_PIT_FLAGS_SPEAKER_DATA_ON).
const SPEAKER_DATA_ON: u32 = 1 << 1;

/// Mode of a channel that was never programmed; encodings above 5 are none, and KVM has this one after reset.
const NO_MODE: u8 = 0xff;

/// State of a counter, with the fields of struct kvm_pit_channel_state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelState {
    /// The count; 0 stands for 65536.
    pub count: u32,
    /// The latched count.
    pub latched_count: u16,
    /// Which byte of the latched count is next, as in `read_state`; 0: none is latched.
    pub count_latched: u8,
    /// `status` is latched.
    pub status_latched: u8,
    /// The latched status.
    pub status: u8,
    /// Which byte is read next: 1 low, 2 high, 3 low of a word, 4 high of a word.
    pub read_state: u8,
    /// Which byte is written next.
    pub write_state: u8,
    /// The low byte of a word that is being written.
    pub write_latch: u8,
    /// Access field of the control word.
    pub rw_mode: u8,
    /// Mode.
    pub mode: u8,
    /// The count is BCD.
    pub bcd: u8,
    /// Level of GATE.
    pub gate: u8,
    /// When the count began, in nanoseconds; negative if none was written.
    pub count_load_time: i64,
}

/// State of the PIT, as struct kvm_pit_state2 has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PitState {
    /// The counters.
    pub channels: [ChannelState; 3],
    /// KVM_PIT_FLAGS_*.
    pub flags: u32,
}

fn byte_from_bits(bits: u8) -> Option<Byte> {
    match bits {
        1 => Some(Byte::Low),
        2 => Some(Byte::High),
        3 => Some(Byte::WordLow),
        4 => Some(Byte::WordHigh),
        _ => None,
    }
}

fn byte_to_bits(byte: Byte) -> u8 {
    match byte {
        Byte::Low => 1,
        Byte::High => 2,
        Byte::WordLow => 3,
        Byte::WordHigh => 4,
    }
}

impl Counter {
    fn state(&self, now: u64) -> ChannelState {
        let (latch, latched_count) = self.latched_count.unzip();
        let since = match self.counting {
            Counting::Unloaded => None,
            Counting::Waiting => Some(now),
            Counting::Stopped { ticks } => Some(now.saturating_sub(clock::ns(ticks))),
            Counting::Since { ns } => Some(ns),
        };
        ChannelState {
            count: self.count,
            latched_count: latched_count.unwrap_or(0),
            count_latched: latch.map_or(0, byte_to_bits),
            status_latched: self.latched_status.is_some().into(),
            status: self.latched_status.unwrap_or(0),
            read_state: byte_to_bits(self.next_read),
            write_state: byte_to_bits(self.next_write),
            write_latch: self.written_low,
            rw_mode: self.access,
            mode: self.mode.map_or(NO_MODE, |mode| mode as u8),
            bcd: self.bcd.into(),
            gate: self.gate.into(),
            count_load_time: since.map_or(-1, |ns| i64::try_from(ns).unwrap_or(i64::MAX)),
        }
    }

    /// Restores a counter: whatever it can't be becomes something that it can. One that waits for GATE and one that GATE has
    /// triggered look the same; it waits.
    fn restore(state: &ChannelState, now: u64) -> Counter {
        let access = match state.rw_mode {
            access @ 1..=3 => access,
            _ => 3,
        };
        let mut counter = Counter {
            count: match state.count {
                0 => 0x10000,
                count => count.min(0x10000),
            },
            mode: (state.mode <= 5).then(|| Mode::from_bits(state.mode)),
            bcd: state.bcd != 0,
            access,
            gate: state.gate != 0,
            latched_count: byte_from_bits(state.count_latched)
                .map(|byte| (byte, state.latched_count)),
            latched_status: (state.status_latched != 0).then_some(state.status),
            next_read: byte_from_bits(state.read_state).unwrap_or(first_byte(access)),
            next_write: byte_from_bits(state.write_state).unwrap_or(first_byte(access)),
            written_low: state.write_latch,
            counting: Counting::Unloaded,
        };
        // Another machine's clock may be ahead of this one's.
        if let (Some(mode), Ok(since)) = (counter.mode, u64::try_from(state.count_load_time)) {
            counter.counting = counter.loaded(mode, since.min(now), now);
        }
        counter
    }
}

impl Pit {
    /// Saves it at `now` (nanoseconds).
    pub fn state(&self, now: u64) -> PitState {
        let flag = |set, flag| if set { flag } else { 0 };
        PitState {
            channels: [0, 1, 2].map(|index: usize| self.counters[index].state(now)),
            flags: flag(self.hpet_legacy, HPET_LEGACY) | flag(self.speaker, SPEAKER_DATA_ON),
        }
    }

    /// Restores it at `now`. Interrupts that were due before are not made again, nor ticks made up for. [`Pit::next_edge`] says something new then.
    pub fn set_state(&mut self, state: &PitState, now: u64) {
        for (counter, state) in self.counters.iter_mut().zip(&state.channels) {
            *counter = Counter::restore(state, now);
        }
        self.hpet_legacy = state.flags & HPET_LEGACY != 0;
        self.speaker = state.flags & SPEAKER_DATA_ON != 0;
        self.restart();
        self.consumed = self.counters[0].rises(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Restored at 1000 ns from channel 0 as given, in mode 2 with GATE high.
    fn restored(count: u32, count_load_time: i64) -> Pit {
        let mut pit = Pit::new();
        let mut state = pit.state(0);
        state.channels[0] = ChannelState {
            count,
            mode: 2,
            gate: 1,
            count_load_time,
            ..state.channels[0]
        };
        pit.set_state(&state, 1000);
        pit
    }

    #[test]
    fn counts_are_16_bits_wide() {
        for count in [0, 0x10000, 0x10001, u32::MAX] {
            assert_eq!(restored(count, 0).state(1000).channels[0].count, 0x10000);
        }
    }

    #[test]
    fn a_clock_that_was_ahead_starts_now() {
        let period = clock::ns(1193);
        assert_eq!(restored(1193, 400).next_edge(), Some(400 + period));
        assert_eq!(restored(1193, i64::MAX).next_edge(), Some(1000 + period));
    }

    #[test]
    fn what_was_never_programmed_stays_so() {
        assert_eq!(restored(1193, -1).next_edge(), None);
        let mut pit = Pit::new();
        let state = pit.state(0);
        assert_eq!(state.channels[0].mode, NO_MODE);
        pit.set_state(&state, 0);
        assert_eq!((pit.next_edge(), pit.state(0)), (None, state));
    }

    #[test]
    fn interrupts_that_were_due_are_not_made_again() {
        let mut pit = restored(1193, 0);
        assert!(!pit.fire(1000, false));
        let state = pit.state(1000);
        let later = 10 * clock::ns(1193) + 5;
        pit.set_state(&state, later);
        assert!(!pit.fire(later, false));
        assert_eq!(pit.next_edge(), Some(clock::ns(11 * 1193)));
    }
}
