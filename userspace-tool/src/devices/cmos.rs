//! The CMOS clock (MC146818): the host's time in UTC, read-only, without alarms.

use std::time::{
    Duration,
    SystemTime, //
};

/// Register A: the divider that makes one second of 32768 Hz; bit 7, update in progress, stays
/// clear.
const REGISTER_A: u8 = 0x26;
/// Register B: 24 hours; BCD, as bit 2 is clear.
const REGISTER_B: u8 = 0x02;
/// Register D: the battery is fine.
const REGISTER_D: u8 = 0x80;

/// The clock, and the register that the index port chose.
#[derive(Default)]
pub struct Cmos {
    index: u8,
}

/// A day and time of the proleptic Gregorian calendar.
#[derive(Debug, PartialEq, Eq)]
struct Calendar {
    year: u64,
    month: u64,
    day: u64,
    /// 1 is Sunday.
    weekday: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Cmos {
    /// A write to the index port. Bit 7 masks NMIs on a PC and is none of the index.
    pub fn select(&mut self, index: u8) {
        self.index = index & 0x7f;
    }

    /// A read from the data port, at the time `now`.
    pub fn read(&self, now: SystemTime) -> u8 {
        let calendar = calendar(
            now.duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or(Duration::ZERO),
        );
        match self.index {
            0x00 => bcd(calendar.second),
            0x02 => bcd(calendar.minute),
            0x04 => bcd(calendar.hour),
            0x06 => bcd(calendar.weekday),
            0x07 => bcd(calendar.day),
            0x08 => bcd(calendar.month),
            0x09 => bcd(calendar.year % 100),
            0x32 => bcd(calendar.year / 100),
            0x0a => REGISTER_A,
            0x0b => REGISTER_B,
            0x0d => REGISTER_D,
            _ => 0,
        }
    }
}

/// Two decimal digits.
fn bcd(value: u64) -> u8 {
    (((value / 10 % 10) << 4) | (value % 10)) as u8
}

fn is_leap(year: u64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_of_month(year: u64, month: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Splits the time since 1970-01-01, a Thursday.
fn calendar(since_epoch: Duration) -> Calendar {
    let seconds = since_epoch.as_secs();
    let days = seconds / 86_400;
    // 400 years are 146097 days, whichever they are; less than 400 loops follow.
    let (mut year, mut day) = (1970 + 400 * (days / 146_097), days % 146_097);
    while day >= 365 + u64::from(is_leap(year)) {
        day -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let mut month = 1;
    while day >= days_of_month(year, month) {
        day -= days_of_month(year, month);
        month += 1;
    }
    Calendar {
        year,
        month,
        day: day + 1,
        weekday: (days + 4) % 7 + 1,
        hour: seconds / 3600 % 24,
        minute: seconds / 60 % 60,
        second: seconds % 60,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Calendar {
        calendar(Duration::from_secs(seconds))
    }

    #[test]
    fn known_days() {
        let epoch = at(0);
        assert_eq!(
            (epoch.year, epoch.month, epoch.day, epoch.weekday),
            (1970, 1, 1, 5)
        );
        let leap_day = at(951_827_696);
        assert_eq!(
            (
                leap_day.year,
                leap_day.month,
                leap_day.day,
                leap_day.weekday
            ),
            (2000, 2, 29, 3)
        );
        assert_eq!(
            (leap_day.hour, leap_day.minute, leap_day.second),
            (12, 34, 56)
        );
        let before_new_year = at(1_798_761_599);
        assert_eq!(
            (
                before_new_year.year,
                before_new_year.month,
                before_new_year.day
            ),
            (2026, 12, 31)
        );
        let far = at(13_574_563_200);
        assert_eq!((far.year, far.month, far.day), (2400, 2, 29));
    }

    #[test]
    fn registers_are_decimal() {
        let mut cmos = Cmos::default();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(951_827_696);
        let mut read = |index: u8| {
            cmos.select(index | 0x80);
            cmos.read(now)
        };
        assert_eq!([read(0x00), read(0x02), read(0x04)], [0x56, 0x34, 0x12]);
        assert_eq!(
            [read(0x07), read(0x08), read(0x09), read(0x32)],
            [0x29, 0x02, 0x00, 0x20]
        );
        assert_eq!([read(0x0a) & 0x80, read(0x0d)], [0, 0x80]);
    }
}
