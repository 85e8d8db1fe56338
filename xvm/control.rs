// SPDX-License-Identifier: GPL-2.0

//! The rules of control registers, EFER and XCR0 (SDM vol 3, 2.5, 4.1, 10.8.5; APM vol 2, 3.1, 14.6): what the VMM may set, and
//! what the guest's own writes do.

use super::cpuid::Model;
use super::emulate::Fault;
use super::platform::Gp;
use super::state::seg;
use super::state::SystemRegs;
use super::vcpu::Vcpu;
use super::XvmOps;
use kernel::prelude::*;

/// CR0 bits.
pub(super) mod cr0 {
    pub(super) const PE: u64 = 1 << 0;
    pub(super) const TS: u64 = 1 << 3;
    pub(super) const ET: u64 = 1 << 4;
    pub(super) const NW: u64 = 1 << 29;
    pub(super) const CD: u64 = 1 << 30;
    pub(in super::super) const PG: u64 = 1 << 31;

    /// PE, MP, EM, TS, ET, NE, WP, AM, NW, CD, PG. Writes to others of the lower half have no effect.
    pub(super) const DEFINED: u64 = 0xe005_003f;
}

/// CR4 bits.
mod cr4 {
    pub(super) const PSE: u64 = 1 << 4;
    pub(super) const PAE: u64 = 1 << 5;
    pub(super) const PGE: u64 = 1 << 7;
    pub(super) const UMIP: u64 = 1 << 11;
    pub(super) const PCIDE: u64 = 1 << 17;
    pub(super) const OSXSAVE: u64 = 1 << 18;
    pub(super) const SMEP: u64 = 1 << 20;
}

/// EFER bits.
mod efer {
    pub(super) const LME: u64 = 1 << 8;
    pub(super) const LMA: u64 = 1 << 10;
}

/// CR3 bit 63 in a write with CR4.PCIDE: keep the TLB's entries. It is never stored.
const CR3_NO_FLUSH: u64 = 1 << 63;

/// Reserved bits of a PDPTE of PAE paging, below the physical address (SDM vol 3, table 4-8).
const PDPTE_RESERVED: u64 = 0x1e6;
/// The PDPTE is present.
const PDPTE_PRESENT: u64 = 1;

/// CS.L in the attributes of a segment.
const LONG: u16 = 1 << 9;

/// #GP(0) if `condition` holds.
fn refuse_if(condition: bool) -> Result<(), Fault> {
    if condition {
        return Err(Fault::GENERAL_PROTECTION);
    }
    Ok(())
}

/// Whether a value of CR0 is one that a MOV to it accepts.
fn is_legal_cr0(value: u64) -> bool {
    let write_through_alone = value & (cr0::NW | cr0::CD) == cr0::NW;
    let paging_alone = value & (cr0::PG | cr0::PE) == cr0::PG;
    value >> 32 == 0 && !write_through_alone && !paging_alone
}

impl SystemRegs {
    /// What a write of `value` to CR0 leaves there.
    pub(super) const fn stored_cr0(value: u64) -> u64 {
        value & cr0::DEFINED | cr0::ET
    }

    /// Whether process-context identifiers are on in long mode alone.
    pub(super) fn pcid_is_legal(&self) -> bool {
        self.cr4 & cr4::PCIDE == 0 || self.efer & efer::LMA != 0
    }

    /// Whether PAE paging is on, with its four PDPTE registers.
    pub(crate) fn is_pae(&self) -> bool {
        self.cr0 & cr0::PG != 0 && self.cr4 & cr4::PAE != 0 && self.efer & efer::LMA == 0
    }

    /// Checks what the VMM sets, for a vCPU that is a `model`, as KVM does: segments are left to the CPU, which refuses to enter.
    ///
    /// # Errors
    ///
    /// `EINVAL` for bits that the vCPU doesn't have, and combinations of paging and long mode that can't be.
    pub(crate) fn check(&self, model: &Model) -> Result {
        let long_code = self.segments[seg::CS].attributes & LONG != 0;
        let mode = if self.efer & efer::LME != 0 && self.cr0 & cr0::PG != 0 {
            self.cr4 & cr4::PAE != 0
                && self.efer & efer::LMA != 0
                && self.cr3 & model.beyond_physical() == 0
        } else {
            self.efer & efer::LMA == 0 && !long_code
        };
        let bits = self.cr4 & !model.cr4 == 0 && self.efer & !model.efer == 0;
        if mode && bits && is_legal_cr0(self.cr0) {
            Ok(())
        } else {
            Err(EINVAL)
        }
    }
}

impl<V: XvmOps> Vcpu<V> {
    /// Sets the system registers, which have been checked, and what is kept of them elsewhere.
    pub(crate) fn set_system_regs(&mut self, regs: &SystemRegs) {
        self.cpuid.os_xsave = regs.cr4 & cr4::OSXSAVE != 0;
        V::set_system_regs(&mut self.arch, regs);
    }

    /// Reads the four PDPTEs that `cr3` points to. May sleep.
    ///
    /// # Errors
    ///
    /// `EINVAL` when a present one has reserved bits set; as [`super::memory::View::read`] when they aren't in memory.
    pub(crate) fn read_pdptes(&mut self, cr3: u64) -> Result<[u64; 4]> {
        let mut bytes = [0; 32];
        self.current_slots().read(cr3 & 0xffff_ffe0, &mut bytes)?;
        let mut entries = [0; 4];
        let reserved = self.cpuid.model().beyond_physical() | PDPTE_RESERVED;
        for (entry, bytes) in entries.iter_mut().zip(bytes.chunks_exact(8)) {
            *entry = u64::from_le_bytes(bytes.try_into().map_err(|_| EINVAL)?);
            if *entry & PDPTE_PRESENT != 0 && *entry & reserved != 0 {
                return Err(EINVAL);
            }
        }
        Ok(entries)
    }

    /// Loads the PDPTE registers if `regs` has PAE paging (SDM vol 3, 4.4.1).
    fn load_pdptes(&mut self, regs: &mut SystemRegs) -> Result<(), Fault> {
        if regs.is_pae() {
            regs.pdptrs = self
                .read_pdptes(regs.cr3)
                .map_err(|_| Fault::GENERAL_PROTECTION)?;
        }
        Ok(())
    }

    /// The guest writes a control register, with CPL 0. Outside of the window; may sleep.
    ///
    /// # Errors
    ///
    /// #GP for a value that the register refuses, #UD for a register that there isn't.
    pub(crate) fn write_cr(&mut self, cr: u8, value: u64) -> Result<(), Fault> {
        match cr {
            0 => self.write_cr0(value),
            3 => self.write_cr3(value),
            4 => self.write_cr4(value),
            8 => self.write_cr8(value),
            _ => Err(Fault::INVALID_OPCODE),
        }
    }

    fn write_cr0(&mut self, value: u64) -> Result<(), Fault> {
        refuse_if(!is_legal_cr0(value))?;
        let mut regs = V::system_regs(&self.arch);
        let old = regs.cr0;
        regs.cr0 = SystemRegs::stored_cr0(value);
        let long_code = regs.segments[seg::CS].attributes & LONG != 0;
        match (old & cr0::PG != 0, regs.cr0 & cr0::PG != 0) {
            (false, true) if regs.efer & efer::LME != 0 => {
                refuse_if(regs.cr4 & cr4::PAE == 0 || long_code)?;
                regs.efer |= efer::LMA;
            }
            (true, false) => {
                let long = regs.efer & efer::LMA != 0;
                refuse_if(regs.cr4 & cr4::PCIDE != 0 || long && long_code)?;
                regs.efer &= !efer::LMA;
            }
            _ => {}
        }
        if (old ^ regs.cr0) & (cr0::PG | cr0::CD | cr0::NW) != 0 {
            self.load_pdptes(&mut regs)?;
        }
        self.set_system_regs(&regs);
        Ok(())
    }

    fn write_cr3(&mut self, value: u64) -> Result<(), Fault> {
        let mut regs = V::system_regs(&self.arch);
        regs.cr3 = match regs.cr4 & cr4::PCIDE {
            0 => value,
            _ => value & !CR3_NO_FLUSH,
        };
        let long = regs.efer & efer::LMA != 0;
        refuse_if(long && regs.cr3 & self.cpuid.model().beyond_physical() != 0)?;
        self.load_pdptes(&mut regs)?;
        self.set_system_regs(&regs);
        V::flush_tlb(&mut self.arch);
        Ok(())
    }

    fn write_cr4(&mut self, value: u64) -> Result<(), Fault> {
        refuse_if(value & !self.cpuid.model().cr4 != 0)?;
        let mut regs = V::system_regs(&self.arch);
        let old = regs.cr4;
        regs.cr4 = value;
        let long = regs.efer & efer::LMA != 0;
        refuse_if(long && value & cr4::PAE == 0)?;
        let turns_pcid_on = value & !old & cr4::PCIDE != 0;
        refuse_if(turns_pcid_on && (!long || regs.cr3 & 0xfff != 0))?;
        if (old ^ value) & (cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP) != 0 {
            self.load_pdptes(&mut regs)?;
        }
        self.set_system_regs(&regs);
        Ok(())
    }

    fn write_cr8(&mut self, value: u64) -> Result<(), Fault> {
        refuse_if(value > 15)?;
        self.set_task_priority(value as u8);
        Ok(())
    }

    /// Sets CR8, 0 to 15, which is also the task priority of the local APIC.
    pub(crate) fn set_task_priority(&mut self, cr8: u8) {
        self.set_cr8(cr8);
        if let Some(lapic) = &mut self.lapic {
            lapic.set_tpr(cr8 << 4);
            self.shared.mailbox.publish(lapic);
        }
    }

    /// CR8, 0 to 15. Outside of the window.
    pub(crate) fn task_priority(&self) -> u8 {
        match &self.lapic {
            Some(lapic) => lapic.tpr() >> 4,
            None => self.cr8,
        }
    }

    /// CLTS, with CPL 0.
    ///
    /// # Errors
    ///
    /// None; the type is that of the other writes.
    pub(crate) fn clts(&mut self) -> Result<(), Fault> {
        let mut regs = V::system_regs(&self.arch);
        regs.cr0 &= !cr0::TS;
        self.set_system_regs(&regs);
        Ok(())
    }

    /// What SMSW reads at privilege level `cpl`.
    ///
    /// # Errors
    ///
    /// #GP for user code where CR4.UMIP is set (SDM vol 2, SMSW).
    pub(crate) fn smsw(&self, cpl: u8) -> Result<u64, Fault> {
        let regs = V::system_regs(&self.arch);
        if cpl != 0 && regs.cr4 & cr4::UMIP != 0 {
            return Err(Fault::GENERAL_PROTECTION);
        }
        Ok(regs.cr0)
    }

    /// LMSW, with CPL 0: PE, MP, EM and TS, of which PE can't be cleared.
    ///
    /// # Errors
    ///
    /// As [`Vcpu::write_cr`].
    pub(crate) fn lmsw(&mut self, value: u16) -> Result<(), Fault> {
        let old = V::system_regs(&self.arch).cr0;
        self.write_cr0(old & !0xe | u64::from(value) & 0xf)
    }

    /// Writes EFER, by the guest or by the VMM (`host`), which may turn long mode on and off under paging.
    ///
    /// # Errors
    ///
    /// [`Gp`] for bits that the vCPU doesn't have, and for a change of LME while paging is on.
    pub(crate) fn set_efer(&mut self, value: u64, host: bool) -> Result<(), Gp> {
        if value & !self.cpuid.model().efer != 0 {
            return Err(Gp);
        }
        let mut regs = V::system_regs(&self.arch);
        let paging = regs.cr0 & cr0::PG != 0;
        if !host && paging && (regs.efer ^ value) & efer::LME != 0 {
            return Err(Gp);
        }
        regs.efer = value & !efer::LMA | regs.efer & efer::LMA;
        self.set_system_regs(&regs);
        Ok(())
    }

    /// XSETBV, with CPL 0 and CR4.OSXSAVE (SDM vol 1, 13.3).
    ///
    /// # Errors
    ///
    /// #GP for an XCR other than 0, states that the vCPU doesn't have, and combinations that can't be.
    pub(crate) fn xsetbv(&mut self, index: u32, value: u64) -> Result<(), Fault> {
        refuse_if(index != 0)?;
        self.set_xcr0(value).map_err(|_| Fault::GENERAL_PROTECTION)
    }

    /// Sets XCR0.
    ///
    /// # Errors
    ///
    /// `EINVAL` for states that the vCPU doesn't have, and combinations that can't be.
    pub(crate) fn set_xcr0(&mut self, value: u64) -> Result {
        if value & !self.cpuid.model().xcr0 != 0 {
            return Err(EINVAL);
        }
        self.fpu.set_xcr0(value)
    }
}
