// SPDX-License-Identifier: GPL-2.0

//! What VMX keeps for each physical CPU.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering;

/// A physical CPU. VMXON regions are with the vCPUs (see `vmcs.rs`), so this is only about who ran here last.
pub(crate) struct Cpu {
    number: u32,
    /// Identifier of the vCPU that ran last, 0 for none. Only this CPU writes it.
    last_vcpu: AtomicU64,
}

impl Cpu {
    /// Physical CPU `number`, on which nothing has run yet.
    pub(super) fn new(number: u32) -> Self {
        Self {
            number,
            last_vcpu: AtomicU64::new(0),
        }
    }

    /// Its number.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Notes that vCPU `id` runs here now; true if another did before.
    #[inline]
    pub(super) fn take_over(&self, id: u64) -> bool {
        if self.last_vcpu.load(Ordering::Relaxed) == id {
            return false;
        }
        self.last_vcpu.store(id, Ordering::Relaxed);
        true
    }
}
