// SPDX-License-Identifier: GPL-2.0

//! Preemption and interrupts off on this CPU, as a token.

use super::ffi;
use core::marker::PhantomData;

/// Proof that this thread can't be preempted, interrupted or moved to another CPU.
///
/// # Invariants
///
/// Preemption and interrupts are off, by this value, for as long as it exists.
pub(crate) struct IrqsOff {
    cpu: u32,
    _not_send: PhantomData<*mut ()>,
}

impl IrqsOff {
    /// Turns preemption and interrupts off, until the value is dropped. Interrupts must be on: this does not nest.
    #[inline]
    pub(crate) fn new() -> Self {
        // SAFETY: Every `preempt_disable` and `irq_disable` here is undone, in reverse order, by `drop`.
        unsafe { ffi::xvm_preempt_disable() };
        // SAFETY: As above.
        unsafe { ffi::xvm_irq_disable() };
        // SAFETY: Reads a per-CPU variable; preemption is off.
        let cpu = unsafe { ffi::xvm_cpu() };
        // INVARIANT: Both were just turned off.
        Self {
            cpu,
            _not_send: PhantomData,
        }
    }

    /// This CPU's number.
    #[inline]
    pub(crate) fn cpu(&self) -> u32 {
        self.cpu
    }
}

impl Drop for IrqsOff {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type's invariant this value turned interrupts off.
        unsafe { ffi::xvm_irq_enable() };
        // SAFETY: By the type's invariant this value turned preemption off.
        unsafe { ffi::xvm_preempt_enable() };
    }
}
