// SPDX-License-Identifier: GPL-2.0

//! Reading and writing operands.

use super::address;
use super::address::Direction;
use super::insn::Insn;
use super::insn::Memory;
use super::insn::Operand;
use super::insn::Register;
use super::machine::Machine;
use super::machine::Stop;

/// The low `size` bytes (1, 2, 4 or 8).
pub(super) fn mask(size: u8) -> u64 {
    match size {
        1 => 0xff,
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

/// The value of an operand: zero-extended, or an immediate as it is in the instruction.
pub fn load(machine: &mut impl Machine, insn: &Insn, operand: &Operand) -> Result<u64, Stop> {
    match operand {
        Operand::Register(register) => Ok(read_register(machine, register)),
        Operand::Memory(memory) => {
            let linear = resolve(machine, insn, memory, Direction::Read)?;
            read_memory(machine, linear, memory.size)
        }
        Operand::Immediate(value) => Ok(*value),
        Operand::None | Operand::Control(_) | Operand::Debug(_) => Err(Stop::Unknown),
    }
}

/// The value of an operand that the same instruction writes afterwards.
pub(super) fn load_for_update(
    machine: &mut impl Machine,
    insn: &Insn,
    operand: &Operand,
) -> Result<u64, Stop> {
    let Operand::Memory(memory) = operand else {
        return load(machine, insn, operand);
    };
    let linear = resolve(machine, insn, memory, Direction::Write)?;
    machine.check_write(linear, usize::from(memory.size))?;
    read_memory(machine, linear, memory.size)
}

/// Writes an operand: `value` is cut to its size. A register of 4 bytes is zero-extended to 8.
pub fn store(
    machine: &mut impl Machine,
    insn: &Insn,
    operand: &Operand,
    value: u64,
) -> Result<(), Stop> {
    match operand {
        Operand::Register(register) => {
            write_register(machine, register, value);
            Ok(())
        }
        Operand::Memory(memory) => {
            let linear = resolve(machine, insn, memory, Direction::Write)?;
            let bytes = value.to_le_bytes();
            let data = bytes.get(..usize::from(memory.size)).ok_or(Stop::Unknown)?;
            machine.write(linear, data)
        }
        _ => Err(Stop::Unknown),
    }
}

/// The register of `size` bytes at the low end of a general-purpose register.
pub(super) fn low(index: u8, size: u8) -> Register {
    Register {
        index,
        size,
        high: false,
    }
}

/// Reads a register or part of one, zero-extended.
pub(super) fn read_register(machine: &impl Machine, register: &Register) -> u64 {
    let value = machine.gpr(register.index);
    let shifted = if register.high { value >> 8 } else { value };
    shifted & mask(register.size)
}

/// Writes a register or part of one (Intel SDM vol. 1, 3.4.1.1).
pub(super) fn write_register(machine: &mut impl Machine, register: &Register, value: u64) {
    let old = machine.gpr(register.index);
    let value = value & mask(register.size);
    let new = match (register.size, register.high) {
        (1, true) => old & !0xff00 | (value << 8),
        (1, false) | (2, _) => old & !mask(register.size) | value,
        _ => value,
    };
    machine.set_gpr(register.index, new);
}

fn resolve(
    machine: &impl Machine,
    insn: &Insn,
    memory: &Memory,
    direction: Direction,
) -> Result<u64, Stop> {
    let offset = address::offset(machine, insn, memory);
    let length = u64::from(memory.size);
    address::checked(machine, memory.segment, offset, length, direction)
}

fn read_memory(machine: &mut impl Machine, linear: u64, size: u8) -> Result<u64, Stop> {
    let mut bytes = [0; 8];
    let data = bytes.get_mut(..usize::from(size)).ok_or(Stop::Unknown)?;
    machine.read(linear, data)?;
    Ok(u64::from_le_bytes(bytes))
}
