// SPDX-License-Identifier: GPL-2.0

//! Guest-physical memory.
//!
//! - [`slots`]: which guest-physical range is which range of the VMM's addresses;
//! - [`tables`]: the second-level page tables that make it so in the CPU;
//! - [`format`]: how entries of those look, by vendor;
//! - [`space`]: a VM's memory: slots, tables, the MMU notifier, and the faults that fill the tables;
//! - [`access`]: reading and writing guest memory for the guest, through the VMM's addresses.

mod access;
mod format;
mod slots;
mod space;
mod tables;

pub(crate) use format::PageFormat;
pub(crate) use slots::Region;
pub(crate) use slots::Slots;
pub(crate) use space::Filled;
pub(crate) use space::Memory;
pub(crate) use tables::Spare;
