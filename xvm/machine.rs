// SPDX-License-Identifier: GPL-2.0

//! The physical machine: which vendor's extension it has, and what every VM on it shares.

use super::device::Device;
use super::ops::Capabilities;
use super::XvmOps;
use crate::linux::cpus;
use crate::linux::cpus::OnlineCheck;
use crate::linux::device::Context;
use crate::linux::fpu::FpuCapabilities;
use crate::linux::irq::IrqsOff;
use crate::linux::page_in::Workers;
use crate::linux::x86;
use crate::svm::Svm;
use crate::vmx::Vmx;
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::sync::SetOnce;

/// The machine as vendor `V` sees it.
pub(crate) struct Machine<V: XvmOps> {
    /// What the extension can do.
    pub(crate) caps: Capabilities,
    /// What extended state guests may have.
    pub(crate) fpu: FpuCapabilities,
    /// Who brings guest memory in while vCPUs go on.
    pub(crate) page_in: Workers,
    cpus: KVec<V::Cpu>,
}

impl<V: XvmOps> Machine<V> {
    fn new(caps: Capabilities) -> Result<Arc<Self>> {
        let mut cpus = KVec::with_capacity(cpus::possible() as usize, GFP_KERNEL)?;
        for cpu in 0..cpus::possible() {
            cpus.push(V::cpu_alloc(cpu)?, GFP_KERNEL)?;
        }
        let fpu =
            FpuCapabilities::probe().inspect_err(|_| pr_err!("the host doesn't use XSAVE\n"))?;
        let machine = Self {
            caps,
            fpu,
            page_in: Workers::new()?,
            cpus,
        };
        Ok(Arc::new(machine, GFP_KERNEL)?)
    }

    /// Width of a guest-physical address in bits: the host's, as far as four-level tables reach.
    pub(crate) fn maxphyaddr(&self) -> u8 {
        (x86::cpuid(0x8000_0008, 0).eax as u8).min(48)
    }

    /// The vendor's part of this CPU.
    #[inline]
    pub(crate) fn cpu(&self, irqs: &IrqsOff) -> &V::Cpu {
        // There is one for each possible CPU.
        &self.cpus[irqs.cpu() as usize]
    }
}

/// What the first CPU had: the same is expected of each.
static EXPECTED: SetOnce<Capabilities> = SetOnce::new();

/// Checks a CPU that is online, or comes online, while the module is loaded: it must be as the first one was.
fn check<V: XvmOps>() -> Result {
    let caps = V::probe()?;
    match EXPECTED.as_ref() {
        Some(expected) if *expected != caps => Err(EOPNOTSUPP),
        _ => Ok(()),
    }
}

/// Takes the machine into use if it is vendor `V`'s.
fn take<V: XvmOps>() -> Result<(Arc<dyn Context>, OnlineCheck)> {
    let caps = V::probe()?;
    EXPECTED.populate(caps);
    let machine = Machine::<V>::new(caps)?;
    let check = OnlineCheck::new(check::<V>)?;
    pr_info!(
        "{} with {}\n",
        V::NAME.to_str().unwrap_or_default(),
        caps.features
    );
    let device = Arc::new(Device { machine }, GFP_KERNEL)?;
    Ok((device, check))
}

/// Chooses the vendor, once, at load: VMX if the CPU has it, else SVM. Returns what `/dev/xvm` does, the one dynamic dispatch, and the
/// watch over CPUs that come online.
///
/// # Errors
///
/// `EOPNOTSUPP` when there is an extension that can't be used, `ENODEV` when there is none; each has been logged.
pub(crate) fn select() -> Result<(Arc<dyn Context>, OnlineCheck)> {
    match take::<Vmx>() {
        Err(error) if error == ENODEV => {}
        result => return result,
    }
    take::<Svm>().inspect_err(|error| {
        if *error == ENODEV {
            pr_err!("this CPU has neither VMX nor SVM\n");
        }
    })
}
