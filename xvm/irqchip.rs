// SPDX-License-Identifier: GPL-2.0

//! The in-kernel interrupt controllers and timer of a VM, shared by its vCPUs.
//!
//! - this file: the interrupt controllers, and the lines to them;
//! - [`ends`]: what follows from the end of an interrupt;
//! - [`pit`]: the timer.
//!
//! # Locks
//!
//! 1. `chips`, a spin lock with interrupts off: PICs, IOAPIC, PIT and the routing. Taken in any context, the window included.
//! 2. the lock in [`Targets`].

mod ends;
mod pit;

use super::platform::ioapic;
use super::platform::ioapic::IoApic;
use super::platform::ioapic::IoApicState;
use super::platform::pic::Pic;
use super::platform::pit::Pit;
use super::platform::routing;
use super::platform::Message;
use super::targets::Targets;
use crate::linux::timer::Timed;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering;
use ends::Resampler;
use kernel::prelude::*;
use kernel::sync::new_spinlock_irq;
use kernel::sync::Arc;
use kernel::sync::SpinLockIrq;

/// Pins of the 8259 pair, before those of the IOAPIC in what counts both.
const PIC_PINS: usize = 16;

/// No vector.
const NO_VECTOR: u32 = 0x100;

/// Who drives a line: it is high while one of them drives it high.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// The VMM, by ioctl and by eventfd.
    Vmm = 1,
    /// The PIT.
    Pit = 2,
    /// Eventfds with resampling: until the end of interrupt.
    Resampled = 4,
}

/// Which of the chips are in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// All.
    Full,
    /// The local APICs alone (`KVM_CAP_SPLIT_IRQCHIP`). The VMM is told of the ends of level-triggered interrupts that its IOAPIC sends
    /// as GSIs below this.
    Split(u32),
}

/// The chips, behind their lock.
pub(crate) struct Chips {
    pub(crate) pic: Pic,
    pub(crate) ioapic: IoApic,
    /// Once `KVM_CREATE_PIT2` made it.
    pub(crate) pit: Option<Pit>,
    /// The PIT also answers port 0x61 (`KVM_PIT_SPEAKER_DUMMY`).
    speaker: bool,
    /// Pins of the PIT that weren't masked when they were last looked at, numbered as in `drivers`.
    pit_open: u64,
    /// Sorted by GSI.
    routes: KVVec<routing::Entry>,
    /// Who drives each pin high, as `Source` bits: the 8259 pair's, then the IOAPIC's.
    drivers: [u8; PIC_PINS + ioapic::PINS],
    resamplers: KVec<Resampler>,
}

impl Chips {
    /// The level of a pin after `source` has driven it.
    fn drive(&mut self, pin: usize, source: Source, level: bool) -> bool {
        let drivers = &mut self.drivers[pin];
        match level {
            true => *drivers |= source as u8,
            false => *drivers &= !(source as u8),
        }
        *drivers != 0
    }
}

/// Interrupt controllers and timer of a VM. The host's timer expires at the PIT's next edge.
#[pin_data]
pub(crate) struct IrqChip {
    kind: Kind,
    #[pin]
    chips: SpinLockIrq<Chips>,
    pic_output: AtomicBool,
    /// The edge-triggered vector whose end the PIT waits for, or [`NO_VECTOR`].
    pit_vector: AtomicU32,
    targets: Arc<Targets>,
}

impl IrqChip {
    /// The chips after reset, with the default routing: GSI n is pin n of the PICs and of the IOAPIC. With the local APICs alone there is
    /// no routing.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(targets: Arc<Targets>, kind: Kind) -> Result<Arc<Timed<Self>>> {
        let mut routes = KVVec::new();
        if kind == Kind::Full {
            routes.extend_from_slice(&routing::DEFAULT, GFP_KERNEL_ACCOUNT)?;
        }
        Arc::pin_init(
            Timed::new(pin_init!(Self {
                kind,
                chips <- new_spinlock_irq!(Chips {
                    pic: Pic::new(),
                    ioapic: IoApic::new(),
                    pit: None,
                    speaker: false,
                    pit_open: 0,
                    routes,
                    drivers: [0; PIC_PINS + ioapic::PINS],
                    resamplers: KVec::new(),
                }, "xvm_irqchip"),
                pic_output: AtomicBool::new(false),
                pit_vector: AtomicU32::new(NO_VECTOR),
                targets,
            })),
            GFP_KERNEL_ACCOUNT,
        )
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

    /// Whether only the local APICs are in the kernel.
    #[inline]
    pub(crate) fn is_split(&self) -> bool {
        self.kind != Kind::Full
    }

    /// Takes the interrupt of the 8259 pair, if it still has one.
    pub(crate) fn acknowledge_pic(&self) -> Option<u8> {
        let mut chips = self.chips.lock();
        let vector = chips.pic.output().then(|| chips.pic.acknowledge());
        let due = self.pic_ended(&mut chips);
        self.update_pic_output(&chips);
        drop(chips);
        self.ask(due);
        vector
    }

    /// Drives the pins that `gsi` is routed to. Whether a chip saw something new.
    fn drive(&self, chips: &mut Chips, gsi: u32, source: Source, level: bool) -> bool {
        let mut seen = false;
        // By number, because the chips change meanwhile: a GSI has three at most.
        for i in 0.. {
            let Some(target) = routing::lookup(&chips.routes, gsi)
                .get(i)
                .map(|route| route.target)
            else {
                break;
            };
            let mut sink = |message: &Message| {
                let new = self.targets.send(message);
                seen |= new;
                new
            };
            match target {
                routing::Target::Pic { pin } => {
                    let level = chips.drive(pin.into(), source, level);
                    seen |= chips.pic.set_irq(pin, level);
                }
                routing::Target::IoApic { pin } => {
                    let level = chips.drive(PIC_PINS + usize::from(pin), source, level);
                    chips.ioapic.set_irq(pin, level, &mut sink);
                }
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
        self.drive(&mut chips, gsi, Source::Vmm, level)
    }

    /// Drives a GSI's line up and down again. From any context.
    pub(crate) fn pulse(&self, gsi: u32) {
        let mut chips = self.chips.lock();
        self.drive(&mut chips, gsi, Source::Vmm, true);
        self.drive(&mut chips, gsi, Source::Vmm, false);
    }

    /// Sends a message-signalled interrupt. Whether a local APIC took it as new.
    pub(crate) fn signal_msi(&self, address: u64, data: u32) -> bool {
        self.targets.send_msi(address, data)
    }

    /// Sets the IOAPIC's state.
    pub(crate) fn set_ioapic(&self, state: &IoApicState) {
        let mut chips = self.chips.lock();
        chips
            .ioapic
            .set_state(state, &mut |message| self.targets.send(message));
        self.pit_wiring(&mut chips);
    }

    /// Replaces the routing; `routes` are sorted by GSI.
    pub(crate) fn set_routes(&self, mut routes: KVVec<routing::Entry>) {
        let mut chips = self.chips.lock();
        core::mem::swap(&mut chips.routes, &mut routes);
        self.pit_wiring(&mut chips);
        // The old table is freed after the lock.
        drop(chips);
    }

    /// Whether the 8259 pair has this port.
    pub(crate) fn is_pic_port(&self, port: u16, size: u8) -> bool {
        size == 1 && matches!(port, 0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1) && !self.is_split()
    }

    /// Reads a port of the 8259 pair.
    pub(crate) fn pic_read(&self, port: u16) -> u8 {
        let mut chips = self.chips.lock();
        let value = chips.pic.read(port).unwrap_or(0xff);
        // Polling may be the end, too.
        let due = self.pic_ended(&mut chips);
        self.update_pic_output(&chips);
        drop(chips);
        self.ask(due);
        value
    }

    /// Writes a port of the 8259 pair.
    pub(crate) fn pic_write(&self, port: u16, value: u8) {
        let mut chips = self.chips.lock();
        chips.pic.write(port, value);
        self.pit_wiring(&mut chips);
        let due = self.pic_ended(&mut chips);
        self.update_pic_output(&chips);
        drop(chips);
        self.ask(due);
    }

    fn ioapic_offset(&self, chips: &Chips, gpa: u64) -> Option<u64> {
        match self.kind {
            Kind::Full => chips.ioapic.offset(gpa),
            Kind::Split(_) => None,
        }
    }

    /// Whether guest-physical `gpa` is one of the IOAPIC's registers.
    pub(crate) fn is_ioapic(&self, gpa: u64) -> bool {
        self.ioapic_offset(&self.chips.lock(), gpa).is_some()
    }

    /// Reads the IOAPIC's register at guest-physical `gpa`; `None` when it isn't one.
    pub(crate) fn ioapic_read(&self, gpa: u64) -> Option<u32> {
        let chips = self.chips.lock();
        self.ioapic_offset(&chips, gpa)
            .map(|offset| chips.ioapic.read(offset))
    }

    /// Writes the IOAPIC's register at guest-physical `gpa`; `None` when it isn't one.
    pub(crate) fn ioapic_write(&self, gpa: u64, value: u32) -> Option<()> {
        let mut chips = self.chips.lock();
        let offset = self.ioapic_offset(&chips, gpa)?;
        chips
            .ioapic
            .write(offset, value, &mut |message| self.targets.send(message));
        self.pit_wiring(&mut chips);
        Some(())
    }
}

impl Timed<IrqChip> {
    /// Works on the chips, then brings what follows from it to the vCPUs and the host's timer. Not inside the window.
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut Chips) -> R) -> R {
        let (result, edge) = {
            let mut chips = self.chips.lock();
            let result = work(&mut chips);
            self.pit_wiring(&mut chips);
            self.update_pic_output(&chips);
            (result, chips.pit.as_ref().and_then(Pit::next_edge))
        };
        match edge {
            Some(at) => self.set_timer(at),
            None => self.cancel_timer(),
        }
        result
    }
}

/// The bit of a pin, numbered as in `Chips::drivers`.
fn pin_bit(target: routing::Target) -> u64 {
    match target {
        routing::Target::Pic { pin } => 1 << (pin & 15),
        routing::Target::IoApic { pin } => 1 << (PIC_PINS + usize::from(pin & 31)),
        routing::Target::Msi { .. } => 0,
    }
}
