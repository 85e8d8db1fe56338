// SPDX-License-Identifier: GPL-2.0

//! IN, OUT, INS, OUTS.
//!
//! A repeated INS or OUTS hands its elements to the port in batches, so that a block goes to userspace in one exit.

use super::address;
use super::address::address_mask;
use super::address::Direction;
use super::execute::finish;
use super::insn::Insn;
use super::insn::Memory;
use super::insn::Op;
use super::insn::Operand;
use super::insn::Repeat;
use super::insn::RDX;
use super::machine::Machine;
use super::machine::Stop;
use super::operand::load;
use super::operand::store;
use super::string;

const PAGE_SIZE: u64 = 4096;

/// Bytes in a batch: they are on the stack.
const BATCH: usize = 256;

/// IN.
pub(super) fn input(machine: &mut impl Machine, insn: &Insn) -> Result<(), Stop> {
    let [register, port] = &insn.operands;
    let port = load(machine, insn, port)? as u16;
    machine.io_permitted(port, register.size())?;
    let mut bytes = [0; 8];
    let data = bytes
        .get_mut(..usize::from(register.size()))
        .ok_or(Stop::Unknown)?;
    machine.io_in(port, register.size(), data)?;
    store(machine, insn, register, u64::from_le_bytes(bytes))
}

/// OUT.
pub(super) fn output(machine: &mut impl Machine, insn: &Insn) -> Result<(), Stop> {
    let [port, register] = &insn.operands;
    let port = load(machine, insn, port)? as u16;
    machine.io_permitted(port, register.size())?;
    let bytes = load(machine, insn, register)?.to_le_bytes();
    let data = bytes
        .get(..usize::from(register.size()))
        .ok_or(Stop::Unknown)?;
    machine.io_out(port, register.size(), data)
}

/// INS and OUTS: once, or until the repetition ends, or until as many bytes are handled as one call may.
pub(super) fn execute_string(machine: &mut impl Machine, insn: &Insn) -> Result<(), Stop> {
    let ((Operand::Memory(memory), _) | (_, Operand::Memory(memory))) =
        (insn.operands[0], insn.operands[1])
    else {
        return Err(Stop::Unknown);
    };
    if insn.repeat == Repeat::None {
        transfer(machine, insn, &memory, 1)?;
        finish(machine, insn);
        return Ok(());
    }
    let mut bytes = 0;
    while bytes < string::MAX_BYTES {
        let remaining = string::remaining(machine, insn);
        if remaining == 0 {
            finish(machine, insn);
            break;
        }
        let elements = transfer(machine, insn, &memory, remaining)?;
        string::decrease_count(machine, insn, elements);
        machine.commit();
        bytes += elements * u64::from(memory.size);
    }
    Ok(())
}

/// Transfers one batch of at most `wanted` elements; returns how many.
fn transfer(
    machine: &mut impl Machine,
    insn: &Insn,
    memory: &Memory,
    wanted: u64,
) -> Result<u64, Stop> {
    let port = machine.gpr(RDX) as u16;
    machine.io_permitted(port, memory.size)?;
    let (linear, elements) = locate(machine, insn, memory, wanted)?;
    let bytes = elements * u64::from(memory.size);
    let mut batch = [0; BATCH];
    let data = batch.get_mut(..bytes as usize).ok_or(Stop::Unknown)?;
    if insn.op == Op::Ins {
        // A fault must not come after the device has given its data away.
        machine.check_write(linear, data.len())?;
        machine.io_in(port, memory.size, data)?;
        machine.write(linear, data)?;
    } else {
        machine.read(linear, data)?;
        machine.io_out(port, memory.size, data)?;
    }
    string::advance_port_string(machine, insn, bytes);
    Ok(elements)
}

/// Linear address and number of elements of the next batch: more than one only if all are in one page and in the
/// segment, so that no fault depends on how they are batched.
fn locate(
    machine: &impl Machine,
    insn: &Insn,
    memory: &Memory,
    wanted: u64,
) -> Result<(u64, u64), Stop> {
    let direction = match insn.op {
        Op::Ins => Direction::Write,
        _ => Direction::Read,
    };
    let size = u64::from(memory.size.max(1));
    let offset = address::offset(machine, insn, memory);
    let linear = address::checked(machine, memory.segment, offset, size, direction)?;
    let room = (address_mask(insn.address_size) - offset)
        .min(PAGE_SIZE - linear % PAGE_SIZE)
        .min(BATCH as u64);
    let elements = wanted.min(room / size);
    let several = elements > 1 && !string::is_downward(machine);
    let length = elements.saturating_mul(size);
    if several && address::checked(machine, memory.segment, offset, length, direction).is_ok() {
        Ok((linear, elements))
    } else {
        Ok((linear, 1))
    }
}
