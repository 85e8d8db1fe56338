//! ACPI fixed hardware: PM1a event and control registers and the PM timer (ACPI specification 6.5,
//! section 4.8.3).

use std::time::Instant;

use super::Request;
use crate::acpi;

/// Ticks of the PM timer in a second.
const TIMER_HZ: u128 = 3_579_545;
/// PM1 control: ACPI mode is on, always, because the FADT names no SMI command port.
const SCI_EN: u16 = 1 << 0;
const SLP_TYP_SHIFT: u32 = 10;
const SLP_EN: u16 = 1 << 13;

const PM1A_ENABLE: u16 = acpi::PM1A_EVENT + 2;

/// The registers; PM1a status is always 0, because no event ever happens.
pub struct PowerManagement {
    started: Instant,
    enable: u16,
}

impl PowerManagement {
    /// A timer that begins to count now.
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            enable: 0,
        }
    }

    /// OUT to one of the ports.
    pub fn write(&mut self, port: u16, data: &[u8]) -> Option<Request> {
        let value = little_endian(data) as u16;
        match port {
            PM1A_ENABLE => self.enable = value,
            acpi::PM1A_CONTROL => {
                let sleep_type = (value >> SLP_TYP_SHIFT) & 7;
                if value & SLP_EN != 0 && sleep_type == acpi::SLEEP_TYPE_S5 {
                    return Some(Request::PowerOff);
                }
            }
            _ => {}
        }
        None
    }

    /// IN from one of the ports.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        let value = match port {
            acpi::PM_TIMER => (self.started.elapsed().as_nanos() * TIMER_HZ / 1_000_000_000) as u32,
            acpi::PM1A_CONTROL => u32::from(SCI_EN),
            PM1A_ENABLE => u32::from(self.enable),
            _ => 0,
        };
        for (byte, of_value) in data.iter_mut().zip(value.to_le_bytes()) {
            *byte = of_value;
        }
    }
}

fn little_endian(data: &[u8]) -> u32 {
    data.iter()
        .take(4)
        .rev()
        .fold(0, |value, byte| (value << 8) | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s5_switches_off_and_other_writes_do_not() {
        let mut pm = PowerManagement::new();
        let mut control = |value: u16| pm.write(acpi::PM1A_CONTROL, &value.to_le_bytes());
        assert_eq!(control(acpi::SLEEP_TYPE_S5 << SLP_TYP_SHIFT), None);
        assert_eq!(control(SLP_EN | (1 << SLP_TYP_SHIFT)), None);
        assert_eq!(
            control(SLP_EN | (acpi::SLEEP_TYPE_S5 << SLP_TYP_SHIFT)),
            Some(Request::PowerOff)
        );
    }

    #[test]
    fn the_enable_register_keeps_its_value() {
        let mut pm = PowerManagement::new();
        pm.write(PM1A_ENABLE, &[0x20, 0x01]);
        let mut data = [0; 2];
        pm.read(PM1A_ENABLE, &mut data);
        assert_eq!(data, [0x20, 0x01]);
    }

    #[test]
    fn the_timer_counts() {
        let pm = PowerManagement {
            started: Instant::now() - std::time::Duration::from_secs(2),
            enable: 0,
        };
        let mut data = [0; 4];
        pm.read(acpi::PM_TIMER, &mut data);
        assert!(u128::from(little_endian(&data)) >= 2 * TIMER_HZ);
    }
}
