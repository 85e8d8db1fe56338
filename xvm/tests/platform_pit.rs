// SPDX-License-Identifier: GPL-2.0

//! Properties of the PIT: no drift, counters that go down, restored state, hostile accesses.

use proptest::prelude::*;
use xvm_logic::platform::pit::ChannelState;
use xvm_logic::platform::pit::Pit;
use xvm_logic::platform::pit::PitState;

const FREQUENCY: u128 = 1_193_182;

/// When so many ticks are over: the first whole nanosecond.
fn ns(ticks: u128) -> u64 {
    (ticks * 1_000_000_000).div_ceil(FREQUENCY) as u64
}

fn program(pit: &mut Pit, control: u8, count: u16, now: u64) {
    pit.write(0x43, control, now);
    for byte in count.to_le_bytes() {
        pit.write(0x40 + u16::from(control >> 6), byte, now);
    }
}

/// Reads a counter by way of the latch.
fn latched(pit: &mut Pit, counter: u8, now: u64) -> u16 {
    pit.write(0x43, counter << 6, now);
    let port = 0x40 + u16::from(counter);
    u16::from_le_bytes([pit.read(port, now), pit.read(port, now)])
}

/// A million periods of a millisecond, taken a bit late each: the last one comes when it should.
#[test]
fn a_million_periods_do_not_drift() {
    const COUNT: u16 = 1193;
    let start = 123_456_789;
    let mut pit = Pit::new();
    program(&mut pit, 0x34, COUNT, start);
    for period in 1..=1_000_000 {
        let edge = pit.next_edge().unwrap();
        assert_eq!(edge, start + ns(period * u128::from(COUNT)));
        assert!(!pit.fire(edge - 1, false));
        assert!(pit.fire(edge + (period % 900_000) as u64, false));
        assert!(!pit.ended());
    }
}

fn channel() -> impl Strategy<Value = ChannelState> {
    (any::<[u8; 10]>(), any::<u32>(), any::<u16>(), any::<i64>()).prop_map(
        |(bytes, count, latched_count, count_load_time)| ChannelState {
            count,
            latched_count,
            count_latched: bytes[0] & 7,
            status_latched: bytes[1] & 1,
            status: bytes[2],
            read_state: bytes[3] & 7,
            write_state: bytes[4] & 7,
            write_latch: bytes[5],
            rw_mode: bytes[6] & 7,
            mode: bytes[7] & 7,
            bcd: bytes[8] & 1,
            gate: bytes[9] & 1,
            count_load_time,
        },
    )
}

/// A port, a value to write to it, and nanoseconds that pass before.
fn access() -> impl Strategy<Value = (u16, u8, u64)> {
    let port = prop_oneof![0x40u16..0x44, Just(0x61)];
    let ns = prop_oneof![0u64..100_000, 0u64..1 << 55];
    (port, any::<u8>(), ns)
}

proptest! {
    /// Between reloads a counter goes down by one a tick, and starts again where its mode says so.
    #[test]
    fn counters_go_down(
        mode in prop::sample::select(vec![0u8, 2, 4]),
        count in 2u16..,
        start in 0u64..1 << 50,
        mut ticks in prop::collection::vec(0u64..200_000, 1..30),
    ) {
        let mut pit = Pit::new();
        program(&mut pit, 0x30 | (mode << 1), count, start);
        ticks.sort();
        for tick in ticks {
            let expected = match mode {
                2 => count - (tick % u64::from(count)) as u16,
                _ => count.wrapping_sub(tick as u16),
            };
            prop_assert_eq!(latched(&mut pit, 0, start + ns(tick.into())), expected);
        }
    }

    /// A square wave counts down by two in each half of its period, and OUT tells the halves apart.
    #[test]
    fn square_waves(half in 1u16..0x8000, start in 0u64..1 << 50, tick in 0u64..200_000) {
        let mut pit = Pit::new();
        pit.write(0x61, 1, start);
        program(&mut pit, 0xb6, 2 * half, start);
        let now = start + ns(tick.into());
        let (place, half) = (tick % u64::from(half), u64::from(half));
        prop_assert_eq!(u64::from(latched(&mut pit, 2, now)), 2 * (half - place));
        prop_assert_eq!(pit.read(0x61, now) & 0x20 != 0, tick / half % 2 == 0);
    }

    /// `next_edge` and `fire` agree, whatever is on the ports and whenever it is looked at, and what is saved can be restored
    /// without a change.
    #[test]
    fn hostile_accesses(
        state in prop::option::of([channel(), channel(), channel()]),
        flags in any::<u32>(),
        accesses in prop::collection::vec(access(), 1..100),
    ) {
        let mut pit = Pit::new();
        let mut now = 0;
        if let Some(channels) = state {
            pit.set_state(&PitState { channels, flags }, now);
        }
        for (port, value, ns) in accesses {
            now += ns;
            pit.write(port, value, now);
            pit.read(port, now);
            let due = pit.next_edge().is_some_and(|edge| edge <= now);
            let fired = pit.fire(now, false);
            prop_assert!(fired || !due);
            prop_assert!(!pit.fire(now, false));
            pit.forget_ticks();
            prop_assert!(pit.next_edge().is_none_or(|edge| edge > now));
        }
        let mut other = Pit::new();
        other.set_state(&pit.state(now), now);
        let saved = other.state(now);
        let mut again = Pit::new();
        again.set_state(&saved, now);
        prop_assert_eq!(again.state(now), saved);
        prop_assert_eq!(again.next_edge(), other.next_edge());
    }
}
