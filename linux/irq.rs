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
        // SAFETY: `drop` undoes it.
        let cpu = unsafe { ffi::xvm_irqs_off() };
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
        // SAFETY: By the type's invariant this value turned both off.
        unsafe { ffi::xvm_irqs_on() };
    }
}
