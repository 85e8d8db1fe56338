// SPDX-License-Identifier: GPL-2.0

//! The vCPUs of a VM as destinations of interrupt messages.

use super::platform::lapic::Shorthand;
use super::platform::mailbox;
use super::platform::Delivery;
use super::platform::Message;
use super::vcpu::Shared;
use crate::linux::timer::Timed;
use kernel::prelude::*;
use kernel::sync::new_mutex;
use kernel::sync::new_spinlock_irq;
use kernel::sync::Arc;
use kernel::sync::Mutex;
use kernel::sync::SpinLockIrq;

/// All vCPUs of a VM. The lock is taken in any context, last of all.
#[pin_data]
pub(crate) struct Targets {
    #[pin]
    vcpus: SpinLockIrq<KVec<Arc<Timed<Shared>>>>,
    /// The numbers of all vCPUs that were ever made: as in KVM they stay taken while the VM lives.
    #[pin]
    ids: Mutex<KVec<u32>>,
}

impl Targets {
    /// No vCPU yet.
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                vcpus <- new_spinlock_irq!(KVec::new(), "xvm_targets"),
                ids <- new_mutex!(KVec::new(), "xvm_vcpu_ids"),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Adds a vCPU. May sleep.
    ///
    /// # Errors
    ///
    /// `EEXIST` when there is one of that number; `ENOMEM`.
    pub(crate) fn add(&self, vcpu: Arc<Timed<Shared>>) -> Result {
        let mut ids = self.ids.lock();
        if ids.contains(&vcpu.id) {
            return Err(EEXIST);
        }
        ids.push(vcpu.id, GFP_KERNEL_ACCOUNT)?;
        loop {
            let want = self.vcpus.lock().len() + 1;
            let mut larger = KVec::with_capacity(want, GFP_KERNEL_ACCOUNT)?;
            let mut vcpus = self.vcpus.lock();
            if vcpus.len() + 1 != want {
                continue;
            }
            for one in vcpus.iter() {
                larger.push(one.clone(), GFP_ATOMIC)?;
            }
            larger.push(vcpu, GFP_ATOMIC)?;
            core::mem::swap(&mut *vcpus, &mut larger);
            drop(vcpus);
            return Ok(());
        }
    }

    /// Takes a vCPU away.
    pub(crate) fn remove(&self, vcpu: &Arc<Timed<Shared>>) {
        self.vcpus.lock().retain(|one| !Arc::ptr_eq(one, vcpu));
    }

    /// How many were made.
    pub(crate) fn count(&self) -> usize {
        self.ids.lock().len()
    }

    /// Delivers a message to the vCPUs that it is for. Whether one of them took it as new. From any context.
    pub(crate) fn send(&self, message: &Message) -> bool {
        let vcpus = self.vcpus.lock();
        if message.delivery == Delivery::LowestPriority {
            let candidates = vcpus.iter().map(|vcpu| (vcpu, &vcpu.mailbox));
            let Some(vcpu) = mailbox::lowest_priority(message, candidates) else {
                return false;
            };
            return deliver(vcpu, message);
        }
        let mut taken = false;
        for vcpu in vcpus.iter().filter(|vcpu| vcpu.mailbox.matches(message)) {
            taken |= deliver(vcpu, message);
        }
        taken
    }

    /// Delivers an interrupt between processors with its shorthand; `from` is the sender's number.
    pub(crate) fn send_ipi(&self, message: &Message, shorthand: Shorthand, from: u32) {
        let others = match shorthand {
            Shorthand::None => {
                self.send(message);
                return;
            }
            Shorthand::Self_ => |id: u32, from: u32| id == from,
            Shorthand::AllIncludingSelf => |_: u32, _: u32| true,
            Shorthand::AllExcludingSelf => |id: u32, from: u32| id != from,
        };
        for vcpu in self.vcpus.lock().iter() {
            if others(vcpu.id, from) && vcpu.mailbox.accepts(message) {
                deliver(vcpu, message);
            }
        }
    }

    /// Whether `of` is the same for all vCPUs. From any context.
    pub(crate) fn all_alike<T: PartialEq>(&self, of: impl Fn(&Shared) -> T) -> bool {
        let vcpus = self.vcpus.lock();
        let mut rest = vcpus.iter();
        let Some(first) = rest.next().map(|vcpu| of(vcpu)) else {
            return true;
        };
        rest.all(|vcpu| of(vcpu) == first)
    }

    /// Tells all vCPUs that what they keep in guest memory is out of date. From any context.
    pub(crate) fn post_updates(&self) {
        for vcpu in self.vcpus.lock().iter() {
            if vcpu.mailbox.post_update() {
                vcpu.wake();
            }
        }
    }

    /// Makes every vCPU look whether the 8259 pair has an interrupt for it.
    pub(crate) fn wake_all(&self) {
        for vcpu in self.vcpus.lock().iter() {
            vcpu.wake();
        }
    }
}

fn deliver(vcpu: &Shared, message: &Message) -> bool {
    let new = vcpu.mailbox.deliver(message);
    if new {
        vcpu.wake();
    }
    new
}
