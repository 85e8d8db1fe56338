// SPDX-License-Identifier: GPL-2.0

//! `/dev/xvm`: the system ioctls (api.rst, section 4, "system ioctl").

use super::cpuid;
use super::extension;
use super::machine::Machine;
use super::mce;
use super::msr;
use super::vcpu::MAPPED_PAGES;
use super::vm::Vm;
use super::XvmOps;
use crate::linux::device::Context;
use crate::linux::user;
use crate::uapi;
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;
use kernel::sync::Arc;

/// What the device does with vendor `V`.
pub(super) struct Device<V: XvmOps> {
    /// The machine that its VMs run on.
    pub(super) machine: Arc<Machine<V>>,
}

impl<V: XvmOps> Context for Device<V> {
    fn ioctl(&self, cmd: u32, arg: usize) -> Result<isize> {
        match cmd {
            uapi::KVM_GET_API_VERSION if arg == 0 => Ok(uapi::KVM_API_VERSION as isize),
            uapi::KVM_CREATE_VM => Vm::create(self.machine.clone(), arg),
            uapi::KVM_GET_VCPU_MMAP_SIZE if arg == 0 => Ok((MAPPED_PAGES * PAGE_SIZE) as isize),
            uapi::KVM_GET_API_VERSION | uapi::KVM_GET_VCPU_MMAP_SIZE => Err(EINVAL),
            uapi::KVM_CHECK_EXTENSION => extension::check(&self.machine.caps, arg),
            uapi::KVM_GET_SUPPORTED_CPUID => cpuid::get_supported(&self.machine, arg),
            uapi::KVM_GET_EMULATED_CPUID => cpuid::get_emulated(&self.machine, arg),
            uapi::KVM_GET_MSR_INDEX_LIST => msr::index_list(arg),
            uapi::KVM_GET_MSR_FEATURE_INDEX_LIST => msr::feature_index_list(arg),
            uapi::KVM_X86_GET_MCE_CAP_SUPPORTED => mce::get_supported(arg),
            uapi::KVM_HAS_DEVICE_ATTR | uapi::KVM_GET_DEVICE_ATTR => self.attribute(cmd, arg),
            uapi::KVM_GET_MSRS => msr::get_feature_msrs(arg),
            _ => Err(ENOTTY),
        }
    }
}

impl<V: XvmOps> Device<V> {
    /// `KVM_HAS_DEVICE_ATTR` and `KVM_GET_DEVICE_ATTR` (api.rst, 4.80, 4.81): the extended states that guests can have.
    ///
    /// # Errors
    ///
    /// `ENXIO` for anything else, `EFAULT`.
    fn attribute(&self, cmd: u32, arg: usize) -> Result<isize> {
        let attr: uapi::kvm_device_attr = user::read(arg)?;
        if attr.group != 0 || attr.attr != u64::from(uapi::KVM_X86_XCOMP_GUEST_SUPP) {
            return Err(ENXIO);
        }
        if cmd == uapi::KVM_GET_DEVICE_ATTR {
            user::write(attr.addr as usize, &self.machine.fpu.guest_xcr0)?;
        }
        Ok(0)
    }
}
