// SPDX-License-Identifier: GPL-2.0

//! Being told when a task is taken off its CPU, and when it is put back (`linux/preempt.h`, preempt notifiers).

use core::cell::Cell;
use core::cell::UnsafeCell;
use core::marker::PhantomPinned;
use core::pin::Pin;
use kernel::bindings;
use kernel::prelude::*;

/// Who is told.
pub(crate) trait Scheduled: Sync {
    /// The calling task is taken off its CPU; `preempted`: though it could go on. Interrupts are off, and the scheduler's lock is held.
    fn out(&self, preempted: bool);

    /// It is back on a CPU. Preemption is off.
    fn back(&self);
}

/// Somebody watches: the scheduler looks for notifiers only then.
///
/// # Invariants
///
/// The scheduler has been told once.
pub(crate) struct Watching(());

impl Watching {
    /// Tells the scheduler. May sleep.
    pub(crate) fn new() -> Self {
        // SAFETY: Process context; `drop` undoes it.
        unsafe { bindings::preempt_notifier_inc() };
        // INVARIANT: Just told.
        Self(())
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        // SAFETY: By the type's invariant.
        unsafe { bindings::preempt_notifier_dec() };
    }
}

/// A watch over the calling task, on its stack.
///
/// # Invariants
///
/// `notifier` comes first: a pointer to it is one to the whole. While `registered` is set it is in the list of the task that made
/// it, from which `drop` takes it: the value is pinned, and can't be sent to another task.
#[repr(C)]
pub(crate) struct Watch<'a, T: Scheduled> {
    notifier: UnsafeCell<bindings::preempt_notifier>,
    target: &'a T,
    registered: Cell<bool>,
    _pinned: PhantomPinned,
}

impl<'a, T: Scheduled> Watch<'a, T> {
    const OPS: bindings::preempt_ops = bindings::preempt_ops {
        sched_in: Some(Self::sched_in),
        sched_out: Some(Self::sched_out),
    };

    /// Tells `target`, from [`Watch::begin`] on.
    pub(crate) fn new(target: &'a T) -> Self {
        let notifier = bindings::preempt_notifier {
            // In no list.
            link: pin_init::zeroed(),
            // The functions are only called; nobody writes to the structure.
            ops: core::ptr::from_ref(&Self::OPS).cast_mut(),
        };
        // INVARIANT: Not registered.
        Self {
            notifier: UnsafeCell::new(notifier),
            target,
            registered: Cell::new(false),
            _pinned: PhantomPinned,
        }
    }

    /// Begins, if it hasn't begun. `_` is the word that somebody watches.
    #[inline]
    pub(crate) fn begin(self: Pin<&Self>, _: &Watching) {
        if !self.registered.replace(true) {
            // SAFETY: The notifier is pinned, in no list, and zeroed as an entry that is in none is.
            // INVARIANT: The value can't have left the task that made it, which is the calling one.
            unsafe { bindings::preempt_notifier_register(self.notifier.get()) };
        }
    }

    /// # Safety
    ///
    /// Called by the scheduler with a notifier that is registered.
    unsafe extern "C" fn sched_in(notifier: *mut bindings::preempt_notifier, _cpu: c_int) {
        // SAFETY: By the type's invariant it is the start of a live `Watch`.
        let this = unsafe { &*notifier.cast::<Self>() };
        this.target.back();
    }

    /// # Safety
    ///
    /// As for `sched_in`.
    unsafe extern "C" fn sched_out(
        notifier: *mut bindings::preempt_notifier,
        _next: *mut bindings::task_struct,
    ) {
        // SAFETY: As in `sched_in`.
        let this = unsafe { &*notifier.cast::<Self>() };
        // SAFETY: The current task is the one that is being taken off; its state is read once, as the scheduler does.
        let state = unsafe {
            let task = kernel::task::Task::current_raw();
            core::ptr::read_volatile(&raw const (*task).__state)
        };
        this.target.out(state == bindings::TASK_RUNNING);
    }
}

impl<T: Scheduled> Drop for Watch<'_, T> {
    fn drop(&mut self) {
        if self.registered.get() {
            // SAFETY: By the type's invariant it is in the calling task's list.
            unsafe { bindings::preempt_notifier_unregister(self.notifier.get()) };
        }
    }
}

/// How long the calling task has waited for a CPU since it was made, in nanoseconds.
pub(crate) fn run_delay() -> u64 {
    // SAFETY: Reads a number of the current task's, which changes only when it is scheduled.
    unsafe { (*kernel::task::Task::current_raw()).sched_info.run_delay }
}

/// A name for the calling task, of which only equality means something.
pub(crate) fn task_name() -> usize {
    kernel::task::Task::current_raw() as usize
}
