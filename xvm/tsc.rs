// SPDX-License-Identifier: GPL-2.0

//! The time-stamp counter: what a vCPU's is made of, and keeping those of a VM together.
//!
//! A guest's TSC is the host's, by a ratio if the CPU can scale it, and an offset. A VMM sets the TSCs of all vCPUs one after
//! the other, each a moment later than the one before; [`Tsc`] finds out which of these writes mean the same time, as KVM does.

use super::ops::Capabilities;
use super::platform::scaling;
use super::vcpu::Shared;
use super::vcpu::Vcpu;
use super::vm::Vm;
use super::XvmOps;
use crate::linux::user;
use crate::linux::x86;
use crate::uapi;
use crate::uapi::kvm_device_attr;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::sync::new_spinlock;
use kernel::sync::SpinLock;

/// How far from the host's frequency a VMM may ask for without scaling, in parts per million: NTP's limit of what two clocks of the
/// same frequency differ by, halved.
const TOLERANCE_PPM: u64 = 250;

/// A VM's part. The lock is taken for an instant, alone.
#[pin_data]
pub(crate) struct Tsc {
    #[pin]
    state: SpinLock<State>,
}

struct State {
    /// The frequency of new vCPUs in kHz.
    default_khz: u32,
    /// The offset of the vCPUs that were set last, and their frequency in kHz: 0 before there is one.
    offset: u64,
    khz: u32,
    /// The VMM has set one.
    by_vmm: bool,
}

impl Tsc {
    /// The first vCPU will count from zero.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            state <- new_spinlock!(
                State {
                    default_khz: x86::tsc_khz(),
                    offset: 0,
                    khz: 0,
                    by_vmm: false,
                },
                "xvm_tsc"
            ),
        })
    }

    /// The frequency of new vCPUs in kHz.
    pub(crate) fn default_khz(&self) -> u32 {
        self.state.lock().default_khz
    }

    fn set_default_khz(&self, khz: u32) {
        self.state.lock().default_khz = khz;
    }

    /// A vCPU of `khz` kHz, whose TSC would be `now` without offset, is set to `value`, by the VMM or because it is new. Returns
    /// its offset.
    ///
    /// Zero means the time of the others, who are not reset with it. So does, once the VMM has set a TSC, what differs from theirs by
    /// less than a second.
    fn set(&self, value: u64, now: u64, khz: u32, by_vmm: bool) -> u64 {
        let mut state = self.state.lock();
        let others = now.wrapping_add(state.offset);
        let apart = others.wrapping_sub(value).min(value.wrapping_sub(others));
        let same = value == 0 || state.by_vmm && apart < u64::from(khz) * 1000;
        state.by_vmm |= by_vmm;
        if !same || khz != state.khz {
            state.offset = value.wrapping_sub(now);
            state.khz = khz;
        }
        state.offset
    }

    /// The VMM sets a vCPU's offset itself.
    fn set_offset(&self, offset: u64, khz: u32) {
        let mut state = self.state.lock();
        state.by_vmm = true;
        state.offset = offset;
        state.khz = khz;
    }
}

/// What other vCPUs may know of one's TSC.
#[derive(Default)]
pub(crate) struct Published {
    offset: AtomicU64,
    /// 0: the host's rate.
    ratio: AtomicU64,
}

impl Published {
    fn set(&self, offset: u64, ratio: Option<u64>) {
        self.offset.store(offset, Ordering::SeqCst);
        self.ratio.store(ratio.unwrap_or(0), Ordering::SeqCst);
    }

    fn get(&self) -> (u64, u64) {
        let offset = self.offset.load(Ordering::SeqCst);
        (offset, self.ratio.load(Ordering::SeqCst))
    }
}

/// The frequency in kHz that a VMM asks for: `khz`, or the host's with 0.
///
/// # Errors
///
/// `EINVAL` for more than scaling can give.
fn asked_khz(caps: &Capabilities, khz: u32) -> Result<u32> {
    let host = x86::tsc_khz();
    match caps.tsc_scaling {
        _ if khz == 0 => Ok(host),
        Some(scaling) if u64::from(khz) >= scaling.limit_khz(host) => Err(EINVAL),
        _ => Ok(khz),
    }
}

impl<V: XvmOps> Vm<V> {
    /// Whether the TSCs of all vCPUs count alike.
    pub(super) fn tscs_agree(&self) -> bool {
        self.targets().all_alike(|vcpu: &Shared| vcpu.tsc.get())
    }

    /// `KVM_SET_TSC_KHZ` of a VM (api.rst, 4.55): the frequency of vCPUs that are made from now on; 0 for the host's.
    ///
    /// # Errors
    ///
    /// `EINVAL` for more than scaling can give, or when there is a vCPU.
    pub(crate) fn set_default_tsc_khz(&self, khz: usize) -> Result<isize> {
        let khz = asked_khz(&self.machine.caps, khz as u32)?;
        self.before_vcpus(|| self.tsc.set_default_khz(khz))?;
        Ok(0)
    }
}

impl<V: XvmOps> Vcpu<V> {
    /// A new vCPU's TSC. A frequency that the VM was given and that can't be had is the host's.
    pub(super) fn start_tsc(&mut self) {
        let khz = self.vm.tsc.default_khz();
        if self.change_tsc_khz(khz).is_err() {
            self.tsc_khz = x86::tsc_khz();
        }
        let now = self.scale_tsc(x86::rdtsc());
        let offset = self.vm.tsc.set(0, now, self.tsc_khz, false);
        self.set_tsc_offset(offset);
    }

    /// The VMM writes MSR TSC.
    pub(crate) fn restore_tsc(&mut self, value: u64) {
        let now = self.scale_tsc(x86::rdtsc());
        let offset = self.vm.tsc.set(value, now, self.tsc_khz, true);
        self.set_tsc_offset(offset);
    }

    /// Sets what the guest's TSC adds to the host's. Also inside the window, which must close then.
    pub(crate) fn set_tsc_offset(&mut self, offset: u64) {
        self.config.tsc_offset = offset;
        self.apply_tsc();
    }

    fn apply_tsc(&mut self) {
        self.configure();
        let (offset, ratio) = (self.config.tsc_offset, self.config.tsc_ratio);
        self.shared.tsc.set(offset, ratio);
        self.tsc_changed();
    }

    /// The host's TSC in the guest's ticks.
    fn scale_tsc(&self, tsc: u64) -> u64 {
        match (self.config.tsc_ratio, &self.vm.machine.caps.tsc_scaling) {
            (Some(ratio), Some(scaling)) => scaling::scale(tsc, ratio, scaling.fraction),
            _ => tsc,
        }
    }

    /// The guest's TSC when the host's is `tsc`.
    pub(crate) fn guest_tsc_at(&self, tsc: u64) -> u64 {
        self.scale_tsc(tsc).wrapping_add(self.config.tsc_offset)
    }

    /// The guest's TSC now.
    pub(crate) fn guest_tsc(&self) -> u64 {
        self.guest_tsc_at(x86::rdtsc())
    }

    /// How many kHz it really counts; at least 1.
    pub(crate) fn actual_tsc_khz(&self) -> u32 {
        (self.scale_tsc(x86::tsc_khz().into()) as u32).max(1)
    }

    /// `KVM_SET_TSC_KHZ` (api.rst, 4.55): the frequency in kHz, 0 for the host's.
    ///
    /// # Errors
    ///
    /// `EINVAL` for one that the CPU can't give; without scaling that is any but the host's.
    pub(crate) fn set_tsc_khz(&mut self, khz: usize) -> Result<isize> {
        let khz = asked_khz(&self.vm.machine.caps, khz as u32)?;
        self.change_tsc_khz(khz)?;
        self.apply_tsc();
        self.serve_at_once();
        Ok(0)
    }

    fn change_tsc_khz(&mut self, khz: u32) -> Result {
        let host = u64::from(x86::tsc_khz());
        let near = u64::from(khz).abs_diff(host) <= host * TOLERANCE_PPM / 1_000_000;
        let scaling = self.vm.machine.caps.tsc_scaling;
        let ratio = match scaling {
            _ if near => None,
            Some(scaling) => Some(scaling.ratio(khz, host as u32).ok_or(EINVAL)?),
            None => return Err(EINVAL),
        };
        self.config.tsc_ratio = ratio;
        self.tsc_khz = khz;
        Ok(())
    }

    /// `KVM_HAS_DEVICE_ATTR`, `KVM_GET_DEVICE_ATTR`, `KVM_SET_DEVICE_ATTR` of a vCPU (devices/vcpu.rst, `KVM_VCPU_TSC_CTRL`): the
    /// offset alone.
    ///
    /// # Errors
    ///
    /// `ENXIO` for another attribute, `EFAULT`.
    pub(crate) fn device_attr(&mut self, cmd: u32, arg: usize) -> Result<isize> {
        let attr: kvm_device_attr = user::read(arg)?;
        if attr.group != uapi::KVM_VCPU_TSC_CTRL
            || attr.attr != u64::from(uapi::KVM_VCPU_TSC_OFFSET)
        {
            return Err(ENXIO);
        }
        let address = attr.addr as usize;
        match cmd {
            uapi::KVM_GET_DEVICE_ATTR => user::write(address, &self.config.tsc_offset)?,
            uapi::KVM_SET_DEVICE_ATTR => {
                let offset = user::read(address)?;
                self.vm.tsc.set_offset(offset, self.tsc_khz);
                self.set_tsc_offset(offset);
                self.serve_at_once();
            }
            _ => {}
        }
        Ok(0)
    }
}
