// SPDX-License-Identifier: GPL-2.0

//! The virtual platform: interrupt controllers, timers and interrupt routing. It knows no vendor and names no kernel type.
//!
//! - [`bus`]: writes that the VMM hears of without an exit;
//! - [`halt_poll`]: how long a halted vCPU is waited for without giving up the CPU;
//! - [`ioapic`]: the IOAPIC;
//! - [`lapic`]: the local APIC of a vCPU, owned by the vCPU's thread;
//! - [`mailbox`]: how other threads reach a local APIC;
//! - [`message`]: what travels between interrupt sources and local APICs;
//! - [`pic`]: the pair of 8259A;
//! - [`pit`]: the 8254 and port 0x61;
//! - [`pvclock`]: kvmclock's structure in guest memory;
//! - [`routing`]: where GSIs go;
//! - [`scaling`]: ratios of TSC frequencies;
//! - [`smram`]: the state-save area of system management mode.
//!
//! Time is passed in by the caller: `now` is nanoseconds of a monotonic clock, `tsc` the guest's time-stamp counter. All of
//! it is safe against any value from a guest or a VMM.

#[macro_use]
mod register;

pub mod bus;
pub mod halt_poll;
pub mod ioapic;
pub mod lapic;
pub mod mailbox;
pub mod message;
pub mod pic;
pub mod pit;
pub mod pvclock;
pub mod routing;
pub mod scaling;
pub mod smram;

pub use message::Delivery;
pub use message::Message;

/// The access raises a general-protection fault, #GP(0), in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gp;

/// The VMM passed something that cannot be: EINVAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid;
