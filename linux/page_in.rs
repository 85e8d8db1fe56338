// SPDX-License-Identifier: GPL-2.0

//! Bringing a page of a process in by a thread of the kernel's, while the process's own goes on.

use super::task::AddressSpace;
use core::ptr::NonNull;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering;
use kernel::bindings;
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::workqueue::impl_has_work;
use kernel::workqueue::new_work;
use kernel::workqueue::Queue;
use kernel::workqueue::Work;
use kernel::workqueue::WorkItem;

/// The threads. Dropping it waits until none of them executes this module's code; it is dropped by none of them.
///
/// # Invariants
///
/// A work queue of our own.
pub(crate) struct Workers(NonNull<bindings::workqueue_struct>);

// SAFETY: A work queue is made for use by several threads.
unsafe impl Send for Workers {}
// SAFETY: As above.
unsafe impl Sync for Workers {}

impl Workers {
    /// As many as there are pages to be brought in, up to a limit of the kernel's.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: The name has nothing that asks for further arguments.
        let queue = unsafe {
            bindings::alloc_workqueue_noprof(
                kernel::str::as_char_ptr_in_const_context(c"xvm_page_in"),
                bindings::wq_flags_WQ_UNBOUND,
                bindings::wq_consts_WQ_UNBOUND_MAX_ACTIVE as i32,
            )
        };
        // INVARIANT: It is nobody else's.
        Ok(Self(NonNull::new(queue).ok_or(ENOMEM)?))
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        // SAFETY: By the type's invariant. Work that is queued holds the module, so that what is left are last instructions.
        unsafe { bindings::destroy_workqueue(self.0.as_ptr()) };
    }
}

/// A reference to this module, which stays loaded as long.
struct ModuleRef;

impl ModuleRef {
    /// For the caller of an ioctl, whose file holds the module already.
    fn new() -> Self {
        let module = kernel::module::this_module::<crate::LocalModule>();
        // SAFETY: The module is loaded, as its code is executed.
        unsafe { bindings::__module_get(module.as_ptr()) };
        Self
    }
}

impl Drop for ModuleRef {
    fn drop(&mut self) {
        let module = kernel::module::this_module::<crate::LocalModule>();
        // SAFETY: The reference is ours.
        unsafe { bindings::module_put(module.as_ptr()) };
    }
}

/// Who waits for a page.
pub(crate) trait Waiting: Send + Sync + 'static {
    /// It is there, or can't be brought in; may sleep.
    fn page_arrived(&self);
}

/// A page that is being brought in. It goes on, and keeps its process's memory, if this is dropped.
#[pin_data]
pub(crate) struct PageIn<T: Waiting> {
    mm: Arc<AddressSpace>,
    address: usize,
    write: bool,
    over: AtomicBool,
    waiting: T,
    _module: ModuleRef,
    #[pin]
    work: Work<Self>,
}

impl_has_work! {
    impl{T: Waiting} HasWork<Self> for PageIn<T> { self.work }
}

impl<T: Waiting> PageIn<T> {
    /// Has one of `workers` bring the page at user address `address` in, for writing if `write`, as by an access of the process.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn start(
        workers: &Workers,
        mm: Arc<AddressSpace>,
        address: usize,
        write: bool,
        waiting: T,
    ) -> Result<Arc<Self>> {
        let this = Arc::pin_init(
            pin_init!(Self {
                mm,
                address,
                write,
                over: AtomicBool::new(false),
                waiting,
                _module: ModuleRef::new(),
                work <- new_work!("xvm_page_in"),
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        // SAFETY: By the type's invariant it is valid as long as `workers` is.
        let queue = unsafe { Queue::from_raw(workers.0.as_ptr()) };
        // It can't be queued already.
        let _ = queue.enqueue(this.clone());
        Ok(this)
    }

    /// Whether it is over: the page was there, or couldn't be brought in.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    fn bring_in(&self) {
        let mm = self.mm.as_raw();
        let flags = if self.write { bindings::FOLL_WRITE } else { 0 };
        // SAFETY: The object is held; the memory is, if it was still there.
        unsafe {
            if !bindings::mmget_not_zero(mm) {
                return;
            }
            let mut locked = 1;
            bindings::mmap_read_lock(mm);
            bindings::get_user_pages_remote(
                mm,
                self.address,
                1,
                flags,
                core::ptr::null_mut(),
                &mut locked,
            );
            if locked != 0 {
                bindings::mmap_read_unlock(mm);
            }
            bindings::mmput(mm);
        }
    }
}

impl<T: Waiting> WorkItem for PageIn<T> {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.bring_in();
        this.over.store(true, Ordering::Release);
        this.waiting.page_arrived();
    }
}
