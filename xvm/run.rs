// SPDX-License-Identifier: GPL-2.0

//! `KVM_RUN` (api.rst, 4.10): the loop around the window.

use super::machine::Machine;
use super::pv::OffCpu;
use super::vcpu::MpState;
use super::vcpu::Shared;
use super::vcpu::Vcpu;
use super::window::Left;
use super::window::Window;
use super::XvmOps;
use crate::linux::preempt::Watch;
use crate::linux::task;
use crate::linux::task::SignalMask;
use crate::uapi;
use core::pin::pin;
use kernel::prelude::*;

/// Whether the guest goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It does.
    Guest,
    /// Userspace has to do something first.
    Userspace,
}

impl<V: XvmOps> Vcpu<V> {
    /// Runs the guest until userspace is needed, or a signal comes.
    ///
    /// # Errors
    ///
    /// `EINTR` when a signal or `immediate_exit` ended it, `EINVAL` when the VMM's CR8 is none, `EFAULT` or `EHWPOISON` when guest
    /// memory isn't there.
    pub(crate) fn run(&mut self, shared: &Shared, machine: &Machine<V>) -> Result {
        let _mask = self.signal_mask.map(SignalMask::set);
        let watch = pin!(Watch::new(&shared.off_cpu));
        let result = self
            .take_synced()
            .and_then(|()| self.run_guest(watch.as_ref(), machine));
        self.give_synced();
        self.fill_run_page();
        // `immediate_exit` leaves the reason of the exit that was completed: VMMs look at it after that.
        if result == Err(EINTR) && task::signal_pending() {
            shared.stats.signal_exits.add(1);
            self.set_exit(uapi::KVM_EXIT_INTR);
        }
        result
    }

    fn run_guest(&mut self, watch: Pin<&Watch<'_, OffCpu>>, machine: &Machine<V>) -> Result {
        if self.begin()? == Next::Userspace {
            return Ok(());
        }
        loop {
            self.shared.off_cpu.set_between(true);
            if self.tells_steal_time() {
                watch.begin(&self.vm.watching);
            }
            if self.get_ready()? == Next::Userspace {
                return Ok(());
            }
            self.shared.stats.windows.add(1);
            let left = Window::open(self, machine).run();
            match left {
                Left::Exit(exit) => {
                    self.shared.off_cpu.set_between(false);
                    if self.handle(exit)? == Next::Userspace {
                        return Ok(());
                    }
                }
                // The next window closes at once if there is some when it opens.
                Left::Host => task::do_work()?,
            }
        }
    }

    /// What `KVM_RUN` begins with: what the VMM wants, and what it did since the last exit.
    #[inline]
    fn begin(&mut self) -> Result<Next> {
        self.announce_thread()?;
        if self.lapic.is_none() {
            let cr8 = self.asked_cr8();
            if cr8 > 0xf {
                return Err(EINVAL);
            }
            self.set_cr8(cr8 as u8);
        }
        if self.complete()? == Next::Userspace {
            return Ok(Next::Userspace);
        }
        if self.immediate_exit() {
            return Err(EINTR);
        }
        if self.config.debug.is_some() {
            self.begin_debugging();
        }
        self.window_wanted = self.asked_window() && !self.has_pic();
        if self.window_wanted && self.ready_for_interrupt() {
            self.set_exit(uapi::KVM_EXIT_IRQ_WINDOW_OPEN);
            return Ok(Next::Userspace);
        }
        self.steal_time_passed();
        Ok(Next::Guest)
    }

    /// Waits until the vCPU runs, and does before the window what can't be done in it.
    #[inline]
    fn get_ready(&mut self) -> Result<Next> {
        loop {
            if self.mp_state != MpState::Runnable && !self.sleep() {
                return Err(EINTR);
            }
            if self.pv.async_pf.is_stuck() && !self.wait_for_page() {
                return Err(EINTR);
            }
            // What nobody uses any more of old slots is freed here rather than with interrupts off.
            self.slots.refresh();
            if self.slots.ring().is_some_and(|ring| ring.is_full()) {
                self.set_exit(uapi::KVM_EXIT_DIRTY_RING_FULL);
                return Ok(Next::Userspace);
            }
            if self.smi_waits() || !self.shared.mailbox.is_empty() {
                self.take_init();
                self.take_smi()?;
            }
            if self.mp_state == MpState::Runnable {
                break;
            }
        }
        self.serve_guest();
        self.set_timer();
        if let Some(vector) = self.ended.take() {
            self.exit_eoi(vector);
            return Ok(Next::Userspace);
        }
        if self.events.triple_fault {
            return self.shut_down();
        }
        Ok(Next::Guest)
    }

    /// Whether the VMM may queue an interrupt now.
    pub(super) fn ready_for_interrupt(&self) -> bool {
        self.hears_pic()
            && self.interruptible()
            && self.events.interrupt.is_none()
            && self.events.injected.is_none()
    }
}
