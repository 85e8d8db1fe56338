// SPDX-License-Identifier: GPL-2.0

//! The VMCS of a vCPU: the page, VMX operation around its use, and typed access to its fields.
//!
//! A VMCS can be read and written only by a CPU in VMX operation that has it current. The window is such a
//! time; for what is asked outside of it, [`Vmcs::with`] makes one: interrupts off, VMXON, VMPTRLD, the
//! accesses, VMCLEAR, VMXOFF. Nothing is left behind on the CPU, so the next user may be any other CPU.
//!
//! When somebody else (KVM) has put this CPU into VMX operation, it is borrowed: their current VMCS is current again
//! afterwards, and VMX operation is not left.

use super::capability;
use super::field;
use super::field::Field;
use super::instruction;
use super::instruction::Outcome;
use crate::linux::irq::IrqsOff;
use crate::linux::page::Page4k;
use crate::linux::x86;
use core::cell::Cell;
use kernel::prelude::*;

/// CR4.VMXE (SDM vol 3, 2.5).
pub(super) const CR4_VMXE: u64 = 1 << 13;

/// `vmptrst` when no VMCS is current.
const NO_VMCS: u64 = u64::MAX;

/// A VMX instruction that failed, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// What was tried.
    pub(super) what: &'static str,
    /// The field, for VMREAD and VMWRITE.
    pub(super) field: Option<Field>,
    /// The VM-instruction error (SDM vol 3, 31.4), 0 if there is no current VMCS to tell it.
    pub(super) error: u32,
}

/// A VMCS and the VMXON region that goes with it.
///
/// A VMXON region belongs to a CPU from VMXON to VMXOFF only. As that is within the use of one VMCS, by one
/// CPU, it comes with the VMCS and no table by CPU is needed.
///
/// # Invariants
///
/// While `current` is set, interrupts are off, this CPU is in VMX operation and this is its current VMCS.
/// While it is not, the VMCS is clear and active on no CPU (but for its first use, when `fresh` is set).
pub(super) struct Vmcs {
    region: Page4k,
    vmxon: Page4k,
    current: Cell<bool>,
    fresh: Cell<bool>,
    failure: Cell<Option<Failure>>,
}

/// What [`Vmcs::enter`] found and [`Vmcs::leave`] puts back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    cr4: u64,
    /// Somebody else's current VMCS, if VMX operation is borrowed.
    borrowed: Option<u64>,
}

/// Reads of known fields of the current VMCS.
///
/// # Invariants
///
/// As long as it exists a VMCS of ours is current on this CPU.
pub(super) struct Reads(());

impl Reads {
    /// Reads a field that every CPU with what xvm needs has.
    #[inline(always)]
    pub(super) fn field(&self, field: Field) -> u64 {
        // SAFETY: By the type's invariant; the caller knows the field.
        unsafe { instruction::vmread_known(field) }
    }
}

impl Vmcs {
    /// Makes a VMCS with unset fields. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(super) fn new() -> Result<Self> {
        let this = Self {
            region: Page4k::new()?,
            vmxon: Page4k::new()?,
            current: Cell::new(false),
            fresh: Cell::new(true),
            failure: Cell::new(None),
        };
        let revision = capability::revision();
        for page in [&this.region, &this.vmxon] {
            // SAFETY: The page is ours, 4 KiB long and aligned; no CPU uses it yet. Both regions begin with the
            // revision (SDM vol 3, 26.2 and 26.11.5).
            unsafe { page.as_ptr().cast::<u32>().write(revision) };
        }
        Ok(this)
    }

    /// Enters VMX operation and makes this VMCS current. On failure nothing has changed but [`Vmcs::failure`].
    #[inline]
    pub(super) fn enter(&self, _irqs: &IrqsOff) -> Option<Found> {
        let cr4 = x86::cr4();
        let borrowed = (cr4 & CR4_VMXE != 0).then(|| {
            // SAFETY: CR4.VMXE is set only by who is in VMX operation: who sets it does so with interrupts off
            // until VMXON.
            unsafe { instruction::vmptrst() }
        });
        let found = Found { cr4, borrowed };
        if found.borrowed.is_none() {
            // SAFETY: The CPU has VMX (`probe`), so that the bit may be set. The kernel's copy of CR4 isn't
            // told; with interrupts off nothing uses it until `leave`.
            unsafe { x86::write_cr4(cr4 | CR4_VMXE) };
            // SAFETY: Interrupts are off, VMXE is set, VMX operation was off or VMXE would have been set;
            // `probe` checked IA32_FEATURE_CONTROL on this CPU. The region is ours.
            let entered = unsafe { instruction::vmxon(self.vmxon.phys()) };
            if self.check("VMXON", entered).is_none() {
                // SAFETY: That is the value it had.
                unsafe { x86::write_cr4(cr4) };
                return None;
            }
        }
        if self.make_current().is_none() {
            self.put_back(found);
            return None;
        }
        // INVARIANT: Interrupts are off for longer than `found` is used, by `_irqs` of the caller; the rest was
        // just done.
        self.current.set(true);
        Some(found)
    }

    fn make_current(&self) -> Option<()> {
        let phys = self.region.phys();
        if self.fresh.replace(false) {
            // SAFETY: This CPU is in VMX operation, and by the type's invariant the VMCS is active nowhere.
            self.check("VMCLEAR", unsafe { instruction::vmclear(phys) })?;
        }
        // SAFETY: As above.
        self.check("VMPTRLD", unsafe { instruction::vmptrld(phys) })
    }

    /// Undoes [`Vmcs::enter`].
    #[inline]
    pub(super) fn leave(&self, found: Found) {
        // INVARIANT: The VMCS is cleared right away.
        self.current.set(false);
        // SAFETY: This CPU is in VMX operation since `enter`; the VMCS is active on no other.
        let cleared = unsafe { instruction::vmclear(self.region.phys()) };
        self.check("VMCLEAR", cleared);
        self.put_back(found);
    }

    fn put_back(&self, found: Found) {
        match found.borrowed {
            None => {
                // SAFETY: `enter` did VMXON; the only VMCS that was active since then has been cleared.
                self.check("VMXOFF", unsafe { instruction::vmxoff() });
                // SAFETY: That is the value it had.
                unsafe { x86::write_cr4(found.cr4) };
            }
            Some(NO_VMCS) => {}
            // SAFETY: This CPU is in VMX operation; the VMCS was current on it before.
            Some(theirs) => drop(self.check("VMPTRLD of the one borrowed from", unsafe {
                instruction::vmptrld(theirs)
            })),
        }
    }

    /// Does `accesses` with this VMCS current, whether in the window or not. When VMX operation can't be
    /// entered it isn't called, and the result is the type's default; the next [`Vmcs::take_failure`] tells.
    #[inline]
    pub(super) fn with<R: Default>(&self, accesses: impl FnOnce() -> R) -> R {
        if self.current.get() {
            return accesses();
        }
        let irqs = IrqsOff::new();
        let Some(found) = self.enter(&irqs) else {
            return R::default();
        };
        let result = accesses();
        self.leave(found);
        result
    }

    /// Whether this VMCS is current on this CPU, which is so in the window.
    #[inline(always)]
    pub(super) fn is_current(&self) -> bool {
        self.current.get()
    }

    /// Reads a field; 0 on failure, which [`Vmcs::take_failure`] tells.
    #[inline(always)]
    pub(super) fn read(&self, field: Field) -> u64 {
        match self.current.get() {
            true => self.read_current(field),
            false => self.read_outside(field),
        }
    }

    #[cold]
    #[inline(never)]
    fn read_outside(&self, field: Field) -> u64 {
        self.with(|| self.read_current(field))
    }

    /// Reads a field while this VMCS is current.
    #[inline(always)]
    fn read_current(&self, field: Field) -> u64 {
        // SAFETY: `current` is set, as both callers see to, so that by the type's invariant this CPU is in VMX
        // operation.
        unsafe { instruction::vmread(field) }.unwrap_or_else(|_| self.failed("VMREAD", Some(field)))
    }

    /// Reads a field that every CPU with what xvm needs has.
    #[inline(always)]
    pub(super) fn known(&self, field: Field) -> u64 {
        match self.current.get() {
            // SAFETY: By the type's invariant this CPU is in VMX operation, with this VMCS; the caller knows the field.
            true => unsafe { instruction::vmread_known(field) },
            false => self.read_outside(field),
        }
    }

    /// Writes RIP, which every CPU has.
    #[inline(always)]
    pub(super) fn write_rip(&self, rip: u64) {
        match self.current.get() {
            // SAFETY: By the type's invariant this CPU is in VMX operation, with this VMCS.
            true => unsafe { instruction::vmwrite_known(field::GUEST_RIP, rip) },
            false => self.write_outside(field::GUEST_RIP, rip),
        }
    }

    /// Does `reads` with this VMCS current, as [`Vmcs::with`]; what comes of reads that its result doesn't use isn't read.
    #[inline(always)]
    pub(super) fn with_reads<R: Default>(&self, reads: impl Fn(&Reads) -> R) -> R {
        match self.current.get() {
            // INVARIANT: It is current, and stays so until the call has returned.
            true => reads(&Reads(())),
            // INVARIANT: As above.
            false => self.with(|| reads(&Reads(()))),
        }
    }

    /// Writes a guest or control field; a failure is told by [`Vmcs::take_failure`].
    #[inline(always)]
    pub(super) fn write(&self, field: Field, value: u64) {
        match self.current.get() {
            true => self.write_current(field, value),
            false => self.write_outside(field, value),
        }
    }

    #[cold]
    #[inline(never)]
    fn write_outside(&self, field: Field, value: u64) {
        self.with(|| self.write_current(field, value));
    }

    /// Writes a field while this VMCS is current.
    #[inline(always)]
    fn write_current(&self, field: Field, value: u64) {
        // SAFETY: `current` is set, as both callers see to, so that by the type's invariant this CPU is in VMX
        // operation. Host fields are written by host.rs alone, from what the host has.
        if unsafe { instruction::vmwrite(field, value) }.is_err() {
            self.failed("VMWRITE", Some(field));
        }
    }

    /// The VM-instruction error of the last VMX instruction that failed.
    pub(super) fn instruction_error(&self) -> u32 {
        self.read(field::INSTRUCTION_ERROR) as u32
    }

    /// The first failure since the last call, for the run loop to report: the guest must not go on after it.
    #[inline(always)]
    pub(super) fn take_failure(&self) -> Option<Failure> {
        self.failure.take()
    }

    /// Whether there is a failure to be taken.
    #[inline(always)]
    pub(super) fn has_failed(&self) -> bool {
        self.failure.get().is_some()
    }

    /// Notes a failed instruction; `None` if it did.
    #[inline(always)]
    pub(super) fn check(&self, what: &'static str, outcome: Outcome) -> Option<()> {
        if outcome.is_err() {
            self.failed(what, None);
            return None;
        }
        Some(())
    }

    /// Notes the first failure. Returns 0, the value of a field that couldn't be read.
    #[cold]
    #[inline(never)]
    fn failed(&self, what: &'static str, field: Option<Field>) -> u64 {
        // Read without `read`, which would come back here.
        let error = match self.current.get() {
            // SAFETY: By the type's invariant this CPU is in VMX operation.
            true => unsafe { instruction::vmread(field::INSTRUCTION_ERROR) }.unwrap_or(0) as u32,
            false => 0,
        };
        if self.failure.get().is_none() {
            self.failure.set(Some(Failure { what, field, error }));
        }
        0
    }
}
