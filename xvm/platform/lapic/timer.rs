// SPDX-License-Identifier: GPL-2.0

//! The timer of the local APIC (Intel SDM vol. 3, 12.5.4).
//!
//! It counts cycles of the bus, of 1 GHz unless the VMM wants another rate. The timer is a point in time, not a count: what the
//! current-count register shows is worked out when it is read, and a host timer is needed only while an interrupt can come
//! of it. Periods are counted from the previous one, not from when the host got round to it, so they don't drift.

use super::regs::Divide;
use super::regs::TimerMode;

/// Shortest period, in nanoseconds: a guest can't keep the host busy with interrupts of its own making. A one-shot timer
/// needs no such limit, since the guest must have run to start it again.
const MIN_PERIOD: u64 = 200_000;

/// When the host must call [`super::Lapic::timer_expired`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// Not at all.
    Off,
    /// When the monotonic clock reaches this.
    At {
        /// Nanoseconds.
        ns: u64,
    },
    /// When the guest's time-stamp counter reaches this.
    AtTsc {
        /// Guest TSC.
        tsc: u64,
    },
}

/// The countdown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Countdown {
    /// Nanoseconds in a cycle of the bus, the tick before the divider.
    cycle: u64,
    initial: u32,
    divide: Divide,
    /// When the count reaches 0, in nanoseconds; `None` when it stands at 0.
    expiry: Option<u64>,
    /// IA32_TSC_DEADLINE; 0 is disarmed.
    tsc_deadline: u64,
}

impl Countdown {
    /// As after reset.
    pub(super) const fn new(cycle: u64) -> Self {
        Self {
            cycle,
            initial: 0,
            divide: Divide(0),
            expiry: None,
            tsc_deadline: 0,
        }
    }

    /// As after reset, at the same rate.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.cycle);
    }

    /// Nanoseconds from one count to the next.
    fn tick(&self) -> u64 {
        self.divide.ticks().saturating_mul(self.cycle).max(1)
    }

    /// Initial-count register.
    pub(super) fn initial(&self) -> u32 {
        self.initial
    }

    /// Divide configuration register.
    pub(super) fn divide(&self) -> u32 {
        self.divide.0
    }

    /// IA32_TSC_DEADLINE.
    pub(super) fn tsc_deadline(&self) -> u64 {
        self.tsc_deadline
    }

    /// Time from one expiry of a periodic timer to the next.
    fn period(&self) -> u64 {
        u64::from(self.initial)
            .saturating_mul(self.tick())
            .max(MIN_PERIOD)
    }

    /// Current-count register.
    pub(super) fn current(&self, mode: TimerMode, now: u64) -> u32 {
        let Some(expiry) = self.expiry else { return 0 };
        let left = match expiry.checked_sub(now) {
            Some(left) => left,
            // Due, but nobody has looked: the count has gone on.
            None if mode == TimerMode::Periodic => self.period() - (now - expiry) % self.period(),
            None => 0,
        };
        let count = left.div_ceil(self.tick());
        u32::try_from(count).map_or(self.initial, |count| count.min(self.initial))
    }

    /// A write to the initial-count register: starts the countdown, or stops it with 0. Ignored in TSC-deadline mode
    /// (12.5.4.1).
    pub(super) fn start(&mut self, mode: TimerMode, initial: u32, now: u64) {
        if mode.counts() {
            self.initial = initial;
            self.resume(mode, initial, now);
        }
    }

    /// Goes on from a count that was read from the current-count register.
    fn resume(&mut self, mode: TimerMode, count: u32, now: u64) {
        let left = u64::from(count).saturating_mul(self.tick());
        self.expiry = match mode {
            _ if count == 0 => None,
            TimerMode::OneShot => Some(now.saturating_add(left)),
            TimerMode::Periodic if count == self.initial => Some(now.saturating_add(self.period())),
            TimerMode::Periodic => Some(now.saturating_add(left)),
            TimerMode::TscDeadline | TimerMode::Reserved => None,
        };
    }

    /// A write to the divide configuration register: the count goes on at the new rate.
    pub(super) fn set_divide(&mut self, mode: TimerMode, divide: u32, now: u64) {
        let count = self.current(mode, now);
        self.divide = Divide(divide);
        self.resume(mode, count, now);
    }

    /// A write to IA32_TSC_DEADLINE; 0 disarms (12.5.4.1).
    pub(super) fn set_tsc_deadline(&mut self, deadline: u64) {
        self.tsc_deadline = deadline;
    }

    /// The mode has changed: going into or out of TSC-deadline mode disarms (12.5.4.1).
    pub(super) fn change_mode(&mut self, old: TimerMode, new: TimerMode) {
        if old != new && !(old.counts() && new.counts()) {
            self.expiry = None;
            self.tsc_deadline = 0;
        }
    }

    /// Takes an expiry that is due. A periodic timer that is late by whole periods skips them: their interrupts would
    /// have merged in the IRR anyway.
    pub(super) fn expire(&mut self, mode: TimerMode, now: u64, tsc: u64) -> bool {
        if mode == TimerMode::TscDeadline {
            let due = self.tsc_deadline != 0 && tsc >= self.tsc_deadline;
            if due {
                self.tsc_deadline = 0;
            }
            return due;
        }
        let Some(expiry) = self.expiry else {
            return false;
        };
        let Some(late) = now.checked_sub(expiry) else {
            return false;
        };
        self.expiry = match mode {
            TimerMode::Periodic => {
                let period = self.period();
                Some(now.saturating_add(period - late % period))
            }
            _ => None,
        };
        true
    }

    /// What the host timer has to wait for.
    pub(super) fn next(&self, mode: TimerMode) -> Timer {
        match (mode, self.expiry) {
            (TimerMode::TscDeadline, _) if self.tsc_deadline != 0 => Timer::AtTsc {
                tsc: self.tsc_deadline,
            },
            (TimerMode::OneShot | TimerMode::Periodic, Some(ns)) => Timer::At { ns },
            _ => Timer::Off,
        }
    }

    /// Restores the registers that a VMM has saved, or has made up.
    ///
    /// A current count of 0 is no count, as in the state of a VMM that doesn't know it. A lost interrupt would hang the guest
    /// and one too many doesn't: a one-shot timer expires at once, a periodic one starts with a whole period (as in KVM).
    pub(super) fn restore(
        &mut self,
        mode: TimerMode,
        initial: u32,
        divide: u32,
        current: u32,
        now: u64,
    ) {
        self.initial = initial;
        self.divide = Divide(divide);
        match (mode, current) {
            (TimerMode::Periodic, 0) => self.resume(mode, initial, now),
            (TimerMode::OneShot, 0) if initial != 0 => self.expiry = Some(now),
            _ => self.resume(mode, current.min(initial), now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_shot_counts_down_and_stops() {
        let mut timer = Countdown::new(1);
        timer.start(TimerMode::OneShot, 1000, 10);
        assert_eq!(timer.next(TimerMode::OneShot), Timer::At { ns: 2010 });
        assert_eq!(timer.current(TimerMode::OneShot, 10), 1000);
        assert_eq!(timer.current(TimerMode::OneShot, 2009), 1);
        assert!(!timer.expire(TimerMode::OneShot, 2009, 0));
        assert!(timer.expire(TimerMode::OneShot, 2010, 0));
        assert!(!timer.expire(TimerMode::OneShot, 2010, 0));
        assert_eq!(timer.next(TimerMode::OneShot), Timer::Off);
        assert_eq!(timer.current(TimerMode::OneShot, 3000), 0);
    }

    #[test]
    fn periods_do_not_drift_when_the_host_is_late() {
        let mut timer = Countdown::new(1);
        timer.start(TimerMode::Periodic, 500_000, 0);
        for (now, next) in [(1_000_007, 2_000_000), (5_900_000, 6_000_000)] {
            assert!(timer.expire(TimerMode::Periodic, now, 0));
            assert_eq!(timer.next(TimerMode::Periodic), Timer::At { ns: next });
        }
    }

    #[test]
    fn time_does_not_overflow() {
        let mut timer = Countdown::new(1);
        timer.set_divide(TimerMode::Periodic, 0xa, u64::MAX);
        timer.start(TimerMode::Periodic, u32::MAX, u64::MAX);
        assert_eq!(timer.next(TimerMode::Periodic), Timer::At { ns: u64::MAX });
        assert!(timer.expire(TimerMode::Periodic, u64::MAX, 0));
        assert_eq!(timer.current(TimerMode::Periodic, u64::MAX), 0);
    }

    #[test]
    fn short_periods_are_stretched() {
        let mut timer = Countdown::new(1);
        timer.start(TimerMode::Periodic, 1, 0);
        assert_eq!(
            timer.next(TimerMode::Periodic),
            Timer::At { ns: MIN_PERIOD }
        );
        assert_eq!(timer.current(TimerMode::Periodic, 0), 1);
    }

    #[test]
    fn a_slower_bus_makes_longer_ticks() {
        let mut timer = Countdown::new(40);
        timer.set_divide(TimerMode::OneShot, 0x3, 0);
        timer.start(TimerMode::OneShot, 1000, 0);
        assert_eq!(timer.next(TimerMode::OneShot), Timer::At { ns: 640_000 });
        assert_eq!(timer.current(TimerMode::OneShot, 320_000), 500);
        timer.reset();
        timer.start(TimerMode::OneShot, 1000, 0);
        assert_eq!(timer.next(TimerMode::OneShot), Timer::At { ns: 80_000 });
    }

    #[test]
    fn the_count_survives_a_new_divider() {
        let mut timer = Countdown::new(1);
        timer.start(TimerMode::OneShot, 1000, 0);
        timer.set_divide(TimerMode::OneShot, 0xb, 1000);
        assert_eq!(timer.current(TimerMode::OneShot, 1000), 500);
        assert_eq!(timer.next(TimerMode::OneShot), Timer::At { ns: 1500 });
    }
}
