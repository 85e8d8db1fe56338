// SPDX-License-Identifier: GPL-2.0

//! What the kernel does with writes to addresses and ports of the VMM's devices in the VMM's stead: it signals an eventfd
//! (`ioeventfd`), or notes the write down for later (`coalesced`).
//!
//! # Who sees what
//!
//! A table is never changed, but replaced by another. A vCPU keeps the one that it used last, and compares numbers before it
//! looks into it: inside the window, where nobody may wait for it, or as a reader outside. Who replaces the table waits for all
//! of them, so that when the ioctl returns no vCPU acts by the old table.

use super::coalesced::Ring;
use super::platform::bus::Doorbell;
use super::platform::bus::Space;
use super::platform::bus::Zone;
use super::vcpu::Vcpu;
use super::XvmOps;
use crate::linux::eventfd::EventFd;
use crate::linux::rcu;
use crate::linux::run_pages::RunPages;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::sync::new_mutex;
use kernel::sync::new_spinlock;
use kernel::sync::Arc;
use kernel::sync::Mutex;
use kernel::sync::SpinLock;

/// What is at the addresses.
#[derive(Default)]
pub(crate) struct Table {
    /// Sorted by space and address.
    pub(super) doorbells: KVVec<(Doorbell, Arc<EventFd>)>,
    pub(super) zones: KVVec<Zone>,
}

impl Table {
    /// A copy, with room for one more of each.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(super) fn copy(&self) -> Result<Self> {
        let mut copy = Self {
            doorbells: KVVec::with_capacity(self.doorbells.len() + 1, GFP_KERNEL_ACCOUNT)?,
            zones: KVVec::with_capacity(self.zones.len() + 1, GFP_KERNEL_ACCOUNT)?,
        };
        for (doorbell, event) in self.doorbells.iter() {
            copy.doorbells
                .push((*doorbell, event.clone()), GFP_KERNEL_ACCOUNT)?;
        }
        copy.zones
            .extend_from_slice(&self.zones, GFP_KERNEL_ACCOUNT)?;
        Ok(copy)
    }

    fn len(&self) -> usize {
        self.doorbells.len() + self.zones.len()
    }

    /// Where the doorbells of an address begin.
    pub(super) fn first(&self, space: Space, address: u64) -> usize {
        self.doorbells
            .partition_point(|(other, _)| (other.space, other.address) < (space, address))
    }

    /// The doorbells of an address.
    fn doorbells_at(
        &self,
        space: Space,
        address: u64,
    ) -> impl Iterator<Item = &(Doorbell, Arc<EventFd>)> {
        self.doorbells[self.first(space, address)..]
            .iter()
            .take_while(move |(other, _)| (other.space, other.address) == (space, address))
    }

    /// Whether a write there could be something for us.
    fn covers(&self, space: Space, address: u64) -> bool {
        self.doorbells_at(space, address).next().is_some()
            || self
                .zones
                .iter()
                .any(|zone| zone.contains(space, address, 1))
    }
}

/// The current table of a VM, and the ring that writes are noted down in.
#[pin_data]
pub(crate) struct Bus {
    #[pin]
    table: SpinLock<Arc<Table>>,
    /// Counts the tables.
    generation: AtomicU64,
    /// One change at a time.
    #[pin]
    update: Mutex<()>,
    #[pin]
    ring: Ring,
}

impl Bus {
    /// Nothing is anywhere.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new() -> Result<Arc<Self>> {
        let table = Arc::new(Table::default(), GFP_KERNEL_ACCOUNT)?;
        let pages = Arc::new(RunPages::new(1)?, GFP_KERNEL_ACCOUNT)?;
        Arc::pin_init(
            pin_init!(Self {
                table <- new_spinlock!(table, "xvm_bus"),
                generation: AtomicU64::new(0),
                update <- new_mutex!((), "xvm_bus_update"),
                ring <- Ring::new(pages),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// The page of the ring.
    pub(crate) fn ring_page(&self) -> Arc<RunPages> {
        self.ring.page()
    }

    /// The table as it is now. May sleep, when the caller drops it.
    fn view(&self) -> BusView {
        let table = self.table.lock();
        BusView {
            table: (*table).clone(),
            generation: self.generation.load(Ordering::Relaxed),
            used: table.len() != 0,
        }
    }

    /// Replaces the table by what `change` makes of it. May sleep. When this returns no vCPU acts by what is no longer there; what is
    /// new may take a moment.
    ///
    /// # Errors
    ///
    /// Those of `change`.
    pub(super) fn update(&self, change: impl FnOnce(&Table) -> Result<Table>) -> Result {
        let _update = self.update.lock();
        let old = self.view();
        let mut new = Arc::new(change(&old.table)?, GFP_KERNEL_ACCOUNT)?;
        let removes = new.len() < old.table.len();
        {
            let mut table = self.table.lock();
            core::mem::swap(&mut *table, &mut new);
            // Release: who reads the new number finds the new table.
            self.generation.fetch_add(1, Ordering::Release);
        }
        if removes {
            rcu::wait_for_readers();
        }
        Ok(())
    }
}

/// A vCPU's look at the table.
pub(crate) struct BusView {
    table: Arc<Table>,
    generation: u64,
    /// There is something in it.
    used: bool,
}

impl BusView {
    /// The table as it is now.
    pub(crate) fn new(bus: &Bus) -> Self {
        bus.view()
    }
}

impl<V: XvmOps> Vcpu<V> {
    /// Whether a write there may be for `bus_write_now`. Inside the window.
    #[inline]
    pub(crate) fn bus_covers(&self, space: Space, address: u64) -> bool {
        self.bus.used && self.bus.table.covers(space, address)
    }

    /// Whether the table is the one that was last looked into.
    #[inline]
    fn bus_is_current(&self) -> bool {
        self.bus.generation == self.vm.bus.generation.load(Ordering::Acquire)
    }

    /// Gives a write to an eventfd or to the ring, if there is one for it. False also when the table has changed. Inside the
    /// window, or as a reader.
    #[inline]
    pub(crate) fn bus_write_now(&self, space: Space, address: u64, data: &[u8]) -> bool {
        self.bus.used && self.bus_is_current() && self.bus_take(space, address, data)
    }

    fn bus_take(&self, space: Space, address: u64, data: &[u8]) -> bool {
        let table = &self.bus.table;
        if let Some((_, event)) = table
            .doorbells_at(space, address)
            .find(|(doorbell, _)| doorbell.rings(data))
        {
            event.signal();
            return true;
        }
        let length = data.len() as u64;
        let mut zones = table.zones.iter();
        zones.any(|zone| zone.contains(space, address, length))
            && self.vm.bus.ring.push(space, address, data)
    }

    /// The same outside of the window. May sleep.
    #[inline]
    pub(crate) fn bus_write(&mut self, space: Space, address: u64, data: &[u8]) -> bool {
        let nothing = !self.bus.used && self.bus_is_current();
        !nothing && self.bus_write_late(space, address, data)
    }

    /// The same for a write that [`Vcpu::bus_write_now`] had no taker for: only another table can have one.
    #[inline]
    pub(crate) fn bus_write_again(&mut self, space: Space, address: u64, data: &[u8]) -> bool {
        !self.bus_is_current() && self.bus_write_late(space, address, data)
    }

    #[inline(never)]
    fn bus_write_late(&mut self, space: Space, address: u64, data: &[u8]) -> bool {
        loop {
            if !self.bus_is_current() {
                self.bus = self.vm.bus.view();
            }
            let _reader = rcu::read_side();
            if self.bus_is_current() {
                return self.bus_take(space, address, data);
            }
        }
    }
}
