// SPDX-License-Identifier: GPL-2.0

//! Execution where the CPU that runs the tests can't be asked: other modes, segments, faults, ports, restarts.
//!
//! The random tests execute `XVM_EXECUTE_SAMPLES` instructions (default 300,000), always the same ones.

mod emulate_machine;
mod emulate_random;

use emulate_machine::Access;
use emulate_machine::TestMachine;
use emulate_machine::FLAT;
use emulate_random::samples;
use emulate_random::Random;
use proptest::prelude::*;
use xvm_logic::emulate::decode;
use xvm_logic::emulate::insn::Memory;
use xvm_logic::emulate::load;
use xvm_logic::emulate::CodeSize;
use xvm_logic::emulate::Fault;
use xvm_logic::emulate::Insn;
use xvm_logic::emulate::Mode;
use xvm_logic::emulate::Op;
use xvm_logic::emulate::Operand;
use xvm_logic::emulate::Segment;
use xvm_logic::emulate::SegmentName;
use xvm_logic::emulate::Stop;

use CodeSize::Bits16;
use CodeSize::Bits32;
use CodeSize::Bits64;

const BASE: u64 = 0x8000;
const SIZE: usize = 0x4000;
const RIP: u64 = 0x1000;

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;
const RBP: usize = 5;
const RSI: usize = 6;
const RDI: usize = 7;

const CF: u64 = 1;
const DF: u64 = 1 << 10;

/// Memory in which every byte tells its address.
fn machine(code_size: CodeSize) -> TestMachine {
    let memory = (0..SIZE).map(|i| (i ^ (i >> 8)) as u8).collect();
    TestMachine::new(code_size, BASE, memory)
}

fn insn(code_size: CodeSize, bytes: &[u8]) -> Insn {
    let insn = decode(bytes, code_size).expect("an instruction");
    assert_eq!(usize::from(insn.length), bytes.len(), "{bytes:02x?}");
    insn
}

fn run(machine: &mut TestMachine, bytes: &[u8]) -> Result<(), Stop> {
    let insn = insn(machine.code_size, bytes);
    run_to_end(machine, &insn)
}

/// Executes until RIP leaves the instruction.
fn run_to_end(machine: &mut TestMachine, insn: &Insn) -> Result<(), Stop> {
    let rip = machine.registers.rip;
    while machine.registers.rip == rip {
        machine.run(insn)?;
    }
    Ok(())
}

fn fault(vector: u8, error_code: Option<u32>, address: Option<u64>) -> Result<(), Stop> {
    Err(Stop::Fault(Fault {
        vector,
        error_code,
        address,
    }))
}

const GP: Result<(), Stop> = Err(Stop::Fault(Fault {
    vector: 13,
    error_code: Some(0),
    address: None,
}));

const SS: Result<(), Stop> = Err(Stop::Fault(Fault {
    vector: 12,
    error_code: Some(0),
    address: None,
}));

#[test]
fn addresses_of_16_bits_wrap() {
    let mut m = machine(Bits16);
    m.registers.gpr[RBX] = 0xdead_fff0;
    m.registers.gpr[RSI] = 0xbeef_8014;
    m.registers.gpr[RAX] = 0x1122_3344_5566_7788;
    // mov ax, [bx + si - 2]
    assert_eq!(run(&mut m, &[0x8b, 0x40, 0xfe]), Ok(()));
    assert_eq!(m.history, [Access::Read(0x8002, vec![2, 3])]);
    assert_eq!(m.registers.gpr[RAX], 0x1122_3344_5566_0302);
    assert_eq!(m.registers.rip, RIP + 3);
}

#[test]
fn results_of_32_bits_are_zero_extended() {
    let mut m = machine(Bits64);
    m.registers.gpr[RAX] = u64::MAX;
    m.registers.gpr[RBX] = BASE;
    // mov eax, [rbx]
    assert_eq!(run(&mut m, &[0x8b, 0x03]), Ok(()));
    assert_eq!(m.registers.gpr[RAX], 0x0302_0100);
    // movsx rax, byte [rbx + 0x80]
    m.registers.gpr[RBX] += 0x80;
    assert_eq!(run(&mut m, &[0x48, 0x0f, 0xbe, 0x03]), Ok(()));
    assert_eq!(m.registers.gpr[RAX], 0xffff_ffff_ffff_ff80);
}

#[test]
fn rip_wraps_at_32_bits_outside_of_64_bit_code() {
    for (code_size, next) in [(Bits32, 1), (Bits64, 0x1_0000_0001)] {
        let mut m = machine(code_size);
        m.registers.rip = 0xffff_ffff;
        // not eax
        assert_eq!(run(&mut m, &[0xf7, 0xd0]), Ok(()));
        assert_eq!(m.registers.rip, next);
    }
}

#[test]
fn high_bytes_are_exchanged() {
    let mut m = machine(Bits32);
    m.registers.gpr[RAX] = 0x1122;
    m.registers.gpr[RBX] = BASE + 0x34;
    // xchg [ebx], ah
    assert_eq!(run(&mut m, &[0x86, 0x23]), Ok(()));
    assert_eq!(m.registers.gpr[RAX], 0x3422);
    assert_eq!(m.memory[0x34], 0x11);
}

/// `mov eax, [ebx]` in `mode` from a data segment, and `mov [ebx], eax` to it.
fn through_ds(mode: Mode, ds: Segment, offset: u64) -> [Result<(), Stop>; 2] {
    [[0x8b, 0x03], [0x89, 0x03]].map(|bytes| {
        let mut m = machine(Bits32);
        m.mode = mode;
        m.segments[SegmentName::Ds as usize] = ds;
        m.registers.gpr[RBX] = offset;
        run(&mut m, &bytes)
    })
}

#[test]
fn segments_are_checked() {
    let segment = Segment {
        base: BASE,
        limit: 0x103,
        ..FLAT
    };
    let with_type = |typ| Segment { typ, ..segment };
    let protected = |segment, offset| through_ds(Mode::Protected, segment, offset);
    let both = |result| [result, result];
    assert_eq!(protected(segment, 0x100), both(Ok(())));
    assert_eq!(protected(segment, 0x101), both(GP));
    assert_eq!(protected(segment, 0xffff_fffe), both(GP));
    // Read-only data, execute-only code, readable code.
    assert_eq!(protected(with_type(1), 0), [Ok(()), GP]);
    assert_eq!(protected(with_type(9), 0), both(GP));
    assert_eq!(protected(with_type(11), 0), [Ok(()), GP]);
    // Expand-down: above the limit, below 4 GiB or 64 KiB.
    let down = with_type(7);
    assert_eq!(protected(down, 0x103), both(GP));
    assert_eq!(protected(down, 0x104), both(Ok(())));
    assert_eq!(protected(down, 0xffff_fffd), both(GP));
    let small = Segment { db: false, ..down };
    assert_eq!(protected(small, 0x3000), both(Ok(())));
    assert_eq!(protected(small, 0xfffd), both(GP));
    let null = Segment {
        unusable: true,
        ..segment
    };
    assert_eq!(protected(null, 0), both(GP));
    let system = Segment {
        s: false,
        ..segment
    };
    assert_eq!(protected(system, 0), both(GP));
    // Limits only, without an error code in real mode.
    let code = with_type(9);
    assert_eq!(through_ds(Mode::Real, code, 0), both(Ok(())));
    let no_code = fault(13, None, None);
    assert_eq!(through_ds(Mode::Real, code, 0x101), both(no_code));
    assert_eq!(through_ds(Mode::Virtual8086, code, 0x101), both(GP));
}

#[test]
fn the_stack_has_a_fault_of_its_own() {
    let mut m = machine(Bits32);
    m.segments[SegmentName::Ss as usize].limit = 0xfff;
    m.registers.gpr[RBP] = 0x1000;
    // mov eax, [ebp]; then with DS, which has no such limit.
    assert_eq!(run(&mut m, &[0x8b, 0x45, 0x00]), SS);
    assert_eq!(
        run(&mut m, &[0x3e, 0x8b, 0x45, 0x00]),
        fault(14, Some(0), Some(0x1000))
    );
}

#[test]
fn addresses_of_64_bits_are_canonical() {
    let mut m = machine(Bits64);
    // Bases and limits of most segments don't count.
    m.segments = [Segment {
        base: 0x100,
        limit: 0,
        unusable: true,
        ..FLAT
    }; 6];
    for (address, expected) in [
        (BASE, Ok(())),
        (0x7fff_ffff_fffd, GP),
        (0xffff_7fff_ffff_ffff, GP),
        (u64::MAX - 2, fault(14, Some(0), Some(u64::MAX - 2))),
    ] {
        m.registers.gpr[RBX] = address;
        // mov eax, [rbx]
        assert_eq!(run(&mut m, &[0x8b, 0x03]), expected, "{address:x}");
    }
    m.registers.gpr[RBX] = 1 << 62;
    // mov eax, gs:[rbx]
    assert_eq!(run(&mut m, &[0x65, 0x8b, 0x03]), GP);
    m.segments[SegmentName::Gs as usize].base = BASE.wrapping_sub(1 << 62);
    assert_eq!(run(&mut m, &[0x65, 0x8b, 0x03]), Ok(()));
    m.registers.gpr[RBP] = 1 << 62;
    // mov eax, [rbp]
    assert_eq!(run(&mut m, &[0x8b, 0x45, 0x00]), SS);
}

#[test]
fn read_only_memory_faults_before_it_is_read() {
    // add [rbx], eax; xchg; cmpxchg; not; bts [rbx], eax
    let updates: [&[u8]; 5] = [
        &[0x01, 0x03],
        &[0x87, 0x03],
        &[0x0f, 0xb1, 0x03],
        &[0xf7, 0x13],
        &[0x0f, 0xab, 0x03],
    ];
    for bytes in updates {
        let mut m = machine(Bits64);
        m.read_only = 0x1000;
        m.registers.gpr[RBX] = BASE + 0xffc;
        let expected = fault(14, Some(2), Some(BASE + 0xffc));
        assert_eq!(run(&mut m, bytes), expected, "{bytes:x?}");
        assert_eq!(m.history, []);
        // cmp [rbx], eax; test; bt
        for bytes in [&[0x39, 0x03][..], &[0x85, 0x03], &[0x0f, 0xa3, 0x03]] {
            assert_eq!(run(&mut m, bytes), Ok(()), "{bytes:x?}");
        }
    }
}

#[test]
fn lock_needs_memory_that_is_written() {
    let mut m = machine(Bits64);
    m.registers.gpr[RBX] = BASE;
    assert_eq!(run(&mut m, &[0xf0, 0x01, 0x03]), Ok(()));
    let undefined = fault(6, None, None);
    // lock mov [rbx], eax; lock add eax, ebx; lock cmp [rbx], eax; lock add eax, [rbx]
    for bytes in [[0x89, 0x03], [0x01, 0xd8], [0x39, 0x03], [0x03, 0x03]] {
        let locked = [0xf0, bytes[0], bytes[1]];
        assert_eq!(run(&mut m, &locked), undefined, "{bytes:x?}");
    }
}

#[test]
fn what_is_not_known_is_not_guessed() {
    // lea eax, [rbx]; cpuid; movups xmm0, [rbx]; mov cr0, rax
    for bytes in [
        &[0x8d, 0x03][..],
        &[0x0f, 0xa2],
        &[0x0f, 0x10, 0x03],
        &[0x0f, 0x22, 0xc0],
    ] {
        assert_eq!(run(&mut machine(Bits64), bytes), Err(Stop::Unknown));
    }
}

#[test]
fn ports_are_read_and_written() {
    let mut m = machine(Bits64);
    m.registers.gpr[RAX] = u64::MAX;
    // in al, 0x60
    assert_eq!(run(&mut m, &[0xe4, 0x60]), Ok(()));
    assert_eq!(m.history, [Access::In(0x60, 1, vec![0x60])]);
    assert_eq!(m.registers.gpr[RAX], 0xffff_ffff_ffff_ff60);
    m.registers.gpr[RDX] = 0xffff_0cf8;
    // out dx, eax; a REX.W doesn't make it wider.
    assert_eq!(run(&mut m, &[0x48, 0xef]), Ok(()));
    let written = Access::Out(0xcf8, 4, vec![0x60, 0xff, 0xff, 0xff]);
    assert_eq!(m.history[1], written);
    // in eax, dx
    assert_eq!(run(&mut m, &[0xed]), Ok(()));
    assert_eq!(m.registers.gpr[RAX], 0xfdfc_fbfa);
    m.registers.gpr[RDX] = 0xefff;
    // in al, dx; out dx, ax
    assert_eq!(run(&mut m, &[0xec]), Ok(()));
    assert_eq!(run(&mut m, &[0x66, 0xef]), GP);
}

#[test]
fn repeated_port_strings_go_in_batches_within_pages() {
    let mut m = machine(Bits64);
    m.registers.gpr[RDX] = 0x1f0;
    m.registers.gpr[RSI] = BASE + 0xff0;
    m.registers.gpr[RCX] = 300;
    // rep outsw
    assert_eq!(run(&mut m, &[0xf3, 0x66, 0x6f]), Ok(()));
    let sizes: Vec<usize> = m
        .history
        .iter()
        .filter_map(|access| match access {
            Access::Out(0x1f0, 2, data) => Some(data.len()),
            _ => None,
        })
        .collect();
    assert_eq!(sizes, [16, 256, 256, 72]);
    assert_eq!(m.registers.gpr[RSI], BASE + 0xff0 + 600);
    assert_eq!(m.registers.gpr[RCX], 0);
}

#[test]
fn downward_port_strings_go_one_by_one() {
    let mut m = machine(Bits64);
    m.registers.rflags |= DF;
    m.registers.gpr[RDX] = 0x1f0;
    m.registers.gpr[RDI] = BASE + 4;
    m.registers.gpr[RCX] = 2;
    // rep insd
    assert_eq!(run(&mut m, &[0xf3, 0x6d]), Ok(()));
    assert_eq!(m.history.len(), 4);
    assert_eq!(m.registers.gpr[RDI], BASE - 4);
    assert_eq!(
        m.memory[..8],
        [0xf2, 0xf3, 0xf4, 0xf5, 0xf0, 0xf1, 0xf2, 0xf3]
    );
}

#[test]
fn a_device_keeps_its_data_if_memory_faults() {
    let mut m = machine(Bits64);
    m.registers.gpr[RDX] = 0x1f0;
    m.registers.gpr[RDI] = BASE + SIZE as u64 - 2;
    m.registers.gpr[RCX] = 3;
    // rep insb: two fit.
    let expected = fault(14, Some(2), Some(BASE + SIZE as u64));
    assert_eq!(run(&mut m, &[0xf3, 0x6c]), expected);
    let reads: usize = m
        .history
        .iter()
        .map(|access| match access {
            Access::In(_, _, data) => data.len(),
            _ => 0,
        })
        .sum();
    assert_eq!((reads, m.registers.gpr[RCX]), (2, 1));
    assert_eq!(m.registers.rip, RIP);
}

#[test]
fn a_long_repetition_lets_others_have_the_cpu() {
    let mut m = machine(Bits64);
    m.registers.gpr[RDI] = BASE;
    m.registers.gpr[RCX] = 0x3000;
    m.registers.gpr[RAX] = 0xa5;
    let stosb = insn(Bits64, &[0xf3, 0xaa]);
    for left in [0x2000, 0x1000] {
        assert_eq!(m.run(&stosb), Ok(()));
        assert_eq!((m.registers.gpr[RCX], m.registers.rip), (left, RIP));
    }
    assert_eq!(m.run(&stosb), Ok(()));
    assert_eq!((m.registers.gpr[RCX], m.registers.rip), (0, RIP + 2));
    assert!(m.memory[..0x3000].iter().all(|&byte| byte == 0xa5));
}

#[test]
fn a_fault_in_a_repetition_keeps_what_was_done() {
    let mut m = machine(Bits32);
    m.registers.rflags |= CF;
    m.registers.gpr[RSI] = BASE;
    m.registers.gpr[RDI] = BASE + SIZE as u64 - 8;
    m.registers.gpr[RCX] = 5;
    m.memory.copy_within(..8, SIZE - 8);
    // repe cmpsd: flags stay until the end.
    let expected = fault(14, Some(0), Some(BASE + SIZE as u64));
    assert_eq!(run(&mut m, &[0xf3, 0xa7]), expected);
    assert_eq!((m.registers.gpr[RCX], m.registers.rip), (3, RIP));
    assert_eq!(m.registers.gpr[RSI], BASE + 8);
    assert_eq!(m.registers.rflags, 2 | CF);
}

#[test]
fn bit_strings_reach_beyond_the_operand() {
    let mut m = machine(Bits16);
    m.registers.gpr[RBX] = 0x9000;
    m.registers.gpr[RAX] = 0xffff;
    m.memory[0xffe..0x1000].copy_from_slice(&[0, 0]);
    // bts [bx], ax: bit -1
    assert_eq!(run(&mut m, &[0x0f, 0xab, 0x07]), Ok(()));
    assert_eq!(m.memory[0xffe..0x1000], [0, 0x80]);
    assert_eq!(m.registers.rflags, 2);
}

#[test]
fn a_handler_loads_its_operand_by_itself() {
    let mut m = machine(Bits32);
    m.segments[SegmentName::Ds as usize].base = 0x100;
    m.registers.gpr[RBX] = BASE;
    // lmsw [ebx]
    let lmsw = insn(Bits32, &[0x0f, 0x01, 0x33]);
    assert_eq!(load(&mut m, &lmsw, &lmsw.operands[0]), Ok(0x0001));
}

/// A random instruction of those that access memory or ports, for a random machine in which it often succeeds.
fn scenario(random: &mut Random) -> Option<(TestMachine, Insn)> {
    let code_size = random.pick(&[Bits16, Bits32, Bits64]);
    let mut bytes: Vec<u8> = (0..20).map(|_| random.next() as u8).collect();
    let mut position = 0;
    for _ in 0..random.below(4) {
        bytes[position] = random.pick(&[0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x64, 0x36]);
        position += 1;
    }
    if random.below(2) == 0 {
        bytes[position] = 0x0f;
        position += 1;
    }
    // Mostly [register] or [register + displacement].
    bytes[position + 1] &= 0x7f;
    let insn = decode(&bytes, code_size).ok()?;
    let mut m = machine(code_size);
    for register in &mut m.registers.gpr {
        let near_the_end = [0, SIZE as u64 - 8][random.below(2) as usize];
        *register = BASE + near_the_end + random.below(16);
        if random.below(8) == 0 {
            *register = random.next();
        }
    }
    if random.below(2) == 0 {
        m.registers.gpr[RCX] = random.below(40);
    }
    m.registers.rflags = 2 | random.next() & (0x8d5 | DF);
    m.read_only = [0, SIZE - 4][usize::from(random.below(4) == 0)];
    m.mode = match code_size {
        Bits16 => random.pick(&[Mode::Real, Mode::Virtual8086, Mode::Protected]),
        _ => Mode::Protected,
    };
    let accesses = insn
        .operands
        .iter()
        .any(|o| matches!(o, Operand::Memory(_)));
    (accesses || matches!(insn.op, Op::In | Op::Out)).then_some((m, insn))
}

#[test]
fn restarting_after_each_access_changes_nothing() {
    let mut random = Random(1);
    let samples = samples("XVM_EXECUTE_SAMPLES", 300_000);
    let (mut completed, mut faulted) = (0, 0);
    for _ in 0..samples {
        let Some((mut direct, insn)) = scenario(&mut random) else {
            continue;
        };
        let mut asking = direct.clone();
        asking.ask_userspace = true;
        let result = run_to_end(&mut direct, &insn);
        assert_eq!(run_to_end(&mut asking, &insn), result, "{insn:x?}");
        assert_eq!(asking.registers, direct.registers, "{insn:x?}");
        assert_eq!(asking.history, direct.history, "{insn:x?}");
        assert!(asking.memory == direct.memory, "{insn:x?}");
        match result {
            Ok(()) => completed += 1,
            Err(_) => faulted += 1,
        }
    }
    assert!(completed > samples / 50 && faulted > samples / 50);
}

/// The linear address that iced computes for the operand of an instruction at RIP.
fn address_by_iced(m: &TestMachine, bytes: &[u8], operand: u32) -> u64 {
    use iced_x86::Register;
    let bitness = match m.code_size {
        Bits16 => 16,
        Bits32 => 32,
        Bits64 => 64,
    };
    let rip = m.registers.rip;
    let mut decoder = iced_x86::Decoder::with_ip(bitness, bytes, rip, 0);
    let address = decoder
        .decode()
        .virtual_address(operand, 0, |register, _, _| {
            let number = register.full_register().number();
            let base = m.segments[number % 6].base;
            Some(match register {
                Register::FS | Register::GS => base,
                _ if register.is_segment_register() && m.code_size == Bits64 => 0,
                _ if register.is_segment_register() => base,
                _ => m.registers.gpr[number] & (u64::MAX >> (64 - 8 * register.size())),
            })
        });
    let address = address.expect("a memory operand");
    match m.code_size {
        Bits64 => address,
        _ => address & 0xffff_ffff,
    }
}

#[test]
fn linear_addresses_are_those_of_iced() {
    let samples = samples("XVM_EXECUTE_SAMPLES", 300_000);
    let mut random = Random(2);
    let mut compared = 0;
    for _ in 0..samples {
        let mut bytes: Vec<u8> = (0..20).map(|_| random.next() as u8).collect();
        bytes[0] = random.pick(&[0x67, 0x64, 0x66, 0x41, 0x42, bytes[0]]);
        bytes[1] = random.pick(&[0x89, 0x8b, 0x01, 0x00, 0xa1, 0xa4, 0xab, bytes[1]]);
        // Nothing is mapped: what tells the address is the page fault.
        let mut m = TestMachine::new(random.pick(&[Bits16, Bits32, Bits64]), 0, Vec::new());
        m.registers.gpr = core::array::from_fn(|_| random.next() >> random.pick(&[0, 20, 32, 48]));
        m.registers.rip = random.next() >> random.pick(&[0, 20, 32, 48]);
        for segment in &mut m.segments {
            segment.base = random.next() >> random.pick(&[0, 32, 48]);
        }
        let Ok(insn) = decode(&bytes, m.code_size) else {
            continue;
        };
        for (i, operand) in insn.operands.iter().enumerate() {
            // INVLPG accesses nothing.
            if let (Operand::Memory(Memory { size: 1.., .. }), false) = (operand, insn.lock) {
                let expected = address_by_iced(&m, &bytes, i as u32);
                match load(&mut m, &insn, operand) {
                    Err(Stop::Fault(Fault { address, .. })) if address.is_some() => {
                        assert_eq!(address, Some(expected), "{bytes:02x?} {insn:x?} {m:x?}");
                        compared += 1;
                    }
                    // Not canonical, or beyond the limit.
                    refused => assert!(matches!(refused, Err(Stop::Fault(_))), "{refused:?}"),
                }
            }
        }
    }
    assert!(compared > samples / 10, "{compared}");
}

fn any_segment() -> impl Strategy<Value = Segment> {
    let limit = prop_oneof![Just(0xffff), Just(u32::MAX), any::<u32>()];
    let base = prop_oneof![Just(0), any::<u64>()];
    (any::<u16>(), base, limit, 0u8..16, any::<[bool; 7]>()).prop_map(
        |(selector, base, limit, typ, [s, present, avl, l, db, g, unusable])| Segment {
            selector,
            base,
            limit,
            typ,
            s,
            dpl: 0,
            present,
            avl,
            l,
            db,
            g,
            unusable,
        },
    )
}

fn any_number() -> impl Strategy<Value = u64> {
    prop_oneof![any::<u64>(), BASE..BASE + 0x100, 0u64..16, u64::MAX - 16..]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50_000))]

    /// Whatever the guest does: a result, never a panic, and no register changed by an instruction that stopped
    /// (`TestMachine::run` looks).
    #[test]
    fn anything_can_be_executed(
        bytes in any::<[u8; 15]>(),
        prefix in prop_oneof![Just(None), any::<u8>().prop_map(Some)],
        gpr in proptest::array::uniform16(any_number()),
        rip in any_number(),
        rflags in any::<u64>(),
        segments in proptest::array::uniform6(any_segment()),
        code_size in prop_oneof![Just(Bits16), Just(Bits32), Just(Bits64)],
        mode in prop_oneof![Just(Mode::Real), Just(Mode::Virtual8086), Just(Mode::Protected)],
        ask_userspace in any::<bool>(),
    ) {
        let bytes: Vec<u8> = prefix.into_iter().chain(bytes).collect();
        if let Ok(insn) = decode(&bytes, code_size) {
            let mut m = machine(code_size);
            m.registers.gpr = gpr;
            m.registers.rip = rip;
            m.registers.rflags = rflags;
            m.segments = segments;
            m.mode = mode;
            m.ask_userspace = ask_userspace;
            let _ = m.run(&insn);
            prop_assert_eq!((m.registers.rflags ^ rflags) & !0x8d5, 0);
        }
    }
}
