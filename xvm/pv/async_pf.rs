// SPDX-License-Identifier: GPL-2.0

//! Asynchronous page faults (x86/msr.rst, `MSR_KVM_ASYNC_PF_EN`): where guest memory has to be brought in from elsewhere, which
//! lasts, a thread of the kernel's does it, and the vCPU goes on.
//!
//! A guest that has asked for it gets a #PF, of which CR2 is a token, and goes on with another of its threads. When the page is there an
//! interrupt tells the token. Any other guest that can take interrupts is halted until one comes, or the page: so it at
//! least loses none. Who needs no more of a page doesn't wait for the thread, which belongs to the process and not to the vCPU.

use super::due;
use super::Features;
use super::ENABLED;
use crate::linux::page_in::PageIn;
use crate::linux::page_in::Waiting;
use crate::linux::timer::Timed;
use crate::xvm::emulate::Fault;
use crate::xvm::memory::AsId;
use crate::xvm::platform::Gp;
use crate::xvm::vcpu::MpState;
use crate::xvm::vcpu::Shared;
use crate::xvm::vcpu::Vcpu;
use crate::xvm::vectors::PAGE_FAULT;
use crate::xvm::XvmOps;
use core::sync::atomic::Ordering::Relaxed;
use kernel::prelude::*;
use kernel::sync::Arc;

/// Bits of the MSR: also at privilege level 0, as exits of a nested guest, by interrupt; the reserved ones; the address.
const ALWAYS: u64 = 1 << 1;
const AS_VMEXIT: u64 = 1 << 2;
const AS_INTERRUPT: u64 = 1 << 3;
const RESERVED: u64 = 0x30;
const ADDRESS: u64 = !0x3f;

/// In the guest's structure: a #PF is none; the token of the page that is there, 0 when the guest has taken it.
const FLAGS: u64 = 0;
const NOT_PRESENT: u32 = 1;
const TOKEN: u64 = 4;

/// For all that wait.
const EVERYONE: u32 = u32::MAX;

/// The most pages that a vCPU has brought in at a time.
const PAGES_MAX: u32 = 64;

/// CR0.PG.
const PAGING: u64 = 1 << 31;

/// A page that the vCPU goes on without.
struct Missing {
    gpa: u64,
    token: u32,
    /// The guest knows.
    told: bool,
    page_in: Arc<PageIn<Owner>>,
}

/// The vCPU that needs a page.
struct Owner(Arc<Timed<Shared>>);

impl Owner {
    fn new(vcpu: Arc<Timed<Shared>>) -> Self {
        vcpu.pages_awaited.fetch_add(1, Relaxed);
        Self(vcpu)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.pages_awaited.fetch_sub(1, Relaxed);
    }
}

impl Waiting for Owner {
    fn page_arrived(&self) {
        self.0.mailbox.post_update();
        self.0.wake();
    }
}

/// A vCPU's part of it.
#[derive(Default)]
pub(crate) struct AsyncPf {
    /// The MSRs.
    enabled: u64,
    vector: u8,
    missing: KVec<Missing>,
    /// Of the last token, in 19 bits: those of a vCPU differ.
    count: u32,
    /// The guest may wait for pages that another host has brought in, or that nobody brings in any more.
    wake_all: bool,
    /// Nobody waits any more for what is missing.
    forgotten: bool,
    /// The vCPU can't go on.
    stuck: bool,
}

/// Whether `MSR_KVM_ASYNC_PF_EN` is a guest's that wants to be told.
const fn is_on(value: u64) -> bool {
    value & (ENABLED | AS_INTERRUPT) == ENABLED | AS_INTERRUPT
}

impl AsyncPf {
    /// Before a HLT of the vCPU's that is none: whether it has to be.
    pub(crate) fn is_stuck(&self) -> bool {
        self.stuck
    }

    /// The vCPU is stuck and one of the pages is there.
    pub(crate) fn ends_halt(&self) -> bool {
        self.stuck && self.missing.iter().any(|one| one.page_in.is_over())
    }

    /// There may be a page to tell of.
    pub(super) fn is_used(&self) -> bool {
        !self.missing.is_empty()
    }

    /// MSR_KVM_ASYNC_PF_EN, MSR_KVM_ASYNC_PF_INT.
    pub(super) fn msrs(&self) -> (u64, u64) {
        (self.enabled, self.vector.into())
    }

    /// The next token that there is something to do for: it, and whether the guest waits for it.
    fn next_over(&mut self) -> Option<(u32, bool)> {
        if core::mem::take(&mut self.wake_all) {
            return Some((EVERYONE, true));
        }
        let over = |one: &Missing| one.page_in.is_over();
        let at = self.missing.iter().position(over)?;
        let one = self.missing.remove(at).ok()?;
        Some((one.token, one.told))
    }
}

impl<V: XvmOps> Vcpu<V> {
    /// MSR_KVM_ASYNC_PF_EN.
    ///
    /// # Errors
    ///
    /// [`Gp`] for reserved bits, what the guest may not use, an address where no memory is, and without an in-kernel local APIC.
    pub(super) fn set_async_pf(&mut self, value: u64) -> Result<(), Gp> {
        let may = |bit: u64, feature| value & bit == 0 || self.may_use(feature);
        if value & RESERVED != 0
            || !may(AS_VMEXIT, Features::ASYNC_PF_VMEXIT)
            || !may(AS_INTERRUPT, Features::ASYNC_PF_INT)
            || value != 0 && self.lapic.is_none()
            || is_on(value) && self.main_slots().by_gpa(value & ADDRESS).is_none()
        {
            return Err(Gp);
        }
        let state = &mut self.pv.async_pf;
        state.enabled = value;
        state.wake_all = is_on(value);
        state.forgotten |= !is_on(value);
        self.pv.due |= due::ASYNC_PF;
        Ok(())
    }

    /// MSR_KVM_ASYNC_PF_INT.
    ///
    /// # Errors
    ///
    /// [`Gp`] for what is no vector, and but for 0 without an in-kernel local APIC.
    pub(super) fn set_async_pf_vector(&mut self, value: u64) -> Result<(), Gp> {
        if value != 0 && self.lapic.is_none() {
            return Err(Gp);
        }
        self.pv.async_pf.vector = u8::try_from(value).map_err(|_| Gp)?;
        Ok(())
    }

    /// Whether the vCPU can do something else than wait: take interrupts, at least.
    fn can_go_on(&mut self) -> bool {
        self.lapic.is_some()
            && self.events.injected.is_none()
            && !self.events.triple_fault
            && self.config.debug.is_none()
            && self.slots.as_id() == AsId::Main
            && self.interruptible()
            && (!self.config.free_hlt || self.takes_faults())
    }

    /// Whether the guest wants to be told now.
    fn takes_faults(&self) -> bool {
        let context = V::code_context(&self.arch);
        let enabled = self.pv.async_pf.enabled;
        is_on(enabled) && (enabled & ALWAYS != 0 || context.cpl != 0) && context.cr0 & PAGING != 0
    }

    /// The page at guest-physical `gpa`, user address `user`, has to be brought in from elsewhere. False when the vCPU has to wait for it.
    /// May sleep.
    pub(in crate::xvm) fn go_on_without(&mut self, gpa: u64, user: usize, write: bool) -> bool {
        let gpa = gpa & !0xfff;
        if !self.can_go_on() {
            return false;
        }
        if let Some(known) = self.pv.async_pf.missing.iter().find(|one| one.gpa == gpa) {
            // It has come, and is gone again.
            let over = known.page_in.is_over();
            self.pv.async_pf.stuck = !over;
            return !over;
        }
        self.shared.pages_awaited.load(Relaxed) < PAGES_MAX
            && self.bring_in(gpa, user, write).is_ok()
    }

    fn bring_in(&mut self, gpa: u64, user: usize, write: bool) -> Result {
        self.pv.async_pf.missing.reserve(1, GFP_KERNEL_ACCOUNT)?;
        let workers = &self.vm.machine.page_in;
        let mm = self.vm.address_space().clone();
        let owner = Owner::new(self.shared.clone());
        let page_in = PageIn::start(workers, mm, user, write, owner)?;
        let state = &mut self.pv.async_pf;
        state.count = state.count.wrapping_add(1) & 0x7_ffff;
        if state.count == 0 {
            // A token of 0 is none.
            state.count = 1;
        }
        let token = state.count << 12 | self.shared.id & 0xfff;
        let told = self.takes_faults() && self.tell_missing(token);
        let missing = Missing {
            gpa,
            token,
            told,
            page_in,
        };
        self.pv.async_pf.missing.push(missing, GFP_KERNEL_ACCOUNT)?;
        self.pv.async_pf.stuck = !told;
        Ok(())
    }

    fn tell_missing(&mut self, token: u32) -> bool {
        let gpa = self.pv.async_pf.enabled & ADDRESS;
        let flags = NOT_PRESENT.to_le_bytes();
        if self.main_slots().write(gpa + FLAGS, &flags).is_err() {
            return false;
        }
        self.raise(Fault {
            vector: PAGE_FAULT,
            error_code: Some(0),
            address: Some(token.into()),
        });
        true
    }

    /// Tells the guest of a page that has come, if it can be told, and forgets those that nobody waits for. May sleep.
    pub(super) fn serve_async_pf(&mut self) {
        if core::mem::take(&mut self.pv.async_pf.forgotten) {
            self.pv.async_pf.missing.clear();
        }
        let on = is_on(self.pv.async_pf.enabled);
        while !on || self.has_taken_token() {
            let Some((token, told)) = self.pv.async_pf.next_over() else {
                return;
            };
            // What it was halted for may have come.
            self.pv.kicked |= self.pv.async_pf.stuck;
            let gpa = self.pv.async_pf.enabled & ADDRESS;
            let word = token.to_le_bytes();
            if on && told && self.main_slots().write(gpa + TOKEN, &word).is_ok() {
                self.shared.mailbox.post(self.pv.async_pf.vector, false);
            }
        }
    }

    /// Whether the guest can be told of a page: it has taken what it was told last.
    fn has_taken_token(&mut self) -> bool {
        let gpa = self.pv.async_pf.enabled & ADDRESS;
        let mut token = [0; 4];
        let enabled = self.lapic.as_ref().is_some_and(|lapic| lapic.is_enabled());
        enabled
            && self.main_slots().read(gpa + TOKEN, &mut token).is_ok()
            && u32::from_le_bytes(token) == 0
    }

    /// Waits like in HLT until a missing page has come, or the guest has something else to do; false when a signal ended it.
    pub(in crate::xvm) fn wait_for_page(&mut self) -> bool {
        if self.mp_state == MpState::Runnable {
            self.mp_state = MpState::Halted;
        }
        let go_on = self.sleep();
        self.pv.async_pf.stuck = false;
        if self.mp_state == MpState::Halted {
            self.mp_state = MpState::Runnable;
        }
        go_on
    }
}
