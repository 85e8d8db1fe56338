// SPDX-License-Identifier: GPL-2.0

//! The vendor's part of a vCPU: its VMCB, and what the hardware doesn't switch.

use super::asid::Tag;
use super::asm;
use super::asm::Context;
use super::cpu;
use super::debug::Debug;
use super::event::Events;
use super::nmi::Nmi;
use super::npt;
use super::probe;
use super::probe::Features;
use super::state::Hidden;
use super::vmcb::Clean;
use super::vmcb::Vmcb;
use super::window::Window;
use crate::linux::page::Page4k;
use crate::xvm::state::Gprs;
use crate::xvm::state::SystemRegs;
use crate::xvm::state::UserRegs;
use core::cell::Cell;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering;
use kernel::prelude::*;

/// Numbers the vCPUs of the module's life, from 1.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// A vCPU.
///
/// # Invariants
///
/// `page` holds an initialised [`Vmcb`] with nested paging on, whose tables hold memory of this VM alone. `context.vmcb` is its
/// physical address. While `window` is `Some`, this thread has the window open, and the CPU has the guest's half-switched
/// state, which the VMCB has too as long as `synced` is set.
pub(crate) struct Vcpu {
    /// Unlike that of any other vCPU, alive or not.
    pub(super) id: u64,
    page: Page4k,
    pub(super) context: Context,
    /// The root of the nested page tables' four levels.
    root: u64,
    /// Their fifth level, where the CPU wants one.
    fifth_level: Option<Page4k>,
    pub(super) features: Features,
    pub(super) hidden: Hidden,
    pub(super) tsc_aux: u64,
    /// TSC_RATIO in windows.
    pub(super) tsc_ratio: u64,
    pub(super) debug_control: u64,
    pub(super) spec_ctrl: u64,
    /// Every access to an MSR exits.
    pub(super) msrs_exit: bool,
    pub(super) debug: Debug,
    pub(super) events: Events,
    pub(super) nmi: Nmi,
    /// Its ASID in windows that don't borrow SVM from KVM.
    pub(super) tag: Tag,
    /// `prepare` has something to do before the next entry.
    pub(super) attention: bool,
    /// The clean bits after an exit, before anything has changed.
    pub(super) clean_after_exit: Clean,
    /// The next VMRUN must not use a translation from before.
    pub(super) flush: bool,
    /// The physical CPU whose window was the last.
    pub(super) last_cpu: Option<u32>,
    pub(super) window: Option<Window>,
    synced: Cell<bool>,
    /// The half-switched state in the VMCB is newer than the CPU's.
    reload: bool,
}

impl Vcpu {
    /// A vCPU after power-up. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(super) fn new(root: u64) -> Result<Self> {
        let features = probe::features()?;
        let fifth_level = match features.five_levels {
            true => Some(fifth_level(root)?),
            false => None,
        };
        let page = Page4k::new()?;
        let context = Context::new(page.phys());
        // INVARIANT: A zeroed page is a `Vmcb`, and is made that of a reset below.
        let mut vcpu = Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            context,
            page,
            features,
            hidden: Hidden::default(),
            tsc_aux: 0,
            tsc_ratio: cpu::TSC_UNSCALED,
            debug_control: 0,
            spec_ctrl: 0,
            msrs_exit: false,
            debug: Debug::default(),
            events: Events::new(),
            nmi: Nmi::default(),
            tag: Tag::default(),
            attention: false,
            clean_after_exit: match features.clean_bits {
                true => Clean::ALL,
                false => Clean::NONE,
            },
            flush: false,
            last_cpu: None,
            window: None,
            synced: Cell::new(true),
            reload: false,
            root,
            fifth_level,
        };
        let top = vcpu.fifth_level.as_ref().map_or(root, Page4k::phys);
        vcpu.vmcb_mut().reset(&features, top);
        vcpu.set_system_regs(&SystemRegs::at_power_up());
        vcpu.load_user_regs(&UserRegs::at_power_up());
        Ok(vcpu)
    }

    /// The VMCB. Of the half-switched state it may be behind the CPU, see [`Vcpu::half_switched`].
    #[inline]
    pub(super) fn vmcb(&self) -> &Vmcb {
        // SAFETY: By the type's invariant the page holds one, and no guest runs while `self` is borrowed but in `run`, which borrows it
        // exclusively. `sync` writes to it through no reference, before any that is used later is made.
        unsafe { &*self.page.as_ptr().cast() }
    }

    /// The VMCB, for changes of what VMRUN loads.
    #[inline]
    pub(super) fn vmcb_mut(&mut self) -> &mut Vmcb {
        // SAFETY: As in `vmcb`, and `self` is borrowed exclusively.
        unsafe { &mut *self.page.as_ptr().cast() }
    }

    /// The VMCB with its half-switched state (FS, GS, LDTR, TR, system call MSRs) up to date.
    pub(super) fn half_switched(&self) -> &Vmcb {
        self.sync();
        self.vmcb()
    }

    /// The same for changes, which reach the CPU before the next entry.
    pub(super) fn half_switched_mut(&mut self) -> &mut Vmcb {
        self.sync();
        self.reload = self.window.is_some();
        self.attention = true;
        self.vmcb_mut()
    }

    /// Within a window, brings the half-switched state from the CPU to the VMCB.
    fn sync(&self) {
        if self.synced.replace(true) {
            return;
        }
        // SAFETY: Not being synced says, by the type's invariant, that the window is open with this VMCB loaded; no reference to the VMCB is in
        // use now, since those that `vmcb` gives out are dropped within the vendor's own functions.
        unsafe { asm::xvm_svm_save_guest(self.context.vmcb) };
        let gs_base = self.context.gs_base;
        // SAFETY: As above; VMSAVE has put the host's GS base there.
        unsafe { (*self.page.as_ptr().cast::<Vmcb>()).save.gs.base = gs_base };
    }

    /// Brings changes of the half-switched state from the VMCB to the CPU. Within a window.
    #[inline]
    pub(super) fn reload(&mut self) {
        if core::mem::take(&mut self.reload) {
            // SAFETY: The window is open with this VMCB loaded.
            self.context.gs_base = unsafe { asm::xvm_svm_reload_guest(self.context.vmcb) };
        }
    }

    /// The CPU has newer half-switched state than the VMCB (the guest ran), or no longer (the window closed).
    #[inline]
    pub(super) fn set_synced(&mut self, synced: bool) {
        self.synced.set(synced);
    }

    /// Changes the root of the nested page tables.
    pub(super) fn set_root(&mut self, root: u64) {
        if core::mem::replace(&mut self.root, root) == root {
            return;
        }
        match &self.fifth_level {
            Some(page) => set_fifth_level(page, root),
            None => {
                let control = &mut self.vmcb_mut().control;
                control.nested_cr3 = root;
                control.clean = control.clean.with_nested_paging(false);
            }
        }
        self.drop_translations();
    }

    /// The general registers but RSP.
    pub(super) fn gprs(&mut self) -> &mut Gprs {
        &mut self.context.gprs
    }
}

/// A root of five-level tables, of which the four-level tables at physical address `root` are all.
///
/// # Errors
///
/// `ENOMEM`.
fn fifth_level(root: u64) -> Result<Page4k> {
    let page = Page4k::new()?;
    set_fifth_level(&page, root);
    Ok(page)
}

/// Makes `page` the root of five-level tables, of which the four-level tables at physical address `root` are all.
fn set_fifth_level(page: &Page4k, root: u64) {
    // SAFETY: The page is ours, aligned and large enough. A CPU may be reading it if the guest runs, which it doesn't: the vCPU's thread is here.
    unsafe { page.as_ptr().cast::<u64>().write_volatile(npt::table(root)) };
}
