// SPDX-License-Identifier: GPL-2.0

//! IA32_APIC_BASE: where the local APIC is and in which mode (Intel SDM vol. 3, 12.4.4 and 12.12.5).

use super::super::Gp;
use super::super::Invalid;
use super::Lapic;

/// Mode of the local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Globally disabled: as if the processor had none.
    Disabled,
    /// Registers in a page of physical memory.
    XApic,
    /// Registers as MSRs.
    X2Apic,
}

register! {
    /// IA32_APIC_BASE (figure 12-26).
    pub(super) struct Base(u64) {
        x2apic: bool = 10;
        enabled: bool = 11;
    }
}

impl Base {
    const BOOTSTRAP: u64 = 1 << 8;
    const ENABLED: u64 = 1 << 11;
    const ADDRESS: u64 = !0xfff;
    /// Bits 7:0 and 9.
    const RESERVED: u64 = 0x2ff;

    /// After power-up: xAPIC mode at the default address (12.4.5).
    pub(super) fn reset(bootstrap: bool) -> Base {
        Base(0xfee0_0000 | Self::ENABLED | if bootstrap { Self::BOOTSTRAP } else { 0 })
    }

    /// The mode; EXTD without EN is none.
    fn checked_mode(self) -> Option<Mode> {
        match (self.enabled(), self.x2apic()) {
            (false, false) => Some(Mode::Disabled),
            (true, false) => Some(Mode::XApic),
            (true, true) => Some(Mode::X2Apic),
            (false, true) => None,
        }
    }

    /// Decodes a value that has no reserved bit set.
    fn check(value: u64, maxphyaddr: u8) -> Option<(Base, Mode)> {
        let beyond = u64::MAX.checked_shl(u32::from(maxphyaddr)).unwrap_or(0);
        if value & (Self::RESERVED | beyond) != 0 {
            return None;
        }
        Some((Base(value), Base(value).checked_mode()?))
    }
}

impl Lapic {
    /// IA32_APIC_BASE.
    pub fn base(&self) -> u64 {
        self.base.0
    }

    /// The mode it is in.
    pub fn mode(&self) -> Mode {
        // Only values that have a mode are ever stored.
        self.base.checked_mode().unwrap_or(Mode::Disabled)
    }

    /// Physical address of the register page, in xAPIC mode.
    pub fn page(&self) -> Option<u64> {
        (self.mode() == Mode::XApic).then_some(self.base.0 & Base::ADDRESS)
    }

    /// Whether a page is where the registers would be, in xAPIC mode.
    pub fn is_at(&self, page: u64) -> bool {
        self.base.0 & Base::ADDRESS == page
    }

    /// The guest writes IA32_APIC_BASE. Only the transitions of figure 12-27 are legal.
    ///
    /// `maxphyaddr` is the guest's physical address width in bits. Whether the guest's CPUID has x2APIC at all is for the
    /// caller to check. Consult [`Lapic::timer`] and publish the address afterwards.
    pub fn set_base(&mut self, value: u64, maxphyaddr: u8) -> Result<(), Gp> {
        let (base, mode) = Base::check(value, maxphyaddr).ok_or(Gp)?;
        match (self.mode(), mode) {
            (Mode::X2Apic, Mode::XApic) | (Mode::Disabled, Mode::X2Apic) => return Err(Gp),
            // Whoever enables it again finds it as after power-up (12.4.3, 12.12.5.1).
            (Mode::XApic | Mode::X2Apic, Mode::Disabled) => self.reset_registers(),
            // The upper half of the ICR starts as 0 (12.12.5.1).
            (Mode::XApic, Mode::X2Apic) => self.icr.set_high(0),
            _ => {}
        }
        self.base = base;
        Ok(())
    }

    /// The VMM sets IA32_APIC_BASE: any mode, and the registers stay.
    pub fn restore_base(&mut self, value: u64, maxphyaddr: u8) -> Result<(), Invalid> {
        let (base, mode) = Base::check(value, maxphyaddr).ok_or(Invalid)?;
        if mode != Mode::X2Apic {
            // All that the ICR's upper half has there.
            self.icr.set_high(self.icr.high() & 0xff00_0000);
        }
        self.base = base;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn legal_and_illegal_transitions() {
        const OFF: u64 = 0xfee0_0000;
        const XAPIC: u64 = 0xfee0_0800;
        const X2APIC: u64 = 0xfee0_0c00;
        let from = |value| {
            let mut lapic = Lapic::new(0, false, 1);
            lapic.restore_base(value, 36).unwrap();
            lapic
        };
        for (old, new, legal) in [
            (OFF, OFF, true),
            (OFF, XAPIC, true),
            (OFF, X2APIC, false),
            (XAPIC, OFF, true),
            (XAPIC, X2APIC, true),
            (X2APIC, XAPIC, false),
            (X2APIC, OFF, true),
            (X2APIC, X2APIC, true),
            (XAPIC, 0xfee0_0400, false),
            (XAPIC, XAPIC | (1 << 9), false),
            (XAPIC, XAPIC | (1 << 36), false),
            (XAPIC, XAPIC | (1 << 35), true),
        ] {
            let mut lapic = from(old);
            assert_eq!(
                lapic.set_base(new, 36).is_ok(),
                legal,
                "{old:#x} -> {new:#x}"
            );
            assert_eq!(lapic.base(), if legal { new } else { old });
        }
    }
}
