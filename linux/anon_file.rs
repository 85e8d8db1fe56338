// SPDX-License-Identifier: GPL-2.0

//! Files without a name: what `KVM_CREATE_VM` and `KVM_CREATE_VCPU` return.
//!
//! The twin of [`kernel::miscdevice`] for anonymous inodes, made in the same way.

use super::ffi;
use core::ffi::c_void;
use core::marker::PhantomData;
use kernel::bindings;
use kernel::error::from_result;
use kernel::mm::virt::VmaNew;
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::sync::ArcBorrow;
use kernel::types::ForeignOwnable;

/// What is behind an anonymous file.
pub(crate) trait AnonFile: Sized + Send + Sync + 'static {
    /// The name that `/proc/PID/fd` shows.
    const NAME: &'static CStr;

    /// An ioctl, in the context of the calling task; `arg` is as it came from userspace.
    ///
    /// # Errors
    ///
    /// What the caller of ioctl gets as errno.
    fn ioctl(this: ArcBorrow<'_, Self>, cmd: u32, arg: usize) -> Result<isize>;

    /// A mmap of the file; `vma` is being set up.
    ///
    /// # Errors
    ///
    /// What the caller of mmap gets as errno; `ENODEV` is usual for a file that can't be mapped.
    fn mmap(this: ArcBorrow<'_, Self>, vma: &VmaNew) -> Result;

    /// The last descriptor of the file is gone, with all mappings of it.
    fn release(this: Arc<Self>) {
        drop(this);
    }
}

/// Makes a close-on-exec file descriptor for `file` in the calling process. Once this has returned the descriptor may be
/// used, and closed, by other threads: nothing may be done for `file` afterwards.
///
/// # Errors
///
/// `EMFILE`, `ENFILE`, `ENOMEM`.
pub(crate) fn create<T: AnonFile>(file: Arc<T>) -> Result<isize> {
    let private = file.into_foreign();
    // SAFETY: The operations live as long as the module, which the file's `owner` keeps loaded; `private` belongs to the file from here on.
    let fd = unsafe {
        ffi::anon_inode_getfd(
            kernel::str::as_char_ptr_in_const_context(T::NAME),
            core::ptr::from_ref(&Operations::<T>::TABLE).cast(),
            private.cast(),
            (bindings::O_RDWR | bindings::O_CLOEXEC) as i32,
        )
    };
    if fd < 0 {
        // SAFETY: There is no file that could have taken the reference.
        drop(unsafe { Arc::<T>::from_foreign(private) });
        return Err(Error::from_errno(fd));
    }
    Ok(fd as isize)
}

struct Operations<T: AnonFile>(PhantomData<T>);

impl<T: AnonFile> Operations<T> {
    const TABLE: bindings::file_operations = bindings::file_operations {
        release: Some(Self::release),
        unlocked_ioctl: Some(Self::ioctl),
        #[cfg(CONFIG_COMPAT)]
        compat_ioctl: bindings::compat_ptr_ioctl,
        mmap: Some(Self::mmap),
        llseek: Some(bindings::noop_llseek),
        owner: kernel::module::this_module::<crate::LocalModule>().as_ptr(),
        ..pin_init::zeroed()
    };

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
    /// Called by the kernel as this file's `ioctl`, before `release`.
    unsafe extern "C" fn ioctl(file: *mut bindings::file, cmd: u32, arg: usize) -> isize {
        // SAFETY: The file holds the reference that `create` put there until `release`.
        let this = unsafe { Arc::<T>::borrow((*file).private_data) };
        match T::ioctl(this, cmd, arg) {
            Ok(value) => value,
            Err(error) => error.to_errno() as isize,
        }
    }

    /// # Safety
    ///
    /// Called by the kernel as this file's `mmap`, before `release`, with a `vma` that is being set up.
    unsafe extern "C" fn mmap(
        file: *mut bindings::file,
        vma: *mut bindings::vm_area_struct,
    ) -> c_int {
        // SAFETY: As in `ioctl`.
        let this = unsafe { Arc::<T>::borrow((*file).private_data.cast::<c_void>()) };
        // SAFETY: The kernel passes a vma in its initial set-up.
        let vma = unsafe { VmaNew::from_raw(vma) };
        from_result(|| T::mmap(this, vma).map(|()| 0))
    }
}
