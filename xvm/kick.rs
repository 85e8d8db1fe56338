// SPDX-License-Identifier: GPL-2.0

//! Reaching a vCPU that may be in guest mode: on which CPU each one is, and making it leave.

use crate::linux::cpus;
use crate::linux::cpus::Interrupted;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::sync::new_spinlock;
use kernel::sync::Arc;
use kernel::sync::SpinLock;

/// Not in guest mode.
const OUTSIDE: u32 = u32::MAX;

/// Beside the CPU's number: an interrupt is on its way there already.
const KICKED: u32 = 1 << 31;

/// Where one vCPU runs.
///
/// The vCPU says that it is in guest mode first and looks for work second; who has work for it leaves the work first
/// and looks here second. Both with sequentially consistent accesses: at least one sees the other.
pub(crate) struct Presence(AtomicU32);

impl Presence {
    /// Outside.
    pub(crate) const fn new() -> Self {
        Self(AtomicU32::new(OUTSIDE))
    }

    /// The vCPU is about to enter the guest on `cpu`, interrupts off. It must look for work after this.
    #[inline]
    pub(crate) fn enter(&self, cpu: u32) {
        self.0.swap(cpu, Ordering::SeqCst);
    }

    /// The vCPU has left the guest.
    #[inline]
    pub(crate) fn leave(&self) {
        self.0.store(OUTSIDE, Ordering::Release);
    }

    /// Whether it isn't in guest mode now.
    pub(crate) fn is_outside(&self) -> bool {
        self.0.load(Ordering::Relaxed) == OUTSIDE
    }

    fn cpu(&self) -> Option<u32> {
        let cpu = self.0.load(Ordering::SeqCst);
        (cpu != OUTSIDE).then_some(cpu & !KICKED)
    }

    /// Makes the vCPU leave guest mode if it is in it. One interrupt does for all who want that. From any context.
    pub(crate) fn kick(&self) {
        let cpu = self.0.load(Ordering::SeqCst);
        if cpu & KICKED != 0 {
            // Outside, which has all bits set, or kicked.
            return;
        }
        // If this fails, the vCPU has left since it was asked to, or somebody else interrupts it.
        let kicked = cpu | KICKED;
        let one = self
            .0
            .compare_exchange(cpu, kicked, Ordering::SeqCst, Ordering::Relaxed);
        if one.is_ok() {
            cpus::kick(cpu);
        }
    }
}

/// All vCPUs of a VM, for what concerns every one of them.
#[pin_data]
pub(crate) struct Kick {
    #[pin]
    all: SpinLock<All>,
}

struct All {
    vcpus: KVec<Arc<Presence>>,
    /// The CPUs that they are on, when they are to leave guest mode; else none.
    cpus: Interrupted,
}

impl Kick {
    /// No vCPU yet.
    pub(crate) fn new() -> Result<Arc<Self>> {
        let all = All {
            vcpus: KVec::new(),
            cpus: Interrupted::new()?,
        };
        Arc::pin_init(
            pin_init!(Self {
                all <- new_spinlock!(all, "xvm_kick"),
            }),
            GFP_KERNEL,
        )
    }

    /// Adds a vCPU. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn add(&self, vcpu: Arc<Presence>) -> Result {
        loop {
            let want = self.all.lock().vcpus.len() + 1;
            let mut larger = KVec::with_capacity(want, GFP_KERNEL)?;
            let mut all = self.all.lock();
            let vcpus = &mut all.vcpus;
            if vcpus.len() + 1 != want {
                continue;
            }
            for one in vcpus.iter() {
                larger.push(one.clone(), GFP_ATOMIC)?;
            }
            larger.push(vcpu, GFP_ATOMIC)?;
            core::mem::swap(vcpus, &mut larger);
            drop(all);
            return Ok(());
        }
    }

    /// Takes a vCPU away.
    pub(crate) fn remove(&self, vcpu: &Arc<Presence>) {
        let mut all = self.all.lock();
        all.vcpus.retain(|one| !Arc::ptr_eq(one, vcpu));
    }

    /// Has all vCPUs leave guest mode, and waits until they have. Not with interrupts off; does not sleep.
    pub(crate) fn all_and_wait(&self) {
        let mut all = self.all.lock();
        let All { vcpus, cpus } = &mut *all;
        let mut any = false;
        for cpu in vcpus.iter().filter_map(|vcpu| vcpu.cpu()) {
            // With the lock held this thread stays on its CPU, and that has interrupts on: no vCPU is in guest mode here.
            cpus.add(cpu);
            any = true;
        }
        if any {
            cpus.interrupt_and_wait();
        }
    }
}
