// SPDX-License-Identifier: GPL-2.0

//! Bytes → instruction (Intel SDM vol. 2, chapter 2; AMD APM vol. 3, chapter 1).

use super::insn::Base;
use super::insn::Insn;
use super::insn::Memory;
use super::insn::Op;
use super::insn::Operand;
use super::insn::Register;
use super::insn::Repeat;
use super::length;
use super::length::Immediate;
use super::length::Map;
use super::length::ModRmKind;
use super::machine::CodeSize;
use super::machine::SegmentName;
use super::opcodes;
use super::opcodes::Place;
use super::opcodes::Selector;

/// The longest instruction, in bytes.
const MAX_LENGTH: usize = 15;

const RSP: u8 = 4;
const RBP: u8 = 5;
const RSI: u8 = 6;
const RDI: u8 = 7;

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
    let mut reader = Reader { bytes, position: 0 };
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

/// The bytes of an instruction, read one after the other.
struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Result<u8, DecodeError> {
        if self.position >= MAX_LENGTH {
            return Err(DecodeError::TooLong);
        }
        self.bytes
            .get(self.position)
            .copied()
            .ok_or(DecodeError::Truncated)
    }

    fn byte(&mut self) -> Result<u8, DecodeError> {
        let byte = self.peek()?;
        self.position += 1;
        Ok(byte)
    }

    /// A little-endian number of `size` bytes (at most 8), sign-extended.
    fn signed(&mut self, size: u8) -> Result<u64, DecodeError> {
        let mut value = 0;
        for i in 0..size {
            value |= u64::from(self.byte()?) << (8 * u32::from(i));
        }
        Ok(sign_extend(value, size))
    }

    fn skip(&mut self, count: u8) -> Result<(), DecodeError> {
        for _ in 0..count {
            self.byte()?;
        }
        Ok(())
    }
}

/// Sign-extends a number of `size` bytes: 1, 2, 4 or 8; 0 is 0 in any size.
fn sign_extend(value: u64, size: u8) -> u64 {
    match size {
        1 => value as i8 as u64,
        2 => value as i16 as u64,
        4 => value as i32 as u64,
        _ => value,
    }
}

const REX_B: u8 = 1;
const REX_X: u8 = 2;
const REX_R: u8 = 4;
const REX_W: u8 = 8;

/// Legacy and REX prefixes, with the sizes that follow from them.
struct Prefixes {
    code_size: CodeSize,
    operand_override: bool,
    address_size: u8,
    operand_size: u8,
    segment: Option<SegmentName>,
    repeat: Repeat,
    lock: bool,
    /// 0 if there is none.
    rex: u8,
}

impl Prefixes {
    /// Reads all prefixes and the byte after them.
    fn read(reader: &mut Reader<'_>, code_size: CodeSize) -> Result<(Self, u8), DecodeError> {
        let mut prefixes = Prefixes {
            code_size,
            operand_override: false,
            address_size: 0,
            operand_size: 0,
            segment: None,
            repeat: Repeat::None,
            lock: false,
            rex: 0,
        };
        let mut address_override = false;
        let first = loop {
            let byte = reader.byte()?;
            // A REX prefix counts only if it is the last prefix.
            let mut rex = 0;
            match byte {
                0x26 => prefixes.override_segment(SegmentName::Es),
                0x2e => prefixes.override_segment(SegmentName::Cs),
                0x36 => prefixes.override_segment(SegmentName::Ss),
                0x3e => prefixes.override_segment(SegmentName::Ds),
                0x64 => prefixes.override_segment(SegmentName::Fs),
                0x65 => prefixes.override_segment(SegmentName::Gs),
                0x66 => prefixes.operand_override = true,
                0x67 => address_override = true,
                0xf0 => prefixes.lock = true,
                0xf2 => prefixes.repeat = Repeat::Repne,
                0xf3 => prefixes.repeat = Repeat::Rep,
                0x40..=0x4f if code_size == CodeSize::Bits64 => rex = byte,
                _ => break byte,
            }
            prefixes.rex = rex;
        };
        (prefixes.operand_size, prefixes.address_size) = sizes(
            code_size,
            prefixes.rex & REX_W != 0,
            prefixes.operand_override,
            address_override,
        );
        Ok((prefixes, first))
    }

    fn override_segment(&mut self, segment: SegmentName) {
        // 64-bit mode ignores the others; they don't cancel an FS or GS before them.
        let has_base = matches!(segment, SegmentName::Fs | SegmentName::Gs);
        if self.code_size != CodeSize::Bits64 || has_base {
            self.segment = Some(segment);
        }
    }

    fn insn(&self, reader: &Reader<'_>, op: Op, operands: [Operand; 2]) -> Insn {
        Insn {
            // At most MAX_LENGTH.
            length: reader.position as u8,
            op,
            operand_size: self.operand_size,
            address_size: self.address_size,
            repeat: self.repeat,
            lock: self.lock,
            operands,
        }
    }
}

/// Operand size and address size (Intel SDM vol. 1, tables 3-3 and 3-4).
fn sizes(
    code_size: CodeSize,
    rex_w: bool,
    operand_override: bool,
    address_override: bool,
) -> (u8, u8) {
    let operand = match (code_size, operand_override) {
        (CodeSize::Bits64, _) if rex_w => 8,
        (CodeSize::Bits16, false) => 2,
        (CodeSize::Bits16, true) => 4,
        (_, false) => 4,
        (_, true) => 2,
    };
    let address = match (code_size, address_override) {
        (CodeSize::Bits16, false) | (CodeSize::Bits32, true) => 2,
        (CodeSize::Bits16, true) | (CodeSize::Bits32, false) => 4,
        (CodeSize::Bits64, true) => 4,
        (CodeSize::Bits64, false) => 8,
    };
    (operand, address)
}

/// ModRM, SIB and displacement.
struct ModRm {
    /// 0 if there is none.
    byte: u8,
    /// REX.R.
    extended_reg: bool,
    /// REX.B.
    extended_rm: bool,
    /// The memory operand, of size 0; `None` if ModRM.rm is a register.
    memory: Option<Memory>,
}

impl ModRm {
    fn read(
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
    fn reg(&self) -> u8 {
        (self.byte >> 3) & 7
    }

    /// ModRM.reg as a register.
    fn reg_register(&self) -> u8 {
        self.reg() | (u8::from(self.extended_reg) << 3)
    }

    /// ModRM.rm as a register.
    fn rm_register(&self) -> u8 {
        self.byte & 7 | (u8::from(self.extended_rm) << 3)
    }
}

/// 16-bit addressing (Intel SDM vol. 2, table 2-1).
fn read_memory_16(
    reader: &mut Reader<'_>,
    modrm: u8,
    prefixes: &Prefixes,
) -> Result<Memory, DecodeError> {
    const RBX: u8 = 3;
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
fn data_segment(base: Base, prefixes: &Prefixes) -> SegmentName {
    let default = match base {
        Base::Gpr(RSP | RBP) => SegmentName::Ss,
        _ => SegmentName::Ds,
    };
    prefixes.segment.unwrap_or(default)
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
        // An address: RAX-sized and not signed, but it is cut to the address size anyway.
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

/// What operands are made of.
struct Parts<'a> {
    prefixes: &'a Prefixes,
    opcode: u8,
    modrm: &'a ModRm,
    immediate: u64,
}

impl Parts<'_> {
    fn operand(&self, place: Place) -> Operand {
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
            Place::Al => self.register(0, 1),
            Place::Ax => self.register(0, size),
            Place::Az => self.register(0, at_most_4),
            Place::Dx => self.register(2, 2),
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
