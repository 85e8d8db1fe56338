// SPDX-License-Identifier: GPL-2.0

//! What of the ABI there is: `KVM_CHECK_EXTENSION` (api.rst, 4.4), and the errno of ioctls that there aren't. Both
//! are answered from `uapi/abi.h`.

use super::ops::Capabilities;
use crate::linux::cpus;
use crate::linux::x86;
use crate::uapi;
use crate::uapi::abi;
use crate::uapi::Fd;
use kernel::prelude::*;

/// The most vCPUs a VM may have.
pub(crate) const MAX_VCPUS: u32 = value_of(uapi::KVM_CAP_MAX_VCPUS);

/// vCPUs have numbers below this.
pub(crate) const MAX_VCPU_ID: u32 = value_of(uapi::KVM_CAP_MAX_VCPU_ID);

/// The value of a capability that the table has as a number.
pub(super) const fn value_of(capability: u32) -> u32 {
    let mut i = 0;
    while i < abi::CAPABILITIES.len() {
        if let (number, Some(value)) = abi::CAPABILITIES[i] {
            if number == capability {
                return value as u32;
            }
        }
        i += 1;
    }
    panic!("no such number in uapi/abi.h")
}

/// `KVM_CHECK_EXTENSION`, on the device and on VMs of a machine that has `caps`. Capabilities that aren't there, or that nobody knows, are 0.
///
/// # Errors
///
/// None; the type is that of ioctls.
pub(crate) fn check(caps: &Capabilities, capability: usize) -> Result<isize> {
    let found = abi::CAPABILITIES
        .iter()
        .find(|(number, _)| *number as usize == capability);
    Ok(match found {
        Some((_, Some(value))) => *value as isize,
        Some((number, None)) => computed(caps, *number),
        None => 0,
    })
}

/// Those that depend on the machine.
fn computed(caps: &Capabilities, capability: u32) -> isize {
    match capability {
        // As many vCPUs are advisable as there are CPUs.
        uapi::KVM_CAP_NR_VCPUS => cpus::online_count().min(MAX_VCPUS) as isize,
        uapi::KVM_CAP_TSC_CONTROL | uapi::KVM_CAP_VM_TSC_CONTROL => {
            isize::from(caps.tsc_scaling.is_some())
        }
        uapi::KVM_CAP_X86_DISABLE_EXITS => free_instructions() as isize,
        _ => 0,
    }
}

/// The instructions that a VMM may leave to its guests, `KVM_X86_DISABLE_EXITS_*`.
pub(super) fn free_instructions() -> u32 {
    let waiting = uapi::KVM_X86_DISABLE_EXITS_HLT | uapi::KVM_X86_DISABLE_EXITS_PAUSE;
    match x86::can_mwait() {
        true => waiting | uapi::KVM_X86_DISABLE_EXITS_MWAIT,
        false => waiting,
    }
}

/// The errno of an ioctl that `fd` doesn't do.
pub(crate) fn refusal(fd: Fd, cmd: u32) -> Error {
    abi::REFUSED
        .iter()
        .find(|(whose, number, _)| *whose == fd && *number == cmd)
        .map_or(ENOTTY, |(.., error)| *error)
}
