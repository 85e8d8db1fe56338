// SPDX-License-Identifier: GPL-2.0

//! The guest's own page tables: from a linear address to a guest-physical one, and the bytes of the next instruction.

use super::emulate;
use super::emulate::walk;
use super::emulate::walk::Access;
use super::emulate::walk::Paging;
use super::emulate::walk::TableAccess;
use super::emulate::CodeSize;
use super::emulate::Insn;
use super::memory::View;
use super::state::CodeContext;
use super::vcpu::Vcpu;
use super::XvmOps;
use crate::linux::user;
use kernel::prelude::*;

/// The longest instruction.
pub(crate) const INSN_MAX: usize = 15;

/// RFLAGS.VM.
const VIRTUAL_8086: u64 = 1 << 17;
/// RFLAGS.AC.
pub(crate) const ALIGNMENT_CHECK: u64 = 1 << 18;

impl View {
    /// The bytes of an instruction that is inside of one page, with a byte after it, if they are present.
    fn read_insn_nofault(&self, gpa: u64) -> Option<[u8; INSN_MAX]> {
        let region = self.by_gpa(gpa)?;
        let address = region.user_address(gpa);
        let low = user::read_word_nofault(address).ok()?;
        let high = user::read_word_nofault(address.wrapping_add(8)).ok()?;
        let mut bytes = [0; INSN_MAX];
        bytes[..8].copy_from_slice(&low.to_le_bytes());
        bytes[8..].copy_from_slice(&high.to_le_bytes()[..7]);
        Some(bytes)
    }
}

/// Paging structures in guest memory; may sleep.
pub(crate) struct Sleeping<'a>(pub(crate) &'a View);

impl TableAccess for Sleeping<'_> {
    type Error = Error;

    fn read(&mut self, gpa: u64, size: u8) -> Result<u64> {
        let mut bytes = [0; 8];
        let part = bytes.get_mut(..usize::from(size)).ok_or(EINVAL)?;
        self.0.read(gpa, part)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn compare_exchange(&mut self, gpa: u64, size: u8, old: u64, new: u64) -> Result<bool> {
        match self.0.compare_exchange(gpa, size.into(), old, new) {
            // Read-only memory keeps no accessed bits.
            Err(error) if error == ENXIO => Ok(true),
            result => result,
        }
    }
}

/// Paging structures in guest memory, only read, and only what is present: for use inside the window.
struct Present<'a>(&'a View);

impl TableAccess for Present<'_> {
    type Error = Error;

    fn read(&mut self, gpa: u64, size: u8) -> Result<u64> {
        // An entry of 4 bytes at a page's end is the upper half of the eight before it.
        let word = self.0.read_word_nofault(gpa & !7)?;
        Ok(match (size, gpa & 4) {
            (8, _) => word,
            (_, 0) => word & 0xffff_ffff,
            _ => word >> 32,
        })
    }

    fn compare_exchange(&mut self, _: u64, _: u8, _: u64, _: u64) -> Result<bool> {
        Err(EFAULT)
    }
}

impl CodeContext {
    /// Default operand and address size of the code that runs.
    pub(crate) fn code_size(&self) -> CodeSize {
        const LONG: u16 = 1 << 9;
        const DEFAULT_32: u16 = 1 << 10;
        const LMA: u64 = 1 << 10;
        if self.efer & LMA != 0 && self.cs_attributes & LONG != 0 {
            CodeSize::Bits64
        } else if self.cs_attributes & DEFAULT_32 != 0 {
            CodeSize::Bits32
        } else {
            CodeSize::Bits16
        }
    }

    /// Linear address of the instruction at `rip`.
    pub(crate) fn linear(&self, rip: u64) -> u64 {
        match self.code_size() {
            CodeSize::Bits64 => rip,
            _ => self.cs_base.wrapping_add(rip) & 0xffff_ffff,
        }
    }

    /// An address that follows another: it wraps at 4 GiB outside of 64-bit mode.
    pub(crate) fn wrap(&self, linear: u64) -> u64 {
        match self.code_size() {
            CodeSize::Bits64 => linear,
            _ => linear & 0xffff_ffff,
        }
    }
}

/// Whether the vCPU is in virtual-8086 mode.
pub(crate) fn is_virtual_8086(rflags: u64) -> bool {
    rflags & VIRTUAL_8086 != 0
}

/// The length of an instruction that is the same in every mode and that has no prefix, as nearly all that are intercepted.
fn plain_length(bytes: &[u8; INSN_MAX]) -> Option<u8> {
    match bytes {
        // CPUID, WRMSR, RDMSR, INVD, WBINVD.
        [0x0f, 0xa2 | 0x30 | 0x32 | 0x08 | 0x09, ..] => Some(2),
        // VMCALL, XSETBV, VMMCALL.
        [0x0f, 0x01, 0xc1 | 0xd1 | 0xd9, ..] => Some(3),
        // HLT.
        [0xf4, ..] => Some(1),
        _ => None,
    }
}

/// Where 64-bit code is in guest-physical memory, if four-level tables that are present, accessed, and free of anything
/// unusual say that it may be executed: the common case of [`walk::inspect`], which has the last word on all others.
fn plain_code_page(slots: &View, context: &CodeContext, linear: u64) -> Option<u64> {
    const PRESENT_ACCESSED: u64 = 1 << 0 | 1 << 5;
    const USER: u64 = 1 << 2;
    const LARGE: u64 = 1 << 7;
    // Bit 63, XD or reserved, forbids; bits 62:52 are software's, and bits 51:48 are beyond what a slot has.
    const FORBIDDEN: u64 = 1 << 63;
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    const PAGING: u64 = 1 << 31;
    const PAE: u64 = 1 << 5;
    if context.cr0 & PAGING == 0
        || context.cr4 & PAE == 0
        || context.code_size() != CodeSize::Bits64
    {
        return None;
    }
    let mut table = context.cr3 & ADDRESS;
    let mut user = USER;
    let mut region = slots.by_gpa(table)?;
    for shift in [39, 30, 21, 12] {
        // Nearly always all tables are in one slot.
        if !region.holds(table) {
            region = slots.by_gpa(table)?;
        }
        let address = region.user_address(table | ((linear >> shift) & 0x1ff) << 3);
        let entry = user::read_word_nofault(address).ok()?;
        if entry & PRESENT_ACCESSED != PRESENT_ACCESSED || entry & FORBIDDEN != 0 {
            return None;
        }
        user &= entry;
        table = entry & ADDRESS;
        if shift == 12 || entry & LARGE != 0 {
            let span = (1u64 << shift) - 1;
            // Kernel code in a user page is SMEP's business, user code in a kernel page a fault, reserved address bits too.
            let allowed =
                (user != 0) == (context.cpl == 3) && shift != 39 && table & span & !0x1000 == 0;
            return allowed.then_some(table & !span | linear & span);
        }
    }
    None
}

impl<V: XvmOps> Vcpu<V> {
    /// The registers that rule translation.
    pub(crate) fn paging(&self, context: &CodeContext) -> Paging {
        let model = self.cpuid.model();
        Paging {
            cr0: context.cr0,
            cr3: context.cr3,
            cr4: context.cr4,
            efer: context.efer,
            // Read again from memory, as SVM does: what VMX cached differs only if the guest changed them without loading CR3.
            pdptes: None,
            maxphyaddr: model.maxphyaddr,
            gigabyte_pages: model.gigabyte_pages,
        }
    }

    /// The bytes at RIP, as many as are present, without sleeping; at least one. Inside the window.
    fn fetch_nofault(&mut self, context: &CodeContext) -> Option<([u8; INSN_MAX], usize)> {
        const PAGE: usize = 4096;
        let linear = context.linear(context.rip);
        if let Some(gpa) = plain_code_page(self.current_slots(), context, linear) {
            if PAGE - (linear % PAGE as u64) as usize > INSN_MAX {
                return Some((self.slots.read_insn_nofault(gpa)?, INSN_MAX));
            }
        }
        let paging = self.paging(context);
        let access = Access {
            fetch: true,
            user: context.cpl == 3,
            ..Access::default()
        };
        let slots = self.current_slots();
        let mut bytes = [0; INSN_MAX];
        let gpa = walk::inspect(&mut Present(slots), &paging, linear, access)
            .ok()?
            .gpa;
        let room = PAGE - (linear % PAGE as u64) as usize;
        if room > INSN_MAX {
            return Some((slots.read_insn_nofault(gpa)?, INSN_MAX));
        }
        let (head, tail) = bytes.split_at_mut(room.min(INSN_MAX));
        slots.read_nofault(gpa, head).ok()?;
        // Most instructions end before the page does, and the next one may not be there.
        let rest = walk::inspect(
            &mut Present(slots),
            &paging,
            context.wrap(linear.wrapping_add(room as u64)),
            access,
        );
        let whole = rest.is_ok_and(|rest| slots.read_nofault(rest.gpa, tail).is_ok());
        Some((bytes, if whole { INSN_MAX } else { room }))
    }

    /// Decodes the instruction at RIP if its bytes are present, without sleeping. Inside the window.
    pub(crate) fn decode_nofault(&mut self) -> Option<Insn> {
        let context = V::code_context(&self.arch);
        let (bytes, length) = self.fetch_nofault(&context)?;
        emulate::decode(bytes.get(..length)?, context.code_size()).ok()
    }

    /// The length of the intercepted instruction at RIP, as [`Vcpu::decode_nofault`].
    pub(crate) fn length_nofault(&mut self) -> Option<u8> {
        let context = V::code_context(&self.arch);
        let (bytes, length) = self.fetch_nofault(&context)?;
        plain_length(&bytes).or_else(|| {
            let insn = emulate::decode(bytes.get(..length)?, context.code_size());
            insn.ok().map(|insn| insn.length)
        })
    }
}
