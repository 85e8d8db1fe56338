// SPDX-License-Identifier: GPL-2.0

//! The local APIC (Intel SDM vol. 3, chapter 12).
//!
//! It belongs to its vCPU's thread alone, so it has no locks; other threads post into the [`super::mailbox::Mailbox`]
//! beside it.
//!
//! - this file: priorities, acceptance and delivery of interrupts, the local pins;
//! - [`base`]: IA32_APIC_BASE and the modes;
//! - [`access`]: reads and writes of the guest, in the xAPIC page and as MSRs;
//! - [`state`]: what the VMM saves and restores;
//! - [`timer`]: the timer;
//! - [`regs`], [`vectors`]: registers and vector sets as types.

mod access;
mod base;
mod regs;
mod state;
mod timer;
mod vectors;

use super::mailbox::Address;
use super::message::Delivery;
use super::message::Message;
use base::Base;
use regs::error;
use regs::Icr;
use regs::Lvt;
use regs::LvtEntry;
use regs::Svr;
use timer::Countdown;
use vectors::Vectors;

pub use base::Mode;
pub use timer::Timer;

/// Destination shorthand of an IPI (12.6.1). With one, the message's `dest` means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shorthand {
    /// The message's destination counts.
    None,
    /// The sender.
    Self_,
    /// Every local APIC.
    AllIncludingSelf,
    /// Every local APIC but the sender.
    AllExcludingSelf,
}

/// What the caller has to do after a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Send an IPI.
    Send(Message, Shorthand),
    /// An interrupt has ended: tell the IOAPIC if it was level-triggered.
    Eoi {
        /// Its vector.
        vector: u8,
        /// It was level-triggered.
        level: bool,
    },
    /// [`Lapic::timer`] may say something new.
    TimerChanged,
}

/// What resets the local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// Power-up or RESET.
    PowerUp,
    /// INIT: IA32_APIC_BASE stays, and so the mode (12.4.7.3, 12.12.5.3).
    Init,
}

/// The local APIC of a vCPU.
pub struct Lapic {
    /// x2APIC ID; the ID of xAPIC mode is its low byte. Both are read-only, as on current processors.
    id: u32,
    bootstrap: bool,
    /// After a reset of the bootstrap processor's, LINT0 is open.
    virtual_wire: bool,
    /// The guest is told that it can have the ends of level-triggered interrupts not told.
    suppression: bool,
    base: Base,
    tpr: u8,
    svr: Svr,
    /// Logical ID of xAPIC mode; that of x2APIC mode follows from `id`.
    logical_id: u8,
    /// Destination format register: bits 31:28 are all ones for the flat model.
    dfr: u32,
    isr: Vectors,
    irr: Vectors,
    /// Trigger mode of what is in IRR and ISR: a member is level-triggered.
    tmr: Vectors,
    /// Error status as last latched by a write to the ESR.
    esr: u32,
    /// Errors since then.
    errors: u32,
    icr: Icr,
    lvt: [Lvt; 6],
    countdown: Countdown,
}

impl Lapic {
    /// A local APIC after power-up. `id` is its x2APIC ID; `bootstrap` says that its vCPU is the bootstrap processor.
    /// `bus_cycle_ns`, not 0, is how long a cycle of the bus takes; the longest time of the timer must fit 64 bits.
    pub fn new(id: u32, bootstrap: bool, bus_cycle_ns: u64) -> Self {
        let mut lapic = Self {
            id,
            bootstrap,
            virtual_wire: true,
            suppression: false,
            base: Base::reset(bootstrap),
            tpr: 0,
            svr: Svr(0),
            logical_id: 0,
            dfr: 0,
            isr: Vectors::new(),
            irr: Vectors::new(),
            tmr: Vectors::new(),
            esr: 0,
            errors: 0,
            icr: Icr(0),
            lvt: [Lvt::RESET; 6],
            countdown: Countdown::new(bus_cycle_ns),
        };
        lapic.reset_registers();
        lapic
    }

    /// Resets it. What is in the mailbox is from before the reset: drain it first.
    pub fn reset(&mut self, kind: Reset) {
        if kind == Reset::PowerUp {
            self.base = Base::reset(self.bootstrap);
        }
        self.reset_registers();
    }

    /// Whether a reset leaves LINT0 of the bootstrap processor open, as firmware would, and not masked.
    pub fn open_at_reset(&mut self, open: bool) {
        self.virtual_wire = open;
    }

    /// Whether the guest is told that it can have the ends of level-triggered interrupts not told (12.8.5).
    pub fn offer_eoi_suppression(&mut self, offered: bool) {
        self.suppression = offered;
    }

    /// Whether it has asked for that.
    pub fn suppresses_eois(&self) -> bool {
        self.svr.suppress_eoi()
    }

    /// The register values of 12.4.7.1.
    fn reset_registers(&mut self) {
        self.tpr = 0;
        self.svr = Svr(0xff);
        self.logical_id = 0;
        self.dfr = u32::MAX;
        self.isr = Vectors::new();
        self.irr = Vectors::new();
        self.tmr = Vectors::new();
        self.esr = 0;
        self.errors = 0;
        self.icr = Icr(0);
        self.lvt = [Lvt::RESET; 6];
        if self.bootstrap && self.virtual_wire {
            // Firmware leaves the virtual wire to the 8259 open, and VMMs without firmware count on finding it so
            // (api.rst, KVM_X86_QUIRK_LINT0_REENABLED).
            *self.lvt_mut(LvtEntry::Lint0) = Lvt(0x700);
        }
        self.countdown.reset();
    }

    fn lvt(&self, entry: LvtEntry) -> Lvt {
        self.lvt[entry as usize]
    }

    fn lvt_mut(&mut self, entry: LvtEntry) -> &mut Lvt {
        &mut self.lvt[entry as usize]
    }

    /// Logical destination register, as the mode at hand has it (12.6.2.2, 12.12.10.2).
    fn ldr(&self) -> u32 {
        match self.mode() {
            Mode::X2Apic => x2apic_logical_id(self.id),
            _ => u32::from(self.logical_id) << 24,
        }
    }

    /// What other threads must know to find it: for [`super::mailbox::Mailbox::publish`].
    pub(super) fn address(&self) -> Address {
        Address::new(self.id)
            .with_mode(self.mode())
            .with_software_enabled(self.svr.enabled())
            .with_logical_id(self.logical_id, self.dfr >> 28 == 0xf)
            .with_priority(self.tpr >> 4)
    }

    /// Takes a fixed interrupt from the bus or the local vector table into the IRR (12.8.4).
    pub fn accept(&mut self, vector: u8, level: bool) {
        if vector < 16 {
            self.raise(error::RECEIVE_ILLEGAL_VECTOR);
            return;
        }
        self.irr.insert(vector);
        if level {
            self.tmr.insert(vector);
        } else {
            self.tmr.remove(vector);
        }
    }

    /// Records an error and signals it through the local vector table (12.5.3).
    fn raise(&mut self, error: u32) {
        self.errors |= error;
        let entry = self.lvt(LvtEntry::Error);
        // An illegal vector here would be one more error that can't be signalled.
        if !entry.masked() && entry.vector() >= 16 {
            self.irr.insert(entry.vector());
            self.tmr.remove(entry.vector());
        }
    }

    /// Processor priority (12.8.3.1): the task priority, or the class in service if that is higher.
    pub fn ppr(&self) -> u8 {
        let in_service = self.isr.highest().unwrap_or(0) & 0xf0;
        if self.tpr & 0xf0 >= in_service {
            self.tpr
        } else {
            in_service
        }
    }

    /// The interrupt to deliver next: the highest in the IRR whose class is above that of the processor priority (12.8.3.1).
    pub fn pending(&self) -> Option<u8> {
        let vector = self.irr.highest()?;
        (self.mode() != Mode::Disabled && vector & 0xf0 > self.ppr() & 0xf0).then_some(vector)
    }

    /// The vCPU takes the interrupt that [`Lapic::pending`] has named: it is in service until its EOI.
    pub fn acknowledge(&mut self, vector: u8) {
        self.irr.remove(vector);
        self.isr.insert(vector);
    }

    /// Ends the highest interrupt in service (12.8.5).
    pub fn eoi(&mut self) -> Effect {
        let Some(vector) = self.isr.highest() else {
            return Effect::None;
        };
        self.isr.remove(vector);
        Effect::Eoi {
            vector,
            level: self.tmr.contains(vector),
        }
    }

    /// Whether there is one interrupt and no other, in service or, if it is `offered`, about to be, whose EOI nobody is told of: it can
    /// wait until the guest exits for something else. `told` says of an edge-triggered vector that somebody is.
    pub fn eoi_can_wait(&self, offered: bool, told: impl Fn(u8) -> bool) -> bool {
        let (one, none) = match offered {
            true => (&self.irr, &self.isr),
            false => (&self.isr, &self.irr),
        };
        let untold = |vector| !self.tmr.contains(vector) && !told(vector);
        none.highest().is_none() && one.only().is_some_and(untold)
    }

    /// Task priority; CR8 is its upper half.
    pub fn tpr(&self) -> u8 {
        self.tpr
    }

    /// Sets the task priority; a write of CR8 puts its value in bits 7:4 and clears the rest (12.8.6.1).
    pub fn set_tpr(&mut self, tpr: u8) {
        self.tpr = tpr;
    }

    /// Whether INTR of the 8259 pair reaches the vCPU: through LINT0 as a virtual wire, or directly with the APIC globally
    /// disabled (12.4.3).
    pub fn accepts_extint(&self) -> bool {
        let entry = self.lvt(LvtEntry::Lint0);
        self.mode() == Mode::Disabled || (!entry.masked() && entry.delivery() == Delivery::ExtInt)
    }

    /// Whether it takes interrupts: it isn't disabled, by hardware or software.
    pub fn is_enabled(&self) -> bool {
        self.mode() != Mode::Disabled && self.svr.enabled()
    }

    /// When the host has to call [`Lapic::timer_expired`]. A masked timer needs no host timer: its count is worked out.
    pub fn timer(&self) -> Timer {
        let entry = self.lvt(LvtEntry::Timer);
        if entry.masked() {
            return Timer::Off;
        }
        self.countdown.next(entry.timer_mode())
    }

    /// Posts the timer's interrupt if it is due at `now` (nanoseconds) or `tsc` (guest TSC). [`Lapic::timer`] then says when
    /// the next one is, also when this call came too early.
    pub fn timer_expired(&mut self, now: u64, tsc: u64) {
        let entry = self.lvt(LvtEntry::Timer);
        if self.countdown.expire(entry.timer_mode(), now, tsc) && !entry.masked() {
            self.accept(entry.vector(), false);
        }
    }

    /// IA32_TSC_DEADLINE: reads 0 outside TSC-deadline mode (12.5.4.1).
    pub fn tsc_deadline(&self) -> u64 {
        self.countdown.tsc_deadline()
    }

    /// A write of IA32_TSC_DEADLINE: ignored outside TSC-deadline mode (12.5.4.1).
    pub fn set_tsc_deadline(&mut self, deadline: u64) -> Effect {
        if self.lvt(LvtEntry::Timer).timer_mode() != regs::TimerMode::TscDeadline {
            return Effect::None;
        }
        self.countdown.set_tsc_deadline(deadline);
        Effect::TimerChanged
    }
}

/// Logical x2APIC ID: the cluster is in the upper half, and one bit of the lower half is the place in it (12.12.10.2).
pub(super) fn x2apic_logical_id(id: u32) -> u32 {
    ((id >> 4) << 16) | (1 << (id & 0xf))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In xAPIC mode, software-enabled.
    fn enabled() -> Lapic {
        let mut lapic = Lapic::new(3, false, 1);
        assert_eq!(lapic.write(0xf0, 0x1ff, 0, 0), Effect::None);
        lapic
    }

    #[test]
    fn higher_classes_interrupt_lower_ones() {
        let mut lapic = enabled();
        lapic.accept(0x41, false);
        lapic.accept(0x52, true);
        assert_eq!(lapic.pending(), Some(0x52));
        lapic.acknowledge(0x52);
        assert_eq!((lapic.ppr(), lapic.pending()), (0x50, None));
        lapic.accept(0x5f, false);
        assert_eq!(lapic.pending(), None);
        lapic.accept(0x60, false);
        assert_eq!(lapic.pending(), Some(0x60));
        lapic.acknowledge(0x60);
        let eoi = |vector, level| Effect::Eoi { vector, level };
        assert_eq!(lapic.eoi(), eoi(0x60, false));
        assert_eq!(lapic.eoi(), eoi(0x52, true));
        assert_eq!(lapic.eoi(), Effect::None);
        assert_eq!(lapic.pending(), Some(0x5f));
    }

    #[test]
    fn the_task_priority_holds_interrupts_back() {
        let mut lapic = enabled();
        lapic.accept(0x4f, false);
        lapic.set_tpr(0x40);
        assert_eq!((lapic.pending(), lapic.ppr()), (None, 0x40));
        lapic.set_tpr(0x3f);
        assert_eq!((lapic.pending(), lapic.ppr()), (Some(0x4f), 0x3f));
    }

    #[test]
    fn illegal_vectors_are_errors() {
        let mut lapic = enabled();
        lapic.write(0x370, 0x33, 0, 0);
        lapic.accept(15, false);
        assert_eq!(lapic.pending(), Some(0x33));
        lapic.write(0x280, 0, 0, 0);
        assert_eq!(lapic.read(0x280, 0), error::RECEIVE_ILLEGAL_VECTOR);
        // An error whose own vector is illegal must not go round in circles.
        lapic.write(0x370, 0x03, 0, 0);
        lapic.accept(15, false);
    }

    #[test]
    fn the_virtual_wire_is_open_for_the_bootstrap_processor() {
        assert!(Lapic::new(0, true, 1).accepts_extint());
        let mut lapic = Lapic::new(1, false, 1);
        assert!(!lapic.accepts_extint());
        lapic.set_base(0xfee0_0000, 36).unwrap();
        assert!(lapic.accepts_extint());
    }

    #[test]
    fn tsc_deadline_mode() {
        let mut lapic = enabled();
        assert_eq!(lapic.set_tsc_deadline(5), Effect::None);
        assert_eq!(lapic.tsc_deadline(), 0);
        lapic.write(0x320, 0x4_0040, 0, 0);
        assert_eq!(lapic.set_tsc_deadline(1000), Effect::TimerChanged);
        assert_eq!(lapic.timer(), Timer::AtTsc { tsc: 1000 });
        // Another vector is no other mode.
        lapic.write(0x320, 0x4_0041, 0, 0);
        lapic.write(0x320, 0x4_0040, 0, 0);
        assert_eq!(lapic.timer(), Timer::AtTsc { tsc: 1000 });
        lapic.timer_expired(u64::MAX, 999);
        assert_eq!(lapic.pending(), None);
        lapic.timer_expired(0, 1000);
        assert_eq!(lapic.pending(), Some(0x40));
        assert_eq!((lapic.timer(), lapic.tsc_deadline()), (Timer::Off, 0));
        lapic.set_tsc_deadline(2000);
        lapic.write(0x320, 0x0040, 0, 0);
        assert_eq!((lapic.timer(), lapic.tsc_deadline()), (Timer::Off, 0));
    }

    #[test]
    fn init_keeps_the_mode() {
        let mut lapic = enabled();
        lapic.set_base(0xfee0_0c00, 36).unwrap();
        lapic.accept(0x40, false);
        lapic.reset(Reset::Init);
        assert_eq!((lapic.mode(), lapic.pending()), (Mode::X2Apic, None));
        lapic.reset(Reset::PowerUp);
        assert_eq!(lapic.mode(), Mode::XApic);
    }
}
