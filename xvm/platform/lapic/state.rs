// SPDX-License-Identifier: GPL-2.0

//! Saving and restoring the local APIC: KVM_GET_LAPIC and KVM_SET_LAPIC (api.rst 4.57, 4.58).
//!
//! The layout is that of the xAPIC page, also in x2APIC mode. IA32_APIC_BASE and IA32_TSC_DEADLINE travel as MSRs, so a VMM
//! restores the former first: which mode it is in says how the ID is written.

use super::super::Invalid;
use super::regs::Icr;
use super::regs::Lvt;
use super::regs::LvtEntry;
use super::regs::Register;
use super::regs::Svr;
use super::regs::LVT_ENTRIES;
use super::Lapic;
use super::Mode;

/// Size of struct kvm_lapic_state.
const SIZE: usize = 1024;

/// Where the word at an offset in the page is, for the registers that are saved.
fn word(page: &[u8; SIZE], offset: usize) -> u32 {
    match page.get(offset..).and_then(|rest| rest.first_chunk::<4>()) {
        Some(bytes) => u32::from_le_bytes(*bytes),
        None => 0,
    }
}

impl Lapic {
    /// Saves the registers. `id32` asks for 32-bit IDs in x2APIC mode (api.rst, KVM_CAP_X2APIC_API); otherwise the ID is in
    /// xAPIC format. Drain the mailbox and look after the timer first, so that nothing is left behind.
    pub fn state(&self, page: &mut [u8; SIZE], id32: bool, now: u64) {
        for (offset, chunk) in (0u32..).step_by(16).zip(page.chunks_exact_mut(16)) {
            let value = match Register::at(offset) {
                Some(Register::Id) if !id32 => self.id << 24,
                Some(register) => self.load(register, now),
                None => 0,
            };
            chunk.fill(0);
            if let Some(low) = chunk.first_chunk_mut::<4>() {
                *low = value.to_le_bytes();
            }
        }
    }

    /// Restores the registers: what is read-only is ignored, and bits that a register doesn't have are dropped.
    ///
    /// An ID other than its own is refused in x2APIC mode with `id32`, as KVM does. Consult [`Lapic::timer`] and publish the
    /// address afterwards.
    pub fn set_state(&mut self, page: &[u8; SIZE], id32: bool, now: u64) -> Result<(), Invalid> {
        let x2apic = self.mode() == Mode::X2Apic;
        if x2apic && id32 && word(page, 0x20) != self.id {
            return Err(Invalid);
        }
        let svr = word(page, 0xf0) & self.writable(Register::Svr).unwrap_or(0);
        let writable =
            |register: Register, offset| word(page, offset) & register.writable().unwrap_or(0);
        self.tpr = writable(Register::Tpr, 0x80) as u8;
        if !x2apic {
            // The one of x2APIC mode is read-only.
            self.logical_id = (writable(Register::Ldr, 0xd0) >> 24) as u8;
        }
        self.dfr = writable(Register::Dfr, 0xe0) | 0x0fff_ffff;
        self.svr = Svr(svr);
        for index in 0..8 {
            self.isr.set_word(index, word(page, 0x100 + 16 * index));
            self.tmr.set_word(index, word(page, 0x180 + 16 * index));
            self.irr.set_word(index, word(page, 0x200 + 16 * index));
        }
        self.esr = word(page, 0x280) & 0xff;
        self.errors = 0;
        self.icr = Icr(u64::from(writable(Register::IcrLow, 0x300)));
        self.icr.set_high(if x2apic {
            word(page, 0x310)
        } else {
            writable(Register::IcrHigh, 0x310)
        });
        for (index, entry) in LVT_ENTRIES.into_iter().enumerate() {
            let value = writable(Register::Lvt(entry), 0x320 + 16 * index);
            *self.lvt_mut(entry) = Lvt(value);
        }
        self.restore_timer(page, now);
        Ok(())
    }

    fn restore_timer(&mut self, page: &[u8; SIZE], now: u64) {
        let divide = word(page, 0x3e0) & Register::Divide.writable().unwrap_or(0);
        let mode = self.lvt(LvtEntry::Timer).timer_mode();
        self.countdown
            .restore(mode, word(page, 0x380), divide, word(page, 0x390), now);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Timer;
    use super::*;

    #[test]
    fn id_formats() {
        let mut lapic = Lapic::new(5, false, 1);
        let mut page = [0; SIZE];
        lapic.state(&mut page, true, 0);
        assert_eq!(word(&page, 0x20), 5 << 24);
        lapic.set_base(0xfee0_0c00, 36).unwrap();
        lapic.state(&mut page, false, 0);
        assert_eq!(word(&page, 0x20), 5 << 24);
        assert_eq!(lapic.set_state(&page, true, 0), Err(Invalid));
        lapic.state(&mut page, true, 0);
        assert_eq!((word(&page, 0x20), word(&page, 0xd0)), (5, 0x20));
        assert_eq!(lapic.set_state(&page, true, 0), Ok(()));
    }

    #[test]
    fn reserved_bits_are_dropped() {
        let mut lapic = Lapic::new(0, false, 1);
        let mut page = [0; SIZE];
        for offset in [0x80, 0xe0, 0xf0, 0x310, 0x320] {
            page[offset..offset + 4].copy_from_slice(&0xfafa_5a5a_u32.to_le_bytes());
        }
        lapic.set_state(&page, false, 0).unwrap();
        let registers = [0x80, 0xe0, 0xf0, 0x310, 0x320].map(|offset| lapic.read(offset, 0));
        assert_eq!(registers, [0x5a, 0xffff_ffff, 0x25a, 0xfa00_0000, 0x2_005a]);
        page[0xe0..0xe4].fill(0);
        lapic.set_state(&page, false, 0).unwrap();
        assert_eq!(lapic.read(0xe0, 0), 0x0fff_ffff);
    }

    #[test]
    fn a_running_timer_goes_on() {
        let mut lapic = Lapic::new(0, false, 1);
        lapic.write(0xf0, 0x1ff, 0, 0);
        lapic.write(0x320, 0x40, 0, 0);
        lapic.write(0x3e0, 0xb, 0, 0);
        lapic.write(0x380, 1000, 0, 0);
        let mut page = [0; SIZE];
        lapic.state(&mut page, false, 400);
        let mut other = Lapic::new(0, false, 1);
        other.set_state(&page, false, 10_000).unwrap();
        assert_eq!(other.timer(), Timer::At { ns: 10_600 });
        assert_eq!(other.read(0x390, 10_000), 600);
    }
}
