// SPDX-License-Identifier: GPL-2.0

//! A high-resolution timer beside the object that it acts on, set to a new time at will, also by its own callback.
//!
//! [`kernel::time::hrtimer`] couples a running timer to a handle whose drop waits for the callback, which doesn't suit a timer that
//! guests reprogram all the time, in the callback too.

use core::ops::Deref;
use kernel::bindings;
use kernel::prelude::*;
use kernel::types::Opaque;

/// What a timer acts on.
pub(crate) trait TimerTarget: Send + Sync {
    /// In hard interrupt context. Returns the next time to expire at, in nanoseconds of `CLOCK_MONOTONIC`, if any.
    fn expired(&self) -> Option<u64>;
}

/// A target and its timer, of `CLOCK_MONOTONIC`.
///
/// # Invariants
///
/// `timer` was set up, with [`Timed::run`] as callback. It comes first: a pointer to it is one to the whole, and it is stopped
/// before the target is dropped.
#[repr(C)]
#[pin_data(PinnedDrop)]
pub(crate) struct Timed<T: TimerTarget> {
    #[pin]
    timer: Opaque<bindings::hrtimer>,
    #[pin]
    target: T,
}

// SAFETY: Timers may be started and cancelled from any thread; the target says so of itself.
unsafe impl<T: TimerTarget> Send for Timed<T> {}
// SAFETY: As above.
unsafe impl<T: TimerTarget> Sync for Timed<T> {}

impl<T: TimerTarget> Timed<T> {
    /// The target, with a timer that isn't set.
    pub(crate) fn new(target: impl PinInit<T>) -> impl PinInit<Self> {
        // INVARIANT: Set up here.
        pin_init!(Self {
            timer <- Opaque::ffi_init(|slot: *mut bindings::hrtimer| {
                // SAFETY: `slot` is valid and pinned.
                unsafe {
                    bindings::hrtimer_setup(
                        slot,
                        Some(Self::run),
                        bindings::CLOCK_MONOTONIC as i32,
                        bindings::hrtimer_mode_HRTIMER_MODE_ABS,
                    )
                }
            }),
            target <- target,
        })
    }

    /// Sets the timer to expire at `at`, in nanoseconds of `CLOCK_MONOTONIC`; in the past means at once. From any context.
    pub(crate) fn set_timer(&self, at: u64) {
        let at = i64::try_from(at).unwrap_or(i64::MAX);
        // SAFETY: By the type's invariant the timer was set up; starting it again while it is pending or running is allowed.
        unsafe {
            bindings::hrtimer_start_range_ns(
                self.timer.get(),
                at,
                0,
                bindings::hrtimer_mode_HRTIMER_MODE_ABS,
            )
        };
    }

    /// Stops the timer, and waits if the callback is running. Not from the callback, nor with a lock that it takes.
    pub(crate) fn cancel_timer(&self) {
        // SAFETY: By the type's invariant the timer was set up.
        unsafe { bindings::hrtimer_cancel(self.timer.get()) };
    }

    /// # Safety
    ///
    /// Called by the kernel for a timer that was set up by `new`.
    unsafe extern "C" fn run(timer: *mut bindings::hrtimer) -> bindings::hrtimer_restart {
        // SAFETY: By the type's invariant this is a pointer to a `Timed<T>`, whose drop waits for this callback.
        let this = unsafe { &*timer.cast::<Self>() };
        if let Some(at) = this.target.expired() {
            let at = i64::try_from(at).unwrap_or(i64::MAX);
            // SAFETY: A callback may start its own timer, and then says that it is not to be restarted.
            unsafe {
                bindings::hrtimer_start_range_ns(
                    timer,
                    at,
                    0,
                    bindings::hrtimer_mode_HRTIMER_MODE_ABS,
                )
            };
        }
        bindings::hrtimer_restart::HRTIMER_NORESTART
    }
}

#[pinned_drop]
impl<T: TimerTarget> PinnedDrop for Timed<T> {
    fn drop(self: Pin<&mut Self>) {
        self.cancel_timer();
    }
}

impl<T: TimerTarget> Deref for Timed<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.target
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC` now.
pub(crate) fn now() -> u64 {
    // SAFETY: May be called from any context.
    unsafe { bindings::ktime_get() as u64 }
}
