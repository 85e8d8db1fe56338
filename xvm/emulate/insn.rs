// SPDX-License-Identifier: GPL-2.0

//! A decoded instruction: operation, operands, sizes.

use super::machine::SegmentName;

/// Numbers of general-purpose registers.
pub(super) const RAX: u8 = 0;
pub(super) const RCX: u8 = 1;
pub(super) const RDX: u8 = 2;
pub(super) const RBX: u8 = 3;
pub(super) const RSP: u8 = 4;
pub(super) const RBP: u8 = 5;
pub(super) const RSI: u8 = 6;
pub(super) const RDI: u8 = 7;

/// What an instruction does, as far as the emulator or an intercept handler must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// MOV between general-purpose registers, memory and immediates.
    Mov,
    /// MOVZX.
    Movzx,
    /// MOVSX and MOVSXD.
    Movsx,
    /// MOVBE.
    Movbe,
    /// XCHG.
    Xchg,
    /// XADD.
    Xadd,
    /// CMPXCHG.
    Cmpxchg,
    /// ADD.
    Add,
    /// OR.
    Or,
    /// ADC.
    Adc,
    /// SBB.
    Sbb,
    /// AND.
    And,
    /// SUB.
    Sub,
    /// XOR.
    Xor,
    /// CMP.
    Cmp,
    /// TEST.
    Test,
    /// INC.
    Inc,
    /// DEC.
    Dec,
    /// NOT.
    Not,
    /// NEG.
    Neg,
    /// BT.
    Bt,
    /// BTS.
    Bts,
    /// BTR.
    Btr,
    /// BTC.
    Btc,
    /// MOVSB, MOVSW, MOVSD, MOVSQ.
    Movs,
    /// CMPSB, CMPSW, CMPSD, CMPSQ.
    Cmps,
    /// STOSB, STOSW, STOSD, STOSQ.
    Stos,
    /// LODSB, LODSW, LODSD, LODSQ.
    Lods,
    /// SCASB, SCASW, SCASD, SCASQ.
    Scas,
    /// IN; the operands are the register and the port.
    In,
    /// OUT; the operands are the port and the register.
    Out,
    /// INSB, INSW, INSD; the operands are memory and DX.
    Ins,
    /// OUTSB, OUTSW, OUTSD; the operands are DX and memory.
    Outs,
    /// MOV to or from a control register: see the operands.
    MovCr,
    /// MOV to or from a debug register: see the operands.
    MovDr,
    /// CLTS.
    Clts,
    /// LMSW; one operand of 16 bits.
    Lmsw,
    /// SMSW; one operand: 16 bits of memory, or a register of the operand size.
    Smsw,
    /// INVLPG; one memory operand of size 0.
    Invlpg,
    /// CPUID.
    Cpuid,
    /// HLT.
    Hlt,
    /// RDMSR.
    Rdmsr,
    /// WRMSR.
    Wrmsr,
    /// RDTSC.
    Rdtsc,
    /// RDTSCP.
    Rdtscp,
    /// RDPID; the operand is the register.
    Rdpid,
    /// RDPMC.
    Rdpmc,
    /// XSETBV.
    Xsetbv,
    /// VMCALL.
    Vmcall,
    /// VMMCALL.
    Vmmcall,
    /// PAUSE.
    Pause,
    /// INVD.
    Invd,
    /// WBINVD and WBNOINVD.
    Wbinvd,
    /// MONITOR.
    Monitor,
    /// MWAIT.
    Mwait,
    /// INT1, also known as ICEBP.
    Int1,
    /// INT3.
    Int3,
    /// INT n; one immediate operand.
    Int,
    /// INTO.
    Into,
    /// IRET, IRETD, IRETQ.
    Iret,
    /// RSM.
    Rsm,
    /// Any other instruction: its length is known, and no more.
    Other,
}

/// A general-purpose register, or part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register {
    /// 0 RAX, 1 RCX, 2 RDX, 3 RBX, 4 RSP, 5 RBP, 6 RSI, 7 RDI, 8 to 15.
    pub index: u8,
    /// Bytes: 1, 2, 4 or 8.
    pub size: u8,
    /// Bits 15:8: AH, CH, DH or BH.
    pub high: bool,
}

/// What the displacement is added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// Nothing.
    None,
    /// A general-purpose register.
    Gpr(u8),
    /// The address of the next instruction.
    NextRip,
}

/// A memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The segment, overridden or not.
    pub segment: SegmentName,
    /// Base.
    pub base: Base,
    /// General-purpose register that is multiplied by `scale`, then added.
    pub index: Option<u8>,
    /// 1, 2, 4 or 8.
    pub scale: u8,
    /// Sign-extended displacement, or the whole offset.
    pub displacement: u64,
    /// Bytes that are accessed; 0 if the address itself is the operand.
    pub size: u8,
}

/// An operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// There is none at this place.
    None,
    /// General-purpose register.
    Register(Register),
    /// Memory.
    Memory(Memory),
    /// Immediate, sign-extended where the instruction extends it.
    Immediate(u64),
    /// Control register.
    Control(u8),
    /// Debug register.
    Debug(u8),
}

impl Operand {
    /// Bytes of a register or memory operand; 0 for the others, which take the size of the one they go with.
    pub fn size(&self) -> u8 {
        match self {
            Operand::Register(register) => register.size,
            Operand::Memory(memory) => memory.size,
            _ => 0,
        }
    }
}

/// The repeat prefix. With instructions other than CMPS and SCAS both repeat alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// None.
    None,
    /// F3: REP, REPE.
    Rep,
    /// F2: REPNE.
    Repne,
}

/// A decoded instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insn {
    /// Bytes, 1 to 15.
    pub length: u8,
    /// Operation.
    pub op: Op,
    /// Effective operand size in bytes: 2, 4 or 8. Operands have a size of their own, which can be 1.
    pub operand_size: u8,
    /// Effective address size in bytes: 2, 4 or 8.
    pub address_size: u8,
    /// Repeat prefix.
    pub repeat: Repeat,
    /// LOCK prefix.
    pub lock: bool,
    /// Destination, then source; what is compared, for instructions without a destination.
    pub operands: [Operand; 2],
}
