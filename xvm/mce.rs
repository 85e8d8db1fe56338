// SPDX-License-Identifier: GPL-2.0

//! Machine-check architecture (SDM vol 3, chapter 16; APM vol 2, chapter 9): a vCPU's banks, and the errors that the VMM
//! reports in them (`KVM_X86_SETUP_MCE`, `KVM_X86_SET_MCE`; api.rst, 4.105, 4.106). Errors of the host's memory reach the VMM
//! as SIGBUS, and the guest by this way alone.

use super::platform::Gp;
use super::vcpu::Vcpu;
use super::vectors::MACHINE_CHECK;
use super::XvmOps;
use crate::linux::user;
use crate::uapi;
use crate::uapi::kvm_x86_mce;
use kernel::prelude::*;

/// The most banks, and what a new vCPU has, as in KVM. `KVM_CAP_MCE` says the same number.
const BANKS: usize = 32;

/// MCG_CAP: the number of banks.
const CAP_BANKS: u64 = 0xff;
/// MCG_CAP: there is MCG_CTL.
const CAP_CTL: u64 = 1 << 8;
/// MCG_CAP: the number of MCG_EXT registers, which a VMM may set to anything: there are none.
const CAP_EXTENDED: u64 = 0xff << 16;
/// MCG_CAP: software error recovery.
const CAP_RECOVERY: u64 = 1 << 24;

/// MCG_STATUS: a machine check is in progress.
const IN_PROGRESS: u64 = 1 << 2;

/// MCi_STATUS: the bank holds an error; errors were lost; the error is uncorrected; the processor's context is corrupt; it was signalled
/// by a machine check; action is required.
const VALID: u64 = 1 << 63;
const OVERFLOW: u64 = 1 << 62;
const UNCORRECTED: u64 = 1 << 61;
const CORRUPT: u64 = 1 << 57;
const SIGNALLED: u64 = 1 << 56;
const ACTION: u64 = 1 << 55;

/// CR4.MCE.
const CR4_MCE: u64 = 1 << 6;

/// What may be clear in a bank's CTL that is otherwise all ones: Linux clears bit 10 for an erratum of K8, UnixWare bit 0.
const CTL_OPTIONAL: u64 = 1 << 10 | 1;

/// Numbers of the MSRs.
mod index {
    pub(super) const CAP: u32 = 0x179;
    pub(super) const STATUS: u32 = 0x17a;
    pub(super) const CTL: u32 = 0x17b;
    /// Four for each bank: CTL, STATUS, ADDR, MISC.
    pub(super) const BANKS: u32 = 0x400;
    pub(super) const BANKS_LAST: u32 = BANKS + 4 * super::BANKS as u32 - 1;
}

/// The registers of a bank.
#[derive(Clone, Copy, Default)]
struct Bank {
    ctl: u64,
    status: u64,
    addr: u64,
    misc: u64,
}

/// A vCPU's machine-check registers.
pub(crate) struct Mce {
    cap: u64,
    status: u64,
    ctl: u64,
    banks: [Bank; BANKS],
}

/// What an error does besides being noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    None,
    /// #MC.
    MachineCheck,
    /// A machine check that can't be delivered.
    Shutdown,
}

impl Mce {
    /// Those of a new vCPU.
    pub(crate) fn new() -> Self {
        Self {
            cap: BANKS as u64,
            status: 0,
            ctl: 0,
            banks: [Bank::default(); BANKS],
        }
    }

    /// How many banks there are.
    fn count(&self) -> usize {
        (self.cap & CAP_BANKS) as usize
    }

    /// The bank that MSR `msr` belongs to, and which of its registers it is.
    fn locate(&self, msr: u32) -> Result<(usize, u32), Gp> {
        let number = msr.checked_sub(index::BANKS).ok_or(Gp)?;
        let bank = (number / 4) as usize;
        if bank >= self.count() {
            return Err(Gp);
        }
        Ok((bank, number % 4))
    }

    /// Whether MSR `msr` is one of these.
    pub(crate) fn has(msr: u32) -> bool {
        matches!(
            msr,
            index::CAP..=index::CTL | index::BANKS..=index::BANKS_LAST
        )
    }

    /// Reads MSR `msr`, one of these, by the guest or the VMM (`host`).
    ///
    /// # Errors
    ///
    /// [`Gp`] for a register that the vCPU doesn't have.
    pub(crate) fn read(&self, msr: u32, host: bool) -> Result<u64, Gp> {
        match msr {
            index::CAP => Ok(self.cap),
            index::STATUS => Ok(self.status),
            index::CTL if host || self.cap & CAP_CTL != 0 => Ok(self.ctl),
            index::CTL => Err(Gp),
            _ => {
                let (bank, register) = self.locate(msr)?;
                let bank = self.banks.get(bank).ok_or(Gp)?;
                Ok(match register {
                    0 => bank.ctl,
                    1 => bank.status,
                    2 => bank.addr,
                    _ => bank.misc,
                })
            }
        }
    }

    /// Writes MSR `msr`, one of these, by the guest or the VMM (`host`). `status_writable`: the guest may set a bank's status
    /// (AMD's HWCR.McStatusWrEn); it can always clear it.
    ///
    /// # Errors
    ///
    /// [`Gp`] for a register that the vCPU doesn't have or that can't be written, and values that it doesn't take.
    pub(crate) fn write(
        &mut self,
        msr: u32,
        value: u64,
        host: bool,
        status_writable: bool,
    ) -> Result<(), Gp> {
        match msr {
            // Read-only; a VMM that saved it restores it.
            index::CAP if host && value == self.cap => {}
            index::CAP => return Err(Gp),
            index::STATUS => self.status = value,
            index::CTL => {
                let there = self.cap & CAP_CTL != 0 || host && value == 0;
                if !there || value != 0 && value != u64::MAX {
                    return Err(Gp);
                }
                self.ctl = value;
            }
            _ => {
                let (bank, register) = self.locate(msr)?;
                let bank = self.banks.get_mut(bank).ok_or(Gp)?;
                match register {
                    0 if value != 0 && value | CTL_OPTIONAL != u64::MAX => return Err(Gp),
                    0 => bank.ctl = value,
                    1 if value != 0 && !host && !status_writable => return Err(Gp),
                    1 => bank.status = value,
                    2 => bank.addr = value,
                    _ => bank.misc = value,
                }
            }
        }
        Ok(())
    }

    /// Takes MCG_CAP from the VMM: all errors are reported from now on.
    fn set_up(&mut self, cap: u64) -> Result {
        let count = (cap & CAP_BANKS) as usize;
        if count == 0 || count > BANKS || cap & !(SUPPORTED | CAP_BANKS | CAP_EXTENDED) != 0 {
            return Err(EINVAL);
        }
        self.cap = cap;
        if cap & CAP_CTL != 0 {
            self.ctl = u64::MAX;
        }
        for bank in self.banks.iter_mut().take(count) {
            bank.ctl = u64::MAX;
        }
        Ok(())
    }

    /// Notes an error. `enabled`: the guest has turned machine checks on (CR4.MCE).
    fn report(&mut self, error: &kvm_x86_mce, enabled: bool) -> Result<Effect> {
        let number = usize::from(error.bank);
        let count = self.count();
        if number >= count || error.status & VALID == 0 {
            return Err(EINVAL);
        }
        let reported = self.cap & CAP_CTL == 0 || self.ctl == u64::MAX;
        let (status, bank) = (&mut self.status, &mut self.banks);
        let bank = bank.get_mut(number).ok_or(EINVAL)?;
        let uncorrected = error.status & UNCORRECTED != 0;
        let signalled = error.mcg_status != 0 || error.status & (CORRUPT | SIGNALLED | ACTION) != 0;
        if uncorrected && !signalled {
            // No action is needed: it is there for who looks, and replaces what was.
            bank.note(error, 0);
            *status = 0;
            return Ok(Effect::None);
        }
        let lost = match bank.status & VALID {
            0 => 0,
            _ => OVERFLOW,
        };
        if !uncorrected {
            match bank.status & (VALID | UNCORRECTED) {
                // It doesn't replace one that matters more.
                both if both == VALID | UNCORRECTED => bank.status |= OVERFLOW,
                _ => bank.note(error, lost),
            }
            return Ok(Effect::None);
        }
        if !reported || bank.ctl != u64::MAX {
            return Ok(Effect::None);
        }
        if *status & IN_PROGRESS != 0 || !enabled {
            return Ok(Effect::Shutdown);
        }
        bank.note(error, lost);
        *status = error.mcg_status;
        Ok(Effect::MachineCheck)
    }
}

/// What MCG_CAP can have besides numbers.
const SUPPORTED: u64 = CAP_CTL | CAP_RECOVERY;

impl Bank {
    fn note(&mut self, error: &kvm_x86_mce, more: u64) {
        self.status = error.status | more;
        self.addr = error.addr;
        self.misc = error.misc;
    }
}

/// `KVM_X86_GET_MCE_CAP_SUPPORTED` (api.rst, 4.104).
///
/// # Errors
///
/// `EFAULT`.
pub(super) fn get_supported(arg: usize) -> Result<isize> {
    user::write(arg, &SUPPORTED)?;
    Ok(0)
}

impl<V: XvmOps> Vcpu<V> {
    /// `KVM_X86_SETUP_MCE`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for no banks, more than there can be, and features that there aren't; `EFAULT`.
    pub(crate) fn setup_mce(&mut self, arg: usize) -> Result<isize> {
        self.mce.set_up(user::read(arg)?)?;
        Ok(0)
    }

    /// `KVM_X86_SET_MCE`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a bank that there isn't, or an error that isn't valid; `EFAULT`.
    pub(crate) fn set_mce(&mut self, arg: usize) -> Result<isize> {
        let error: uapi::kvm_x86_mce = user::read(arg)?;
        let enabled = V::system_regs(&self.arch).cr4 & CR4_MCE != 0;
        match self.mce.report(&error, enabled)? {
            Effect::None => {}
            Effect::MachineCheck => {
                self.events.make_room();
                self.events.queue_exception(MACHINE_CHECK, None);
            }
            Effect::Shutdown => self.events.triple_fault = true,
        }
        Ok(0)
    }
}
