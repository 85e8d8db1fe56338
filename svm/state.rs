// SPDX-License-Identifier: GPL-2.0

//! User registers and system registers, between the VMCB and the vendor-neutral form.
//!
//! # What the hardware has and the guest doesn't
//!
//! EFER.SVME must be 1 for VMRUN (APM vol 2, 15.5.1). CR4.MCE must be the host's, or a machine check in a guest without it shuts
//! the CPU down. CD and NW of CR0, set after power-up, would make all of a guest's early code run uncached; memory is
//! coherent, so they are kept from the CPU. As long as the guest would read another value than its own in CR0 or CR4, reading is
//! intercepted.

use super::cpu;
use super::cpu::EFER_SVME;
use super::vcpu::Vcpu;
use super::vmcb;
use super::vmcb::Clean;
use super::vmcb::Save;
use crate::linux::x86;
use crate::xvm::ops::Config;
use crate::xvm::state::seg;
use crate::xvm::state::CodeContext;
use crate::xvm::state::DescriptorTable;
use crate::xvm::state::Segment;
use crate::xvm::state::SystemRegs;
use crate::xvm::state::UserRegs;
use crate::xvm::state::RAX;
use crate::xvm::state::RSP;
use crate::xvm::state::UNUSABLE;

/// CR0: NW and CD.
const CR0_CACHE: u64 = 0b11 << 29;
/// CR4.MCE.
const CR4_MCE: u64 = 1 << 6;
/// RFLAGS: bit 1 reads as 1.
const RFLAGS_FIXED: u64 = 2;
/// EFER.LMA.
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS.TF.
const RFLAGS_TF: u64 = 1 << 8;
/// RFLAGS.RF.
const RFLAGS_RF: u64 = 1 << 16;

/// Attributes of a segment: present.
const PRESENT: u16 = 1 << 7;
/// The shift of the DPL in them.
const DPL_SHIFT: u32 = 5;
/// The DPL.
const DPL: u16 = 0b11 << DPL_SHIFT;
/// G.
const GRANULARITY: u16 = 1 << 11;
/// All that the VMCB has of them.
const ATTRIBUTES: u16 = 0xfff;

/// Attributes of a code segment: L.
const CODE_LONG: u16 = 1 << 9;

/// What the guest has of CR0 and CR4 and the CPU has not, or the other way round.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hidden {
    /// CD and NW as the guest set them.
    cr0_cache: u64,
    /// MCE as the guest set it.
    cr4_mce: u64,
}

/// The segment registers in [`SystemRegs::segments`]'s order.
fn segments(save: &Save) -> [&vmcb::Segment; 8] {
    [
        &save.es, &save.cs, &save.ss, &save.ds, &save.fs, &save.gs, &save.ldtr, &save.tr,
    ]
}

fn segments_mut(save: &mut Save) -> [&mut vmcb::Segment; 8] {
    [
        &mut save.es,
        &mut save.cs,
        &mut save.ss,
        &mut save.ds,
        &mut save.fs,
        &mut save.gs,
        &mut save.ldtr,
        &mut save.tr,
    ]
}

impl vmcb::Segment {
    /// In the form that knows no vendor: a segment that is not present here is unusable. CPUs don't keep all of G, which follows from
    /// the limit.
    fn to_neutral(self) -> Segment {
        let attributes = match self.limit {
            0..=0xf_ffff => self.attributes & ATTRIBUTES & !GRANULARITY,
            _ => self.attributes & ATTRIBUTES | GRANULARITY,
        };
        Segment {
            base: self.base,
            limit: self.limit,
            selector: self.selector,
            attributes: match attributes & PRESENT {
                0 => attributes | UNUSABLE,
                _ => attributes,
            },
        }
    }

    fn from_neutral(segment: &Segment) -> Self {
        let attributes = segment.attributes & ATTRIBUTES;
        Self {
            base: segment.base,
            limit: segment.limit,
            selector: segment.selector,
            attributes: match segment.attributes & UNUSABLE {
                0 => attributes,
                _ => attributes & !PRESENT,
            },
        }
    }

    fn to_table(self) -> DescriptorTable {
        DescriptorTable {
            base: self.base,
            limit: self.limit as u16,
        }
    }

    fn from_table(table: &DescriptorTable) -> Self {
        Self {
            base: table.base,
            limit: u32::from(table.limit),
            ..Self::default()
        }
    }
}

impl Save {
    /// Sets RAX, RSP, RIP and RFLAGS.
    pub(super) fn set_user_regs(&mut self, regs: &UserRegs) {
        self.rax = regs.gprs.0[RAX];
        self.rsp = regs.gprs.0[RSP];
        self.rip = regs.rip;
        self.rflags = regs.rflags | RFLAGS_FIXED;
    }

    /// Sets all that the VMCB has of `regs` but the debug registers.
    pub(super) fn set_system_regs(&mut self, regs: &SystemRegs) {
        for (segment, wanted) in segments_mut(self).into_iter().zip(&regs.segments) {
            *segment = vmcb::Segment::from_neutral(wanted);
        }
        self.cpl = ((regs.segments[seg::SS].attributes & DPL) >> DPL_SHIFT) as u8;
        self.gdtr = vmcb::Segment::from_table(&regs.gdtr);
        self.idtr = vmcb::Segment::from_table(&regs.idtr);
        self.cr0 = regs.cr0 & !CR0_CACHE;
        self.cr2 = regs.cr2;
        self.cr3 = regs.cr3;
        self.cr4 = regs.cr4 | x86::cr4() & CR4_MCE;
        self.efer = regs.efer | EFER_SVME;
    }
}

impl Vcpu {
    /// Sets the general registers, RIP and RFLAGS.
    pub(super) fn load_user_regs(&mut self, regs: &UserRegs) {
        self.context.gprs = regs.gprs;
        let rflags = self.show_rflags(regs.rflags);
        self.vmcb_mut()
            .save
            .set_user_regs(&UserRegs { rflags, ..*regs });
    }

    /// Reads them.
    pub(super) fn store_user_regs(&self) -> UserRegs {
        let save = &self.vmcb().save;
        let mut gprs = self.context.gprs;
        gprs.0[RSP] = save.rsp;
        UserRegs {
            gprs,
            rip: save.rip,
            rflags: self.debug.hide_step(save.rflags),
        }
    }

    /// Moves RIP behind an instruction that was carried out for the guest, within its code segment's size. False, and nothing changed, when
    /// `length` is not known.
    pub(super) fn skip(&mut self, length: Option<u8>) -> bool {
        let Some(length) = length else {
            return false;
        };
        let vmcb = self.vmcb_mut();
        let save = &mut vmcb.save;
        let behind = save.rip.wrapping_add(u64::from(length));
        save.rip = match (behind ^ save.rip) >> 32 {
            0 => behind,
            // It may have wrapped.
            _ => behind & save.rip_mask(),
        };
        let rflags = save.rflags;
        save.rflags = rflags & !RFLAGS_RF;
        vmcb.control.interrupt_state = vmcb.control.interrupt_state.with_shadow(false);
        if rflags & RFLAGS_TF != 0 {
            self.note_trap();
        }
        true
    }

    /// Reads segments, descriptor tables, control registers, EFER and debug registers.
    pub(super) fn system_regs(&self) -> SystemRegs {
        let save = &self.half_switched().save;
        let mut segments = segments(save).map(|segment| segment.to_neutral());
        // The CPU keeps the CPL by itself, and SS.DPL may be behind it (15.5.1).
        let ss = &mut segments[seg::SS];
        ss.attributes = ss.attributes & !DPL | u16::from(save.cpl & 3) << DPL_SHIFT;
        SystemRegs {
            segments,
            gdtr: save.gdtr.to_table(),
            idtr: save.idtr.to_table(),
            cr0: save.cr0 | self.hidden.cr0_cache,
            cr2: save.cr2,
            cr3: save.cr3,
            cr4: save.cr4 & !CR4_MCE | self.hidden.cr4_mce,
            efer: save.efer & !EFER_SVME,
            pdptrs: [0; 4],
            debug: self.debug_regs(),
        }
    }

    /// Sets them. The CPU reads the PDPTEs of PAE paging by itself.
    pub(super) fn set_system_regs(&mut self, regs: &SystemRegs) {
        self.hidden = Hidden {
            cr0_cache: regs.cr0 & CR0_CACHE,
            cr4_mce: regs.cr4 & CR4_MCE,
        };
        let hidden = self.hidden;
        let vmcb = self.half_switched_mut();
        vmcb.save.set_system_regs(regs);
        vmcb.control.clean = Clean::NONE;
        vmcb.control.intercept_hidden(
            hidden.cr0_cache != 0,
            hidden.cr4_mce != vmcb.save.cr4 & CR4_MCE,
        );
        self.set_debug_regs(&regs.debug);
        self.drop_translations();
    }

    /// What finding the instruction at RIP takes.
    #[inline]
    pub(super) fn code_context(&self) -> CodeContext {
        let save = &self.vmcb().save;
        let cs = &save.cs;
        CodeContext {
            rip: save.rip,
            cs_base: cs.base,
            cs_attributes: cs.attributes,
            cpl: save.cpl & 3,
            cr0: save.cr0 | self.hidden.cr0_cache,
            cr3: save.cr3,
            cr4: save.cr4,
            efer: save.efer,
        }
    }

    /// CR8.
    #[inline]
    pub(super) fn tpr(&self) -> u8 {
        *self.vmcb().control.interrupt.tpr() as u8
    }

    /// Sets CR8.
    #[inline]
    pub(super) fn set_tpr(&mut self, tpr: u8) {
        if tpr == self.tpr() {
            return;
        }
        let control = &mut self.vmcb_mut().control;
        control.interrupt = control.interrupt.with_cr8(tpr);
        control.clean = control.clean.with_interrupt(false);
    }

    /// `XvmOps::configure`.
    pub(super) fn configure(&mut self, config: &Config) {
        self.tsc_ratio = config.tsc_ratio.unwrap_or(cpu::TSC_UNSCALED);
        let pause_filter = self.features.pause_filter;
        let control = &mut self.vmcb_mut().control;
        control.tsc_offset = config.tsc_offset;
        control.intercept_waiting(!config.free_hlt, !config.free_pause && pause_filter);
        control.intercept_mwait(!config.free_mwait);
        control.clean = control.clean.with_intercepts(false);
        if self.msrs_exit != config.msrs_exit {
            self.msrs_exit = config.msrs_exit;
            // The next window's opening chooses the permission map.
            self.last_cpu = None;
        }
        self.set_root(config.root);
        self.set_debugging(config.debug);
    }
}

impl Save {
    /// The bits of RIP that count: 64 in 64-bit code, 32 in other, also of 16 bits: with a limit above 64 KiB it may be anywhere (4.8.1).
    #[cold]
    fn rip_mask(&self) -> u64 {
        let code = self.cs.attributes;
        if self.efer & EFER_LMA != 0 && code & CODE_LONG != 0 {
            u64::MAX
        } else {
            0xffff_ffff
        }
    }
}
