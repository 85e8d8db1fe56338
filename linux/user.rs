// SPDX-License-Identifier: GPL-2.0

//! User memory of the calling process: ioctl arguments, and guest memory by its address in the VMM.

use super::ffi;
use core::mem::size_of;
use core::mem::MaybeUninit;
use kernel::alloc::flags::__GFP_NOWARN;
use kernel::bindings;
use kernel::prelude::*;
use kernel::transmute::AsBytes;
use kernel::uaccess::UserPtr;
use kernel::uaccess::UserSlice;

/// A type that ioctls copy from and to userspace.
///
/// # Safety
///
/// Every bit pattern must be a valid value, and the type must have no padding.
pub(crate) unsafe trait Plain: Copy {}

// SAFETY: Integers are plain.
unsafe impl Plain for u8 {}
// SAFETY: As above.
unsafe impl Plain for u16 {}
// SAFETY: As above.
unsafe impl Plain for u32 {}
// SAFETY: As above.
unsafe impl Plain for u64 {}
// SAFETY: An array has no padding of its own.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// Reads a value at user address `address`. May sleep.
///
/// # Errors
///
/// `EFAULT`.
pub(crate) fn read<T: Plain>(address: usize) -> Result<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: The value's bytes are valid for writing; as `MaybeUninit` they may hold anything.
    let bytes = unsafe {
        core::slice::from_raw_parts_mut(
            value.as_mut_ptr().cast::<MaybeUninit<u8>>(),
            size_of::<T>(),
        )
    };
    UserSlice::new(UserPtr::from_addr(address), size_of::<T>())
        .reader()
        .read_raw(bytes)?;
    // SAFETY: All bytes were written, and every pattern is valid for `Plain`.
    Ok(unsafe { value.assume_init() })
}

/// Writes a value at user address `address`. May sleep.
///
/// # Errors
///
/// `EFAULT`.
pub(crate) fn write<T: Plain>(address: usize, value: &T) -> Result {
    // SAFETY: A `Plain` value has no padding, so that all its bytes are initialised.
    let bytes = unsafe {
        core::slice::from_raw_parts(core::ptr::from_ref(value).cast::<u8>(), size_of::<T>())
    };
    write_bytes(address, bytes)
}

/// Reads bytes at user address `address`. May sleep.
///
/// # Errors
///
/// `EFAULT`.
pub(crate) fn read_bytes(address: usize, to: &mut [u8]) -> Result {
    UserSlice::new(UserPtr::from_addr(address), to.len())
        .reader()
        .read_slice(to)
}

/// Writes bytes at user address `address`. May sleep.
///
/// # Errors
///
/// `EFAULT`.
pub(crate) fn write_bytes(address: usize, from: &[u8]) -> Result {
    UserSlice::new(UserPtr::from_addr(address), from.len())
        .writer()
        .write_slice(from)
}

/// Reads bytes at user address `address` if they are there, without sleeping: from any context, also inside the window.
///
/// # Errors
///
/// `EFAULT`.
#[inline]
pub(crate) fn read_nofault(address: usize, to: &mut [u8]) -> Result {
    // SAFETY: `to` is valid for writing its length; the function checks that the address is one of userspace, and survives faults.
    match unsafe {
        bindings::copy_from_user_nofault(to.as_mut_ptr().cast(), address as *const _, to.len())
    } {
        0 => Ok(()),
        _ => Err(EFAULT),
    }
}

/// Writes bytes at user address `address` if they are there, without sleeping: from any context, also inside the window.
///
/// # Errors
///
/// `EFAULT`.
pub(crate) fn write_nofault(address: usize, from: &[u8]) -> Result {
    // SAFETY: `from` is valid for reading its length; the function checks that the address is one of userspace, and survives faults.
    match unsafe {
        bindings::copy_to_user_nofault(address as *mut _, from.as_ptr().cast(), from.len())
    } {
        0 => Ok(()),
        _ => Err(EFAULT),
    }
}

/// Reads eight bytes at user address `address`, of any alignment, if they are there: as [`read_nofault`], at the cost of a few instructions.
///
/// # Errors
///
/// `EFAULT`, also when the address isn't one of userspace.
#[inline]
pub(crate) fn read_word_nofault(address: usize) -> Result<u64> {
    if !is_user_range(address as u64, 8) {
        return Err(EFAULT);
    }
    let mut word = 0;
    // SAFETY: The address is one of userspace; the helper survives faults, which it doesn't handle in atomic context.
    match unsafe { ffi::xvm_read_user8(&mut word, address) } {
        0 => Ok(word),
        _ => Err(EFAULT),
    }
}

/// Writes words at user address `address`. May sleep.
///
/// # Errors
///
/// `EFAULT`.
pub(crate) fn write_words(address: usize, words: &[u64]) -> Result {
    write_bytes(address, AsBytes::as_bytes(words))
}

/// Reads `count` words at user address `address` into memory charged to the caller. May sleep.
///
/// # Errors
///
/// `EFAULT`, `ENOMEM`. The caller has limited `count`.
pub(crate) fn read_words(address: usize, count: usize) -> Result<KVVec<u64>> {
    let mut words = KVVec::from_elem(0, count, GFP_KERNEL_ACCOUNT | __GFP_NOWARN)?;
    read_bytes(address, AsBytes::as_bytes_mut(words.as_mut_slice()))?;
    Ok(words)
}

/// Reads an array of `count` values at user address `address` into memory charged to the caller. May sleep.
///
/// # Errors
///
/// `EFAULT`, `ENOMEM`. The caller has limited `count`.
pub(crate) fn read_array<T: Plain>(address: usize, count: usize) -> Result<KVVec<T>> {
    let mut values = KVVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;
    for i in 0..count {
        let at = i
            .checked_mul(size_of::<T>())
            .and_then(|offset| address.checked_add(offset));
        values.push(read(at.ok_or(EFAULT)?)?, GFP_KERNEL_ACCOUNT)?;
    }
    Ok(values)
}

/// Whether `size` bytes at `address` are addresses of userspace.
#[inline]
pub(crate) fn is_user_range(address: u64, size: u64) -> bool {
    // The lower half of the canonical address space, less its last page, with four-level paging; five-level hosts lose nothing that a VMM would miss.
    const LIMIT: u64 = (1 << 47) - 4096;
    size <= LIMIT && address <= LIMIT - size
}

/// Replaces `old` with `new` (4 or 8 bytes, aligned) at user address `address` if it is there, atomically. Whether it was. May sleep.
///
/// # Errors
///
/// `EFAULT`, also when the address isn't aligned or isn't one of userspace.
pub(crate) fn compare_exchange(address: usize, size: usize, old: u64, new: u64) -> Result<bool> {
    if (size != 4 && size != 8)
        || address % size != 0
        || !is_user_range(address as u64, size as u64)
    {
        return Err(EFAULT);
    }
    // SAFETY: The address is one of userspace, aligned; the helpers survive faults.
    let result = unsafe {
        match size {
            4 => ffi::xvm_user_cmpxchg4(address, old as u32, new as u32),
            _ => ffi::xvm_user_cmpxchg8(address, old, new),
        }
    };
    match result {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(EFAULT),
    }
}
