// SPDX-License-Identifier: GPL-2.0

//! The emulator against the CPU that this test runs on: random instructions with random registers, flags and memory are
//! executed by both, with the same result, undefined flags apart.
//!
//! `XVM_NATIVE_SAMPLES` sets how many instructions are executed (default 1,000,000); they are always the same ones.

#![cfg(target_arch = "x86_64")]

mod emulate_machine;
mod emulate_random;

use emulate_machine::Registers;
use emulate_machine::TestMachine;
use emulate_random::samples;
use emulate_random::Random;
use std::collections::HashMap;
use std::ffi::c_void;
use xvm_logic::emulate::decode;
use xvm_logic::emulate::insn::Memory;
use xvm_logic::emulate::insn::Repeat;
use xvm_logic::emulate::Base;
use xvm_logic::emulate::CodeSize;
use xvm_logic::emulate::Insn;
use xvm_logic::emulate::Op;
use xvm_logic::emulate::Operand;

const RAX: usize = 0;
const RCX: usize = 1;
const RSP: u8 = 4;
const RSI: usize = 6;
const RDI: usize = 7;

const CF: u64 = 1 << 0;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const DF: u64 = 1 << 10;
const OF: u64 = 1 << 11;
const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// How many operations are compared.
const OPERATIONS: usize = 29;

const CODE_SIZE: usize = 4096;
const DATA_SIZE: usize = 16384;
/// Where operands are, counted from the start of the data: room for bit offsets and strings on both sides.
const TARGET: u64 = 8000;

std::arch::global_asm!(
    // extern "C" fn run_native(registers: *mut Registers, code: *const u8)
    // Registers are 16 general-purpose ones, RIP (not used), RFLAGS. RSP is not loaded.
    ".globl xvm_test_run_native",
    "xvm_test_run_native:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "push rdi",
    "push rsi",
    "push qword ptr [rdi + 136]",
    "mov rax, [rdi]",
    "mov rcx, [rdi + 8]",
    "mov rdx, [rdi + 16]",
    "mov rbx, [rdi + 24]",
    "mov rbp, [rdi + 40]",
    "mov rsi, [rdi + 48]",
    "mov r8, [rdi + 64]",
    "mov r9, [rdi + 72]",
    "mov r10, [rdi + 80]",
    "mov r11, [rdi + 88]",
    "mov r12, [rdi + 96]",
    "mov r13, [rdi + 104]",
    "mov r14, [rdi + 112]",
    "mov r15, [rdi + 120]",
    "mov rdi, [rdi + 56]",
    "popfq",
    "call [rsp]",
    "pushfq",
    "cld",
    "push rdi",
    "mov rdi, [rsp + 24]",
    "mov [rdi], rax",
    "mov [rdi + 8], rcx",
    "mov [rdi + 16], rdx",
    "mov [rdi + 24], rbx",
    "mov [rdi + 40], rbp",
    "mov [rdi + 48], rsi",
    "mov [rdi + 64], r8",
    "mov [rdi + 72], r9",
    "mov [rdi + 80], r10",
    "mov [rdi + 88], r11",
    "mov [rdi + 96], r12",
    "mov [rdi + 104], r13",
    "mov [rdi + 112], r14",
    "mov [rdi + 120], r15",
    "pop rax",
    "mov [rdi + 56], rax",
    "pop rax",
    "mov [rdi + 136], rax",
    "add rsp, 16",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
);

extern "C" {
    fn xvm_test_run_native(registers: *mut NativeRegisters, code: *const u8);
    fn mmap(
        address: *mut c_void,
        length: usize,
        protection: i32,
        flags: i32,
        fd: i32,
        offset: i64,
    ) -> *mut c_void;
}

/// As the assembly above expects them.
#[repr(C)]
struct NativeRegisters {
    gpr: [u64; 16],
    rip: u64,
    rflags: u64,
}

/// Memory below 2 GiB, so that 32-bit addresses reach it: a page of code, then data. It is never unmapped.
struct Arena {
    start: *mut u8,
}

impl Arena {
    fn new() -> Self {
        const READ_WRITE_EXECUTE: i32 = 7;
        const PRIVATE_ANONYMOUS_32BIT: i32 = 0x2 | 0x20 | 0x40;
        // SAFETY: A new mapping replaces none.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                CODE_SIZE + DATA_SIZE,
                READ_WRITE_EXECUTE,
                PRIVATE_ANONYMOUS_32BIT,
                -1,
                0,
            )
        };
        assert_ne!(start as isize, -1, "mmap");
        Arena {
            start: start.cast(),
        }
    }

    fn code(&self) -> u64 {
        self.start as u64
    }

    fn data(&self) -> u64 {
        self.start as u64 + CODE_SIZE as u64
    }

    /// Executes `code`, one instruction, on `registers` and `data`.
    fn run(&mut self, code: &[u8], registers: &Registers, data: &mut [u8]) -> Registers {
        const RET: u8 = 0xc3;
        let mut native = NativeRegisters {
            gpr: registers.gpr,
            rip: 0,
            rflags: registers.rflags,
        };
        assert!(code.len() < CODE_SIZE && data.len() == DATA_SIZE);
        // SAFETY: The code and the data fit into the mapping, which nobody else uses. The caller has made sure that the
        // instruction touches nothing but registers other than RSP, status flags, DF, and the data.
        unsafe {
            self.start.copy_from(code.as_ptr(), code.len());
            self.start.add(code.len()).write(RET);
            self.start
                .add(CODE_SIZE)
                .copy_from(data.as_ptr(), DATA_SIZE);
            xvm_test_run_native(&mut native, self.start);
            self.start
                .add(CODE_SIZE)
                .copy_to(data.as_mut_ptr(), DATA_SIZE);
        }
        Registers {
            gpr: native.gpr,
            rip: registers.rip + code.len() as u64,
            rflags: native.rflags,
        }
    }
}

/// Numbers whose sums and differences set and clear all flags.
fn number(random: &mut Random) -> u64 {
    const EDGES: [u64; 8] = [
        0,
        1,
        0x7f,
        0x80,
        0x7fff_ffff,
        0x8000_0000,
        1 << 63,
        u64::MAX,
    ];
    match random.below(4) {
        0 => random.pick(&EDGES),
        1 => random
            .pick(&EDGES)
            .wrapping_add(random.below(5))
            .wrapping_sub(2),
        _ => random.next(),
    }
}

/// A random instruction. A memory operand without base and index register is at `target`, absolutely or relative to
/// the instruction, which is at `code`.
fn instruction(random: &mut Random, code: u64, target: u64) -> Option<(Vec<u8>, Insn)> {
    const PREFIXES: [u8; 6] = [0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x3e];
    let mut bytes = Vec::new();
    for _ in 0..random.below(3) {
        bytes.push(random.pick(&PREFIXES));
    }
    if random.below(2) == 0 {
        bytes.push(0x40 | random.below(16) as u8);
    }
    let map = random.below(40);
    match map {
        0..=14 => bytes.extend([0x0f, random.next() as u8]),
        // MOVBE.
        15 => bytes.extend([0x0f, 0x38, 0xf0 | random.below(2) as u8]),
        _ => bytes.push(random.next() as u8),
    }
    // Not one prefix more.
    let first = bytes[bytes.len() - 1];
    if map > 15
        && matches!(first, 0x0f | 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
    {
        return None;
    }
    let opcode_end = bytes.len();
    bytes.extend((0..24).map(|_| random.next() as u8));
    let insn = decode(&bytes, CodeSize::Bits64).ok()?;
    if let Some(memory) = insn.operands.iter().find_map(memory_operand) {
        let value = match memory.base {
            Base::Gpr(_) => None,
            Base::None => Some(target),
            Base::NextRip => Some(target.wrapping_sub(code + u64::from(insn.length))),
        };
        if let Some(value) = value {
            let offset_only = map > 15 && bytes[opcode_end - 1] & 0xfc == 0xa0;
            let sib = memory.base == Base::None;
            let (position, size) = match (offset_only, sib) {
                (true, _) => (opcode_end, usize::from(insn.address_size)),
                (false, true) => (opcode_end + 2, 4),
                (false, false) => (opcode_end + 1, 4),
            };
            bytes[position..position + size].copy_from_slice(&value.to_le_bytes()[..size]);
        }
    }
    let insn = decode(&bytes, CodeSize::Bits64).ok()?;
    bytes.truncate(usize::from(insn.length));
    Some((bytes, insn))
}

fn memory_operand(operand: &Operand) -> Option<Memory> {
    match operand {
        Operand::Memory(memory) => Some(*memory),
        _ => None,
    }
}

/// Whether the instruction is one that the emulator executes and that can be run here: no ports, no RSP.
fn is_suitable(insn: &Insn) -> bool {
    let uses_rsp = insn.operands.iter().any(|operand| match operand {
        Operand::Register(register) => register.index == RSP,
        Operand::Memory(memory) => memory.base == Base::Gpr(RSP),
        _ => false,
    });
    let memory_destination = matches!(insn.operands[0], Operand::Memory(_));
    let lockable = !matches!(
        insn.op,
        Op::Mov | Op::Movbe | Op::Cmp | Op::Test | Op::Bt | Op::Movs | Op::Stos | Op::Cmps
    );
    let executed = !matches!(insn.op, Op::In | Op::Out | Op::Ins | Op::Outs);
    // Whether a failed CMPXCHG zero-extends its register is not the same on all CPUs.
    let same_everywhere = insn.op != Op::Cmpxchg || memory_destination;
    let lock_fits = !insn.lock || memory_destination && lockable;
    !uses_rsp
        && executed
        && same_everywhere
        && lock_fits
        && insn.op != Op::Other
        && name(insn.op).is_some()
}

/// The executed operations, by name.
fn name(op: Op) -> Option<String> {
    let system = [
        Op::MovCr,
        Op::MovDr,
        Op::Clts,
        Op::Lmsw,
        Op::Smsw,
        Op::Invlpg,
        Op::Cpuid,
        Op::Hlt,
        Op::Rdmsr,
        Op::Wrmsr,
        Op::Rdtsc,
        Op::Rdtscp,
        Op::Rdpid,
        Op::Rdpmc,
        Op::Xsetbv,
        Op::Vmcall,
        Op::Vmmcall,
        Op::Pause,
        Op::Invd,
        Op::Wbinvd,
        Op::Monitor,
        Op::Mwait,
        Op::Int1,
        Op::Int3,
        Op::Int,
        Op::Into,
        Op::Iret,
        Op::Rsm,
    ];
    (!system.contains(&op)).then(|| format!("{op:?}"))
}

/// Sets the registers so that the memory operands are in the data; `None` if the instruction uses one register for two
/// purposes that don't fit.
fn prepare(random: &mut Random, insn: &Insn, data: u64) -> Option<[u64; 16]> {
    let mut gpr = [0; 16];
    for register in &mut gpr {
        *register = number(random);
    }
    if is_string(insn.op) {
        let garbage = if insn.address_size == 4 {
            random.next() << 32
        } else {
            0
        };
        // Away from each other, or overlapping.
        gpr[RSI] = (data + TARGET + random.below(32)) | garbage;
        gpr[RDI] = (data + TARGET + random.below(200)) | garbage;
        gpr[RCX] = random.below(20) | garbage;
        return Some(gpr);
    }
    let Some(memory) = insn.operands.iter().find_map(memory_operand) else {
        return Some(gpr);
    };
    let bit_register = match (insn.op, insn.operands[1]) {
        (Op::Bt | Op::Bts | Op::Btr | Op::Btc, Operand::Register(register)) => Some(register),
        _ => None,
    };
    if let Some(register) = bit_register {
        let offset = random.below(8000).wrapping_sub(4000);
        let mask = if register.size == 8 {
            u64::MAX
        } else {
            (1 << (8 * register.size)) - 1
        };
        gpr[usize::from(register.index)] = random.next() & !mask | offset & mask;
    }
    let Base::Gpr(base) = memory.base else {
        return memory.index.is_none().then_some(gpr);
    };
    let mut sum = memory.displacement;
    if let Some(index) = memory.index {
        if index == base || index == RSP {
            return None;
        }
        let value = gpr[usize::from(index)];
        sum = sum.wrapping_add(value.wrapping_mul(u64::from(memory.scale)));
    }
    if bit_register.is_some_and(|register| register.index == base) {
        return None;
    }
    let garbage = if insn.address_size == 4 {
        random.next() << 32
    } else {
        0
    };
    gpr[usize::from(base)] = (data + TARGET).wrapping_sub(sum).wrapping_add(garbage);
    Some(gpr)
}

fn is_string(op: Op) -> bool {
    matches!(op, Op::Movs | Op::Cmps | Op::Stos | Op::Lods | Op::Scas)
}

/// The flags that the manuals define after `insn`.
fn defined_flags(insn: &Insn) -> u64 {
    match insn.op {
        Op::And | Op::Or | Op::Xor | Op::Test => STATUS & !AF,
        Op::Bt | Op::Bts | Op::Btr | Op::Btc => CF | ZF,
        _ => STATUS,
    }
}

/// Memory with repetitions, so that comparisons of strings find something.
fn fill(random: &mut Random, insn: &Insn, gpr: &[u64; 16], data: &mut [u8]) {
    if is_string(insn.op) {
        let few = random.below(2) == 0;
        for byte in &mut data[TARGET as usize - 512..TARGET as usize + 1024] {
            *byte = if few { 0x55 } else { random.below(3) as u8 };
        }
        return;
    }
    let value = match random.below(2) {
        0 => gpr[RAX],
        _ => number(random),
    };
    data[TARGET as usize..TARGET as usize + 8].copy_from_slice(&value.to_le_bytes());
}

#[test]
fn same_as_the_cpu() {
    assert!(std::is_x86_feature_detected!("movbe"));
    let samples = samples("XVM_NATIVE_SAMPLES", 1_000_000);
    let mut random = Random(1);
    let mut arena = Arena::new();
    let mut data: Vec<u8> = (0..DATA_SIZE).map(|_| random.next() as u8).collect();
    let mut seen: HashMap<String, usize> = HashMap::new();
    for _ in 0..samples {
        let target = arena.data() + TARGET;
        let Some((bytes, insn)) = instruction(&mut random, arena.code(), target) else {
            continue;
        };
        if !is_suitable(&insn) {
            continue;
        }
        let Some(gpr) = prepare(&mut random, &insn, arena.data()) else {
            continue;
        };
        fill(&mut random, &insn, &gpr, &mut data);
        let direction = if random.below(2) == 0 { DF } else { 0 };
        let registers = Registers {
            gpr,
            rip: arena.code(),
            rflags: 0x202 | random.next() & STATUS | direction,
        };
        let mut machine = TestMachine::new(CodeSize::Bits64, arena.data(), data.clone());
        machine.registers = registers.clone();
        let context = format!("{bytes:02x?} {insn:x?} {registers:x?}");
        machine.ask_userspace = random.below(2) == 0;
        assert_eq!(machine.run(&insn), Ok(()), "{context}");
        let native = arena.run(&bytes, &registers, &mut data);
        compare(&insn, &machine, &native, &data, &context);
        *seen.entry(name(insn.op).unwrap_or_default()).or_default() += 1;
    }
    assert_eq!(seen.len(), OPERATIONS, "not all operations came: {seen:?}");
}

fn compare(insn: &Insn, machine: &TestMachine, native: &Registers, data: &[u8], context: &str) {
    let undefined = STATUS & !defined_flags(insn);
    let ours = &machine.registers;
    assert_eq!(ours.gpr, native.gpr, "registers of {context}");
    assert_eq!(ours.rip, native.rip, "RIP of {context}");
    let difference = (ours.rflags ^ native.rflags) & !undefined;
    assert_eq!(difference, 0, "flags {:x} of {context}", native.rflags);
    assert!(machine.memory == data, "memory of {context}");
    assert!(insn.repeat != Repeat::None || machine.commits == 1);
}
