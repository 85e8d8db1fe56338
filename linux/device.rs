// SPDX-License-Identifier: GPL-2.0

//! A misc device with one context for all who open it.
//!
//! [`kernel::miscdevice`] gives `open` its registration alone; here the registration has the context beside it.

use kernel::fs::File;
use kernel::miscdevice::MiscDevice;
use kernel::miscdevice::MiscDeviceOptions;
use kernel::miscdevice::MiscDeviceRegistration;
use kernel::prelude::*;
use kernel::sync::Arc;

/// What the device does.
pub(crate) trait Context: Send + Sync {
    /// An ioctl on the device, in the context of the calling task.
    ///
    /// # Errors
    ///
    /// What the caller of ioctl gets as errno.
    fn ioctl(&self, cmd: u32, arg: usize) -> Result<isize>;
}

/// A registered device; deregistered when it is dropped.
///
/// # Invariants
///
/// `misc` is the first field, and every `MiscDeviceRegistration<Opened>` is in a `Registration`.
#[repr(C)]
#[pin_data]
pub(crate) struct Registration {
    #[pin]
    misc: MiscDeviceRegistration<Opened>,
    context: Arc<dyn Context>,
}

impl Registration {
    /// Registers `/dev/NAME`.
    ///
    /// # Errors
    ///
    /// `EBUSY`, `ENOMEM`.
    pub(crate) fn new(name: &'static CStr, context: Arc<dyn Context>) -> impl PinInit<Self, Error> {
        // The context is in place before the device can be opened.
        // INVARIANT: `Opened` is private to this file, and registered here alone.
        try_pin_init!(Self {
            context,
            misc <- MiscDeviceRegistration::register(MiscDeviceOptions { name }),
        })
    }
}

/// An open file of the device.
struct Opened {
    context: Arc<dyn Context>,
}

#[vtable]
impl MiscDevice for Opened {
    type Ptr = KBox<Self>;

    fn open(_: &File, misc: &MiscDeviceRegistration<Self>) -> Result<KBox<Self>> {
        // SAFETY: By `Registration`'s invariant `misc` is the first field of one, which outlives this call.
        let registration = unsafe { &*core::ptr::from_ref(misc).cast::<Registration>() };
        let context = registration.context.clone();
        Ok(KBox::new(Self { context }, GFP_KERNEL)?)
    }

    fn ioctl(this: &Self, _: &File, cmd: u32, arg: usize) -> Result<isize> {
        this.context.ioctl(cmd, arg)
    }
}
