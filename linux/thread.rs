// SPDX-License-Identifier: GPL-2.0

//! A thread, to be given the CPU by another one.

use kernel::bindings;

/// A thread's identity, which stays after it has ended.
///
/// # Invariants
///
/// Holds a reference taken with `get_task_pid`.
pub(crate) struct Thread(*mut bindings::pid);

// SAFETY: `struct pid` is reference-counted and made for use by several threads.
unsafe impl Send for Thread {}
// SAFETY: As above.
unsafe impl Sync for Thread {}

/// What became of a wish to yield.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Yield {
    /// The other thread goes first.
    Done,
    /// It sleeps, or has a CPU.
    NotWaiting,
    /// Nobody waits for this thread's CPU or the other's.
    Pointless,
}

impl Thread {
    /// The calling thread.
    pub(crate) fn current() -> Self {
        // SAFETY: The current task is valid.
        // INVARIANT: The reference is taken here.
        Self(unsafe {
            bindings::get_task_pid(
                kernel::task::Task::current_raw(),
                bindings::pid_type_PIDTYPE_PID,
            )
        })
    }

    /// Whether it is the calling thread.
    #[inline]
    pub(crate) fn is_current(&self) -> bool {
        // SAFETY: The current task is valid, and has its `pid` for as long as it runs.
        self.0 == unsafe { (*kernel::task::Task::current_raw()).thread_pid }
    }

    /// Lets this thread have a CPU before the calling one, if it wants one. May sleep.
    pub(crate) fn yield_to(&self) -> Yield {
        // SAFETY: By the type's invariant the pid is valid; a task comes with a reference, or null after its end.
        let task = unsafe { bindings::get_pid_task(self.0, bindings::pid_type_PIDTYPE_PID) };
        if task.is_null() {
            return Yield::NotWaiting;
        }
        // SAFETY: The reference keeps the task while the scheduler looks at it.
        let yielded = unsafe { bindings::yield_to(task, true) };
        // SAFETY: The reference from `get_pid_task`.
        unsafe { super::ffi::xvm_put_task(task.cast()) };
        match yielded {
            1.. => Yield::Done,
            0 => Yield::NotWaiting,
            _ => Yield::Pointless,
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        // SAFETY: By the type's invariant.
        unsafe { bindings::put_pid(self.0) };
    }
}
