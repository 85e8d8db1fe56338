// SPDX-License-Identifier: GPL-2.0

//! VMCS fields kept in memory, so that they cost no VMREAD, VMWRITE or VMX operation when it can be helped.

use super::field;
use super::field::Field;
use super::vmcs::Vmcs;
use core::cell::Cell;

/// The fields that nearly every exit asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cached {
    Rip,
    Rsp,
    Rflags,
    Interruptibility,
    /// Of the instruction that exited; read-only.
    InstructionLength,
}

const COUNT: usize = 5;
/// The first ones can be written.
const WRITABLE: usize = 4;
const FIELDS: [Field; COUNT] = [
    field::GUEST_RIP,
    field::GUEST_RSP,
    field::GUEST_RFLAGS,
    field::GUEST_INTERRUPTIBILITY,
    field::EXIT_INSTRUCTION_LENGTH,
];

impl Cached {
    const fn field(self) -> Field {
        FIELDS[self as usize]
    }
}

/// What [`Cache::instruction`] has.
const INSTRUCTION: [Cached; 4] = [
    Cached::Rip,
    Cached::Rflags,
    Cached::Interruptibility,
    Cached::InstructionLength,
];

/// Their values, each read from the VMCS once an exit at most, and written before the next entry if changed.
///
/// # Invariants
///
/// A bit of `known` is set when the value is the guest's; one of `changed` only with that of `known`, when the
/// VMCS has another.
#[derive(Debug, Default)]
pub(super) struct Cache {
    values: [Cell<u64>; COUNT],
    known: Cell<u8>,
    changed: Cell<u8>,
}

impl Cache {
    /// Reads a value.
    #[inline]
    pub(super) fn get(&self, vmcs: &Vmcs, which: Cached) -> u64 {
        let bit = 1 << which as u8;
        if self.known.get() & bit == 0 {
            self.values[which as usize].set(vmcs.known(which.field()));
            self.known.set(self.known.get() | bit);
        }
        self.values[which as usize].get()
    }

    /// A value, if it is known, or was changed.
    #[inline(always)]
    pub(super) fn if_known(&self, which: Cached) -> Option<u64> {
        let known = self.known.get() & 1 << which as u8 != 0;
        known.then_some(self.values[which as usize].get())
    }

    /// What carrying an instruction out takes: RIP, RFLAGS, interruptibility, and the instruction's length. Mostly none of
    /// them is known yet, and isn't asked for again: they aren't kept.
    #[inline(always)]
    pub(super) fn instruction(&self, vmcs: &Vmcs) -> [u64; 4] {
        if self.known.get() != 0 || !vmcs.is_current() {
            return self.instruction_rarely(vmcs);
        }
        vmcs.with_reads(|reads| INSTRUCTION.map(|which| reads.field(which.field())))
    }

    #[inline(never)]
    fn instruction_rarely(&self, vmcs: &Vmcs) -> [u64; 4] {
        INSTRUCTION.map(|which| self.get(vmcs, which))
    }

    /// Changes a value.
    #[inline]
    pub(super) fn set(&self, which: Cached, value: u64) {
        let bit = 1 << which as u8;
        self.values[which as usize].set(value);
        self.known.set(self.known.get() | bit);
        self.changed.set(self.changed.get() | bit);
    }

    /// Whether RFLAGS or the interruptibility was changed since the last entry.
    #[inline]
    pub(super) fn is_blocking_changed(&self) -> bool {
        self.changed.get() & (1 << Cached::Rflags as u8 | 1 << Cached::Interruptibility as u8) != 0
    }

    /// Writes what was changed. Window only, before an entry.
    #[inline]
    pub(super) fn write_back(&self, vmcs: &Vmcs) {
        let changed = self.changed.replace(0);
        if changed & !(1 << Cached::Rip as u8) == 0 {
            if changed != 0 {
                vmcs.write_rip(self.values[Cached::Rip as usize].get());
            }
            return;
        }
        for (n, field) in FIELDS.into_iter().take(WRITABLE).enumerate() {
            if changed & (1 << n) != 0 {
                vmcs.write(field, self.values[n].get());
            }
        }
    }

    /// After an exit: the guest has changed everything.
    #[inline]
    pub(super) fn forget(&self) {
        self.known.set(0);
    }

    /// Reads what isn't known yet, while it is cheap: at the window's end.
    #[inline]
    pub(super) fn complete(&self, vmcs: &Vmcs) {
        use Cached::*;
        for which in [Rip, Rsp, Rflags, Interruptibility, InstructionLength] {
            self.get(vmcs, which);
        }
    }
}

/// A control or host field that only the host writes, and mostly with the value that it has.
#[derive(Debug)]
pub(super) struct Sticky {
    field: Field,
    wanted: u64,
    written: u64,
}

impl Sticky {
    /// One that wants `value`, and is taken to have it: [`Sticky::initialise`] sees to that.
    pub(super) const fn new(field: Field, value: u64) -> Self {
        Self {
            field,
            wanted: value,
            written: value,
        }
    }

    /// Writes its first value to a new VMCS, before it is changed.
    pub(super) fn initialise(&self, vmcs: &Vmcs) {
        vmcs.write(self.field, self.written);
    }

    /// What it wants to be.
    #[inline]
    pub(super) fn get(&self) -> u64 {
        self.wanted
    }

    /// Changes what it wants to be.
    #[inline]
    pub(super) fn set(&mut self, value: u64) {
        self.wanted = value;
    }

    /// Changes some of its bits.
    #[inline]
    pub(super) fn set_bits(&mut self, bits: u32, on: bool) {
        match on {
            true => self.wanted |= u64::from(bits),
            false => self.wanted &= !u64::from(bits),
        }
    }

    /// Writes it if it has changed. Window only, before an entry.
    #[inline]
    pub(super) fn write_back(&mut self, vmcs: &Vmcs) {
        if self.written != self.wanted {
            vmcs.write(self.field, self.wanted);
            self.written = self.wanted;
        }
    }
}
