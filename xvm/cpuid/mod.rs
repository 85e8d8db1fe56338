// SPDX-License-Identifier: GPL-2.0

//! CPUID: what guests can be offered, and what a vCPU answers.
//!
//! | file | subject |
//! | --- | --- |
//! | `features` | the allow-lists: which feature bits xvm virtualises |
//! | `supported` | the leaves of `KVM_GET_SUPPORTED_CPUID` |
//! | `emulated` | what `KVM_GET_EMULATED_CPUID` tells, and who has it |
//! | `guest` | a vCPU's CPUID as the VMM set it, and looking leaves up in it |
//! | `model` | what follows from it: which bits of CR4, EFER, XCR0… the vCPU has |
//! | `ioctl` | the ioctls |
//!
//! Hypervisor leaf 0x4000_0000 has KVM's name, by which guests find the paravirtual interface; 0x4000_0001 says what there
//! is of it (`xvm/pv/`).

mod emulated;
mod features;
mod guest;
mod ioctl;
mod model;
mod supported;

pub(crate) use guest::GuestCpuid;
pub(super) use ioctl::get_emulated;
pub(super) use ioctl::get_supported;
pub(crate) use model::Model;

use crate::uapi;

/// The most entries that a vCPU's CPUID may have, as in KVM.
const ENTRIES_MAX: u32 = 256;

/// The leaf's answer depends on ECX, which is in `index`.
const INDEXED: u32 = uapi::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;

/// EBX, EDX, ECX of leaf 0: vendors' names.
const AMD: [u32; 3] = [0x6874_7541, 0x6974_6e65, 0x444d_4163];
const HYGON: [u32; 3] = [0x6f67_7948, 0x6e65_476e, 0x656e_6975];
const INTEL: [u32; 3] = [0x756e_6547, 0x4965_6e69, 0x6c65_746e];

/// EBX, ECX, EDX of a hypervisor's first leaf: "KVMKVMKVM".
const KVM: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x0000_004d];

/// First leaf for hypervisors.
const HYPERVISOR: u32 = 0x4000_0000;
/// The end of the leaves among which guests look for a hypervisor.
const HYPERVISORS_END: u32 = 0x4001_0000;
/// First extended leaf.
const EXTENDED: u32 = 0x8000_0000;
