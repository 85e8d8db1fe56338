// SPDX-License-Identifier: GPL-2.0

//! Which MSRs a VMM keeps from its guest (`KVM_X86_SET_MSR_FILTER`; api.rst, 4.97), and accesses that it carries out itself
//! (`KVM_CAP_X86_USER_SPACE_MSR`; 7.21). Those of the x2APIC are never filtered.

use super::index;
use crate::linux::user;
use crate::uapi;
use crate::uapi::kvm_run;
use crate::xvm::exits::Skip;
use crate::xvm::pending::Pending;
use crate::xvm::platform::Gp;
use crate::xvm::run::Next;
use crate::xvm::state::RAX;
use crate::xvm::state::RCX;
use crate::xvm::state::RDX;
use crate::xvm::vcpu::Vcpu;
use crate::xvm::vectors::GENERAL_PROTECTION;
use crate::xvm::vm::Vm;
use crate::xvm::XvmOps;
use core::mem::offset_of;
use kernel::prelude::*;
use kernel::sync::Arc;

/// Words of `struct kvm_msr_filter`: its flags, then for each range flags and number of MSRs, the first MSR, the bitmap's address.
const WORDS: usize = 1 + RANGE_WORDS * uapi::KVM_MSR_FILTER_MAX_RANGES as usize;
const RANGE_WORDS: usize = 3;

/// The kinds of access, as a range's flags.
const READ: u32 = uapi::KVM_MSR_FILTER_READ;
const WRITE: u32 = uapi::KVM_MSR_FILTER_WRITE;

/// MSRs that a vendor may let the guest access by itself.
const PASSED_THROUGH: [u32; 15] = [
    index::TSC,
    index::SPEC_CTRL,
    index::SYSENTER_CS,
    index::SYSENTER_ESP,
    index::SYSENTER_EIP,
    index::PAT,
    index::DEBUGCTL,
    index::STAR,
    index::LSTAR,
    index::CSTAR,
    index::SYSCALL_MASK,
    index::FS_BASE,
    index::GS_BASE,
    index::KERNEL_GS_BASE,
    index::TSC_AUX,
];

/// Some MSRs in a row.
struct Range {
    /// The kinds of access that it says something of.
    kinds: u32,
    base: u32,
    count: u32,
    /// Bit n: access to MSR `base` + n is allowed.
    allowed: KVec<u64>,
}

/// A filter. It never changes.
pub(crate) struct MsrFilter {
    /// What holds for MSRs in no range.
    default_allow: bool,
    ranges: KVec<Range>,
}

impl MsrFilter {
    /// Whether the guest may access `msr`. The first range that says something counts.
    fn allows(&self, msr: u32, kind: u32) -> bool {
        if let index::X2APIC_FIRST..=index::X2APIC_LAST = msr {
            return true;
        }
        for range in &self.ranges {
            let n = msr.wrapping_sub(range.base);
            if msr >= range.base && n < range.count && range.kinds & kind != 0 {
                let word = range.allowed.get((n / 64) as usize);
                return word.is_some_and(|word| word >> (n % 64) & 1 != 0);
            }
        }
        self.default_allow
    }

    /// Whether the guest may do all that it would do without an exit.
    fn allows_passed_through(&self) -> bool {
        let both = |msr: &u32| self.allows(*msr, READ) && self.allows(*msr, WRITE);
        PASSED_THROUGH.iter().all(both)
    }

    /// Copies a filter in.
    ///
    /// # Errors
    ///
    /// `EINVAL` for unknown flags, ranges that are too large or say nothing, and a filter that denies all; `EFAULT`, `ENOMEM`.
    fn read(arg: usize) -> Result<Self> {
        let words: [u64; WORDS] = user::read(arg)?;
        let (flags, ranges) = (words[0] as u32, words[1..].chunks_exact(RANGE_WORDS));
        let default_allow = flags & uapi::KVM_MSR_FILTER_DEFAULT_DENY == 0;
        if flags & !uapi::KVM_MSR_FILTER_DEFAULT_DENY != 0 {
            return Err(EINVAL);
        }
        let mut filter = Self {
            default_allow,
            ranges: KVec::with_capacity(ranges.len(), GFP_KERNEL_ACCOUNT)?,
        };
        let named = ranges.filter(|range| range[0] >> 32 != 0);
        if named.clone().next().is_none() && !default_allow {
            return Err(EINVAL);
        }
        for range in named {
            let range = Range::read(range[0] as u32, (range[0] >> 32) as u32, range)?;
            filter.ranges.push(range, GFP_KERNEL_ACCOUNT)?;
        }
        Ok(filter)
    }
}

impl Range {
    fn read(kinds: u32, count: u32, words: &[u64]) -> Result<Self> {
        let length = u64::from(count).div_ceil(64) as usize;
        let too_long = length * 8 > uapi::KVM_MSR_FILTER_MAX_BITMAP_SIZE as usize;
        if kinds & !(READ | WRITE) != 0 || kinds == 0 || too_long {
            return Err(EINVAL);
        }
        let mut allowed = KVec::with_capacity(length, GFP_KERNEL_ACCOUNT)?;
        for n in 0..length {
            let at = (words[2] as usize).checked_add(n * 8).ok_or(EFAULT)?;
            allowed.push(user::read(at)?, GFP_KERNEL_ACCOUNT)?;
        }
        Ok(Self {
            kinds,
            base: words[1] as u32,
            count,
            allowed,
        })
    }
}

impl<V: XvmOps> Vm<V> {
    /// `KVM_X86_SET_MSR_FILTER`. No vCPU runs by the old filter once it returns.
    ///
    /// # Errors
    ///
    /// As [`MsrFilter::read`].
    pub(crate) fn set_msr_filter(&self, arg: usize) -> Result<isize> {
        let filter = Arc::new(MsrFilter::read(arg)?, GFP_KERNEL_ACCOUNT)?;
        let old = self.replace_msr_filter(filter);
        drop(old);
        self.request_updates();
        Ok(0)
    }
}

impl<V: XvmOps> Vcpu<V> {
    /// Takes the VM's filter, when it may have changed.
    pub(crate) fn update_msr_filter(&mut self) {
        self.msr_filter = self.vm.msr_filter();
        let filter = self.msr_filter.as_ref();
        self.config.msrs_exit = filter.is_some_and(|filter| !filter.allows_passed_through());
        self.configure();
    }

    /// Whether the VMM lets the guest access `msr`.
    #[inline]
    pub(crate) fn msr_allowed(&self, msr: u32, write: bool) -> bool {
        match &self.msr_filter {
            None => true,
            Some(filter) => filter.allows(msr, if write { WRITE } else { READ }),
        }
    }

    /// RDMSR or WRMSR, outside of the window.
    pub(in crate::xvm) fn msr_exit(&mut self, write: bool) -> Result<Next> {
        let Some(skip) = self.peek(Self::plan_skip) else {
            return self.touch_code();
        };
        let gprs = V::gprs(&mut self.arch).0;
        let msr = gprs[RCX] as u32;
        let value = (gprs[RDX] << 32) | (gprs[RAX] & 0xffff_ffff);
        let reason = if !self.msr_allowed(msr, write) {
            uapi::KVM_MSR_EXIT_REASON_FILTER
        } else {
            match self.access_msr(msr, write.then_some(value)) {
                Ok(()) => {
                    self.skip(skip);
                    return Ok(Next::Guest);
                }
                Err(Gp) if self.knows_msr(msr) => uapi::KVM_MSR_EXIT_REASON_INVAL,
                Err(Gp) => uapi::KVM_MSR_EXIT_REASON_UNKNOWN,
            }
        };
        if self.vm.switches.user_space_msr() & reason == 0 {
            self.events.queue_exception(GENERAL_PROTECTION, Some(0));
            return Ok(Next::Guest);
        }
        self.pending = Pending::Msr {
            write,
            skip,
            rip: V::code_context(&self.arch).rip,
        };
        self.exit_msr(msr, write.then_some(value), reason);
        Ok(Next::Userspace)
    }

    fn access_msr(&mut self, msr: u32, value: Option<u64>) -> Result<(), Gp> {
        match value {
            Some(value) => {
                let effect = self.write_msr(msr, value, false)?;
                self.apply(effect);
            }
            None => {
                let value = self.read_msr(msr, false)?;
                self.set_edx_eax(value);
            }
        }
        Ok(())
    }

    fn set_edx_eax(&mut self, value: u64) {
        let gprs = V::gprs(&mut self.arch);
        gprs.0[RAX] = value & 0xffff_ffff;
        gprs.0[RDX] = value >> 32;
    }

    /// Whether there is such an MSR at all, though the guest may not have it or may not do what it tried.
    fn knows_msr(&mut self, msr: u32) -> bool {
        match msr {
            index::PRED_CMD | index::X2APIC_FIRST..=index::X2APIC_LAST => true,
            _ => self.read_msr(msr, true).is_ok(),
        }
    }

    fn exit_msr(&self, msr: u32, value: Option<u64>, reason: u32) {
        let pages = &self.pages;
        pages.set(offset_of!(kvm_run, __bindgen_anon_1.msr.error), 0u8);
        pages.set(offset_of!(kvm_run, __bindgen_anon_1.msr.reason), reason);
        pages.set(offset_of!(kvm_run, __bindgen_anon_1.msr.index), msr);
        pages.set(
            offset_of!(kvm_run, __bindgen_anon_1.msr.data),
            value.unwrap_or(0),
        );
        self.set_exit(match value {
            Some(_) => uapi::KVM_EXIT_X86_WRMSR,
            None => uapi::KVM_EXIT_X86_RDMSR,
        });
    }

    /// Completes an access that the VMM has carried out, or refused.
    pub(in crate::xvm) fn complete_msr(&mut self, write: bool, skip: Skip, rip: u64) {
        if V::code_context(&self.arch).rip != rip {
            return;
        }
        let error = offset_of!(kvm_run, __bindgen_anon_1.msr.error);
        if self.pages.get::<u8>(error) != Some(0) {
            self.events.queue_exception(GENERAL_PROTECTION, Some(0));
            return;
        }
        if !write {
            let data = offset_of!(kvm_run, __bindgen_anon_1.msr.data);
            self.set_edx_eax(self.pages.get(data).unwrap_or(0));
        }
        self.skip(skip);
    }
}
