// SPDX-License-Identifier: GPL-2.0

//! Guest memory that is a file of its own: guest_memfd (api.rst, 4.142).
//!
//! The file belongs to one VM. Its pages are made when they are first used, by the guest or by a process that has the file
//! mapped, and stay where they are until a hole is punched or the file is gone. A slot that is bound to a part of a file that can
//! be mapped (`GUEST_MEMFD_FLAG_MMAP`) is that part. With another file it is its private pages that are there, if the VM can have any, and
//! the others are the slot's user memory.
//!
//! # Locks
//!
//! The store's mutex comes after [`Memory`]'s `update` and before its tables' lock: it is held while a page is mapped for the guest or
//! a process, so that a hole, under the same mutex, finds every mapping.

use super::access::View;
use super::fault::Filled;
use super::tables::Mapping;
use super::tables::Spare;
use super::AsId;
use super::Memory;
use super::PageFormat;
use super::Region;
use crate::linux::memory_file;
use crate::linux::memory_file::Mappings;
use crate::linux::memory_file::MemoryFile;
use crate::linux::memory_file::Place;
use crate::linux::page;
use crate::linux::task;
use core::ops::Range;
use kernel::alloc::flags::__GFP_ZERO;
use kernel::page::Page;
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;
use kernel::sync::new_mutex;
use kernel::sync::Arc;
use kernel::sync::ArcBorrow;
use kernel::sync::Mutex;
use kernel::xarray::AllocKind;
use kernel::xarray::XArray;

/// `GUEST_MEMFD_FLAG_MMAP`, `GUEST_MEMFD_FLAG_INIT_SHARED`.
const MAPPABLE: u64 = 1 << 0;
const SHARED: u64 = 1 << 1;

/// A slot's part of a file.
struct Binding {
    slot: u32,
    as_id: AsId,
    pages: Range<u64>,
    /// Guest-physical address of the first page.
    gpa: u64,
}

/// What a file holds; nothing once it is closed.
struct Contents {
    pages: Pin<KBox<XArray<Arc<Page>>>>,
    bindings: KVec<Binding>,
}

/// A file's pages, and who uses them.
#[pin_data]
pub(crate) struct Store {
    /// Number of pages.
    size: u64,
    flags: u64,
    #[pin]
    contents: Mutex<Option<Contents>>,
}

impl Contents {
    /// Page `index`, made if it isn't there. May sleep.
    fn page(&self, index: usize) -> Result<Arc<Page>> {
        if let Some(page) = self.pages.lock().get(index) {
            return Ok(page.into());
        }
        let page = Page::alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO)?;
        let page = Arc::new(page, GFP_KERNEL_ACCOUNT)?;
        // The mutex keeps others from doing the same.
        self.pages
            .lock()
            .store(index, page.clone(), GFP_KERNEL_ACCOUNT)
            .map_err(|error| error.error)?;
        Ok(page)
    }
}

impl Store {
    fn new(size: u64, flags: u64) -> Result<Arc<Self>> {
        let contents = Contents {
            pages: KBox::pin_init(XArray::new(AllocKind::Alloc), GFP_KERNEL_ACCOUNT)?,
            bindings: KVec::new(),
        };
        Arc::pin_init(
            pin_init!(Self {
                size: size / PAGE_SIZE as u64,
                flags,
                contents <- new_mutex!(Some(contents), "xvm_guest_file"),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Binds a slot to the pages from byte `offset` on. May sleep.
    fn bind(&self, region: &Region, offset: u64) -> Result {
        let first = offset / PAGE_SIZE as u64;
        let end = first.checked_add(region.pages()).ok_or(EINVAL)?;
        if offset % PAGE_SIZE as u64 != 0 || end > self.size {
            return Err(EINVAL);
        }
        let mut contents = self.contents.lock();
        let contents = Option::as_mut(&mut contents).ok_or(EBADF)?;
        let taken = |one: &Binding| one.pages.start < end && first < one.pages.end;
        if contents.bindings.iter().any(taken) {
            return Err(EEXIST);
        }
        let binding = Binding {
            slot: region.id,
            as_id: region.as_id,
            pages: first..end,
            gpa: region.gpa,
        };
        Ok(contents.bindings.push(binding, GFP_KERNEL_ACCOUNT)?)
    }

    /// Undoes `bind`, when the slot is no longer mapped.
    pub(super) fn unbind(&self, slot: u32) {
        if let Some(contents) = Option::as_mut(&mut self.contents.lock()) {
            contents.bindings.retain(|one| one.slot != slot);
        }
    }
}

/// The part of a file that a slot is.
#[derive(Clone)]
pub(crate) struct Backing {
    pub(super) store: Arc<Store>,
    /// Number of the slot's first page in the file.
    first: u64,
}

impl Backing {
    /// Whether the guest's memory is the file, and not what the slot's user addresses are.
    pub(super) fn is_memory(&self) -> bool {
        self.store.flags & MAPPABLE != 0
    }
}

/// What is behind the descriptor.
pub(super) struct GuestFile<F: PageFormat> {
    memory: Arc<Memory<F>>,
    store: Arc<Store>,
}

impl<F: PageFormat> Memory<F> {
    /// The flags that a file can have, `GUEST_MEMFD_FLAG_*`: where pages can be private, they aren't made for processes to see.
    pub(crate) fn file_flags(&self) -> u64 {
        match self.is_protected() {
            true => MAPPABLE,
            false => MAPPABLE | SHARED,
        }
    }

    /// `KVM_CREATE_GUEST_MEMFD`: a file of `size` bytes, as a descriptor.
    ///
    /// # Errors
    ///
    /// `EINVAL` for unknown flags, or a size that is 0, not of whole pages, or too large; `EMFILE`, `ENFILE`, `ENOMEM`.
    pub(crate) fn create_file(this: &Arc<Self>, size: u64, flags: u64) -> Result<isize> {
        let whole = size != 0 && size % PAGE_SIZE as u64 == 0 && size <= i64::MAX as u64;
        if flags & !this.file_flags() != 0 || !whole {
            return Err(EINVAL);
        }
        let file = GuestFile {
            memory: this.clone(),
            store: Store::new(size, flags)?,
        };
        memory_file::create(Arc::new(file, GFP_KERNEL_ACCOUNT)?, size)
    }

    /// Binds a new slot to the file behind `fd`, from byte `offset` on.
    ///
    /// # Errors
    ///
    /// `EBADF` for no file; `EINVAL` for one that isn't such a file of this VM's, or a part that isn't in it; `EEXIST` for one that is
    /// another slot's; `ENOMEM`.
    pub(super) fn bind(&self, region: &Region, fd: u32, offset: u64) -> Result<Backing> {
        let file: Arc<GuestFile<F>> = memory_file::get(fd)?;
        if !core::ptr::eq(&raw const *file.memory, self) {
            return Err(EINVAL);
        }
        file.store.bind(region, offset)?;
        Ok(Backing {
            store: file.store.clone(),
            first: offset / PAGE_SIZE as u64,
        })
    }

    /// Maps a private page.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(super) fn fill_private(
        &self,
        view: &View,
        gpa: u64,
        sequence: u64,
        spare: &mut Spare,
    ) -> Result<Filled> {
        let region = view.by_gpa(gpa);
        let Some((region, backing)) = region.and_then(|one| Some((one, one.backing.as_ref()?)))
        else {
            return Ok(Filled::NotPrivate);
        };
        match self.fill_from_file(view, region, backing, gpa, sequence, spare) {
            Err(error) if error == EFAULT => Ok(Filled::NotPrivate),
            result => result,
        }
    }

    /// Maps a page of a file for the guest, if nothing has changed since `sequence`. May sleep.
    ///
    /// # Errors
    ///
    /// `EFAULT` when the file has been closed, `ENOMEM`.
    pub(super) fn fill_from_file(
        &self,
        view: &View,
        region: &Region,
        backing: &Backing,
        gpa: u64,
        sequence: u64,
        spare: &mut Spare,
    ) -> Result<Filled> {
        spare.fill()?;
        let contents = backing.store.contents.lock();
        let index = backing.first.wrapping_add(region.page_of(gpa));
        let page = contents.as_ref().ok_or(EFAULT)?.page(index as usize)?;
        let mapping = Mapping {
            gpa: gpa & !0xfff,
            phys: page::phys_of(&page),
            writable: true,
            large: false,
        };
        let stale = {
            let mut guarded = self.guarded.lock();
            if guarded.sequence != sequence || !view.is_current() {
                return Ok(Filled::Again);
            }
            guarded.tables[view.as_id().index()].map(&mapping, spare)
        };
        if stale.is_some() {
            self.flush();
        }
        Ok(Filled::Mapped(PAGE_SIZE as u64))
    }
}

impl<F: PageFormat> GuestFile<F> {
    /// Takes pages of the file from the guest.
    fn unmap(&self, contents: &Contents, pages: &Range<u64>) {
        for binding in contents.bindings.iter() {
            let start = pages.start.max(binding.pages.start);
            let end = pages.end.min(binding.pages.end);
            if start < end {
                let page = PAGE_SIZE as u64;
                let gpa = binding.gpa + (start - binding.pages.start) * page;
                self.memory
                    .unmap(binding.as_id, &(gpa..gpa + (end - start) * page));
            }
        }
    }
}

impl<F: PageFormat> MemoryFile for GuestFile<F> {
    const NAME: &'static CStr = c"[xvm-guest-memory]";

    fn can_be_mapped(this: ArcBorrow<'_, Self>) -> bool {
        this.store.flags & MAPPABLE != 0
    }

    fn fault(this: ArcBorrow<'_, Self>, index: usize, place: &Place<'_>) -> Result {
        let store = &this.store;
        // What isn't shared is the guest's alone.
        if index as u64 >= store.size || store.flags & SHARED == 0 {
            return Err(EFAULT);
        }
        let contents = store.contents.lock();
        let page = contents.as_ref().ok_or(EFAULT)?.page(index)?;
        place.insert(&page)
    }

    fn allocate(this: ArcBorrow<'_, Self>, pages: Range<usize>) -> Result {
        if pages.end as u64 > this.store.size {
            return Err(EINVAL);
        }
        for index in pages {
            if task::signal_pending() {
                return Err(EINTR);
            }
            let contents = this.store.contents.lock();
            contents.as_ref().ok_or(EBADF)?.page(index)?;
            drop(contents);
            task::cond_resched();
        }
        Ok(())
    }

    fn punch(this: ArcBorrow<'_, Self>, pages: Range<usize>, mappings: &Mappings) -> Result {
        let end = pages.end.min(this.store.size as usize);
        let pages = pages.start.min(end)..end;
        let contents = this.store.contents.lock();
        let contents = contents.as_ref().ok_or(EBADF)?;
        this.unmap(contents, &(pages.start as u64..pages.end as u64));
        mappings.unmap(&pages);
        for index in pages {
            if task::signal_pending() {
                return Err(EINTR);
            }
            drop(contents.pages.lock().remove(index));
            task::cond_resched();
        }
        Ok(())
    }

    fn release(this: Arc<Self>) {
        let mut contents = this.store.contents.lock();
        if let Some(contents) = contents.take() {
            this.unmap(&contents, &(0..u64::MAX));
        }
    }
}
