// SPDX-License-Identifier: GPL-2.0

//! BT, BTS, BTR, BTC (Intel SDM vol. 2, 3.1.1.9 "Bit(BitBase, BitOffset)").

use super::arithmetic::CF;
use super::insn::Insn;
use super::insn::Memory;
use super::insn::Op;
use super::insn::Operand;
use super::machine::Machine;
use super::machine::Stop;
use super::operand::load;
use super::operand::load_for_update;
use super::operand::store;

pub(super) fn execute(machine: &mut impl Machine, insn: &Insn) -> Result<(), Stop> {
    let [base, source] = &insn.operands;
    let bit_offset = load(machine, insn, source)?;
    let operand = match (base, source) {
        (Operand::Memory(memory), Operand::Register(_)) => {
            Operand::Memory(element(memory, bit_offset))
        }
        _ => *base,
    };
    let bit = match base.size() {
        2 => 1 << (bit_offset % 16),
        4 => 1 << (bit_offset % 32),
        _ => 1 << (bit_offset % 64),
    };
    let old = match insn.op {
        Op::Bt => load(machine, insn, &operand)?,
        _ => load_for_update(machine, insn, &operand)?,
    };
    match insn.op {
        Op::Bts => store(machine, insn, &operand, old | bit)?,
        Op::Btr => store(machine, insn, &operand, old & !bit)?,
        Op::Btc => store(machine, insn, &operand, old ^ bit)?,
        _ => (),
    }
    let carry = if old & bit != 0 { CF } else { 0 };
    let rflags = machine.rflags();
    machine.set_rflags(rflags & !CF | carry);
    Ok(())
}

/// A bit offset in a register is signed and reaches beyond the operand: the element of the bit string that holds it.
fn element(memory: &Memory, bit_offset: u64) -> Memory {
    let (signed, size_log2) = match memory.size {
        2 => (i64::from(bit_offset as i16), 1),
        4 => (i64::from(bit_offset as i32), 2),
        _ => (bit_offset as i64, 3),
    };
    // Rounded down to whole elements, also when negative.
    let bytes = (signed >> (3 + size_log2)) << size_log2;
    Memory {
        displacement: memory.displacement.wrapping_add(bytes as u64),
        ..*memory
    }
}
