// SPDX-License-Identifier: GPL-2.0

//! Reading and writing an MSR. Also inside the window: nothing here sleeps.
//!
//! `host` says that the VMM asks, not the guest: it may restore what a guest can't write, and MSRs of features that
//! the guest's CPUID doesn't have.

use super::check;
use super::constant;
use super::index;
use super::MISC_ENABLE_UNAVAILABLE;
use crate::linux::timer;
use crate::linux::x86;
use crate::xvm::mce::Mce;
use crate::xvm::platform::lapic::Effect;
use crate::xvm::platform::Gp;
use crate::xvm::vcpu::Vcpu;
use crate::xvm::XvmOps;
use core::sync::atomic::Ordering;

/// IA32_FEATURE_CONTROL: locked, and nothing (VMX, SGX, SENTER) is on.
pub(super) const FEATURE_CONTROL_LOCKED: u64 = 1;

/// IA32_PLATFORM_INFO: CPUID can be made to fault.
pub(super) const CPUID_FAULTING: u64 = 1 << 31;

/// HWCR: McStatusWrEn and TscFreqSel can be set; TlbCacheDis, IgnneDis and SmmBaseLock… that BIOSes set (bits 3, 6,
/// 8) are ignored.
const HWCR_STORED: u64 = STATUS_WRITABLE | 1 << 24;
const HWCR_IGNORED: u64 = 1 << 3 | 1 << 6 | 1 << 8;

/// HWCR.McStatusWrEn: machine-check status can be written.
const STATUS_WRITABLE: u64 = 1 << 18;

/// DE_CFG.LFENCE_SERIALIZE.
pub(super) const LFENCE_SERIALIZE: u64 = 1 << 1;

/// PRED_CMD.IBPB.
const IBPB: u64 = 1;

/// #GP unless `condition` holds.
fn require(condition: bool) -> Result<(), Gp> {
    if condition {
        Ok(())
    } else {
        Err(Gp)
    }
}

impl<V: XvmOps> Vcpu<V> {
    /// Reads MSR `msr`.
    ///
    /// # Errors
    ///
    /// [`Gp`] when there is no such MSR, or none that can be read.
    pub(crate) fn read_msr(&mut self, msr: u32, host: bool) -> Result<u64, Gp> {
        match msr {
            index::TSC => Ok(self.guest_tsc()),
            index::TSC_DEADLINE => self.read_tsc_deadline(host),
            index::X2APIC_FIRST..=index::X2APIC_LAST => self.read_x2apic(msr),
            index::EFER => Ok(V::system_regs(&self.arch).efer),
            index::APIC_BASE => Ok(self.apic_base()),
            index::SPEC_CTRL if !host && self.cpuid.model().spec_ctrl == 0 => Err(Gp),
            index::TSC_AUX if !host && !self.cpuid.model().tsc_aux => Err(Gp),
            _ => match V::read_msr(&self.arch, msr) {
                Some(value) => Ok(value),
                None => self.read_stored(msr, host),
            },
        }
    }

    /// It is the local APIC's. With one in userspace a VMM that saves all MSRs of the list finds it zero.
    fn read_tsc_deadline(&self, host: bool) -> Result<u64, Gp> {
        match &self.lapic {
            Some(lapic) => Ok(lapic.tsc_deadline()),
            None if host => Ok(0),
            None => Err(Gp),
        }
    }

    fn read_x2apic(&mut self, msr: u32) -> Result<u64, Gp> {
        let lapic = self.lapic.as_mut().ok_or(Gp)?;
        self.shared.mailbox.drain_into(lapic);
        let now = if msr == index::X2APIC_CURRENT_COUNT {
            timer::now()
        } else {
            0
        };
        lapic.read_msr(msr, now)
    }

    /// Reads an MSR that is kept here.
    fn read_stored(&self, msr: u32, host: bool) -> Result<u64, Gp> {
        let (msrs, model) = (&self.msrs, self.cpuid.model());
        match msr {
            index::MISC_ENABLE => Ok(msrs.misc_enable),
            index::TSC_ADJUST if host || model.tsc_adjust => Ok(msrs.tsc_adjust),
            index::BIOS_SIGN_ID => Ok(msrs.microcode),
            index::PLATFORM_INFO if !host && self.hides_platform_info() => Err(Gp),
            index::PLATFORM_INFO => Ok(msrs.platform_info),
            index::MISC_FEATURES => Ok(msrs.cpuid_faults.into()),
            index::POWER_CTL => Ok(msrs.power_ctl),
            index::FEATURE_CONTROL => Ok(msrs.feature_control),
            index::ARCH_CAPABILITIES if host || model.arch_capabilities => {
                Ok(msrs.arch_capabilities)
            }
            index::PERF_CAPABILITIES if host => Ok(0),
            index::SMBASE if host => Ok(self.smm.base),
            index::SMI_COUNT => Ok(self.smm.count),
            index::HWCR => Ok(msrs.hwcr),
            index::PV_OLD_FIRST..=index::PV_OLD_LAST | index::PV_FIRST..=index::PV_LAST => {
                self.read_pv_msr(msr)
            }
            index::DE_CFG => Ok(msrs.de_cfg),
            _ if Mce::has(msr) => self.mce.read(msr, host),
            _ => msrs
                .mtrrs
                .read(msr)
                .or_else(|| constant::read(msr))
                .ok_or(Gp),
        }
    }

    fn hides_platform_info(&self) -> bool {
        let hide = &self.vm.switches.hide_platform_info;
        hide.load(Ordering::Relaxed)
    }

    /// Writes MSR `msr`. What is returned is to be done ([`Vcpu::apply`]).
    ///
    /// # Errors
    ///
    /// [`Gp`] when there is no such MSR, none that can be written, or the value has a reserved bit.
    pub(crate) fn write_msr(&mut self, msr: u32, value: u64, host: bool) -> Result<Effect, Gp> {
        match msr {
            index::TSC_DEADLINE => return self.write_tsc_deadline(value, host),
            index::X2APIC_FIRST..=index::X2APIC_LAST => return self.write_x2apic(msr, value),
            index::TSC | index::TSC_ADJUST => return self.write_time(msr, value, host),
            index::PV_OLD_FIRST..=index::PV_OLD_LAST | index::PV_FIRST..=index::PV_LAST => {
                return self.write_pv_msr(msr, value);
            }
            index::APIC_BASE => return self.write_apic_base(value, host),
            index::EFER => self.set_efer(value, host)?,
            index::PRED_CMD => self.write_pred_cmd(value, host)?,
            _ => {
                let value = check::value(&self.cpuid, msr, value, host)?;
                if !V::write_msr(&mut self.arch, msr, value) {
                    self.write_stored(msr, value, host)?;
                }
            }
        }
        Ok(Effect::None)
    }

    fn write_tsc_deadline(&mut self, value: u64, host: bool) -> Result<Effect, Gp> {
        match &mut self.lapic {
            Some(lapic) => Ok(lapic.set_tsc_deadline(value)),
            None if host && value == 0 => Ok(Effect::None),
            None => Err(Gp),
        }
    }

    fn write_x2apic(&mut self, msr: u32, value: u64) -> Result<Effect, Gp> {
        // Time costs more than all the rest, and only the timer's registers ask for it.
        let (now, tsc) = match msr {
            index::X2APIC_LVT_TIMER | index::X2APIC_INITIAL_COUNT | index::X2APIC_DIVIDE => {
                (timer::now(), self.guest_tsc())
            }
            _ => (0, 0),
        };
        let lapic = self.lapic.as_mut().ok_or(Gp)?;
        self.shared.mailbox.drain_into(lapic);
        lapic.write_msr(msr, value, now, tsc)
    }

    /// TSC and TSC_ADJUST: the guest changes both with either (SDM vol 3, 18.17.3); the VMM restores each for itself.
    fn write_time(&mut self, msr: u32, value: u64, host: bool) -> Result<Effect, Gp> {
        match (msr, host) {
            (index::TSC, true) => {
                self.restore_tsc(value);
            }
            (index::TSC, false) => {
                let change = value.wrapping_sub(self.guest_tsc());
                self.msrs.tsc_adjust = self.msrs.tsc_adjust.wrapping_add(change);
                self.set_tsc_offset(self.config.tsc_offset.wrapping_add(change));
            }
            (_, true) => self.msrs.tsc_adjust = value,
            (_, false) => {
                require(self.cpuid.model().tsc_adjust)?;
                let change = value.wrapping_sub(self.msrs.tsc_adjust);
                self.msrs.tsc_adjust = value;
                self.set_tsc_offset(self.config.tsc_offset.wrapping_add(change));
            }
        }
        Ok(Effect::TimerChanged)
    }

    fn write_pred_cmd(&self, value: u64, host: bool) -> Result<(), Gp> {
        require(value & !IBPB == 0 && (host || self.cpuid.model().ibpb))?;
        if !host && value & IBPB != 0 {
            x86::indirect_branch_barrier();
        }
        Ok(())
    }

    /// Writes an MSR that is kept here.
    fn write_stored(&mut self, msr: u32, value: u64, host: bool) -> Result<(), Gp> {
        let msrs = &mut self.msrs;
        match msr {
            index::MISC_ENABLE => {
                let changed = value ^ MISC_ENABLE_UNAVAILABLE;
                require(host || changed & MISC_ENABLE_UNAVAILABLE == 0)?;
                msrs.misc_enable = value | MISC_ENABLE_UNAVAILABLE;
                self.update_monitor();
            }
            // Before it reads the number a guest writes zero.
            index::BIOS_SIGN_ID if !host => {}
            index::BIOS_SIGN_ID => msrs.microcode = value,
            index::PLATFORM_INFO => {
                require(host)?;
                msrs.platform_info = value;
            }
            // Bit 0, where PLATFORM_INFO says that there is such.
            index::MISC_FEATURES => {
                require(value == 0 || value == 1 && msrs.platform_info & CPUID_FAULTING != 0)?;
                msrs.cpuid_faults = value != 0;
            }
            index::POWER_CTL => msrs.power_ctl = value,
            index::FEATURE_CONTROL => {
                require(host && value & !FEATURE_CONTROL_LOCKED == 0)?;
                msrs.feature_control = value;
            }
            index::ARCH_CAPABILITIES => {
                require(host && value & !super::list::arch_capabilities() == 0)?;
                msrs.arch_capabilities = value;
            }
            index::PERF_CAPABILITIES => require(host && value == 0)?,
            // The guest changes it in the state that it is saved in.
            index::SMBASE if host => self.smm.base = value,
            index::SMI_COUNT if host => self.smm.count = value,
            index::HWCR => {
                require(value & !(HWCR_STORED | HWCR_IGNORED) == 0)?;
                msrs.hwcr = value & HWCR_STORED;
            }
            index::DE_CFG => {
                require(value & !super::list::de_cfg() == 0)?;
                msrs.de_cfg = value;
            }
            _ if Mce::has(msr) => {
                let status_writable = self.cpuid.is_amd() && msrs.hwcr & STATUS_WRITABLE != 0;
                self.mce.write(msr, value, host, status_writable)?;
            }
            _ => {
                let beyond = self.cpuid.model().beyond_physical();
                return match msrs.mtrrs.write(msr, value, beyond) {
                    Some(result) => result,
                    None => constant::write(msr, value, host),
                };
            }
        }
        Ok(())
    }
}
