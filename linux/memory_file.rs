// SPDX-License-Identifier: GPL-2.0

//! Files that are memory: they have a size and pages, holes can be punched into them, and processes may map them.
//!
//! The pages belong to whoever implements [`MemoryFile`]; the kernel's page cache has none of them, so that they are neither
//! moved nor swapped out.

use super::ffi;
use core::ffi::c_void;
use core::marker::PhantomData;
use core::ops::Range;
use kernel::bindings;
use kernel::error::from_result;
use kernel::fs::file::FileDescriptorReservation;
use kernel::fs::File;
use kernel::fs::LocalFile;
use kernel::mm::virt::flags;
use kernel::mm::virt::VmaMixedMap;
use kernel::mm::virt::VmaNew;
use kernel::page::Page;
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;
use kernel::sync::aref::ARef;
use kernel::sync::Arc;
use kernel::sync::ArcBorrow;
use kernel::types::ForeignOwnable;

/// Where a process has mapped a page, or is about to.
pub(crate) struct Place<'a> {
    vma: &'a VmaMixedMap,
    address: usize,
}

impl Place<'_> {
    /// Maps `page` there, if nothing is.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn insert(&self, page: &Page) -> Result {
        match self.vma.vm_insert_page(self.address, page) {
            // Another thread was faster.
            Err(error) if error == EBUSY => Ok(()),
            result => result,
        }
    }
}

/// All mappings of a file in processes.
pub(crate) struct Mappings(*mut bindings::address_space);

impl Mappings {
    /// Takes pages of the file out of all processes. May sleep.
    pub(crate) fn unmap(&self, pages: &Range<usize>) {
        let start = pages.start.saturating_mul(PAGE_SIZE) as i64;
        let length = (pages.end - pages.start).saturating_mul(PAGE_SIZE) as i64;
        if length != 0 {
            // SAFETY: The address space is that of a file that is held by who called `MemoryFile::punch`.
            unsafe { bindings::unmap_mapping_range(self.0, start, length, 1) };
        }
    }
}

/// What is behind such a file.
pub(crate) trait MemoryFile: Sized + Send + Sync + 'static {
    /// The name that `/proc/PID/fd` shows.
    const NAME: &'static CStr;

    /// Whether processes may map it.
    fn can_be_mapped(this: ArcBorrow<'_, Self>) -> bool;

    /// A process accesses page `index` by a mapping: it is to be put into `place`. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`; any other is a SIGBUS for the process.
    fn fault(this: ArcBorrow<'_, Self>, index: usize, place: &Place<'_>) -> Result;

    /// Makes pages that aren't there. May sleep.
    ///
    /// # Errors
    ///
    /// What the caller of `fallocate` gets.
    fn allocate(this: ArcBorrow<'_, Self>, pages: Range<usize>) -> Result;

    /// Frees pages, which are zero when they are used again. They may go beyond the file. May sleep.
    ///
    /// # Errors
    ///
    /// What the caller of `fallocate` gets.
    fn punch(this: ArcBorrow<'_, Self>, pages: Range<usize>, mappings: &Mappings) -> Result;

    /// The last descriptor of the file and the last mapping of it are gone.
    fn release(this: Arc<Self>);
}

/// Makes a file of `size` bytes (a multiple of pages, below 2^63), and its descriptor in the calling process.
///
/// # Errors
///
/// `EMFILE`, `ENFILE`, `ENOMEM`.
pub(crate) fn create<T: MemoryFile>(file: Arc<T>, size: u64) -> Result<isize> {
    let descriptor = FileDescriptorReservation::get_unused_fd_flags(0)?;
    let private = file.into_foreign();
    // SAFETY: The operations live as long as the module, which the file's `owner` keeps loaded; `private` belongs to the file from here on.
    let raw = unsafe {
        ffi::anon_inode_create_getfile(
            kernel::str::as_char_ptr_in_const_context(T::NAME),
            core::ptr::from_ref(Operations::<T>::TABLE).cast(),
            private.cast(),
            bindings::O_RDWR as i32,
            core::ptr::null(),
        )
    };
    let raw = kernel::error::from_err_ptr(raw.cast::<bindings::file>()).inspect_err(|_| {
        // SAFETY: There is no file that could have taken the reference.
        drop(unsafe { Arc::<T>::from_foreign(private) });
    })?;
    // SAFETY: The inode was made for this file, which nobody else knows yet.
    unsafe {
        let inode = (*raw).f_inode;
        (*inode).i_size = size as i64;
        (*inode).i_mode |= bindings::S_IFREG as u16;
    }
    let raw = core::ptr::NonNull::new(raw.cast::<File>()).ok_or(EINVAL)?;
    let number = descriptor.reserved_fd();
    // SAFETY: The call gave us the file's one reference.
    descriptor.fd_install(unsafe { ARef::from_raw(raw) });
    Ok(number as isize)
}

/// What is behind descriptor `fd` of the calling process.
///
/// # Errors
///
/// `EBADF` when there is no file, `EINVAL` when it is another kind of file.
pub(crate) fn get<T: MemoryFile>(fd: u32) -> Result<Arc<T>> {
    let file = LocalFile::fget(fd).map_err(|_| EBADF)?;
    let raw = file.as_ptr();
    // SAFETY: The file is held, and these members don't change.
    let (operations, private) = unsafe { ((*raw).f_op, (*raw).private_data) };
    if !core::ptr::eq(operations, Operations::<T>::TABLE) {
        return Err(EINVAL);
    }
    // SAFETY: By its operations it is a file that `create` made for a `T`, and it is held.
    let this = unsafe { Arc::<T>::borrow(private.cast::<c_void>()) };
    Ok(this.into())
}

struct Operations<T: MemoryFile>(PhantomData<T>);

impl<T: MemoryFile> Operations<T> {
    // The one constant is at one address, as the module is one unit of compilation: `get` knows a file by it.
    const TABLE: &'static bindings::file_operations = &bindings::file_operations {
        release: Some(Self::release),
        fallocate: Some(Self::fallocate),
        mmap: Some(Self::mmap),
        owner: kernel::module::this_module::<crate::LocalModule>().as_ptr(),
        ..pin_init::zeroed()
    };

    const MAPPED: &'static bindings::vm_operations_struct = &bindings::vm_operations_struct {
        fault: Some(Self::fault),
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// `file` must be one that [`create`] made, held for `'a`.
    unsafe fn of<'a>(file: *mut bindings::file) -> ArcBorrow<'a, T> {
        // SAFETY: By the contract: the file holds the reference that `create` put there until `release`.
        unsafe { Arc::<T>::borrow((*file).private_data.cast::<c_void>()) }
    }

    /// # Safety
    ///
    /// Called by the kernel as this file's `release`, once.
    unsafe extern "C" fn release(_: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: `create` put the reference there, and the file gives it up now.
        T::release(unsafe { Arc::<T>::from_foreign((*file).private_data) });
        0
    }

    /// # Safety
    ///
    /// Called by the kernel as this file's `fallocate`, with a range that it has checked.
    unsafe extern "C" fn fallocate(
        file: *mut bindings::file,
        mode: c_int,
        offset: i64,
        length: i64,
    ) -> isize {
        const KEEP_SIZE: c_int = 1;
        const PUNCH_HOLE: c_int = 2;
        // SAFETY: The kernel holds the file during the call.
        let this = unsafe { Self::of(file) };
        // SAFETY: As above; the inode's address space lives as long.
        let mappings = Mappings(unsafe { (*file).f_mapping });
        let done = || {
            if mode & KEEP_SIZE == 0 || mode & !(KEEP_SIZE | PUNCH_HOLE) != 0 {
                return Err(EOPNOTSUPP);
            }
            let (start, length) = (usize::try_from(offset)?, usize::try_from(length)?);
            if start % PAGE_SIZE != 0 || length % PAGE_SIZE != 0 {
                return Err(EINVAL);
            }
            let end = start.checked_add(length).ok_or(EFBIG)?;
            let pages = start / PAGE_SIZE..end / PAGE_SIZE;
            match mode & PUNCH_HOLE {
                0 => T::allocate(this, pages),
                _ => T::punch(this, pages, &mappings),
            }
        };
        from_result(|| done().map(|()| 0))
    }

    /// # Safety
    ///
    /// Called by the kernel as this file's `mmap`, with a `vma` that is being set up.
    unsafe extern "C" fn mmap(
        file: *mut bindings::file,
        vma: *mut bindings::vm_area_struct,
    ) -> c_int {
        // SAFETY: The kernel holds the file during the call.
        let this = unsafe { Self::of(file) };
        // SAFETY: The kernel passes a vma in its initial set-up.
        let new = unsafe { VmaNew::from_raw(vma) };
        if !T::can_be_mapped(this) {
            return ENODEV.to_errno();
        }
        if new.flags() & flags::SHARED == 0 || new.flags() & flags::MAYSHARE == 0 {
            return EINVAL.to_errno();
        }
        new.set_mixedmap();
        // SAFETY: As above; the table lives as long as the module, which the file that the vma holds keeps loaded.
        unsafe { (*vma).vm_ops = Self::MAPPED };
        0
    }

    /// # Safety
    ///
    /// Called by the kernel for a fault in a vma that `mmap` set up.
    unsafe extern "C" fn fault(fault: *mut bindings::vm_fault) -> bindings::vm_fault_t {
        // SAFETY: The kernel passes a fault that nobody changes meanwhile.
        let at = unsafe { &(*fault).__bindgen_anon_1 };
        // SAFETY: The vma holds its file.
        let this = unsafe { Self::of((*at.vma).vm_file) };
        let place = Place {
            // SAFETY: The vma is locked for a fault, and `mmap` set VM_MIXEDMAP.
            vma: unsafe { VmaMixedMap::from_raw(at.vma) },
            address: at.address & !(PAGE_SIZE - 1),
        };
        match T::fault(this, at.pgoff, &place) {
            Ok(()) => bindings::vm_fault_reason_VM_FAULT_NOPAGE,
            Err(error) if error == ENOMEM => bindings::vm_fault_reason_VM_FAULT_OOM,
            Err(_) => bindings::vm_fault_reason_VM_FAULT_SIGBUS,
        }
    }
}
