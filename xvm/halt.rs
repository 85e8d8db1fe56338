// SPDX-License-Identifier: GPL-2.0

//! Waiting in HLT, or for a start-up IPI: what ends it, and how the thread waits. The host's timer for the local APIC's.
//!
//! A wait begins with polling, for as long as the last ones suggest (`platform/halt_poll.rs`) and nobody else wants the CPU;
//! then the thread sleeps.

use super::platform::lapic::Timer;
use super::vcpu::MpState;
use super::vcpu::Vcpu;
use super::XvmOps;
use crate::linux::task;
use crate::linux::timer;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering;

/// How long a HLT of the VM is polled at the most, in nanoseconds (`KVM_CAP_HALT_POLL`, api.rst, 7.20).
pub(crate) struct PollLimit(AtomicU32);

impl PollLimit {
    /// Sets it; 0 turns polling off.
    pub(crate) fn set(&self, ns: u32) {
        self.0.store(ns, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed).into()
    }
}

impl Default for PollLimit {
    /// KVM's default on x86: some times what waking a thread on another CPU takes.
    fn default() -> Self {
        Self(AtomicU32::new(200_000))
    }
}

impl<V: XvmOps> Vcpu<V> {
    /// Whether something that has come wakes the vCPU from HLT.
    pub(crate) fn wakes(&mut self) -> bool {
        self.take_mail();
        // It counts for one HLT, whatever else ends that.
        let kicked = core::mem::take(&mut self.pv.kicked);
        let pending = self
            .lapic
            .as_ref()
            .is_some_and(|lapic| lapic.pending().is_some());
        let events = &self.events;
        kicked
            || self.pv.async_pf.ends_halt()
            || events.nmis != 0
            || events.injected.is_some()
            || V::interruptibility(&self.arch).trap
            || ((pending || events.interrupt.is_some() || self.pic_interrupt())
                && self.interruptible())
    }

    /// Waits until the vCPU has to run, or go to system management mode, or a signal comes (false). Outside of the window.
    pub(crate) fn sleep(&mut self) -> bool {
        let halted = self.mp_state == MpState::Halted;
        let begin = timer::now();
        let limit = match self.pv.polls_itself {
            true => 0,
            false => self.vm.switches.halt_poll.get(),
        };
        let mut poll_until = begin.saturating_add(self.halt_poll.time(limit));
        while self.mp_state != MpState::Runnable {
            self.take_init();
            if self.smi_ends_halt() {
                break;
            }
            self.serve_guest();
            let wakes = self.mp_state == MpState::Halted && self.wakes();
            self.set_timer();
            if wakes {
                self.mp_state = MpState::Runnable;
            }
            if self.mp_state == MpState::Runnable {
                break;
            }
            if !self.wait(poll_until) {
                return false;
            }
            // What comes next comes after a sleep.
            poll_until = begin;
        }
        if halted {
            let lasted = timer::now().saturating_sub(begin);
            self.halt_poll.learn(lasted, limit);
        }
        true
    }

    /// Waits for something to look at; false when a signal ended it.
    fn wait(&self, poll_until: u64) -> bool {
        let pic = self.mp_state == MpState::Halted && self.interruptible();
        let ready = || !self.shared.mailbox.is_empty() || (pic && self.pic_interrupt());
        task::poll_while_alone(poll_until, ready) || self.shared.wait.wait(ready)
    }

    /// Sets the host's timer to when the local APIC's is due. Outside of the window.
    #[inline]
    pub(crate) fn set_timer(&mut self) {
        if core::mem::take(&mut self.timer_stale) {
            self.set_stale_timer();
        }
    }

    fn set_stale_timer(&mut self) {
        let Some(lapic) = &self.lapic else {
            return;
        };
        match lapic.timer() {
            Timer::Off => self.shared.cancel_timer(),
            Timer::At { ns } => self.shared.set_timer(ns),
            Timer::AtTsc { tsc } => {
                let ticks = tsc.saturating_sub(self.guest_tsc());
                let khz = u64::from(self.actual_tsc_khz());
                let ns = (ticks / khz)
                    .saturating_mul(1_000_000)
                    .saturating_add(ticks % khz * 1_000_000 / khz);
                self.shared.set_timer(timer::now().saturating_add(ns));
            }
        }
    }
}
