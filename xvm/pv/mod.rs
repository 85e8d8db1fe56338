// SPDX-License-Identifier: GPL-2.0

//! What guests find that know KVM: the paravirtual MSRs, hypercalls and structures in guest memory
//! (Documentation/virt/kvm/x86/{cpuid,msr,hypercalls}.rst).
//!
//! | file | subject |
//! | --- | --- |
//! | `features` | the feature bits of CPUID leaf 0x4000_0001, and who may use what |
//! | `clock` | kvmclock: a VM's clock, its structure in guest memory, the wall clock |
//! | `clock_ioctl` | `KVM_GET_CLOCK`, `KVM_SET_CLOCK`, `KVM_KVMCLOCK_CTRL` |
//! | `msr` | the MSRs |
//! | `hypercall` | the hypercalls |
//! | `eoi` | ends of interrupts without an exit |
//! | `async_pf` | page faults that the guest need not wait for |
//! | `steal` | steal time, and whether a vCPU is off its CPU |
//!
//! An MSR's write inside the window only notes what it asks for. The structures are written outside, before the next entry
//! ([`Vcpu::serve_guest`]), where guest memory may have to be brought in. Where a structure can't be written (no memory, a
//! read-only slot, a page's end in its midst) nothing happens, as in KVM.

mod async_pf;
mod clock;
mod clock_ioctl;
mod eoi;
mod features;
mod hypercall;
mod msr;
mod steal;

pub(crate) use clock::Clock;
pub(crate) use features::Features;
pub(crate) use features::SUPPORTED;
pub(crate) use hypercall::Called;
pub(crate) use hypercall::FOR_VMM;
pub(crate) use msr::STATE;
pub(crate) use steal::OffCpu;

use super::vcpu::Vcpu;
use super::XvmOps;
use async_pf::AsyncPf;

/// Bits of [`Pv::due`].
mod due {
    /// The vCPU's clock structure.
    pub(super) const CLOCK: u32 = 1 << 0;
    /// The VM's wall clock.
    pub(super) const WALL_CLOCK: u32 = 1 << 1;
    /// Nothing of this vCPU's: its TSC has changed, and the VM must look whether all agree.
    pub(super) const TSC: u32 = 1 << 2;
    /// The vCPU's steal time.
    pub(super) const STEAL: u32 = 1 << 3;
    /// A page that the vCPU went on without.
    pub(super) const ASYNC_PF: u32 = 1 << 4;
}

/// Enable bit of the MSRs that hold an address.
const ENABLED: u64 = 1;

/// A vCPU's part of the paravirtual interface.
#[derive(Default)]
pub(crate) struct Pv {
    /// What there is to be written to guest memory before the next entry, bits of [`due`].
    due: u32,
    /// The guest may use only what its CPUID names (`KVM_CAP_ENFORCE_PV_FEATURE_CPUID`).
    enforce: bool,
    /// MSR_KVM_SYSTEM_TIME: address of the clock structure, and [`ENABLED`].
    system_time: u64,
    /// MSR_KVM_STEAL_TIME: address of the structure, and [`ENABLED`].
    steal_time: u64,
    /// What it says.
    accounted: steal::Accounted,
    /// Pages that it goes on without.
    pub(crate) async_pf: AsyncPf,
    /// MSR_KVM_EOI_EN: address of a byte, and [`ENABLED`].
    eoi: u64,
    /// The byte says that an EOI can wait.
    eoi_announced: bool,
    /// MSR_KVM_POLL_CONTROL is 0: the guest has polled before it halts, and its HLT isn't polled.
    pub(crate) polls_itself: bool,
    /// The guest is to be told that it was stopped.
    stopped: bool,
    /// Another vCPU has ended this one's HLT, or will have ended its next (KVM_HC_KICK_CPU).
    pub(crate) kicked: bool,
}

impl Pv {
    /// The vCPU's clock structure is out of date.
    pub(crate) fn clock_changed(&mut self) {
        if self.system_time & ENABLED != 0 {
            self.due |= due::CLOCK;
        }
    }
}

impl<V: XvmOps> Vcpu<V> {
    /// After an INIT nothing is enabled.
    pub(crate) fn reset_pv(&mut self) {
        self.set_steal_time(0);
        self.pv = Pv {
            enforce: self.pv.enforce,
            // As in KVM, which leaves it to the guest to set it anew.
            polls_itself: self.pv.polls_itself,
            // This is the VM's business.
            due: self.pv.due & due::TSC,
            ..Pv::default()
        };
    }

    /// Whether something must be written before the next entry.
    #[inline]
    pub(crate) fn must_serve(&self) -> bool {
        self.pv.due != 0 || self.tells_steal_time() && self.shared.off_cpu.was_off()
    }

    /// Writes to guest memory what has become due. Outside of the window; may sleep.
    #[inline]
    pub(crate) fn serve_guest(&mut self) {
        if self.shared.mailbox.take_update() {
            self.take_update();
        }
        if self.must_serve() {
            self.serve_late();
        }
    }

    #[cold]
    fn take_update(&mut self) {
        self.pv.clock_changed();
        self.update_msr_filter();
        if self.pv.async_pf.is_used() {
            self.pv.due |= due::ASYNC_PF;
        }
    }

    #[inline(never)]
    fn serve_late(&mut self) {
        if self.shared.off_cpu.was_off() {
            self.steal_time_passed();
        }
        self.serve();
    }

    /// The same for what a VMM may look at as soon as its ioctl has returned.
    pub(crate) fn serve_at_once(&mut self) {
        let later = self.pv.due & (due::CLOCK | due::STEAL | due::ASYNC_PF);
        self.pv.due &= !later;
        self.serve();
        self.pv.due |= later;
    }

    fn serve(&mut self) {
        let due = core::mem::take(&mut self.pv.due);
        if due & due::TSC != 0 {
            self.vm.tscs_changed();
        }
        if due & due::CLOCK != 0 {
            self.write_clock();
        }
        if due & due::WALL_CLOCK != 0 {
            self.write_wall_clock();
        }
        if due & due::STEAL != 0 {
            self.write_steal_time();
        }
        if due & due::ASYNC_PF != 0 {
            self.serve_async_pf();
        }
    }
}
