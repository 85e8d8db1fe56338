// SPDX-License-Identifier: GPL-2.0

//! kvmclock (x86/msr.rst, `MSR_KVM_SYSTEM_TIME_NEW`; x86/timekeeping.rst).
//!
//! Where the host keeps its time by a TSC that counts alike on all CPUs, a VM's clock is a line through one moment of the
//! host: all vCPUs have the same line, each in terms of its own TSC. If their TSCs agree too, a guest may use any of their
//! structures on any of them, which the stable bit says. On other hosts each structure is from a moment of its own, and is
//! written again whenever the vCPU comes to another CPU.
//!
//! # Locks
//!
//! `state`, a spin lock, is taken for an instant; under it that of `Targets`.

use super::due;
use super::ENABLED;
use crate::linux::clock;
use crate::linux::clock::Moment;
use crate::xvm::platform::pvclock;
use crate::xvm::platform::pvclock::Scale;
use crate::xvm::platform::pvclock::TimeInfo;
use crate::xvm::vcpu::Vcpu;
use crate::xvm::vm::Vm;
use crate::xvm::XvmOps;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering;
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;
use kernel::sync::new_spinlock;
use kernel::sync::SpinLock;

const NS_PER_SECOND: u64 = 1_000_000_000;

/// A VM's clock.
#[pin_data]
pub(crate) struct Clock {
    #[pin]
    state: SpinLock<State>,
    /// Whether the TSCs of all vCPUs agree, as was last found.
    agree: AtomicBool,
    /// MSR_KVM_WALL_CLOCK, of which a VM has one.
    wall: AtomicU64,
}

#[derive(Clone, Copy)]
struct State {
    /// Where the line starts.
    base: Moment,
    /// What the clock adds to the host's time, modulo 2^64.
    offset: u64,
}

/// The clock at a moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    /// The host's moment. With `line` its TSC and its time are those that the line was computed for.
    pub(super) host: Moment,
    /// The clock then, in nanoseconds.
    pub(super) ns: u64,
    /// It is on the line that all vCPUs have.
    pub(super) line: bool,
}

impl Clock {
    /// Counts from zero.
    pub(crate) fn new() -> impl PinInit<Self> {
        let base = Moment::now();
        pin_init!(Self {
            state <- new_spinlock!(
                State {
                    base,
                    offset: 0u64.wrapping_sub(base.ns),
                },
                "xvm_clock"
            ),
            agree: AtomicBool::new(true),
            wall: AtomicU64::new(0),
        })
    }

    /// The moment that vCPUs compute from: the line's start, if there is a line, else now.
    fn start(&self) -> Reading {
        let State { base, offset } = *self.state.lock();
        let line = base.exact && clock::tsc_is_stable();
        let host = if line { base } else { Moment::now() };
        Reading {
            host,
            ns: host.ns.wrapping_add(offset),
            line,
        }
    }

    /// The clock now.
    pub(super) fn now(&self) -> Reading {
        let host = Moment::now();
        let State { base, offset } = *self.state.lock();
        let line = base.exact && host.exact;
        let ns = if line {
            let ticks = host.tsc.wrapping_sub(base.tsc);
            base.ns
                .wrapping_add(Scale::from_khz(crate::linux::x86::tsc_khz()).ns(ticks))
        } else {
            host.ns
        };
        Reading {
            host,
            ns: ns.wrapping_add(offset),
            line,
        }
    }

    /// Sets it to `ns`; if this was its value at a time `real` of `CLOCK_REALTIME`, what has passed since is added. The
    /// vCPUs must be told.
    pub(super) fn set(&self, ns: u64, real: Option<u64>) {
        let base = Moment::now();
        let passed = real.map_or(0, |then| base.real.saturating_sub(then));
        *self.state.lock() = State {
            base,
            offset: ns.wrapping_add(passed).wrapping_sub(base.ns),
        };
    }

    /// Whether all vCPUs read the same time, as they were last told.
    pub(super) fn agrees(&self) -> bool {
        self.agree.load(Ordering::Relaxed)
    }

    /// MSR_KVM_WALL_CLOCK.
    pub(super) fn wall(&self) -> u64 {
        self.wall.load(Ordering::Relaxed)
    }

    pub(super) fn set_wall(&self, gpa: u64) {
        self.wall.store(gpa, Ordering::Relaxed);
    }
}

impl<V: XvmOps> Vm<V> {
    /// A vCPU's TSC has changed, or a vCPU has come or gone: finds out whether they agree, and has all of them write their clock
    /// structures again if that is new. May sleep.
    pub(crate) fn tscs_changed(&self) {
        let new = {
            // Who finds out last is right.
            let _state = self.clock.state.lock();
            let agree = self.tscs_agree();
            self.clock.agree.swap(agree, Ordering::SeqCst) != agree
        };
        if new {
            self.request_updates();
        }
    }
}

impl<V: XvmOps> Vcpu<V> {
    /// Writes the clock structure.
    pub(super) fn write_clock(&mut self) {
        let gpa = self.pv.system_time & !ENABLED;
        let within = (gpa % PAGE_SIZE as u64) as usize;
        if self.pv.system_time & ENABLED == 0 || within > PAGE_SIZE - TimeInfo::SIZE {
            return;
        }
        let start = self.vm.clock.start();
        let mut info = TimeInfo {
            tsc: self.guest_tsc_at(start.host.tsc),
            ns: start.ns,
            scale: Scale::from_khz(self.actual_tsc_khz()),
            flags: 0,
        };
        if start.line && self.vm.clock.agrees() {
            info.flags |= pvclock::TSC_STABLE;
        }
        if self.pv.stopped {
            info.flags |= pvclock::GUEST_STOPPED;
        }
        if self.write_time_info(gpa, info).is_ok() {
            self.pv.stopped = false;
        }
    }

    fn write_time_info(&mut self, gpa: u64, mut info: TimeInfo) -> Result {
        let slots = self.main_slots();
        let (mut version, mut flags) = ([0; 4], [0; 1]);
        slots.read(gpa.wrapping_add(TimeInfo::VERSION), &mut version)?;
        slots.read(gpa.wrapping_add(TimeInfo::FLAGS), &mut flags)?;
        // The guest takes it away when it has seen it.
        info.flags |= flags[0] & pvclock::GUEST_STOPPED;
        // The CPU's stores are seen in their order, and each of these is a call: no compiler merges them.
        let (odd, even) = pvclock::versions(u32::from_le_bytes(version));
        slots.write(gpa.wrapping_add(TimeInfo::VERSION), &odd.to_le_bytes())?;
        slots.write(gpa.wrapping_add(TimeInfo::REST), &info.to_bytes())?;
        slots.write(gpa.wrapping_add(TimeInfo::VERSION), &even.to_le_bytes())
    }

    /// Whether the clock structure would be wrong on another CPU.
    #[inline]
    pub(crate) fn moved(&mut self) {
        if !clock::tsc_is_stable() {
            self.pv.clock_changed();
        }
    }

    /// The VMM or the guest has changed the vCPU's TSC.
    pub(crate) fn tsc_changed(&mut self) {
        self.pv.due |= due::TSC;
        self.pv.clock_changed();
    }

    /// Writes the wall clock: what time it was when the clock was zero.
    pub(super) fn write_wall_clock(&mut self) {
        let gpa = self.vm.clock.wall();
        if gpa == 0 {
            return;
        }
        let now = self.vm.clock.now();
        let start = now.host.real.wrapping_sub(now.ns);
        // Nobody is told of a failure, as for the structures that are written unasked.
        let _ = self.write_wall_time(gpa, start / NS_PER_SECOND, start % NS_PER_SECOND);
    }

    fn write_wall_time(&mut self, gpa: u64, seconds: u64, ns: u64) -> Result {
        let slots = self.main_slots();
        let mut version = [0; 4];
        slots.read(gpa, &mut version)?;
        let (odd, even) = pvclock::versions(u32::from_le_bytes(version));
        let mut time = [0; 8];
        time[..4].copy_from_slice(&(seconds as u32).to_le_bytes());
        time[4..].copy_from_slice(&(ns as u32).to_le_bytes());
        slots.write(gpa, &odd.to_le_bytes())?;
        slots.write(gpa.wrapping_add(4), &time)?;
        slots.write(gpa, &even.to_le_bytes())
    }
}
