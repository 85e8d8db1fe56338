// SPDX-License-Identifier: GPL-2.0

//! Paravirtual features (x86/cpuid.rst): what is offered, and what a vCPU may use.

use crate::xvm::vcpu::Vcpu;
use crate::xvm::XvmOps;

/// A set of features, bits of EAX of leaf 0x4000_0001.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Features(pub(crate) u32);

impl Features {
    /// kvmclock, by MSRs 0x11 and 0x12.
    pub(crate) const CLOCKSOURCE: Self = Self(1 << 0);
    /// Ports need no delay.
    pub(crate) const NOP_IO_DELAY: Self = Self(1 << 1);
    /// kvmclock, by the MSRs of KVM's range.
    pub(crate) const CLOCKSOURCE2: Self = Self(1 << 3);
    /// Asynchronous page faults; told by an exit of a nested guest; the page's arrival by interrupt.
    pub(crate) const ASYNC_PF: Self = Self(1 << 4);
    pub(crate) const ASYNC_PF_VMEXIT: Self = Self(1 << 10);
    pub(crate) const ASYNC_PF_INT: Self = Self(1 << 14);
    /// Steal time.
    pub(crate) const STEAL_TIME: Self = Self(1 << 5);
    /// A vCPU that is off its CPU can be left the word that its TLB is to be flushed.
    pub(crate) const PV_TLB_FLUSH: Self = Self(1 << 9);
    /// Ends of interrupts without an exit.
    pub(crate) const PV_EOI: Self = Self(1 << 6);
    /// A vCPU can end another's HLT (KVM_HC_KICK_CPU).
    pub(crate) const PV_UNHALT: Self = Self(1 << 7);
    /// KVM_HC_SEND_IPI.
    pub(crate) const PV_SEND_IPI: Self = Self(1 << 11);
    /// MSR_KVM_POLL_CONTROL: a guest that polls by itself turns the host's polling off.
    pub(crate) const POLL_CONTROL: Self = Self(1 << 12);
    /// KVM_HC_SCHED_YIELD.
    pub(crate) const PV_SCHED_YIELD: Self = Self(1 << 13);
    /// kvmclock tells whether it is the same on all vCPUs.
    pub(crate) const CLOCKSOURCE_STABLE_BIT: Self = Self(1 << 24);

    /// Those of either.
    pub(crate) const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` are among them.
    pub(crate) const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// What there is.
pub(crate) const SUPPORTED: Features = Features::CLOCKSOURCE
    .with(Features::NOP_IO_DELAY)
    .with(Features::CLOCKSOURCE2)
    .with(Features::ASYNC_PF)
    .with(Features::ASYNC_PF_INT)
    .with(Features::STEAL_TIME)
    .with(Features::PV_EOI)
    .with(Features::PV_UNHALT)
    .with(Features::PV_TLB_FLUSH)
    .with(Features::PV_SEND_IPI)
    .with(Features::POLL_CONTROL)
    .with(Features::PV_SCHED_YIELD)
    .with(Features::CLOCKSOURCE_STABLE_BIT);

impl<V: XvmOps> Vcpu<V> {
    /// Whether the guest may use `feature`: unless the VMM has asked for CPUID to be obeyed (api.rst, 7.26,
    /// `KVM_CAP_ENFORCE_PV_FEATURE_CPUID`), it may use all there is.
    pub(super) fn may_use(&self, feature: Features) -> bool {
        !self.pv.enforce || self.cpuid.pv_features().has(feature)
    }

    /// Whether it obeys its CPUID.
    pub(crate) fn enforce_pv_features(&mut self, enforce: bool) {
        self.pv.enforce = enforce;
    }
}
