// SPDX-License-Identifier: GPL-2.0

//! Numbers of MSRs (SDM vol 4, chapter 2; APM vol 2, appendix A).

/// Machine-check addresses and types of the P5: read as 0.
pub(super) const P5_MC_ADDR: u32 = 0;
pub(super) const P5_MC_TYPE: u32 = 1;
pub(super) const TSC: u32 = 0x10;
pub(super) const PLATFORM_ID: u32 = 0x17;
pub(super) const APIC_BASE: u32 = 0x1b;
/// How many SMIs were taken.
pub(super) const SMI_COUNT: u32 = 0x34;
pub(super) const FEATURE_CONTROL: u32 = 0x3a;
/// KVM's own: MSR_KVM_WALL_CLOCK and MSR_KVM_SYSTEM_TIME, and the range of the later ones.
pub(super) const PV_OLD_FIRST: u32 = 0x11;
pub(super) const PV_OLD_LAST: u32 = 0x12;
pub(super) const PV_FIRST: u32 = 0x4b56_4d00;
pub(super) const PV_LAST: u32 = 0x4b56_4dff;
pub(super) const TSC_ADJUST: u32 = 0x3b;
pub(super) const SPEC_CTRL: u32 = 0x48;
pub(super) const PRED_CMD: u32 = 0x49;
pub(super) const BIOS_UPDT_TRIG: u32 = 0x79;
/// PATCH_LEVEL on AMD.
pub(super) const BIOS_SIGN_ID: u32 = 0x8b;
/// Where the memory of system management mode is.
pub(super) const SMBASE: u32 = 0x9e;
pub(super) const PLATFORM_INFO: u32 = 0xce;
/// MISC_FEATURES_ENABLES.
pub(super) const MISC_FEATURES: u32 = 0x140;
pub(super) const MTRR_CAP: u32 = 0xfe;
pub(super) const ARCH_CAPABILITIES: u32 = 0x10a;
pub(super) const SYSENTER_CS: u32 = 0x174;
pub(super) const SYSENTER_ESP: u32 = 0x175;
pub(super) const SYSENTER_EIP: u32 = 0x176;
pub(super) const MCG_STATUS: u32 = 0x17a;
pub(super) const MCG_CTL: u32 = 0x17b;
pub(super) const PERF_STATUS: u32 = 0x198;
pub(super) const MISC_ENABLE: u32 = 0x1a0;
pub(super) const DEBUGCTL: u32 = 0x1d9;
pub(super) const POWER_CTL: u32 = 0x1fc;
/// The first of 16: base and mask of each variable range.
pub(super) const MTRR_PHYS: u32 = 0x200;
pub(super) const MTRR_FIX_64K: u32 = 0x250;
/// Two.
pub(super) const MTRR_FIX_16K: u32 = 0x258;
/// Eight.
pub(super) const MTRR_FIX_4K: u32 = 0x268;
pub(super) const PAT: u32 = 0x277;
pub(super) const MTRR_DEF_TYPE: u32 = 0x2ff;
pub(super) const PERF_CAPABILITIES: u32 = 0x345;
pub(super) const RAPL_POWER_UNIT: u32 = 0x606;
pub(super) const PKG_ENERGY_STATUS: u32 = 0x611;
pub(super) const DRAM_ENERGY_STATUS: u32 = 0x619;
pub(super) const PP0_ENERGY_STATUS: u32 = 0x639;
pub(super) const PP1_ENERGY_STATUS: u32 = 0x641;
pub(super) const TSC_DEADLINE: u32 = 0x6e0;
/// The first and last of the local APIC's in x2APIC mode.
pub(super) const X2APIC_FIRST: u32 = 0x800;
pub(super) const X2APIC_LAST: u32 = 0x8ff;
/// Those of the local APIC's timer.
pub(super) const X2APIC_LVT_TIMER: u32 = 0x832;
pub(super) const X2APIC_INITIAL_COUNT: u32 = 0x838;
pub(super) const X2APIC_CURRENT_COUNT: u32 = 0x839;
pub(super) const X2APIC_DIVIDE: u32 = 0x83e;
pub(super) const EFER: u32 = 0xc000_0080;
pub(super) const STAR: u32 = 0xc000_0081;
pub(super) const LSTAR: u32 = 0xc000_0082;
pub(super) const CSTAR: u32 = 0xc000_0083;
/// SYSCALL_FLAG_MASK, FMASK.
pub(super) const SYSCALL_MASK: u32 = 0xc000_0084;
pub(super) const FS_BASE: u32 = 0xc000_0100;
pub(super) const GS_BASE: u32 = 0xc000_0101;
pub(super) const KERNEL_GS_BASE: u32 = 0xc000_0102;
pub(in super::super) const TSC_AUX: u32 = 0xc000_0103;
pub(super) const PERF_EVTSEL: u32 = 0xc001_0000;
pub(super) const PERF_CTR: u32 = 0xc001_0004;
pub(super) const SYSCFG: u32 = 0xc001_0010;
pub(super) const HWCR: u32 = 0xc001_0015;
pub(super) const TOP_MEM: u32 = 0xc001_001a;
pub(super) const TOP_MEM2: u32 = 0xc001_001d;
pub(super) const NB_CFG: u32 = 0xc001_001f;
pub(super) const INT_PENDING_MSG: u32 = 0xc001_0055;
pub(super) const MMIO_CONF_BASE: u32 = 0xc001_0058;
pub(super) const SMM_ADDR: u32 = 0xc001_0112;
pub(super) const SMM_MASK: u32 = 0xc001_0113;
pub(super) const PATCH_LOADER: u32 = 0xc001_0020;
pub(super) const DC_CFG: u32 = 0xc001_1022;
pub(super) const DE_CFG: u32 = 0xc001_1029;
pub(super) const BU_CFG2: u32 = 0xc001_102a;

/// Whether it is one of the local APIC's, in x2APIC mode.
pub(crate) fn is_x2apic(msr: u32) -> bool {
    (X2APIC_FIRST..=X2APIC_LAST).contains(&msr)
}
