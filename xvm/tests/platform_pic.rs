// SPDX-License-Identifier: GPL-2.0

//! Properties of the 8259 pair: a model that walks the lines in order of priority, restored state, hostile accesses.

use proptest::prelude::*;
use xvm_logic::platform::pic::Chip;
use xvm_logic::platform::pic::Pic;
use xvm_logic::platform::pic::PicState;

/// One chip, line by line.
#[derive(Clone, Default)]
struct Model {
    line: [bool; 8],
    requested: [bool; 8],
    masked: [bool; 8],
    serviced: [bool; 8],
    level: [bool; 8],
    first: usize,
    special_mask: bool,
    vectors: u8,
}

impl Model {
    fn order(&self) -> impl Iterator<Item = usize> {
        let first = self.first;
        (0..8).map(move |rank| (first + rank) % 8)
    }

    /// Walks down from the highest priority until something asks, or is in service and not to be interrupted.
    fn request(&self) -> Option<usize> {
        for line in self.order() {
            let hidden = self.special_mask && self.masked[line];
            if self.serviced[line] && !hidden {
                return None;
            }
            if self.requested[line] && !self.masked[line] {
                return Some(line);
            }
        }
        None
    }

    fn set(&mut self, line: usize, level: bool) {
        if self.level[line] {
            self.requested[line] = level;
        } else if level && !self.line[line] {
            self.requested[line] = true;
        }
        self.line[line] = level;
    }

    fn take(&mut self, line: usize) {
        self.requested[line] = self.level[line] && self.line[line];
        self.serviced[line] = true;
    }

    /// OCW2: the command in bits 7:5, the line in bits 2:0.
    fn end(&mut self, value: u8) {
        let named = Some(usize::from(value & 7));
        let highest = self
            .order()
            .find(|line| self.serviced[*line] && !(self.special_mask && self.masked[*line]));
        let (ends, rotates, line) = match value >> 5 {
            1 => (true, false, highest),
            3 => (true, false, named),
            5 => (true, true, highest),
            6 => (false, true, named),
            7 => (true, true, named),
            _ => return,
        };
        let Some(line) = line else { return };
        self.serviced[line] &= !ends;
        if rotates {
            self.first = (line + 1) % 8;
        }
    }
}

/// Both chips.
struct Pair {
    master: Model,
    slave: Model,
}

impl Pair {
    fn settle(&mut self) {
        self.master.requested[2] = self.slave.request().is_some();
    }

    fn acknowledge(&mut self) -> u8 {
        let vector = match self.master.request() {
            None => self.master.vectors + 7,
            Some(2) => {
                self.master.take(2);
                let line = self.slave.request();
                if let Some(line) = line {
                    self.slave.take(line);
                }
                self.slave.vectors + line.unwrap_or(7) as u8
            }
            Some(line) => {
                self.master.take(line);
                self.master.vectors + line as u8
            }
        };
        self.settle();
        vector
    }
}

#[derive(Clone, Debug)]
enum Step {
    Line(u8, bool),
    Acknowledge,
    Mask(bool, u8),
    End(bool, u8),
    SpecialMask(bool, bool),
    Level(bool, u8),
}

fn step() -> impl Strategy<Value = Step> {
    let line = (0u8..16).prop_filter("the cascade is no line", |line| *line != 2);
    prop_oneof![
        6 => (line, any::<bool>()).prop_map(|(line, level)| Step::Line(line, level)),
        4 => Just(Step::Acknowledge),
        1 => (any::<bool>(), any::<u8>()).prop_map(|(slave, mask)| Step::Mask(slave, mask)),
        4 => (any::<bool>(), any::<u8>()).prop_map(|(slave, value)| Step::End(slave, value & 0xe7)),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(slave, on)| Step::SpecialMask(slave, on)),
        1 => (any::<bool>(), any::<u8>()).prop_map(|(slave, lines)| Step::Level(slave, lines)),
    ]
}

fn state() -> impl Strategy<Value = PicState> {
    any::<[u8; 16]>().prop_map(|bytes| PicState {
        last_irr: bytes[0],
        irr: bytes[1],
        imr: bytes[2],
        isr: bytes[3],
        priority_add: bytes[4],
        irq_base: bytes[5],
        read_reg_select: bytes[6],
        poll: bytes[7],
        special_mask: bytes[8],
        init_state: bytes[9],
        auto_eoi: bytes[10],
        rotate_on_auto_eoi: bytes[11],
        special_fully_nested_mode: bytes[12],
        init4: bytes[13],
        elcr: bytes[14],
        elcr_mask: bytes[15],
    })
}

fn port() -> impl Strategy<Value = u16> {
    prop::sample::select(vec![0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x60])
}

proptest! {
    /// Vectors and registers agree with the model. Rotation on automatic EOI (OCW2 0 and 4) means nothing without it.
    #[test]
    fn interrupts_agree_with_the_model(steps in prop::collection::vec(step(), 1..300)) {
        let mut pic = Pic::new();
        for (port, base, cascade) in [(0x20, 0x30, 4), (0xa0, 0x38, 2)] {
            pic.write(port, 0x11);
            for value in [base, cascade, 1] {
                pic.write(port + 1, value);
            }
        }
        let mut pair = Pair {
            master: Model { vectors: 0x30, ..Model::default() },
            slave: Model { vectors: 0x38, ..Model::default() },
        };
        for step in steps {
            let port = |slave| if slave { 0xa0 } else { 0x20 };
            match step {
                Step::Line(line, level) => {
                    pic.set_irq(line, level);
                    let chip = if line < 8 { &mut pair.master } else { &mut pair.slave };
                    chip.set(usize::from(line & 7), level);
                }
                Step::Acknowledge => {
                    prop_assert_eq!(pic.acknowledge(), pair.acknowledge());
                }
                Step::Mask(slave, mask) => {
                    pic.write(port(slave) + 1, mask);
                    let chip = if slave { &mut pair.slave } else { &mut pair.master };
                    chip.masked = std::array::from_fn(|line| (mask >> line) & 1 != 0);
                }
                Step::End(slave, value) => {
                    pic.write(port(slave), value);
                    let chip = if slave { &mut pair.slave } else { &mut pair.master };
                    chip.end(value);
                }
                Step::SpecialMask(slave, on) => {
                    pic.write(port(slave), if on { 0x68 } else { 0x48 });
                    let chip = if slave { &mut pair.slave } else { &mut pair.master };
                    chip.special_mask = on;
                }
                Step::Level(slave, lines) => {
                    let (port, mask) = if slave { (0x4d1, 0xde) } else { (0x4d0, 0xf8) };
                    pic.write(port, lines);
                    let lines = lines & mask;
                    let chip = if slave { &mut pair.slave } else { &mut pair.master };
                    for line in 0..8 {
                        chip.level[line] = (lines >> line) & 1 != 0;
                        if chip.level[line] {
                            chip.requested[line] = chip.line[line];
                        }
                    }
                }
            }
            pair.settle();
            prop_assert_eq!(pic.output(), pair.master.request().is_some());
            for (chip, model) in [(Chip::Master, &pair.master), (Chip::Slave, &pair.slave)] {
                let bits = |set: [bool; 8]| {
                    (0..8).fold(0, |bits, line| bits | (u8::from(set[line]) << line))
                };
                let state = pic.state(chip);
                prop_assert_eq!(state.irr, bits(model.requested));
                prop_assert_eq!(state.isr, bits(model.serviced));
                prop_assert_eq!(usize::from(state.priority_add), model.first);
            }
        }
    }

    /// Any state can be set, what is then saved can be restored without a change, and hostile accesses do no harm.
    #[test]
    fn any_state_and_access(
        master in state(),
        slave in state(),
        accesses in prop::collection::vec((port(), any::<u8>()), 0..100),
    ) {
        let mut pic = Pic::new();
        pic.set_state(Chip::Master, &master);
        pic.set_state(Chip::Slave, &slave);
        for (port, value) in accesses {
            prop_assert_eq!(pic.write(port, value), port != 0x60);
            prop_assert_eq!(pic.read(port).is_some(), port != 0x60);
            pic.set_irq(value, value & 0x40 != 0);
            if pic.output() {
                pic.acknowledge();
            }
        }
        let mut other = Pic::new();
        for chip in [Chip::Master, Chip::Slave] {
            other.set_state(chip, &pic.state(chip));
        }
        for chip in [Chip::Master, Chip::Slave] {
            prop_assert_eq!(other.state(chip), pic.state(chip));
        }
    }
}
