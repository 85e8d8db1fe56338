// SPDX-License-Identifier: GPL-2.0

//! The guest's MSRs: the bitmap that says which ones don't exit, those that the VMCS holds, and those that the
//! window switches.

use super::field;
use super::field::Field;
use super::vcpu::Vcpu;
use super::vmcs::Vmcs;
use crate::linux::page::Page4k;
use crate::linux::x86;
use kernel::prelude::*;

const IA32_TSC: u32 = 0x10;
const IA32_SPEC_CTRL: u32 = 0x48;
const IA32_SYSENTER_CS: u32 = 0x174;
const IA32_SYSENTER_ESP: u32 = 0x175;
const IA32_SYSENTER_EIP: u32 = 0x176;
const IA32_DEBUGCTL: u32 = 0x1d9;
const IA32_PAT: u32 = 0x277;
const IA32_STAR: u32 = 0xc000_0081;
const IA32_LSTAR: u32 = 0xc000_0082;
const IA32_CSTAR: u32 = 0xc000_0083;
const IA32_FMASK: u32 = 0xc000_0084;
const IA32_FS_BASE: u32 = 0xc000_0100;
const IA32_GS_BASE: u32 = 0xc000_0101;
const IA32_KERNEL_GS_BASE: u32 = 0xc000_0102;
const IA32_TSC_AUX: u32 = 0xc000_0103;

/// The only bit of IA32_DEBUGCTL that a guest may set: single-step on branches. Branch records would be the host's.
const DEBUGCTL_BTF: u64 = 1 << 1;

/// What of an MSR doesn't exit.
enum Open {
    Read,
    ReadWrite,
}

/// The MSRs that the guest reaches without an exit, each because the CPU holds the guest's own value while it
/// runs, and checks what is written. All others exit.
const PASSED: &[(u32, Open)] = &[
    // The VMCS has guest and host values, and every context switch of the guest uses them.
    (IA32_FS_BASE, Open::ReadWrite),
    (IA32_GS_BASE, Open::ReadWrite),
    // Switched by the window; SWAPGS changes it without an exit anyway.
    (IA32_KERNEL_GS_BASE, Open::ReadWrite),
    // The VMCS has guest and host values; 32-bit guests write them at each task switch.
    (IA32_SYSENTER_CS, Open::ReadWrite),
    (IA32_SYSENTER_ESP, Open::ReadWrite),
    (IA32_SYSENTER_EIP, Open::ReadWrite),
    // Saved and loaded by every exit and entry.
    (IA32_PAT, Open::ReadWrite),
    // RDMSR adds the TSC offset, as RDTSC does.
    (IA32_TSC, Open::Read),
];

/// The page of MSR bitmaps (SDM vol 3, 26.6.9): 1024 bytes each for reads of low and high MSRs, then writes of
/// them; a set bit exits.
pub(super) fn bitmap() -> Result<Page4k> {
    let page = Page4k::new()?;
    // SAFETY: The page is ours, 4096 bytes long, and no CPU uses it yet.
    let bytes = unsafe { core::slice::from_raw_parts_mut(page.as_ptr(), 4096) };
    bytes.fill(0xff);
    for (msr, open) in PASSED {
        let (half, n) = match *msr {
            low @ 0..=0x1fff => (0, low as usize),
            high => (1024, (high & 0x1fff) as usize),
        };
        bytes[half + n / 8] &= !(1 << (n % 8));
        if let Open::ReadWrite = open {
            bytes[2048 + half + n / 8] &= !(1 << (n % 8));
        }
    }
    Ok(page)
}

/// MSRs that neither entry nor exit switches. The window does; code in the kernel doesn't use them.
const SWITCHED: [u32; 6] = [
    IA32_KERNEL_GS_BASE,
    IA32_STAR,
    IA32_LSTAR,
    IA32_CSTAR,
    IA32_FMASK,
    IA32_TSC_AUX,
];

/// Place of the only one of them that the guest changes without an exit.
const KERNEL_GS_BASE: usize = 0;

/// The switched MSRs' values of the guest, and, in the window, of the host.
#[derive(Debug)]
pub(super) struct Switched {
    guest: [u64; SWITCHED.len()],
    host: [u64; SWITCHED.len()],
    /// How many of them this CPU has: TSC_AUX comes with RDTSCP.
    count: usize,
}

impl Switched {
    /// All zero, as after power-up.
    pub(super) fn new(tsc_aux: bool) -> Self {
        Self {
            guest: [0; SWITCHED.len()],
            host: [0; SWITCHED.len()],
            count: SWITCHED.len() - usize::from(!tsc_aux),
        }
    }

    /// Puts the host's values away and loads the guest's. The host's are read anew each time: KVM leaves those
    /// of its guest in the CPU until it returns to userspace.
    #[inline]
    pub(super) fn load_guest(&mut self) {
        for ((&msr, guest), host) in SWITCHED
            .iter()
            .zip(&self.guest)
            .zip(&mut self.host)
            .take(self.count)
        {
            // SAFETY: Long mode has all of these, and TSC_AUX was looked for.
            *host = unsafe { x86::rdmsr(msr) };
            if *host != *guest {
                // SAFETY: As above; the value was checked when it was set. Interrupts are off until
                // `load_host`, and nothing in the kernel but entry code and returns to userspace uses these.
                unsafe { x86::wrmsr(msr, *guest) };
            }
        }
    }

    /// Keeps what the guest changed and puts the host's values back.
    #[inline]
    pub(super) fn load_host(&mut self) {
        // SAFETY: Long mode has it.
        self.guest[KERNEL_GS_BASE] = unsafe { x86::rdmsr(IA32_KERNEL_GS_BASE) };
        for ((&msr, guest), host) in SWITCHED
            .iter()
            .zip(&self.guest)
            .zip(&self.host)
            .take(self.count)
        {
            if *host != *guest {
                // SAFETY: That is the value that `load_guest` found.
                unsafe { x86::wrmsr(msr, *host) };
            }
        }
    }

    fn place(&self, msr: u32) -> Option<usize> {
        SWITCHED.iter().take(self.count).position(|&m| m == msr)
    }

    fn get(&self, place: usize, in_window: bool) -> u64 {
        match (place, in_window) {
            // SAFETY: Long mode has it; in the window it holds the guest's value.
            (KERNEL_GS_BASE, true) => unsafe { x86::rdmsr(IA32_KERNEL_GS_BASE) },
            _ => self.guest[place],
        }
    }

    fn set(&mut self, place: usize, value: u64, in_window: bool) {
        self.guest[place] = value;
        if in_window {
            // SAFETY: This CPU has the MSR, the caller of `write_msr` has checked the value, and `load_host`
            // comes before the kernel uses it.
            unsafe { x86::wrmsr(SWITCHED[place], value) };
        }
    }
}

/// MSRs that the VMCS holds.
fn held(msr: u32) -> Option<Field> {
    Some(match msr {
        IA32_FS_BASE => field::GUEST_BASE.of_segment(crate::xvm::state::seg::FS),
        IA32_GS_BASE => field::GUEST_BASE.of_segment(crate::xvm::state::seg::GS),
        IA32_SYSENTER_CS => field::GUEST_SYSENTER_CS,
        IA32_SYSENTER_ESP => field::GUEST_SYSENTER_ESP,
        IA32_SYSENTER_EIP => field::GUEST_SYSENTER_EIP,
        IA32_DEBUGCTL => field::GUEST_DEBUGCTL,
        IA32_PAT => field::GUEST_PAT,
        _ => return None,
    })
}

/// `XvmOps::read_msr`.
pub(super) fn read(vcpu: &Vcpu, msr: u32) -> Option<u64> {
    if let Some(place) = vcpu.msrs.place(msr) {
        return Some(vcpu.msrs.get(place, vcpu.vmcs.is_current()));
    }
    if msr == IA32_SPEC_CTRL && vcpu.host.has_spec_ctrl() {
        return Some(vcpu.frame.guest_spec_ctrl);
    }
    held(msr).map(|field| vcpu.vmcs.read(field))
}

/// `XvmOps::write_msr`.
pub(super) fn write(vcpu: &mut Vcpu, msr: u32, value: u64) -> bool {
    if let Some(place) = vcpu.msrs.place(msr) {
        vcpu.msrs.set(place, value, vcpu.vmcs.is_current());
        return true;
    }
    if msr == IA32_SPEC_CTRL && vcpu.host.has_spec_ctrl() {
        vcpu.frame.guest_spec_ctrl = value;
        return true;
    }
    if msr == IA32_DEBUGCTL && value & !DEBUGCTL_BTF != 0 {
        return false;
    }
    held(msr)
        .map(|field| vcpu.vmcs.write(field, value))
        .is_some()
}

/// Sets the MSRs that the VMCS holds to what they are after power-up. The VMCS must be current.
pub(super) fn initialise(vmcs: &Vmcs) {
    vmcs.write(field::GUEST_PAT, 0x0007_0406_0007_0406);
    vmcs.write(field::GUEST_DEBUGCTL, 0);
    vmcs.write(field::GUEST_SYSENTER_CS, 0);
    vmcs.write(field::GUEST_SYSENTER_ESP, 0);
    vmcs.write(field::GUEST_SYSENTER_EIP, 0);
}
