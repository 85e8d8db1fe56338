// SPDX-License-Identifier: GPL-2.0

//! Waiting for those who read (Documentation/RCU).

use kernel::bindings;
use kernel::sync::rcu;

/// Keeps [`wait_for_readers`] from returning. Nobody sleeps while it is there.
pub(crate) fn read_side() -> rcu::Guard {
    rcu::read_lock()
}

/// Waits until everyone who was in a [`read_side`], or had interrupts off, has left it. May sleep.
pub(crate) fn wait_for_readers() {
    // SAFETY: Process context.
    unsafe { bindings::synchronize_rcu_expedited() };
}
