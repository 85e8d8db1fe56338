// SPDX-License-Identifier: GPL-2.0

//! `KVM_GET_SREGS`, `KVM_SET_SREGS` (api.rst, 4.13, 4.14), `KVM_GET_SREGS2`, `KVM_SET_SREGS2` (4.132, 4.133).

use super::state::seg;
use super::state::DescriptorTable;
use super::state::Event;
use super::state::Segment;
use super::state::SystemRegs;
use super::state::UNUSABLE;
use super::vcpu::MpState;
use super::vcpu::Vcpu;
use super::XvmOps;
use crate::linux::user;
use crate::uapi;
use crate::uapi::kvm_dtable;
use crate::uapi::kvm_segment;
use crate::uapi::kvm_sregs;
use crate::uapi::kvm_sregs2;
use kernel::prelude::*;

/// The PDPTEs in `struct kvm_sregs2` count.
const PDPTRS_VALID: u64 = uapi::KVM_SREGS2_FLAGS_PDPTRS_VALID as u64;

/// CR0.PE.
const PROTECTED: u64 = 1;

impl From<&Segment> for kvm_segment {
    fn from(segment: &Segment) -> Self {
        let unusable = segment.attributes & UNUSABLE != 0;
        let bit = |n: u16| u8::from(segment.attributes & (1 << n) != 0);
        Self {
            base: segment.base,
            limit: segment.limit,
            selector: segment.selector,
            type_: (segment.attributes & 0xf) as u8,
            s: bit(4),
            dpl: ((segment.attributes >> 5) & 3) as u8,
            present: if unusable { 0 } else { bit(7) },
            avl: bit(8),
            l: bit(9),
            db: bit(10),
            g: bit(11),
            unusable: unusable.into(),
            padding: 0,
        }
    }
}

impl From<&kvm_segment> for Segment {
    fn from(segment: &kvm_segment) -> Self {
        let bit = |value: u8, n: u16| u16::from(value & 1) << n;
        // A usable segment is present; not every VMM keeps both.
        let unusable = segment.unusable != 0 || segment.present == 0;
        Self {
            base: segment.base,
            limit: segment.limit,
            selector: segment.selector,
            attributes: u16::from(segment.type_ & 0xf)
                | bit(segment.s, 4)
                | u16::from(segment.dpl & 3) << 5
                | bit(segment.present, 7)
                | bit(segment.avl, 8)
                | bit(segment.l, 9)
                | bit(segment.db, 10)
                | bit(segment.g, 11)
                | if unusable { UNUSABLE } else { 0 },
        }
    }
}

impl From<&DescriptorTable> for kvm_dtable {
    fn from(table: &DescriptorTable) -> Self {
        Self {
            base: table.base,
            limit: table.limit,
            padding: [0; 3],
        }
    }
}

impl From<&kvm_dtable> for DescriptorTable {
    fn from(table: &kvm_dtable) -> Self {
        Self {
            base: table.base,
            limit: table.limit,
        }
    }
}

/// What both structures have, but for segments and tables.
struct Common {
    cr8: u64,
    apic_base: u64,
    regs: SystemRegs,
}

/// The fields that `$sregs`, of either type, has in common with [`SystemRegs`], put into `$regs`.
macro_rules! take_common {
    ($regs:ident, $sregs:ident) => {
        $regs.segments[seg::ES] = (&$sregs.es).into();
        $regs.segments[seg::CS] = (&$sregs.cs).into();
        $regs.segments[seg::SS] = (&$sregs.ss).into();
        $regs.segments[seg::DS] = (&$sregs.ds).into();
        $regs.segments[seg::FS] = (&$sregs.fs).into();
        $regs.segments[seg::GS] = (&$sregs.gs).into();
        $regs.segments[seg::LDTR] = (&$sregs.ldt).into();
        $regs.segments[seg::TR] = (&$sregs.tr).into();
        $regs.gdtr = (&$sregs.gdt).into();
        $regs.idtr = (&$sregs.idt).into();
        $regs.cr0 = $sregs.cr0;
        $regs.cr2 = $sregs.cr2;
        $regs.cr3 = $sregs.cr3;
        $regs.cr4 = $sregs.cr4;
        $regs.efer = $sregs.efer;
    };
}

/// A structure of type `$type` with the common fields from `$common`, and the others as given.
macro_rules! give_common {
    ($type:ident, $common:ident, $($field:ident: $value:expr),+ $(,)?) => {
        $type {
            es: (&$common.regs.segments[seg::ES]).into(),
            cs: (&$common.regs.segments[seg::CS]).into(),
            ss: (&$common.regs.segments[seg::SS]).into(),
            ds: (&$common.regs.segments[seg::DS]).into(),
            fs: (&$common.regs.segments[seg::FS]).into(),
            gs: (&$common.regs.segments[seg::GS]).into(),
            ldt: (&$common.regs.segments[seg::LDTR]).into(),
            tr: (&$common.regs.segments[seg::TR]).into(),
            gdt: (&$common.regs.gdtr).into(),
            idt: (&$common.regs.idtr).into(),
            cr0: $common.regs.cr0,
            cr2: $common.regs.cr2,
            cr3: $common.regs.cr3,
            cr4: $common.regs.cr4,
            cr8: $common.cr8,
            efer: $common.regs.efer,
            apic_base: $common.apic_base,
            $($field: $value,)+
        }
    };
}

impl<V: XvmOps> Vcpu<V> {
    fn common_sregs(&self) -> Common {
        Common {
            cr8: self.task_priority().into(),
            apic_base: self.apic_base(),
            regs: V::system_regs(&self.arch),
        }
    }

    /// `KVM_GET_SREGS`.
    ///
    /// # Errors
    ///
    /// `EFAULT`.
    pub(crate) fn get_sregs(&mut self, arg: usize) -> Result<isize> {
        user::write(arg, &self.shown_sregs())?;
        Ok(0)
    }

    /// What `KVM_GET_SREGS` says.
    pub(super) fn shown_sregs(&self) -> kvm_sregs {
        let common = self.common_sregs();
        let mut interrupt_bitmap = [0; 4];
        if let Some(vector) = self.interrupt_in_flight() {
            interrupt_bitmap[usize::from(vector / 64)] = 1 << (vector % 64);
        }
        give_common!(kvm_sregs, common, interrupt_bitmap: interrupt_bitmap)
    }

    /// `KVM_SET_SREGS`.
    ///
    /// # Errors
    ///
    /// `EINVAL` when the registers can't be as they are (then nothing has changed), `EFAULT`.
    pub(crate) fn set_sregs(&mut self, arg: usize) -> Result<isize> {
        self.change_sregs(&user::read(arg)?)?;
        Ok(0)
    }

    /// What `KVM_SET_SREGS` does.
    ///
    /// # Errors
    ///
    /// `EINVAL` when the registers can't be as they are (then nothing has changed).
    pub(super) fn change_sregs(&mut self, sregs: &kvm_sregs) -> Result {
        let mut regs = V::system_regs(&self.arch);
        take_common!(regs, sregs);
        if regs.is_pae() {
            // A table that isn't there, or not yet, is no error here.
            regs.pdptrs = self.read_pdptes(regs.cr3).unwrap_or_default();
        }
        self.set_common_sregs(&Common {
            cr8: sregs.cr8,
            apic_base: sregs.apic_base,
            regs,
        })?;
        let mut words = (0u8..).zip(sregs.interrupt_bitmap);
        if let Some((n, word)) = words.find(|(_, word)| *word != 0) {
            self.events.interrupt = Some((n & 3) * 64 + word.trailing_zeros() as u8);
        }
        Ok(())
    }

    fn set_common_sregs(&mut self, new: &Common) -> Result {
        new.regs.check(self.cpuid.model())?;
        // The first thing that changes, and the last one that may fail.
        self.restore_apic_base(new.apic_base)?;
        self.set_system_regs(&new.regs);
        self.set_task_priority((new.cr8 & 0xf) as u8);
        // VMMs of old reset a vCPU by its registers alone.
        let rip = V::store_cpu_user_regs(&self.arch).rip;
        let cs = &new.regs.segments[seg::CS];
        let reset = rip == 0xfff0 && cs.selector == 0xf000 && cs.base == 0xffff_0000;
        if self.shared.bootstrap && reset && new.regs.cr0 & PROTECTED == 0 {
            self.mp_state = MpState::Runnable;
        }
        Ok(())
    }

    /// `KVM_GET_SREGS2`.
    ///
    /// # Errors
    ///
    /// `EFAULT`.
    pub(crate) fn get_sregs2(&mut self, arg: usize) -> Result<isize> {
        let common = self.common_sregs();
        let (flags, pdptrs) = match common.regs.is_pae() {
            true => (PDPTRS_VALID, self.current_pdptrs(&common.regs)),
            false => (0, [0; 4]),
        };
        let sregs = give_common!(kvm_sregs2, common, flags: flags, pdptrs: pdptrs);
        user::write(arg, &sregs)?;
        Ok(0)
    }

    /// The PDPTEs: the CPU's registers, or, where it has none (SVM), those in memory.
    fn current_pdptrs(&mut self, regs: &SystemRegs) -> [u64; 4] {
        match regs.pdptrs {
            [0, 0, 0, 0] => self.read_pdptes(regs.cr3).unwrap_or_default(),
            loaded => loaded,
        }
    }

    /// `KVM_SET_SREGS2`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for an unknown flag, PDPTEs outside of PAE paging, and as [`Vcpu::set_sregs`]; `EFAULT`.
    pub(crate) fn set_sregs2(&mut self, arg: usize) -> Result<isize> {
        let sregs: kvm_sregs2 = user::read(arg)?;
        let mut regs = V::system_regs(&self.arch);
        take_common!(regs, sregs);
        let pdptrs_valid = sregs.flags & PDPTRS_VALID != 0;
        if sregs.flags & !PDPTRS_VALID != 0 || pdptrs_valid && !regs.is_pae() {
            return Err(EINVAL);
        }
        if pdptrs_valid {
            regs.pdptrs = sregs.pdptrs;
        } else if regs.is_pae() {
            regs.pdptrs = self.read_pdptes(regs.cr3).unwrap_or_default();
        }
        self.set_common_sregs(&Common {
            cr8: sregs.cr8,
            apic_base: sregs.apic_base,
            regs,
        })?;
        Ok(0)
    }

    /// The external interrupt that is on its way to the guest: acknowledged where it came from, and not yet delivered.
    pub(crate) fn interrupt_in_flight(&self) -> Option<u8> {
        match self.events.injected {
            Some(Event::Interrupt(vector)) => Some(vector),
            _ => self.events.interrupt,
        }
    }
}
