// SPDX-License-Identifier: GPL-2.0

//! The instruction at RIP, decoded inside the window: by the shortest way where guest and instruction are of the usual kind, which
//! matters on CPUs that don't tell an intercepted instruction's length, and for accesses to devices.

use super::emulate;
use super::emulate::CodeSize;
use super::emulate::Insn;
use super::guest_memory::INSN_MAX;
use super::memory::Region;
use super::memory::View;
use super::state::CodeContext;
use super::vcpu::Vcpu;
use super::XvmOps;

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

/// Where the instruction at RIP is in guest-physical memory, and the slot, for 64-bit code with [`ROOM`] bytes left in its page, if four-level
/// tables that are present, accessed, and free of anything unusual say that it may be executed: the common case of
/// `walk::inspect`, which has the last word on all others.
#[inline]
fn plain_place<'a>(slots: &'a View, context: &CodeContext) -> Option<(&'a Region, u64)> {
    const PRESENT_ACCESSED: u64 = 1 << 0 | 1 << 5;
    const USER: u64 = 1 << 2;
    const LARGE: u64 = 1 << 7;
    // Bit 63, XD or reserved, forbids; bits 62:52 are software's, and bits 51:48 are beyond what a slot has.
    const FORBIDDEN: u64 = 1 << 63;
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    const PAGE: u64 = 4096;
    // Long mode has paging and PAE.
    let linear = context.rip;
    if context.code_size() != CodeSize::Bits64 || linear % PAGE > PAGE - ROOM {
        return None;
    }
    let mut table = context.cr3 & ADDRESS;
    let mut user = USER;
    // Nearly always all tables, and the code, are in one slot.
    let mut region = slots.by_gpa(table)?;
    for shift in [39, 30, 21, 12] {
        if !region.holds(table) {
            region = slots.by_gpa(table)?;
        }
        let entry = region.read_word_nofault(table | ((linear >> shift) & 0x1ff) << 3)?;
        if entry & (PRESENT_ACCESSED | FORBIDDEN) != PRESENT_ACCESSED {
            return None;
        }
        user &= entry;
        table = entry & ADDRESS;
        if shift == 12 || entry & LARGE != 0 {
            let span = (1u64 << shift) - 1;
            // Kernel code in a user page is SMEP's business, user code in a kernel page a fault, reserved address bits too.
            let allowed =
                (user != 0) == (context.cpl == 3) && shift != 39 && table & span & !0x1000 == 0;
            let gpa = table & !span | linear & span;
            if !region.holds(gpa) {
                region = slots.by_gpa(gpa)?;
            }
            return allowed.then_some((region, gpa));
        }
    }
    None
}

impl<V: XvmOps> Vcpu<V> {
    /// Decodes the instruction at RIP if its bytes are present, without sleeping.
    pub(crate) fn decode_nofault(&mut self) -> Option<Insn> {
        let context = V::code_context(&self.arch);
        if let Some((region, gpa)) = plain_place(self.current_slots(), &context) {
            let mut bytes = [0; ROOM as usize];
            let (low, high) = bytes.split_at_mut(8);
            low.copy_from_slice(&region.read_word_nofault(gpa)?.to_le_bytes());
            high.copy_from_slice(&region.read_word_nofault(gpa.wrapping_add(8))?.to_le_bytes());
            return emulate::decode(&bytes[..INSN_MAX], CodeSize::Bits64).ok();
        }
        let (bytes, length) = self.fetch_nofault(&context)?;
        emulate::decode(bytes.get(..length)?, context.code_size()).ok()
    }

    /// The length of the intercepted instruction at RIP, as [`Vcpu::decode_nofault`].
    pub(crate) fn length_nofault(&mut self) -> Option<u8> {
        let context = V::code_context(&self.arch);
        plain_place(self.current_slots(), &context)
            .and_then(|(region, gpa)| region.read_word_nofault(gpa))
            .and_then(plain_length)
            .or_else(|| self.decode_nofault().map(|insn| insn.length))
    }
}
