// SPDX-License-Identifier: GPL-2.0

//! `KVM_GET_FPU`, `KVM_SET_FPU` (api.rst, 4.22, 4.23), `KVM_GET_XSAVE`, `KVM_SET_XSAVE` (4.42, 4.43), `KVM_GET_XCRS`,
//! `KVM_SET_XCRS` (4.44, 4.45).
//!
//! The state is an XSAVE area in standard format (SDM vol 1, 13.4). A state whose bit in XSTATE_BV is clear is in its
//! initial form, whatever the area holds there.

use super::vcpu::Vcpu;
use super::XvmOps;
use crate::linux::user;
use crate::uapi;
use crate::uapi::kvm_fpu;
use crate::uapi::kvm_xcr;
use crate::uapi::kvm_xcrs;
use core::ops::Range;
use kernel::prelude::*;

/// Size of `struct kvm_xsave`.
pub(crate) const XSAVE_SIZE: usize = 4096;

/// The legacy region, as of FXSAVE (SDM vol 1, table 10-2).
mod legacy {
    use super::Range;

    pub(super) const SIZE: usize = 512;
    /// FCW to FDP.
    pub(super) const X87_CONTROL: Range<usize> = 0..24;
    pub(super) const FCW: usize = 0;
    pub(super) const FSW: usize = 2;
    pub(super) const FTW: usize = 4;
    pub(super) const FOP: usize = 6;
    pub(super) const FIP: usize = 8;
    pub(super) const FDP: usize = 16;
    pub(super) const MXCSR: usize = 24;
    /// ST0 to ST7, 16 bytes each.
    pub(super) const X87: Range<usize> = 32..160;
    /// XMM0 to XMM15.
    pub(super) const XMM: Range<usize> = 160..416;
}

/// Offset of XSTATE_BV.
const XSTATE_BV: usize = 512;
/// Its bit of the x87 state.
const STATE_X87: u8 = 1;
/// Its bit of the SSE state: the XMM registers.
const STATE_SSE: u8 = 2;

/// FCW of the x87 state's initial form (SDM vol 1, 13.6).
const FCW_INITIAL: u16 = 0x37f;

/// Bits that MXCSR has.
const MXCSR_BITS: u32 = 0xffff;

/// Puts `$value` into `$area`, an array that is larger, in little-endian order.
fn put<const N: usize>(area: &mut [u8], at: usize, value: [u8; N]) {
    if let Some(place) = area.get_mut(at..at + N) {
        place.copy_from_slice(&value);
    }
}

/// Takes `N` bytes out of `area`, which has them.
fn get<const N: usize>(area: &[u8], at: usize) -> [u8; N] {
    area.get(at..at + N)
        .and_then(|bytes| bytes.try_into().ok())
        .unwrap_or([0; N])
}

/// The legacy region of `area` with initial forms put in.
fn legacy_region(area: &[u8]) -> [u8; legacy::SIZE] {
    let mut region: [u8; legacy::SIZE] = get(area, 0);
    let present = area.get(XSTATE_BV).copied().unwrap_or(0);
    if present & STATE_X87 == 0 {
        region[legacy::X87_CONTROL].fill(0);
        region[legacy::X87].fill(0);
        put(&mut region, legacy::FCW, FCW_INITIAL.to_le_bytes());
    }
    if present & STATE_SSE == 0 {
        region[legacy::XMM].fill(0);
    }
    region
}

impl<V: XvmOps> Vcpu<V> {
    /// `KVM_GET_FPU`.
    ///
    /// # Errors
    ///
    /// `EFAULT`.
    pub(crate) fn get_fpu(&mut self, arg: usize) -> Result<isize> {
        let region = legacy_region(self.fpu.bytes());
        let mut fpu = kvm_fpu {
            fcw: u16::from_le_bytes(get(&region, legacy::FCW)),
            fsw: u16::from_le_bytes(get(&region, legacy::FSW)),
            ftwx: region[legacy::FTW],
            last_opcode: u16::from_le_bytes(get(&region, legacy::FOP)),
            last_ip: u64::from_le_bytes(get(&region, legacy::FIP)),
            last_dp: u64::from_le_bytes(get(&region, legacy::FDP)),
            mxcsr: u32::from_le_bytes(get(&region, legacy::MXCSR)),
            ..kvm_fpu::default()
        };
        for (to, from) in fpu.fpr.iter_mut().zip(region[legacy::X87].chunks_exact(16)) {
            to.copy_from_slice(from);
        }
        for (to, from) in fpu.xmm.iter_mut().zip(region[legacy::XMM].chunks_exact(16)) {
            to.copy_from_slice(from);
        }
        user::write(arg, &fpu)?;
        Ok(0)
    }

    /// `KVM_SET_FPU`. Other extended states stay; reserved bits of MXCSR are dropped.
    ///
    /// # Errors
    ///
    /// `EFAULT`, `ENOMEM`.
    pub(crate) fn set_fpu(&mut self, arg: usize) -> Result<isize> {
        let fpu: kvm_fpu = user::read(arg)?;
        let mut area = KVVec::with_capacity(self.fpu.bytes().len(), GFP_KERNEL_ACCOUNT)?;
        area.extend_from_slice(self.fpu.bytes(), GFP_KERNEL_ACCOUNT)?;
        put(&mut area, legacy::FCW, fpu.fcw.to_le_bytes());
        put(&mut area, legacy::FSW, fpu.fsw.to_le_bytes());
        put(&mut area, legacy::FTW, [fpu.ftwx]);
        put(&mut area, legacy::FOP, fpu.last_opcode.to_le_bytes());
        put(&mut area, legacy::FIP, fpu.last_ip.to_le_bytes());
        put(&mut area, legacy::FDP, fpu.last_dp.to_le_bytes());
        put(
            &mut area,
            legacy::MXCSR,
            (fpu.mxcsr & MXCSR_BITS).to_le_bytes(),
        );
        for (n, register) in fpu.fpr.into_iter().enumerate() {
            put(&mut area, legacy::X87.start + 16 * n, register);
        }
        for (n, register) in fpu.xmm.into_iter().enumerate() {
            put(&mut area, legacy::XMM.start + 16 * n, register);
        }
        if let Some(present) = area.get_mut(XSTATE_BV) {
            *present |= STATE_X87 | STATE_SSE;
        }
        self.fpu.set_bytes(&area)?;
        Ok(0)
    }

    /// `KVM_GET_XSAVE`, and `KVM_GET_XSAVE2`, whose size is the same.
    ///
    /// # Errors
    ///
    /// `EFAULT`.
    pub(crate) fn get_xsave(&mut self, arg: usize) -> Result<isize> {
        let area = self.fpu.bytes();
        user::write_bytes(arg, &legacy_region(area))?;
        let rest = area.get(legacy::SIZE..).ok_or(EINVAL)?;
        user::write_bytes(arg.checked_add(legacy::SIZE).ok_or(EFAULT)?, rest)?;
        for at in (area.len()..XSAVE_SIZE).step_by(64) {
            let zeros = &[0; 64][..(XSAVE_SIZE - at).min(64)];
            user::write_bytes(arg.checked_add(at).ok_or(EFAULT)?, zeros)?;
        }
        Ok(0)
    }

    /// `KVM_SET_XSAVE`.
    ///
    /// # Errors
    ///
    /// `EINVAL` when the area has states that guests can't have, isn't in standard format, or sets a reserved bit of
    /// MXCSR; `EFAULT`, `ENOMEM`.
    pub(crate) fn set_xsave(&mut self, arg: usize) -> Result<isize> {
        let mut area = KVVec::from_elem(0u8, XSAVE_SIZE, GFP_KERNEL_ACCOUNT)?;
        user::read_bytes(arg, &mut area)?;
        self.fpu.set_bytes(&area)?;
        Ok(0)
    }

    /// `KVM_GET_XCRS`: XCR0 is the only one.
    ///
    /// # Errors
    ///
    /// `EFAULT`.
    pub(crate) fn get_xcrs(&mut self, arg: usize) -> Result<isize> {
        let mut xcrs = kvm_xcrs {
            nr_xcrs: 1,
            ..kvm_xcrs::default()
        };
        xcrs.xcrs[0] = kvm_xcr {
            xcr: 0,
            reserved: 0,
            value: self.fpu.xcr0(),
        };
        user::write(arg, &xcrs)?;
        Ok(0)
    }

    /// `KVM_SET_XCRS`. Registers other than XCR0 are ignored, as in KVM.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a flag (none is defined), more than 16 registers, or a value that XSETBV refuses; `EFAULT`.
    pub(crate) fn set_xcrs(&mut self, arg: usize) -> Result<isize> {
        let xcrs: kvm_xcrs = user::read(arg)?;
        if xcrs.nr_xcrs > uapi::KVM_MAX_XCRS || xcrs.flags != 0 {
            return Err(EINVAL);
        }
        let mut given = xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize);
        if let Some(xcr0) = given.find(|xcr| xcr.xcr == 0) {
            self.set_xcr0(xcr0.value)?;
        }
        Ok(0)
    }
}
