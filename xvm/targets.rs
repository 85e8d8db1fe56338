// SPDX-License-Identifier: GPL-2.0

//! The vCPUs of a VM as destinations of interrupt messages.

use super::platform::lapic::Shorthand;
use super::platform::mailbox;
use super::platform::message::Addressees;
use super::platform::Delivery;
use super::platform::Message;
use super::vcpu::Shared;
use crate::linux::thread::Thread;
use crate::linux::timer::Timed;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::sync::new_mutex;
use kernel::sync::new_spinlock_irq;
use kernel::sync::Arc;
use kernel::sync::Mutex;
use kernel::sync::SpinLockIrq;

/// A vCPU's place in the directory: empty where no vCPU has that number, or its file was closed.
type Place = Option<Arc<Timed<Shared>>>;

/// All vCPUs of a VM. The lock is taken in any context, last of all.
#[pin_data]
pub(crate) struct Targets {
    /// The vCPUs by their numbers, which are their APIC IDs. Long enough for the highest that was made.
    #[pin]
    directory: SpinLockIrq<KVVec<Place>>,
    /// The numbers of all vCPUs that were ever made: as in KVM they stay taken while the VM lives.
    #[pin]
    ids: Mutex<KVec<u32>>,
    /// `KVM_X2APIC_API_USE_32BIT_IDS`: the VMM writes APIC IDs of 32 bits.
    wide_ids: AtomicBool,
    /// `KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK`: to an APIC in x2APIC mode, a device's message for 255 is for APIC 255 alone.
    exact_broadcast: AtomicBool,
}

impl Targets {
    /// No vCPU yet.
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                directory <- new_spinlock_irq!(KVVec::new(), "xvm_targets"),
                ids <- new_mutex!(KVec::new(), "xvm_vcpu_ids"),
                wide_ids: AtomicBool::new(false),
                exact_broadcast: AtomicBool::new(false),
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
        // Held to the end: nobody else makes the directory longer.
        let mut ids = self.ids.lock();
        if ids.contains(&vcpu.id) {
            return Err(EEXIST);
        }
        self.make_room(vcpu.id as usize + 1)?;
        ids.push(vcpu.id, GFP_KERNEL_ACCOUNT)?;
        let id = vcpu.id as usize;
        if let Some(place) = self.directory.lock().get_mut(id) {
            *place = Some(vcpu);
        }
        Ok(())
    }

    /// Makes the directory at least `length` long, and twice as long as it was: vCPUs are made one by one.
    fn make_room(&self, length: usize) -> Result {
        let old = self.directory.lock().len();
        if length <= old {
            return Ok(());
        }
        let mut directory = KVVec::with_capacity(length.max(2 * old), GFP_KERNEL_ACCOUNT)?;
        while directory.len() < directory.capacity() {
            directory.push(None, GFP_KERNEL_ACCOUNT)?;
        }
        let mut current = self.directory.lock();
        for (new, place) in directory.iter_mut().zip(current.iter_mut()) {
            *new = place.take();
        }
        core::mem::swap(&mut *current, &mut directory);
        // The old one is freed after the lock.
        drop(current);
        Ok(())
    }

    /// Takes a vCPU away.
    pub(crate) fn remove(&self, vcpu: &Arc<Timed<Shared>>) {
        let mut directory = self.directory.lock();
        let place = directory.get_mut(vcpu.id as usize);
        let gone = place.and_then(|place| place.take_if(|one| Arc::ptr_eq(one, vcpu)));
        drop(directory);
        // After the lock, though the caller's reference keeps the vCPU from being the last.
        drop(gone);
    }

    /// Makes the number of a vCPU whose creation failed free again. May sleep.
    pub(crate) fn forget(&self, id: u32) {
        self.ids.lock().retain(|one| *one != id);
    }

    /// How many were made.
    pub(crate) fn count(&self) -> usize {
        self.ids.lock().len()
    }

    /// Turns on what `KVM_CAP_X2APIC_API` is asked for; nothing turns it off again.
    pub(crate) fn use_x2apic_api(&self, wide_ids: bool, exact_broadcast: bool) {
        self.wide_ids.fetch_or(wide_ids, Ordering::Relaxed);
        self.exact_broadcast
            .fetch_or(exact_broadcast, Ordering::Relaxed);
    }

    /// Whether the VMM writes APIC IDs of 32 bits.
    pub(crate) fn wide_ids(&self) -> bool {
        self.wide_ids.load(Ordering::Relaxed)
    }

    /// Sends a message-signalled interrupt. Whether a local APIC took it as new. From any context.
    pub(crate) fn send_msi(&self, address: u64, data: u32) -> bool {
        self.send(&Message::from_msi(address, data, self.wide_ids()))
    }

    /// Delivers a device's message to the vCPUs that it is for. Whether one of them took it as new. From any context.
    pub(crate) fn send(&self, message: &Message) -> bool {
        let exact = self.exact_broadcast.load(Ordering::Relaxed);
        let (message, addressees) = message.addressees_from_device(exact);
        self.deliver(&message, addressees)
    }

    /// Delivers an interrupt between processors with its shorthand; `from` is the sender's number.
    pub(crate) fn send_ipi(&self, message: &Message, shorthand: Shorthand, from: u32) {
        let others = match shorthand {
            Shorthand::None => {
                self.deliver(message, message.addressees());
                return;
            }
            Shorthand::Self_ => |id: u32, from: u32| id == from,
            Shorthand::AllIncludingSelf => |_: u32, _: u32| true,
            Shorthand::AllExcludingSelf => |id: u32, from: u32| id != from,
        };
        for vcpu in self.directory.lock().iter().flatten() {
            if others(vcpu.id, from) && vcpu.mailbox.accepts(message) {
                deliver(vcpu, message);
            }
        }
    }

    /// Delivers a message to those of the addressees that it matches. For one ID, or a cluster of x2APIC IDs, nobody else is
    /// looked at.
    fn deliver(&self, message: &Message, addressees: Addressees) -> bool {
        let directory = self.directory.lock();
        let places = match addressees {
            Addressees::Ids { first, count } => {
                let first = (first as usize).min(directory.len());
                let end = first.saturating_add(count).min(directory.len());
                &directory[first..end]
            }
            Addressees::Anyone => &directory[..],
        };
        if message.delivery == Delivery::LowestPriority {
            let candidates = places.iter().flatten().map(|vcpu| (vcpu, &vcpu.mailbox));
            let Some(vcpu) = mailbox::lowest_priority(message, candidates) else {
                return false;
            };
            return deliver(vcpu, message);
        }
        let mut taken = false;
        for vcpu in places.iter().flatten() {
            if vcpu.mailbox.matches(message) {
                taken |= deliver(vcpu, message);
            }
        }
        taken
    }

    /// Delivers an interrupt to the vCPUs from number `first` on for whose place from there a bit is set in `named`, whatever destination it
    /// has. Returns how many took it. From any context.
    pub(crate) fn send_to(&self, message: &Message, first: u32, named: [u64; 2]) -> u64 {
        let mut taken = 0;
        let directory = self.directory.lock();
        let places = directory.iter().skip(first as usize).take(128);
        for (place, vcpu) in places.enumerate() {
            let Some(vcpu) = vcpu else { continue };
            if named[place / 64] >> (place % 64) & 1 != 0 && vcpu.mailbox.accepts(message) {
                // One that merges with another was taken too.
                deliver(vcpu, message);
                taken += 1;
            }
        }
        taken
    }

    /// Ends the HLT of vCPU `id`, or its next one. From any context.
    pub(crate) fn unhalt(&self, id: u32) {
        let directory = self.directory.lock();
        if let Some(Some(vcpu)) = directory.get(id as usize) {
            if vcpu.mailbox.post_unhalt() {
                vcpu.wake();
            }
        }
    }

    /// Whether `of` is the same for all vCPUs. From any context.
    pub(crate) fn all_alike<T: PartialEq>(&self, of: impl Fn(&Shared) -> T) -> bool {
        let directory = self.directory.lock();
        let mut rest = directory.iter().flatten();
        let Some(first) = rest.next().map(|vcpu| of(vcpu)) else {
            return true;
        };
        rest.all(|vcpu| of(vcpu) == first)
    }

    /// Tells all vCPUs that what they keep in guest memory is out of date. From any context.
    pub(crate) fn post_updates(&self) {
        for vcpu in self.directory.lock().iter().flatten() {
            if vcpu.mailbox.post_update() {
                vcpu.wake();
            }
        }
    }

    /// The next vCPU after number `after`, the lowest following the highest, that is not in guest mode, has been run and isn't
    /// `me`: its number and its thread. From any context.
    pub(crate) fn next_outside(&self, after: u32, me: u32) -> Option<(u32, Arc<Thread>)> {
        let directory = self.directory.lock();
        let middle = (after as usize).saturating_add(1).min(directory.len());
        let (before, behind) = directory.split_at(middle);
        Iterator::chain(behind.iter(), before)
            .flatten()
            .filter(|vcpu| vcpu.id != me && vcpu.presence.is_outside())
            .find_map(|vcpu| Some((vcpu.id, vcpu.thread.lock().clone()?)))
    }

    /// Whether there is a vCPU `id` that isn't in guest mode. From any context.
    pub(crate) fn is_outside(&self, id: u32) -> bool {
        let directory = self.directory.lock();
        let vcpu = directory.get(id as usize).and_then(Option::as_ref);
        vcpu.is_some_and(|vcpu| vcpu.presence.is_outside())
    }

    /// The thread of vCPU `id`, if that isn't in guest mode and has been run. From any context.
    pub(crate) fn outside(&self, id: u32) -> Option<Arc<Thread>> {
        let directory = self.directory.lock();
        let vcpu = directory.get(id as usize)?.as_ref()?;
        let outside = vcpu.presence.is_outside();
        outside.then(|| vcpu.thread.lock().clone())?
    }

    /// Makes every vCPU look whether the 8259 pair has an interrupt for it.
    pub(crate) fn wake_all(&self) {
        for vcpu in self.directory.lock().iter().flatten() {
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
