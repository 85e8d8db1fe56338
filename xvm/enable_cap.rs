// SPDX-License-Identifier: GPL-2.0

//! `KVM_ENABLE_CAP` of a VM and of a vCPU (api.rst, 4.37, sections 6 and 7): one arm a capability.

use super::extension;
use super::halt::PollLimit;
use super::irqchip::Kind;
use super::platform::routing;
use super::pv;
use super::vcpu::Vcpu;
use super::vm::Vm;
use super::XvmOps;
use crate::linux::user;
use crate::uapi;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering;
use kernel::prelude::*;

/// The quirks that can be disabled: the value of `KVM_CAP_DISABLE_QUIRKS2`.
const QUIRKS: u64 = extension::value_of(uapi::KVM_CAP_DISABLE_QUIRKS2) as u64;

/// The reasons that `KVM_CAP_X86_USER_SPACE_MSR` takes.
const MSR_REASONS: u32 = uapi::KVM_MSR_EXIT_REASON_INVAL
    | uapi::KVM_MSR_EXIT_REASON_UNKNOWN
    | uapi::KVM_MSR_EXIT_REASON_FILTER;

/// The switches of a VM that `KVM_ENABLE_CAP` turns on and off, at any time. Each is looked at by itself: none orders anything.
#[derive(Default)]
pub(crate) struct Switches {
    /// An instruction that isn't known is the VMM's business in user code as well (7.27).
    pub(crate) exit_on_emulation_failure: AtomicBool,
    /// `struct kvm_vcpu_events` tells exceptions that are raised from those that the CPU has attempted (7.17).
    exception_payload: AtomicBool,
    /// It has triple faults as well (`KVM_CAP_X86_TRIPLE_FAULT_EVENT`).
    triple_fault_event: AtomicBool,
    /// The guest may not read MSR PLATFORM_INFO (7.11).
    pub(crate) hide_platform_info: AtomicBool,
    /// Hypercalls that are the VMM's business, a bit each (7.33).
    pub(crate) hypercalls: AtomicU64,
    /// How long HLT is polled.
    pub(super) halt_poll: PollLimit,
    /// What KVM does for the sake of old VMMs and guests, and is not to do, `KVM_X86_QUIRK_*` (7.31).
    pub(crate) disabled_quirks: AtomicU64,
    /// Whether local APICs can be told not to tell of the ends of interrupts: a flag of `KVM_CAP_X2APIC_API`, or 0 (7.7).
    pub(super) eoi_suppression: AtomicU64,
    /// Why an access to an MSR is the VMM's to carry out, `KVM_MSR_EXIT_REASON_*` (7.21).
    user_space_msr: AtomicU32,
    /// Instructions that don't exit, `KVM_X86_DISABLE_EXITS_*` (7.13).
    free_instructions: AtomicU32,
}

impl Switches {
    /// Whether the VMM has disabled a quirk, `KVM_X86_QUIRK_*`.
    pub(crate) fn without_quirk(&self, quirk: u32) -> bool {
        self.disabled_quirks.load(Ordering::Relaxed) & u64::from(quirk) != 0
    }

    /// Whether LINT0 is open after a reset.
    pub(crate) fn opens_lint0(&self) -> bool {
        !self.without_quirk(uapi::KVM_X86_QUIRK_LINT0_REENABLED)
    }

    /// Whether a new vCPU has feature MSRs that the VMM hasn't set.
    pub(crate) fn stuffs_feature_msrs(&self) -> bool {
        !self.without_quirk(uapi::KVM_X86_QUIRK_STUFF_FEATURE_MSRS)
    }

    /// Whether RIP is behind an OUT to `port` already when the VMM is told of it.
    pub(crate) fn skips_first(&self, port: u16) -> bool {
        port == 0x7e && !self.without_quirk(uapi::KVM_X86_QUIRK_OUT_7E_INC_RIP)
    }

    /// Whether there is nothing, and not the VMM's, where a local APIC would have its registers that hasn't them there.
    pub(crate) fn apic_hole(&self) -> bool {
        !self.without_quirk(uapi::KVM_X86_QUIRK_LAPIC_MMIO_HOLE)
    }

    /// Whether raised exceptions are told apart.
    pub(crate) fn exception_payload(&self) -> bool {
        self.exception_payload.load(Ordering::Relaxed)
    }

    /// The accesses to MSRs that the VMM wants to carry out: `KVM_MSR_EXIT_REASON_*`.
    pub(crate) fn user_space_msr(&self) -> u32 {
        self.user_space_msr.load(Ordering::Relaxed)
    }

    /// Whether an instruction, `KVM_X86_DISABLE_EXITS_*`, is left to the guest.
    pub(crate) fn is_free(&self, instruction: u32) -> bool {
        self.free_instructions.load(Ordering::Relaxed) & instruction != 0
    }

    /// Whether triple faults are among the events.
    pub(crate) fn triple_fault_event(&self) -> bool {
        self.triple_fault_event.load(Ordering::Relaxed)
    }
}

impl<V: XvmOps> Vm<V> {
    /// `KVM_ENABLE_CAP`, of a VM.
    ///
    /// # Errors
    ///
    /// `EFAULT`; `EINVAL` for a capability that isn't enabled in this way, flags, or arguments that it doesn't take.
    pub(crate) fn enable_cap(&self, arg: usize) -> Result<isize> {
        let asked: uapi::kvm_enable_cap = user::read(arg)?;
        if asked.flags != 0 {
            return Err(EINVAL);
        }
        let value = asked.args[0];
        let switches = &self.switches;
        match asked.cap {
            uapi::KVM_CAP_EXIT_ON_EMULATION_FAILURE => {
                set(&switches.exit_on_emulation_failure, value)?;
            }
            uapi::KVM_CAP_EXCEPTION_PAYLOAD => {
                switches
                    .exception_payload
                    .store(value != 0, Ordering::Relaxed);
            }
            uapi::KVM_CAP_X86_USER_SPACE_MSR => {
                let reasons = u32::try_from(value).map_err(|_| EINVAL)?;
                if reasons & !MSR_REASONS != 0 {
                    return Err(EINVAL);
                }
                switches.user_space_msr.store(reasons, Ordering::Relaxed);
            }
            uapi::KVM_CAP_X86_TRIPLE_FAULT_EVENT => {
                let wanted = value != 0;
                switches.triple_fault_event.store(wanted, Ordering::Relaxed);
            }
            uapi::KVM_CAP_X86_DISABLE_EXITS => self.disable_exits(value)?,
            uapi::KVM_CAP_DIRTY_LOG_RING | uapi::KVM_CAP_DIRTY_LOG_RING_ACQ_REL => {
                self.use_dirty_rings(value)?;
            }
            uapi::KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 => self.memory.set_log_options(value)?,
            uapi::KVM_CAP_HALT_POLL => {
                let ns = u32::try_from(value).map_err(|_| EINVAL)?;
                switches.halt_poll.set(ns);
            }
            uapi::KVM_CAP_MAX_VCPU_ID => self.set_max_vcpu_id(value)?,
            uapi::KVM_CAP_X2APIC_API => self.use_x2apic_api(value)?,
            uapi::KVM_CAP_X86_APIC_BUS_CYCLES_NS => self.set_apic_bus_cycle(value)?,
            uapi::KVM_CAP_EXIT_HYPERCALL if value & !pv::FOR_VMM == 0 => {
                switches.hypercalls.store(value, Ordering::Relaxed);
            }
            uapi::KVM_CAP_MSR_PLATFORM_INFO => {
                let hide = &switches.hide_platform_info;
                hide.store(value == 0, Ordering::Relaxed);
            }
            // The older one ignores what it doesn't know.
            uapi::KVM_CAP_DISABLE_QUIRKS => self.disable_quirks(value & QUIRKS),
            uapi::KVM_CAP_DISABLE_QUIRKS2 if value & !QUIRKS == 0 => self.disable_quirks(value),
            uapi::KVM_CAP_SPLIT_IRQCHIP => self.split_irqchip(value)?,
            _ => return Err(EINVAL),
        }
        Ok(0)
    }

    /// Instructions by which guests wait, and which are left to them (7.13).
    fn disable_exits(&self, exits: u64) -> Result {
        if exits & !u64::from(extension::free_instructions()) != 0 {
            return Err(EINVAL);
        }
        self.before_vcpus(|| {
            let free = &self.switches.free_instructions;
            free.fetch_or(exits as u32, Ordering::Relaxed);
        })
    }

    fn disable_quirks(&self, quirks: u64) {
        let disabled = &self.switches.disabled_quirks;
        disabled.fetch_or(quirks, Ordering::Relaxed);
    }

    /// The local APICs alone are in the kernel (7.5); `pins` are how many GSIs the VMM's IOAPIC has.
    fn split_irqchip(&self, pins: u64) -> Result {
        let pins = u32::try_from(pins).map_err(|_| EINVAL)?;
        if pins > routing::GSIS {
            return Err(EINVAL);
        }
        self.create_irqchip(Kind::Split(pins), EEXIST).map(|_| ())
    }
}

impl<V: XvmOps> Vcpu<V> {
    /// `KVM_ENABLE_CAP`, of a vCPU.
    ///
    /// # Errors
    ///
    /// As [`Vm::enable_cap`].
    pub(crate) fn enable_cap(&mut self, arg: usize) -> Result<isize> {
        let asked: uapi::kvm_enable_cap = user::read(arg)?;
        match asked.cap {
            _ if asked.flags != 0 => return Err(EINVAL),
            uapi::KVM_CAP_ENFORCE_PV_FEATURE_CPUID => {
                self.enforce_pv_features(asked.args[0] != 0);
            }
            _ => return Err(EINVAL),
        }
        Ok(0)
    }
}

/// A switch whose argument is 0 or 1.
fn set(switch: &AtomicBool, value: u64) -> Result {
    if value > 1 {
        return Err(EINVAL);
    }
    switch.store(value != 0, Ordering::Relaxed);
    Ok(())
}
