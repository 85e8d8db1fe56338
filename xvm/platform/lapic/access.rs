// SPDX-License-Identifier: GPL-2.0

//! Reads and writes of the guest: in the xAPIC page (Intel SDM vol. 3, 12.4.1) and as x2APIC MSRs (12.12.1).

use super::super::message::Delivery;
use super::super::message::Message;
use super::super::Gp;
use super::regs::error;
use super::regs::Icr;
use super::regs::Lvt;
use super::regs::LvtEntry;
use super::regs::Register;
use super::regs::Svr;
use super::regs::CAN_SUPPRESS_EOI;
use super::regs::VERSION;
use super::Effect;
use super::Lapic;
use super::Mode;
use super::Shorthand;

/// First and last of the MSRs that x2APIC mode has.
const X2APIC_MSRS: core::ops::RangeInclusive<u32> = 0x800..=0x8ff;

/// The register of an x2APIC MSR.
fn x2apic_register(msr: u32) -> Option<Register> {
    if !X2APIC_MSRS.contains(&msr) {
        return None;
    }
    Register::at((msr & 0xff) << 4).filter(|register| register.in_x2apic())
}

impl Lapic {
    /// Reads the aligned 32-bit word at a byte offset in the xAPIC page.
    ///
    /// Registers are 16 bytes apart; the words between them read 0 (their content is undefined, 12.4.1).
    pub fn read(&mut self, offset: u32, now: u64) -> u32 {
        if offset & 0xc != 0 {
            return 0;
        }
        match Register::at(offset & !3).filter(|register| register.in_xapic()) {
            Some(register) => self.load(register, now),
            None => {
                self.raise(error::ILLEGAL_REGISTER);
                0
            }
        }
    }

    /// Whether the time matters to an access at this byte offset in the xAPIC page: for the timer's registers. Callers need
    /// not look at the clock otherwise, and pass any time.
    pub fn uses_time(offset: u32) -> bool {
        // What is used most comes before all of them.
        offset >= 0x320 && matches!(offset & !0xf, 0x320 | 0x380 | 0x390 | 0x3e0)
    }

    /// Writes the aligned 32-bit word at a byte offset in the xAPIC page. `now` in nanoseconds, `tsc` is the guest's TSC.
    ///
    /// The published address may have changed afterwards.
    pub fn write(&mut self, offset: u32, value: u32, now: u64, tsc: u64) -> Effect {
        // Nearly all writes are to these two.
        if offset == 0x80 {
            self.set_tpr(value as u8);
            return Effect::None;
        }
        if offset == 0xb0 {
            return self.eoi();
        }
        if offset & 0xf != 0 {
            return Effect::None;
        }
        match Register::at(offset).filter(|register| register.in_xapic()) {
            Some(register) => match self.writable(register) {
                Some(mask) => self.store(register, value & mask, now, tsc),
                None => Effect::None,
            },
            None => {
                self.raise(error::ILLEGAL_REGISTER);
                Effect::None
            }
        }
    }

    /// Reads an x2APIC MSR. Faults outside x2APIC mode, and where there is nothing to read (12.12.1.2).
    pub fn read_msr(&self, msr: u32, now: u64) -> Result<u64, Gp> {
        let register = x2apic_register(msr).ok_or(Gp)?;
        match register {
            _ if self.mode() != Mode::X2Apic => Err(Gp),
            Register::Eoi | Register::SelfIpi => Err(Gp),
            Register::IcrLow => Ok(self.icr.0),
            _ => Ok(u64::from(self.load(register, now))),
        }
    }

    /// Writes an x2APIC MSR. Faults outside x2APIC mode, on read-only registers and on reserved bits (12.12.1.2).
    pub fn write_msr(&mut self, msr: u32, value: u64, now: u64, tsc: u64) -> Result<Effect, Gp> {
        let register = x2apic_register(msr).ok_or(Gp)?;
        let mask = self.writable(register).ok_or(Gp)?;
        let ignored = match register {
            Register::Lvt(_) => Lvt::READ_ONLY,
            _ => 0,
        };
        match register {
            _ if self.mode() != Mode::X2Apic => Err(Gp),
            Register::Ldr => Err(Gp),
            Register::IcrLow if value & Icr::X2APIC_RESERVED != 0 => Err(Gp),
            Register::IcrLow => {
                self.icr = Icr(value & !Icr::BUSY);
                Ok(self.send())
            }
            _ => {
                let value = u32::try_from(value).map_err(|_| Gp)?;
                if value & !(mask | ignored) != 0 {
                    return Err(Gp);
                }
                Ok(self.store(register, value & mask, now, tsc))
            }
        }
    }

    /// Which bits of a register the guest can change; `None` for a read-only one.
    pub(super) fn writable(&self, register: Register) -> Option<u32> {
        let mut mask = Svr(register.writable()?);
        if register == Register::Svr {
            mask.set_suppress_eoi(self.suppression);
        }
        Some(mask.0)
    }

    /// What a register reads as, in the mode at hand.
    pub(super) fn load(&self, register: Register, now: u64) -> u32 {
        match register {
            Register::Id if self.mode() == Mode::X2Apic => self.id,
            Register::Id => self.id << 24,
            Register::Version if self.suppression => VERSION | CAN_SUPPRESS_EOI,
            Register::Version => VERSION,
            Register::Tpr => u32::from(self.tpr),
            Register::Ppr => u32::from(self.ppr()),
            Register::Ldr => self.ldr(),
            Register::Dfr => self.dfr,
            Register::Svr => self.svr.0,
            Register::Isr(word) => self.isr.word(word.into()),
            Register::Tmr(word) => self.tmr.word(word.into()),
            Register::Irr(word) => self.irr.word(word.into()),
            Register::Esr => self.esr,
            Register::IcrLow => self.icr.low(),
            Register::IcrHigh => self.icr.high(),
            Register::Lvt(entry) => self.lvt(entry).0,
            Register::InitialCount => self.countdown.initial(),
            Register::CurrentCount => {
                let mode = self.lvt(LvtEntry::Timer).timer_mode();
                self.countdown.current(mode, now)
            }
            Register::Divide => self.countdown.divide(),
            Register::Eoi | Register::SelfIpi | Register::Apr | Register::RemoteRead => 0,
        }
    }

    /// Writes a register; `value` has only bits that it can hold.
    fn store(&mut self, register: Register, value: u32, now: u64, tsc: u64) -> Effect {
        match register {
            Register::Tpr => self.set_tpr(value as u8),
            Register::Eoi => return self.eoi(),
            Register::Ldr => self.logical_id = (value >> 24) as u8,
            // Bits 27:0 are reserved and read as 1 (figure 12-14).
            Register::Dfr => self.dfr = value | 0x0fff_ffff,
            Register::Svr => return self.store_svr(Svr(value)),
            Register::Esr => self.esr = core::mem::take(&mut self.errors),
            Register::IcrLow => {
                self.icr.set_low(value);
                return self.send();
            }
            Register::IcrHigh => self.icr.set_high(value),
            Register::Lvt(LvtEntry::Timer) => return self.store_timer(Lvt(value), now, tsc),
            Register::Lvt(entry) => *self.lvt_mut(entry) = self.maskable(Lvt(value)),
            Register::InitialCount => {
                let mode = self.lvt(LvtEntry::Timer).timer_mode();
                self.countdown.start(mode, value, now);
                return Effect::TimerChanged;
            }
            Register::Divide => {
                let mode = self.lvt(LvtEntry::Timer).timer_mode();
                self.countdown.set_divide(mode, value, now);
                return Effect::TimerChanged;
            }
            Register::SelfIpi => return self.send_self(value as u8),
            Register::Id
            | Register::Version
            | Register::Apr
            | Register::Ppr
            | Register::RemoteRead
            | Register::Isr(_)
            | Register::Tmr(_)
            | Register::Irr(_)
            | Register::CurrentCount => {}
        }
        Effect::None
    }

    /// The entry as it can be stored: while the local APIC is software-disabled, every one is masked (12.4.7.2).
    fn maskable(&self, mut entry: Lvt) -> Lvt {
        if !self.svr.enabled() {
            entry.set_masked(true);
        }
        entry
    }

    fn store_svr(&mut self, svr: Svr) -> Effect {
        let disabled = self.svr.enabled() && !svr.enabled();
        self.svr = svr;
        if !disabled {
            return Effect::None;
        }
        for entry in &mut self.lvt {
            entry.set_masked(true);
        }
        Effect::TimerChanged
    }

    fn store_timer(&mut self, entry: Lvt, now: u64, tsc: u64) -> Effect {
        // What is due is due under the old entry.
        self.timer_expired(now, tsc);
        let old = self.lvt(LvtEntry::Timer).timer_mode();
        *self.lvt_mut(LvtEntry::Timer) = self.maskable(entry);
        self.countdown.change_mode(old, entry.timer_mode());
        Effect::TimerChanged
    }

    /// Sends what is in the ICR (12.6.1).
    fn send(&mut self) -> Effect {
        let icr = self.icr;
        let delivery = Delivery::from_bits(icr.delivery_bits());
        match delivery {
            Delivery::Fixed | Delivery::LowestPriority if icr.vector() < 16 => {
                self.raise(error::SEND_ILLEGAL_VECTOR);
                return Effect::None;
            }
            // INIT level de-assert synchronised arbitration IDs on processors before the Pentium 4.
            Delivery::Init if icr.level() && !icr.assert() => return Effect::None,
            // Not for IPIs (table 12-3).
            Delivery::ExtInt | Delivery::Reserved => return Effect::None,
            _ => {}
        }
        let shorthand = match icr.shorthand_bits() {
            0 => Shorthand::None,
            1 => Shorthand::Self_,
            2 => Shorthand::AllIncludingSelf,
            _ => Shorthand::AllExcludingSelf,
        };
        let dest = match self.mode() {
            Mode::X2Apic => icr.high(),
            _ => Message::widen(icr.xapic_dest(), icr.logical()),
        };
        let message = Message {
            dest,
            logical: icr.logical(),
            delivery,
            vector: icr.vector(),
            // IPIs are edge-triggered, whatever the ICR says (12.6.1, "trigger mode").
            level: false,
        };
        Effect::Send(message, shorthand)
    }

    /// The self-IPI register (12.12.11).
    fn send_self(&mut self, vector: u8) -> Effect {
        if vector < 16 {
            self.raise(error::SEND_ILLEGAL_VECTOR);
            return Effect::None;
        }
        let message = Message {
            dest: self.id,
            logical: false,
            delivery: Delivery::Fixed,
            vector,
            level: false,
        };
        Effect::Send(message, Shorthand::Self_)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::message::BROADCAST;
    use super::*;

    fn x2apic(id: u32) -> Lapic {
        let mut lapic = Lapic::new(id, false, 1);
        lapic.set_base(0xfee0_0c00, 36).unwrap();
        lapic
    }

    #[test]
    fn identity_in_both_modes() {
        let mut lapic = Lapic::new(0x123, false, 1);
        assert_eq!(lapic.read(0x20, 0), 0x2300_0000);
        lapic.write(0xd0, u32::MAX, 0, 0);
        assert_eq!(lapic.read(0xd0, 0), 0xff00_0000);
        assert_eq!(lapic.read(0x30, 0), VERSION);
        let lapic = x2apic(0x123);
        assert_eq!(lapic.read_msr(0x802, 0), Ok(0x123));
        assert_eq!(lapic.read_msr(0x80d, 0), Ok(0x0012_0008));
    }

    #[test]
    fn msrs_that_fault() {
        let mut lapic = x2apic(0);
        for msr in [
            0x7ff, 0x800, 0x809, 0x80b, 0x80c, 0x80e, 0x831, 0x83f, 0x900,
        ] {
            assert_eq!(lapic.read_msr(msr, 0), Err(Gp), "read {msr:#x}");
        }
        for (msr, value) in [
            (0x802, 0),
            (0x803, 0),
            (0x80a, 0),
            (0x80d, 0),
            (0x808, 0x100),
            (0x808, 1 << 32),
            (0x80b, 1),
            (0x80f, 0x400),
            (0x828, 1),
            (0x830, 1 << 13),
            (0x832, 0x100),
            (0x839, 0),
            (0x83f, 0x100),
        ] {
            assert_eq!(lapic.write_msr(msr, value, 0, 0), Err(Gp), "write {msr:#x}");
        }
        lapic.reset(super::super::Reset::PowerUp);
        assert_eq!(lapic.read_msr(0x808, 0), Err(Gp));
        assert_eq!(lapic.write_msr(0x808, 0, 0, 0), Err(Gp));
    }

    #[test]
    fn interrupt_commands() {
        let mut lapic = Lapic::new(0, false, 1);
        lapic.write(0x310, 0xffff_ffff, 0, 0);
        assert_eq!(lapic.read(0x310, 0), 0xff00_0000);
        let Effect::Send(message, Shorthand::None) = lapic.write(0x300, 0xa5a1_9041, 0, 0) else {
            panic!("nothing sent");
        };
        assert_eq!((message.dest, message.vector), (BROADCAST, 0x41));
        assert_eq!(lapic.read(0x300, 0), 0xa5a1_8041);
        // INIT level de-assert, and an illegal vector.
        assert_eq!(lapic.write(0x300, 0x8500, 0, 0), Effect::None);
        assert_eq!(lapic.write(0x300, 0x000f, 0, 0), Effect::None);
        lapic.write(0x280, 0, 0, 0);
        assert_eq!(lapic.read(0x280, 0), error::SEND_ILLEGAL_VECTOR);

        let mut lapic = x2apic(7);
        let Ok(Effect::Send(message, Shorthand::AllExcludingSelf)) =
            lapic.write_msr(0x830, 0x1234_5678_000c_1631, 0, 0)
        else {
            panic!("nothing sent");
        };
        assert_eq!(message.dest, 0x1234_5678);
        assert_eq!(message.delivery, Delivery::Startup);
        assert_eq!(lapic.read_msr(0x830, 0), Ok(0x1234_5678_000c_0631));
        assert!(matches!(
            lapic.write_msr(0x83f, 0x44, 0, 0),
            Ok(Effect::Send(_, Shorthand::Self_))
        ));
    }

    #[test]
    fn software_disable_masks_the_table() {
        let mut lapic = Lapic::new(0, true, 1);
        lapic.write(0x320, 0x31, 0, 0);
        assert_eq!(lapic.read(0x320, 0), 0x1_0031);
        lapic.write(0xf0, 0x1ff, 0, 0);
        lapic.write(0x320, 0x31, 0, 0);
        assert_eq!(lapic.read(0x320, 0), 0x31);
        assert_eq!(lapic.write(0xf0, 0xff, 0, 0), Effect::TimerChanged);
        assert_eq!(lapic.read(0x320, 0), 0x1_0031);
        assert_eq!(lapic.read(0x350, 0), 0x1_0700);
    }

    #[test]
    fn ends_can_be_kept_quiet_where_that_is_offered() {
        let mut lapic = x2apic(0);
        assert_eq!(lapic.write_msr(0x80f, 0x11ff, 0, 0), Err(Gp));
        assert!(!lapic.suppresses_eois());
        lapic.offer_eoi_suppression(true);
        assert_eq!(lapic.read_msr(0x803, 0), Ok((VERSION | (1 << 24)).into()));
        assert_eq!(lapic.write_msr(0x80f, 0x11ff, 0, 0), Ok(Effect::None));
        assert_eq!(lapic.read_msr(0x80f, 0), Ok(0x11ff));
        assert!(lapic.suppresses_eois());
        lapic.reset(super::super::Reset::Init);
        assert!(!lapic.suppresses_eois());
        let mut lapic = Lapic::new(0, false, 1);
        lapic.write(0xf0, 0x11ff, 0, 0);
        assert_eq!(lapic.read(0xf0, 0), 0x1ff);
    }

    #[test]
    fn holes_in_the_page_are_errors() {
        let mut lapic = Lapic::new(0, false, 1);
        assert_eq!(lapic.read(0x2f0, 0), 0);
        assert_eq!(lapic.write(0x3f0, 0x40, 0, 0), Effect::None);
        lapic.write(0x280, 0, 0, 0);
        assert_eq!(lapic.read(0x280, 0), error::ILLEGAL_REGISTER);
    }
}
