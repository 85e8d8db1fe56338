// SPDX-License-Identifier: GPL-2.0

//! The bytes of an instruction, and the legacy and REX prefixes at their start (Intel SDM vol. 2, 2.1.1 and 2.2.1).

use super::decode::DecodeError;
use super::insn::Insn;
use super::insn::Op;
use super::insn::Operand;
use super::insn::Repeat;
use super::machine::CodeSize;
use super::machine::SegmentName;

/// The longest instruction, in bytes.
const MAX_LENGTH: usize = 15;

/// The bytes of an instruction, read one after the other.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, position: 0 }
    }

    pub(super) fn peek(&self) -> Result<u8, DecodeError> {
        if self.position >= MAX_LENGTH {
            return Err(DecodeError::TooLong);
        }
        self.bytes
            .get(self.position)
            .copied()
            .ok_or(DecodeError::Truncated)
    }

    pub(super) fn byte(&mut self) -> Result<u8, DecodeError> {
        let byte = self.peek()?;
        self.position += 1;
        Ok(byte)
    }

    /// A little-endian number of `size` bytes (at most 8), sign-extended.
    pub(super) fn signed(&mut self, size: u8) -> Result<u64, DecodeError> {
        let mut value = 0;
        for i in 0..size {
            value |= u64::from(self.byte()?) << (8 * u32::from(i));
        }
        Ok(sign_extend(value, size))
    }

    pub(super) fn skip(&mut self, count: u8) -> Result<(), DecodeError> {
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

pub(super) const REX_B: u8 = 1;
pub(super) const REX_X: u8 = 2;
pub(super) const REX_R: u8 = 4;
const REX_W: u8 = 8;

/// Legacy and REX prefixes, with the sizes that follow from them.
pub(super) struct Prefixes {
    pub(super) code_size: CodeSize,
    pub(super) operand_override: bool,
    pub(super) address_size: u8,
    pub(super) operand_size: u8,
    pub(super) segment: Option<SegmentName>,
    pub(super) repeat: Repeat,
    pub(super) lock: bool,
    /// 0 if there is none.
    pub(super) rex: u8,
}

impl Prefixes {
    /// Reads all prefixes and the byte after them.
    pub(super) fn read(
        reader: &mut Reader<'_>,
        code_size: CodeSize,
    ) -> Result<(Self, u8), DecodeError> {
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

    pub(super) fn insn(&self, reader: &Reader<'_>, op: Op, operands: [Operand; 2]) -> Insn {
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
