// SPDX-License-Identifier: GPL-2.0

//! The instruction at RIP, decoded inside the window: by the shortest way where guest and instruction are of the usual kind, which
//! matters on CPUs that don't tell an intercepted instruction's length, and for accesses to devices.

use super::emulate;
use super::emulate::Code;
use super::emulate::CodeSize;
use super::emulate::Insn;
use super::guest_memory::INSN_MAX;
use super::memory::Region;
use super::memory::View;
use super::state::CodeContext;
use super::vcpu::Vcpu;
use super::XvmOps;
use crate::linux::rcu;

/// Two words, which hold any instruction.
const ROOM: u64 = 16;

/// The length of an instruction, of which `word` has the first eight bytes, that is the same in every mode and has no prefix, as nearly all
/// that are intercepted.
#[inline]
fn plain_length(word: u64) -> Option<u8> {
    match (word as u16, word as u32 & 0xff_ffff) {
        // CPUID, WRMSR, RDMSR, INVD, WBINVD.
        (0xa20f | 0x300f | 0x320f | 0x080f | 0x090f, _) => Some(2),
        // VMCALL, XSETBV, VMMCALL.
        (_, 0xc1_010f | 0xd1_010f | 0xd9_010f) => Some(3),
        // HLT.
        (first, _) if first & 0xff == 0xf4 => Some(1),
        _ => None,
    }
}

/// Bits of an entry of the guest's paging structures: present and accessed, user, large, execution disabled or reserved. Bits 62:52
/// are software's, and bits 51:48 are beyond what a slot has.
const PRESENT_ACCESSED: u64 = 1 << 0 | 1 << 5;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const FORBIDDEN: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The entry for `index` (times 8) in the table at `table`, if it is usual and the table in `region`, which nearly always has all of them.
#[inline(always)]
fn plain_entry(region: &Region, table: u64, index: u64) -> Option<u64> {
    if !region.holds(table) {
        return None;
    }
    let entry = region.read_word_nofault(table | index & 0xff8)?;
    (entry & (PRESENT_ACCESSED | FORBIDDEN) == PRESENT_ACCESSED).then_some(entry)
}

/// Where the instruction at RIP is in guest-physical memory, and the slot, for 64-bit code with [`ROOM`] bytes left in its page, if four-level
/// tables that are present, accessed, and free of anything unusual say that it may be executed: the common case of
/// `walk::inspect`, which has the last word on all others.
#[inline]
fn plain_place<'a>(slots: &'a View, context: &CodeContext) -> Option<(&'a Region, u64)> {
    let linear = context.rip;
    // Long mode has paging and PAE.
    if context.code_size() != CodeSize::Bits64 || linear % 4096 > 4096 - ROOM {
        return None;
    }
    let region = slots.by_gpa(context.cr3 & ADDRESS)?;
    let pml4e = plain_entry(region, context.cr3 & ADDRESS, linear >> 36)?;
    let pdpte = plain_entry(region, pml4e & ADDRESS, linear >> 27)?;
    // Pages of 1 GiB and huge PML4 entries aren't usual.
    if (pml4e | pdpte) & LARGE != 0 {
        return None;
    }
    let pde = plain_entry(region, pdpte & ADDRESS, linear >> 18)?;
    let (last, span) = match pde & LARGE {
        0 => (plain_entry(region, pde & ADDRESS, linear >> 9)?, 0xfff),
        _ => (pde, 0x1f_ffff),
    };
    // Kernel code in a user page is SMEP's business, user code in a kernel page a fault, reserved address bits too; bit 12 is PAT's.
    let user = pml4e & pdpte & pde & last & USER != 0;
    if user != (context.cpl == 3) || last & ADDRESS & span & !0x1000 != 0 {
        return None;
    }
    let gpa = last & ADDRESS & !span | linear & span;
    match region.holds(gpa) {
        true => Some((region, gpa)),
        false => Some((slots.by_gpa(gpa)?, gpa)),
    }
}

/// Decodes what [`Vcpu::plain_code`] has found.
pub(crate) fn decode_plain(code: Code) -> Option<Insn> {
    let bytes = code.to_le_bytes();
    emulate::decode(&bytes[..INSN_MAX], CodeSize::Bits64).ok()
}

impl<V: XvmOps> Vcpu<V> {
    /// Has `look` read guest memory without sleeping, outside of the window: a change of the slots waits for its end, as it does for
    /// what is done inside.
    pub(crate) fn peek<T>(&mut self, look: impl FnOnce(&mut Self) -> T) -> T {
        let _reader = rcu::read_side();
        look(self)
    }

    /// The bytes at RIP, where guest and instruction are of the usual kind: 64-bit code.
    #[inline]
    pub(crate) fn plain_code(&mut self) -> Option<Code> {
        let context = V::code_context(&self.arch);
        let (region, gpa) = plain_place(self.current_slots(), &context)?;
        let low = region.read_word_nofault(gpa)?;
        let high = region.read_word_nofault(gpa.wrapping_add(8))?;
        Some(Code::from(low) | Code::from(high) << 64)
    }

    /// Decodes the instruction at RIP if its bytes are present, without sleeping.
    pub(crate) fn decode_nofault(&mut self) -> Option<Insn> {
        match self.plain_code() {
            Some(code) => decode_plain(code),
            None => self.decode_unusual(),
        }
    }

    /// The same where [`Vcpu::plain_code`] has nothing.
    pub(crate) fn decode_unusual(&mut self) -> Option<Insn> {
        let context = V::code_context(&self.arch);
        let (bytes, length) = self.fetch_nofault(&context)?;
        emulate::decode(bytes.get(..length)?, context.code_size()).ok()
    }

    /// The length of the intercepted instruction at RIP, as [`Vcpu::decode_nofault`].
    #[inline(never)]
    pub(crate) fn length_nofault(&mut self) -> Option<u8> {
        let context = V::code_context(&self.arch);
        plain_place(self.current_slots(), &context)
            .and_then(|(region, gpa)| region.read_word_nofault(gpa))
            .and_then(plain_length)
            .or_else(|| self.decode_nofault().map(|insn| insn.length))
    }
}
