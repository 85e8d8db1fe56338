// SPDX-License-Identifier: GPL-2.0

//! x86 instructions and host CPU state that the kernel crate has no words for.
//!
//! What is safe here can't break the host's Rust code by itself; what can (writing MSRs and control registers) is `unsafe`
//! and called from the vendors' windows.

use super::ffi;
use core::arch::asm;
use kernel::bindings;
use kernel::prelude::*;

/// Result of CPUID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cpuid {
    /// EAX.
    pub(crate) eax: u32,
    /// EBX.
    pub(crate) ebx: u32,
    /// ECX.
    pub(crate) ecx: u32,
    /// EDX.
    pub(crate) edx: u32,
}

/// CPUID of this CPU.
pub(crate) fn cpuid(leaf: u32, subleaf: u32) -> Cpuid {
    // SAFETY: Every 64-bit CPU has CPUID.
    let r = unsafe { core::arch::x86_64::__cpuid_count(leaf, subleaf) };
    Cpuid {
        eax: r.eax,
        ebx: r.ebx,
        ecx: r.ecx,
        edx: r.edx,
    }
}

/// Reads an MSR that is known to exist.
///
/// # Safety
///
/// The MSR must exist in this CPU.
#[inline]
pub(crate) unsafe fn rdmsr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: By this function's contract the MSR exists; reading one has no effect on memory.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags))
    };
    (u64::from(high) << 32) | u64::from(low)
}

/// Writes an MSR.
///
/// # Safety
///
/// The MSR must exist, take this value, and the effect must be one that the caller can answer for.
#[inline]
pub(crate) unsafe fn wrmsr(msr: u32, value: u64) {
    // SAFETY: By this function's contract.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack, preserves_flags))
    };
}

/// Reads an MSR that may not exist.
///
/// # Errors
///
/// `EIO` when it does not.
pub(crate) fn rdmsr_safe(msr: u32) -> Result<u64> {
    let mut value = 0;
    // SAFETY: The helper survives the fault of an MSR that doesn't exist; `value` lives through the call.
    match unsafe { ffi::xvm_rdmsr_safe(msr, &mut value) } {
        0 => Ok(value),
        _ => Err(EIO),
    }
}

/// Reads CR0.
#[inline]
pub(crate) fn cr0() -> u64 {
    let value;
    // SAFETY: Reading has no effect.
    unsafe { asm!("mov {}, cr0", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Reads CR2.
#[inline]
pub(crate) fn cr2() -> u64 {
    let value;
    // SAFETY: Reading has no effect.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Reads CR3.
#[inline]
pub(crate) fn cr3() -> u64 {
    let value;
    // SAFETY: Reading has no effect.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Reads CR4.
#[inline]
pub(crate) fn cr4() -> u64 {
    let value;
    // SAFETY: Reading has no effect.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Reads XCR0.
///
/// # Safety
///
/// CR4.OSXSAVE must be set.
#[inline]
pub(crate) unsafe fn xgetbv0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: By this function's contract XGETBV exists and is enabled.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags))
    };
    (u64::from(high) << 32) | u64::from(low)
}

/// Writes XCR0.
///
/// # Safety
///
/// CR4.OSXSAVE must be set and the value legal; until the host's value is back, no code may use a state that it turns off.
#[inline]
pub(crate) unsafe fn xsetbv0(value: u64) {
    // SAFETY: By this function's contract.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack, preserves_flags))
    };
}

/// The time-stamp counter, read in order.
#[inline]
pub(crate) fn rdtsc() -> u64 {
    // SAFETY: RDTSC is always there in the kernel.
    unsafe { ffi::xvm_rdtsc() }
}

/// The host TSC's frequency in kHz.
pub(crate) fn tsc_khz() -> u32 {
    // SAFETY: Reads a variable that is constant after boot.
    unsafe { ffi::xvm_tsc_khz() }
}

/// Whether the host kernel uses CPU feature `feature`, one of `bindings::X86_FEATURE_*`.
pub(crate) fn host_has(feature: u32) -> bool {
    // SAFETY: The helper checks a bitmap that is constant after boot; the number is one of the kernel's.
    unsafe { ffi::xvm_host_has(feature) }
}

/// Whether the host CPU has the flaw `bug`, one of `X86_BUG_*` of asm/cpufeatures.h.
pub(crate) fn host_has_bug(bug: u32) -> bool {
    // SAFETY: As in `host_has`.
    unsafe { ffi::xvm_host_has_bug(bug) }
}

/// Whether the CPU has MWAIT that any write wakes from, and local APICs whose timers run in every power state.
pub(crate) fn can_mwait() -> bool {
    /// `X86_BUG_MONITOR`, likewise a macro with an argument.
    const MONITOR: u32 = bindings::NCAPINTS * 32 + 12;
    host_has(bindings::X86_FEATURE_MWAIT)
        && host_has(bindings::X86_FEATURE_ARAT)
        && !host_has_bug(MONITOR)
}

/// Whether the host CPU may hang when the size of a page changes while it executes from it.
pub(crate) fn itlb_multihit() -> bool {
    /// `X86_BUG_ITLB_MULTIHIT`, a macro with an argument, which bindgen doesn't see.
    const ITLB_MULTIHIT: u32 = bindings::NCAPINTS * 32 + 23;
    host_has_bug(ITLB_MULTIHIT)
}

/// DR7 as the host's perf has set it on this CPU; 0 when no breakpoint is active. Preemption must be off.
#[inline]
pub(crate) fn host_dr7() -> u64 {
    // SAFETY: Reads a per-CPU variable.
    unsafe { ffi::xvm_cpu_dr7() as u64 }
}

/// Loads this CPU's read-only GDT as the kernel does, with its proper limit. Preemption must be off.
#[inline]
pub(crate) fn load_fixmap_gdt() {
    // SAFETY: It is the GDT that the kernel runs on anyway.
    unsafe { ffi::xvm_load_fixmap_gdt() };
}

/// Linear address of this CPU's TSS. Preemption must be off.
#[inline]
pub(crate) fn tss_address() -> u64 {
    // SAFETY: Computes an address.
    unsafe { ffi::xvm_tss_address() as u64 }
}

/// Tells the kernel that TR's limit isn't what it loaded: TR is loaded again before it is needed, or at once when the
/// current task has an I/O permission bitmap. Preemption must be off.
#[inline]
pub(crate) fn invalidate_tss_limit() {
    // SAFETY: The kernel's own function for this, called after its GDT was loaded.
    unsafe { ffi::xvm_invalidate_tss_limit() };
}

/// The data segment selectors of the current task, which are 0 unless it uses segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selectors {
    /// DS.
    pub(crate) ds: u16,
    /// ES.
    pub(crate) es: u16,
    /// FS.
    pub(crate) fs: u16,
    /// GS.
    pub(crate) gs: u16,
    /// LDTR.
    pub(crate) ldt: u16,
}

impl Selectors {
    /// Those that are loaded.
    #[inline]
    pub(crate) fn read() -> Self {
        let (ds, es, fs, gs, ldt): (u32, u32, u32, u32, u32);
        // SAFETY: Reading has no effect.
        unsafe {
            asm!("mov {:e}, ds", "mov {:e}, es", "mov {:e}, fs", "mov {:e}, gs", "sldt {:e}",
                out(reg) ds, out(reg) es, out(reg) fs, out(reg) gs, out(reg) ldt, options(nomem, nostack, preserves_flags))
        };
        Self {
            ds: ds as u16,
            es: es as u16,
            fs: fs as u16,
            gs: gs as u16,
            ldt: ldt as u16,
        }
    }

    /// Loads them again where they are not 0. The bases of FS and of the user's GS become those of the descriptors.
    ///
    /// # Safety
    ///
    /// They must have been read on this CPU in the current task, and preemption off since; the caller restores the bases.
    #[cold]
    pub(crate) unsafe fn load(&self) {
        // SAFETY: By this function's contract these are the task's own selectors, with its LDT in this CPU's GDT. A selector that became invalid
        // is loaded as 0 by the helpers, as at a task switch.
        unsafe {
            if self.ldt != 0 {
                asm!("lldt {:x}", in(reg) self.ldt, options(nostack, preserves_flags));
            }
            ffi::xvm_load_ds(self.ds);
            ffi::xvm_load_es(self.es);
            ffi::xvm_load_fs(self.fs);
            ffi::xvm_load_gs(self.gs);
        }
    }
}

/// Makes the kernel issue an IBPB on this CPU before it returns to userspace (VMSCAPE). Preemption must be off.
#[inline]
pub(crate) fn set_ibpb_exit_to_user() {
    // SAFETY: Sets a per-CPU flag that the kernel has for this.
    unsafe { ffi::xvm_set_ibpb_exit_to_user() };
}

/// Writes CR2.
#[inline]
pub(crate) fn write_cr2(value: u64) {
    // SAFETY: CR2 is read by page-fault handlers alone, after the CPU has set it.
    unsafe { asm!("mov cr2, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// Writes CR4, past the kernel's copy of it.
///
/// # Safety
///
/// Interrupts must be off until the value that the kernel knows is back; until then the CPU must stay one that the kernel can run on.
#[inline]
pub(crate) unsafe fn write_cr4(value: u64) {
    // SAFETY: By this function's contract.
    unsafe { asm!("mov cr4, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// Reads DR0 to DR3.
#[inline]
pub(crate) fn dr0_to_dr3() -> [u64; 4] {
    let (a, b, c, d);
    // SAFETY: Reading has no effect; the kernel doesn't set DR7.GD.
    unsafe {
        asm!("mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3",
            out(reg) a, out(reg) b, out(reg) c, out(reg) d, options(nomem, nostack, preserves_flags))
    };
    [a, b, c, d]
}

/// Writes DR0 to DR3.
///
/// # Safety
///
/// DR7 must have no breakpoint enabled, until the host's values are back.
#[inline]
pub(crate) unsafe fn write_dr0_to_dr3(values: &[u64; 4]) {
    let [a, b, c, d] = *values;
    // SAFETY: By this function's contract; the kernel doesn't set DR7.GD.
    unsafe {
        asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}",
            in(reg) a, in(reg) b, in(reg) c, in(reg) d, options(nostack, preserves_flags))
    };
}

/// Reads DR6.
#[inline]
pub(crate) fn dr6() -> u64 {
    let value;
    // SAFETY: Reading has no effect; the kernel doesn't set DR7.GD.
    unsafe { asm!("mov {}, dr6", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes DR6, bits 63:32 of which must be 0. The kernel leaves its reset value there, `0xffff_0ff0`.
#[inline]
pub(crate) fn write_dr6(value: u64) {
    // SAFETY: DR6 has no effect; the kernel doesn't set DR7.GD.
    unsafe { asm!("mov dr6, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// Writes DR7.
///
/// # Safety
///
/// What it enables must be what the kernel expects of the current values of DR0 to DR3.
#[inline]
pub(crate) unsafe fn write_dr7(value: u64) {
    // SAFETY: By this function's contract.
    unsafe { asm!("mov dr7, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// What SGDT and SIDT store (SDM vol 3, 3.5.1).
#[repr(C, packed)]
#[derive(Clone, Copy, Default)]
pub(crate) struct PseudoDescriptor {
    /// Limit in bytes.
    pub(crate) limit: u16,
    /// Linear base address.
    pub(crate) base: u64,
}

/// The GDTR.
#[inline]
pub(crate) fn sgdt() -> PseudoDescriptor {
    let mut table = PseudoDescriptor::default();
    // SAFETY: Stores the 10 bytes of `table`.
    unsafe { asm!("sgdt [{}]", in(reg) &mut table, options(nostack, preserves_flags)) };
    table
}

/// The IDTR.
#[inline]
pub(crate) fn sidt() -> PseudoDescriptor {
    let mut table = PseudoDescriptor::default();
    // SAFETY: Stores the 10 bytes of `table`.
    unsafe { asm!("sidt [{}]", in(reg) &mut table, options(nostack, preserves_flags)) };
    table
}

/// Makes indirect branches after this not be predicted by what ran before (IBPB), if the CPU can. It costs time and has no other effect.
pub(crate) fn indirect_branch_barrier() {
    const PRED_CMD: u32 = 0x49;
    if host_has(bindings::X86_FEATURE_IBPB) {
        // SAFETY: The MSR comes with the feature, and takes this value at any time.
        unsafe { wrmsr(PRED_CMD, 1) };
    }
}

/// Whether the host's page tables mark memory as encrypted (SME, SEV).
pub(crate) fn host_encrypts_memory() -> bool {
    // SAFETY: Reads a setting that is constant after boot.
    unsafe { ffi::xvm_host_encrypts_memory() }
}

/// What the host has in MSR SPEC_CTRL on this CPU. Preemption must be off.
#[inline]
pub(crate) fn host_spec_ctrl() -> u64 {
    // SAFETY: Reads a per-CPU variable.
    unsafe { ffi::spec_ctrl_current() }
}

/// Lets the host handle a machine check that ended a guest's run.
///
/// # Safety
///
/// A machine check must have been raised on this CPU and not been handled; interrupts must be off and the host's state be back.
pub(crate) unsafe fn machine_check() {
    // SAFETY: By this function's contract.
    unsafe { ffi::xvm_machine_check() };
}
