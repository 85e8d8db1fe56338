// SPDX-License-Identifier: GPL-2.0

//! A VM's time-stamp counter: what its vCPUs add to the host's, so that they count alike.

use super::vcpu::Vcpu;
use super::XvmOps;
use crate::linux::x86;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering;
use kernel::prelude::*;

/// How far from the host's frequency a VMM may ask for, in parts per million: NTP's limit of what two clocks of the
/// same frequency differ by, halved.
const TOLERANCE_PPM: u64 = 250;

/// The offset that a VM's vCPUs have in common, unless a guest sets one vCPU's TSC alone.
pub(crate) struct Tsc(AtomicU64);

impl Tsc {
    /// Counts from zero.
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(0u64.wrapping_sub(x86::rdtsc())))
    }

    /// What a new vCPU adds to the host's TSC.
    pub(crate) fn offset(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// The VMM sets a vCPU's TSC to `value`: returns what the vCPU then adds to the host's.
    ///
    /// It sets those of all vCPUs one after the other, to zero or to what they were when saved. What is within a
    /// second of the others' means the same time as theirs; zero as well, since a reset doesn't stop the others.
    pub(crate) fn restore(&self, value: u64) -> u64 {
        let (now, common) = (x86::rdtsc(), self.offset());
        let others = now.wrapping_add(common);
        let apart = others.wrapping_sub(value).min(value.wrapping_sub(others));
        if value == 0 || apart < u64::from(x86::tsc_khz()) * 1000 {
            return common;
        }
        let offset = value.wrapping_sub(now);
        self.0.store(offset, Ordering::Relaxed);
        offset
    }
}

impl<V: XvmOps> Vcpu<V> {
    /// `KVM_SET_TSC_KHZ` (api.rst, 4.55): the frequency in kHz, 0 for the host's, which is the only one.
    ///
    /// # Errors
    ///
    /// `EINVAL` for another.
    pub(crate) fn set_tsc_khz(&mut self, khz: usize) -> Result<isize> {
        let host = u64::from(x86::tsc_khz());
        let khz = khz as u64 & 0xffff_ffff;
        if khz != 0 && khz.abs_diff(host) > host * TOLERANCE_PPM / 1_000_000 {
            return Err(EINVAL);
        }
        Ok(0)
    }
}
