// SPDX-License-Identifier: GPL-2.0

//! Which MSRs a VMM saves and restores, and those that tell features (api.rst, 4.3, `KVM_GET_MSR_INDEX_LIST` and
//! `KVM_GET_MSR_FEATURE_INDEX_LIST`; 4.18, `KVM_GET_MSRS` as a system ioctl).

use super::access::CPUID_FAULTING;
use super::access::LFENCE_SERIALIZE;
use super::index;
use super::ioctl;
use crate::linux::user;
use crate::linux::x86;
use crate::xvm::pv;
use core::mem::size_of;
use kernel::bindings;
use kernel::prelude::*;

/// EBX of leaf 0 of an AMD CPU, "Auth".
const AMD: u32 = 0x6874_7541;

/// The state that is in MSRs alone. EFER, FS and GS bases and IA32_APIC_BASE travel with the system registers.
const STATE: &[u32] = &[
    index::TSC,
    index::SYSENTER_CS,
    index::SYSENTER_ESP,
    index::SYSENTER_EIP,
    index::STAR,
    index::LSTAR,
    index::CSTAR,
    index::SYSCALL_MASK,
    index::KERNEL_GS_BASE,
    index::PAT,
    index::DEBUGCTL,
    index::TSC_ADJUST,
    index::TSC_DEADLINE,
    index::MISC_ENABLE,
    index::MCG_STATUS,
    index::MCG_CTL,
    index::BIOS_SIGN_ID,
    index::PLATFORM_INFO,
    index::MISC_FEATURES,
    index::POWER_CTL,
    index::FEATURE_CONTROL,
    index::SMBASE,
    index::SMI_COUNT,
    index::HWCR,
    index::DE_CFG,
    index::MTRR_DEF_TYPE,
    index::MTRR_FIX_64K,
    index::MTRR_FIX_16K,
    index::MTRR_FIX_16K + 1,
    index::MTRR_FIX_4K,
    index::MTRR_FIX_4K + 1,
    index::MTRR_FIX_4K + 2,
    index::MTRR_FIX_4K + 3,
    index::MTRR_FIX_4K + 4,
    index::MTRR_FIX_4K + 5,
    index::MTRR_FIX_4K + 6,
    index::MTRR_FIX_4K + 7,
    index::MTRR_PHYS,
    index::MTRR_PHYS + 1,
    index::MTRR_PHYS + 2,
    index::MTRR_PHYS + 3,
    index::MTRR_PHYS + 4,
    index::MTRR_PHYS + 5,
    index::MTRR_PHYS + 6,
    index::MTRR_PHYS + 7,
    index::MTRR_PHYS + 8,
    index::MTRR_PHYS + 9,
    index::MTRR_PHYS + 10,
    index::MTRR_PHYS + 11,
    index::MTRR_PHYS + 12,
    index::MTRR_PHYS + 13,
    index::MTRR_PHYS + 14,
    index::MTRR_PHYS + 15,
];

/// More state, if the CPU has a feature: `X86_FEATURE_*` of any.
const STATE_BY_FEATURE: &[(u32, &[u32])] = &[
    (
        index::TSC_AUX,
        &[bindings::X86_FEATURE_RDTSCP, bindings::X86_FEATURE_RDPID],
    ),
    (index::SPEC_CTRL, &[bindings::X86_FEATURE_MSR_SPEC_CTRL]),
    (
        index::ARCH_CAPABILITIES,
        &[bindings::X86_FEATURE_ARCH_CAPABILITIES],
    ),
];

/// What of the host's IA32_ARCH_CAPABILITIES is true for guests (SDM vol 4, table 2-2): RDCL_NO, IBRS_ALL, RSBA,
/// SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, IF_PSCHANGE_MC_NO; TAA_NO; SBDR_SSDP_NO, FBSDP_NO, PSDP_NO; FB_CLEAR; RRSBA,
/// BHI_NO; PBRSB_NO; GDS_NO, RFDS_NO, RFDS_CLEAR; ITS_NO.
///
/// Not those that announce MSRs which guests don't have.
const ARCH_CAPABILITIES: u64 =
    0x7f | 1 << 8 | 0b111 << 13 | 1 << 17 | 0b11 << 19 | 1 << 24 | 0b111 << 26 | 1 << 62;

/// IA32_ARCH_CAPABILITIES of a new vCPU; 0 when the CPU has none.
pub(super) fn arch_capabilities() -> u64 {
    if !x86::host_has(bindings::X86_FEATURE_ARCH_CAPABILITIES) {
        return 0;
    }
    x86::rdmsr_safe(index::ARCH_CAPABILITIES).map_or(0, |host| host & ARCH_CAPABILITIES)
}

/// The bits of DE_CFG that a guest may set: LFENCE serialises if it does so on the host.
pub(super) fn de_cfg() -> u64 {
    if x86::host_has(bindings::X86_FEATURE_LFENCE_RDTSC) {
        LFENCE_SERIALIZE
    } else {
        0
    }
}

/// The microcode revision of a new vCPU, the same on every host, as in KVM: that of a CPU which doesn't need an update.
pub(super) fn microcode() -> u64 {
    if x86::cpuid(0, 0).ebx == AMD {
        0x0100_0065
    } else {
        1 << 32
    }
}

/// Value of a feature MSR.
fn feature(msr: u32) -> Option<u64> {
    match msr {
        index::BIOS_SIGN_ID => x86::rdmsr_safe(msr).ok(),
        index::PLATFORM_INFO => Some(CPUID_FAULTING),
        index::DE_CFG if de_cfg() != 0 => Some(de_cfg()),
        index::ARCH_CAPABILITIES => Some(arch_capabilities()),
        // No counters, so none of their features.
        index::PERF_CAPABILITIES => Some(0),
        _ => None,
    }
}

/// Feature MSRs that there may be.
const FEATURES: &[u32] = &[
    index::BIOS_SIGN_ID,
    index::PLATFORM_INFO,
    index::DE_CFG,
    index::ARCH_CAPABILITIES,
    index::PERF_CAPABILITIES,
];

/// Writes a `struct kvm_msr_list`: the count, and, if there is room for all, the numbers.
fn write_list(arg: usize, list: impl Iterator<Item = u32> + Clone) -> Result<isize> {
    let room: u32 = user::read(arg)?;
    let count = list.clone().count() as u32;
    user::write(arg, &count)?;
    if room < count {
        return Err(E2BIG);
    }
    for (n, msr) in list.enumerate() {
        let at = arg.checked_add((n + 1) * size_of::<u32>()).ok_or(EFAULT)?;
        user::write(at, &msr)?;
    }
    Ok(0)
}

/// `KVM_GET_MSR_INDEX_LIST`.
///
/// # Errors
///
/// `E2BIG` when there is room for fewer (the count has been written), `EFAULT`.
pub(in super::super) fn index_list(arg: usize) -> Result<isize> {
    let by_feature = STATE_BY_FEATURE
        .iter()
        .filter(|(_, any)| any.iter().any(|feature| x86::host_has(*feature)))
        .map(|(msr, _)| *msr);
    let own = Iterator::chain(STATE.iter(), pv::STATE).copied();
    write_list(arg, Iterator::chain(own, by_feature))
}

/// `KVM_GET_MSR_FEATURE_INDEX_LIST`.
///
/// # Errors
///
/// As [`index_list`].
pub(in super::super) fn feature_index_list(arg: usize) -> Result<isize> {
    let list = FEATURES
        .iter()
        .copied()
        .filter(|msr| feature(*msr).is_some());
    write_list(arg, list)
}

/// `KVM_GET_MSRS` of the system: feature MSRs. Returns how many were read: it stops at one that isn't there.
///
/// # Errors
///
/// `E2BIG` for more than 255, `EFAULT`.
pub(in super::super) fn get_feature_msrs(arg: usize) -> Result<isize> {
    ioctl::read_all(arg, feature)
}
