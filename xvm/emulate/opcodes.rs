// SPDX-License-Identifier: GPL-2.0

//! Operation and operands of the opcodes that are executed or intercepted (Intel SDM vol. 2, appendix A; AMD APM
//! vol. 3, appendix A).

use super::insn::Op;

/// Where an operand is and how wide; the names are those of the manuals' opcode maps, where they have one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// There is none.
    None,
    /// ModRM.rm, a byte.
    Eb,
    /// ModRM.rm, a word.
    Ew,
    /// ModRM.rm, operand size.
    Ev,
    /// ModRM.rm, operand size but at most 4 bytes.
    Ez,
    /// ModRM.rm: a word of memory, or a register of the operand size.
    MwRv,
    /// ModRM.rm, memory that is not accessed.
    M,
    /// ModRM.reg, a byte.
    Gb,
    /// ModRM.reg, operand size.
    Gv,
    /// Low bits of the opcode, a byte register.
    Zb,
    /// Low bits of the opcode, a register of the operand size.
    Zv,
    /// The immediate, sign-extended.
    I,
    /// The immediate, one byte, zero-extended.
    Ub,
    /// Memory offset, a byte.
    Ob,
    /// Memory offset, operand size.
    Ov,
    /// AL.
    Al,
    /// rAX, operand size.
    Ax,
    /// rAX, operand size but at most 4 bytes.
    Az,
    /// DX.
    Dx,
    /// Source of string instructions, a byte.
    Xb,
    /// Source of string instructions, operand size.
    Xv,
    /// Source of string instructions, operand size but at most 4 bytes.
    Xz,
    /// Destination of string instructions, a byte.
    Yb,
    /// Destination of string instructions, operand size.
    Yv,
    /// Destination of string instructions, operand size but at most 4 bytes.
    Yz,
    /// ModRM.rm, register as wide as a control register.
    Ry,
    /// ModRM.reg, control register.
    Cy,
    /// ModRM.reg, debug register.
    Dy,
}

use Place::*;

/// Operation, destination, source.
pub(super) type Entry = (Op, Place, Place);

const OTHER: Entry = (Op::Other, None, None);

/// What the choice of an operation can depend on beside the opcode.
pub(super) struct Selector {
    /// The opcode.
    pub(super) opcode: u8,
    /// ModRM byte; 0 if there is none.
    pub(super) modrm: u8,
    /// 64-bit code.
    pub(super) bits64: bool,
    /// REX.B.
    pub(super) rex_b: bool,
    /// Prefix 66.
    pub(super) operand_override: bool,
    /// Prefix F3.
    pub(super) rep: bool,
    /// Prefix F2.
    pub(super) repne: bool,
}

impl Selector {
    /// ModRM.reg, which selects in opcode groups.
    fn group(&self) -> u8 {
        (self.modrm >> 3) & 7
    }

    fn is_register(&self) -> bool {
        self.modrm >> 6 == 3
    }
}

/// One-byte opcodes.
pub(super) fn one_byte(s: &Selector) -> Entry {
    match s.opcode {
        0x00..=0x3f if s.opcode & 7 < 6 => {
            let (destination, source) = match s.opcode & 7 {
                0 => (Eb, Gb),
                1 => (Ev, Gv),
                2 => (Gb, Eb),
                3 => (Gv, Ev),
                4 => (Al, I),
                _ => (Ax, I),
            };
            (group1(s.opcode >> 3), destination, source)
        }
        0x40..=0x47 => (Op::Inc, Zv, None),
        0x48..=0x4f => (Op::Dec, Zv, None),
        0x63 if s.bits64 => (Op::Movsx, Gv, Ez),
        0x6c => (Op::Ins, Yb, Dx),
        0x6d => (Op::Ins, Yz, Dx),
        0x6e => (Op::Outs, Dx, Xb),
        0x6f => (Op::Outs, Dx, Xz),
        0x80 | 0x82 => (group1(s.group()), Eb, I),
        0x81 | 0x83 => (group1(s.group()), Ev, I),
        0x84 => (Op::Test, Eb, Gb),
        0x85 => (Op::Test, Ev, Gv),
        0x86 => (Op::Xchg, Eb, Gb),
        0x87 => (Op::Xchg, Ev, Gv),
        0x88 => (Op::Mov, Eb, Gb),
        0x89 => (Op::Mov, Ev, Gv),
        0x8a => (Op::Mov, Gb, Eb),
        0x8b => (Op::Mov, Gv, Ev),
        0x90 if s.rep => (Op::Pause, None, None),
        // NOP, not an exchange that zeroes the upper half of RAX.
        0x90 if !s.rex_b => OTHER,
        0x90..=0x97 => (Op::Xchg, Zv, Ax),
        0xa0 => (Op::Mov, Al, Ob),
        0xa1 => (Op::Mov, Ax, Ov),
        0xa2 => (Op::Mov, Ob, Al),
        0xa3 => (Op::Mov, Ov, Ax),
        0xa4 => (Op::Movs, Yb, Xb),
        0xa5 => (Op::Movs, Yv, Xv),
        0xa6 => (Op::Cmps, Xb, Yb),
        0xa7 => (Op::Cmps, Xv, Yv),
        0xa8 => (Op::Test, Al, I),
        0xa9 => (Op::Test, Ax, I),
        0xaa => (Op::Stos, Yb, Al),
        0xab => (Op::Stos, Yv, Ax),
        0xac => (Op::Lods, Al, Xb),
        0xad => (Op::Lods, Ax, Xv),
        0xae => (Op::Scas, Al, Yb),
        0xaf => (Op::Scas, Ax, Yv),
        0xb0..=0xb7 => (Op::Mov, Zb, I),
        0xb8..=0xbf => (Op::Mov, Zv, I),
        0xc6 if s.group() == 0 => (Op::Mov, Eb, I),
        0xc7 if s.group() == 0 => (Op::Mov, Ev, I),
        0xcc => (Op::Int3, None, None),
        0xcd => (Op::Int, Ub, None),
        0xce => (Op::Into, None, None),
        0xcf => (Op::Iret, None, None),
        0xe4 => (Op::In, Al, Ub),
        0xe5 => (Op::In, Az, Ub),
        0xe6 => (Op::Out, Ub, Al),
        0xe7 => (Op::Out, Ub, Az),
        0xec => (Op::In, Al, Dx),
        0xed => (Op::In, Az, Dx),
        0xee => (Op::Out, Dx, Al),
        0xef => (Op::Out, Dx, Az),
        0xf1 => (Op::Int1, None, None),
        0xf4 => (Op::Hlt, None, None),
        0xf6 => group3(s.group(), Eb),
        0xf7 => group3(s.group(), Ev),
        0xfe => group4(s.group(), Eb),
        0xff => group4(s.group(), Ev),
        _ => OTHER,
    }
}

/// Opcodes after 0F.
pub(super) fn two_byte(s: &Selector) -> Entry {
    match s.opcode {
        0x01 => group7(s),
        0x06 => (Op::Clts, None, None),
        0x08 => (Op::Invd, None, None),
        0x09 => (Op::Wbinvd, None, None),
        0x20 => (Op::MovCr, Ry, Cy),
        0x21 => (Op::MovDr, Ry, Dy),
        0x22 => (Op::MovCr, Cy, Ry),
        0x23 => (Op::MovDr, Dy, Ry),
        0x30 => (Op::Wrmsr, None, None),
        0x31 => (Op::Rdtsc, None, None),
        0x32 => (Op::Rdmsr, None, None),
        0x33 => (Op::Rdpmc, None, None),
        0xa2 => (Op::Cpuid, None, None),
        0xa3 => (Op::Bt, Ev, Gv),
        0xaa => (Op::Rsm, None, None),
        0xab => (Op::Bts, Ev, Gv),
        0xb0 => (Op::Cmpxchg, Eb, Gb),
        0xb1 => (Op::Cmpxchg, Ev, Gv),
        0xb3 => (Op::Btr, Ev, Gv),
        0xb6 => (Op::Movzx, Gv, Eb),
        0xb7 => (Op::Movzx, Gv, Ew),
        0xba => match s.group() {
            4 => (Op::Bt, Ev, Ub),
            5 => (Op::Bts, Ev, Ub),
            6 => (Op::Btr, Ev, Ub),
            7 => (Op::Btc, Ev, Ub),
            _ => OTHER,
        },
        0xbb => (Op::Btc, Ev, Gv),
        0xbe => (Op::Movsx, Gv, Eb),
        0xbf => (Op::Movsx, Gv, Ew),
        0xc0 => (Op::Xadd, Eb, Gb),
        0xc1 => (Op::Xadd, Ev, Gv),
        0xc7 if s.rep && s.is_register() && s.group() == 7 => (Op::Rdpid, Ry, None),
        _ => OTHER,
    }
}

/// Opcodes after 0F 38.
pub(super) fn three_byte_38(s: &Selector) -> Entry {
    // With F2 these are CRC32.
    if s.rep || s.repne || s.is_register() {
        return OTHER;
    }
    match s.opcode {
        0xf0 => (Op::Movbe, Gv, Ev),
        0xf1 => (Op::Movbe, Ev, Gv),
        _ => OTHER,
    }
}

fn group1(selector: u8) -> Op {
    match selector & 7 {
        0 => Op::Add,
        1 => Op::Or,
        2 => Op::Adc,
        3 => Op::Sbb,
        4 => Op::And,
        5 => Op::Sub,
        6 => Op::Xor,
        _ => Op::Cmp,
    }
}

fn group3(selector: u8, operand: Place) -> Entry {
    match selector {
        0 | 1 => (Op::Test, operand, I),
        2 => (Op::Not, operand, None),
        3 => (Op::Neg, operand, None),
        _ => OTHER,
    }
}

/// Groups 4 and 5.
fn group4(selector: u8, operand: Place) -> Entry {
    match selector {
        0 => (Op::Inc, operand, None),
        1 => (Op::Dec, operand, None),
        _ => OTHER,
    }
}

fn group7(s: &Selector) -> Entry {
    // Some of these are other instructions with a prefix.
    let repeated = s.rep || s.repne;
    let plain = !repeated && !s.operand_override;
    match (s.group(), s.is_register()) {
        (4, _) => (Op::Smsw, MwRv, None),
        (6, _) => (Op::Lmsw, Ew, None),
        (7, false) => (Op::Invlpg, M, None),
        (_, true) => match s.modrm {
            0xc1 if plain => (Op::Vmcall, None, None),
            0xc8 if plain => (Op::Monitor, None, None),
            0xc9 if plain => (Op::Mwait, None, None),
            0xd1 if plain => (Op::Xsetbv, None, None),
            0xd9 if !repeated => (Op::Vmmcall, None, None),
            0xf9 => (Op::Rdtscp, None, None),
            _ => OTHER,
        },
        _ => OTHER,
    }
}
