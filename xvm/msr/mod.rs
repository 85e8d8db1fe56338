// SPDX-License-Identifier: GPL-2.0

//! The guest's MSRs (SDM vol 4; APM vol 2, appendix A). All exit that the vendor's bitmap doesn't let through; one
//! that isn't here raises #GP.
//!
//! | file | subject |
//! | --- | --- |
//! | `index` | their numbers |
//! | `access` | reading and writing one, by the guest or the VMM |
//! | `check` | which values those that the vendor keeps accept |
//! | `apic_base` | IA32_APIC_BASE |
//! | `mtrr` | memory type range registers |
//! | `one_reg` | MSRs by the IDs of `KVM_GET_ONE_REG` |
//! | `constant` | those that guests look at, and that never change here |
//! | `filter` | which ones the VMM keeps from the guest, or carries out itself |
//! | `list` | the lists that tell a VMM which ones to save, and the values of feature MSRs |
//! | `ioctl` | `KVM_GET_MSRS`, `KVM_SET_MSRS` |
//!
//! KVM's own are in `xvm/pv/`.

mod access;
mod apic_base;
mod check;
mod constant;
mod filter;
mod index;
mod ioctl;
mod list;
mod mtrr;
mod one_reg;

pub(crate) use filter::MsrFilter;
pub(super) use index::is_x2apic;
pub(super) use index::TSC_AUX;
pub(super) use list::feature_index_list;
pub(super) use list::get_feature_msrs;
pub(super) use list::index_list;

use mtrr::Mtrrs;

/// Performance monitoring (BTS, PEBS) is not available.
const MISC_ENABLE_UNAVAILABLE: u64 = 1 << 11 | 1 << 12;

/// State of the MSRs that neither the vendor nor the local APIC has.
pub(crate) struct Msrs {
    /// IA32_APIC_BASE of a vCPU whose local APIC is in userspace.
    apic_base: u64,
    misc_enable: u64,
    tsc_adjust: u64,
    /// IA32_BIOS_SIGN_ID, on AMD PATCH_LEVEL.
    microcode: u64,
    platform_info: u64,
    /// CPUID is for the kernel alone (MISC_FEATURES_ENABLES).
    cpuid_faults: bool,
    /// IA32_POWER_CTL: kept for guests that set it, and nothing else.
    power_ctl: u64,
    feature_control: u64,
    arch_capabilities: u64,
    hwcr: u64,
    de_cfg: u64,
    mtrrs: Mtrrs,
}

impl Msrs {
    /// IA32_MISC_ENABLE.
    pub(crate) fn misc_enable(&self) -> u64 {
        self.misc_enable
    }

    /// Whether CPUID faults in user code.
    #[inline]
    pub(crate) fn cpuid_faults(&self) -> bool {
        self.cpuid_faults
    }

    /// The values after power-up; `bootstrap`: of the bootstrap processor. Those that tell features say what there is, if they are
    /// `stuffed`, or nothing.
    pub(crate) fn new(bootstrap: bool, stuffed: bool) -> Self {
        let feature = |value| if stuffed { value } else { 0 };
        Self {
            apic_base: apic_base::after_reset(bootstrap),
            misc_enable: MISC_ENABLE_UNAVAILABLE,
            tsc_adjust: 0,
            microcode: feature(list::microcode()),
            platform_info: feature(access::CPUID_FAULTING),
            cpuid_faults: false,
            power_ctl: 0,
            feature_control: access::FEATURE_CONTROL_LOCKED,
            arch_capabilities: feature(list::arch_capabilities()),
            hwcr: 0,
            de_cfg: 0,
            mtrrs: Mtrrs::new(),
        }
    }
}
