// SPDX-License-Identifier: GPL-2.0

//! Nanoseconds to ticks of the PIT's clock, and back.
//!
//! Always from the time at which a counter was started, never from one tick to the next: errors don't add up.

/// Frequency of the PIT in a PC, in Hz: a twelfth of the colour subcarrier's fourfold.
const FREQUENCY: u64 = 1_193_182;

const NS_PER_SECOND: u64 = 1_000_000_000;

/// Whole ticks in a span of nanoseconds.
pub(super) fn ticks(ns: u64) -> u64 {
    // Seconds apart, so that nothing overflows: the largest span has 2.2e16 ticks.
    let (seconds, rest) = (ns / NS_PER_SECOND, ns % NS_PER_SECOND);
    seconds * FREQUENCY + rest * FREQUENCY / NS_PER_SECOND
}

/// The first nanosecond at which so many ticks are over; the largest number if it is beyond.
pub(super) fn ns(ticks: u64) -> u64 {
    let (seconds, rest) = (ticks / FREQUENCY, ticks % FREQUENCY);
    seconds
        .saturating_mul(NS_PER_SECOND)
        .saturating_add((rest * NS_PER_SECOND).div_ceil(FREQUENCY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ns_is_the_first_of_its_tick() {
        for count in [1, 2, 65536, 1_193_182, 1_193_183, 123_456_789_012] {
            assert_eq!(ticks(ns(count)), count);
            assert_eq!(ticks(ns(count) - 1), count - 1);
        }
        assert_eq!(ns(u64::MAX), u64::MAX);
        assert_eq!(ticks(u64::MAX) / FREQUENCY, u64::MAX / NS_PER_SECOND);
    }
}
