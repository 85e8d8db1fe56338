// SPDX-License-Identifier: GPL-2.0

//! The registers of the local APIC: where they are and what is in them (Intel SDM vol. 3, 12.4.1, table 12-1, and 12.12.1,
//! table 12-6 for x2APIC).

use super::super::message::Delivery;

/// Version register: an integrated APIC (0x14) whose last LVT entry is number 5 (12.4.8).
pub(super) const VERSION: u32 = 0x0005_0014;
/// The same register: EOI-broadcast suppression.
pub(super) const CAN_SUPPRESS_EOI: u32 = 1 << 24;

/// The local vector table has the six entries of processors without CMCI (12.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LvtEntry {
    Timer,
    Thermal,
    Performance,
    Lint0,
    Lint1,
    Error,
}

/// The entries in the order of their registers.
pub(super) const LVT_ENTRIES: [LvtEntry; 6] = [
    LvtEntry::Timer,
    LvtEntry::Thermal,
    LvtEntry::Performance,
    LvtEntry::Lint0,
    LvtEntry::Lint1,
    LvtEntry::Error,
];

/// A register, whichever way it is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    Id,
    Version,
    Tpr,
    /// Arbitration priority, of processors that share an APIC bus: reads 0.
    Apr,
    Ppr,
    Eoi,
    /// Remote read, of the same processors: reads 0.
    RemoteRead,
    Ldr,
    Dfr,
    Svr,
    Isr(u8),
    Tmr(u8),
    Irr(u8),
    Esr,
    IcrLow,
    IcrHigh,
    Lvt(LvtEntry),
    InitialCount,
    CurrentCount,
    Divide,
    SelfIpi,
}

impl Register {
    /// The register at a byte offset in the xAPIC page; the x2APIC MSR `0x800 + n` is the one at `16 * n`.
    pub(super) fn at(offset: u32) -> Option<Register> {
        let word = ((offset >> 4) & 7) as u8;
        Some(match offset {
            0x020 => Register::Id,
            0x030 => Register::Version,
            0x080 => Register::Tpr,
            0x090 => Register::Apr,
            0x0a0 => Register::Ppr,
            0x0b0 => Register::Eoi,
            0x0c0 => Register::RemoteRead,
            0x0d0 => Register::Ldr,
            0x0e0 => Register::Dfr,
            0x0f0 => Register::Svr,
            0x100..=0x170 if offset & 0xf == 0 => Register::Isr(word),
            0x180..=0x1f0 if offset & 0xf == 0 => Register::Tmr(word),
            0x200..=0x270 if offset & 0xf == 0 => Register::Irr(word),
            0x280 => Register::Esr,
            0x300 => Register::IcrLow,
            0x310 => Register::IcrHigh,
            0x320 => Register::Lvt(LvtEntry::Timer),
            0x330 => Register::Lvt(LvtEntry::Thermal),
            0x340 => Register::Lvt(LvtEntry::Performance),
            0x350 => Register::Lvt(LvtEntry::Lint0),
            0x360 => Register::Lvt(LvtEntry::Lint1),
            0x370 => Register::Lvt(LvtEntry::Error),
            0x380 => Register::InitialCount,
            0x390 => Register::CurrentCount,
            0x3e0 => Register::Divide,
            0x3f0 => Register::SelfIpi,
            _ => return None,
        })
    }

    /// Whether the xAPIC page has it.
    pub(super) fn in_xapic(self) -> bool {
        self != Register::SelfIpi
    }

    /// Whether x2APIC mode has it (table 12-6): the ICR is one 64-bit register there.
    pub(super) fn in_x2apic(self) -> bool {
        !matches!(
            self,
            Register::Apr | Register::RemoteRead | Register::Dfr | Register::IcrHigh
        )
    }

    /// Which bits a write can change; `None` for a read-only register.
    pub(super) fn writable(self) -> Option<u32> {
        match self {
            Register::Tpr | Register::SelfIpi => Some(0xff),
            Register::Eoi | Register::Esr => Some(0),
            Register::Ldr | Register::IcrHigh => Some(0xff00_0000),
            Register::Dfr => Some(0xf000_0000),
            Register::Svr => Some(0x13ff),
            // All but the delivery status: KVM's users find reserved bits as they wrote them.
            Register::IcrLow => Some(!0x1000),
            Register::Lvt(entry) => Some(Lvt::writable(entry)),
            Register::InitialCount => Some(u32::MAX),
            Register::Divide => Some(0xb),
            Register::Id
            | Register::Version
            | Register::Apr
            | Register::Ppr
            | Register::RemoteRead
            | Register::Isr(_)
            | Register::Tmr(_)
            | Register::Irr(_)
            | Register::CurrentCount => None,
        }
    }
}

register! {
    /// Entry of the local vector table (12.5.1, figure 12-8).
    pub(super) struct Lvt(u32) {
        vector: u8 = 7..0;
        delivery_bits: u8 = 10..8;
        masked / set_masked: bool = 16;
        timer_mode_bits: u8 = 18..17;
    }
}

impl Lvt {
    /// Masked, as after reset (12.4.7.1).
    pub(super) const RESET: Lvt = Lvt(0x0001_0000);

    /// Delivery status and remote IRR: read-only, so a write that has them set is no mistake.
    pub(super) const READ_ONLY: u32 = 0x5000;

    /// Which bits the entry has.
    fn writable(entry: LvtEntry) -> u32 {
        match entry {
            LvtEntry::Timer => 0x0007_00ff,
            LvtEntry::Error => 0x0001_00ff,
            LvtEntry::Thermal | LvtEntry::Performance => 0x0001_07ff,
            LvtEntry::Lint0 | LvtEntry::Lint1 => 0x0001_a7ff,
        }
    }

    /// Delivery mode, of the entries that have one.
    pub(super) fn delivery(self) -> Delivery {
        Delivery::from_bits(self.delivery_bits())
    }

    /// Mode of the timer, in the timer's entry.
    pub(super) fn timer_mode(self) -> TimerMode {
        match self.timer_mode_bits() {
            0 => TimerMode::OneShot,
            1 => TimerMode::Periodic,
            2 => TimerMode::TscDeadline,
            _ => TimerMode::Reserved,
        }
    }
}

/// Mode of the timer (12.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimerMode {
    OneShot,
    Periodic,
    TscDeadline,
    /// An encoding without a meaning: the timer stands still.
    Reserved,
}

impl TimerMode {
    /// Whether the timer counts down, other than to wait for a time.
    pub(super) fn counts(self) -> bool {
        matches!(self, TimerMode::OneShot | TimerMode::Periodic)
    }
}

register! {
    /// Spurious-interrupt vector register (12.9).
    pub(super) struct Svr(u32) {
        enabled: bool = 8;
        suppress_eoi / set_suppress_eoi: bool = 12;
    }
}

register! {
    /// Interrupt command register (12.6.1, figures 12-12 and 12-28).
    pub(super) struct Icr(u64) {
        low / set_low: u32 = 31..0;
        high / set_high: u32 = 63..32;
        vector: u8 = 7..0;
        delivery_bits: u8 = 10..8;
        logical: bool = 11;
        assert: bool = 14;
        level: bool = 15;
        shorthand_bits: u8 = 19..18;
        xapic_dest: u8 = 63..56;
    }
}

impl Icr {
    /// Bits that must be 0 in x2APIC mode (figure 12-28). Bit 12 was the delivery status and is ignored.
    pub(super) const X2APIC_RESERVED: u64 = 0xfff3_2000;
    /// The delivery status of xAPIC mode.
    pub(super) const BUSY: u64 = 0x1000;
}

register! {
    /// Divide configuration register (12.5.4, figure 12-10).
    pub(super) struct Divide(u32) {
        low: u8 = 1..0;
        high: u8 = 3..3;
    }
}

impl Divide {
    /// How many ticks of the bus clock make one of the timer: 1 to 128. The encoding starts with 2 and ends with 1.
    pub(super) fn ticks(self) -> u64 {
        let encoding = (self.high() << 2) | self.low();
        1 << ((encoding + 1) & 7)
    }
}

/// Bits of the error status register (12.5.3).
pub(super) mod error {
    /// An IPI was to be sent with a vector below 16.
    pub(in super::super) const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    /// A vector below 16 arrived, or is in the local vector table.
    pub(in super::super) const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
    /// An access to a place in the xAPIC page where no register is.
    pub(in super::super) const ILLEGAL_REGISTER: u32 = 1 << 7;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divide_encodings() {
        let ticks = [0, 1, 2, 3, 8, 9, 10, 11].map(|bits| Divide(bits).ticks());
        assert_eq!(ticks, [2, 4, 8, 16, 32, 64, 128, 1]);
    }

    #[test]
    fn every_lvt_entry_has_its_register() {
        for (index, entry) in (0..).zip(LVT_ENTRIES) {
            assert_eq!(Register::at(0x320 + 16 * index), Some(Register::Lvt(entry)));
        }
    }
}
