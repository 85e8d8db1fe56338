// SPDX-License-Identifier: GPL-2.0

//! The pair of 8259A interrupt controllers as a PC chipset has it: the slave's output is line 2 of the master (8259A
//! datasheet, 231468; ELCR: 82371SB datasheet, 290550).
//!
//! An edge stays requested when its line falls again, as in chipsets and other than on the original chip, which answers
//! with a spurious interrupt. ICW1's LTIM and SNGL bits have no meaning in a PC: the ELCR says which lines are
//! level-triggered, and there are always two chips.

/// The master's line that the slave is on.
const CASCADE: u8 = 2;

/// One of the two chips.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chip {
    /// Lines 0 to 7, at ports 0x20 and 0x21.
    Master,
    /// Lines 8 to 15, at ports 0xa0 and 0xa1.
    Slave,
}

/// State of a chip, with the fields of struct kvm_pic_state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PicState {
    /// Levels of the lines.
    pub last_irr: u8,
    /// Interrupt request register.
    pub irr: u8,
    /// Interrupt mask register.
    pub imr: u8,
    /// In-service register.
    pub isr: u8,
    /// The line with the highest priority, 0 to 7.
    pub priority_add: u8,
    /// First vector.
    pub irq_base: u8,
    /// 1: the command port reads the ISR, 0: the IRR.
    pub read_reg_select: u8,
    /// The next read polls.
    pub poll: u8,
    /// Special mask mode.
    pub special_mask: u8,
    /// 0: ready; 1, 2, 3: the data port expects ICW2, ICW3, ICW4.
    pub init_state: u8,
    /// Automatic end of interrupt.
    pub auto_eoi: u8,
    /// Rotate priorities on automatic end of interrupt.
    pub rotate_on_auto_eoi: u8,
    /// Special fully nested mode.
    pub special_fully_nested_mode: u8,
    /// ICW1 has announced an ICW4.
    pub init4: u8,
    /// Lines that are level-triggered.
    pub elcr: u8,
    /// Lines that can be level-triggered.
    pub elcr_mask: u8,
}

/// What the data port expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expects {
    Mask,
    Icw2,
    Icw3,
    Icw4,
}

register! {
    /// Initialization command word 1.
    struct Icw1(u8) {
        icw4: bool = 0;
    }
}

register! {
    /// Initialization command word 4.
    struct Icw4(u8) {
        auto_eoi: bool = 1;
        special_fully_nested: bool = 4;
    }
}

register! {
    /// Operation command word 2.
    struct Ocw2(u8) {
        line: u8 = 2..0;
        command: u8 = 7..5;
    }
}

register! {
    /// Operation command word 3.
    struct Ocw3(u8) {
        isr: bool = 0;
        read_register: bool = 1;
        poll: bool = 2;
        special_mask: bool = 5;
        enable_special_mask: bool = 6;
    }
}

/// One 8259A.
struct Controller {
    role: Chip,
    lines: u8,
    irr: u8,
    imr: u8,
    isr: u8,
    /// The line with the highest priority, 0 to 7.
    first: u8,
    base: u8,
    read_isr: bool,
    poll: bool,
    special_mask: bool,
    expects: Expects,
    icw4_follows: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_fully_nested: bool,
    elcr: u8,
    /// Lines that can be level-triggered: not the timer, keyboard, cascade, clock and coprocessor, unless a VMM says otherwise.
    elcr_mask: u8,
    /// Lines whose interrupt has ended since this was last looked at.
    ended: u8,
}

impl Controller {
    const fn new(role: Chip) -> Self {
        Self {
            role,
            lines: 0,
            irr: 0,
            imr: 0,
            isr: 0,
            first: 0,
            base: 0,
            read_isr: false,
            poll: false,
            special_mask: false,
            expects: Expects::Mask,
            icw4_follows: false,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_fully_nested: false,
            elcr: 0,
            elcr_mask: match role {
                Chip::Master => 0xf8,
                Chip::Slave => 0xde,
            },
            ended: 0,
        }
    }

    /// Sets the level of a line, 0 to 7. `true` if it requests an interrupt that was not requested before.
    fn set_line(&mut self, line: u8, level: bool) -> bool {
        let bit = 1 << (line & 7);
        let rises = level && self.lines & bit == 0;
        let before = self.irr;
        self.lines = if level {
            self.lines | bit
        } else {
            self.lines & !bit
        };
        if self.elcr & bit != 0 {
            self.irr = self.irr & !bit | self.lines & bit;
        } else if rises {
            self.irr |= bit;
        }
        self.irr & !before != 0
    }

    /// The line with the highest priority in a set.
    fn highest(&self, set: u8) -> Option<u8> {
        let rank = set.rotate_right(self.first.into()).trailing_zeros() as u8;
        (set != 0).then_some((rank + self.first) & 7)
    }

    /// How far down in priority a line is: 0 is the highest.
    fn rank(&self, line: u8) -> u8 {
        line.wrapping_sub(self.first) & 7
    }

    /// The request that the output signals: the highest, if it may interrupt what is in service.
    fn request(&self) -> Option<u8> {
        let line = self.highest(self.irr & !self.imr)?;
        // Special mask mode: what is masked holds nothing back.
        let hidden = if self.special_mask { self.imr } else { 0 };
        let Some(serviced) = self.highest(self.isr & !hidden) else {
            return Some(line);
        };
        // Special fully nested mode: the slave may interrupt itself.
        let nested = self.special_fully_nested
            && self.role == Chip::Master
            && (line, serviced) == (CASCADE, CASCADE);
        (nested || self.rank(line) < self.rank(serviced)).then_some(line)
    }

    /// The processor takes the request.
    fn take(&mut self, line: u8) {
        let bit = 1 << (line & 7);
        if self.elcr & bit == 0 {
            self.irr &= !bit;
        }
        if !self.auto_eoi {
            self.isr |= bit;
            return;
        }
        self.ended |= bit;
        if self.rotate_on_auto_eoi {
            self.lower(line);
        }
    }

    /// Gives a line the lowest priority.
    fn lower(&mut self, line: u8) {
        self.first = line.wrapping_add(1) & 7;
    }

    /// The vector of a line. The low bits of a base that a VMM has set are kept, and count for nothing.
    fn vector(&self, line: u8) -> u8 {
        self.base & 0xf8 | line
    }

    fn read(&mut self, data: bool) -> u8 {
        if self.poll {
            self.poll = false;
            return match self.request() {
                Some(line) => {
                    self.take(line);
                    0x80 | line
                }
                None => 0,
            };
        }
        match (data, self.read_isr) {
            (true, _) => self.imr,
            (false, true) => self.isr,
            (false, false) => self.irr,
        }
    }

    fn write_command(&mut self, value: u8) {
        match (value >> 3) & 3 {
            0 => self.write_ocw2(Ocw2(value)),
            1 => self.write_ocw3(Ocw3(value)),
            _ => self.initialize(Icw1(value)),
        }
    }

    /// ICW1: starts over. Edges from before are forgotten; a line that is still high must fall before it counts again.
    fn initialize(&mut self, icw1: Icw1) {
        self.ended |= self.isr | self.irr & !self.elcr;
        self.irr &= self.elcr;
        self.imr = 0;
        self.isr = 0;
        self.first = 0;
        self.special_mask = false;
        self.read_isr = false;
        self.poll = false;
        self.icw4_follows = icw1.icw4();
        if !self.icw4_follows {
            self.write_icw4(Icw4(0));
        }
        self.expects = Expects::Icw2;
    }

    fn write_icw4(&mut self, icw4: Icw4) {
        self.auto_eoi = icw4.auto_eoi();
        self.special_fully_nested = icw4.special_fully_nested();
    }

    /// End of interrupt, and rotation.
    fn write_ocw2(&mut self, ocw2: Ocw2) {
        const ROTATE_ON_AUTO_EOI_OFF: u8 = 0;
        const EOI: u8 = 1;
        const SPECIFIC_EOI: u8 = 3;
        const ROTATE_ON_AUTO_EOI_ON: u8 = 4;
        const ROTATE_ON_EOI: u8 = 5;
        const SET_PRIORITY: u8 = 6;
        const ROTATE_ON_SPECIFIC_EOI: u8 = 7;

        let command = ocw2.command();
        let line = match command {
            ROTATE_ON_AUTO_EOI_OFF | ROTATE_ON_AUTO_EOI_ON => {
                self.rotate_on_auto_eoi = command == ROTATE_ON_AUTO_EOI_ON;
                return;
            }
            EOI | ROTATE_ON_EOI => {
                // In special mask mode, this doesn't see what is masked.
                let hidden = if self.special_mask { self.imr } else { 0 };
                match self.highest(self.isr & !hidden) {
                    Some(line) => line,
                    None => return,
                }
            }
            _ => ocw2.line(),
        };
        if matches!(
            command,
            EOI | ROTATE_ON_EOI | SPECIFIC_EOI | ROTATE_ON_SPECIFIC_EOI
        ) {
            self.ended |= self.isr & (1 << line);
            self.isr &= !(1 << line);
        }
        if matches!(
            command,
            ROTATE_ON_EOI | ROTATE_ON_SPECIFIC_EOI | SET_PRIORITY
        ) {
            self.lower(line);
        }
    }

    /// Polling, the register to read, special mask mode.
    fn write_ocw3(&mut self, ocw3: Ocw3) {
        self.poll = ocw3.poll();
        if ocw3.read_register() {
            self.read_isr = ocw3.isr();
        }
        if ocw3.enable_special_mask() {
            self.special_mask = ocw3.special_mask();
        }
    }

    fn write_data(&mut self, value: u8) {
        self.expects = match self.expects {
            Expects::Mask => {
                self.imr = value;
                Expects::Mask
            }
            Expects::Icw2 => {
                self.base = value & 0xf8;
                Expects::Icw3
            }
            // How the chips are wired, which a PC leaves no choice in.
            Expects::Icw3 if self.icw4_follows => Expects::Icw4,
            Expects::Icw3 => Expects::Mask,
            Expects::Icw4 => {
                self.write_icw4(Icw4(value));
                Expects::Mask
            }
        };
    }

    fn write_elcr(&mut self, value: u8) {
        self.elcr = value & self.elcr_mask;
        self.irr = self.irr & !self.elcr | self.lines & self.elcr;
    }

    fn state(&self) -> PicState {
        PicState {
            last_irr: self.lines,
            irr: self.irr,
            imr: self.imr,
            isr: self.isr,
            priority_add: self.first,
            irq_base: self.base,
            read_reg_select: self.read_isr.into(),
            poll: self.poll.into(),
            special_mask: self.special_mask.into(),
            init_state: self.expects as u8,
            auto_eoi: self.auto_eoi.into(),
            rotate_on_auto_eoi: self.rotate_on_auto_eoi.into(),
            special_fully_nested_mode: self.special_fully_nested.into(),
            init4: self.icw4_follows.into(),
            elcr: self.elcr,
            elcr_mask: self.elcr_mask,
        }
    }

    fn set_state(&mut self, state: &PicState) {
        self.lines = state.last_irr;
        self.irr = state.irr;
        self.imr = state.imr;
        self.isr = state.isr;
        self.first = state.priority_add & 7;
        self.base = state.irq_base;
        self.read_isr = state.read_reg_select != 0;
        self.poll = state.poll != 0;
        self.special_mask = state.special_mask != 0;
        self.expects = match state.init_state {
            1 => Expects::Icw2,
            2 => Expects::Icw3,
            3 => Expects::Icw4,
            _ => Expects::Mask,
        };
        self.auto_eoi = state.auto_eoi != 0;
        self.rotate_on_auto_eoi = state.rotate_on_auto_eoi != 0;
        self.special_fully_nested = state.special_fully_nested_mode != 0;
        self.icw4_follows = state.init4 != 0;
        self.elcr_mask = state.elcr_mask;
        self.elcr = state.elcr;
    }
}

/// Both chips.
pub struct Pic {
    master: Controller,
    slave: Controller,
}

impl Pic {
    /// Both chips as after power-up, not initialized by the guest.
    pub const fn new() -> Self {
        Self {
            master: Controller::new(Chip::Master),
            slave: Controller::new(Chip::Slave),
        }
    }

    /// The slave's output is a line of the master. It has no edge that could be missed: the request is there as long as the
    /// slave has one.
    fn cascade(&mut self) {
        let bit = 1 << CASCADE;
        let request = u8::from(self.slave.request().is_some()) << CASCADE;
        self.master.lines = self.master.lines & !bit | request;
        self.master.irr = self.master.irr & !bit | request;
    }

    /// Whether a line, 0 to 15, isn't masked.
    pub fn is_open(&self, line: u8) -> bool {
        let chip = match line {
            0..8 => &self.master,
            _ => &self.slave,
        };
        (chip.imr >> (line & 7)) & 1 == 0
    }

    /// The lines, 0 to 15, whose interrupt has ended since this was last asked.
    pub fn take_ended(&mut self) -> u16 {
        let ended =
            [&mut self.master, &mut self.slave].map(|chip| core::mem::take(&mut chip.ended));
        u16::from_le_bytes(ended) & !(1 << CASCADE)
    }

    /// Sets the level of a line, 0 to 15; others, and the cascade, are not there. `true` if that requests an interrupt
    /// that was not requested already; look at [`Pic::output`] then.
    pub fn set_irq(&mut self, line: u8, level: bool) -> bool {
        let new = match line {
            CASCADE => false,
            0..=7 => self.master.set_line(line, level),
            8..=15 => self.slave.set_line(line & 7, level),
            _ => false,
        };
        self.cascade();
        new
    }

    /// The INTR pin.
    pub fn output(&self) -> bool {
        self.master.request().is_some()
    }

    /// The processor acknowledges INTR and gets a vector. If the request has gone meanwhile it is that of line 7 of the chip
    /// that was asked, and nothing is in service for it ("spurious").
    pub fn acknowledge(&mut self) -> u8 {
        let Some(line) = self.master.request() else {
            return self.master.vector(7);
        };
        self.master.take(line);
        if line != CASCADE {
            return self.master.vector(line);
        }
        let line = self.slave.request();
        if let Some(line) = line {
            self.slave.take(line);
        }
        self.cascade();
        self.slave.vector(line.unwrap_or(7))
    }

    /// Reads a port; `None` if it is not one of theirs.
    pub fn read(&mut self, port: u16) -> Option<u8> {
        let value = match port {
            0x20 | 0x21 => self.master.read(port & 1 != 0),
            0xa0 | 0xa1 => self.slave.read(port & 1 != 0),
            0x4d0 => self.master.elcr,
            0x4d1 => self.slave.elcr,
            _ => return None,
        };
        // A poll takes a request.
        self.cascade();
        Some(value)
    }

    /// Writes a port; `false` if it is not one of theirs. Look at [`Pic::output`] then.
    pub fn write(&mut self, port: u16, value: u8) -> bool {
        match port {
            0x20 => self.master.write_command(value),
            0x21 => self.master.write_data(value),
            0xa0 => self.slave.write_command(value),
            0xa1 => self.slave.write_data(value),
            0x4d0 => self.master.write_elcr(value),
            0x4d1 => self.slave.write_elcr(value),
            _ => return false,
        }
        self.cascade();
        true
    }

    /// Saves a chip.
    pub fn state(&self, chip: Chip) -> PicState {
        match chip {
            Chip::Master => self.master.state(),
            Chip::Slave => self.slave.state(),
        }
    }

    /// Restores a chip. Values that a chip can't have are reduced to ones it can; the cascade line follows from the slave.
    pub fn set_state(&mut self, chip: Chip, state: &PicState) {
        match chip {
            Chip::Master => self.master.set_state(state),
            Chip::Slave => self.slave.set_state(state),
        }
        self.cascade();
    }
}

impl Default for Pic {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Initialized as Linux does it: vectors 0x30 and 0x38, nothing masked.
    fn linux() -> Pic {
        let mut pic = Pic::new();
        for (port, values) in [(0x20, [0x11, 0x30, 4, 1]), (0xa0, [0x11, 0x38, 2, 1])] {
            pic.write(port, values[0]);
            for value in &values[1..] {
                pic.write(port + 1, *value);
            }
        }
        pic
    }

    #[test]
    fn an_edge_is_one_interrupt() {
        let mut pic = linux();
        assert!(pic.set_irq(1, true));
        assert!(!pic.set_irq(1, true));
        pic.set_irq(1, false);
        assert!(pic.output());
        assert_eq!(pic.acknowledge(), 0x31);
        assert!(!pic.output());
        pic.set_irq(1, true);
        assert!(!pic.output());
        pic.write(0x20, 0x20);
        assert!(pic.output());
    }

    #[test]
    fn the_slave_goes_through_the_master() {
        let mut pic = linux();
        pic.set_irq(12, true);
        pic.set_irq(3, true);
        assert_eq!(pic.acknowledge(), 0x3c);
        assert_eq!(pic.state(Chip::Master).isr, 4);
        assert!(!pic.output());
        // A higher line of the slave has to wait, since the master doesn't know which one is in service.
        pic.set_irq(8, true);
        assert!(!pic.output());
        pic.write(0xa0, 0x20);
        pic.write(0x20, 0x62);
        assert_eq!(pic.acknowledge(), 0x38);
        pic.write(0xa0, 0x20);
        pic.write(0x20, 0x62);
        assert_eq!(pic.acknowledge(), 0x33);
    }

    #[test]
    fn special_fully_nested_mode_lets_the_slave_interrupt_itself() {
        let mut pic = linux();
        for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 0x11)] {
            pic.write(port, value);
        }
        pic.set_irq(12, true);
        assert_eq!(pic.acknowledge(), 0x3c);
        pic.set_irq(3, true);
        assert!(!pic.output());
        pic.set_irq(8, true);
        assert_eq!(pic.acknowledge(), 0x38);
    }

    #[test]
    fn requests_that_vanish_are_spurious() {
        let mut pic = linux();
        pic.write(0x4d1, 0x02);
        pic.set_irq(9, true);
        assert!(pic.output());
        pic.set_irq(9, false);
        assert!(!pic.output());
        assert_eq!(pic.acknowledge(), 0x37);
        assert_eq!(pic.state(Chip::Master).isr, 0);
    }

    #[test]
    fn level_lines_ask_again_after_their_end() {
        let mut pic = linux();
        pic.write(0x4d0, 0xff);
        assert_eq!(pic.read(0x4d0), Some(0xf8));
        pic.set_irq(5, true);
        assert_eq!(pic.acknowledge(), 0x35);
        assert!(!pic.output());
        pic.write(0x20, 0x65);
        assert!(pic.output());
        pic.set_irq(5, false);
        assert!(!pic.output());
    }

    #[test]
    fn rotation() {
        let mut pic = linux();
        for line in [0, 1, 7] {
            pic.set_irq(line, true);
        }
        assert_eq!(pic.acknowledge(), 0x30);
        pic.write(0x20, 0xa0);
        assert_eq!(pic.acknowledge(), 0x31);
        pic.write(0x20, 0x20);
        // Line 0 is the lowest now.
        pic.set_irq(0, false);
        pic.set_irq(0, true);
        assert_eq!(pic.acknowledge(), 0x37);
        pic.write(0x20, 0xe7);
        assert_eq!(pic.acknowledge(), 0x30);
    }

    #[test]
    fn automatic_end_and_polling() {
        let mut pic = linux();
        for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 3)] {
            pic.write(port, value);
        }
        pic.set_irq(4, true);
        pic.set_irq(6, true);
        assert_eq!((pic.acknowledge(), pic.state(Chip::Master).isr), (0x34, 0));
        pic.write(0x20, 0x0c);
        assert_eq!(pic.read(0x20), Some(0x86));
        assert!(!pic.output());
        pic.write(0x20, 0x0c);
        assert_eq!(pic.read(0x21), Some(0));
    }

    #[test]
    fn special_mask_mode_lets_lower_lines_in() {
        let mut pic = linux();
        pic.set_irq(1, true);
        pic.acknowledge();
        pic.set_irq(6, true);
        assert!(!pic.output());
        pic.write(0x21, 0x02);
        pic.write(0x20, 0x68);
        assert_eq!(pic.acknowledge(), 0x36);
        pic.write(0x20, 0x20);
        pic.write(0x20, 0x0b);
        assert_eq!(pic.read(0x20), Some(0x02));
    }
}
