// SPDX-License-Identifier: GPL-2.0

//! A vCPU that spins (PAUSE exits, `KVM_HC_SCHED_YIELD`): what it waits for is likely done by a vCPU that has no CPU.

use super::vcpu::Vcpu;
use super::XvmOps;
use crate::linux::thread::Thread;
use crate::linux::thread::Yield;
use kernel::prelude::*;
use kernel::sync::Arc;

/// How many vCPUs are tried: each is a look at the scheduler's queues.
const TRIES: usize = 4;

impl<V: XvmOps> Vcpu<V> {
    /// Tells the others which thread runs this vCPU. At the begin of `KVM_RUN`.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    #[inline]
    pub(super) fn announce_thread(&mut self) -> Result {
        match &self.thread {
            Some(thread) if thread.is_current() => Ok(()),
            _ => self.announce_new_thread(),
        }
    }

    #[cold]
    fn announce_new_thread(&mut self) -> Result {
        let thread = Arc::new(Thread::current(), GFP_KERNEL_ACCOUNT)?;
        let old = self.shared.thread.lock().replace(thread.clone());
        self.thread = Some(thread);
        // After the lock.
        drop(old);
        Ok(())
    }

    /// Lets another vCPU of the VM, one that waits for a CPU, go first: the one that the guest has named, or they take turns. May sleep.
    pub(super) fn yield_to_another(&mut self) {
        if let Some(id) = self.yield_to.take() {
            let thread = self.vm.targets().outside(id);
            if thread.is_some_and(|thread| thread.yield_to() == Yield::Done) {
                self.shared.stats.directed_yields.add(1);
            }
            return;
        }
        for _ in 0..TRIES {
            let me = self.shared.id;
            let Some((id, thread)) = self.vm.targets().next_outside(self.yielded_to, me) else {
                return;
            };
            self.yielded_to = id;
            match thread.yield_to() {
                Yield::Done | Yield::Pointless => return,
                Yield::NotWaiting => {}
            }
        }
    }
}
