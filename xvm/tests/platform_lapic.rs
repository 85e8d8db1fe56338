// SPDX-License-Identifier: GPL-2.0

//! Properties of the local APIC: priorities against a naive model, the timer, restored state, hostile accesses.

use proptest::prelude::*;
use xvm_logic::platform::lapic::Effect;
use xvm_logic::platform::lapic::Lapic;
use xvm_logic::platform::lapic::Reset;
use xvm_logic::platform::lapic::Timer;
use xvm_logic::platform::mailbox::Mailbox;

const X2APIC: u64 = 0xfee0_0c00;
const SVR: u32 = 0xf0;
const LVT_TIMER: u32 = 0x320;
const INITIAL_COUNT: u32 = 0x380;
const DIVIDE: u32 = 0x3e0;

fn enabled() -> Lapic {
    let mut lapic = Lapic::new(0, false, 1);
    lapic.write(SVR, 0x1ff, 0, 0);
    lapic
}

/// Sets of vectors as plain arrays, searched from the top.
struct Model {
    irr: [bool; 256],
    isr: [bool; 256],
    level: [bool; 256],
    tpr: u8,
}

impl Model {
    fn new() -> Self {
        Self {
            irr: [false; 256],
            isr: [false; 256],
            level: [false; 256],
            tpr: 0,
        }
    }

    fn highest(set: &[bool; 256]) -> Option<u8> {
        (0..=255).rev().find(|vector| set[usize::from(*vector)])
    }

    /// Deliverable: its class is above the task priority's and above that of everything in service.
    fn pending(&self) -> Option<u8> {
        let vector = Self::highest(&self.irr)?;
        let blocked =
            (0..=255u8).any(|other| self.isr[usize::from(other)] && other >> 4 >= vector >> 4);
        (vector >> 4 > self.tpr >> 4 && !blocked).then_some(vector)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Accept(u8, bool),
    SetTpr(u8),
    Deliver,
    Eoi,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (any::<u8>(), any::<bool>()).prop_map(|(vector, level)| Step::Accept(vector, level)),
        1 => any::<u8>().prop_map(Step::SetTpr),
        2 => Just(Step::Deliver),
        2 => Just(Step::Eoi),
    ]
}

/// A write or a step of time that a guest or VMM can cause.
#[derive(Clone, Debug)]
enum Access {
    Page(u32, u32),
    Msr(u32, u64),
    Base(u64),
    RestoreBase(u64),
    TscDeadline(u64),
    Restore(Vec<u8>, bool),
    Init,
    Pass(u64),
}

fn access() -> impl Strategy<Value = Access> {
    let offset = prop_oneof![(0u32..0x40).prop_map(|n| n << 4), any::<u32>()];
    let msr = prop_oneof![0x800u32..0x840, any::<u32>()];
    let base = prop_oneof![
        Just(0xfee0_0000),
        Just(0xfee0_0800),
        Just(X2APIC),
        any::<u64>()
    ];
    let value = prop_oneof![any::<u32>(), 0u32..0x200];
    let wide = prop_oneof![any::<u64>(), 0u64..0x200];
    let page = prop::collection::vec(any::<u8>(), 1024);
    prop_oneof![
        8 => (offset, value).prop_map(|(offset, value)| Access::Page(offset, value)),
        8 => (msr, wide).prop_map(|(msr, value)| Access::Msr(msr, value)),
        2 => base.clone().prop_map(Access::Base),
        1 => base.prop_map(Access::RestoreBase),
        1 => any::<u64>().prop_map(Access::TscDeadline),
        1 => (page, any::<bool>()).prop_map(|(bytes, id32)| Access::Restore(bytes, id32)),
        1 => Just(Access::Init),
        4 => prop_oneof![0u64..10_000_000, 0u64..1 << 56].prop_map(Access::Pass),
    ]
}

proptest! {
    /// Delivery and EOI agree with the model, and nothing at or below the processor priority is delivered.
    #[test]
    fn priorities_agree_with_the_model(steps in prop::collection::vec(step(), 1..200)) {
        let mut lapic = enabled();
        let mut model = Model::new();
        for step in steps {
            match step {
                Step::Accept(vector, level) => {
                    lapic.accept(vector, level);
                    if vector >= 16 {
                        model.irr[usize::from(vector)] = true;
                        model.level[usize::from(vector)] = level;
                    }
                }
                Step::SetTpr(tpr) => {
                    lapic.set_tpr(tpr);
                    model.tpr = tpr;
                }
                Step::Deliver => {
                    if let Some(vector) = lapic.pending() {
                        prop_assert!(vector >> 4 > lapic.ppr() >> 4);
                        lapic.acknowledge(vector);
                        model.irr[usize::from(vector)] = false;
                        model.isr[usize::from(vector)] = true;
                    }
                }
                Step::Eoi => {
                    let expected = match Model::highest(&model.isr) {
                        None => Effect::None,
                        Some(vector) => {
                            model.isr[usize::from(vector)] = false;
                            Effect::Eoi { vector, level: model.level[usize::from(vector)] }
                        }
                    };
                    prop_assert_eq!(lapic.eoi(), expected);
                }
            }
            prop_assert_eq!(lapic.pending(), model.pending());
            let class = Model::highest(&model.isr).unwrap_or(0) >> 4;
            let ppr = if model.tpr >> 4 >= class { model.tpr } else { class << 4 };
            prop_assert_eq!(lapic.ppr(), ppr);
        }
    }

    /// Whatever a guest or VMM does, nothing panics, and what is saved can be restored and saved again without a change.
    #[test]
    fn hostile_accesses(accesses in prop::collection::vec(access(), 1..100), id in any::<u32>()) {
        let mut lapic = Lapic::new(id, true, 1);
        let mailbox = Mailbox::new();
        let mut now = 0u64;
        for access in accesses {
            match access {
                Access::Page(offset, value) => {
                    lapic.write(offset, value, now, now);
                    lapic.read(offset, now);
                }
                Access::Msr(msr, value) => {
                    let _ = lapic.write_msr(msr, value, now, now);
                    let _ = lapic.read_msr(msr, now);
                }
                Access::Base(value) => {
                    let _ = lapic.set_base(value, 46);
                }
                Access::RestoreBase(value) => {
                    let _ = lapic.restore_base(value, 46);
                }
                Access::TscDeadline(deadline) => {
                    lapic.set_tsc_deadline(deadline);
                }
                Access::Restore(bytes, id32) => {
                    let _ = lapic.set_state(&bytes.try_into().unwrap(), id32, now);
                }
                Access::Init => lapic.reset(Reset::Init),
                Access::Pass(ns) => now += ns,
            }
            mailbox.publish(&lapic);
            lapic.timer_expired(now, now);
            if let Some(vector) = lapic.pending() {
                lapic.acknowledge(vector);
            }
            match lapic.timer() {
                // What is due has been taken, so the next one is ahead.
                Timer::At { ns } => prop_assert!(ns > now),
                Timer::AtTsc { tsc } => prop_assert_eq!(tsc, lapic.tsc_deadline()),
                Timer::Off => {}
            }
        }
        for id32 in [false, true] {
            let (mut saved, mut again) = ([0; 1024], [0; 1024]);
            lapic.state(&mut saved, id32, now);
            let mut other = Lapic::new(id, true, 1);
            other.restore_base(lapic.base(), 46).unwrap();
            other.set_state(&saved, id32, now).unwrap();
            other.state(&mut again, id32, now);
            if saved[0x390..0x394] == [0; 4] {
                // A periodic timer whose count stands at 0 starts again.
                again[0x390..0x394].fill(0);
            }
            let differs = (0..1024).find(|offset| saved[*offset] != again[*offset]);
            prop_assert_eq!(differs, None);
        }
    }

    /// IRR and ISR come back as they were set, every bit of them.
    #[test]
    fn vector_sets_are_restored_whole(words in any::<[u32; 16]>()) {
        let mut lapic = enabled();
        let (mut page, mut saved) = ([0; 1024], [0; 1024]);
        for (index, word) in words.into_iter().enumerate() {
            let offset = if index < 8 { 0x100 } else { 0x200 } + 16 * (index & 7);
            page[offset..offset + 4].copy_from_slice(&word.to_le_bytes());
        }
        lapic.set_state(&page, false, 0).unwrap();
        lapic.state(&mut saved, false, 0);
        prop_assert_eq!(&page[0x100..0x180], &saved[0x100..0x180]);
        prop_assert_eq!(&page[0x200..0x280], &saved[0x200..0x280]);
    }

    /// A periodic timer expires at whole periods from its start, however late the host looks.
    #[test]
    fn periods_do_not_drift(
        initial in 1u32..5_000_000,
        divide in prop::sample::select(vec![0x0u32, 0x1, 0x3, 0x8, 0xa, 0xb]),
        delays in prop::collection::vec(0u64..20_000_000, 1..50),
        start in 0u64..1 << 60,
    ) {
        let ticks = [(0x0, 2), (0x1, 4), (0x3, 16), (0x8, 32), (0xa, 128), (0xb, 1)];
        let ticks: u64 = ticks.into_iter().find(|(bits, _)| *bits == divide).unwrap().1;
        let period = (u64::from(initial) * ticks).max(200_000);
        let mut lapic = enabled();
        lapic.write(LVT_TIMER, 0x2_0040, start, 0);
        lapic.write(DIVIDE, divide, start, 0);
        lapic.write(INITIAL_COUNT, initial, start, 0);
        let mut now = start;
        for delay in delays {
            let Timer::At { ns } = lapic.timer() else {
                panic!("the timer has stopped");
            };
            prop_assert_eq!((ns - start) % period, 0);
            prop_assert!(ns > now);
            lapic.timer_expired(ns - 1, 0);
            prop_assert_eq!(lapic.pending(), None);
            now = ns + delay;
            lapic.timer_expired(now, 0);
            prop_assert_eq!(lapic.pending(), Some(0x40));
            lapic.acknowledge(0x40);
            lapic.eoi();
        }
    }

    /// The current count goes down with time, from the initial count to 0, and reaches it when the interrupt comes.
    #[test]
    fn one_shot_counts_are_monotone(
        initial in 1u32..,
        mut times in prop::collection::vec(0u64..1 << 40, 1..30),
    ) {
        let mut lapic = enabled();
        lapic.write(LVT_TIMER, 0x40, 0, 0);
        lapic.write(DIVIDE, 0x3, 0, 0);
        lapic.write(INITIAL_COUNT, initial, 0, 0);
        prop_assert_eq!(lapic.read(0x390, 0), initial);
        let expiry = u64::from(initial) * 16;
        prop_assert_eq!(lapic.timer(), Timer::At { ns: expiry });
        prop_assert_eq!(lapic.read(0x390, expiry - 1), 1);
        times.sort();
        let counts: Vec<u32> = times.iter().map(|now| lapic.read(0x390, *now)).collect();
        prop_assert!(counts.is_sorted_by(|a, b| a >= b));
        for (now, count) in times.iter().zip(counts) {
            prop_assert_eq!(count == 0, *now >= expiry);
        }
    }
}
