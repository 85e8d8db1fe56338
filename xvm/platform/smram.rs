// SPDX-License-Identifier: GPL-2.0

//! The state-save area of system management mode: 512 bytes of guest memory that end 64 KiB above SMBASE.
//!
//! CPUs with long mode have AMD's layout (APM vol 2, table 10-1), others that of the P6 family (SDM vol 3, table 33-1), of which the
//! parts that no manual names, hidden parts of segment registers and CR4, are where KVM has them: firmware and VMMs know
//! that one.
//!
//! The guest may write anything there.

/// Bytes of the area.
pub const SIZE: usize = 512;

/// Where it begins, from SMBASE.
pub const OFFSET: u64 = 0xfe00;

/// Where the guest's code for the mode begins, from SMBASE.
pub const ENTRY: u64 = 0x8000;

/// Revisions of the two layouts; bit 17: SMBASE can be relocated.
const REVISION: u64 = 0x2_0000;
const REVISION_LONG: u64 = 0x2_0064;

/// Bits of a segment's attributes as in a descriptor's bytes 5 and 6, without the limit's bits between them.
const LOW: u64 = 0xff;
const HIGH: u64 = 0xf00;

/// Attributes of a code segment: L, D.
const LONG_CODE: u64 = 1 << 9;
const DEFAULT_32: u64 = 1 << 10;

const EFER_LMA: u64 = 1 << 10;
const RFLAGS_VM: u64 = 1 << 17;
const CR0_PE: u64 = 1;

/// A segment register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Selector.
    pub selector: u64,
    /// Attributes: type 3:0, S 4, DPL 6:5, P 7, AVL 8, L 9, D/B 10, G 11.
    pub attributes: u64,
    /// Limit in bytes, granularity applied.
    pub limit: u64,
    /// Base address.
    pub base: u64,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u64,
}

/// What the area holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// General registers by their number in ModRM.
    pub gprs: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER, which a CPU without long mode doesn't save.
    pub efer: u64,
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
    /// ES, CS, SS, DS, FS, GS, LDTR, TR.
    pub segments: [Segment; 8],
    /// GDTR.
    pub gdtr: Table,
    /// IDTR.
    pub idtr: Table,
    /// SMBASE, which the guest may change.
    pub base: u64,
    /// The processor was halted; not zero on return: it is again.
    pub halted: u64,
    /// Interrupt shadows, as `KVM_GET_VCPU_EVENTS` has them: as in KVM in a byte that no manual names.
    pub shadow: u64,
}

/// Offsets, from the area's start, of what a layout has in a form of its own.
struct Layout {
    /// Bytes of a register.
    register: usize,
    /// Offset and size of the registers that aren't general.
    rip: usize,
    rflags: usize,
    cr0: usize,
    cr3: usize,
    cr4: (usize, usize),
    dr6: usize,
    dr7: usize,
    gdtr: (usize, usize),
    idtr: (usize, usize),
    revision: usize,
    base: usize,
    halted: (usize, usize),
    shadow: usize,
}

const LONG: Layout = Layout {
    register: 8,
    rip: 0x178,
    rflags: 0x170,
    cr0: 0x158,
    cr3: 0x150,
    cr4: (0x148, 8),
    dr6: 0x168,
    dr7: 0x160,
    gdtr: (0x68, 0x64),
    idtr: (0x88, 0x84),
    revision: 0xfc,
    base: 0x100,
    halted: (0xc9, 1),
    shadow: 0xcb,
};

const SHORT: Layout = Layout {
    register: 4,
    rip: 0x1f0,
    rflags: 0x1f4,
    cr0: 0x1fc,
    cr3: 0x1f8,
    cr4: (0x114, 4),
    dr6: 0x1cc,
    dr7: 0x1c8,
    gdtr: (0x174, 0x170),
    idtr: (0x158, 0x154),
    revision: 0xfc,
    base: 0xf8,
    halted: (0x102, 2),
    shadow: 0x11a,
};

/// EFER in the layout of CPUs with long mode.
const EFER: usize = 0xd0;

/// Segments of that layout, in the order of [`State::segments`]: selector, attributes, limit, base.
const SEGMENTS_LONG: [usize; 8] = [0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x70, 0x90];

/// R15, the first of the general registers there; the others follow downwards.
const GPRS_LONG: usize = 0x180;

/// Segments of the other layout: where the selector is, and where flags, limit and base are.
const SEGMENTS_SHORT: [(usize, usize); 8] = [
    (0x1a8, 0x184),
    (0x1ac, 0x190),
    (0x1b0, 0x19c),
    (0x1b4, 0x12c),
    (0x1b8, 0x138),
    (0x1bc, 0x144),
    (0x1c0, 0x178),
    (0x1c4, 0x15c),
];

/// EAX there, with the others behind it in ModRM's order.
const GPRS_SHORT: usize = 0x1d0;

/// Calls `each` for every field of `state` with its offset and size in the area of a CPU that has long mode (`long`) or hasn't.
fn visit(state: &mut State, long: bool, each: &mut impl FnMut(usize, usize, &mut u64)) {
    let layout = if long { LONG } else { SHORT };
    let mut revision = if long { REVISION_LONG } else { REVISION };
    let size = layout.register;
    each(layout.revision, 4, &mut revision);
    each(layout.base, 4, &mut state.base);
    each(layout.rip, size, &mut state.rip);
    each(layout.rflags, size, &mut state.rflags);
    each(layout.cr0, size, &mut state.cr0);
    each(layout.cr3, size, &mut state.cr3);
    each(layout.cr4.0, layout.cr4.1, &mut state.cr4);
    each(layout.dr6, size, &mut state.dr6);
    each(layout.dr7, size, &mut state.dr7);
    each(layout.halted.0, layout.halted.1, &mut state.halted);
    each(layout.shadow, 1, &mut state.shadow);
    for (table, at) in [
        (&mut state.gdtr, layout.gdtr),
        (&mut state.idtr, layout.idtr),
    ] {
        each(at.0, size, &mut table.base);
        each(at.1, 4, &mut table.limit);
    }
    if long {
        each(EFER, 8, &mut state.efer);
        visit_long(state, each);
    } else {
        visit_short(state, each);
    }
}

/// Attributes with room for the limit's bits, as in a descriptor.
fn spread(attributes: u64) -> u64 {
    (attributes & LOW) | ((attributes & HIGH) << 4)
}

/// The same without it.
fn gathered(spread: u64) -> u64 {
    (spread & LOW) | ((spread >> 4) & HIGH)
}

fn visit_long(state: &mut State, each: &mut impl FnMut(usize, usize, &mut u64)) {
    for (gpr, place) in state.gprs.iter_mut().rev().zip(0..) {
        each(GPRS_LONG + place * 8, 8, gpr);
    }
    for (segment, at) in state.segments.iter_mut().zip(SEGMENTS_LONG) {
        let mut spread = spread(segment.attributes);
        each(at, 2, &mut segment.selector);
        each(at + 2, 2, &mut spread);
        each(at + 4, 4, &mut segment.limit);
        each(at + 8, 8, &mut segment.base);
        segment.attributes = gathered(spread);
    }
}

fn visit_short(state: &mut State, each: &mut impl FnMut(usize, usize, &mut u64)) {
    for (gpr, place) in state.gprs.iter_mut().take(8).zip(0..) {
        each(GPRS_SHORT + place * 4, 4, gpr);
    }
    for (segment, (selector, hidden)) in state.segments.iter_mut().zip(SEGMENTS_SHORT) {
        // As in the descriptor's second half.
        let mut flags = spread(segment.attributes) << 8;
        // Four bytes, of which two count.
        each(selector, 4, &mut segment.selector);
        each(hidden, 4, &mut flags);
        each(hidden + 4, 4, &mut segment.limit);
        each(hidden + 8, 4, &mut segment.base);
        segment.attributes = gathered(flags >> 8);
        segment.selector &= 0xffff;
    }
}

/// Whether a linear address is canonical, of 48 bits.
fn is_canonical(address: u64) -> bool {
    address as i64 == ((address << 16) as i64) >> 16
}

impl State {
    /// The area of a CPU that has long mode or hasn't.
    pub fn encode(&self, long: bool) -> [u8; SIZE] {
        let mut area = [0; SIZE];
        visit(&mut { *self }, long, &mut |at, size, value| {
            let bytes = value.to_le_bytes();
            if let (Some(to), Some(from)) = (area.get_mut(at..at + size), bytes.get(..size)) {
                to.copy_from_slice(from);
            }
        });
        area
    }

    /// What an area says.
    pub fn decode(area: &[u8; SIZE], long: bool) -> Self {
        let mut state = Self::default();
        visit(&mut state, long, &mut |at, size, value| {
            let mut bytes = [0; 8];
            if let (Some(from), Some(to)) = (area.get(at..at + size), bytes.get_mut(..size)) {
                to.copy_from_slice(from);
            }
            *value = u64::from_le_bytes(bytes);
        });
        state
    }

    /// Whether a processor could be in such a state, as far as it doesn't depend on what the processor has. EFER has LMA as it
    /// is to be. RSM with another one ends in a shutdown (APM vol 2, 10.3.6; SDM vol 2, RSM).
    pub fn is_sound(&self) -> bool {
        let long = self.efer & EFER_LMA != 0;
        let code = self.segments[1].attributes;
        let instruction = match long && code & LONG_CODE != 0 {
            true => is_canonical(self.rip) && code & DEFAULT_32 == 0,
            false => self.rip >> 32 == 0,
        };
        let protected = self.cr0 & CR0_PE != 0;
        let virtual_8086 = self.rflags & RFLAGS_VM != 0;
        let bases = self.segments.iter().map(|segment| segment.base);
        (self.dr6 | self.dr7) >> 32 == 0
            && instruction
            && !(virtual_8086 && (long || !protected))
            && bases
                .chain([self.gdtr.base, self.idtr.base])
                .all(is_canonical)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> State {
        let segment = |n: u64| Segment {
            selector: 8 * n + 1,
            attributes: 0xa93 + n,
            limit: 0xfff0_0fff + n,
            base: 0x10_0000 * n,
        };
        State {
            gprs: core::array::from_fn(|n| 0x1111_0000 + n as u64),
            rip: 0x7fff_1234,
            rflags: 0x202,
            cr0: 0x8000_0011,
            cr3: 0x12_3000,
            cr4: 0x620,
            efer: 0xd01,
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            segments: core::array::from_fn(|n| segment(n as u64)),
            gdtr: Table {
                base: 0x5000,
                limit: 0x7f,
            },
            idtr: Table {
                base: 0x6000,
                limit: 0xfff,
            },
            base: 0x3_0000,
            halted: 1,
            shadow: 2,
        }
    }

    fn word(area: &[u8; SIZE], at: usize) -> u32 {
        u32::from_le_bytes(area[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn what_is_saved_comes_back() {
        let state = sample();
        assert_eq!(State::decode(&state.encode(true), true), state);
        let mut short = state;
        short.gprs[8..].fill(0);
        short.efer = 0;
        assert_eq!(State::decode(&state.encode(false), false), short);
    }

    #[test]
    fn fields_share_no_byte() {
        for long in [false, true] {
            let mut taken = [false; SIZE];
            visit(&mut sample(), long, &mut |at, size, _| {
                for byte in &mut taken[at..at + size] {
                    assert!(!core::mem::replace(byte, true), "{at:#x}");
                }
            });
        }
    }

    #[test]
    fn amd_places() {
        let area = sample().encode(true);
        // APM vol 2, table 10-1, from FE00h.
        assert_eq!(word(&area, 0xfc), 0x2_0064);
        assert_eq!(word(&area, 0x100), 0x3_0000);
        assert_eq!(word(&area, 0x178), 0x7fff_1234);
        assert_eq!(word(&area, 0x1f8), 0x1111_0000);
        assert_eq!(word(&area, 0x180), 0x1111_000f);
        assert_eq!(area[0xc9], 1);
        // CS: selector, attributes with a gap, limit, base.
        assert_eq!(word(&area, 0x10), 0xa094_0009);
        assert_eq!(word(&area, 0x14), 0xfff0_1000);
        assert_eq!(word(&area, 0x18), 0x10_0000);
    }

    #[test]
    fn p6_places() {
        let area = sample().encode(false);
        // SDM vol 3, table 33-1: from 7E00h of SMBASE + 8000h.
        assert_eq!(word(&area, 0x1fc), 0x8000_0011);
        assert_eq!(word(&area, 0x1f8), 0x12_3000);
        assert_eq!(word(&area, 0x1f4), 0x202);
        assert_eq!(word(&area, 0x1f0), 0x7fff_1234);
        assert_eq!(word(&area, 0x1d0), 0x1111_0000);
        assert_eq!(word(&area, 0x1ec), 0x1111_0007);
        assert_eq!(word(&area, 0x1ac), 9);
        assert_eq!(word(&area, 0xfc), 0x2_0000);
        assert_eq!(word(&area, 0xf8), 0x3_0000);
        assert_eq!(word(&area, 0x102) & 0xffff, 1);
        assert_eq!(word(&area, 0x190), 0xa0_9400);
    }

    #[test]
    fn unsound_states() {
        assert!(sample().is_sound());
        let spoilt = |spoil: fn(&mut State)| {
            let mut state = sample();
            spoil(&mut state);
            state.is_sound()
        };
        assert!(!spoilt(|state| state.dr6 |= 1 << 32));
        assert!(!spoilt(|state| state.dr7 |= 1 << 63));
        assert!(!spoilt(|state| state.segments[4].base = 1 << 47));
        assert!(!spoilt(|state| state.gdtr.base = 1 << 63));
        assert!(!spoilt(|state| state.rflags |= RFLAGS_VM));
        // The code segment isn't one of 64 bits.
        let narrow = |rip| {
            let mut state = sample();
            state.segments[1].attributes &= !LONG_CODE;
            state.rip = rip;
            state.is_sound()
        };
        assert!(narrow(0xffff_ffff));
        assert!(!narrow(1 << 32));
        assert!(!spoilt(
            |state| state.segments[1].attributes |= DEFAULT_32 | LONG_CODE
        ));
    }

    #[test]
    fn any_bytes_decode() {
        for seed in 0..64u8 {
            let area = core::array::from_fn(|n| seed.wrapping_mul(n as u8 | 1));
            for long in [false, true] {
                let state = State::decode(&area, long);
                state.is_sound();
                assert_eq!(State::decode(&state.encode(long), long), state);
            }
        }
    }
}
