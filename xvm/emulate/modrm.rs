// SPDX-License-Identifier: GPL-2.0

//! ModRM, SIB and displacement (Intel SDM vol. 2, 2.1.3 to 2.1.5).

use super::decode::DecodeError;
use super::insn::Base;
use super::insn::Memory;
use super::insn::RBP;
use super::insn::RBX;
use super::insn::RDI;
use super::insn::RSI;
use super::insn::RSP;
use super::length::ModRmKind;
use super::machine::CodeSize;
use super::machine::SegmentName;
use super::prefix::Prefixes;
use super::prefix::Reader;
use super::prefix::REX_B;
use super::prefix::REX_R;
use super::prefix::REX_X;

/// ModRM, SIB and displacement.
pub(super) struct ModRm {
    /// 0 if there is none.
    pub(super) byte: u8,
    /// REX.R.
    extended_reg: bool,
    /// REX.B.
    extended_rm: bool,
    /// The memory operand, of size 0; `None` if ModRM.rm is a register.
    pub(super) memory: Option<Memory>,
}

impl ModRm {
    pub(super) fn read(
        reader: &mut Reader<'_>,
        kind: ModRmKind,
        prefixes: &Prefixes,
    ) -> Result<Self, DecodeError> {
        let byte = match kind {
            ModRmKind::Absent => 0,
            _ => reader.byte()?,
        };
        let memory = if kind == ModRmKind::Any && byte >> 6 != 3 {
            Some(match prefixes.address_size {
                2 => read_memory_16(reader, byte, prefixes)?,
                _ => read_memory_32(reader, byte, prefixes)?,
            })
        } else {
            None
        };
        Ok(ModRm {
            byte,
            extended_reg: prefixes.rex & REX_R != 0,
            extended_rm: prefixes.rex & REX_B != 0,
            memory,
        })
    }

    /// ModRM.reg without REX.R: an operation in opcode groups.
    pub(super) fn reg(&self) -> u8 {
        (self.byte >> 3) & 7
    }

    /// ModRM.reg as a register.
    pub(super) fn reg_register(&self) -> u8 {
        self.reg() | (u8::from(self.extended_reg) << 3)
    }

    /// ModRM.rm as a register.
    pub(super) fn rm_register(&self) -> u8 {
        self.byte & 7 | (u8::from(self.extended_rm) << 3)
    }
}

/// 16-bit addressing (Intel SDM vol. 2, table 2-1).
fn read_memory_16(
    reader: &mut Reader<'_>,
    modrm: u8,
    prefixes: &Prefixes,
) -> Result<Memory, DecodeError> {
    let (base, index) = match modrm & 7 {
        0 => (Base::Gpr(RBX), Some(RSI)),
        1 => (Base::Gpr(RBX), Some(RDI)),
        2 => (Base::Gpr(RBP), Some(RSI)),
        3 => (Base::Gpr(RBP), Some(RDI)),
        4 => (Base::Gpr(RSI), None),
        5 => (Base::Gpr(RDI), None),
        6 if modrm >> 6 == 0 => (Base::None, None),
        6 => (Base::Gpr(RBP), None),
        _ => (Base::Gpr(RBX), None),
    };
    let displacement = match modrm >> 6 {
        0 if base == Base::None => 2,
        0 => 0,
        1 => 1,
        _ => 2,
    };
    Ok(Memory {
        segment: data_segment(base, prefixes),
        base,
        index,
        scale: 1,
        displacement: reader.signed(displacement)?,
        size: 0,
    })
}

/// 32- and 64-bit addressing (Intel SDM vol. 2, tables 2-2 and 2-3).
fn read_memory_32(
    reader: &mut Reader<'_>,
    modrm: u8,
    prefixes: &Prefixes,
) -> Result<Memory, DecodeError> {
    let high_base = u8::from(prefixes.rex & REX_B != 0) << 3;
    let high_index = u8::from(prefixes.rex & REX_X != 0) << 3;
    let mut index = None;
    let mut scale = 1;
    let mut low_base = modrm & 7;
    let mut absolute = Base::None;
    if low_base == 4 {
        let sib = reader.byte()?;
        low_base = sib & 7;
        // RSP can't be an index; R12 can.
        index = Some((sib >> 3) & 7 | high_index).filter(|&i| i != RSP);
        scale = 1 << (sib >> 6);
    } else if prefixes.code_size == CodeSize::Bits64 {
        absolute = Base::NextRip;
    }
    let (base, displacement) = match modrm >> 6 {
        0 if low_base == 5 => (absolute, 4),
        0 => (Base::Gpr(low_base | high_base), 0),
        1 => (Base::Gpr(low_base | high_base), 1),
        _ => (Base::Gpr(low_base | high_base), 4),
    };
    Ok(Memory {
        segment: data_segment(base, prefixes),
        base,
        index,
        scale,
        displacement: reader.signed(displacement)?,
        size: 0,
    })
}

/// The stack segment goes with the stack registers, unless overridden.
pub(super) fn data_segment(base: Base, prefixes: &Prefixes) -> SegmentName {
    let default = match base {
        Base::Gpr(RSP | RBP) => SegmentName::Ss,
        _ => SegmentName::Ds,
    };
    prefixes.segment.unwrap_or(default)
}
