// SPDX-License-Identifier: GPL-2.0

//! xvm: virtual machines on Intel VMX and AMD SVM, behind the KVM ioctl ABI, on `/dev/xvm`.
//!
//! - [`xvm`]: device, VMs, vCPUs, the run loop, memory, the virtual platform, the emulator; it knows no vendor;
//! - [`vmx`], [`svm`]: the two implementations of `XvmOps`, one of which is chosen at load;
//! - [`linux`]: safe words for kernel APIs that the `kernel` crate lacks;
//! - [`uapi`]: the ABI's structures and numbers.

use kernel::prelude::*;
use kernel::sync::Arc;
use linux::device::Context;
use linux::device::Minor;
use linux::device::Registration;

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
        kvm_device: bool {
            default: false,
            description: "Register /dev/kvm as well, for programs that know no other name; KVM must not be loaded (default: false)",
        },
    },
}

/// What exists while the module is loaded: the device goes first, then the check of new CPUs.
#[pin_data]
struct Module {
    #[pin]
    device: Registration,
    _kvm_device: Option<Pin<KBox<Registration>>>,
    _cpus: linux::cpus::OnlineCheck,
}

impl kernel::InPlaceModule for Module {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(|| {
            let (machine, cpus) = xvm::select()?;
            let kvm_device = match *module_parameters::kvm_device.value_ref() {
                true => Some(register_kvm(machine.clone())?),
                false => None,
            };
            Ok(try_pin_init!(Self {
                _cpus: cpus,
                _kvm_device: kvm_device,
                device <- Registration::new(c"xvm", Minor::Any, machine),
            }? Error))
        })
    }
}

/// Registers `/dev/kvm`.
///
/// # Errors
///
/// `EBUSY` when another module has it; that has been logged.
fn register_kvm(machine: Arc<dyn Context>) -> Result<Pin<KBox<Registration>>> {
    let device = KBox::try_pin_init(Registration::new(c"kvm", Minor::Kvm, machine), GFP_KERNEL);
    if device.as_ref().err() == Some(&EBUSY) {
        pr_err!("kvm_device: another module has /dev/kvm, most likely KVM: take it out first\n");
    }
    device
}
