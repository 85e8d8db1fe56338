// SPDX-License-Identifier: GPL-2.0

//! Properties of the mailbox: nothing that was posted is lost, and destinations match as the manual says.

use proptest::prelude::*;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use xvm_logic::platform::lapic::Lapic;
use xvm_logic::platform::mailbox::lowest_priority;
use xvm_logic::platform::mailbox::Mailbox;
use xvm_logic::platform::message::Addressees;
use xvm_logic::platform::message::BROADCAST;
use xvm_logic::platform::Delivery;
use xvm_logic::platform::Message;

/// Threads post while the owner drains: each post that was new arrives exactly once.
#[test]
fn every_new_post_arrives_once() {
    const POSTS: usize = 200_000;
    let mailbox = Mailbox::new();
    let done = [const { AtomicBool::new(false) }; 3];
    let post = |thread: usize| {
        let mut new = 0u64;
        for index in 0..POSTS {
            // Vectors from 0x20 on; threads share some words and no vectors.
            let vector = 0x20 + 3 * (index % 64) + thread;
            new += u64::from(mailbox.post(vector as u8, index % 2 == 0));
        }
        done[thread].store(true, SeqCst);
        new
    };
    let own = || {
        let mut lapic = Lapic::new(0, false, 1);
        lapic.write(0xf0, 0x1ff, 0, 0);
        let mut arrived = 0u64;
        loop {
            let last = done.iter().all(|flag| flag.load(SeqCst));
            mailbox.drain_into(&mut lapic);
            while let Some(vector) = lapic.pending() {
                lapic.acknowledge(vector);
                lapic.eoi();
                arrived += 1;
            }
            if last {
                return arrived;
            }
        }
    };
    let (posted, arrived) = std::thread::scope(|scope| {
        let posters = [0, 1, 2].map(|thread| scope.spawn(move || post(thread)));
        let owner = scope.spawn(own);
        let posted: u64 = posters.map(|poster| poster.join().unwrap()).iter().sum();
        (posted, owner.join().unwrap())
    });
    assert_eq!(posted, arrived);
    assert!(mailbox.is_empty());
}

fn message(dest: u32, logical: bool) -> Message {
    Message {
        dest,
        logical,
        delivery: Delivery::Fixed,
        vector: 0x40,
        level: false,
    }
}

fn published(id: u32, x2apic: bool, ldr: u32, flat: bool) -> Mailbox {
    let mut lapic = Lapic::new(id, false, 1);
    lapic.write(0xf0, 0x1ff, 0, 0);
    lapic.write(0xd0, ldr << 24, 0, 0);
    lapic.write(0xe0, if flat { u32::MAX } else { 0 }, 0, 0);
    if x2apic {
        lapic.set_base(0xfee0_0c00, 46).unwrap();
    }
    let mailbox = Mailbox::new();
    mailbox.publish(&lapic);
    mailbox
}

proptest! {
    /// A physical destination names its APIC and no other; the broadcast names all.
    #[test]
    fn physical_destinations(
        id in prop_oneof![0u32..300, any::<u32>()],
        dest in prop_oneof![0u32..300, any::<u32>()],
        x2apic in any::<bool>(),
    ) {
        let mailbox = published(id, x2apic, 0, true);
        prop_assert!(mailbox.matches(&message(id, false)));
        prop_assert!(mailbox.matches(&message(BROADCAST, false)));
        let all = dest == BROADCAST || (dest == 0xff && !x2apic);
        prop_assert_eq!(mailbox.matches(&message(dest, false)), dest == id || all);
    }

    /// Logical destinations: flat, cluster and x2APIC.
    #[test]
    fn logical_destinations(
        id in 0u32..256,
        ldr in 0u32..256,
        dest in 0u32..256,
        cluster in 0u32..17,
        bits in 0u32..1 << 16,
    ) {
        let narrow = message(dest, true);
        prop_assert_eq!(published(id, false, ldr, true).matches(&narrow), dest & ldr != 0);
        let in_cluster = dest >> 4 == ldr >> 4 && dest & ldr & 0xf != 0;
        let in_cluster = in_cluster || dest == 0xff;
        prop_assert_eq!(published(id, false, ldr, false).matches(&narrow), in_cluster);
        let wide = message((cluster << 16) | bits, true);
        let own = cluster == id >> 4 && (bits >> (id & 0xf)) & 1 != 0;
        prop_assert_eq!(published(id, true, 0, true).matches(&wide), own);
        prop_assert!(published(id, true, 0, true).matches(&message(BROADCAST, true)));
    }

    /// Who isn't asked would not have matched. The exception: 0xff from x2APIC mode is one ID, also for an APIC in xAPIC mode.
    #[test]
    fn addressees(
        id in prop_oneof![0u32..300, any::<u32>()],
        ldr in any::<u8>(),
        flat in any::<bool>(),
        x2apic in any::<bool>(),
        dest in prop_oneof![0u32..300, any::<u32>(), Just(BROADCAST)],
        logical in any::<bool>(),
        exact in any::<bool>(),
    ) {
        let mailbox = match x2apic {
            true => published(id, true, 0, true),
            false => published(id, false, ldr.into(), flat),
        };
        let ipi = message(dest, logical);
        let asked = |addressees| match addressees {
            Addressees::Ids { first, count } => (first..).take(count).any(|one| one == id),
            Addressees::Anyone => true,
        };
        let short = !logical && !x2apic && dest == 0xff;
        prop_assert!(short || !mailbox.matches(&ipi) || asked(ipi.addressees()));
        let (ipi, addressees) = ipi.addressees_from_device(exact);
        prop_assert!(!mailbox.matches(&ipi) || asked(addressees));
    }

    /// Arbitration chooses one that matches, with the lowest task priority among those.
    #[test]
    fn arbitration(
        tprs in prop::collection::vec(any::<u8>(), 1..8),
        dest in any::<u8>(),
        vector in 16u8..,
    ) {
        let boxes: Vec<Mailbox> = tprs.iter().enumerate().map(|(index, tpr)| {
            let mut lapic = Lapic::new(index as u32, false, 1);
            lapic.write(0xf0, 0x1ff, 0, 0);
            lapic.write(0xd0, 1 << (24 + index), 0, 0);
            lapic.set_tpr(*tpr);
            let mailbox = Mailbox::new();
            mailbox.publish(&lapic);
            mailbox
        }).collect();
        let message = Message { vector, ..message(dest.into(), true) };
        let lowest = (0..tprs.len())
            .filter(|index| (dest >> index) & 1 != 0)
            .map(|index| tprs[index] >> 4)
            .min();
        let chosen = lowest_priority(&message, boxes.iter().enumerate());
        prop_assert_eq!(chosen.map(|index| tprs[index] >> 4), lowest);
        if let Some(index) = chosen {
            prop_assert!(boxes[index].matches(&message));
        }
    }
}
