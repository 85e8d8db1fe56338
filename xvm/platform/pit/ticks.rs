// SPDX-License-Identifier: GPL-2.0

//! Which ticks become interrupts (api.rst, KVM_REINJECT_CONTROL).
//!
//! A guest that counts ticks to tell the time must get every one. As long as an interrupt of the PIT waits for its end, ticks are kept,
//! and each follows the end of the one before. While the line is masked no more are kept than were already: a guest that doesn't use the
//! PIT isn't to be flooded when it begins to.

/// Ticks on their way to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticks {
    /// Ticks are kept; else they are interrupts as they come.
    kept: bool,
    /// An interrupt was made whose end hasn't come.
    in_flight: bool,
    /// Ticks that wait for that end.
    waiting: u32,
}

impl Ticks {
    pub(super) const fn new() -> Self {
        Self {
            kept: true,
            in_flight: false,
            waiting: 0,
        }
    }

    /// Whether ticks are kept.
    pub(super) fn are_kept(&self) -> bool {
        self.kept
    }

    pub(super) fn keep(&mut self, kept: bool) {
        if self.kept != kept {
            self.forget();
            self.kept = kept;
        }
    }

    /// Forgets what waits; no interrupt has to end before the next.
    pub(super) fn forget(&mut self) {
        self.in_flight = false;
        self.waiting = 0;
    }

    /// Waits for no end before the next tick.
    pub(super) fn give_up(&mut self) {
        self.in_flight = false;
    }

    /// So many ticks have come, on a line that is `masked` or not. Whether an interrupt is to be made.
    pub(super) fn tick(&mut self, count: u64, masked: bool) -> bool {
        if !self.kept || count == 0 {
            return count != 0;
        }
        let most = match masked {
            true => u32::from(!self.in_flight && self.waiting == 0),
            false => u32::MAX,
        };
        let count = u32::try_from(count).unwrap_or(u32::MAX).min(most);
        self.waiting = self.waiting.saturating_add(count);
        self.next()
    }

    /// The interrupt has ended. Whether another is to be made.
    pub(super) fn end(&mut self) -> bool {
        self.in_flight = false;
        self.next()
    }

    /// Nobody took the interrupt that was to be made: it waits again.
    pub(super) fn refused(&mut self) {
        if self.in_flight {
            self.in_flight = false;
            self.waiting = self.waiting.saturating_add(1);
        }
    }

    fn next(&mut self) -> bool {
        if self.in_flight || self.waiting == 0 {
            return false;
        }
        self.waiting -= 1;
        self.in_flight = true;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tick_follows_an_end() {
        let mut ticks = Ticks::new();
        assert!(!ticks.end());
        assert!(!ticks.tick(0, false));
        assert!(ticks.tick(3, false));
        assert!(!ticks.tick(1, false));
        assert_eq!([(); 4].map(|()| ticks.end()), [true, true, true, false]);
        assert!(ticks.tick(1, false));
        assert!(!ticks.end());
    }

    #[test]
    fn without_keeping_each_is_an_interrupt() {
        let mut ticks = Ticks::new();
        ticks.keep(false);
        assert!(ticks.tick(5, false));
        assert!(ticks.tick(1, false));
        assert!(!ticks.tick(0, false));
        assert!(!ticks.end());
        // What comes then has nothing to make up for.
        ticks.keep(true);
        assert!(ticks.tick(1, false));
        assert!(!ticks.end());
    }

    #[test]
    fn what_nobody_takes_waits() {
        let mut ticks = Ticks::new();
        assert!(ticks.tick(1, false));
        ticks.refused();
        assert!(ticks.tick(1, false));
        assert!(ticks.end());
        ticks.refused();
        ticks.forget();
        assert!(!ticks.end());
        ticks.refused();
        assert!(!ticks.end());
    }

    #[test]
    fn masked_lines_keep_nothing_more() {
        let mut ticks = Ticks::new();
        assert!(ticks.tick(2, false));
        assert!(!ticks.tick(1000, true));
        assert_eq!([(); 2].map(|()| ticks.end()), [true, false]);
        assert!(ticks.tick(1000, true));
        assert!(!ticks.tick(1000, true));
        ticks.give_up();
        assert!(ticks.tick(1000, true));
        ticks.refused();
        assert!(ticks.tick(1000, true));
        assert!(!ticks.end());
    }

    #[test]
    fn ticks_without_number() {
        let mut ticks = Ticks::new();
        assert!(ticks.tick(u64::MAX, false));
        assert!(!ticks.tick(u64::MAX, false));
        ticks.refused();
        assert!(ticks.end());
    }
}
