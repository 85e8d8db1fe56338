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
use core::mem::size_of;

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

/// Bytes of an instruction, at least as many as any has; the first is the lowest.
pub type Code = u128;

impl ShortMove {
    /// Decodes the instruction at the start of `code`, 64-bit code, if it is such a MOV; without a SIB byte.
    #[inline]
    pub fn decode(code: Code) -> Option<Self> {
        // With its prefix, opcode, ModRM and displacement it has seven bytes at most; an immediate follows.
        let first = code as u64;
        let (rex, word) = match first & 0xf0 {
            0x40 => (first as u8, first >> 8),
            _ => (0, first),
        };
        let (opcode, modrm) = (word as u8, (word >> 8) as u8);
        let (mode, rm) = (modrm >> 6, modrm & 7);
        // A SIB byte.
        if rm == 4 {
            return None;
        }
        let behind = (word >> 16) as u32;
        let (displacement, width) = match mode {
            // RIP-relative.
            0 if rm == 5 => return None,
            0 => (0, 0),
            1 => (behind as i8 as u64, 1),
            2 => (behind as i32 as u64, 4),
            // A register operand.
            _ => return None,
        };
        let register = ((modrm >> 3) & 7) | ((rex & REX_R) << 1);
        let mut length = 2 + width + u8::from(rex != 0);
        let with = match opcode {
            0x89 => MovedWith::From(register),
            0x8b => MovedWith::To(register),
            0xc7 if modrm & 0x38 == 0 => {
                let immediate = (code >> (8 * (length & 7))) as i32;
                length += 4;
                MovedWith::Immediate(immediate as u64)
            }
            _ => return None,
        };
        Some(Self {
            length,
            size: if rex & REX_W != 0 { 8 } else { 4 },
            with,
            base: rm | ((rex & REX_B) << 3),
            displacement,
        })
    }
}

/// Decodes the instruction at the start of `bytes` as [`ShortMove::decode`] does, if all of it is there.
pub(super) fn decode(bytes: &[u8]) -> Option<Insn> {
    let mut code = [0; size_of::<Code>()];
    let length = bytes.len().min(code.len());
    code[..length].copy_from_slice(&bytes[..length]);
    let short = ShortMove::decode(Code::from_le_bytes(code))?;
    if usize::from(short.length) > length {
        return None;
    }
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
