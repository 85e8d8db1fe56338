// SPDX-License-Identifier: GPL-2.0

//! Coalesced I/O (api.rst, 4.116): writes that the VMM carries out later are noted down in a ring, a page that all vCPUs'
//! mappings have in common.

use super::platform::bus::Space;
use super::platform::bus::Zone;
use super::vm::Vm;
use super::XvmOps;
use crate::linux::run_pages::RunPages;
use crate::linux::user;
use crate::uapi;
use core::mem::offset_of;
use core::mem::size_of;
use core::sync::atomic::fence;
use core::sync::atomic::Ordering;
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;
use kernel::sync::new_spinlock_irq;
use kernel::sync::Arc;
use kernel::sync::SpinLockIrq;

type Header = uapi::kvm_coalesced_mmio_ring;
type Note = uapi::kvm_coalesced_mmio;

/// Notes that the page has room for (`KVM_COALESCED_MMIO_MAX`).
const NOTES: u32 = ((PAGE_SIZE - size_of::<Header>()) / size_of::<Note>()) as u32;

/// The most zones of either kind that a VM may have.
const ZONES_MAX: usize = 1000;

/// The ring. Its page is the VMM's to write as well: `first`, `last` and the notes mean what they say at the moment they are read.
#[pin_data]
pub(super) struct Ring {
    #[pin]
    page: SpinLockIrq<Arc<RunPages>>,
}

impl Ring {
    /// An empty ring in `page`.
    pub(super) fn new(page: Arc<RunPages>) -> impl PinInit<Self> {
        pin_init!(Self {
            page <- new_spinlock_irq!(page, "xvm_ring"),
        })
    }

    pub(super) fn page(&self) -> Arc<RunPages> {
        self.page.lock().clone()
    }

    /// Notes a write down. False when there is no room: one place stays free, so that a full ring isn't taken for an empty one.
    /// From any context.
    pub(super) fn push(&self, space: Space, address: u64, data: &[u8]) -> bool {
        let page = self.page.lock();
        let last: u32 = page.get(offset_of!(Header, last)).unwrap_or(NOTES);
        let first: u32 = page.get(offset_of!(Header, first)).unwrap_or(NOTES);
        if last >= NOTES || (last + 1) % NOTES == first || data.len() > 8 {
            return false;
        }
        let at = size_of::<Header>() + last as usize * size_of::<Note>();
        page.set(at + offset_of!(Note, phys_addr), address);
        page.set(at + offset_of!(Note, len), data.len() as u32);
        page.set(
            at + offset_of!(Note, __bindgen_anon_1),
            u32::from(space == Space::Port),
        );
        page.write(at + offset_of!(Note, data), data);
        // Who sees the new `last` sees the note.
        fence(Ordering::Release);
        page.set(offset_of!(Header, last), (last + 1) % NOTES);
        true
    }
}

impl<V: XvmOps> Vm<V> {
    /// `KVM_REGISTER_COALESCED_MMIO`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for what is neither memory nor ports, `ENOSPC` when there are too many zones; `EFAULT`, `ENOMEM`.
    pub(crate) fn register_coalesced(&self, arg: usize) -> Result<isize> {
        let zone = zone(arg)?;
        self.bus.update(|table| {
            let same = table.zones.iter().filter(|one| one.space == zone.space);
            if same.count() >= ZONES_MAX {
                return Err(ENOSPC);
            }
            let mut new = table.copy()?;
            new.zones.push(zone, GFP_KERNEL_ACCOUNT)?;
            Ok(new)
        })?;
        Ok(0)
    }

    /// `KVM_UNREGISTER_COALESCED_MMIO`: takes away all zones that the given one is inside of; none is fine, too.
    ///
    /// # Errors
    ///
    /// `EINVAL` for what is neither memory nor ports; `EFAULT`, `ENOMEM`.
    pub(crate) fn unregister_coalesced(&self, arg: usize) -> Result<isize> {
        let zone = zone(arg)?;
        self.bus.update(|table| {
            let mut new = table.copy()?;
            new.zones
                .retain(|one| !one.contains(zone.space, zone.address, zone.size.into()));
            Ok(new)
        })?;
        Ok(0)
    }
}

/// `struct kvm_coalesced_mmio_zone`: address; size, and whether it is ports.
fn zone(arg: usize) -> Result<Zone> {
    let [address, rest]: [u64; 2] = user::read(arg)?;
    let space = match rest >> 32 {
        0 => Space::Memory,
        1 => Space::Port,
        _ => return Err(EINVAL),
    };
    Ok(Zone {
        space,
        address,
        size: rest as u32,
    })
}
