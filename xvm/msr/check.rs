// SPDX-License-Identifier: GPL-2.0

//! Which values the MSRs accept that the vendor keeps: what is written here is loaded into the CPU, which must not
//! fault.

use super::index;
use crate::xvm::cpuid::GuestCpuid;
use crate::xvm::platform::Gp;

/// Whether bits 63:47 of an address are the same (four levels: no LA57).
fn is_canonical(address: u64) -> bool {
    canonical(address) == address
}

/// The address with bit 47 copied into the bits above.
fn canonical(address: u64) -> u64 {
    ((address << 16) as i64 >> 16) as u64
}

/// Memory types that PAT can name: UC, WC, WT, WP, WB, UC- (SDM vol 3, table 13-10).
fn is_pat(value: u64) -> bool {
    value
        .to_le_bytes()
        .iter()
        .all(|kind| matches!(kind, 0 | 1 | 4..=7))
}

/// The value to be stored for a write of `value` to MSR `msr`, which may be one that the vendor doesn't keep.
///
/// # Errors
///
/// [`Gp`] for a value that the MSR refuses, or an MSR that the guest (unless `host`) doesn't have.
pub(super) fn value(cpuid: &GuestCpuid, msr: u32, value: u64, host: bool) -> Result<u64, Gp> {
    let model = cpuid.model();
    let legal = match msr {
        index::FS_BASE | index::GS_BASE | index::KERNEL_GS_BASE | index::LSTAR | index::CSTAR => {
            is_canonical(value)
        }
        // AMD's CPUs keep 32 bits; on others only a canonical address can be loaded.
        index::SYSENTER_ESP | index::SYSENTER_EIP if cpuid.is_amd() => {
            return Ok(value & 0xffff_ffff)
        }
        index::SYSENTER_ESP | index::SYSENTER_EIP => return Ok(canonical(value)),
        index::SYSENTER_CS => return Ok(value & 0xffff_ffff),
        index::SYSCALL_MASK => value >> 32 == 0,
        index::TSC_AUX if !host && !model.tsc_aux => false,
        index::TSC_AUX if cpuid.is_amd() => return Ok(value & 0xffff_ffff),
        index::TSC_AUX => value >> 32 == 0,
        index::PAT => is_pat(value),
        // What the model has, the CPU has; a VMM may restore the value after reset to any.
        index::SPEC_CTRL => value & !model.spec_ctrl == 0 && (host || model.spec_ctrl != 0),
        _ => true,
    };
    if legal {
        Ok(value)
    } else {
        Err(Gp)
    }
}
