// SPDX-License-Identifier: GPL-2.0

//! One instruction, start to end; moves and exchanges (Intel SDM vol. 2, AMD APM vol. 3, under each name).

use super::arithmetic;
use super::bits;
use super::insn::Insn;
use super::insn::Op;
use super::insn::Operand;
use super::insn::RAX;
use super::machine::CodeSize;
use super::machine::Fault;
use super::machine::Machine;
use super::machine::Stop;
use super::operand;
use super::operand::load;
use super::operand::load_for_update;
use super::operand::store;
use super::port;
use super::string;

/// Executes `insn`, which is at RIP, and moves RIP to the next one. A repeated string instruction can return before it
/// is complete, RIP unchanged; then it goes on when it is executed again.
///
/// After [`Stop::Userspace`] see the [module](super) on restarting. After any `Stop` no register has changed, except for
/// what completed iterations of a repeated string instruction have changed.
pub fn execute(machine: &mut impl Machine, insn: &Insn) -> Result<(), Stop> {
    if insn.lock && !is_lockable(insn) {
        return Err(Stop::Fault(Fault::INVALID_OPCODE));
    }
    match insn.op {
        Op::Movs | Op::Cmps | Op::Stos | Op::Lods | Op::Scas => {
            return string::execute(machine, insn)
        }
        Op::Ins | Op::Outs => return port::execute_string(machine, insn),
        Op::In => port::input(machine, insn)?,
        Op::Out => port::output(machine, insn)?,
        Op::Mov | Op::Movzx => {
            let value = load(machine, insn, &insn.operands[1])?;
            store(machine, insn, &insn.operands[0], value)?;
        }
        Op::Movsx => movsx(machine, insn)?,
        Op::Movbe => movbe(machine, insn)?,
        Op::Xchg => xchg(machine, insn)?,
        Op::Xadd => xadd(machine, insn)?,
        Op::Cmpxchg => cmpxchg(machine, insn)?,
        Op::Add | Op::Or | Op::Adc | Op::Sbb | Op::And | Op::Sub | Op::Xor | Op::Cmp | Op::Test => {
            arithmetic::binary(machine, insn)?
        }
        Op::Inc | Op::Dec | Op::Not | Op::Neg => arithmetic::unary(machine, insn)?,
        Op::Bt | Op::Bts | Op::Btr | Op::Btc => bits::execute(machine, insn)?,
        _ => return Err(Stop::Unknown),
    }
    finish(machine, insn);
    Ok(())
}

/// Moves RIP to the next instruction; the last thing an instruction does.
pub(super) fn finish(machine: &mut impl Machine, insn: &Insn) {
    let next = machine.rip().wrapping_add(u64::from(insn.length));
    let next = match machine.code_size() {
        CodeSize::Bits64 => next,
        _ => next & 0xffff_ffff,
    };
    machine.set_rip(next);
    machine.commit();
}

/// LOCK is for a memory destination that is read and written (Intel SDM vol. 2, LOCK).
fn is_lockable(insn: &Insn) -> bool {
    let reads_and_writes = matches!(
        insn.op,
        Op::Xchg
            | Op::Xadd
            | Op::Cmpxchg
            | Op::Add
            | Op::Or
            | Op::Adc
            | Op::Sbb
            | Op::And
            | Op::Sub
            | Op::Xor
            | Op::Inc
            | Op::Dec
            | Op::Not
            | Op::Neg
            | Op::Bts
            | Op::Btr
            | Op::Btc
    );
    reads_and_writes && matches!(insn.operands[0], Operand::Memory(_))
}

fn movsx(machine: &mut impl Machine, insn: &Insn) -> Result<(), Stop> {
    let [destination, source] = &insn.operands;
    let value = load(machine, insn, source)?;
    let value = match source.size() {
        1 => value as i8 as u64,
        2 => value as i16 as u64,
        _ => value as i32 as u64,
    };
    store(machine, insn, destination, value)
}

fn movbe(machine: &mut impl Machine, insn: &Insn) -> Result<(), Stop> {
    let [destination, source] = &insn.operands;
    let value = load(machine, insn, source)?;
    let swapped = value.swap_bytes() >> (64 - 8 * u32::from(insn.operand_size));
    store(machine, insn, destination, swapped)
}

fn xchg(machine: &mut impl Machine, insn: &Insn) -> Result<(), Stop> {
    let [first, second] = &insn.operands;
    let old = load_for_update(machine, insn, first)?;
    let new = load(machine, insn, second)?;
    store(machine, insn, first, new)?;
    store(machine, insn, second, old)
}

fn xadd(machine: &mut impl Machine, insn: &Insn) -> Result<(), Stop> {
    let [destination, source] = &insn.operands;
    let old = load_for_update(machine, insn, destination)?;
    let addend = load(machine, insn, source)?;
    let (sum, flags) = arithmetic::add(old, addend, 0, destination.size());
    // The destination last: it wins if both are the same register.
    if let Operand::Register(_) = destination {
        store(machine, insn, source, old)?;
        store(machine, insn, destination, sum)?;
    } else {
        store(machine, insn, destination, sum)?;
        store(machine, insn, source, old)?;
    }
    arithmetic::set_status(machine, flags);
    Ok(())
}

fn cmpxchg(machine: &mut impl Machine, insn: &Insn) -> Result<(), Stop> {
    let [destination, source] = &insn.operands;
    let accumulator = operand::low(RAX, destination.size());
    let old = load_for_update(machine, insn, destination)?;
    let expected = operand::read_register(machine, &accumulator);
    let (_, flags) = arithmetic::sub(expected, old, 0, destination.size());
    if expected == old {
        let new = load(machine, insn, source)?;
        store(machine, insn, destination, new)?;
    } else {
        // The write cycle comes in any case.
        store(machine, insn, destination, old)?;
        operand::write_register(machine, &accumulator, old);
    }
    arithmetic::set_status(machine, flags);
    Ok(())
}
