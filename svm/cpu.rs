// SPDX-License-Identifier: GPL-2.0

//! What a physical CPU needs for windows: save areas, permission maps, ASIDs, and turning SVM on and off.
//!
//! # Beside KVM
//!
//! When EFER.SVME is set at the start of a window, KVM has it; then EFER and VM_HSAVE_PA are left alone (the host save area is live only
//! between VMRUN and #VMEXIT). Otherwise EFER is put back at the end.
//!
//! TLB entries are tagged by ASID, and KVM gives out all of them, so no ASID is ours. Neither side may ever use an entry
//! of the other's guests:
//!
//! - A window that borrows uses [`Pool::BORROWED`], drops its entries before the first VMRUN, and again before it closes. For the latter
//!   it runs a guest that has nothing mapped, whose VMRUN flushes and which exits on its first instruction fetch ([`Cpu::flush_before_return`]).
//! - A window that doesn't borrow uses the pool's ASIDs, and leaves its entries behind for the next one. KVM flushes the TLB
//!   before it gives its first ASID. In the other direction, VM_HSAVE_PA tells whether anyone ran guests since: KVM writes it when
//!   it turns SVM on and off. It keeps our value between windows, and when it doesn't hold it any more, the pool starts anew. With SVME clear
//!   it has no effect.

use super::asid::Given;
use super::asid::Pool;
use super::asid::Tag;
use super::asm;
use super::permission::PermissionMaps;
use super::probe;
use super::probe::Features;
use super::vmcb::Vmcb;
use crate::linux::irq::IrqsOff;
use crate::linux::page::Page4k;
use crate::linux::x86;
use crate::xvm::ops::TscScaling;
use core::cell::Cell;
use kernel::prelude::*;

/// EFER.
const MSR_EFER: u32 = 0xc000_0080;
/// EFER.SVME.
pub(super) const EFER_SVME: u64 = 1 << 12;
/// VM_HSAVE_PA.
const MSR_VM_HSAVE_PA: u32 = 0xc001_0117;
/// TSC_RATIO: guests' TSC by the host's, 32 bits of it behind the point (15.30.5).
const MSR_TSC_RATIO: u32 = 0xc000_0104;
/// What TSC_RATIO takes: 40 bits, of which 32 are behind the point.
pub(super) const TSC_SCALING: TscScaling = TscScaling {
    fraction: 32,
    limit: 0xff_ffff_ffff,
};
/// TSC_RATIO after a reset: 1.0.
pub(super) const TSC_UNSCALED: u64 = 1 << TSC_SCALING.fraction;

/// How SVM was found when the window opened, to be left so.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Found {
    /// EFER, when SVME was not set in it.
    efer: Option<u64>,
    /// TSC_RATIO, when it was not the guest's.
    tsc_ratio: Option<u64>,
}

impl Found {
    /// SVM belongs to KVM.
    pub(super) fn borrowed(self) -> bool {
        self.efer.is_none()
    }
}

/// What one physical CPU needs.
///
/// # Invariants
///
/// The cells are used by the thread that has a window open on this CPU, and by no one else.
pub(crate) struct Cpu {
    number: u32,
    features: Features,
    /// Where VMRUN puts the host's state, and its physical address.
    _host_save: Page4k,
    host_save: u64,
    /// Where VMSAVE puts the rest of it, a VMCB that is never run, and its physical address.
    _host_vmcb: Page4k,
    host_vmcb: u64,
    maps: PermissionMaps,
    nothing: Nothing,
    asids: Cell<Pool>,
    /// The vCPU that ran here last, by its number.
    last_vcpu: Cell<u64>,
}

// SAFETY: By the type's invariant the cells are used by one thread at a time; the rest is constant.
unsafe impl Sync for Cpu {}

impl Cpu {
    /// Makes what CPU `number` needs. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(super) fn new(number: u32) -> Result<Self> {
        let features = probe::features()?;
        let maps = PermissionMaps::new()?;
        let (host_save, host_vmcb) = (Page4k::new()?, Page4k::new()?);
        Ok(Self {
            number,
            features,
            host_save: host_save.phys(),
            _host_save: host_save,
            host_vmcb: host_vmcb.phys(),
            _host_vmcb: host_vmcb,
            nothing: Nothing::new(&features, &maps)?,
            maps,
            asids: Cell::new(Pool::new(number, features.asids)),
            last_vcpu: Cell::new(0),
        })
    }

    /// Its number.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// The permission maps of every guest that runs here.
    pub(super) fn maps(&self) -> &PermissionMaps {
        &self.maps
    }

    /// Physical address of where VMSAVE puts the host's state.
    pub(super) fn host_vmcb(&self) -> u64 {
        self.host_vmcb
    }

    /// Turns SVM on, or finds it on, for a guest whose TSC has `tsc_ratio`.
    pub(super) fn enable(&self, tsc_ratio: u64, _irqs: &IrqsOff) -> Found {
        // SAFETY: `probe` saw SVM here, so both MSRs exist.
        let (efer, host_save) = unsafe { (x86::rdmsr(MSR_EFER), x86::rdmsr(MSR_VM_HSAVE_PA)) };
        let ours = self.host_save;
        if efer & EFER_SVME != 0 {
            if host_save == 0 {
                // KVM is about to write its own.
                // SAFETY: The page is a host save area as good as any, and KVM's write replaces it.
                unsafe { x86::wrmsr(MSR_VM_HSAVE_PA, ours) };
            }
            return Found {
                efer: None,
                // KVM leaves its last guest's in the CPU.
                tsc_ratio: self.load_tsc_ratio(tsc_ratio),
            };
        }
        // SAFETY: `probe` saw SVM, not turned off; `disable` undoes it before interrupts go on.
        unsafe { x86::wrmsr(MSR_EFER, efer | EFER_SVME) };
        if host_save != ours {
            let mut asids = self.asids.get();
            asids.forget();
            self.asids.set(asids);
            // SAFETY: The page is ours, lives as long as the module, and nobody else uses SVM here now.
            unsafe { x86::wrmsr(MSR_VM_HSAVE_PA, ours) };
        }
        Found {
            efer: Some(efer),
            tsc_ratio: match tsc_ratio {
                TSC_UNSCALED => None,
                _ => self.load_tsc_ratio(tsc_ratio),
            },
        }
    }

    /// Puts the guest's TSC_RATIO there. Returns what it found, if it was another.
    fn load_tsc_ratio(&self, wanted: u64) -> Option<u64> {
        if !self.features.tsc_scaling {
            return None;
        }
        // SAFETY: CPUID has TscRateMsr.
        let found = unsafe { x86::rdmsr(MSR_TSC_RATIO) };
        if found == wanted {
            return None;
        }
        // SAFETY: As above; the value is below the limit that `TSC_SCALING` names, and affects guests alone.
        unsafe { x86::wrmsr(MSR_TSC_RATIO, wanted) };
        Some(found)
    }

    /// Leaves SVM as `enable` found it.
    pub(super) fn disable(&self, found: Found, _irqs: &IrqsOff) {
        if let Some(ratio) = found.tsc_ratio {
            // SAFETY: It was read from this MSR.
            unsafe { x86::wrmsr(MSR_TSC_RATIO, ratio) };
        }
        if let Some(efer) = found.efer {
            // SAFETY: It was read from this MSR on this CPU, and interrupts were off since.
            unsafe { x86::wrmsr(MSR_EFER, efer) };
        }
    }

    /// Whether `tag` may be used here as it is.
    pub(super) fn is_current(&self, tag: Tag) -> bool {
        self.asids.get().is_current(tag)
    }

    /// Gives an ASID that is in no TLB entry, once its flush is obeyed.
    pub(super) fn give_asid(&self) -> Given {
        let mut asids = self.asids.get();
        let given = asids.give();
        self.asids.set(asids);
        given
    }

    /// Keeps what one guest taught the branch predictors from another: an IBPB when `vcpu` isn't the one that ran here last.
    pub(super) fn separate(&self, vcpu: u64) {
        if self.last_vcpu.replace(vcpu) != vcpu && self.features.ibpb {
            // SAFETY: The feature says that MSR PRED_CMD is there.
            unsafe { asm::xvm_svm_ibpb() };
        }
    }

    /// Drops the TLB entries of [`Pool::BORROWED`] before KVM runs again. Within a window.
    pub(super) fn flush_before_return(&self) {
        self.nothing.run();
    }
}

/// A guest without memory: its VMRUN flushes the TLB, and it exits when it fetches its first instruction, or before. No translation
/// of its own can come of it, there being none.
struct Nothing {
    _vmcb: Page4k,
    /// Physical address of its VMCB.
    address: u64,
    /// The root of its nested page tables, empty.
    _root: Page4k,
}

impl Nothing {
    fn new(features: &Features, maps: &PermissionMaps) -> Result<Self> {
        let (vmcb, root) = (Page4k::new()?, Page4k::new()?);
        // SAFETY: A zeroed page of our own, large enough and aligned, is a `Vmcb`.
        let fields = unsafe { &mut *vmcb.as_ptr().cast::<Vmcb>() };
        fields.reset(features, root.phys());
        fields.control.set_maps(maps, false);
        fields.control.asid = Pool::BORROWED;
        fields.control.tlb_control = features.flush();
        Ok(Self {
            address: vmcb.phys(),
            _vmcb: vmcb,
            _root: root,
        })
    }

    fn run(&self) {
        // SAFETY: The VMCB is valid and lives as long as `self`, its guest can fetch nothing, and the caller is within a window.
        unsafe { asm::xvm_svm_flush(self.address) };
    }
}
