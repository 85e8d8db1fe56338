// SPDX-License-Identifier: GPL-2.0

//! What the VMM says of a VM's processors before it makes them: `KVM_SET_BOOT_CPU_ID` (api.rst, 4.41),
//! `KVM_CAP_MAX_VCPU_ID` (7.32), `KVM_CAP_X86_APIC_BUS_CYCLES_NS` (7.35) and `KVM_CAP_X2APIC_API` (7.7).

use super::extension;
use super::vcpu::Vcpu;
use super::vm::Vm;
use super::XvmOps;
use crate::uapi;
use core::sync::atomic::Ordering;
use kernel::prelude::*;

/// Flags of `KVM_CAP_X2APIC_API`.
const USE_32BIT_IDS: u64 = 1 << 0;
const DISABLE_BROADCAST_QUIRK: u64 = 1 << 1;
const ENABLE_SUPPRESSION: u64 = 1 << 2;
const DISABLE_SUPPRESSION: u64 = 1 << 3;
/// All of them.
const X2APIC_API: u64 = extension::value_of(uapi::KVM_CAP_X2APIC_API) as u64;

/// Whether guests can have their local APICs not tell of the ends of interrupts (SDM vol 3, 12.8.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EoiSuppression {
    /// They are told that they can, and aren't obeyed: KVM's old way where the IOAPIC is the VMM's.
    Pretended,
    /// They can.
    There,
    /// They can't, and are told so.
    Absent,
}

/// See the file's head. Guarded by `Vm::setup`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Processors {
    /// The number of the bootstrap processor.
    pub(crate) boot: u32,
    /// Numbers of vCPUs are below this; 0 as long as nobody has said so.
    max_ids: u32,
    /// Nanoseconds for a cycle of the APIC bus, by which the local APICs' timers count.
    pub(crate) bus_cycle_ns: u64,
}

impl Processors {
    /// As it is when the VMM says nothing.
    pub(crate) const DEFAULT: Self = Self {
        boot: 0,
        max_ids: 0,
        bus_cycle_ns: 1,
    };

    /// Looks whether a vCPU may have the number `id`. From the first vCPU on the limit is settled.
    ///
    /// # Errors
    ///
    /// `EINVAL` when it may not.
    pub(super) fn check_id(&mut self, id: u32) -> Result {
        if self.max_ids == 0 {
            self.max_ids = extension::MAX_VCPU_ID;
        }
        if id >= self.max_ids {
            return Err(EINVAL);
        }
        Ok(())
    }
}

impl<V: XvmOps> Vm<V> {
    /// `KVM_CHECK_EXTENSION` of a VM.
    ///
    /// # Errors
    ///
    /// None; the type is that of ioctls.
    pub(super) fn check_extension(&self, capability: usize) -> Result<isize> {
        let Ok(known) = u32::try_from(capability) else {
            return Ok(0);
        };
        Ok(match known {
            uapi::KVM_CAP_X86_APIC_BUS_CYCLES_NS => self.processors().bus_cycle_ns as isize,
            uapi::KVM_CAP_X2APIC_API => self.x2apic_api() as isize,
            uapi::KVM_CAP_MEMORY_ATTRIBUTES => self.memory_attributes() as isize,
            uapi::KVM_CAP_GUEST_MEMFD_FLAGS => self.memory.file_flags() as isize,
            uapi::KVM_CAP_MULTI_ADDRESS_SPACE if self.memory.is_protected() => 1,
            _ => extension::check(&self.machine.caps, capability)?,
        })
    }

    /// `KVM_SET_BOOT_CPU_ID`.
    ///
    /// # Errors
    ///
    /// `EBUSY` when there is a vCPU, `EINVAL` for a number that none can have.
    pub(super) fn set_boot_cpu_id(&self, id: usize) -> Result<isize> {
        let mut processors = self.processors();
        if self.has_vcpus() {
            return Err(EBUSY);
        }
        let limit = match processors.max_ids {
            0 => extension::MAX_VCPU_ID,
            limit => limit,
        };
        let id = u32::try_from(id).map_err(|_| EINVAL)?;
        // The limit itself is taken, as in KVM, where it then names no vCPU.
        if id > limit {
            return Err(EINVAL);
        }
        processors.boot = id;
        Ok(0)
    }

    /// `KVM_CAP_MAX_VCPU_ID`: numbers are below `limit`. 0 changes nothing.
    ///
    /// # Errors
    ///
    /// `EINVAL` when it is more than the device takes, below the bootstrap processor's number, or set to something else
    /// already, by this or by the first vCPU.
    pub(super) fn set_max_vcpu_id(&self, limit: u64) -> Result {
        let limit = u32::try_from(limit).map_err(|_| EINVAL)?;
        let mut processors = self.processors();
        let settled = processors.max_ids != 0 && processors.max_ids != limit;
        if limit > extension::MAX_VCPU_ID || limit < processors.boot || settled {
            return Err(EINVAL);
        }
        processors.max_ids = limit;
        Ok(())
    }

    /// `KVM_CAP_X86_APIC_BUS_CYCLES_NS`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for 0, for so many that the longest time of a timer is no number, and when there is a vCPU; `ENXIO` without
    /// in-kernel interrupt controllers.
    pub(super) fn set_apic_bus_cycle(&self, ns: u64) -> Result {
        /// The highest divider of a timer (SDM vol 3, figure 12-10).
        const MAX_DIVIDER: u64 = 128;
        let longest = (u64::from(u32::MAX) * MAX_DIVIDER).checked_mul(ns);
        if ns == 0 || longest.is_none() {
            return Err(EINVAL);
        }
        let mut processors = self.processors();
        if self.irqchip().is_none() {
            return Err(ENXIO);
        }
        if self.has_vcpus() {
            return Err(EINVAL);
        }
        processors.bus_cycle_ns = ns;
        Ok(())
    }

    /// `KVM_CAP_X2APIC_API`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for flags that `KVM_CHECK_EXTENSION` doesn't name, and for contradictory ones.
    pub(super) fn use_x2apic_api(&self, flags: u64) -> Result {
        let suppression = flags & (ENABLE_SUPPRESSION | DISABLE_SUPPRESSION);
        if flags & !self.x2apic_api() != 0 || suppression.count_ones() > 1 {
            return Err(EINVAL);
        }
        if suppression != 0 {
            let chosen = &self.switches.eoi_suppression;
            chosen.store(suppression, Ordering::Relaxed);
        }
        let exact_broadcast = flags & DISABLE_BROADCAST_QUIRK != 0;
        self.targets()
            .use_x2apic_api(flags & USE_32BIT_IDS != 0, exact_broadcast);
        Ok(())
    }

    /// The flags that this VM's `KVM_CAP_X2APIC_API` takes. The IOAPIC in the kernel has no EOI register: its interrupts end by the local
    /// APICs' word alone.
    fn x2apic_api(&self) -> u64 {
        match self.is_split() {
            true => X2APIC_API,
            false => X2APIC_API & !ENABLE_SUPPRESSION,
        }
    }

    fn is_split(&self) -> bool {
        self.irqchip().is_some_and(|irqchip| irqchip.is_split())
    }

    /// What guests have of it.
    pub(super) fn eoi_suppression(&self) -> EoiSuppression {
        match self.switches.eoi_suppression.load(Ordering::Relaxed) {
            _ if !self.is_split() => EoiSuppression::Absent,
            0 => EoiSuppression::Pretended,
            ENABLE_SUPPRESSION => EoiSuppression::There,
            _ => EoiSuppression::Absent,
        }
    }
}

impl<V: XvmOps> Vcpu<V> {
    /// Tells the local APIC whether its guest is told that it can suppress EOIs: one whose CPUID has the x2APIC. After a change of CPUID.
    pub(crate) fn offer_eoi_suppression(&mut self) {
        let offered = self.vm.eoi_suppression() != EoiSuppression::Absent;
        let offered = offered && self.cpuid.model().x2apic;
        if let Some(lapic) = &mut self.lapic {
            lapic.offer_eoi_suppression(offered);
        }
    }
}
