// SPDX-License-Identifier: GPL-2.0

//! The guest's own page tables: from a linear address to a guest-physical one, and the bytes of the next instruction.

use super::emulate;
use super::emulate::walk;
use super::emulate::walk::Access;
use super::emulate::walk::Paging;
use super::emulate::walk::TableAccess;
use super::emulate::CodeSize;
use super::emulate::Insn;
use super::memory::Slots;
use super::state::seg;
use super::state::SystemRegs;
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
pub(crate) struct Sleeping<'a>(pub(crate) &'a Slots);

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
struct Present<'a>(&'a Slots);

impl TableAccess for Present<'_> {
    type Error = Error;

    fn read(&mut self, gpa: u64, size: u8) -> Result<u64> {
        let mut bytes = [0; 8];
        let part = bytes.get_mut(..usize::from(size)).ok_or(EINVAL)?;
        self.0.read_nofault(gpa, part)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn compare_exchange(&mut self, _: u64, _: u8, _: u64, _: u64) -> Result<bool> {
        Err(EFAULT)
    }
}

/// Default operand and address size of the code that runs.
pub(crate) fn code_size(system: &SystemRegs) -> CodeSize {
    const LONG: u16 = 1 << 9;
    const DEFAULT_32: u16 = 1 << 10;
    const LMA: u64 = 1 << 10;
    let attributes = system.segments[seg::CS].attributes;
    if system.efer & LMA != 0 && attributes & LONG != 0 {
        CodeSize::Bits64
    } else if attributes & DEFAULT_32 != 0 {
        CodeSize::Bits32
    } else {
        CodeSize::Bits16
    }
}

/// The current privilege level: SS.DPL, as both vendors keep it; 0 in real mode.
pub(crate) fn cpl(system: &SystemRegs) -> u8 {
    if system.cr0 & 1 == 0 {
        return 0;
    }
    ((system.segments[seg::SS].attributes >> 5) & 3) as u8
}

/// Linear address of the instruction at `rip`.
pub(crate) fn code_address(system: &SystemRegs, rip: u64) -> u64 {
    match code_size(system) {
        CodeSize::Bits64 => rip,
        _ => system.segments[seg::CS].base.wrapping_add(rip) & 0xffff_ffff,
    }
}

/// Whether the vCPU is in virtual-8086 mode.
pub(crate) fn is_virtual_8086(rflags: u64) -> bool {
    rflags & VIRTUAL_8086 != 0
}

impl<V: XvmOps> Vcpu<V> {
    /// The registers that rule translation.
    pub(crate) fn paging(&self, system: &SystemRegs) -> Paging {
        Paging {
            cr0: system.cr0,
            cr3: system.cr3,
            cr4: system.cr4,
            efer: system.efer,
            // Read again from memory, as SVM does: what VMX cached differs only if the guest changed them without loading CR3.
            pdptes: None,
            maxphyaddr: self.cpuid.model().maxphyaddr,
            gigabyte_pages: self.cpuid.model().gigabyte_pages,
        }
    }

    /// Decodes the instruction at RIP if its bytes are present, without sleeping. Inside the window.
    pub(crate) fn decode_nofault(&mut self) -> Option<Insn> {
        let rip = V::store_cpu_user_regs(&self.arch).rip;
        let system = V::system_regs(&self.arch);
        let paging = self.paging(&system);
        let access = Access {
            fetch: true,
            user: cpl(&system) == 3,
            ..Access::default()
        };
        let linear = code_address(&system, rip);
        let slots = self.current_slots();
        let mut bytes = [0; INSN_MAX];
        // Most instructions end before the page does.
        let first = INSN_MAX.min(4096 - (linear % 4096) as usize);
        let (head, tail) = bytes.split_at_mut(first);
        let gpa = walk::inspect(&mut Present(slots), &paging, linear, access).ok()?.gpa;
        slots.read_nofault(gpa, head).ok()?;
        if let Ok(insn) = emulate::decode(head, code_size(&system)) {
            return Some(insn);
        }
        let linear = linear.wrapping_add(first as u64);
        let gpa = walk::inspect(&mut Present(slots), &paging, linear, access).ok()?.gpa;
        slots.read_nofault(gpa, tail).ok()?;
        emulate::decode(&bytes, code_size(&system)).ok()
    }
}
