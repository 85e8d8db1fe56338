// SPDX-License-Identifier: GPL-2.0

//! Memory operand → linear address, with the checks of segmentation (Intel SDM vol. 3, chapter 5 and vol. 1, 3.3.7.1;
//! AMD APM vol. 2, 4.12 and 5.3.1).

use super::super::vectors;
use super::insn::Base;
use super::insn::Insn;
use super::insn::Memory;
use super::machine::CodeSize;
use super::machine::Fault;
use super::machine::Machine;
use super::machine::Mode;
use super::machine::Segment;
use super::machine::SegmentName;
use super::machine::Stop;

/// Bits of a descriptor type, for code and data segments.
const TYPE_CODE: u8 = 8;
const TYPE_EXPAND_DOWN: u8 = 4;
const TYPE_WRITABLE_DATA: u8 = 2;
const TYPE_READABLE_CODE: u8 = 2;

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Read,
    Write,
}

/// The bits of an address of `address_size` bytes.
pub(super) fn address_mask(address_size: u8) -> u64 {
    match address_size {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

/// The offset in its segment.
pub(super) fn offset(machine: &impl Machine, insn: &Insn, memory: &Memory) -> u64 {
    let base = match memory.base {
        Base::None => 0,
        Base::Gpr(index) => machine.gpr(index),
        Base::NextRip => machine.rip().wrapping_add(u64::from(insn.length)),
    };
    let index = memory.index.map_or(0, |index| machine.gpr(index));
    base.wrapping_add(index.wrapping_mul(u64::from(memory.scale)))
        .wrapping_add(memory.displacement)
        & address_mask(insn.address_size)
}

/// The linear address of `length` bytes (at least one) at `offset` of a segment, or #GP or #SS.
pub(super) fn checked(
    machine: &impl Machine,
    name: SegmentName,
    offset: u64,
    length: u64,
    direction: Direction,
) -> Result<u64, Stop> {
    let segment = machine.segment(name);
    let first = linear(machine, name, &segment, offset);
    let span = length.saturating_sub(1);
    let permitted = match (machine.code_size(), machine.mode()) {
        (CodeSize::Bits64, _) => is_canonical(first) && is_canonical(first.wrapping_add(span)),
        (_, Mode::Protected) => {
            is_accessible(&segment, direction) && is_inside(&segment, offset, span)
        }
        _ => offset.saturating_add(span) <= u64::from(segment.limit),
    };
    if permitted {
        Ok(first)
    } else {
        Err(Stop::Fault(segment_fault(machine, name)))
    }
}

fn linear(machine: &impl Machine, name: SegmentName, segment: &Segment, offset: u64) -> u64 {
    match (machine.code_size(), name) {
        (CodeSize::Bits64, SegmentName::Fs | SegmentName::Gs) => segment.base.wrapping_add(offset),
        (CodeSize::Bits64, _) => offset,
        _ => segment.base.wrapping_add(offset) & 0xffff_ffff,
    }
}

/// Bits 63:47 are equal: 48-bit linear addresses, without LA57.
fn is_canonical(linear: u64) -> bool {
    (linear << 16) as i64 >> 16 == linear as i64
}

fn is_accessible(segment: &Segment, direction: Direction) -> bool {
    if segment.unusable || !segment.present || !segment.s {
        return false;
    }
    let code = segment.typ & TYPE_CODE != 0;
    match direction {
        Direction::Read => !code || segment.typ & TYPE_READABLE_CODE != 0,
        Direction::Write => !code && segment.typ & TYPE_WRITABLE_DATA != 0,
    }
}

fn is_inside(segment: &Segment, offset: u64, span: u64) -> bool {
    let limit = u64::from(segment.limit);
    let last = offset.saturating_add(span);
    if segment.typ & (TYPE_CODE | TYPE_EXPAND_DOWN) == TYPE_EXPAND_DOWN {
        let upper = if segment.db { 0xffff_ffff } else { 0xffff };
        offset > limit && last <= upper
    } else {
        last <= limit
    }
}

fn segment_fault(machine: &impl Machine, name: SegmentName) -> Fault {
    Fault {
        vector: match name {
            SegmentName::Ss => vectors::STACK_FAULT,
            _ => vectors::GENERAL_PROTECTION,
        },
        error_code: match machine.mode() {
            Mode::Real => None,
            _ => Some(0),
        },
        address: None,
    }
}
