// SPDX-License-Identifier: GPL-2.0

//! The operand at a [`Place`], made of prefixes, opcode, ModRM and immediate.

use super::insn::Base;
use super::insn::Memory;
use super::insn::Operand;
use super::insn::Register;
use super::insn::RAX;
use super::insn::RDI;
use super::insn::RDX;
use super::insn::RSI;
use super::machine::CodeSize;
use super::machine::SegmentName;
use super::modrm::data_segment;
use super::modrm::ModRm;
use super::opcodes::Place;
use super::prefix::Prefixes;
use super::prefix::REX_B;

/// What operands are made of.
pub(super) struct Parts<'a> {
    pub(super) prefixes: &'a Prefixes,
    pub(super) opcode: u8,
    pub(super) modrm: &'a ModRm,
    pub(super) immediate: u64,
}

impl Parts<'_> {
    pub(super) fn operand(&self, place: Place) -> Operand {
        let size = self.prefixes.operand_size;
        let at_most_4 = size.min(4);
        match place {
            Place::None => Operand::None,
            Place::Eb => self.rm(1),
            Place::Ew => self.rm(2),
            Place::Ev => self.rm(size),
            Place::Ez => self.rm(at_most_4),
            Place::MwRv if self.modrm.memory.is_some() => self.rm(2),
            Place::MwRv => self.rm(size),
            Place::M => self.rm(0),
            Place::Gb => self.register(self.modrm.reg_register(), 1),
            Place::Gv => self.register(self.modrm.reg_register(), size),
            Place::Zb => self.register(self.opcode_register(), 1),
            Place::Zv => self.register(self.opcode_register(), size),
            Place::I => Operand::Immediate(self.immediate),
            Place::Ub => Operand::Immediate(self.immediate & 0xff),
            Place::Ob => self.offset(1),
            Place::Ov => self.offset(size),
            Place::Al => self.register(RAX, 1),
            Place::Ax => self.register(RAX, size),
            Place::Az => self.register(RAX, at_most_4),
            Place::Dx => self.register(RDX, 2),
            Place::Xb => self.string_source(1),
            Place::Xv => self.string_source(size),
            Place::Xz => self.string_source(at_most_4),
            Place::Yb => self.pointer(SegmentName::Es, RDI, 1),
            Place::Yv => self.pointer(SegmentName::Es, RDI, size),
            Place::Yz => self.pointer(SegmentName::Es, RDI, at_most_4),
            Place::Ry => self.register(self.modrm.rm_register(), self.control_size()),
            Place::Cy => Operand::Control(self.control_register()),
            Place::Dy => Operand::Debug(self.modrm.reg_register()),
        }
    }

    fn rm(&self, size: u8) -> Operand {
        match self.modrm.memory {
            Some(memory) => Operand::Memory(Memory { size, ..memory }),
            None => self.register(self.modrm.rm_register(), size),
        }
    }

    fn register(&self, index: u8, size: u8) -> Operand {
        // Without REX, byte registers 4 to 7 are AH, CH, DH and BH.
        let high = size == 1 && self.prefixes.rex == 0 && index >= 4;
        Operand::Register(Register {
            index: if high { index & 3 } else { index },
            size,
            high,
        })
    }

    fn opcode_register(&self) -> u8 {
        self.opcode & 7 | (u8::from(self.prefixes.rex & REX_B != 0) << 3)
    }

    fn offset(&self, size: u8) -> Operand {
        Operand::Memory(Memory {
            segment: data_segment(Base::None, self.prefixes),
            base: Base::None,
            index: None,
            scale: 1,
            displacement: self.immediate,
            size,
        })
    }

    fn string_source(&self, size: u8) -> Operand {
        self.pointer(data_segment(Base::Gpr(RSI), self.prefixes), RSI, size)
    }

    fn pointer(&self, segment: SegmentName, register: u8, size: u8) -> Operand {
        Operand::Memory(Memory {
            segment,
            base: Base::Gpr(register),
            index: None,
            scale: 1,
            displacement: 0,
            size,
        })
    }

    fn control_size(&self) -> u8 {
        match self.prefixes.code_size {
            CodeSize::Bits64 => 8,
            _ => 4,
        }
    }

    /// AMD names CR8 outside of 64-bit mode by a LOCK prefix on CR0 (AMD APM vol. 3, MOV CRn).
    fn control_register(&self) -> u8 {
        match self.modrm.reg_register() {
            0 if self.prefixes.lock => 8,
            register => register,
        }
    }
}
