// SPDX-License-Identifier: GPL-2.0

//! The ioctl ABI: KVM's structures and numbers, made by bindgen from `uapi/xvm.h`, and which of them may be copied
//! from and to userspace as they are.

// Generated: names and shapes are C's, and only a part of them is used.
#[allow(clippy::all)]
#[allow(clippy::cast_lossless)]
#[allow(clippy::ptr_as_ptr)]
#[allow(clippy::ref_as_ptr)]
#[allow(clippy::undocumented_unsafe_blocks)]
#[allow(dead_code)]
#[allow(non_camel_case_types)]
#[allow(non_snake_case)]
#[allow(non_upper_case_globals)]
#[allow(unreachable_pub)]
#[allow(unsafe_op_in_unsafe_fn)]
mod bindings;

pub(crate) mod abi;

pub(crate) use bindings::*;

/// What an ioctl is asked of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fd {
    /// A VM.
    Vm,
    /// A vCPU.
    Vcpu,
}

use crate::linux::user::Plain;

macro_rules! plain {
    ($($name:ident),* $(,)?) => {
        $(
            // SAFETY: A structure of integers, arrays and unions of such, padded explicitly as ABI structures are.
            unsafe impl Plain for $name {}
        )*
    };
}

plain!(
    kvm_clock_data,
    kvm_cpuid_entry,
    kvm_cpuid_entry2,
    kvm_create_guest_memfd,
    kvm_debugregs,
    kvm_device_attr,
    kvm_fpu,
    kvm_guest_debug,
    kvm_interrupt,
    kvm_ioeventfd,
    kvm_irqfd,
    kvm_irq_level,
    kvm_irq_routing_entry,
    kvm_irqchip,
    kvm_lapic_state,
    kvm_mp_state,
    kvm_msi,
    kvm_msr_entry,
    kvm_one_reg,
    kvm_pit_config,
    kvm_pit_state,
    kvm_pit_state2,
    kvm_reinject_control,
    kvm_pre_fault_memory,
    kvm_regs,
    kvm_sregs,
    kvm_sregs2,
    kvm_tpr_access_ctl,
    kvm_translation,
    kvm_userspace_memory_region,
    kvm_userspace_memory_region2,
    kvm_vcpu_events,
    kvm_x86_mce,
    kvm_xcrs,
    kvm_enable_cap,
);
