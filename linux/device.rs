// SPDX-License-Identifier: GPL-2.0

//! A misc device with one context for all who open it.
//!
//! The twin of [`kernel::miscdevice`], which gives `open` its registration alone, and knows no device whose number others know.

use core::ffi::c_void;
use kernel::bindings;
use kernel::error::to_result;
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::types::ForeignOwnable;
use kernel::types::Opaque;

/// What the device does.
pub(crate) trait Context: Send + Sync {
    /// An ioctl on the device, in the context of the calling task.
    ///
    /// # Errors
    ///
    /// What the caller of ioctl gets as errno.
    fn ioctl(&self, cmd: u32, arg: usize) -> Result<isize>;
}

/// A device's minor number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Minor {
    /// Any that is free.
    Any,
    /// That of `/dev/kvm`, for which systems keep a node whether there is such a device or not.
    Kvm,
}

/// A registered device; deregistered when it is dropped.
///
/// # Invariants
///
/// `misc` is the first field, and registered.
#[repr(C)]
#[pin_data(PinnedDrop)]
pub(crate) struct Registration {
    #[pin]
    misc: Opaque<bindings::miscdevice>,
    context: Arc<dyn Context>,
}

// SAFETY: The device is only deregistered, which any thread may do.
unsafe impl Send for Registration {}
// SAFETY: There is nothing to be done by reference.
unsafe impl Sync for Registration {}

impl Registration {
    /// Registers `/dev/NAME`.
    ///
    /// # Errors
    ///
    /// `EBUSY` when the number is taken, `ENOMEM`.
    pub(crate) fn new(
        name: &'static CStr,
        minor: Minor,
        context: Arc<dyn Context>,
    ) -> impl PinInit<Self, Error> {
        let minor = match minor {
            Minor::Any => bindings::MISC_DYNAMIC_MINOR,
            Minor::Kvm => bindings::KVM_MINOR,
        };
        // The context is in place before the device can be opened.
        // INVARIANT: Registered last.
        try_pin_init!(Self {
            context,
            misc <- Opaque::try_ffi_init(move |slot: *mut bindings::miscdevice| {
                let device = bindings::miscdevice {
                    minor: minor as c_int,
                    name: kernel::str::as_char_ptr_in_const_context(name),
                    fops: &Opened::TABLE,
                    ..Default::default()
                };
                // SAFETY: `slot` is valid for writing, and pinned; name and operations live as long as the module.
                to_result(unsafe {
                    slot.write(device);
                    bindings::misc_register(slot)
                })
            }),
        }? Error)
    }
}

#[pinned_drop]
impl PinnedDrop for Registration {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type's invariant it is registered.
        unsafe { bindings::misc_deregister(self.misc.get()) };
    }
}

/// An open file of the device.
struct Opened {
    context: Arc<dyn Context>,
}

impl Opened {
    const TABLE: bindings::file_operations = bindings::file_operations {
        open: Some(open),
        release: Some(release),
        unlocked_ioctl: Some(ioctl),
        #[cfg(CONFIG_COMPAT)]
        compat_ioctl: bindings::compat_ptr_ioctl,
        llseek: Some(bindings::noop_llseek),
        owner: kernel::module::this_module::<crate::LocalModule>().as_ptr(),
        ..pin_init::zeroed()
    };
}

/// # Safety
///
/// Called by the kernel as this file's `open`, with the misc device as private data.
unsafe extern "C" fn open(_: *mut bindings::inode, file: *mut bindings::file) -> c_int {
    // SAFETY: By `Registration`'s invariant its device is the first field; it can't be deregistered before this returns.
    let registration = unsafe { &*(*file).private_data.cast::<Registration>() };
    let context = registration.context.clone();
    match KBox::new(Opened { context }, GFP_KERNEL) {
        Ok(opened) => {
            // SAFETY: The file is being opened, and its private data are ours from here on.
            unsafe { (*file).private_data = opened.into_foreign().cast::<c_void>() };
            0
        }
        Err(error) => Error::from(error).to_errno(),
    }
}

/// # Safety
///
/// Called by the kernel as this file's `release`, once.
unsafe extern "C" fn release(_: *mut bindings::inode, file: *mut bindings::file) -> c_int {
    // SAFETY: `open` put it there, and the file gives it up now.
    drop(unsafe { KBox::<Opened>::from_foreign((*file).private_data.cast()) });
    0
}

/// # Safety
///
/// Called by the kernel as this file's `ioctl`, before `release`.
unsafe extern "C" fn ioctl(file: *mut bindings::file, cmd: u32, arg: usize) -> isize {
    // SAFETY: The file holds what `open` put there until `release`.
    let opened = unsafe { KBox::<Opened>::borrow((*file).private_data.cast()) };
    match opened.context.ioctl(cmd, arg) {
        Ok(value) => value,
        Err(error) => error.to_errno() as isize,
    }
}
