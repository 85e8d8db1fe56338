// SPDX-License-Identifier: GPL-2.0

//! MOVS, STOS, LODS, CMPS, SCAS and their repetition (Intel SDM vol. 1, 7.3.9 and vol. 2, REP).

use super::address::address_mask;
use super::arithmetic;
use super::arithmetic::ZF;
use super::execute::finish;
use super::insn::Insn;
use super::insn::Op;
use super::insn::Operand;
use super::insn::Repeat;
use super::insn::RCX;
use super::insn::RDI;
use super::insn::RSI;
use super::machine::Machine;
use super::machine::Stop;
use super::operand;
use super::operand::load;
use super::operand::store;

const DF: u64 = 1 << 10;

/// Bytes that one call handles at most, so that interrupts are not held off for long.
pub(super) const MAX_BYTES: u64 = 4096;

/// Executes a string instruction: once, or until it ends, or until [`MAX_BYTES`] are handled.
pub(super) fn execute(machine: &mut impl Machine, insn: &Insn) -> Result<(), Stop> {
    if insn.repeat == Repeat::None {
        if let Some(flags) = iterate(machine, insn)? {
            arithmetic::set_status(machine, flags);
        }
        finish(machine, insn);
        return Ok(());
    }
    let size = u64::from(insn.operands[0].size().max(1));
    for _ in 0..MAX_BYTES / size {
        if remaining(machine, insn) == 0 {
            break;
        }
        let flags = iterate(machine, insn)?;
        let left = decrease_count(machine, insn, 1);
        // Flags are set at the end only: a fault in a later iteration finds them as they were before the first.
        match flags {
            Some(flags) if left == 0 || ends(insn.repeat, flags) => {
                arithmetic::set_status(machine, flags);
                finish(machine, insn);
                return Ok(());
            }
            _ => machine.commit(),
        }
    }
    if remaining(machine, insn) == 0 {
        finish(machine, insn);
    }
    Ok(())
}

/// REPE ends when ZF = 0, REPNE when ZF = 1.
fn ends(repeat: Repeat, flags: u64) -> bool {
    (repeat == Repeat::Repne) == (flags & ZF != 0)
}

/// One iteration: its accesses, then its pointers. Returns the status flags of a comparison.
fn iterate(machine: &mut impl Machine, insn: &Insn) -> Result<Option<u64>, Stop> {
    let [first, second] = &insn.operands;
    let size = first.size();
    let flags = match insn.op {
        Op::Cmps | Op::Scas => {
            let a = load(machine, insn, first)?;
            let b = load(machine, insn, second)?;
            Some(arithmetic::sub(a, b, 0, size).1)
        }
        _ => {
            let value = load(machine, insn, second)?;
            store(machine, insn, first, value)?;
            None
        }
    };
    if matches!(insn.op, Op::Movs | Op::Cmps | Op::Lods) {
        advance(machine, insn, RSI, u64::from(size));
    }
    if !matches!(insn.op, Op::Lods) {
        advance(machine, insn, RDI, u64::from(size));
    }
    Ok(flags)
}

/// The repeat count, in a register as wide as an address.
pub(super) fn remaining(machine: &impl Machine, insn: &Insn) -> u64 {
    machine.gpr(RCX) & address_mask(insn.address_size)
}

/// Counts `iterations` as done; returns how many are left.
pub(super) fn decrease_count(machine: &mut impl Machine, insn: &Insn, iterations: u64) -> u64 {
    let left = remaining(machine, insn).wrapping_sub(iterations);
    operand::write_register(machine, &operand::low(RCX, insn.address_size), left);
    left
}

/// Moves RSI or RDI by `bytes`, in the direction of RFLAGS.DF.
fn advance(machine: &mut impl Machine, insn: &Insn, index: u8, bytes: u64) {
    let pointer = machine.gpr(index);
    let moved = if is_downward(machine) {
        pointer.wrapping_sub(bytes)
    } else {
        pointer.wrapping_add(bytes)
    };
    operand::write_register(machine, &operand::low(index, insn.address_size), moved);
}

/// RFLAGS.DF.
pub(super) fn is_downward(machine: &impl Machine) -> bool {
    machine.rflags() & DF != 0
}

/// Moves the pointer of INS or OUTS by `bytes`.
pub(super) fn advance_port_string(machine: &mut impl Machine, insn: &Insn, bytes: u64) {
    let index = match insn.operands[0] {
        Operand::Memory(_) => RDI,
        _ => RSI,
    };
    advance(machine, insn, index, bytes);
}
