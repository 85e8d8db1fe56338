// SPDX-License-Identifier: GPL-2.0

//! The guest's own page tables: from a linear address to a guest-physical one, and the bytes of the next instruction, wherever they are.

use super::emulate::walk;
use super::emulate::walk::Access;
use super::emulate::walk::Paging;
use super::emulate::walk::TableAccess;
use super::emulate::CodeSize;
use super::memory::View;
use super::state::CodeContext;
use super::vcpu::Vcpu;
use super::XvmOps;
use kernel::prelude::*;

/// The longest instruction.
pub(crate) const INSN_MAX: usize = 15;

/// RFLAGS.VM.
const VIRTUAL_8086: u64 = 1 << 17;
/// RFLAGS.AC.
pub(crate) const ALIGNMENT_CHECK: u64 = 1 << 18;

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
    pub(super) fn fetch_nofault(
        &mut self,
        context: &CodeContext,
    ) -> Option<([u8; INSN_MAX], usize)> {
        const PAGE: usize = 4096;
        let linear = context.linear(context.rip);
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
        let (head, tail) = bytes.split_at_mut(room.min(INSN_MAX));
        slots.read_nofault(gpa, head).ok()?;
        if tail.is_empty() {
            return Some((bytes, INSN_MAX));
        }
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
}
