// SPDX-License-Identifier: GPL-2.0

//! The shortest way to the instruction that drivers access devices with: MOV of two, four or eight bytes between a register and memory in
//! 64-bit code, with no prefix but REX.
//!
//! [`decode`](super::decode()) tries this first. What it says of these instructions must not differ from what the tables
//! say, which a test compares.

use super::insn::Base;
use super::insn::Insn;
use super::insn::Memory;
use super::insn::Op;
use super::insn::Operand;
use super::insn::Register;
use super::insn::Repeat;
use super::insn::RBP;
use super::insn::RSP;
use super::machine::SegmentName;

const REX_W: u8 = 8;
const REX_R: u8 = 4;
const REX_B: u8 = 1;

/// Such a MOV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShortMove {
    /// Bytes of the instruction.
    pub length: u8,
    /// Bytes that are moved: 4 or 8.
    pub size: u8,
    /// Between what and memory.
    pub with: MovedWith,
    /// General-purpose register with the address, to which the displacement is added.
    pub base: u8,
    /// Sign-extended.
    pub displacement: u64,
}

/// The other operand of a [`ShortMove`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MovedWith {
    /// Memory to a register.
    To(u8),
    /// A register to memory.
    From(u8),
    /// A sign-extended immediate to memory.
    Immediate(u64),
}

impl ShortMove {
    /// Decodes the instruction at the start of `bytes`, 64-bit code, if it is such a MOV; without a SIB byte.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (rex, rest) = match bytes {
            [rex @ 0x40..=0x4f, rest @ ..] => (*rex, rest),
            _ => (0, bytes),
        };
        let (&[opcode @ (0x89 | 0x8b | 0xc7), modrm], rest) = rest.split_first_chunk()? else {
            return None;
        };
        let (mode, rm) = (modrm >> 6, modrm & 7);
        // A register operand, a SIB byte, or RIP-relative.
        if mode == 3 || rm == 4 || (mode == 0 && rm == 5) {
            return None;
        }
        let (displacement, width): (i64, usize) = match mode {
            0 => (0, 0),
            1 => (i64::from(*rest.first()? as i8), 1),
            _ => (i64::from(i32::from_le_bytes(*rest.first_chunk()?)), 4),
        };
        let register = (modrm >> 3) & 7 | ((rex & REX_R) << 1);
        let mut length = 2 + width + usize::from(rex != 0);
        let with = match opcode {
            0x89 => MovedWith::From(register),
            0x8b => MovedWith::To(register),
            _ if modrm & 0x38 == 0 => {
                let immediate = i32::from_le_bytes(*rest.get(width..)?.first_chunk()?);
                length += 4;
                MovedWith::Immediate(i64::from(immediate) as u64)
            }
            _ => return None,
        };
        Some(Self {
            length: length as u8,
            size: if rex & REX_W != 0 { 8 } else { 4 },
            with,
            base: rm | ((rex & REX_B) << 3),
            displacement: displacement as u64,
        })
    }
}

/// Decodes the instruction at the start of `bytes` as [`ShortMove::decode`] does.
pub(super) fn decode(bytes: &[u8]) -> Option<Insn> {
    let short = ShortMove::decode(bytes)?;
    let size = short.size;
    let memory = Operand::Memory(Memory {
        segment: match short.base {
            RSP | RBP => SegmentName::Ss,
            _ => SegmentName::Ds,
        },
        base: Base::Gpr(short.base),
        index: None,
        scale: 1,
        displacement: short.displacement,
        size,
    });
    let register = |index| {
        Operand::Register(Register {
            index,
            size,
            high: false,
        })
    };
    Some(Insn {
        length: short.length,
        op: Op::Mov,
        operand_size: size,
        address_size: 8,
        repeat: Repeat::None,
        lock: false,
        operands: match short.with {
            MovedWith::To(index) => [register(index), memory],
            MovedWith::From(index) => [memory, register(index)],
            MovedWith::Immediate(value) => [memory, Operand::Immediate(value)],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::super::decode::decode_by_tables;
    use super::super::CodeSize;
    use super::*;

    #[test]
    fn agrees_with_the_tables() {
        let mut seen = 0;
        for rex in [
            None,
            Some(0x40u8),
            Some(0x41),
            Some(0x44),
            Some(0x48),
            Some(0x4d),
            Some(0x4f),
            Some(0x42),
        ] {
            for opcode in 0..=255u8 {
                for modrm in 0..=255u8 {
                    let mut bytes = [
                        0x9cu8, 0x21, 0xf3, 0x44, 0x85, 0x06, 0xd7, 0x18, 0x29, 0x3a, 0xfb, 0x4c,
                        0x5d, 0x6e, 0x7f,
                    ];
                    let at = usize::from(rex.is_some());
                    bytes[0] = rex.unwrap_or(opcode);
                    bytes[at] = opcode;
                    bytes[at + 1] = modrm;
                    if let Some(insn) = decode(&bytes) {
                        assert_eq!(
                            decode_by_tables(&bytes, CodeSize::Bits64),
                            Ok(insn),
                            "{bytes:x?}"
                        );
                        let end = usize::from(insn.length);
                        assert_eq!(decode(&bytes[..end]), Some(insn));
                        assert_eq!(decode(&bytes[..end - 1]), None);
                        seen += 1;
                    }
                }
            }
        }
        assert!(seen > 2000, "{seen}");
    }
}
