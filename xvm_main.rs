// SPDX-License-Identifier: GPL-2.0

//! xvm: virtual machines on Intel VMX and AMD SVM, behind the KVM ioctl ABI, on `/dev/xvm`.
//!
//! - [`xvm`]: device, VMs, vCPUs, the run loop, memory, the virtual platform, the emulator; it knows no vendor;
//! - [`vmx`], [`svm`]: the two implementations of `XvmOps`, one of which is chosen at load;
//! - [`linux`]: safe words for kernel APIs that the `kernel` crate lacks;
//! - [`uapi`]: the ABI's structures and numbers.

use kernel::prelude::*;

mod linux;
mod svm;
mod uapi;
mod vmx;
mod xvm;

module! {
    type: Module,
    name: "xvm",
    authors: ["The xvm developers"],
    description: "Virtual machines on VMX and SVM with the KVM ABI",
    license: "GPL",
    params: {
        large_pages: bool {
            default: true,
            description: "Map guest memory in 2 MiB pages where the host has it so (default: true)",
        },
    },
}

/// What exists while the module is loaded: the device goes first, then the check of new CPUs.
#[pin_data]
struct Module {
    #[pin]
    device: linux::device::Registration,
    _cpus: linux::cpus::OnlineCheck,
}

impl kernel::InPlaceModule for Module {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(|| {
            let (machine, cpus) = xvm::select()?;
            Ok(try_pin_init!(Self {
                _cpus: cpus,
                device <- linux::device::Registration::new(c"xvm", machine),
            }? Error))
        })
    }
}
