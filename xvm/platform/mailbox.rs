// SPDX-License-Identifier: GPL-2.0

//! How other threads reach a local APIC: what they may know of it, and where they leave interrupts for it.
//!
//! # Memory ordering
//!
//! A post first writes what it brings (vector, trigger mode), then sets its bit in `events`. The owner takes the bit out of
//! `events` first, then what was brought: whoever saw the bit sees the rest, and whoever was too late leaves the bit set for
//! the next look, which at worst finds nothing. Both sides change `events` with sequentially consistent read-modify-writes,
//! which on x86 are full barriers. So a poster may go on to read whether the vCPU runs or sleeps, and the owner may say that
//! it runs or sleeps and then look at [`Mailbox::is_empty`] (with a full barrier between the two, as the kernel's wait
//! queues have it): at least one of them sees the other, and no wake-up is lost.

use super::lapic::x2apic_logical_id;
use super::lapic::Lapic;
use super::lapic::Mode;
use super::message::Delivery;
use super::message::Message;
use super::message::BROADCAST;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Acquire;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::Ordering::Release;
use core::sync::atomic::Ordering::SeqCst;

/// Bits of [`Mailbox::events`].
mod event {
    pub(super) const VECTORS: u32 = 1 << 0;
    pub(super) const NMI: u32 = 1 << 1;
    pub(super) const INIT: u32 = 1 << 2;
    pub(super) const STARTUP: u32 = 1 << 3;
    pub(super) const TIMER: u32 = 1 << 4;
    pub(super) const UPDATE: u32 = 1 << 5;
    pub(super) const UNHALT: u32 = 1 << 6;
    pub(super) const SMI: u32 = 1 << 7;
}

/// A processor holds one NMI while another is being handled; more are lost (Intel SDM vol. 3, 6.7.1).
const MAX_NMIS: u32 = 2;

register! {
    /// What others know of a local APIC, in one word so that they never see half a change.
    pub(super) struct Address(u64) {
        id / set_id: u32 = 31..0;
        logical_id / set_logical_id: u8 = 39..32;
        flat / set_flat: bool = 40;
        x2apic / set_x2apic: bool = 41;
        enabled / set_enabled: bool = 42;
        software_enabled / set_software_enabled: bool = 43;
        priority / set_priority: u8 = 47..44;
    }
}

impl Address {
    /// Starts with an ID; the APIC is disabled.
    pub(super) fn new(id: u32) -> Self {
        let mut address = Address(0);
        address.set_id(id);
        address
    }

    /// Adds the mode.
    pub(super) fn with_mode(mut self, mode: Mode) -> Self {
        self.set_enabled(mode != Mode::Disabled);
        self.set_x2apic(mode == Mode::X2Apic);
        self
    }

    /// Adds whether it is software-enabled.
    pub(super) fn with_software_enabled(mut self, enabled: bool) -> Self {
        self.set_software_enabled(enabled);
        self
    }

    /// Adds the logical ID of xAPIC mode, and whether it is in the flat model.
    pub(super) fn with_logical_id(mut self, id: u8, flat: bool) -> Self {
        self.set_logical_id(id);
        self.set_flat(flat);
        self
    }

    /// Adds the class of the task priority.
    pub(super) fn with_priority(mut self, class: u8) -> Self {
        self.set_priority(class);
        self
    }

    /// Physical destinations (12.6.2.1, 12.12.9). An ID above 255 counts whole in xAPIC mode too: nothing else could name
    /// that APIC in the INIT and start-up IPIs that come before it goes to x2APIC mode. 0xff is the broadcast of xAPIC mode.
    fn matches_physical(self, dest: u32) -> bool {
        dest == BROADCAST || dest == self.id() || (dest == 0xff && !self.x2apic())
    }

    /// Logical destinations (12.6.2.2, 12.12.10).
    fn matches_logical(self, dest: u32) -> bool {
        if self.x2apic() {
            let id = x2apic_logical_id(self.id());
            return dest == BROADCAST || (dest >> 16 == id >> 16 && dest & id & 0xffff != 0);
        }
        let id = self.logical_id();
        match u8::try_from(dest) {
            Err(_) => dest == BROADCAST,
            Ok(dest) if self.flat() => dest & id != 0,
            Ok(0xff) => true,
            Ok(dest) => dest >> 4 == id >> 4 && dest & id & 0xf != 0,
        }
    }

    /// A globally disabled APIC takes nothing; a software-disabled one takes no vectors (12.4.7.2).
    fn accepts(self, delivery: Delivery) -> bool {
        match delivery {
            Delivery::Fixed | Delivery::LowestPriority => self.enabled() && self.software_enabled(),
            _ => self.enabled(),
        }
    }
}

/// Interrupts on their way to a local APIC.
pub struct Mailbox {
    /// What there is to take, bits of [`event`].
    events: AtomicU32,
    /// Vectors posted and not yet drained, and which of them are level-triggered.
    posted: [AtomicU32; 8],
    level: [AtomicU32; 8],
    nmis: AtomicU32,
    /// Vector of the last start-up IPI.
    startup: AtomicU32,
    /// An [`Address`].
    address: AtomicU64,
}

impl Mailbox {
    /// An empty mailbox of an APIC that nobody can address before [`Mailbox::publish`].
    pub const fn new() -> Self {
        Self {
            events: AtomicU32::new(0),
            posted: [const { AtomicU32::new(0) }; 8],
            level: [const { AtomicU32::new(0) }; 8],
            nmis: AtomicU32::new(0),
            startup: AtomicU32::new(0),
            address: AtomicU64::new(0),
        }
    }

    /// Publishes where the local APIC can be found, if that has changed: called by its owner after all that can change it.
    pub fn publish(&self, lapic: &Lapic) {
        let address = lapic.address().0;
        // Only the owner writes it, so it can look first and spare the others a cache miss.
        if self.address.load(Relaxed) != address {
            self.address.store(address, Release);
        }
    }

    fn address(&self) -> Address {
        Address(self.address.load(Acquire))
    }

    /// Whether the message is for this local APIC, and it takes such messages now.
    pub fn matches(&self, message: &Message) -> bool {
        let address = self.address();
        let addressed = if message.logical {
            address.matches_logical(message.dest)
        } else {
            address.matches_physical(message.dest)
        };
        addressed && address.accepts(message.delivery)
    }

    /// Whether it takes such messages now, for destination shorthands.
    pub fn accepts(&self, message: &Message) -> bool {
        self.address().accepts(message.delivery)
    }

    /// Leaves a message that was matched before. `true`: something new is there, so kick the vCPU; `false`: it merged with
    /// one that was posted before, or is of a kind that this platform doesn't have.
    pub fn deliver(&self, message: &Message) -> bool {
        match message.delivery {
            Delivery::Fixed | Delivery::LowestPriority => self.post(message.vector, message.level),
            Delivery::Nmi => self.post_nmi(),
            Delivery::Init => self.post_init(),
            Delivery::Startup => self.post_startup(message.vector),
            Delivery::Smi => self.post_smi(),
            // The 8259 pair has its own way in (Lapic::accepts_extint).
            Delivery::ExtInt | Delivery::Reserved => false,
        }
    }

    /// Posts a vector. `true` if it was not posted already: kick the vCPU. Otherwise it has merged.
    pub fn post(&self, vector: u8, level: bool) -> bool {
        let index = usize::from(vector >> 5);
        let bit = 1 << (vector & 31);
        // Before the vector, which releases it.
        if level {
            self.level[index].fetch_or(bit, Relaxed);
        } else {
            self.level[index].fetch_and(!bit, Relaxed);
        }
        if self.posted[index].fetch_or(bit, Release) & bit != 0 {
            return false;
        }
        self.events.fetch_or(event::VECTORS, SeqCst);
        true
    }

    /// Posts an NMI. `true` if it will be seen: kick the vCPU.
    pub fn post_nmi(&self) -> bool {
        let below = |count| (count < MAX_NMIS).then_some(count + 1);
        if self.nmis.fetch_update(Release, Relaxed, below).is_err() {
            return false;
        }
        self.events.fetch_or(event::NMI, SeqCst);
        true
    }

    /// Posts a system management interrupt. `true` if it is the first.
    pub fn post_smi(&self) -> bool {
        self.events.fetch_or(event::SMI, SeqCst) & event::SMI == 0
    }

    /// Posts an INIT. A start-up IPI from before it is void. `true` if it is the first.
    pub fn post_init(&self) -> bool {
        self.events.fetch_and(!event::STARTUP, SeqCst);
        self.events.fetch_or(event::INIT, SeqCst) & event::INIT == 0
    }

    /// Posts a start-up IPI. `true` if it is the first.
    pub fn post_startup(&self, vector: u8) -> bool {
        self.startup.store(vector.into(), Release);
        self.events.fetch_or(event::STARTUP, SeqCst) & event::STARTUP == 0
    }

    /// The host timer has run out. `true` if the owner has not been told before.
    pub fn post_timer(&self) -> bool {
        self.events.fetch_or(event::TIMER, SeqCst) & event::TIMER == 0
    }

    /// Another vCPU ends this one's HLT. `true` if the owner has not been told before.
    pub fn post_unhalt(&self) -> bool {
        self.events.fetch_or(event::UNHALT, SeqCst) & event::UNHALT == 0
    }

    /// Takes the word that HLT has ended.
    pub fn take_unhalt(&self) -> bool {
        self.take(event::UNHALT)
    }

    /// What the vCPU keeps in guest memory is out of date. `true` if the owner has not been told before.
    pub fn post_update(&self) -> bool {
        self.events.fetch_or(event::UPDATE, SeqCst) & event::UPDATE == 0
    }

    /// Whether there is nothing to take.
    pub fn is_empty(&self) -> bool {
        self.events.load(SeqCst) == 0
    }

    /// The same with a system management interrupt put aside.
    pub fn is_empty_but_for_smi(&self) -> bool {
        self.events.load(SeqCst) & !event::SMI == 0
    }

    /// Whether [`Mailbox::take_smi`] would take something.
    pub fn has_smi(&self) -> bool {
        self.events.load(Relaxed) & event::SMI != 0
    }

    /// Takes a system management interrupt.
    pub fn take_smi(&self) -> bool {
        self.take(event::SMI)
    }

    /// Whether [`Mailbox::take_init`] would take something.
    pub fn has_init(&self) -> bool {
        self.events.load(Relaxed) & event::INIT != 0
    }

    /// Takes an event; cheap when there is none.
    fn take(&self, event: u32) -> bool {
        self.events.load(Relaxed) & event != 0 && self.events.fetch_and(!event, SeqCst) & event != 0
    }

    /// Takes the NMIs: at most two.
    pub fn take_nmis(&self) -> u32 {
        if !self.take(event::NMI) {
            return 0;
        }
        self.nmis.swap(0, Acquire)
    }

    /// Takes an INIT; look for it before a start-up IPI.
    pub fn take_init(&self) -> bool {
        self.take(event::INIT)
    }

    /// Takes a start-up IPI.
    pub fn take_startup(&self) -> Option<u8> {
        self.take(event::STARTUP)
            .then(|| self.startup.load(Acquire) as u8)
    }

    /// Takes the word that the host timer has run out.
    pub fn take_timer(&self) -> bool {
        self.take(event::TIMER)
    }

    /// Whether [`Mailbox::take_update`] would take something.
    pub fn wants_update(&self) -> bool {
        self.events.load(Relaxed) & event::UPDATE != 0
    }

    /// Takes the word that guest memory is out of date.
    pub fn take_update(&self) -> bool {
        self.take(event::UPDATE)
    }

    /// Moves the posted vectors into the IRR.
    pub fn drain_into(&self, lapic: &mut Lapic) {
        if !self.take(event::VECTORS) {
            return;
        }
        for (index, (posted, level)) in (0u8..8).zip(self.posted.iter().zip(&self.level)) {
            // Words without a post are only read.
            if posted.load(Relaxed) == 0 {
                continue;
            }
            let mut bits = posted.swap(0, Acquire);
            let level = level.load(Relaxed);
            while bits != 0 {
                let bit = bits.trailing_zeros() as u8 & 31;
                bits &= bits - 1;
                lapic.accept((index << 5) | bit, (level >> bit) & 1 != 0);
            }
        }
    }
}

impl Default for Mailbox {
    fn default() -> Self {
        Self::new()
    }
}

/// Chooses among the destinations of a lowest-priority message (12.6.2.4): one of those with the lowest published task
/// priority, the same one for the same vector, so that an interrupt stays where its data is.
///
/// `candidates` are all local APICs of the VM; `None` if none of them takes it.
pub fn lowest_priority<'a, T>(
    message: &Message,
    candidates: impl Iterator<Item = (T, &'a Mailbox)> + Clone,
) -> Option<T> {
    let matching = candidates.filter(|(_, mailbox)| mailbox.matches(message));
    let lowest = matching
        .clone()
        .map(|(_, mailbox)| mailbox.address().priority())
        .min()?;
    let ties = matching
        .clone()
        .filter(|(_, mailbox)| mailbox.address().priority() == lowest);
    let count = ties.clone().count().max(1);
    ties.map(|(candidate, _)| candidate)
        .nth(usize::from(message.vector) % count)
        // Priorities have changed while we looked.
        .or_else(|| matching.map(|(candidate, _)| candidate).next())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixed(dest: u32, logical: bool) -> Message {
        Message {
            dest,
            logical,
            delivery: Delivery::Fixed,
            vector: 0x40,
            level: false,
        }
    }

    fn published(id: u32, writes: &[(u32, u32)]) -> (Lapic, Mailbox) {
        let mut lapic = Lapic::new(id, false, 1);
        lapic.write(0xf0, 0x1ff, 0, 0);
        for &(offset, value) in writes {
            lapic.write(offset, value, 0, 0);
        }
        let mailbox = Mailbox::new();
        mailbox.publish(&lapic);
        (lapic, mailbox)
    }

    #[test]
    fn flat_and_cluster_destinations() {
        let (_, flat) = published(1, &[(0xd0, 0x0400_0000)]);
        assert!(flat.matches(&fixed(0x06, true)));
        assert!(!flat.matches(&fixed(0x0b, true)));
        assert!(!flat.matches(&fixed(0x0001_0004, true)));
        let (_, cluster) = published(1, &[(0xe0, 0), (0xd0, 0x2400_0000)]);
        assert!(cluster.matches(&fixed(0x26, true)));
        assert!(!cluster.matches(&fixed(0x16, true)));
        assert!(cluster.matches(&fixed(0xff, true)));
    }

    #[test]
    fn physical_and_x2apic_destinations() {
        let (mut lapic, mailbox) = published(0x123, &[]);
        assert!(mailbox.matches(&fixed(0x123, false)));
        assert!(!mailbox.matches(&fixed(0x23, false)));
        assert!(mailbox.matches(&fixed(BROADCAST, false)));
        lapic.set_base(0xfee0_0c00, 36).unwrap();
        mailbox.publish(&lapic);
        assert!(mailbox.matches(&fixed(0x0012_000c, true)));
        assert!(!mailbox.matches(&fixed(0x0012_0004, true)));
        assert!(!mailbox.matches(&fixed(0x0013_0008, true)));
        lapic.set_base(0xfee0_0000, 36).unwrap();
        mailbox.publish(&lapic);
        assert!(!mailbox.matches(&fixed(BROADCAST, false)));
    }

    #[test]
    fn a_software_disabled_apic_takes_only_what_has_no_vector() {
        let (_, mailbox) = published(2, &[(0xf0, 0xff)]);
        assert!(!mailbox.matches(&fixed(2, false)));
        let nmi = Message {
            delivery: Delivery::Nmi,
            ..fixed(2, false)
        };
        assert!(mailbox.matches(&nmi));
    }

    #[test]
    fn posts_merge_until_they_are_drained() {
        let (mut lapic, mailbox) = published(0, &[]);
        assert!(mailbox.is_empty());
        assert!(mailbox.post(0x40, true));
        assert!(!mailbox.post(0x40, true));
        assert!(mailbox.post(0xff, false));
        assert!(!mailbox.is_empty());
        mailbox.drain_into(&mut lapic);
        assert!(mailbox.is_empty());
        assert_eq!(lapic.pending(), Some(0xff));
        assert_eq!(lapic.read(0x1a0, 0), 1);
        assert!(mailbox.post(0x40, false));
        mailbox.drain_into(&mut lapic);
        assert_eq!(lapic.read(0x1a0, 0), 0);
    }

    #[test]
    fn events_are_taken_once() {
        let mailbox = Mailbox::new();
        assert!(mailbox.post_startup(9));
        assert!(mailbox.post_init());
        assert_eq!(mailbox.take_startup(), None);
        assert!(mailbox.post_startup(0x9f));
        assert!(mailbox.take_init());
        assert!(!mailbox.take_init());
        assert_eq!(mailbox.take_startup(), Some(0x9f));
        assert_eq!([(); 3].map(|()| mailbox.post_nmi()), [true, true, false]);
        assert_eq!((mailbox.take_nmis(), mailbox.take_nmis()), (2, 0));
        assert!(mailbox.post_timer());
        assert!(mailbox.take_timer());
        assert!(mailbox.post_unhalt());
        assert!(!mailbox.post_unhalt());
        assert!(mailbox.take_unhalt());
        assert!(mailbox.post_update());
        assert!(!mailbox.post_update());
        assert!(mailbox.wants_update());
        assert!(mailbox.take_update());
        assert!(!mailbox.wants_update());
        assert!(mailbox.is_empty());
    }

    #[test]
    fn the_lowest_priority_takes_it() {
        let boxes = [
            published(0, &[(0xd0, 1 << 24), (0x80, 0x50)]),
            published(1, &[(0xd0, 2 << 24), (0x80, 0x30)]),
            published(2, &[(0xd0, 4 << 24), (0x80, 0x3f)]),
            published(3, &[(0xd0, 8 << 24)]),
        ];
        let chosen = |dest, vector| {
            let message = Message {
                vector,
                ..fixed(dest, true)
            };
            lowest_priority(
                &message,
                boxes.iter().map(|(_, mailbox)| mailbox).enumerate(),
            )
        };
        assert_eq!(chosen(0xf, 0x40), Some(3));
        assert_eq!((chosen(0x7, 0x40), chosen(0x7, 0x41)), (Some(1), Some(2)));
        assert_eq!(chosen(0x10, 0x40), None);
    }
}
