// SPDX-License-Identifier: GPL-2.0

//! Properties of the IOAPIC: what it sends, against a model of one pin; restored state.

use proptest::prelude::*;
use xvm_logic::platform::ioapic::IoApic;
use xvm_logic::platform::ioapic::IoApicState;
use xvm_logic::platform::ioapic::PINS;
use xvm_logic::platform::Message;

/// A pin, as section 3.2.4 of the datasheet tells its story. Its vector is 0x40 plus its number.
#[derive(Clone, Copy, Default)]
struct Pin {
    line: bool,
    unmasked: bool,
    level: bool,
    in_flight: bool,
}

impl Pin {
    /// Whether it must send now.
    fn sends(&mut self) -> bool {
        let sends = self.level && self.line && self.unmasked && !self.in_flight;
        self.in_flight |= sends;
        sends
    }
}

#[derive(Clone, Debug)]
enum Step {
    Line(u8, bool),
    Program { pin: u8, level: bool, masked: bool },
    Eoi(u8),
}

fn step() -> impl Strategy<Value = Step> {
    // Few pins, so that they meet often.
    let pin = 0u8..4;
    prop_oneof![
        3 => (pin.clone(), any::<bool>()).prop_map(|(pin, level)| Step::Line(pin, level)),
        1 => (pin.clone(), any::<bool>(), any::<bool>())
            .prop_map(|(pin, level, masked)| Step::Program { pin, level, masked }),
        2 => pin.prop_map(Step::Eoi),
    ]
}

proptest! {
    /// A level-triggered line makes exactly one message until its EOI, an edge one when it rises.
    #[test]
    fn messages_agree_with_the_model(steps in prop::collection::vec(step(), 1..200)) {
        let mut ioapic = IoApic::new();
        let mut pins = [Pin::default(); 4];
        for step in steps {
            let mut sent = Vec::new();
            let mut sink = |message: &Message| {
                sent.push((message.vector, message.level));
                true
            };
            let (number, expected) = match step {
                Step::Line(number, line) => {
                    ioapic.set_irq(number, line, &mut sink);
                    let pin = &mut pins[usize::from(number)];
                    let rises = line && !pin.line;
                    pin.line = line;
                    (number, pin.sends() || (rises && !pin.level && pin.unmasked))
                }
                Step::Program { pin: number, level, masked } => {
                    let (level_bit, mask_bit) = (u32::from(level) << 15, u32::from(masked) << 16);
                    let low = (u32::from(number) + 0x40) | level_bit | mask_bit;
                    ioapic.write(0, 0x10 + 2 * u32::from(number), &mut sink);
                    ioapic.write(0x10, low, &mut sink);
                    let pin = &mut pins[usize::from(number)];
                    pin.level = level;
                    pin.unmasked = !masked;
                    pin.in_flight &= level;
                    (number, pin.sends())
                }
                Step::Eoi(number) => {
                    ioapic.eoi(0x40 + number, &mut sink);
                    let pin = &mut pins[usize::from(number)];
                    pin.in_flight = false;
                    (number, pin.sends())
                }
            };
            let level = pins[usize::from(number)].level;
            let expected: Vec<_> = expected.then_some((0x40 + number, level)).into_iter().collect();
            prop_assert_eq!(sent, expected);
        }
    }

    /// Any state can be set, what is then saved can be restored without a change, and hostile accesses do no harm.
    #[test]
    fn any_state_and_access(
        base_address in any::<u64>(),
        ioregsel in any::<u32>(),
        id in any::<u32>(),
        irr in any::<u32>(),
        redirtbl in any::<[u64; PINS]>(),
        accesses in prop::collection::vec((any::<u8>(), any::<u32>(), any::<bool>()), 0..50),
    ) {
        let mut ioapic = IoApic::new();
        let state = IoApicState { base_address, ioregsel, id, irr, redirtbl };
        ioapic.set_state(&state, &mut |_| true);
        for (value, wide, accepted) in accesses {
            let mut sink = |_: &Message| accepted;
            ioapic.write(0, value.into(), &mut sink);
            ioapic.write(0x10, wide, &mut sink);
            ioapic.read(0x10);
            ioapic.set_irq(value, wide & 1 != 0, &mut sink);
            ioapic.eoi(value, &mut sink);
            ioapic.write(wide.into(), wide, &mut sink);
            ioapic.read(wide.into());
        }
        // An entry that nobody took is tried again when it is restored, so nobody takes it then either.
        let saved = ioapic.state();
        let mut other = IoApic::new();
        other.set_state(&saved, &mut |_| false);
        prop_assert_eq!(other.state(), saved);
        prop_assert_eq!(other.offset(base_address), Some(0));
    }
}
