// SPDX-License-Identifier: GPL-2.0

//! A high-resolution timer inside of the object that it acts on, set to a new time at will, also by its own callback.
//!
//! [`kernel::time::hrtimer`] couples a running timer to a handle whose drop waits for the callback, which doesn't suit a timer that
//! guests reprogram all the time, in the callback too.

use core::marker::PhantomData;
use kernel::bindings;
use kernel::prelude::*;
use kernel::types::Opaque;

/// Who acts when the timer expires.
///
/// # Safety
///
/// The type must be `repr(C)`, its first field a [`Timer`] of itself, and every value of it pinned: the timer's address is the
/// value's, and the timer is dropped before the fields that `expired` uses.
pub(crate) unsafe trait TimerTarget: Sync + Sized {
    /// In hard interrupt context. Returns the next time to expire at, in nanoseconds of `CLOCK_MONOTONIC`, if any.
    fn expired(&self) -> Option<u64>;
}

/// A timer of `CLOCK_MONOTONIC`.
#[repr(C)]
#[pin_data(PinnedDrop)]
pub(crate) struct Timer<T: TimerTarget> {
    #[pin]
    inner: Opaque<bindings::hrtimer>,
    _target: PhantomData<fn(&T)>,
}

// SAFETY: Timers may be started and cancelled from any thread.
unsafe impl<T: TimerTarget> Send for Timer<T> {}
// SAFETY: As above.
unsafe impl<T: TimerTarget> Sync for Timer<T> {}

impl<T: TimerTarget> Timer<T> {
    /// A timer that isn't set.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            inner <- Opaque::ffi_init(|slot: *mut bindings::hrtimer| {
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
            _target: PhantomData,
        })
    }

    /// Sets the timer to expire at `at`, in nanoseconds of `CLOCK_MONOTONIC`; in the past means at once. From any context.
    pub(crate) fn set(&self, at: u64) {
        let at = i64::try_from(at).unwrap_or(i64::MAX);
        // SAFETY: The timer was set up by `new`; starting it again while it is pending or running is allowed.
        unsafe {
            bindings::hrtimer_start_range_ns(
                self.inner.get(),
                at,
                0,
                bindings::hrtimer_mode_HRTIMER_MODE_ABS,
            )
        };
    }

    /// Stops the timer, and waits if the callback is running. Not from the callback, nor with a lock that it takes.
    pub(crate) fn cancel(&self) {
        // SAFETY: The timer was set up by `new`.
        unsafe { bindings::hrtimer_cancel(self.inner.get()) };
    }

    /// # Safety
    ///
    /// Called by the kernel for a timer that was set up by `new`.
    unsafe extern "C" fn run(timer: *mut bindings::hrtimer) -> bindings::hrtimer_restart {
        // SAFETY: By the contract of `TimerTarget` the timer is the first field of a `T`, which can't go while the timer's
        // drop waits for this callback.
        let target = unsafe { &*timer.cast::<T>() };
        if let Some(at) = target.expired() {
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
impl<T: TimerTarget> PinnedDrop for Timer<T> {
    fn drop(self: Pin<&mut Self>) {
        self.cancel();
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC` now.
pub(crate) fn now() -> u64 {
    // SAFETY: May be called from any context.
    unsafe { bindings::ktime_get() as u64 }
}
