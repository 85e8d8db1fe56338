// SPDX-License-Identifier: GPL-2.0

//! Integer arithmetic, logic and their flags (Intel SDM vol. 1, 3.4.3.1 and appendix A).

use super::insn::Insn;
use super::insn::Op;
use super::machine::Machine;
use super::machine::Stop;
use super::operand::load;
use super::operand::load_for_update;
use super::operand::mask;
use super::operand::store;

pub(super) const CF: u64 = 1 << 0;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
pub(super) const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const OF: u64 = 1 << 11;
const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// Sets the six status flags.
pub(super) fn set_status(machine: &mut impl Machine, flags: u64) {
    let rflags = machine.rflags();
    machine.set_rflags(rflags & !STATUS | flags & STATUS);
}

/// Sum of two numbers of `size` bytes and a carry of 0 or 1, with the status flags.
pub(super) fn add(a: u64, b: u64, carry: u64, size: u8) -> (u64, u64) {
    let (a, b) = (a & mask(size), b & mask(size));
    let sum = a.wrapping_add(b).wrapping_add(carry) & mask(size);
    let carries = a & b | (a | b) & !sum;
    let overflow = (a ^ sum) & (b ^ sum);
    (
        sum,
        arithmetic_flags(a ^ b ^ sum, carries, overflow, sum, size),
    )
}

/// Difference of two numbers of `size` bytes and a borrow of 0 or 1, with the status flags.
pub(super) fn sub(a: u64, b: u64, borrow: u64, size: u8) -> (u64, u64) {
    let (a, b) = (a & mask(size), b & mask(size));
    let difference = a.wrapping_sub(b).wrapping_sub(borrow) & mask(size);
    let borrows = !a & b | (!a | b) & difference;
    let overflow = (a ^ b) & (a ^ difference);
    let flags = arithmetic_flags(a ^ b ^ difference, borrows, overflow, difference, size);
    (difference, flags)
}

fn arithmetic_flags(half: u64, carries: u64, overflow: u64, result: u64, size: u8) -> u64 {
    let mut flags = result_flags(result, size);
    if half & (1 << 4) != 0 {
        flags |= AF;
    }
    if carries & sign(size) != 0 {
        flags |= CF;
    }
    if overflow & sign(size) != 0 {
        flags |= OF;
    }
    flags
}

/// ZF, SF and PF. The logical instructions clear the others: CF and OF by definition; AF, which the manuals leave
/// undefined, as CPUs do.
fn result_flags(result: u64, size: u8) -> u64 {
    let mut flags = 0;
    if result & mask(size) == 0 {
        flags |= ZF;
    }
    if result & sign(size) != 0 {
        flags |= SF;
    }
    if (result & 0xff).count_ones() % 2 == 0 {
        flags |= PF;
    }
    flags
}

/// The sign bit of a number of `size` bytes.
fn sign(size: u8) -> u64 {
    mask(size) & !(mask(size) >> 1)
}

/// ADD, OR, ADC, SBB, AND, SUB, XOR, CMP, TEST.
pub(super) fn binary(machine: &mut impl Machine, insn: &Insn) -> Result<(), Stop> {
    let [destination, source] = &insn.operands;
    let size = destination.size();
    let writes = !matches!(insn.op, Op::Cmp | Op::Test);
    // Only one of the two is memory.
    let a = if writes {
        load_for_update(machine, insn, destination)?
    } else {
        load(machine, insn, destination)?
    };
    let b = load(machine, insn, source)?;
    let carry = machine.rflags() & CF;
    let (result, flags) = match insn.op {
        Op::Add => add(a, b, 0, size),
        Op::Adc => add(a, b, carry, size),
        Op::Sub | Op::Cmp => sub(a, b, 0, size),
        Op::Sbb => sub(a, b, carry, size),
        Op::Or => (a | b, result_flags(a | b, size)),
        Op::Xor => (a ^ b, result_flags(a ^ b, size)),
        Op::And | Op::Test => (a & b, result_flags(a & b, size)),
        _ => return Err(Stop::Unknown),
    };
    if writes {
        store(machine, insn, destination, result)?;
    }
    set_status(machine, flags);
    Ok(())
}

/// INC, DEC, NOT, NEG.
pub(super) fn unary(machine: &mut impl Machine, insn: &Insn) -> Result<(), Stop> {
    let operand = &insn.operands[0];
    let size = operand.size();
    let a = load_for_update(machine, insn, operand)?;
    let old = machine.rflags();
    let (result, flags) = match insn.op {
        // These two keep CF.
        Op::Inc => {
            let (result, flags) = add(a, 1, 0, size);
            (result, flags & !CF | old & CF)
        }
        Op::Dec => {
            let (result, flags) = sub(a, 1, 0, size);
            (result, flags & !CF | old & CF)
        }
        Op::Neg => sub(0, a, 0, size),
        Op::Not => (!a, old),
        _ => return Err(Stop::Unknown),
    };
    store(machine, insn, operand, result)?;
    set_status(machine, flags);
    Ok(())
}
