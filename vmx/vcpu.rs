// SPDX-License-Identifier: GPL-2.0

//! A vCPU on VMX: its VMCS and what goes with it.

use super::cache::Cache;
use super::cache::Sticky;
use super::capability;
use super::controls::Controls;
use super::debug::Debug;
use super::ept;
use super::event::Events;
use super::field;
use super::field::pin;
use super::field::primary;
use super::field::secondary;
use super::frame::Frame;
use super::host::Host;
use super::msr;
use super::msr::Switched;
use super::registers;
use super::tlb::Tlb;
use super::tlb::Vpid;
use super::vmcs::Vmcs;
use crate::linux::page::Page4k;
use crate::linux::x86;
use crate::xvm::state::SystemRegs;
use crate::xvm::state::UserRegs;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering;
use kernel::prelude::*;

/// The exceptions that exit: #DB and #AC, which a guest can make the CPU deliver without end (CVE-2015-5307,
/// CVE-2015-8104), #UD for hypercalls of the other vendor, #MC because it is the host's.
pub(super) const EXCEPTIONS: u64 = 1 << 1 | 1 << 6 | 1 << 17 | 1 << 18;

/// PAUSE-loop exiting: the most ticks between two PAUSEs of one loop, and the ticks after which the loop exits.
const PLE: (u64, u64) = (128, 4096);

/// The longest time without an exit, in milliseconds. A host interrupt ends it long before; this is for a CPU that doesn't exit
/// for one, as Bochs doesn't when host and guest both have RFLAGS.IF clear, and for hosts without a tick.
const LONGEST_RUN: u64 = 20;

/// A vCPU.
pub(crate) struct Vcpu {
    pub(super) vmcs: Vmcs,
    pub(super) frame: Frame,
    pub(super) cache: Cache,
    pub(super) controls: Controls,
    pub(super) primary: Sticky,
    pub(super) tsc_multiplier: Sticky,
    pub(super) tpr_threshold: Sticky,
    pub(super) events: Events,
    pub(super) msrs: Switched,
    pub(super) debug: Debug,
    pub(super) tlb: Tlb,
    pub(super) host: Host,
    /// Loops of PAUSE exit, where the CPU has that.
    pause_exiting: bool,
    /// CR2, which neither entry nor exit switches.
    pub(super) cr2: u64,
    /// The guest has been entered in this window: VMRESUME is next.
    pub(super) launched: bool,
    /// Of all vCPUs since load; never 0.
    pub(super) id: u64,
    /// The page with VTPR.
    pub(super) virtual_apic: Page4k,
    msr_bitmap: Page4k,
}

/// Source of [`Vcpu::id`].
static LAST_ID: AtomicU64 = AtomicU64::new(0);

impl Vcpu {
    /// `XvmOps::alloc`.
    pub(super) fn new(root: u64) -> Result<Self> {
        let mut controls = Controls::read()?;
        let vpid = match controls.secondary & secondary::ENABLE_VPID != 0 {
            true => Vpid::new(),
            false => None,
        };
        if vpid.is_none() {
            controls.secondary &= !secondary::ENABLE_VPID;
        }
        let eptp = ept::pointer(root, controls.accessed_dirty);
        let mut vcpu = Self {
            vmcs: Vmcs::new()?,
            frame: Frame::default(),
            cache: Cache::default(),
            primary: Sticky::new(field::PRIMARY_CONTROLS, u64::from(controls.primary)),
            tsc_multiplier: Sticky::new(field::TSC_MULTIPLIER, capability::TSC_UNSCALED),
            tpr_threshold: Sticky::new(field::TPR_THRESHOLD, 0),
            events: Events::new(),
            msrs: Switched::new(controls.secondary & secondary::ENABLE_RDTSCP != 0),
            debug: Debug::new(),
            tlb: Tlb::new(vpid, eptp, controls.invept, controls.invvpid),
            host: Host::new(),
            pause_exiting: true,
            cr2: 0,
            launched: false,
            id: LAST_ID.fetch_add(1, Ordering::Relaxed).wrapping_add(1),
            virtual_apic: Page4k::new()?,
            msr_bitmap: msr::bitmap()?,
            controls,
        };
        vcpu.vmcs.with(|| vcpu.initialise());
        registers::set_system(&mut vcpu, &SystemRegs::at_power_up());
        registers::load_user(&mut vcpu, &UserRegs::at_power_up());
        match vcpu.vmcs.take_failure() {
            None => Ok(vcpu),
            Some(failure) => {
                pr_err!("a new VMCS can't be set up: {failure:?}\n");
                Err(EIO)
            }
        }
    }

    /// Changes the root of the second-level tables.
    pub(super) fn set_root(&mut self, root: u64) {
        let eptp = ept::pointer(root, self.controls.accessed_dirty);
        if self.tlb.set_eptp(eptp) {
            self.vmcs.write(field::EPT_POINTER, eptp);
        }
    }

    /// Lets loops of PAUSE exit, or not.
    pub(super) fn set_pause_exiting(&mut self, on: bool) {
        let there = self.controls.secondary & secondary::PAUSE_LOOP_EXITING;
        if there == 0 || on == self.pause_exiting {
            return;
        }
        self.pause_exiting = on;
        let wanted = match on {
            true => self.controls.secondary,
            false => self.controls.secondary & !there,
        };
        self.vmcs
            .write(field::SECONDARY_CONTROLS, u64::from(wanted));
    }

    /// Sets the fields that stay. The VMCS must be current.
    fn initialise(&self) {
        let (vmcs, controls) = (&self.vmcs, &self.controls);
        self.host.initialise(vmcs);
        self.primary.initialise(vmcs);
        registers::initialise(vmcs);
        msr::initialise(vmcs);
        vmcs.write(field::PIN_CONTROLS, u64::from(controls.pin));
        vmcs.write(field::SECONDARY_CONTROLS, u64::from(controls.secondary));
        vmcs.write(field::EXIT_CONTROLS, u64::from(controls.exit));
        vmcs.write(field::EXCEPTION_BITMAP, EXCEPTIONS);
        vmcs.write(field::MSR_BITMAP, self.msr_bitmap.phys());
        vmcs.write(field::EPT_POINTER, self.tlb.eptp());
        if controls.secondary & secondary::ENABLE_VPID != 0 {
            vmcs.write(field::VPID, u64::from(self.tlb.vpid()));
        }
        if controls.primary & primary::USE_TPR_SHADOW != 0 {
            vmcs.write(field::VIRTUAL_APIC_PAGE, self.virtual_apic.phys());
            self.tpr_threshold.initialise(vmcs);
        }
        if controls.secondary & secondary::USE_TSC_SCALING != 0 {
            self.tsc_multiplier.initialise(vmcs);
        }
        if controls.secondary & secondary::PAUSE_LOOP_EXITING != 0 {
            vmcs.write(field::PLE_GAP, PLE.0);
            vmcs.write(field::PLE_WINDOW, PLE.1);
        }
        if controls.pin & pin::PREEMPTION_TIMER != 0 {
            let ticks = LONGEST_RUN.saturating_mul(u64::from(x86::tsc_khz()));
            let value = ticks >> capability::preemption_timer_shift();
            vmcs.write(
                field::GUEST_PREEMPTION_TIMER,
                value.min(u64::from(u32::MAX)),
            );
        }
        vmcs.write(field::VMCS_LINK_POINTER, u64::MAX);
        vmcs.write(field::GUEST_DR7, 0x400);
        for zero in [
            field::TSC_OFFSET,
            field::PAGE_FAULT_MASK,
            field::PAGE_FAULT_MATCH,
            field::CR3_TARGET_COUNT,
            field::EXIT_MSR_STORE_COUNT,
            field::EXIT_MSR_LOAD_COUNT,
            field::ENTRY_MSR_LOAD_COUNT,
            field::ENTRY_INTERRUPTION_INFO,
            field::ENTRY_EXCEPTION_ERROR_CODE,
            field::ENTRY_INSTRUCTION_LENGTH,
            field::GUEST_INTERRUPTIBILITY,
            field::GUEST_ACTIVITY,
            field::GUEST_PENDING_DEBUG,
        ] {
            vmcs.write(zero, 0);
        }
    }
}
