// SPDX-License-Identifier: GPL-2.0

//! The calling task: signals, its address space, being polite to others.

use super::ffi;
use kernel::bindings;
use kernel::error::to_result;
use kernel::prelude::*;

/// A signal waits for the calling task.
#[inline]
pub(crate) fn signal_pending() -> bool {
    // SAFETY: Reads flags of the current task.
    unsafe { ffi::xvm_signal_pending() }
}

/// Lets others run if the scheduler wants it. May sleep.
#[inline]
pub(crate) fn cond_resched() {
    // SAFETY: Callers are in process context without a lock that must not sleep, as documented.
    unsafe { ffi::xvm_cond_resched() };
}

/// Whether there is something for [`do_work`].
#[inline]
pub(crate) fn has_work() -> bool {
    // SAFETY: Reads flags of the current task.
    unsafe { ffi::xvm_has_work() }
}

/// Does what the kernel wants done before a task goes to its guest (`linux/entry-virt.h`): lets others run, and what has been left for the
/// task to do on its way to userspace. May sleep.
///
/// # Errors
///
/// `EINTR` when a signal waits.
#[inline]
pub(crate) fn do_work() -> Result {
    // SAFETY: Callers are in process context without a lock that must not sleep, as documented.
    to_result(unsafe { ffi::xvm_do_work() })
}

/// Waits, without giving up the CPU, until `ready` is true (then it returns true), the monotonic clock reaches `until`, or
/// there is anything else for this CPU or this thread to do.
pub(crate) fn poll_while_alone(until: u64, ready: impl Fn() -> bool) -> bool {
    while super::timer::now() < until {
        if ready() {
            return true;
        }
        // SAFETY: Reads a counter of the CPU's run queue, and may be out of date at once.
        let alone = unsafe { ffi::single_task_running() };
        if !alone || has_work() {
            return false;
        }
        kernel::processor::cpu_relax();
    }
    false
}

/// The number of the calling task's process.
pub(crate) fn pid() -> i32 {
    kernel::current!().tgid()
}

/// A signal mask that is put back when this is dropped.
///
/// # Invariants
///
/// `saved` is the mask that the calling task had.
pub(crate) struct SignalMask {
    saved: bindings::sigset_t,
}

impl SignalMask {
    /// Blocks the signals of `mask` for the calling task, in place of the ones blocked now. SIGKILL and SIGSTOP are never blocked.
    pub(crate) fn set(mask: u64) -> Self {
        let keep = !((1u64 << (bindings::SIGKILL - 1)) | (1u64 << (bindings::SIGSTOP - 1)));
        let mut new = bindings::sigset_t {
            sig: [(mask & keep) as usize],
        };
        let mut saved = bindings::sigset_t::default();
        // SAFETY: Both sets live through the call. It can't fail with SIG_SETMASK.
        // INVARIANT: The call stores the old mask.
        unsafe { bindings::sigprocmask(bindings::SIG_SETMASK as i32, &mut new, &mut saved) };
        Self { saved }
    }
}

impl Drop for SignalMask {
    fn drop(&mut self) {
        // SAFETY: The set lives through the call.
        unsafe {
            bindings::sigprocmask(
                bindings::SIG_SETMASK as i32,
                &mut self.saved,
                core::ptr::null_mut(),
            )
        };
    }
}

/// An address space, kept in memory as an object (its mappings may go away).
///
/// # Invariants
///
/// Holds a reference taken with `mmgrab`.
pub(crate) struct AddressSpace(*mut bindings::mm_struct);

// SAFETY: An `mm_struct` is not bound to a thread; all that is done with it here is counting and comparing.
unsafe impl Send for AddressSpace {}
// SAFETY: As above.
unsafe impl Sync for AddressSpace {}

impl AddressSpace {
    /// The calling process's.
    ///
    /// # Errors
    ///
    /// `EINVAL` in a kernel thread.
    pub(crate) fn current() -> Result<Self> {
        let mm = Self::current_raw();
        if mm.is_null() {
            return Err(EINVAL);
        }
        // SAFETY: The current task's mm lives as long as the task uses it.
        // INVARIANT: The reference is taken here.
        unsafe { bindings::mmgrab(mm) };
        Ok(Self(mm))
    }

    fn current_raw() -> *mut bindings::mm_struct {
        // SAFETY: The current task is valid, and `mm` is changed by itself alone.
        unsafe { (*kernel::task::Task::current_raw()).mm }
    }

    /// Whether it is the calling process's.
    #[inline]
    pub(crate) fn is_current(&self) -> bool {
        self.0 == Self::current_raw()
    }

    pub(super) fn as_raw(&self) -> *mut bindings::mm_struct {
        self.0
    }
}

impl Drop for AddressSpace {
    fn drop(&mut self) {
        // SAFETY: By the type's invariant.
        unsafe { bindings::mmdrop(self.0) };
    }
}
