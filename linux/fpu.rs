// SPDX-License-Identifier: GPL-2.0

//! The guest's FPU and extended state, in the CPU during a window and in a page of its own otherwise.
//!
//! The kernel's own switch for KVM (`fpu_swap_kvm_fpstate`) is not exported to others. Here `kernel_fpu_begin` puts the user's state
//! away (once for each system call), and the guest's state is loaded and saved with interrupts off. XRSTOR and XSAVE run
//! with the host's XCR0, which covers all that a guest may have; between them the guest's XCR0 is loaded.

use super::irq::IrqsOff;
use super::page::Page4k;
use super::x86;
use core::arch::asm;
use kernel::bindings;
use kernel::prelude::*;

/// States that guests may have: x87, SSE, AVX, AVX-512. PKRU is switched eagerly by the kernel and is no state of the guest
/// as long as CR4.PKE is refused; AMX is not offered.
const OFFERED: u64 = 0xe7;

/// Offset of MXCSR in the XSAVE area (SDM vol 1, 13.4.1).
const MXCSR: usize = 24;
/// Offset of XSTATE_BV in the XSAVE area (SDM vol 1, 13.4.2).
const XSTATE_BV: usize = 512;
/// Size of the legacy region and the XSAVE header, in bytes.
pub(crate) const XSAVE_MIN: usize = 576;

/// What of the extended state this host can give to guests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FpuCapabilities {
    /// The host's XCR0; 1 where it has no XSAVE.
    host_xcr0: u64,
    /// The bits of XCR0 that a guest may set.
    pub(crate) guest_xcr0: u64,
    /// Bytes of a standard-format XSAVE area with all these states.
    pub(crate) size: usize,
}

impl FpuCapabilities {
    /// Reads them from the CPU.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` when the host doesn't use XSAVE, or its area does not fit a page.
    pub(crate) fn probe() -> Result<Self> {
        if !x86::host_has(bindings::X86_FEATURE_XSAVE) {
            return Err(EOPNOTSUPP);
        }
        // SAFETY: The host uses XSAVE, so CR4.OSXSAVE is set.
        let host_xcr0 = unsafe { x86::xgetbv0() };
        let guest_xcr0 = host_xcr0 & OFFERED;
        let mut size = XSAVE_MIN;
        for state in 2..63 {
            if guest_xcr0 & (1 << state) != 0 {
                let leaf = x86::cpuid(0xd, state);
                size = size.max((leaf.ebx.saturating_add(leaf.eax)) as usize);
            }
        }
        if size > 4096 {
            return Err(EOPNOTSUPP);
        }
        Ok(Self {
            host_xcr0,
            guest_xcr0,
            size,
        })
    }
}

/// One vCPU's FPU state.
///
/// # Invariants
///
/// `area` holds an XSAVE area in standard format that XRSTOR accepts: XSTATE_BV has no bit outside of `caps.guest_xcr0`, the rest of
/// the header is zero, MXCSR has no reserved bit.
pub(crate) struct GuestFpu {
    area: Page4k,
    xcr0: u64,
    caps: FpuCapabilities,
    mxcsr_mask: u32,
}

impl GuestFpu {
    /// The state after a reset (SDM vol 3, table 10-1): FCW 0x40, MXCSR 0x1f80, XCR0 1.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(caps: FpuCapabilities) -> Result<Self> {
        let area = Page4k::new()?;
        let mut fpu = Self {
            area,
            xcr0: 1,
            caps,
            mxcsr_mask: 0xffff,
        };
        let bytes = fpu.bytes_mut();
        bytes[0..2].copy_from_slice(&0x40u16.to_le_bytes());
        bytes[4] = 0;
        bytes[MXCSR..MXCSR + 4].copy_from_slice(&0x1f80u32.to_le_bytes());
        bytes[XSTATE_BV] = 3;
        Ok(fpu)
    }

    /// XCR0 as the guest set it.
    pub(crate) fn xcr0(&self) -> u64 {
        self.xcr0
    }

    /// Sets the guest's XCR0.
    ///
    /// # Errors
    ///
    /// `EINVAL` when the value is one that XSETBV refuses (SDM vol 1, 13.3), or has a state that isn't offered.
    pub(crate) fn set_xcr0(&mut self, value: u64) -> Result {
        let sse = value & 2 != 0;
        let avx = value & 4 != 0;
        let avx512 = value & 0xe0;
        let legal = value & 1 != 0
            && value & !self.caps.guest_xcr0 == 0
            && (!avx || sse)
            && (avx512 == 0 || (avx512 == 0xe0 && avx));
        if !legal {
            return Err(EINVAL);
        }
        self.xcr0 = value;
        Ok(())
    }

    /// The state in XSAVE's standard format, `caps.size` bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: The page is owned by `self`, initialised, and `size` is at most 4096 by `FpuCapabilities::probe`.
        unsafe { core::slice::from_raw_parts(self.area.as_ptr(), self.caps.size) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: As in `bytes`; `&mut self` makes the access exclusive.
        unsafe { core::slice::from_raw_parts_mut(self.area.as_ptr(), self.caps.size) }
    }

    /// Takes over a state in XSAVE's standard format; what is missing at its end is in its initial state.
    ///
    /// # Errors
    ///
    /// `EINVAL` when it is shorter than the legacy region and header, names a state that isn't offered, isn't in standard
    /// format, or sets a reserved bit of MXCSR. Nothing has changed then.
    pub(crate) fn set_bytes(&mut self, state: &[u8]) -> Result {
        let word = |at: usize| -> Result<u64> {
            let bytes = state.get(at..at + 8).ok_or(EINVAL)?;
            Ok(u64::from_le_bytes(bytes.try_into().map_err(|_| EINVAL)?))
        };
        let present = word(XSTATE_BV)?;
        let header_rest =
            (1..8).try_fold(0, |all, i| Ok::<u64, Error>(all | word(XSTATE_BV + 8 * i)?))?;
        let mxcsr = (word(MXCSR)? & 0xffff_ffff) as u32;
        if present & !self.caps.guest_xcr0 != 0 || header_rest != 0 || mxcsr & !self.mxcsr_mask != 0
        {
            return Err(EINVAL);
        }
        // INVARIANT: The three conditions have just been checked.
        let own = self.bytes_mut();
        let length = own.len().min(state.len());
        own[..length].copy_from_slice(&state[..length]);
        own[length..].fill(0);
        Ok(())
    }

    /// Loads the guest's state into the CPU, XCR0 last. [`GuestFpu::save`] must follow before interrupts go on: until then
    /// the CPU raises #UD for what the guest's XCR0 turns off.
    #[inline]
    pub(crate) fn load(&self, _fpu: &KernelFpu, _irqs: &IrqsOff) {
        let mask = self.caps.guest_xcr0;
        // SAFETY: The area is valid for XRSTOR by the type's invariant; `_fpu` says that the FPU is the kernel's to use.
        unsafe {
            asm!("xrstor64 [{}]", in(reg) self.area.as_ptr(), in("eax") mask as u32, in("edx") (mask >> 32) as u32, options(nostack))
        };
        if self.xcr0 != self.caps.host_xcr0 {
            // SAFETY: The value was checked by `set_xcr0`; kernel code uses no such state with interrupts off.
            unsafe { x86::xsetbv0(self.xcr0) };
        }
    }

    /// Saves the guest's state from the CPU, and loads the host's XCR0.
    #[inline]
    pub(crate) fn save(&mut self, _fpu: &KernelFpu, _irqs: &IrqsOff) {
        if self.xcr0 != self.caps.host_xcr0 {
            // SAFETY: It is the value that the host runs with.
            unsafe { x86::xsetbv0(self.caps.host_xcr0) };
        }
        let mask = self.caps.guest_xcr0;
        // SAFETY: The page is owned by `self` and holds an XSAVE area of `size` bytes.
        // INVARIANT: XSAVE writes what XRSTOR accepts.
        unsafe {
            asm!("xsave64 [{}]", in(reg) self.area.as_ptr(), in("eax") mask as u32, in("edx") (mask >> 32) as u32, options(nostack))
        };
    }
}

/// The FPU is the kernel's to use while this exists; preemption is off.
///
/// # Invariants
///
/// `kernel_fpu_begin` was called, with interrupts on; `kernel_fpu_end` is called by `drop`.
pub(crate) struct KernelFpu(core::marker::PhantomData<*mut ()>);

impl KernelFpu {
    /// Puts the user's state away. Interrupts must be on, in process context.
    #[inline]
    pub(crate) fn begin() -> Self {
        // SAFETY: Process context with interrupts on may always use the FPU so.
        unsafe { bindings::kernel_fpu_begin_mask(0) };
        // INVARIANT: Just begun.
        Self(core::marker::PhantomData)
    }
}

impl Drop for KernelFpu {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type's invariant.
        unsafe { bindings::kernel_fpu_end() };
    }
}
