// SPDX-License-Identifier: GPL-2.0

//! IA32_APIC_BASE (SDM vol 3, 12.4.4, 12.12.5): the in-kernel local APIC's, or a value for a VMM that has its own.

use crate::xvm::platform::lapic::Effect;
use crate::xvm::platform::Gp;
use crate::xvm::vcpu::Vcpu;
use crate::xvm::XvmOps;
use kernel::prelude::*;

const ENABLED: u64 = 1 << 11;
const BOOTSTRAP: u64 = 1 << 8;
const X2APIC: u64 = 1 << 10;
/// Bits 7:0 and 9.
const RESERVED: u64 = 0x2ff;

/// Enabled at the default address.
pub(super) fn after_reset(bootstrap: bool) -> u64 {
    0xfee0_0000 | ENABLED | if bootstrap { BOOTSTRAP } else { 0 }
}

impl super::Msrs {
    /// Whether a local APIC in userspace is on.
    pub(crate) fn apic_enabled(&self) -> bool {
        self.apic_base & ENABLED != 0
    }
}

impl<V: XvmOps> Vcpu<V> {
    /// IA32_APIC_BASE.
    pub(crate) fn apic_base(&self) -> u64 {
        match &self.lapic {
            Some(lapic) => lapic.base(),
            None => self.msrs.apic_base,
        }
    }

    /// The VMM sets it: any mode, and the local APIC's registers stay.
    ///
    /// # Errors
    ///
    /// `EINVAL` for reserved bits, x2APIC mode that the vCPU doesn't have, or a mode that there isn't. Nothing has
    /// changed then.
    pub(crate) fn restore_apic_base(&mut self, value: u64) -> Result {
        if !self.is_apic_base(value) {
            return Err(EINVAL);
        }
        let maxphyaddr = self.cpuid.model().maxphyaddr;
        match &mut self.lapic {
            Some(lapic) => {
                lapic.restore_base(value, maxphyaddr).map_err(|_| EINVAL)?;
                self.apply(Effect::TimerChanged);
            }
            None => self.msrs.apic_base = value,
        }
        Ok(())
    }

    fn is_apic_base(&self, value: u64) -> bool {
        let model = self.cpuid.model();
        let x2apic = value & X2APIC != 0;
        value & (RESERVED | model.beyond_physical()) == 0
            && (!x2apic || model.x2apic && value & ENABLED != 0)
    }

    /// A write of it as an MSR.
    pub(super) fn write_apic_base(&mut self, value: u64, host: bool) -> Result<Effect, Gp> {
        if host {
            self.restore_apic_base(value).map_err(|_| Gp)?;
            return Ok(Effect::None);
        }
        if !self.is_apic_base(value) {
            return Err(Gp);
        }
        let maxphyaddr = self.cpuid.model().maxphyaddr;
        match &mut self.lapic {
            Some(lapic) => lapic.set_base(value, maxphyaddr)?,
            None => self.msrs.apic_base = value,
        }
        Ok(Effect::TimerChanged)
    }
}
