// SPDX-License-Identifier: GPL-2.0

//! Plain moves between a register and a device's memory, which is nearly all that drivers do, without the emulator.
//!
//! The fault tells the guest-physical address, and that segmentation and the guest's own page tables allow the access, so that
//! only the instruction is left to be looked at. What isn't simple is left to the emulator.

use super::emulate::Base;
use super::emulate::Code;
use super::emulate::CodeSize;
use super::emulate::Insn;
use super::emulate::MovedWith;
use super::emulate::Op;
use super::emulate::Operand;
use super::emulate::Register;
use super::emulate::SegmentName;
use super::emulate::ShortMove;
use super::exits::Skip;
use super::kernel_devices::device_time;
use super::next_insn::decode_plain;
use super::platform::bus::Space;
use super::state::RSP;
use super::vcpu::Vcpu;
use super::MemoryFault;
use super::XvmOps;

/// Bytes of a page.
const PAGE: u64 = 4096;

/// A move between a register (not RSP, which the vendor keeps elsewhere) or an immediate, and memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlainMove {
    /// Bytes of memory: 1, 2, 4 or 8.
    pub(crate) size: u8,
    /// What is written to memory; `None` for a read.
    pub(crate) source: Option<Source>,
    /// The register that a read goes to.
    register: u8,
    /// Bytes of the instruction.
    length: u8,
}

/// What a move writes to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The low bytes of a register.
    Register(u8),
    /// An immediate.
    Immediate(u64),
}

impl From<ShortMove> for PlainMove {
    fn from(short: ShortMove) -> Self {
        let (source, register) = match short.with {
            MovedWith::To(register) => (None, register),
            MovedWith::From(register) => (Some(Source::Register(register)), 0),
            MovedWith::Immediate(value) => (Some(Source::Immediate(value)), 0),
        };
        Self {
            size: short.size,
            source,
            register: register & 15,
            length: short.length,
        }
    }
}

impl PlainMove {
    /// Whether its register is one that the vendor keeps elsewhere.
    fn uses_rsp(&self) -> bool {
        match self.source {
            None => usize::from(self.register) == RSP,
            Some(Source::Register(index)) => usize::from(index) == RSP,
            Some(Source::Immediate(_)) => false,
        }
    }

    fn new(insn: &Insn) -> Option<Self> {
        if insn.op != Op::Mov || insn.lock {
            return None;
        }
        let plain = |register: Register| !register.high && usize::from(register.index) != RSP;
        let (size, source, register) = match insn.operands {
            [Operand::Memory(memory), Operand::Register(from)] if plain(from) => {
                (memory.size, Some(Source::Register(from.index)), 0)
            }
            [Operand::Memory(memory), Operand::Immediate(value)] => {
                (memory.size, Some(Source::Immediate(value)), 0)
            }
            [Operand::Register(to), Operand::Memory(memory)] if plain(to) => {
                (memory.size, None, to.index)
            }
            _ => return None,
        };
        Some(Self {
            size,
            source,
            register: register & 15,
            length: insn.length,
        })
    }

    /// Bytes of memory, as a length.
    pub(crate) fn bytes(&self) -> usize {
        usize::from(self.size).min(8)
    }

    /// How far the instruction reaches.
    pub(crate) fn skip(&self) -> Skip {
        Skip::bytes(self.length)
    }
}

impl<V: XvmOps> Vcpu<V> {
    /// The instruction that faulted, if it is a plain move whose whole operand is at the fault's address.
    pub(crate) fn decode_move(&mut self, fault: &MemoryFault) -> Option<PlainMove> {
        if fault.walk || fault.fetch {
            return None;
        }
        let code = self.plain_code();
        if let Some(plain) = code.and_then(|code| self.decode_short_move(code, fault)) {
            return Some(plain);
        }
        self.decode_long_move(code, fault)
    }

    /// The same for all that aren't the shortest of moves.
    #[inline(never)]
    fn decode_long_move(&mut self, code: Option<Code>, fault: &MemoryFault) -> Option<PlainMove> {
        let insn = match code {
            Some(code) => decode_plain(code),
            None => self.decode_unusual(),
        }?;
        let plain = PlainMove::new(&insn)?;
        let aligned = fault.gpa % u64::from(plain.size.max(1)) == 0;
        // At a page's start the operand may have begun in the page before, if it isn't aligned.
        let whole = fault.gpa % PAGE != 0
            || self
                .operand_address(&insn)
                .is_some_and(|address| address % PAGE == 0);
        (aligned && whole && plain.source.is_some() == fault.write).then_some(plain)
    }

    /// The same for the shortest of moves.
    #[inline]
    fn decode_short_move(&mut self, code: Code, fault: &MemoryFault) -> Option<PlainMove> {
        let short = ShortMove::decode(code)?;
        let plain = PlainMove::from(short);
        let misaligned = fault.gpa & u64::from(plain.size.wrapping_sub(1));
        if misaligned != 0
            || plain.source.is_some() != fault.write
            || plain.uses_rsp()
            || usize::from(short.base) == RSP
        {
            return None;
        }
        let base = V::gprs(&mut self.arch).0[usize::from(short.base & 15)];
        let address = base.wrapping_add(short.displacement);
        // As below: at a page's start the operand may have begun before.
        (fault.gpa % PAGE != 0 || address % PAGE == 0).then_some(plain)
    }

    /// The linear address of the memory operand in 64-bit mode, where segments (but FS and GS) have no base.
    fn operand_address(&mut self, insn: &Insn) -> Option<u64> {
        let memory = insn.operands.iter().find_map(|operand| match operand {
            Operand::Memory(memory) => Some(*memory),
            _ => None,
        })?;
        let context = V::code_context(&self.arch);
        let flat = context.code_size() == CodeSize::Bits64 && insn.address_size == 8;
        if !flat || matches!(memory.segment, SegmentName::Fs | SegmentName::Gs) {
            return None;
        }
        let gprs = V::gprs(&mut self.arch);
        let register =
            |index: u8| (usize::from(index) != RSP).then(|| gprs.0[usize::from(index & 15)]);
        let base = match memory.base {
            Base::None => 0,
            Base::Gpr(index) => register(index)?,
            Base::NextRip => context.rip.wrapping_add(insn.length.into()),
        };
        let index = memory
            .index
            .map_or(Some(0), register)?
            .wrapping_mul(memory.scale.into());
        Some(base.wrapping_add(index).wrapping_add(memory.displacement))
    }

    /// What the move writes, in little-endian order.
    pub(crate) fn move_data(&mut self, source: Source) -> [u8; 8] {
        let value = match source {
            Source::Register(index) => V::gprs(&mut self.arch).0[usize::from(index & 15)],
            Source::Immediate(value) => value,
        };
        value.to_le_bytes()
    }

    /// Ends a move that the VMM has carried out.
    pub(crate) fn complete_move(&mut self, plain: &PlainMove) {
        if plain.source.is_none() {
            self.load(plain, u64::from_le_bytes(self.mmio_data()));
        }
        self.skip(Skip::bytes(plain.length));
    }

    /// Sets the register of a read; four bytes clear the upper half, fewer leave the rest.
    fn load(&mut self, plain: &PlainMove, value: u64) {
        let register = &mut V::gprs(&mut self.arch).0[usize::from(plain.register)];
        *register = match plain.size {
            1 => (*register & !0xff) | (value & 0xff),
            2 => (*register & !0xffff) | (value & 0xffff),
            4 => value & 0xffff_ffff,
            _ => value,
        };
    }
}

/// An access to the local APIC's page: aligned moves of four bytes, as its manual demands (SDM vol 3, 12.4.1). Inside the window.
pub(crate) fn local_apic<V: XvmOps>(vcpu: &mut Vcpu<V>, fault: &MemoryFault) -> bool {
    let here = |vcpu: &Vcpu<V>| {
        vcpu.lapic
            .as_ref()
            .is_some_and(|lapic| lapic.page() == Some(fault.gpa & !0xfff))
    };
    if !here(vcpu) || vcpu.slots_cover(fault.gpa) {
        return false;
    }
    let Some(plain) = vcpu.decode_move(fault).filter(|plain| plain.size == 4) else {
        return false;
    };
    let offset = (fault.gpa & 0xfff) as u32;
    match plain.source {
        Some(source) => {
            let data = vcpu.move_data(source);
            let value = u64::from_le_bytes(data) as u32;
            vcpu.lapic_write(offset, value);
        }
        None => {
            let now = device_time(offset);
            let value = vcpu
                .lapic
                .as_mut()
                .map_or(0, |lapic| lapic.read(offset, now));
            vcpu.load(&plain, value.into());
        }
    }
    vcpu.skip(Skip::bytes(plain.length))
}

/// A write to where an eventfd or the ring is the VMM's stand-in. Inside the window.
pub(crate) fn bus<V: XvmOps>(vcpu: &mut Vcpu<V>, fault: &MemoryFault) -> bool {
    if !fault.write || !vcpu.bus_covers(Space::Memory, fault.gpa) || vcpu.slots_cover(fault.gpa) {
        return false;
    }
    let Some(plain) = vcpu.decode_move(fault) else {
        return false;
    };
    let Some(source) = plain.source else {
        return false;
    };
    let data = vcpu.move_data(source);
    vcpu.bus_write_now(Space::Memory, fault.gpa, &data[..plain.bytes()])
        && vcpu.skip(Skip::bytes(plain.length))
}
