// SPDX-License-Identifier: GPL-2.0

//! System management mode (APM vol 2, chapter 10; SDM vol 3, chapter 33): entering it by an SMI, leaving it by RSM.
//!
//! In the mode a vCPU finds the memory of the second address space. There is no other difference between the vendors' ways than
//! the layout of the saved state (`platform/smram.rs`), which goes by CPUID, as in KVM.
//!
//! An SMI comes by the mailbox. Inside the window it is only looked at there, because the state is saved to guest memory, for which the
//! window must close ([`Vcpu::postpone_smi`]); outside it is taken, or waits in [`Smm::pending`].

use super::memory::AsId;
use super::platform::smram;
use super::platform::smram::State;
use super::platform::smram::SIZE;
use super::run::Next;
use super::state::seg;
use super::state::DescriptorTable;
use super::state::Interruptibility;
use super::state::Segment;
use super::state::SystemRegs;
use super::state::UserRegs;
use super::state::UNUSABLE;
use super::vcpu::MpState;
use super::vcpu::Vcpu;
use super::XvmOps;
use crate::uapi;
use crate::uapi::kvm_vcpu_events;
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;

/// SMBASE after power-up.
const BASE: u64 = 0x3_0000;

/// CR0: PE, EM, TS, PG, which are clear in the mode at first.
const CR0_CLEARED: u64 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 31;

/// DR7 in the mode at first.
const DR7: u64 = 0x400;

/// RFLAGS in the mode at first: bit 1 is always set.
const RFLAGS: u64 = 2;

/// The bits of RFLAGS that there are.
const RFLAGS_DEFINED: u64 = 0x3f_7fd5;

/// Attributes of the mode's segments: present data, writable, accessed, with G.
const ATTRIBUTES: u16 = 0x893;

/// EFER.LME and LMA, CR0.PG.
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const CR0_PG: u64 = 1 << 31;

/// Attribute bit of a segment: it is present.
const PRESENT: u16 = 1 << 7;

/// A vCPU's system management mode.
pub(crate) struct Smm {
    /// It is in it.
    inside: bool,
    /// It was entered from an NMI's handler.
    inside_nmi: bool,
    /// An SMI waits. Others may be in the mailbox.
    pending: bool,
    /// An INIT came while it was inside.
    init: bool,
    /// IA32_SMBASE, of which the lower half counts.
    pub(super) base: u64,
    /// MSR_SMI_COUNT.
    pub(super) count: u64,
}

impl Smm {
    /// Outside.
    pub(crate) const fn new() -> Self {
        Self {
            inside: false,
            inside_nmi: false,
            pending: false,
            init: false,
            base: BASE,
            count: 0,
        }
    }

    /// Whether the vCPU is in the mode.
    #[inline]
    pub(crate) fn is_inside(&self) -> bool {
        self.inside
    }

    /// Guest-physical address of the state that is saved.
    fn saved_at(&self) -> u64 {
        u64::from(self.base as u32) + smram::OFFSET
    }
}

/// The saved form of a segment register.
fn to_saved(segment: &Segment) -> smram::Segment {
    // A null selector's segment isn't present.
    let hidden = match segment.attributes & UNUSABLE {
        0 => segment.attributes,
        _ => segment.attributes & !PRESENT,
    };
    smram::Segment {
        selector: segment.selector.into(),
        attributes: hidden.into(),
        limit: segment.limit.into(),
        base: segment.base,
    }
}

fn from_saved(saved: &smram::Segment) -> Segment {
    let attributes = saved.attributes as u16;
    Segment {
        base: saved.base,
        limit: saved.limit as u32,
        selector: saved.selector as u16,
        attributes: match attributes & PRESENT {
            0 => attributes | UNUSABLE,
            _ => attributes,
        },
    }
}

impl<V: XvmOps> Vcpu<V> {
    /// `KVM_SMI` (api.rst, 4.96).
    ///
    /// # Errors
    ///
    /// None.
    pub(crate) fn queue_smi(&mut self) -> Result<isize> {
        self.smm.pending = true;
        Ok(0)
    }

    /// Inside the window, with an SMI in the mailbox: false if it is to be taken, outside. Else it waits: for the end of the mode, of
    /// debugging that holds interrupts back, or of an event's delivery, which an interrupt for the host follows at once.
    #[cold]
    pub(super) fn postpone_smi(&mut self) -> bool {
        if self.smm.inside || self.events.held {
            self.smm.pending |= self.shared.mailbox.take_smi();
        } else if self.is_between_event_and_handler() {
            self.shared.presence.kick();
        } else {
            return false;
        }
        true
    }

    /// Whether the guest is about to be given an exception, or another event a second time.
    fn is_between_event_and_handler(&self) -> bool {
        self.events.injected.is_some() || V::interruptibility(&self.arch).trap
    }

    /// Whether an SMI takes the vCPU out of HLT. Outside of the window. Without a local APIC that was started, it goes on waiting.
    pub(super) fn smi_ends_halt(&mut self) -> bool {
        self.smm.pending |= self.shared.mailbox.take_smi();
        self.mp_state == MpState::Halted
            && self.smm.pending
            && !self.smm.inside
            && !self.events.held
    }

    /// Goes to system management mode if an SMI waits and can be taken. Outside of the window; may sleep.
    ///
    /// # Errors
    ///
    /// As [`Vcpu::enter_smm`].
    pub(super) fn take_smi(&mut self) -> Result {
        self.smm.pending |= self.shared.mailbox.take_smi();
        if !self.smm.pending || self.smm.inside || self.events.held {
            return Ok(());
        }
        match self.mp_state {
            MpState::Runnable if self.is_between_event_and_handler() => {
                // The window sees to it that it is taken as soon as that is over.
                self.smm.pending = false;
                self.shared.mailbox.post_smi();
                Ok(())
            }
            MpState::Runnable | MpState::Halted => self.enter_smm(),
            MpState::Uninitialized | MpState::InitReceived => Ok(()),
        }
    }

    /// Whether [`Vcpu::take_smi`] has one that could not be taken at once.
    #[inline]
    pub(super) fn smi_waits(&self) -> bool {
        self.smm.pending
    }

    /// After an INIT none waits.
    pub(super) fn forget_smi(&mut self) {
        self.shared.mailbox.take_smi();
        self.smm.pending = false;
        self.smm.count = 0;
    }

    /// In the mode INITs wait, and start-up IPIs are lost. Whether it is so.
    pub(super) fn postpone_init(&mut self) -> bool {
        if self.smm.inside {
            self.smm.init |= self.shared.mailbox.take_init();
            self.shared.mailbox.take_startup();
        }
        self.smm.inside
    }

    /// Enters the mode (APM vol 2, 10.3.1; SDM vol 3, 33.4, 33.5). Where the state can't be saved for want of memory the vCPU shuts down.
    ///
    /// # Errors
    ///
    /// `EFAULT` and its kin when the VMM has nothing mapped where memory should be; the SMI still waits.
    fn enter_smm(&mut self) -> Result {
        let (user, system) = (
            V::store_cpu_user_regs(&self.arch),
            V::system_regs(&self.arch),
        );
        let state = V::interruptibility(&self.arch);
        let long = self.cpuid.model().has_long_mode();
        let area = self.to_save(&user, &system, state).encode(long);
        let at = self.smm.saved_at();
        self.slots.set_as_id(AsId::Smm);
        let saved = self.current_slots().write(at, &area);
        self.slots.set_as_id(AsId::Main);
        let saved = self.saved_or_shut_down(saved)?;
        self.smm.pending = false;
        self.mp_state = MpState::Runnable;
        if !saved {
            return Ok(());
        }
        self.smm.count = self.smm.count.wrapping_add(1);
        self.switch_smm(true);
        self.smm.inside_nmi = state.nmi;
        // An IRET that was about to end blocking of NMIs is forgotten by the vendor, and so is a shadow.
        V::set_interruptibility(&mut self.arch, Interruptibility::default());
        let blocked = Interruptibility {
            nmi: true,
            ..Interruptibility::default()
        };
        V::set_interruptibility(&mut self.arch, blocked);
        self.set_system_regs(&self.at_entry(&system));
        let user = UserRegs {
            rip: smram::ENTRY,
            rflags: RFLAGS,
            ..user
        };
        V::load_cpu_user_regs(&mut self.arch, &user);
        Ok(())
    }

    /// What comes of an access to the saved state: whether it was made. Without memory the vCPU shuts down.
    ///
    /// # Errors
    ///
    /// The access's, when the VMM has nothing mapped there, with `KVM_EXIT_MEMORY_FAULT`.
    fn saved_or_shut_down(&mut self, access: Result) -> Result<bool> {
        match access {
            Ok(()) => Ok(true),
            Err(error) if error == ENXIO => {
                self.events.triple_fault = true;
                Ok(false)
            }
            Err(error) => {
                let page = self.smm.saved_at() & !0xfff;
                self.exit_memory_fault(page, PAGE_SIZE as u64, 0);
                Err(error)
            }
        }
    }

    /// What is saved.
    fn to_save(&self, user: &UserRegs, system: &SystemRegs, state: Interruptibility) -> State {
        let shadow = |set, flag: u32| if set { u64::from(flag) } else { 0 };
        let table = |table: &DescriptorTable| smram::Table {
            base: table.base,
            limit: table.limit.into(),
        };
        State {
            gprs: user.gprs.0,
            rip: user.rip,
            rflags: user.rflags,
            cr0: system.cr0,
            cr3: system.cr3,
            cr4: system.cr4,
            efer: system.efer,
            dr6: system.debug.dr6,
            dr7: system.debug.dr7,
            segments: system.segments.each_ref().map(to_saved),
            gdtr: table(&system.gdtr),
            idtr: table(&system.idtr),
            base: self.smm.base,
            halted: (self.mp_state == MpState::Halted).into(),
            shadow: shadow(state.sti, uapi::KVM_X86_SHADOW_INT_STI)
                | shadow(state.mov_ss, uapi::KVM_X86_SHADOW_INT_MOV_SS),
        }
    }

    /// The system registers at first in the mode: real mode with segments of 4 GiB.
    fn at_entry(&self, old: &SystemRegs) -> SystemRegs {
        let mut system = *old;
        let base = self.smm.base as u32;
        for segment in &mut system.segments[..=seg::GS] {
            *segment = Segment {
                base: 0,
                limit: u32::MAX,
                selector: 0,
                attributes: ATTRIBUTES,
            };
        }
        system.segments[seg::CS].base = base.into();
        system.segments[seg::CS].selector = (base >> 4) as u16;
        // As in KVM, and on Intel's CPUs: there are no handlers.
        system.idtr = DescriptorTable::default();
        system.cr0 &= !CR0_CLEARED;
        system.cr4 = 0;
        if self.cpuid.model().has_long_mode() {
            system.efer = 0;
        }
        system.debug.dr7 = DR7;
        system
    }

    /// Goes to the mode, or leaves it: its memory, and what waited for its end.
    fn switch_smm(&mut self, inside: bool) {
        self.smm.inside = inside;
        self.smm.inside_nmi = false;
        if !inside && core::mem::take(&mut self.smm.init) {
            self.shared.mailbox.post_init();
        }
        let as_id = match inside {
            true => AsId::Smm,
            false => AsId::Main,
        };
        self.slots.set_as_id(as_id);
        self.config.root = self.vm.memory.root(as_id);
        self.configure();
    }

    /// RSM in the mode (APM vol 2, 10.3.6; SDM vol 2, RSM). A state that can't be ends in a shutdown.
    ///
    /// # Errors
    ///
    /// `EFAULT` and its kin when the VMM has nothing mapped where memory should be.
    pub(super) fn leave_smm(&mut self) -> Result<Next> {
        let mut area = [0; SIZE];
        let at = self.smm.saved_at();
        let read = self.current_slots().read(at, &mut area);
        if !self.saved_or_shut_down(read)? {
            return Ok(Next::Guest);
        }
        let long = self.cpuid.model().has_long_mode();
        let mut saved = State::decode(&area, long);
        let state = Interruptibility {
            nmi: self.smm.inside_nmi,
            sti: saved.shadow & u64::from(uapi::KVM_X86_SHADOW_INT_STI) != 0,
            mov_ss: saved.shadow & u64::from(uapi::KVM_X86_SHADOW_INT_MOV_SS) != 0,
            ..Interruptibility::default()
        };
        V::set_interruptibility(&mut self.arch, state);
        self.switch_smm(false);
        let old = V::system_regs(&self.arch);
        if !long {
            saved.efer = old.efer;
        }
        let mode = match saved.efer & EFER_LME != 0 && saved.cr0 & CR0_PG != 0 {
            true => EFER_LMA,
            false => 0,
        };
        saved.efer = saved.efer & !EFER_LMA | mode;
        match self.resumed(&saved, &old) {
            Some(system) => self.resume(&saved, &system, long),
            None => self.events.triple_fault = true,
        }
        Ok(Next::Guest)
    }

    /// The system registers by what was saved; `None` if they can't be so. May sleep.
    fn resumed(&mut self, saved: &State, old: &SystemRegs) -> Option<SystemRegs> {
        let table = |table: &smram::Table| DescriptorTable {
            base: table.base,
            limit: table.limit as u16,
        };
        let mut system = SystemRegs {
            segments: saved.segments.each_ref().map(from_saved),
            gdtr: table(&saved.gdtr),
            idtr: table(&saved.idtr),
            cr0: SystemRegs::stored_cr0(saved.cr0),
            cr3: saved.cr3,
            cr4: saved.cr4,
            efer: saved.efer,
            ..*old
        };
        system.debug.dr6 = saved.dr6;
        system.debug.dr7 = saved.dr7;
        if !saved.is_sound()
            || saved.cr0 >> 32 != 0
            || system.check(self.cpuid.model()).is_err()
            || !system.pcid_is_legal()
        {
            return None;
        }
        if system.is_pae() {
            system.pdptrs = self.read_pdptes(system.cr3).ok()?;
        }
        Some(system)
    }

    /// Goes on with what was saved.
    fn resume(&mut self, saved: &State, system: &SystemRegs, long: bool) {
        self.set_system_regs(system);
        let mut user = UserRegs {
            rip: saved.rip,
            rflags: saved.rflags & RFLAGS_DEFINED | RFLAGS,
            ..V::store_cpu_user_regs(&self.arch)
        };
        let there = if long { 16 } else { 8 };
        user.gprs.0[..there].copy_from_slice(&saved.gprs[..there]);
        V::load_cpu_user_regs(&mut self.arch, &user);
        self.smm.base = saved.base;
        if saved.halted != 0 && self.lapic.is_some() {
            self.mp_state = MpState::Halted;
        }
    }

    /// What `KVM_GET_VCPU_EVENTS` says of the mode.
    pub(super) fn show_smm(&mut self, events: &mut kvm_vcpu_events) {
        let mailbox = &self.shared.mailbox;
        let smm = &mut self.smm;
        smm.pending |= mailbox.take_smi();
        events.smi.smm = smm.inside.into();
        events.smi.pending = smm.pending.into();
        events.smi.smm_inside_nmi = smm.inside_nmi.into();
        events.smi.latched_init = (smm.init || mailbox.has_init()).into();
        events.flags |= uapi::KVM_VCPUEVENT_VALID_SMM;
    }

    /// What `KVM_SET_VCPU_EVENTS` does to the mode: any value other than 0 is a yes, as in KVM.
    pub(super) fn change_smm(&mut self, events: &kvm_vcpu_events) {
        let wanted = &events.smi;
        let inside = wanted.smm != 0;
        self.shared.mailbox.take_smi();
        self.smm.pending = wanted.pending != 0;
        if self.lapic.is_some() {
            self.shared.mailbox.take_init();
            self.smm.init = false;
            if wanted.latched_init != 0 {
                self.shared.mailbox.post_init();
            }
        }
        if self.smm.inside != inside {
            self.switch_smm(inside);
        }
        self.smm.inside_nmi = inside && wanted.smm_inside_nmi != 0;
    }
}
