// SPDX-License-Identifier: GPL-2.0

//! How long a halted vCPU is waited for without giving up the CPU (halt-polling.rst in the kernel's documentation).

/// The first time that is tried, in nanoseconds.
const START: u64 = 10_000;

/// How long one vCPU's next HLT is polled, in nanoseconds: it follows how long its last ones took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HaltPoll(u64);

impl HaltPoll {
    /// How long to poll, of `most` at the most.
    pub fn time(self, most: u64) -> u64 {
        self.0.min(most)
    }

    /// A HLT has lasted `lasted`: where polling for longer would have seen its end, the next one is polled for longer.
    pub fn learn(&mut self, lasted: u64, most: u64) {
        if lasted <= self.time(most) {
            return;
        }
        self.0 = match self.0 {
            time if lasted < most => time.saturating_mul(2).clamp(START, most.max(START)),
            0..=START => 0,
            time => time / 2,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_halts_are_polled_and_long_ones_are_not() {
        let mut poll = HaltPoll::default();
        assert_eq!(poll.time(200_000), 0);
        poll.learn(30_000, 200_000);
        assert_eq!(poll.time(200_000), START);
        poll.learn(30_000, 200_000);
        poll.learn(30_000, 200_000);
        assert_eq!(poll.time(200_000), 40_000);
        // It was seen: nothing to learn.
        poll.learn(30_000, 200_000);
        assert_eq!(poll.time(200_000), 40_000);
        for _ in 0..10 {
            poll.learn(1_000_000, 200_000);
        }
        assert_eq!(poll.time(200_000), 0);
    }

    #[test]
    fn the_limit_holds_whenever_it_changes() {
        let mut poll = HaltPoll::default();
        for _ in 0..100 {
            poll.learn(u64::from(u32::MAX) - 1, u64::from(u32::MAX));
        }
        assert_eq!(poll.time(u64::from(u32::MAX)), u64::from(u32::MAX));
        assert_eq!(poll.time(5_000), 5_000);
        assert_eq!(poll.time(0), 0);
        poll.learn(1, 0);
        poll.learn(u64::MAX, 0);
    }
}
