// SPDX-License-Identifier: GPL-2.0

//! The shape of every opcode: is there a ModRM byte, how long is the immediate (Intel SDM vol. 2, appendix A; AMD APM
//! vol. 3, appendix A).
//!
//! The maps have a row of sixteen letters for each high digit of the opcode:
//!
//! | letter | ModRM | immediate |
//! | --- | --- | --- |
//! | `.` | no | none |
//! | `b` `w` | no | 1 byte, 2 bytes |
//! | `z` | no | operand size, at most 4 bytes |
//! | `v` | no | operand size |
//! | `j` | no | operand size, but always 4 bytes in 64-bit code: a near branch |
//! | `o` | no | address size: a memory offset |
//! | `f` | no | offset of the operand size and 2 bytes of selector |
//! | `e` | no | 3 bytes: ENTER |
//! | `m` | yes | none |
//! | `M` `Z` | yes | as `b`, `z` |
//! | `g` `G` | yes | as `b`, `z` if ModRM.reg is 0 or 1, else none: TEST in group 3 |
//! | `r` | yes, always of a register | none: MOV to and from control and debug registers |
//! | `s` | yes | 2 bytes with prefix 66 or F2, else none: SSE4A shares it with VMREAD |
//! | `x` | undefined, or handled before this table: prefix, escape |

/// An opcode map, named by the bytes that lead to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Map {
    /// No escape.
    OneByte,
    /// 0F.
    TwoByte,
    /// 0F 38.
    ThreeByte38,
    /// 0F 3A.
    ThreeByte3a,
}

/// How long an immediate is; the letters of the table above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Immediate {
    None,
    Byte,
    Word,
    OperandAtMost4,
    Operand,
    Branch,
    Offset,
    Far,
    Enter,
    Group3Byte,
    Group3Operand,
    Sse4a,
}

/// What is after the ModRM byte's presence: nothing, any operand, or a register whatever ModRM.mod says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ModRmKind {
    Absent,
    Any,
    RegisterOnly,
}

/// What follows an opcode.
pub(super) struct Shape {
    pub(super) modrm: ModRmKind,
    pub(super) immediate: Immediate,
}

const ONE_BYTE: [&[u8; 16]; 16] = [
    b"mmmmbz..mmmmbz.x",
    b"mmmmbz..mmmmbz..",
    b"mmmmbzx.mmmmbzx.",
    b"mmmmbzx.mmmmbzx.",
    b"................",
    b"................",
    b"..mmxxxxzZbM....",
    b"bbbbbbbbbbbbbbbb",
    b"MZMMmmmmmmmmmmmm",
    b"..........f.....",
    b"oooo....bz......",
    b"bbbbbbbbvvvvvvvv",
    b"MMw.mmMZe.w..b..",
    b"mmmmbb..mmmmmmmm",
    b"bbbbbbbbjjfb....",
    b"x.xx..gG......mm",
];

const TWO_BYTE: [&[u8; 16]; 16] = [
    b"mmmmx.....x.xm.M",
    b"mmmmmmmmmmmmmmmm",
    b"rrrrxxxxmmmmmmmm",
    b"......x.xxxxxxxx",
    b"mmmmmmmmmmmmmmmm",
    b"mmmmmmmmmmmmmmmm",
    b"mmmmmmmmmmmmmmmm",
    b"MMMMmmm.smxxmmmm",
    b"jjjjjjjjjjjjjjjj",
    b"mmmmmmmmmmmmmmmm",
    b"...mMmmm...mMmmm",
    b"mmmmmmmmmmMmmmmm",
    b"mmMmMMMm........",
    b"mmmmmmmmmmmmmmmm",
    b"mmmmmmmmmmmmmmmm",
    b"mmmmmmmmmmmmmmmm",
];

/// The shape of an opcode without VEX or EVEX prefix; `None` if it is undefined.
pub(super) fn shape(map: Map, opcode: u8, bits64: bool) -> Option<Shape> {
    let letter = match map {
        Map::OneByte if bits64 && undefined_in_64_bit(opcode) => return None,
        Map::OneByte => letter(&ONE_BYTE, opcode),
        Map::TwoByte => letter(&TWO_BYTE, opcode),
        Map::ThreeByte38 => b'm',
        Map::ThreeByte3a => b'M',
    };
    let immediate = match letter {
        b'b' | b'M' => Immediate::Byte,
        b'w' => Immediate::Word,
        b'z' | b'Z' => Immediate::OperandAtMost4,
        b'v' => Immediate::Operand,
        b'j' => Immediate::Branch,
        b'o' => Immediate::Offset,
        b'f' => Immediate::Far,
        b'e' => Immediate::Enter,
        b'g' => Immediate::Group3Byte,
        b'G' => Immediate::Group3Operand,
        b's' => Immediate::Sse4a,
        b'x' => return None,
        _ => Immediate::None,
    };
    let modrm = match letter {
        b'm' | b'M' | b'Z' | b'g' | b'G' | b's' => ModRmKind::Any,
        b'r' => ModRmKind::RegisterOnly,
        _ => ModRmKind::Absent,
    };
    Some(Shape { modrm, immediate })
}

fn letter(map: &[&[u8; 16]; 16], opcode: u8) -> u8 {
    map[usize::from(opcode >> 4)][usize::from(opcode & 15)]
}

/// One-byte opcodes that 64-bit mode has not (Intel SDM vol. 2, table A-2, superscript i64). 62, C4 and C5, which are
/// prefixes there, don't come here.
fn undefined_in_64_bit(opcode: u8) -> bool {
    matches!(
        opcode,
        0x06 | 0x07
            | 0x0e
            | 0x16
            | 0x17
            | 0x1e
            | 0x1f
            | 0x27
            | 0x2f
            | 0x37
            | 0x3f
            | 0x60
            | 0x61
            | 0x82
            | 0x9a
            | 0xce
            | 0xd4..=0xd6 | 0xea
    )
}

/// The shape of an opcode after a VEX or EVEX prefix that selects map `map`; `None` if no such map is defined. Map 1 is
/// 0F, 2 is 0F 38, 3 is 0F 3A; 5 and 6 are EVEX only (Intel SDM vol. 2, 2.3.5 and 2.7).
pub(super) fn vector_shape(map: u8, opcode: u8, evex: bool) -> Option<Shape> {
    let immediate = match map {
        1 => match opcode {
            0x70..=0x73 | 0xc2 | 0xc4..=0xc6 => Immediate::Byte,
            _ => Immediate::None,
        },
        2 => Immediate::None,
        3 => Immediate::Byte,
        5 | 6 if evex => Immediate::None,
        _ => return None,
    };
    // VZEROUPPER and VZEROALL are the only ones without ModRM.
    let modrm = if map == 1 && opcode == 0x77 && !evex {
        ModRmKind::Absent
    } else {
        ModRmKind::Any
    };
    Some(Shape { modrm, immediate })
}
