// SPDX-License-Identifier: GPL-2.0

//! MSRs that guests look at because of what CPU they see, and that say here that there is nothing to be seen.

use super::index;
use crate::xvm::platform::Gp;

/// What a guest's write does.
enum Write {
    /// #GP.
    Refused,
    /// Nothing.
    Ignored,
}

use Write::Ignored;
use Write::Refused;

/// Number, value, and what a write does.
const CONSTANT: &[(u32, u64, Write)] = &[
    // Machine checks of the first CPU that had them.
    (index::P5_MC_ADDR, 0, Refused),
    (index::P5_MC_TYPE, 0, Refused),
    // Linux's microcode loader reads which platform of a model it is on.
    (index::PLATFORM_ID, 0, Refused),
    // Starts a microcode update: the host's business.
    (index::BIOS_UPDT_TRIG, 0, Ignored),
    (index::PATCH_LOADER, 0, Ignored),
    // Bus ratios; guests divide by the ratio in bits 44:40.
    (index::PERF_STATUS, 1000 | 4 << 40, Refused),
    // Energy meters, which are found by the CPU's model: they stand still.
    (index::RAPL_POWER_UNIT, 0, Refused),
    (index::PKG_ENERGY_STATUS, 0, Refused),
    (index::DRAM_ENERGY_STATUS, 0, Refused),
    (index::PP0_ENERGY_STATUS, 0, Refused),
    (index::PP1_ENERGY_STATUS, 0, Refused),
    // AMD: the performance counters that every model has, and QEMU sets. They count nothing.
    (index::PERF_EVTSEL, 0, Ignored),
    (index::PERF_EVTSEL + 1, 0, Ignored),
    (index::PERF_EVTSEL + 2, 0, Ignored),
    (index::PERF_EVTSEL + 3, 0, Ignored),
    (index::PERF_CTR, 0, Ignored),
    (index::PERF_CTR + 1, 0, Ignored),
    (index::PERF_CTR + 2, 0, Ignored),
    (index::PERF_CTR + 3, 0, Ignored),
    // AMD: how memory is laid out. No memory encryption, no memory above 4 GiB with a type of its own.
    (index::SYSCFG, 0, Refused),
    (index::TOP_MEM, 0, Refused),
    (index::TOP_MEM2, 0, Refused),
    (index::MMIO_CONF_BASE, 0, Refused),
    // AMD: SMRAM, which Linux leaves out of its large mappings. There is none.
    (index::SMM_ADDR, 0, Refused),
    (index::SMM_MASK, 0, Refused),
    // AMD: C1E by message; off.
    (index::INT_PENDING_MSG, 0, Ignored),
    // AMD: Linux turns on access to PCI's extended configuration space through port 0xcf8, which is the VMM's to offer.
    (index::NB_CFG, 0, Ignored),
    // AMD: work-arounds for errata of caches and the bus unit, which the host has set as it needs them.
    (index::DC_CFG, 0, Ignored),
    (index::BU_CFG2, 0, Ignored),
];

/// The value of MSR `msr` if it is one of these.
pub(super) fn read(msr: u32) -> Option<u64> {
    let entry = CONSTANT.iter().find(|(number, ..)| *number == msr)?;
    Some(entry.1)
}

/// Writes MSR `msr`. The VMM may write the value that it read.
///
/// # Errors
///
/// [`Gp`] for an MSR that isn't one of these, or can't be written.
pub(super) fn write(msr: u32, value: u64, host: bool) -> Result<(), Gp> {
    match CONSTANT.iter().find(|(number, ..)| *number == msr) {
        Some((.., Ignored)) => Ok(()),
        Some((_, constant, Refused)) if host && value == *constant => Ok(()),
        _ => Err(Gp),
    }
}
