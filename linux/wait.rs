// SPDX-License-Identifier: GPL-2.0

//! A place for one task to sleep until something happens; the waker may be a hard interrupt.

use kernel::bindings;
use kernel::prelude::*;
use kernel::types::Opaque;

/// A simple wait queue (`linux/swait.h`).
#[pin_data]
pub(crate) struct WaitPoint {
    #[pin]
    queue: Opaque<bindings::swait_queue_head>,
}

// SAFETY: A wait queue is made for use by several threads.
unsafe impl Send for WaitPoint {}
// SAFETY: As above.
unsafe impl Sync for WaitPoint {}

impl WaitPoint {
    /// Nobody waits.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            queue <- Opaque::ffi_init(|slot: *mut bindings::swait_queue_head| {
                // SAFETY: `slot` is valid for writing and pinned; name and class live for ever.
                unsafe {
                    bindings::__init_swait_queue_head(
                        slot,
                        kernel::str::as_char_ptr_in_const_context(c"xvm"),
                        kernel::static_lock_class!().as_ptr(),
                    )
                }
            }),
        })
    }

    /// Wakes the task that waits. From any context.
    pub(crate) fn wake(&self) {
        // SAFETY: The queue was initialised by `new`.
        unsafe { bindings::swake_up_one(self.queue.get()) };
    }

    /// Sleeps until `ready` is true, or a signal comes (then it returns false). `ready` is asked again after each `wake`, and must not sleep.
    pub(crate) fn wait(&self, mut ready: impl FnMut() -> bool) -> bool {
        let mut entry = bindings::swait_queue::default();
        // SAFETY: Reading the current task; an empty list entry points to itself, and `entry` is not moved from here on.
        unsafe {
            entry.task = kernel::task::Task::current_raw();
            let list = &raw mut entry.task_list;
            (*list).next = list;
            (*list).prev = list;
        }
        let result = loop {
            // SAFETY: Queue and entry are initialised and live until `finish_swait`.
            unsafe {
                bindings::prepare_to_swait_exclusive(
                    self.queue.get(),
                    &mut entry,
                    bindings::TASK_INTERRUPTIBLE as c_int,
                )
            };
            // What `wake`'s caller did before it woke us is seen here: both sides go through the queue's lock.
            if ready() {
                break true;
            }
            if super::task::signal_pending() {
                break false;
            }
            // SAFETY: Process context; the task's state was set above.
            unsafe { bindings::schedule() };
        };
        // SAFETY: As for prepare.
        unsafe { bindings::finish_swait(self.queue.get(), &mut entry) };
        result
    }
}
