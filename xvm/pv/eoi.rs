// SPDX-License-Identifier: GPL-2.0

//! Ends of interrupts without an exit (x86/msr.rst, `MSR_KVM_EOI_EN`): where the EOI of the one interrupt there is can wait, the
//! guest is told so before an entry, in a byte of its memory, and tells by clearing it that the interrupt has ended. After each exit
//! the byte is looked at, and is 0 until the next entry.
//!
//! An interrupt that is offered to the CPU is in service as soon as the guest has taken it, without anybody being told: its EOI may
//! wait if none is in service before.

use super::ENABLED;
use crate::xvm::delivery::Offered;
use crate::xvm::platform::Gp;
use crate::xvm::vcpu::Vcpu;
use crate::xvm::XvmOps;

/// The bit of the byte: an EOI isn't needed.
const CAN_WAIT: u8 = 1 << 0;

impl<V: XvmOps> Vcpu<V> {
    /// MSR_KVM_EOI_EN.
    ///
    /// # Errors
    ///
    /// [`Gp`] for an address that isn't aligned to 4 bytes, or where there is no memory.
    pub(super) fn set_pv_eoi(&mut self, value: u64) -> Result<(), Gp> {
        let gpa = value & !ENABLED;
        if gpa % 4 != 0 || value & ENABLED != 0 && self.main_slots().by_gpa(gpa).is_none() {
            return Err(Gp);
        }
        self.pv.eoi = value;
        Ok(())
    }

    /// Before an entry, with the interrupt offered: tells the guest whether the EOI can wait.
    #[inline]
    pub(crate) fn announce_eoi(&mut self) {
        if self.pv.eoi & ENABLED != 0 && self.lapic.is_some() {
            self.announce();
        }
    }

    fn announce(&mut self) {
        let offered = match self.events.offered {
            Some(Offered::Lapic(_)) => true,
            // It isn't the local APIC's.
            Some(Offered::Acknowledged) => return,
            None => false,
        };
        let Some(lapic) = &self.lapic else { return };
        let irqchip = self.irqchip();
        let told = |vector| irqchip.is_some_and(|irqchip| irqchip.wants_end(vector));
        if lapic.eoi_can_wait(offered, told) {
            let gpa = self.pv.eoi & !ENABLED;
            let told = self.main_slots().write_nofault(gpa, &[CAN_WAIT]);
            self.pv.eoi_announced = told.is_ok();
        }
    }

    /// Whether the guest is told so, and may have made an EOI when it exits.
    #[inline]
    pub(crate) fn eoi_is_announced(&self) -> bool {
        self.pv.eoi_announced
    }

    /// After an exit: carries out the EOI that the guest has made.
    #[inline]
    pub(crate) fn collect_eoi(&mut self) {
        if self.pv.eoi_announced {
            self.collect();
        }
    }

    fn collect(&mut self) {
        self.pv.eoi_announced = false;
        let gpa = self.pv.eoi & !ENABLED;
        let slots = self.main_slots();
        let mut byte = [0];
        // Where it can't be read any more, the guest can't have cleared it either.
        if slots.read_nofault(gpa, &mut byte).is_err() {
            return;
        }
        if byte[0] & CAN_WAIT != 0 {
            let _ = slots.write_nofault(gpa, &[0]);
            return;
        }
        drop(slots);
        if let Some(lapic) = &mut self.lapic {
            let effect = lapic.eoi();
            self.apply(effect);
        }
    }
}
