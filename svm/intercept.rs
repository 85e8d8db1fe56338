// SPDX-License-Identifier: GPL-2.0

//! What the guest doesn't do by itself: the intercepts (APM vol 2, 15.9 to 15.13 and appendix B).
//!
//! Everything that could reach the host is intercepted; what is not is listed here with its reason:
//! CR2 and CR3, TS and MP of CR0, reads of CR0 and CR4 (the VMCB has the guest's own; see `state.rs` for when it has not); CR8 reads (V_TPR); INVLPG, INVPCID (tagged by the ASID); RDTSC,
//! RDTSCP (offset by the VMCB, TSC_AUX switched by the window); SIDT, SGDT, LIDT, LGDT, SLDT, STR, LLDT, LTR, PUSHF, POPF, INTn (state of the guest
//! alone); FERR_FREEZE (no such pin).

use super::probe::Features;
use super::vmcb::Control;

/// Intercepts of the first word (offset 0xc).
mod first {
    pub(super) const INTR: u32 = 1 << 0;
    pub(super) const NMI: u32 = 1 << 1;
    pub(super) const SMI: u32 = 1 << 2;
    pub(super) const INIT: u32 = 1 << 3;
    pub(super) const VINTR: u32 = 1 << 4;
    pub(super) const CR0_SELECTIVE: u32 = 1 << 5;
    pub(super) const RDPMC: u32 = 1 << 15;
    pub(super) const CPUID: u32 = 1 << 18;
    pub(super) const RSM: u32 = 1 << 19;
    pub(super) const IRET: u32 = 1 << 20;
    pub(super) const SOFTWARE_INTERRUPT: u32 = 1 << 21;
    pub(super) const INVD: u32 = 1 << 22;
    pub(super) const PAUSE: u32 = 1 << 23;
    pub(super) const HLT: u32 = 1 << 24;
    pub(super) const INVLPGA: u32 = 1 << 26;
    pub(super) const IOIO: u32 = 1 << 27;
    pub(super) const MSR: u32 = 1 << 28;
    pub(super) const TASK_SWITCH: u32 = 1 << 29;
    pub(super) const SHUTDOWN: u32 = 1 << 31;

    /// On in every guest.
    pub(super) const ALWAYS: u32 = INTR
        | NMI
        | SMI
        | INIT
        | CR0_SELECTIVE
        | RDPMC
        | CPUID
        | RSM
        | INVD
        | HLT
        | INVLPGA
        | IOIO
        | MSR
        | TASK_SWITCH
        | SHUTDOWN;
}

/// Intercepts of the second word (offset 0x10): VMRUN, VMMCALL, VMLOAD, VMSAVE, STGI, CLGI, SKINIT; WBINVD, MONITOR, MWAIT (both forms),
/// XSETBV, RDPRU. VMRUN must be on (15.5.1).
const SECOND: u32 = 0x7f | 0x7e00;
/// Those of MONITOR and MWAIT, which the VMM may leave to its guest.
const MONITOR_MWAIT: u32 = 0x1c00;

/// Intercepts of the third word (offset 0x14).
mod third {
    /// INVLPGB, legal or not: bits 0 and 1.
    pub(super) const INVLPGB: u32 = 0b11;
    pub(super) const MCOMMIT: u32 = 1 << 3;
    pub(super) const TLBSYNC: u32 = 1 << 4;
}

/// Exceptions. #DB and #AC because a guest can make the CPU deliver them for ever (CVE-2015-8104, CVE-2015-5307), #UD to find VMCALL,
/// #MC for the host.
const EXCEPTIONS: u32 = 1 << 1 | 1 << 6 | 1 << 17 | 1 << 18;

/// #BP, for the VMM's debugger.
const BREAKPOINT: u32 = 1 << 3;

/// Writes of CR4, and of CR8: the virtual APIC must learn of a lower TPR.
const CR_WRITES: u32 = (1 << 4 | 1 << 8) << 16;
/// Reads of CR0, and all writes, while its CD and NW are kept from the CPU: to which clearing them is no change, so that the
/// selective intercept would miss it.
const CR0_ALL: u32 = 1 | 1 << 16;
/// Reads of CR4, while the CPU has MCE set in it and the guest has not.
const CR4_READ: u32 = 1 << 4;
/// All reads and writes of DR0 to DR15, while the guest's aren't in the CPU.
const ALL_DR: u32 = !0;

/// How often PAUSE may be executed, and within how many cycles of the last time, before it is an exit: a spin lock's waiting loop is
/// noticed after some 100 microseconds.
const PAUSE_COUNT: u16 = 3000;
const PAUSE_THRESHOLD: u16 = 128;

impl Control {
    /// Turns on what every guest of this CPU has intercepted.
    pub(super) fn intercept_all(&mut self, features: &Features) {
        self.intercept_cr = CR_WRITES;
        self.intercept_dr = ALL_DR;
        self.intercept_exceptions = EXCEPTIONS;
        self.intercepts = [first::ALWAYS, SECOND, 0];
        if features.invlpgb {
            self.intercepts[2] |= third::INVLPGB | third::TLBSYNC;
        }
        if features.mcommit {
            self.intercepts[2] |= third::MCOMMIT;
        }
        if features.pause_filter {
            self.intercepts[0] |= first::PAUSE;
            self.pause_count = PAUSE_COUNT;
        }
        if features.pause_threshold {
            self.pause_threshold = PAUSE_THRESHOLD;
        }
    }

    /// Intercepts all accesses to CR0, and reads of CR4, or no longer.
    pub(super) fn intercept_hidden(&mut self, cr0: bool, cr4: bool) {
        set(&mut self.intercept_cr, CR0_ALL, cr0);
        set(&mut self.intercept_cr, CR4_READ, cr4);
        self.clean = self.clean.with_intercepts(false);
    }

    /// Intercepts all accesses to debug registers, or none.
    pub(super) fn intercept_debug_registers(&mut self, on: bool) {
        set(&mut self.intercept_dr, ALL_DR, on);
        self.clean = self.clean.with_intercepts(false);
    }

    /// Intercepts the moment when a virtual interrupt would be taken, or no longer.
    pub(super) fn intercept_virtual_interrupt(&mut self, on: bool) {
        set(&mut self.intercepts[0], first::VINTR, on);
        self.clean = self.clean.with_intercepts(false);
    }

    /// Intercepts HLT, and PAUSE in loops, or not.
    pub(super) fn intercept_waiting(&mut self, hlt: bool, pause: bool) {
        set(&mut self.intercepts[0], first::HLT, hlt);
        set(&mut self.intercepts[0], first::PAUSE, pause);
        self.clean = self.clean.with_intercepts(false);
    }

    /// Intercepts MONITOR and MWAIT, or not.
    pub(super) fn intercept_mwait(&mut self, on: bool) {
        set(&mut self.intercepts[1], MONITOR_MWAIT, on);
        self.clean = self.clean.with_intercepts(false);
    }

    /// Intercepts INT3, or no longer. QEMU's emulation takes it for one of the software interrupts, which real CPUs don't.
    pub(super) fn intercept_int3(&mut self, on: bool) {
        set(&mut self.intercept_exceptions, BREAKPOINT, on);
        set(&mut self.intercepts[0], first::SOFTWARE_INTERRUPT, on);
        self.clean = self.clean.with_intercepts(false);
    }

    /// Intercepts IRET, or no longer.
    pub(super) fn intercept_iret(&mut self, on: bool) {
        set(&mut self.intercepts[0], first::IRET, on);
        self.clean = self.clean.with_intercepts(false);
    }
}

/// Sets or clears `bits` of `word`.
fn set(word: &mut u32, bits: u32, on: bool) {
    if on {
        *word |= bits;
    } else {
        *word &= !bits;
    }
}
