// SPDX-License-Identifier: GPL-2.0

//! Guest-physical memory.
//!
//! - [`as_id`]: a VM's two address spaces;
//! - [`region`]: one slot: which guest-physical range is which range of the VMM's addresses;
//! - [`slots`], [`tree`]: all slots of a VM, and the ordered set that they are kept in;
//! - [`tables`]: the second-level page tables that make it so in the CPU;
//! - [`format`]: how entries of those look, by vendor;
//! - [`space`]: a VM's memory: slots, tables and the MMU notifier;
//! - [`fault`]: the faults that fill the tables;
//! - [`attributes`]: which memory is private;
//! - [`guest_file`]: slots that are a part of a file (guest_memfd);
//! - [`bitmap`], [`dirty_log`]: which pages were written to;
//! - [`ring`]: the same as a list of each vCPU, in memory shared with the VMM;
//! - [`access`]: a vCPU's view: reading and writing guest memory for the guest, through the VMM's addresses.

mod access;
mod as_id;
mod attributes;
mod bitmap;
mod dirty_log;
mod fault;
mod format;
mod guest_file;
mod region;
mod ring;
mod slots;
mod space;
mod tables;
mod tree;

pub(crate) use access::MainView;
pub(crate) use access::View;
pub(crate) use as_id::AsId;
pub(crate) use bitmap::Bitmap;
pub(crate) use fault::Filled;
pub(crate) use format::PageFormat;
pub(crate) use guest_file::Backing;
pub(crate) use region::Region;
pub(crate) use ring::Ring;
pub(crate) use slots::Current;
pub(crate) use slots::Slots;
pub(crate) use space::Memory;
pub(crate) use tables::Spare;
