// SPDX-License-Identifier: GPL-2.0

//! Bytes → instruction (Intel SDM vol. 2, chapter 2; AMD APM vol. 3, chapter 1).

use super::insn::Insn;
use super::insn::Op;
use super::insn::Operand;
use super::insn::Repeat;
use super::length;
use super::length::Immediate;
use super::length::Map;
use super::machine::CodeSize;
use super::modrm::ModRm;
use super::opcodes;
use super::opcodes::Place;
use super::opcodes::Selector;
use super::place::Parts;
use super::prefix::Prefixes;
use super::prefix::Reader;
use super::prefix::REX_B;
use super::short;

/// Why bytes are no instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The instruction goes on after the bytes given.
    Truncated,
    /// Longer than 15 bytes: #GP.
    TooLong,
    /// Not in the opcode maps.
    Unknown,
}

/// Decodes the instruction at the start of `bytes`.
pub fn decode(bytes: &[u8], code_size: CodeSize) -> Result<Insn, DecodeError> {
    if code_size == CodeSize::Bits64 {
        if let Some(insn) = short::decode(bytes) {
            return Ok(insn);
        }
    }
    decode_by_tables(bytes, code_size)
}

/// Decodes any instruction.
pub(super) fn decode_by_tables(bytes: &[u8], code_size: CodeSize) -> Result<Insn, DecodeError> {
    let mut reader = Reader::new(bytes);
    let (prefixes, first) = Prefixes::read(&mut reader, code_size)?;
    if is_vector_prefix(&reader, first, code_size)? {
        return decode_vector(reader, &prefixes, first);
    }
    let (map, opcode) = match first {
        0x0f => match reader.byte()? {
            0x38 => (Map::ThreeByte38, reader.byte()?),
            0x3a => (Map::ThreeByte3a, reader.byte()?),
            opcode => (Map::TwoByte, opcode),
        },
        opcode => (Map::OneByte, opcode),
    };
    let bits64 = code_size == CodeSize::Bits64;
    let shape = length::shape(map, opcode, bits64).ok_or(DecodeError::Unknown)?;
    let modrm = ModRm::read(&mut reader, shape.modrm, &prefixes)?;
    // POP has ModRM.reg = 0; the rest is the prefix of XOP instructions.
    if map == Map::OneByte && opcode == 0x8f && modrm.reg() != 0 {
        return Err(DecodeError::Unknown);
    }
    let immediate = read_immediate(&mut reader, shape.immediate, &prefixes, &modrm)?;
    let selector = Selector {
        opcode,
        modrm: modrm.byte,
        bits64,
        rex_b: prefixes.rex & REX_B != 0,
        operand_override: prefixes.operand_override,
        rep: prefixes.repeat == Repeat::Rep,
        repne: prefixes.repeat == Repeat::Repne,
    };
    let (op, destination, source) = match map {
        Map::OneByte => opcodes::one_byte(&selector),
        Map::TwoByte => opcodes::two_byte(&selector),
        Map::ThreeByte38 => opcodes::three_byte_38(&selector),
        Map::ThreeByte3a => (Op::Other, Place::None, Place::None),
    };
    let parts = Parts {
        prefixes: &prefixes,
        opcode,
        modrm: &modrm,
        immediate,
    };
    Ok(prefixes.insn(
        &reader,
        op,
        [parts.operand(destination), parts.operand(source)],
    ))
}

/// Reads the immediate, sign-extended; what no operand is made of is skipped, and is 0.
fn read_immediate(
    reader: &mut Reader<'_>,
    immediate: Immediate,
    prefixes: &Prefixes,
    modrm: &ModRm,
) -> Result<u64, DecodeError> {
    let at_most_4 = prefixes.operand_size.min(4);
    match immediate {
        Immediate::None => Ok(0),
        Immediate::Byte => reader.signed(1),
        Immediate::Word => reader.signed(2),
        Immediate::OperandAtMost4 => reader.signed(at_most_4),
        Immediate::Operand => reader.signed(prefixes.operand_size),
        Immediate::Branch if prefixes.code_size == CodeSize::Bits64 => reader.signed(4),
        Immediate::Branch => reader.signed(at_most_4),
        // Not signed, but cut to the address size when it is used.
        Immediate::Offset => reader.signed(prefixes.address_size),
        Immediate::Far => reader.skip(at_most_4 + 2).map(|()| 0),
        Immediate::Enter => reader.skip(3).map(|()| 0),
        Immediate::Group3Byte if modrm.reg() < 2 => reader.signed(1),
        Immediate::Group3Operand if modrm.reg() < 2 => reader.signed(at_most_4),
        Immediate::Group3Byte | Immediate::Group3Operand => Ok(0),
        Immediate::Sse4a => {
            let sse4a = prefixes.operand_override || prefixes.repeat == Repeat::Repne;
            reader.skip(if sse4a { 2 } else { 0 }).map(|()| 0)
        }
    }
}

/// Whether `first`, which was just read, is a VEX or EVEX prefix. Outside of 64-bit code it is LES, LDS or BOUND if
/// the next byte is a ModRM byte of a memory operand.
fn is_vector_prefix(
    reader: &Reader<'_>,
    first: u8,
    code_size: CodeSize,
) -> Result<bool, DecodeError> {
    Ok(match first {
        0x62 | 0xc4 | 0xc5 => code_size == CodeSize::Bits64 || reader.peek()? >> 6 == 3,
        _ => false,
    })
}

/// The rest of an instruction with a VEX or EVEX prefix (Intel SDM vol. 2, 2.3.5 and 2.7): only the length.
fn decode_vector(
    mut reader: Reader<'_>,
    prefixes: &Prefixes,
    first: u8,
) -> Result<Insn, DecodeError> {
    let other_prefix = prefixes.operand_override
        || prefixes.lock
        || prefixes.rex != 0
        || prefixes.repeat != Repeat::None;
    if other_prefix {
        return Err(DecodeError::Unknown);
    }
    let payload = reader.byte()?;
    let map = match first {
        0xc5 => 1,
        0xc4 => {
            reader.skip(1)?;
            payload & 0x1f
        }
        _ => {
            reader.skip(2)?;
            payload & 0xf
        }
    };
    let opcode = reader.byte()?;
    let shape = length::vector_shape(map, opcode, first == 0x62).ok_or(DecodeError::Unknown)?;
    let modrm = ModRm::read(&mut reader, shape.modrm, prefixes)?;
    read_immediate(&mut reader, shape.immediate, prefixes, &modrm)?;
    Ok(prefixes.insn(&reader, Op::Other, [Operand::None; 2]))
}
