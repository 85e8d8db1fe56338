// SPDX-License-Identifier: GPL-2.0

//! Properties of GSI routing: lookups find what a search of the whole table finds.

use proptest::prelude::*;
use xvm_logic::platform::routing::lookup;
use xvm_logic::platform::routing::Entry;
use xvm_logic::platform::routing::Target;
use xvm_logic::platform::routing::GSIS;
use xvm_logic::platform::Message;

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![
        any::<u8>().prop_map(|pin| Target::Pic { pin }),
        any::<u8>().prop_map(|pin| Target::IoApic { pin }),
        (any::<u64>(), any::<u32>()).prop_map(|(address, data)| Target::Msi { address, data }),
    ]
}

proptest! {
    /// A lookup finds the routes of its GSI, all of them and no others.
    #[test]
    fn lookups_find_all(
        routes in prop::collection::vec((0u32..40, target()), 0..100),
        gsi in 0u32..50,
    ) {
        let mut table: Vec<Entry> = routes
            .into_iter()
            .map(|(gsi, target)| Entry { gsi, target })
            .collect();
        table.sort_by_key(|entry| entry.gsi);
        let expected: Vec<Entry> = table
            .iter()
            .filter(|entry| entry.gsi == gsi)
            .copied()
            .collect();
        prop_assert_eq!(lookup(&table, gsi), &expected[..]);
    }

    /// Only what exists can be made into a route.
    #[test]
    fn entries_exist(gsi in prop_oneof![0u32..5000, any::<u32>()], target in target()) {
        let exists = gsi < GSIS && match target {
            Target::Pic { pin } => pin < 16,
            Target::IoApic { pin } => pin < 24,
            Target::Msi { .. } => true,
        };
        prop_assert_eq!(Entry::new(gsi, target).is_ok(), exists);
    }

    /// Any MSI can be decoded, and 8-bit destinations stay 8-bit.
    #[test]
    fn messages(address in any::<u64>(), data in any::<u32>()) {
        let message = Message::from_msi(address, data, false);
        prop_assert!(message.dest <= 0xff);
        let wide = Message::from_msi(address, data, true);
        prop_assert_eq!(wide.dest & 0xff, (address >> 12) as u32 & 0xff);
        prop_assert_eq!(wide.dest >> 8, (address >> 40) as u32);
    }
}
