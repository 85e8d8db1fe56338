// SPDX-License-Identifier: GPL-2.0

//! eventfds: signalling one, and being told when one is signalled (`linux/eventfd.h`).

use core::ffi::c_void;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering;
use kernel::bindings;
use kernel::error::from_err_ptr;
use kernel::prelude::*;
use kernel::types::Opaque;

/// `EPOLLIN` and `EPOLLHUP` (uapi `linux/eventpoll.h`).
const POLL_IN: usize = 0x1;
const POLL_HUP: usize = 0x10;

/// A reference to an eventfd, which outlives its descriptors.
///
/// # Invariants
///
/// Holds a reference to the context.
pub(crate) struct EventFd(*mut bindings::eventfd_ctx);

// SAFETY: The context is made for use by several threads.
unsafe impl Send for EventFd {}
// SAFETY: As above.
unsafe impl Sync for EventFd {}

impl EventFd {
    /// The eventfd behind descriptor `fd` of the calling process.
    ///
    /// # Errors
    ///
    /// `EBADF` when there is no such descriptor, `EINVAL` when it isn't an eventfd.
    pub(crate) fn from_fd(fd: i32) -> Result<Self> {
        // INVARIANT: A reference comes with it.
        // SAFETY: Takes any number.
        Ok(Self(from_err_ptr(unsafe {
            bindings::eventfd_ctx_fdget(fd)
        })?))
    }

    /// Adds one to its counter, and wakes who waits. From any context but a wake-up of an eventfd's waiters, where it does nothing.
    pub(crate) fn signal(&self) {
        // SAFETY: By the type's invariant the context is there.
        unsafe { bindings::eventfd_signal_mask(self.0, 0) };
    }

    /// Whether both are the same eventfd.
    pub(crate) fn is(&self, other: &Self) -> bool {
        core::ptr::eq(self.0, other.0)
    }
}

impl Drop for EventFd {
    fn drop(&mut self) {
        // SAFETY: By the type's invariant the reference is ours. Giving it up doesn't sleep.
        unsafe { bindings::eventfd_ctx_put(self.0) };
    }
}

/// A reference to the open file of an eventfd.
///
/// # Invariants
///
/// Holds a reference to the file, which is an eventfd's.
pub(crate) struct EventFile(*mut bindings::file);

impl EventFile {
    /// As [`EventFd::from_fd`].
    ///
    /// # Errors
    ///
    /// `EBADF`, `EINVAL`.
    pub(crate) fn from_fd(fd: u32) -> Result<Self> {
        // SAFETY: Takes any number.
        let file = unsafe { bindings::fget(fd) };
        if file.is_null() {
            return Err(EBADF);
        }
        // INVARIANT: The reference is ours; whether it is an eventfd is seen before anyone gets the value.
        let file = Self(file);
        file.event()?;
        Ok(file)
    }

    fn event(&self) -> Result<EventFd> {
        // INVARIANT: A reference comes with it.
        // SAFETY: We hold the file.
        Ok(EventFd(from_err_ptr(unsafe {
            bindings::eventfd_ctx_fileget(self.0)
        })?))
    }
}

impl Drop for EventFile {
    fn drop(&mut self) {
        // SAFETY: By the type's invariant the reference is ours.
        unsafe { bindings::fput(self.0) };
    }
}

/// What is to happen when an eventfd is signalled.
pub(crate) trait Listener: Send + Sync {
    /// It was signalled. With interrupts off and the eventfd's lock held: neither sleeps nor touches an eventfd.
    fn signalled(&self);
}

/// A listener at an eventfd. Its signals go to the listener alone: the counter is read for each.
///
/// # Invariants
///
/// `wait` comes first, so that a pointer to it is one to the whole. Once `attached` it is in the eventfd's wait queue, or was
/// taken out when the last descriptor of the eventfd was closed; its links are valid in both cases.
#[repr(C)]
#[pin_data(PinnedDrop)]
pub(crate) struct Listening<T: Listener> {
    #[pin]
    wait: Opaque<bindings::wait_queue_entry>,
    event: EventFd,
    listener: T,
    attached: bool,
    closed: AtomicBool,
}

// SAFETY: The wait queue's entry is touched under the queue's lock alone; the listener says so of itself.
unsafe impl<T: Listener> Send for Listening<T> {}
// SAFETY: As above.
unsafe impl<T: Listener> Sync for Listening<T> {}

/// What the eventfd's `poll` calls back with.
#[repr(C)]
struct Registration {
    table: bindings::poll_table,
    wait: *mut bindings::wait_queue_entry,
    result: c_int,
}

impl<T: Listener> Listening<T> {
    /// Attaches `listener` to an eventfd. If that had been signalled before, the listener is told so at once. May sleep.
    ///
    /// # Errors
    ///
    /// `EBUSY` when another listener has the eventfd, `ENOMEM`.
    pub(crate) fn new(file: &EventFile, listener: T) -> Result<Pin<KBox<Self>>> {
        let event = file.event()?;
        // INVARIANT: Not attached yet.
        let mut this = KBox::pin_init(
            pin_init!(Self {
                wait <- Opaque::ffi_init(|slot: *mut bindings::wait_queue_entry| {
                    // SAFETY: `slot` is valid for writing.
                    unsafe {
                        slot.write(bindings::wait_queue_entry {
                            func: Some(Self::woken),
                            ..Default::default()
                        });
                    }
                }),
                event,
                listener,
                attached: false,
                closed: AtomicBool::new(false),
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        let mut registration = Registration {
            table: bindings::poll_table {
                _qproc: Some(register),
                _key: !0,
            },
            wait: this.wait.get(),
            result: 0,
        };
        // SAFETY: The file is an eventfd's, whose `poll` calls `register` once with our table, which is the first field of what `register` expects.
        let ready = unsafe {
            let poll = (*(*file.0).f_op).poll.ok_or(EINVAL)?;
            poll(file.0, (&raw mut registration).cast())
        };
        if registration.result != 0 {
            return Err(Error::from_errno(registration.result));
        }
        // INVARIANT: `register` put it into the queue.
        *this.as_mut().project().attached = true;
        if ready as usize & POLL_IN != 0 {
            this.listener.signalled();
        }
        Ok(this)
    }

    /// The listener.
    pub(crate) fn listener(&self) -> &T {
        &self.listener
    }

    /// Whether it listens to `event`.
    pub(crate) fn is_at(&self, event: &EventFd) -> bool {
        self.event.is(event)
    }

    /// Whether the last descriptor of the eventfd was closed: nothing comes any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// # Safety
    ///
    /// Called by the kernel for an entry of a wait queue, with the queue's lock held and interrupts off.
    unsafe extern "C" fn woken(
        wait: *mut bindings::wait_queue_entry,
        _mode: c_uint,
        _flags: c_int,
        key: *mut c_void,
    ) -> c_int {
        // SAFETY: By the type's invariant this is a pointer to a `Listening<T>`, whose drop takes the queue's lock.
        let this = unsafe { &*wait.cast::<Self>() };
        let flags = key.addr();
        let signalled = flags & POLL_IN != 0;
        if signalled {
            let mut count = 0;
            // SAFETY: The context is there, and its queue's lock held.
            unsafe { bindings::eventfd_ctx_do_read(this.event.0, &mut count) };
            this.listener.signalled();
        }
        if flags & POLL_HUP != 0 {
            // SAFETY: The entry is in the queue, whose lock is held, and whose walk survives the removal of the entry it is at. Linked to
            // itself the entry can be removed once more.
            unsafe {
                let entry = &raw mut (*wait).entry;
                let (next, prev) = ((*entry).next, (*entry).prev);
                (*next).prev = prev;
                (*prev).next = next;
                (*entry).next = entry;
                (*entry).prev = entry;
            }
            this.closed.store(true, Ordering::Release);
        }
        signalled.into()
    }
}

/// # Safety
///
/// Called by an eventfd's `poll` with the table of a [`Registration`].
unsafe extern "C" fn register(
    _file: *mut bindings::file,
    queue: *mut bindings::wait_queue_head,
    table: *mut bindings::poll_table,
) {
    let registration = table.cast::<Registration>();
    // SAFETY: The table is the first field of a registration, whose entry is set up and stays where it is.
    unsafe {
        (*registration).result =
            bindings::add_wait_queue_priority_exclusive(queue, (*registration).wait);
    }
}

#[pinned_drop]
impl<T: Listener> PinnedDrop for Listening<T> {
    fn drop(self: Pin<&mut Self>) {
        if self.attached {
            let mut count = 0;
            // SAFETY: By the type's invariant the entry is in the queue or linked to itself. When this returns the callback isn't running, and won't.
            unsafe {
                bindings::eventfd_ctx_remove_wait_queue(self.event.0, self.wait.get(), &mut count)
            };
        }
    }
}
