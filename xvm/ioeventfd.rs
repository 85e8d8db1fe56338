// SPDX-License-Identifier: GPL-2.0

//! `KVM_IOEVENTFD` (api.rst, 4.59): a write to an address or port signals an eventfd.

use super::bus::Table;
use super::platform::bus::Doorbell;
use super::platform::bus::Space;
use super::vm::Vm;
use super::XvmOps;
use crate::linux::eventfd::EventFd;
use crate::linux::user;
use crate::uapi;
use kernel::prelude::*;
use kernel::sync::Arc;

/// The flags that there are.
const FLAGS: u32 = FLAG_DATAMATCH | FLAG_PIO | FLAG_DEASSIGN | FLAG_CHANNEL;
const FLAG_DATAMATCH: u32 = 1 << uapi::kvm_ioeventfd_flag_nr_datamatch;
const FLAG_PIO: u32 = 1 << uapi::kvm_ioeventfd_flag_nr_pio;
const FLAG_DEASSIGN: u32 = 1 << uapi::kvm_ioeventfd_flag_nr_deassign;
const FLAG_CHANNEL: u32 = 1 << uapi::kvm_ioeventfd_flag_nr_virtio_ccw_notify;

/// The most that a VM may have: each change makes a new table.
const DOORBELLS_MAX: usize = 1 << 16;

impl<V: XvmOps> Vm<V> {
    /// `KVM_IOEVENTFD`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for what is no doorbell, `EBADF` and `EINVAL` for what is no eventfd, `EEXIST` when a write could ring another one
    /// already, `ENOSPC` when there are too many, `ENOENT` when there is none to be taken away; `EFAULT`, `ENOMEM`.
    pub(crate) fn ioeventfd(&self, arg: usize) -> Result<isize> {
        let asked: uapi::kvm_ioeventfd = user::read(arg)?;
        let flag = |flag| asked.flags & flag != 0;
        let space = match () {
            () if flag(FLAG_PIO) => Space::Port,
            () if flag(FLAG_CHANNEL) => Space::Channel,
            () => Space::Memory,
        };
        let value = flag(FLAG_DATAMATCH).then_some(asked.datamatch);
        let doorbell = Doorbell::new(space, asked.addr, asked.len, value);
        if flag(FLAG_DEASSIGN) {
            // As in KVM, what can't be a doorbell isn't found.
            let event = EventFd::from_fd(asked.fd)?;
            let doorbell = doorbell.map_err(|_| ENOENT)?;
            self.bus.update(|table| without(table, &doorbell, &event))?;
        } else {
            let doorbell = doorbell.map_err(|_| EINVAL)?;
            if asked.flags & !FLAGS != 0 {
                return Err(EINVAL);
            }
            let event = Arc::new(EventFd::from_fd(asked.fd)?, GFP_KERNEL_ACCOUNT)?;
            self.bus.update(|table| with(table, doorbell, event))?;
        }
        Ok(0)
    }
}

/// The table with one more doorbell.
fn with(table: &Table, doorbell: Doorbell, event: Arc<EventFd>) -> Result<Table> {
    let mut others = table.doorbells.iter();
    if others.any(|(other, _)| other.collides(&doorbell)) {
        return Err(EEXIST);
    }
    if table.doorbells.len() >= DOORBELLS_MAX {
        return Err(ENOSPC);
    }
    let mut new = table.copy()?;
    let at = new.first(doorbell.space, doorbell.address);
    new.doorbells
        .insert_within_capacity(at, (doorbell, event))
        .map_err(|_| ENOMEM)?;
    Ok(new)
}

/// The table without a doorbell.
fn without(table: &Table, doorbell: &Doorbell, event: &EventFd) -> Result<Table> {
    let mut new = table.copy()?;
    new.doorbells
        .retain(|(other, its)| *other != *doorbell || !its.is(event));
    if new.doorbells.len() == table.doorbells.len() {
        return Err(ENOENT);
    }
    Ok(new)
}
