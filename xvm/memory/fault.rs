// SPDX-License-Identifier: GPL-2.0

//! Faults of the guest on its memory: the second-level tables are filled with what the VMM has mapped.

use super::access::View;
use super::tables::Mapping;
use super::tables::Spare;
use super::Memory;
use super::PageFormat;
use super::Region;
use crate::linux::gup;
use crate::linux::gup::UserPage;
use crate::linux::task;
use crate::linux::x86;
use crate::module_parameters;
use core::ops::Range;
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;

const PAGE_2M: u64 = 2 << 20;

/// What became of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filled {
    /// It is mapped, by a page of so many bytes.
    Mapped(u64),
    /// Something changed meanwhile: the guest may fault again.
    Again,
    /// There is no memory, or it is read-only and the access a write: a device's business.
    Device,
    /// It is private, and there is no private memory: the VMM's business.
    NotPrivate,
    /// It has to be brought in from elsewhere, at this user address.
    Slow(usize),
}

impl<F: PageFormat> Memory<F> {
    /// Makes guest-physical `gpa` accessible to the guest, by the slots in `view`, with tables from `spare`. In the VMM's
    /// process. May sleep; for a page that has to be brought in from elsewhere only if `patient`.
    ///
    /// # Errors
    ///
    /// `EFAULT` when the VMM has nothing mapped there, `EHWPOISON`, `EINTR`, `ENOMEM`.
    pub(crate) fn fill(
        &self,
        view: &View,
        gpa: u64,
        write: bool,
        patient: bool,
        spare: &mut Spare,
    ) -> Result<Filled> {
        // Others need not look before they know that there is memory.
        let known = self.protected.then(|| self.extent(gpa));
        if let Some((_, sequence)) = known.as_ref().filter(|known| known.0.private) {
            return self.fill_private(view, gpa, *sequence, spare);
        }
        let Some(region) = view.by_gpa(gpa) else {
            return Ok(Filled::Device);
        };
        if write && region.read_only {
            return Ok(Filled::Device);
        }
        let (here, sequence) = known.unwrap_or_else(|| self.extent(gpa));
        if let Some(backing) = region.backing.as_ref().filter(|one| one.is_memory()) {
            return self.fill_from_file(view, region, backing, gpa, sequence, spare);
        }
        spare.fill()?;
        let user = region.user_address(gpa & !0xfff);
        // To the end of the slot, or of what is shared; the tables' own end is looked at when they are filled.
        let end = region.range().end.min(here.range.end);
        let left = end.saturating_sub(gpa & !0xfff) / PAGE_SIZE as u64;
        let mut run = UserPage::present(user, left as usize);
        let page = match run.next() {
            Some(page) => page,
            None if patient => UserPage::fault_in(user, write)?,
            None => match UserPage::fault_in_at_once(user, write)? {
                Some(page) => page,
                None => return Ok(Filled::Slow(user)),
            },
        };
        let mapping = Self::large(region, &here.range, gpa, &page).unwrap_or(Mapping {
            gpa: gpa & !0xfff,
            phys: page.phys(),
            // A page whose writes are logged is writable from the first write to the next harvest.
            writable: page.writable && !region.read_only && (write || !region.logged),
            large: false,
        });
        if mapping.writable {
            page.set_dirty();
        }
        let flush = {
            let mut guarded = self.guarded.lock();
            let (size, start) = match mapping.large {
                true => (PAGE_2M as usize, region.user_address(mapping.gpa)),
                false => (gup::RUN * PAGE_SIZE, user),
            };
            let touched =
                guarded.invalid.start < start.saturating_add(size) && start < guarded.invalid.end;
            let busy = guarded.invalidations != 0 && touched;
            if busy || guarded.sequence != sequence || !view.is_current() {
                drop(guarded);
                task::cond_resched();
                return Ok(Filled::Again);
            }
            if mapping.writable {
                view.log(region, gpa);
            }
            let tables = &mut guarded.tables[view.as_id().index()];
            let stale = tables.map(&mapping, spare);
            if !mapping.large && !run.is_empty() {
                // What is there anyway is mapped before the guest asks; written to by nobody, it becomes no more dirty by it.
                let allowed = !region.read_only && !region.logged;
                let pages = run.map(|page| (page.phys(), allowed && page.is_dirty()));
                tables.map_behind(mapping.gpa, pages);
            }
            stale
        };
        if flush.is_some() {
            self.flush();
        }
        Ok(Filled::Mapped(match mapping.large {
            true => PAGE_2M,
            false => PAGE_SIZE as u64,
        }))
    }

    /// A mapping of 2 MiB, where slot and memory allow it, all of it is `shared`, and writes aren't logged by pages. CPUs that may hang when a page's
    /// size changes while they execute from it (ITLB_MULTIHIT, CVE-2018-12207) get none.
    fn large(region: &Region, shared: &Range<u64>, gpa: u64, page: &UserPage) -> Option<Mapping> {
        let start = gpa & !(PAGE_2M - 1);
        let user = region.user_address(start);
        let within = |range: &Range<u64>| start >= range.start && start + PAGE_2M <= range.end;
        let inside = within(&region.range()) && within(shared);
        if !inside
            || region.read_only
            || region.logged
            || !*module_parameters::large_pages.value_ref()
            || x86::itlb_multihit()
            || user as u64 % PAGE_2M != 0
            || !page.in_large_folio()
        {
            return None;
        }
        Some(Mapping {
            gpa: start,
            phys: gup::huge_page(user)?,
            writable: true,
            large: true,
        })
    }
}
