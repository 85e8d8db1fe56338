// SPDX-License-Identifier: GPL-2.0

//! GSI routing: where the interrupt lines that a VMM drives end (api.rst, KVM_SET_GSI_ROUTING and KVM_CREATE_IRQCHIP).
//!
//! A table is a slice of the caller, sorted by GSI.

use super::ioapic;
use super::Invalid;

/// Number of GSIs (KVM_MAX_IRQ_ROUTES).
pub const GSIS: u32 = 4096;

/// Lines of the 8259 pair.
const PIC_LINES: u8 = 16;

/// Where an interrupt line ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A line of the 8259 pair.
    Pic {
        /// 0 to 15.
        pin: u8,
    },
    /// A pin of the IOAPIC.
    IoApic {
        /// 0 to 23.
        pin: u8,
    },
    /// A message, sent when the line rises.
    Msi {
        /// Address, with the upper half where 32-bit destinations are on.
        address: u64,
        /// Data.
        data: u32,
    },
}

impl Target {
    /// Which interrupt controller it is on, each 8259 being one; messages go around them.
    fn controller(self) -> Option<u8> {
        match self {
            Target::Pic { pin } => Some(pin >> 3),
            Target::IoApic { .. } => Some(2),
            Target::Msi { .. } => None,
        }
    }
}

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Global system interrupt.
    pub gsi: u32,
    /// Where it goes.
    pub target: Target,
}

impl Entry {
    /// A route, if there are such a GSI and such a pin.
    pub const fn new(gsi: u32, target: Target) -> Result<Entry, Invalid> {
        let exists = match target {
            Target::Pic { pin } => pin < PIC_LINES,
            Target::IoApic { pin } => (pin as usize) < ioapic::PINS,
            Target::Msi { .. } => true,
        };
        if gsi < GSIS && exists {
            Ok(Entry { gsi, target })
        } else {
            Err(Invalid)
        }
    }
}

/// Checks a table that is sorted by GSI: a GSI may go to one line of each interrupt controller, or be one message.
pub fn check(table: &[Entry]) -> Result<(), Invalid> {
    let differ = |a: &Entry, b: &Entry| {
        let (a, b) = (a.target.controller(), b.target.controller());
        a.is_some() && b.is_some() && a != b
    };
    let valid = table
        .chunk_by(|a, b| a.gsi == b.gsi)
        .all(|group| match group {
            [_] => true,
            [a, b] => differ(a, b),
            [a, b, c] => differ(a, b) && differ(b, c) && differ(a, c),
            _ => false,
        });
    if valid && table.is_sorted_by_key(|entry| entry.gsi) {
        Ok(())
    } else {
        Err(Invalid)
    }
}

/// The routes of a GSI in a table that is sorted by GSI.
pub fn lookup(table: &[Entry], gsi: u32) -> &[Entry] {
    let start = table.partition_point(|entry| entry.gsi < gsi);
    let rest = table.get(start..).unwrap_or(&[]);
    let length = rest.partition_point(|entry| entry.gsi == gsi);
    rest.get(..length).unwrap_or(&[])
}

/// The routes that KVM_CREATE_IRQCHIP makes: GSI n is pin n of the IOAPIC, and the first 16 are the lines of the 8259 pair
/// as well. A VMM whose timer is on pin 2, as the ACPI tables of most PCs say, sets its own table.
pub const DEFAULT: [Entry; 40] = {
    let mut table = [Entry {
        gsi: 0,
        target: Target::Pic { pin: 0 },
    }; 40];
    let mut gsi = 0;
    while gsi < ioapic::PINS as u8 {
        let ioapic = Target::IoApic { pin: gsi };
        if gsi < PIC_LINES {
            table[2 * gsi as usize] = entry(gsi, Target::Pic { pin: gsi });
            table[2 * gsi as usize + 1] = entry(gsi, ioapic);
        } else {
            table[(PIC_LINES + gsi) as usize] = entry(gsi, ioapic);
        }
        gsi += 1;
    }
    table
};

const fn entry(gsi: u8, target: Target) -> Entry {
    Entry {
        gsi: gsi as u32,
        target,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_table() {
        assert_eq!(check(&DEFAULT), Ok(()));
        for entry in DEFAULT {
            assert_eq!(Entry::new(entry.gsi, entry.target), Ok(entry));
        }
        let targets = |gsi| {
            let routes = lookup(&DEFAULT, gsi);
            (routes.len(), routes.last().map(|entry| entry.target))
        };
        assert_eq!(targets(0), (2, Some(Target::IoApic { pin: 0 })));
        assert_eq!(targets(15), (2, Some(Target::IoApic { pin: 15 })));
        assert_eq!(targets(16), (1, Some(Target::IoApic { pin: 16 })));
        assert_eq!(targets(23), (1, Some(Target::IoApic { pin: 23 })));
        assert_eq!(targets(24), (0, None));
    }

    #[test]
    fn what_does_not_exist_is_refused() {
        for (gsi, target) in [
            (0, Target::Pic { pin: 16 }),
            (0, Target::IoApic { pin: 24 }),
            (GSIS, Target::IoApic { pin: 0 }),
        ] {
            assert_eq!(Entry::new(gsi, target), Err(Invalid));
        }
    }

    #[test]
    fn contradictions_are_refused() {
        let (pic, ioapic) = (Target::Pic { pin: 1 }, Target::IoApic { pin: 1 });
        let msi = Target::Msi {
            address: 0xfee0_0000,
            data: 0x40,
        };
        let table = |targets: &[(u32, Target)]| {
            let entries: std::vec::Vec<_> = targets
                .iter()
                .map(|&(gsi, target)| Entry { gsi, target })
                .collect();
            check(&entries).is_ok()
        };
        assert!(table(&[(1, pic), (1, ioapic), (2, msi), (3, msi)]));
        assert!(!table(&[(1, pic), (1, Target::Pic { pin: 2 })]));
        assert!(!table(&[(1, pic), (1, ioapic), (1, ioapic)]));
        assert!(!table(&[(1, msi), (1, msi)]));
        assert!(!table(&[(1, ioapic), (1, msi)]));
        assert!(!table(&[(2, ioapic), (1, ioapic)]));
        assert!(table(&[(1, Target::Pic { pin: 9 }), (1, pic), (1, ioapic)]));
        assert!(table(&[]));
    }
}
