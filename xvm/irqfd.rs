// SPDX-License-Identifier: GPL-2.0

//! `KVM_IRQFD` (api.rst, 4.75): signalling an eventfd raises a GSI.
//!
//! A plain one is an edge. One with a second eventfd (`KVM_IRQFD_FLAG_RESAMPLE`) is a level, which ends with the guest's end of
//! interrupt; the second eventfd then asks the device whether there is more.

use super::irqchip::IrqChip;
use super::vm::Vm;
use super::XvmOps;
use crate::linux::eventfd::EventFd;
use crate::linux::eventfd::EventFile;
use crate::linux::eventfd::Listener;
use crate::linux::eventfd::Listening;
use crate::linux::rcu;
use crate::linux::timer::Timed;
use crate::linux::user;
use crate::uapi;
use kernel::prelude::*;
use kernel::sync::new_mutex;
use kernel::sync::Arc;
use kernel::sync::Mutex;

/// What is raised when the eventfd is signalled.
struct Line {
    irqchip: Arc<Timed<IrqChip>>,
    gsi: u32,
    /// Who is asked after the interrupt's end.
    resample: Option<Arc<EventFd>>,
}

impl Line {
    /// From here on ends of interrupts are told to `resample`: none may be missed after the first signal.
    fn new(irqchip: Arc<Timed<IrqChip>>, gsi: u32, resample: Option<Arc<EventFd>>) -> Result<Self> {
        if let Some(event) = &resample {
            irqchip.add_resampler(gsi, event.clone())?;
        }
        Ok(Self {
            irqchip,
            gsi,
            resample,
        })
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(event) = &self.resample {
            self.irqchip.remove_resampler(self.gsi, event);
        }
    }
}

impl Listener for Line {
    fn signalled(&self) {
        match self.resample {
            Some(_) => self.irqchip.raise_resampled(self.gsi),
            None => self.irqchip.pulse(self.gsi),
        }
    }
}

/// The irqfds of a VM. One whose eventfd was closed does nothing any more, and is freed at the next change.
#[pin_data]
pub(crate) struct IrqFds {
    #[pin]
    all: Mutex<KVec<Pin<KBox<Listening<Line>>>>>,
}

impl IrqFds {
    /// None yet.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            all <- new_mutex!(KVec::new(), "xvm_irqfds"),
        })
    }

    /// Takes away those that `goes` says, and those whose eventfd was closed. When this returns they raise nothing.
    fn remove(&self, goes: impl Fn(&Listening<Line>) -> bool) {
        let mut all = self.all.lock();
        let mut waits = false;
        all.retain(|one| {
            let remove = one.is_closed() || goes(one);
            waits |= remove && one.listener().resample.is_some();
            !remove
        });
        if waits {
            rcu::wait_for_readers();
        }
    }

    /// Takes all away.
    pub(crate) fn clear(&self) {
        self.remove(|_| true);
    }
}

impl<V: XvmOps> Vm<V> {
    /// `KVM_IRQFD`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for unknown flags, for what is no eventfd, without in-kernel interrupt controllers, and for resampling when they are
    /// split; `EBADF`; `EBUSY` when the eventfd raises something already; `EFAULT`, `ENOMEM`.
    pub(crate) fn irqfd(&self, arg: usize) -> Result<isize> {
        let asked: uapi::kvm_irqfd = user::read(arg)?;
        if asked.flags & !(uapi::KVM_IRQFD_FLAG_DEASSIGN | uapi::KVM_IRQFD_FLAG_RESAMPLE) != 0 {
            return Err(EINVAL);
        }
        if asked.flags & uapi::KVM_IRQFD_FLAG_DEASSIGN != 0 {
            let event = EventFd::from_fd(asked.fd as i32)?;
            self.irqfds
                .remove(|one| one.is_at(&event) && one.listener().gsi == asked.gsi);
            return Ok(0);
        }
        let irqchip = self.irqchip().ok_or(EINVAL)?;
        let resamples = asked.flags & uapi::KVM_IRQFD_FLAG_RESAMPLE != 0;
        if resamples && irqchip.is_split() {
            return Err(EINVAL);
        }
        let file = EventFile::from_fd(asked.fd)?;
        let resample = match resamples {
            true => Some(Arc::new(
                EventFd::from_fd(asked.resamplefd as i32)?,
                GFP_KERNEL_ACCOUNT,
            )?),
            false => None,
        };
        let line = Line::new(irqchip.clone(), asked.gsi, resample)?;
        self.assign(&file, line)?;
        Ok(0)
    }

    fn assign(&self, file: &EventFile, line: Line) -> Result {
        self.irqfds.remove(|_| false);
        let mut all = self.irqfds.all.lock();
        all.reserve(1, GFP_KERNEL_ACCOUNT)?;
        all.push(Listening::new(file, line)?, GFP_KERNEL_ACCOUNT)?;
        Ok(())
    }
}
