// SPDX-License-Identifier: GPL-2.0

//! Files without a name that can be read at any offset, and nothing else.

use super::ffi;
use core::ffi::c_void;
use core::marker::PhantomData;
use kernel::bindings;
use kernel::fs::file::FileDescriptorReservation;
use kernel::fs::File;
use kernel::prelude::*;
use kernel::sync::aref::ARef;
use kernel::sync::Arc;
use kernel::types::ForeignOwnable;
use kernel::uaccess::UserPtr;
use kernel::uaccess::UserSlice;

/// `FMODE_PREAD`: the file can be read at an offset.
const PREAD: u32 = 1 << 3;

/// What is behind such a file.
pub(crate) trait ReadFile: Send + Sync + 'static {
    /// The name that `/proc/PID/fd` shows.
    const NAME: &'static CStr;

    /// What is in the file now. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    fn content(&self) -> Result<KVec<u8>>;
}

/// Makes a close-on-exec file descriptor in the calling process.
///
/// # Errors
///
/// `EMFILE`, `ENFILE`, `ENOMEM`.
pub(crate) fn create<T: ReadFile>(file: Arc<T>) -> Result<isize> {
    let descriptor = FileDescriptorReservation::get_unused_fd_flags(bindings::O_CLOEXEC)?;
    let private = file.into_foreign();
    // SAFETY: The operations live as long as the module, which the file's `owner` keeps loaded; `private` belongs to the file from here on.
    let raw = unsafe {
        ffi::anon_inode_getfile_fmode(
            kernel::str::as_char_ptr_in_const_context(T::NAME),
            core::ptr::from_ref(&Operations::<T>::TABLE).cast(),
            private.cast(),
            bindings::O_RDONLY as i32,
            PREAD,
        )
    };
    let raw = kernel::error::from_err_ptr(raw.cast::<bindings::file>()).inspect_err(|_| {
        // SAFETY: There is no file that could have taken the reference.
        drop(unsafe { Arc::<T>::from_foreign(private) });
    })?;
    let raw = core::ptr::NonNull::new(raw.cast::<File>()).ok_or(EINVAL)?;
    let number = descriptor.reserved_fd();
    // SAFETY: The call gave us the file's one reference.
    descriptor.fd_install(unsafe { ARef::from_raw(raw) });
    Ok(number as isize)
}

struct Operations<T: ReadFile>(PhantomData<T>);

impl<T: ReadFile> Operations<T> {
    const TABLE: bindings::file_operations = bindings::file_operations {
        release: Some(Self::release),
        read: Some(Self::read),
        llseek: Some(bindings::noop_llseek),
        owner: kernel::module::this_module::<crate::LocalModule>().as_ptr(),
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// Called by the kernel as this file's `release`, once.
    unsafe extern "C" fn release(_: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: `create` put the reference there, and the file gives it up now.
        drop(unsafe { Arc::<T>::from_foreign((*file).private_data) });
        0
    }

    /// # Safety
    ///
    /// Called by the kernel as this file's `read`, before `release`, with a valid `offset`.
    unsafe extern "C" fn read(
        file: *mut bindings::file,
        to: *mut c_char,
        size: usize,
        offset: *mut bindings::loff_t,
    ) -> isize {
        // SAFETY: The file holds the reference that `create` put there until `release`.
        let this = unsafe { Arc::<T>::borrow((*file).private_data.cast::<c_void>()) };
        // SAFETY: The kernel passes the place of the offset, which is this call's own.
        let offset = unsafe { &mut *offset };
        match read_at(&*this, to as usize, size, *offset) {
            Ok(length) => {
                *offset = offset.saturating_add(length as i64);
                length as isize
            }
            Err(error) => error.to_errno() as isize,
        }
    }
}

/// Copies at most `size` bytes from `offset` on to user address `to`. Returns how many.
fn read_at<T: ReadFile>(file: &T, to: usize, size: usize, offset: i64) -> Result<usize> {
    let content = file.content()?;
    let start = usize::try_from(offset).map_err(|_| EINVAL)?;
    let rest = content.get(start..).unwrap_or(&[]);
    let part = rest.get(..size.min(rest.len())).unwrap_or(&[]);
    UserSlice::new(UserPtr::from_addr(to), part.len())
        .writer()
        .write_slice(part)?;
    Ok(part.len())
}
