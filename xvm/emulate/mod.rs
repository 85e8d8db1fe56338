// SPDX-License-Identifier: GPL-2.0

//! Instruction decoder, emulator and guest page-table walker: pure logic, no unsafe, no allocation, no kernel type.
//!
//! | file | subject |
//! | --- | --- |
//! | `machine.rs` | what the emulator asks of a vCPU, and why it may stop |
//! | `insn.rs` | a decoded instruction: operation, operands, sizes |
//! | `decode.rs` | bytes → instruction |
//! | `prefix.rs` | its bytes, legacy and REX prefixes, operand and address size |
//! | `short.rs` | the shortest way to the commonest instructions |
//! | `modrm.rs` | ModRM, SIB, displacement |
//! | `length.rs` | for every opcode: is there a ModRM byte, how long is the immediate |
//! | `opcodes.rs` | for the opcodes that are executed or intercepted: operation and operands |
//! | `place.rs` | the operand at such a place |
//! | `address.rs` | memory operand → linear address, with the checks of segmentation |
//! | `operand.rs` | reading and writing operands |
//! | `execute.rs` | one instruction, start to end; moves and exchanges |
//! | `arithmetic.rs` | integer arithmetic, logic and their flags |
//! | `bits.rs` | BT, BTS, BTR, BTC |
//! | `string.rs` | MOVS, STOS, LODS, CMPS, SCAS and their repetition |
//! | `port.rs` | IN, OUT, INS, OUTS |
//! | `walk.rs` | guest linear address → guest-physical address |
//!
//! # Restarting
//!
//! A memory or port access can need userspace. Then [`execute()`] stops with [`Stop::Userspace`], and is called again
//! with the same instruction once userspace has answered: the accesses that were already made are made again, in the
//! same order, and answered from the machine's log. So no register, flag or instruction pointer changes before the
//! last access of an instruction (of an iteration, in a repeated string instruction) has succeeded, and
//! [`Machine::commit`] tells the machine that the log is spent.

mod address;
mod arithmetic;
mod bits;
mod decode;
mod execute;
pub mod insn;
mod length;
mod machine;
mod modrm;
mod opcodes;
mod operand;
mod place;
mod port;
mod prefix;
mod short;
mod string;
pub mod walk;

pub use decode::decode;
pub use decode::DecodeError;
pub use execute::execute;
pub use insn::Base;
pub use insn::Insn;
pub use insn::Op;
pub use insn::Operand;
pub use insn::Register;
pub use machine::CodeSize;
pub use machine::Fault;
pub use machine::Machine;
pub use machine::Mode;
pub use machine::Segment;
pub use machine::SegmentName;
pub use machine::Stop;
pub use operand::load;
pub use operand::store;
pub use short::Code;
pub use short::MovedWith;
pub use short::ShortMove;
