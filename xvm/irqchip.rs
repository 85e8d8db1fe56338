// SPDX-License-Identifier: GPL-2.0

//! The in-kernel interrupt controllers and timer of a VM, shared by its vCPUs.
//!
//! # Locks
//!
//! 1. `chips`, a spin lock with interrupts off: PICs, IOAPIC, PIT and the routing. Taken in any context, the window included.
//! 2. the lock in [`Targets`].

use super::platform::ioapic::IoApic;
use super::platform::ioapic::IoApicState;
use super::platform::pic::Pic;
use super::platform::pit::Pit;
use super::platform::routing;
use super::platform::Message;
use super::targets::Targets;
use crate::linux::timer;
use crate::linux::timer::Timed;
use crate::linux::timer::TimerTarget;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::sync::new_spinlock_irq;
use kernel::sync::Arc;
use kernel::sync::SpinLockIrq;

/// The GSI of the PIT.
const PIT_GSI: u32 = 0;

/// The chips, behind their lock.
pub(crate) struct Chips {
    pub(crate) pic: Pic,
    pub(crate) ioapic: IoApic,
    /// Once `KVM_CREATE_PIT2` made it.
    pub(crate) pit: Option<Pit>,
    /// The PIT also answers port 0x61 (`KVM_PIT_SPEAKER_DUMMY`).
    speaker: bool,
    /// Sorted by GSI.
    routes: KVVec<routing::Entry>,
}

/// Interrupt controllers and timer of a VM. The host's timer expires at the PIT's next edge.
#[pin_data]
pub(crate) struct IrqChip {
    #[pin]
    chips: SpinLockIrq<Chips>,
    pic_output: AtomicBool,
    targets: Arc<Targets>,
}

impl TimerTarget for IrqChip {
    fn expired(&self) -> Option<u64> {
        let mut chips = self.chips.lock();
        let fired = chips.pit.as_mut().is_some_and(|pit| pit.fire(timer::now()));
        if fired {
            // An edge: the line goes low at once.
            self.drive(&mut chips, PIT_GSI, true);
            self.drive(&mut chips, PIT_GSI, false);
        }
        chips.pit.as_ref().and_then(Pit::next_edge)
    }
}

impl IrqChip {
    /// The chips after reset, with the default routing: GSI n is pin n of the PICs and of the IOAPIC.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(targets: Arc<Targets>) -> Result<Arc<Timed<Self>>> {
        let mut routes = KVVec::new();
        for entry in routing::DEFAULT {
            routes.push(entry, GFP_KERNEL_ACCOUNT)?;
        }
        Arc::pin_init(
            Timed::new(pin_init!(Self {
                chips <- new_spinlock_irq!(Chips {
                    pic: Pic::new(),
                    ioapic: IoApic::new(),
                    pit: None,
                    speaker: false,
                    routes,
                }, "xvm_irqchip"),
                pic_output: AtomicBool::new(false),
                targets,
            })),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Makes the PIT.
    ///
    /// # Errors
    ///
    /// `EEXIST` when there is one.
    pub(crate) fn create_pit(&self, speaker: bool) -> Result {
        let mut chips = self.chips.lock();
        if chips.pit.is_some() {
            return Err(EEXIST);
        }
        chips.pit = Some(Pit::new());
        chips.speaker = speaker;
        Ok(())
    }

    fn update_pic_output(&self, chips: &Chips) {
        let output = chips.pic.output();
        if self.pic_output.swap(output, Ordering::SeqCst) != output && output {
            self.targets.wake_all();
        }
    }

    /// The INTR pin of the 8259 pair.
    #[inline]
    pub(crate) fn pic_output(&self) -> bool {
        self.pic_output.load(Ordering::SeqCst)
    }

    /// Takes the interrupt of the 8259 pair, if it still has one.
    pub(crate) fn acknowledge_pic(&self) -> Option<u8> {
        let mut chips = self.chips.lock();
        let vector = chips.pic.output().then(|| chips.pic.acknowledge());
        self.update_pic_output(&chips);
        vector
    }

    /// Drives the pins that `gsi` is routed to. Whether a chip saw something new.
    fn drive(&self, chips: &mut Chips, gsi: u32, level: bool) -> bool {
        let Chips {
            pic,
            ioapic,
            routes,
            ..
        } = chips;
        let mut seen = false;
        for entry in routing::lookup(routes, gsi) {
            let mut sink = |message: &Message| {
                let new = self.targets.send(message);
                seen |= new;
                new
            };
            match entry.target {
                routing::Target::Pic { pin } => seen |= pic.set_irq(pin, level),
                routing::Target::IoApic { pin } => ioapic.set_irq(pin, level, &mut sink),
                routing::Target::Msi { address, data } if level => {
                    seen |= self.targets.send_msi(address, data);
                }
                routing::Target::Msi { .. } => {}
            }
        }
        self.update_pic_output(chips);
        seen
    }

    /// Drives a GSI's line. Whether a chip saw something new (`KVM_IRQ_LINE_STATUS`). From any context.
    pub(crate) fn set_line(&self, gsi: u32, level: bool) -> bool {
        let mut chips = self.chips.lock();
        self.drive(&mut chips, gsi, level)
    }

    /// Sends a message-signalled interrupt. Whether a local APIC took it as new.
    pub(crate) fn signal_msi(&self, address: u64, data: u32) -> bool {
        self.targets.send_msi(address, data)
    }

    /// A local APIC ended a level-triggered interrupt.
    pub(crate) fn end_of_interrupt(&self, vector: u8) {
        let mut chips = self.chips.lock();
        chips
            .ioapic
            .eoi(vector, &mut |message| self.targets.send(message));
    }

    /// Sets the IOAPIC's state.
    pub(crate) fn set_ioapic(&self, state: &IoApicState) {
        let mut chips = self.chips.lock();
        chips
            .ioapic
            .set_state(state, &mut |message| self.targets.send(message));
    }

    /// Replaces the routing; `routes` are sorted by GSI.
    pub(crate) fn set_routes(&self, mut routes: KVVec<routing::Entry>) {
        // The old table is freed after the lock.
        core::mem::swap(&mut self.chips.lock().routes, &mut routes);
    }

    /// Whether the 8259 pair has this port.
    pub(crate) fn is_pic_port(&self, port: u16, size: u8) -> bool {
        size == 1 && matches!(port, 0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1)
    }

    /// Reads a port of the 8259 pair.
    pub(crate) fn pic_read(&self, port: u16) -> u8 {
        let mut chips = self.chips.lock();
        let value = chips.pic.read(port).unwrap_or(0xff);
        self.update_pic_output(&chips);
        value
    }

    /// Writes a port of the 8259 pair.
    pub(crate) fn pic_write(&self, port: u16, value: u8) {
        let mut chips = self.chips.lock();
        chips.pic.write(port, value);
        self.update_pic_output(&chips);
    }

    /// Reads a port of the PIT; `None` when it isn't one. Not inside the window.
    pub(crate) fn pit_read(&self, port: u16) -> Option<u8> {
        let mut chips = self.chips.lock();
        if !is_pit_port(&chips, port) {
            return None;
        }
        chips.pit.as_mut().map(|pit| pit.read(port, timer::now()))
    }

    /// Whether guest-physical `gpa` is one of the IOAPIC's registers.
    pub(crate) fn is_ioapic(&self, gpa: u64) -> bool {
        self.chips.lock().ioapic.offset(gpa).is_some()
    }

    /// Reads the IOAPIC's register at guest-physical `gpa`; `None` when it isn't one.
    pub(crate) fn ioapic_read(&self, gpa: u64) -> Option<u32> {
        let chips = self.chips.lock();
        chips
            .ioapic
            .offset(gpa)
            .map(|offset| chips.ioapic.read(offset))
    }

    /// Writes the IOAPIC's register at guest-physical `gpa`; `None` when it isn't one.
    pub(crate) fn ioapic_write(&self, gpa: u64, value: u32) -> Option<()> {
        let mut chips = self.chips.lock();
        let offset = chips.ioapic.offset(gpa)?;
        chips
            .ioapic
            .write(offset, value, &mut |message| self.targets.send(message));
        Some(())
    }
}

impl Timed<IrqChip> {
    /// Works on the chips, then brings what follows from it to the vCPUs and the host's timer. Not inside the window.
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut Chips) -> R) -> R {
        let (result, edge) = {
            let mut chips = self.chips.lock();
            let result = work(&mut chips);
            self.update_pic_output(&chips);
            (result, chips.pit.as_ref().and_then(Pit::next_edge))
        };
        match edge {
            Some(at) => self.set_timer(at),
            None => self.cancel_timer(),
        }
        result
    }

    /// Writes a port of the PIT; `None` when it isn't one. Not inside the window.
    pub(crate) fn pit_write(&self, port: u16, value: u8) -> Option<()> {
        if !is_pit_port(&self.chips.lock(), port) {
            return None;
        }
        self.with(|chips| {
            chips
                .pit
                .as_mut()
                .map(|pit| pit.write(port, value, timer::now()))
        })
    }
}

fn is_pit_port(chips: &Chips, port: u16) -> bool {
    chips.pit.is_some() && (matches!(port, 0x40..=0x43) || port == 0x61 && chips.speaker)
}
