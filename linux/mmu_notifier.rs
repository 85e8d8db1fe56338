// SPDX-License-Identifier: GPL-2.0

//! Being told when a process's mappings change.

use super::task::AddressSpace;
use core::ops::Range;
use kernel::bindings;
use kernel::error::to_result;
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::types::Opaque;

/// Who is told. The methods may be called from any thread, several at once.
pub(crate) trait MmuNotifier: Send + Sync + 'static {
    /// The mappings in `range` (user addresses) are about to change: when this returns no CPU may use them, and until the paired
    /// `invalidate_end` none may be made. Does not sleep.
    fn invalidate_start(&self, range: Range<usize>);

    /// The change is done.
    fn invalidate_end(&self, range: Range<usize>);

    /// Whether a page in `range` was accessed since this was last asked with `clear`. Does not sleep.
    fn test_young(&self, range: Range<usize>, clear: bool) -> bool;

    /// The address space goes away: when this returns no CPU may use it, ever.
    fn release(&self);
}

/// A registered notifier; unregistered when it is dropped, which may sleep.
///
/// # Invariants
///
/// `notifier` is registered with `mm` and is the first field, so that its address is this value's.
#[repr(C)]
#[pin_data(PinnedDrop)]
pub(crate) struct Registration<T: MmuNotifier> {
    #[pin]
    notifier: Opaque<bindings::mmu_notifier>,
    target: Arc<T>,
    mm: Arc<AddressSpace>,
}

// SAFETY: A notifier may be unregistered from any thread.
unsafe impl<T: MmuNotifier> Send for Registration<T> {}
// SAFETY: There is nothing to be done with `&Registration`.
unsafe impl<T: MmuNotifier> Sync for Registration<T> {}

impl<T: MmuNotifier> Registration<T> {
    const OPS: bindings::mmu_notifier_ops = bindings::mmu_notifier_ops {
        release: Some(Self::release),
        clear_flush_young: Some(Self::clear_young),
        clear_young: Some(Self::clear_young),
        test_young: Some(Self::test_young),
        invalidate_range_start: Some(Self::start),
        invalidate_range_end: Some(Self::end),
        ..pin_init::zeroed()
    };
    /// In a static place: the notifier keeps the address.
    const TABLE: &'static bindings::mmu_notifier_ops = &Self::OPS;

    /// Registers `target` for the calling process's address space `mm`. May sleep.
    ///
    /// # Errors
    ///
    /// `EINTR`, `ENOMEM`.
    pub(crate) fn new(target: Arc<T>, mm: Arc<AddressSpace>) -> Result<Pin<KBox<Self>>> {
        let registration = KBox::pin(
            Self {
                notifier: Opaque::zeroed(),
                target,
                mm,
            },
            GFP_KERNEL,
        )?;
        let raw = registration.notifier.get();
        // SAFETY: `raw` is valid and not yet registered.
        unsafe { (*raw).ops = Self::TABLE };
        // SAFETY: The value is pinned, and complete for callbacks, which may come from now on; the address space is the
        // current task's own.
        let result = unsafe { bindings::mmu_notifier_register(raw, registration.mm.as_raw()) };
        if let Err(error) = to_result(result) {
            // SAFETY: As above. `drop` knows by it that there is nothing to unregister.
            unsafe { (*raw).ops = core::ptr::null() };
            return Err(error);
        }
        Ok(registration)
    }

    /// # Safety
    ///
    /// `notifier` must be that of a `Registration<T>`, alive for `'a`.
    unsafe fn target<'a>(notifier: *mut bindings::mmu_notifier) -> &'a T {
        // SAFETY: By the contract, and as the notifier is the first field.
        unsafe { &(*notifier.cast::<Self>()).target }
    }

    /// # Safety
    ///
    /// Called by the kernel for a registered notifier.
    unsafe extern "C" fn release(
        notifier: *mut bindings::mmu_notifier,
        _: *mut bindings::mm_struct,
    ) {
        // SAFETY: Unregistering waits for callbacks, so the registration is alive.
        unsafe { Self::target(notifier) }.release();
    }

    /// # Safety
    ///
    /// As `release`.
    unsafe extern "C" fn start(
        notifier: *mut bindings::mmu_notifier,
        range: *const bindings::mmu_notifier_range,
    ) -> c_int {
        // SAFETY: As in `release`; the range lives through the call.
        unsafe { Self::target(notifier).invalidate_start((*range).start..(*range).end) };
        0
    }

    /// # Safety
    ///
    /// As `release`.
    unsafe extern "C" fn end(
        notifier: *mut bindings::mmu_notifier,
        range: *const bindings::mmu_notifier_range,
    ) {
        // SAFETY: As in `start`.
        unsafe { Self::target(notifier).invalidate_end((*range).start..(*range).end) };
    }

    /// # Safety
    ///
    /// As `release`.
    unsafe extern "C" fn clear_young(
        notifier: *mut bindings::mmu_notifier,
        _: *mut bindings::mm_struct,
        start: usize,
        end: usize,
    ) -> bool {
        // SAFETY: As in `release`.
        unsafe { Self::target(notifier) }.test_young(start..end, true)
    }

    /// # Safety
    ///
    /// As `release`.
    unsafe extern "C" fn test_young(
        notifier: *mut bindings::mmu_notifier,
        _: *mut bindings::mm_struct,
        address: usize,
    ) -> bool {
        // SAFETY: As in `release`.
        unsafe { Self::target(notifier) }.test_young(address..address.saturating_add(1), false)
    }
}

#[pinned_drop]
impl<T: MmuNotifier> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        let raw = self.notifier.get();
        // SAFETY: The notifier is valid; `ops` is null if registering failed.
        if unsafe { !(*raw).ops.is_null() } {
            // SAFETY: By the type's invariant; the reference in `mm` keeps the address space's object alive.
            unsafe { bindings::mmu_notifier_unregister(raw, self.mm.as_raw()) };
        }
    }
}
