// SPDX-License-Identifier: GPL-2.0

//! The feature bits that xvm virtualises (SDM vol 2, CPUID; APM vol 3, appendix E). What is in no list is not
//! offered, whatever the CPU has; each list says what of interest it leaves out, and why.

use crate::linux::fpu::FpuCapabilities;
use crate::linux::x86;
use crate::xvm::ops::Features;
use kernel::bindings;

/// A word with these bits set.
const fn bits(list: &[u32]) -> u32 {
    let mut word = 0;
    let mut i = 0;
    while i < list.len() {
        word |= 1 << list[i];
        i += 1;
    }
    word
}

/// Leaf 1 ECX. SSE3, PCLMULQDQ, SSSE3, FMA, CMPXCHG16B, PCID, SSE4.1, SSE4.2, MOVBE, POPCNT, AES, XSAVE, AVX, F16C,
/// RDRAND.
///
/// Not MONITOR (intercepted, #UD), VMX, SMX, performance and debug stores. OSXSAVE follows CR4.
const LEAF_1_ECX: u32 = bits(&[0, 1, 9, 12, 13, 17, 19, 20, 22, 23, 25, 26, 28, 29, 30]);

/// Leaf 1 ECX, of the hypervisor's making: x2APIC and TSC deadline (in-kernel local APIC), HYPERVISOR.
const LEAF_1_ECX_EMULATED: u32 = bits(&[21, 24, 31]);

/// Leaf 1 EDX. FPU, VME, DE, PSE, TSC, MSR, PAE, MCE, CX8, APIC, SEP, MTRR, PGE, MCA, CMOV, PAT, PSE36, CLFSH, MMX,
/// FXSR, SSE, SSE2, SS.
///
/// Not DS, ACPI, TM, PBE (performance and thermal monitors), HTT (topology is the VMM's).
const LEAF_1_EDX: u32 = bits(&[
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26, 27,
]);

/// Leaf 7 EBX. FSGSBASE, BMI1, AVX2, FDP_EXCPTN_ONLY, SMEP, BMI2, ERMS, INVPCID, ZERO_FCS_FDS, AVX512F, AVX512DQ,
/// RDSEED, ADX, SMAP, AVX512_IFMA, CLFLUSHOPT, CLWB, AVX512PF, AVX512ER, AVX512CD, SHA, AVX512BW, AVX512VL.
///
/// Not SGX, HLE and RTM (no TSX control), PQM/PQE (cache allocation is the host's), MPX, PT. TSC_ADJUST is emulated.
const LEAF_7_EBX: u32 = bits(&[
    0, 3, 5, 6, 7, 8, 9, 10, 13, 16, 17, 18, 19, 20, 21, 23, 24, 26, 27, 28, 29, 30, 31,
]);

/// Leaf 7 EBX, of the hypervisor's making: TSC_ADJUST.
const LEAF_7_EBX_EMULATED: u32 = bits(&[1]);

/// Leaf 7 ECX. AVX512_VBMI, UMIP, AVX512_VBMI2, GFNI, VAES, VPCLMULQDQ, AVX512_VNNI, AVX512_BITALG, AVX512_VPOPCNTDQ,
/// RDPID, CLDEMOTE, MOVDIRI, MOVDIR64B.
///
/// Not PKU and PKS (PKRU is the host's), WAITPKG (needs a control), shadow stacks (no XSAVES), LA57 (four levels),
/// TME, ENQCMD, SGX.
const LEAF_7_ECX: u32 = bits(&[1, 2, 6, 8, 9, 10, 11, 12, 14, 22, 25, 27, 28]);

/// Leaf 7 EDX. AVX512_4VNNIW, AVX512_4FMAPS, FSRM, AVX512_VP2INTERSECT, MD_CLEAR, SERIALIZE, AVX512_FP16, SPEC_CTRL,
/// STIBP, ARCH_CAPABILITIES, SSBD.
///
/// Not AMX, IBT, PCONFIG, architectural LBRs, L1D_FLUSH and core capabilities (MSRs of the host).
const LEAF_7_EDX: u32 = bits(&[2, 3, 4, 8, 10, 14, 23, 26, 27, 29, 31]);

/// Leaf 7 subleaf 1 EAX. SHA512, SM3, SM4, AVX_VNNI, AVX512_BF16, CMPCCXADD, FZRM, FSRS, FSRC, AVX_IFMA.
///
/// Not AMX, LAM (changes what is canonical), FRED, LKGS.
const LEAF_7_1_EAX: u32 = bits(&[0, 1, 2, 4, 5, 7, 10, 11, 12, 23]);

/// Leaf 7 subleaf 1 EDX. AVX_VNNI_INT8, AVX_NE_CONVERT, AVX_VNNI_INT16, PREFETCHITI. Not AMX, AVX10, CET_SSS.
const LEAF_7_1_EDX: u32 = bits(&[4, 5, 10, 14]);

/// Leaf 7 subleaf 2 EDX. MCDT_NO. Not the other controls in MSR SPEC_CTRL.
const LEAF_7_2_EDX: u32 = bits(&[5]);

/// Leaf 0xD subleaf 1 EAX. XSAVEOPT, XSAVEC, XGETBV with ECX=1. Not XSAVES, XFD.
const LEAF_D_1_EAX: u32 = bits(&[0, 1, 2]);

/// Leaf 8000_0001 ECX. LAHF, ALTMOVCR8, ABM, SSE4A, MISALIGNSSE, 3DNOWPREFETCH, XOP, FMA4, TBM.
///
/// Not CMP_LEGACY and TOPOEXT (topology is the VMM's), SVM, extended APIC, OSVW, IBS, SKINIT, WDT, LWP, TCE,
/// performance counters, MWAITX.
const LEAF_E1_ECX: u32 = bits(&[0, 4, 5, 6, 7, 8, 11, 16, 21]);

/// Leaf 8000_0001 EDX. The bits that repeat leaf 1, and SYSCALL, NX, MMXEXT, FXSR_OPT, 1 GiB pages, RDTSCP, LM,
/// 3DNOWEXT, 3DNOW.
const LEAF_E1_EDX: u32 = bits(&[
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 20, 22, 23, 24, 25, 26, 27, 29, 30,
    31,
]);

/// Leaf 8000_0007 EDX. Invariant TSC.
const LEAF_E7_EDX: u32 = bits(&[8]);

/// Leaf 8000_0008 EBX. CLZERO, XSAVEERPTR, WBNOINVD, IBPB, IBRS, STIBP, STIBP_ALWAYS, IBRS_PREFERRED, SSBD, SSB_NO,
/// BTC_NO.
///
/// Not RDPRU, INVLPGB (intercepted, #UD), VIRT_SSBD, PSFD.
const LEAF_E8_EBX: u32 = bits(&[0, 2, 9, 12, 14, 15, 17, 18, 24, 26, 29]);

/// Leaf 8000_0021 EAX. No nested data breakpoints, LFENCE serialises, null selectors clear the base, no SMM_CTL MSR,
/// FSRS, FSRC, SRSO_NO, SRSO_USER_KERNEL_NO.
///
/// Not automatic IBRS, prefetch control and other MSRs of the host.
const LEAF_E21_EAX: u32 = bits(&[0, 2, 6, 9, 10, 11, 29, 30]);

/// Leaf 8000_0021 EAX, of the hypervisor's making on AMD: there is no SMM_CTL MSR, as there is no system management
/// mode.
const LEAF_E21_EAX_EMULATED: u32 = bits(&[9]);

/// LFENCE serialises, in leaf 8000_0021 EAX.
const LFENCE_SERIALIZES: u32 = bits(&[2]);

/// XCR0 bit of AVX.
const XCR0_AVX: u64 = 1 << 2;
/// XCR0 bits of AVX-512.
const XCR0_AVX512: u64 = 0xe0;

/// AVX, FMA, F16C in leaf 1 ECX.
const AVX_1_ECX: u32 = bits(&[12, 28, 29]);
/// AVX2 in leaf 7 EBX.
const AVX_7_EBX: u32 = bits(&[5]);
/// VAES, VPCLMULQDQ in leaf 7 ECX.
const AVX_7_ECX: u32 = bits(&[9, 10]);
/// SHA512, SM3, SM4, AVX_VNNI, AVX_IFMA in leaf 7 subleaf 1 EAX.
const AVX_7_1_EAX: u32 = bits(&[0, 1, 2, 4, 23]);
/// AVX_VNNI_INT8, AVX_NE_CONVERT, AVX_VNNI_INT16 in leaf 7 subleaf 1 EDX.
const AVX_7_1_EDX: u32 = bits(&[4, 5, 10]);
/// XOP, FMA4 in leaf 8000_0001 ECX.
const AVX_E1_ECX: u32 = bits(&[11, 16]);
/// Those with AVX512 in their name.
const AVX512_7_EBX: u32 = bits(&[16, 17, 21, 26, 27, 28, 30, 31]);
const AVX512_7_ECX: u32 = bits(&[1, 6, 11, 12, 14]);
const AVX512_7_EDX: u32 = bits(&[2, 3, 8, 23]);
const AVX512_7_1_EAX: u32 = bits(&[5]);

/// INVPCID in leaf 7 EBX.
const INVPCID: u32 = bits(&[10]);
/// RDPID in leaf 7 ECX.
pub(super) const RDPID: u32 = bits(&[22]);
/// RDTSCP in leaf 8000_0001 EDX.
const RDTSCP: u32 = bits(&[27]);

/// The feature words that this machine's guests can be offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Words {
    /// Leaf 1 ECX.
    pub(super) leaf_1_ecx: u32,
    /// Leaf 1 EDX.
    pub(super) leaf_1_edx: u32,
    /// Leaf 7 EBX.
    pub(super) leaf_7_ebx: u32,
    /// Leaf 7 ECX.
    pub(super) leaf_7_ecx: u32,
    /// Leaf 7 EDX.
    pub(super) leaf_7_edx: u32,
    /// Leaf 7 subleaf 1 EAX.
    pub(super) leaf_7_1_eax: u32,
    /// Leaf 7 subleaf 1 EDX.
    pub(super) leaf_7_1_edx: u32,
    /// Leaf 7 subleaf 2 EDX.
    pub(super) leaf_7_2_edx: u32,
    /// Leaf 0xD subleaf 1 EAX.
    pub(super) leaf_d_1_eax: u32,
    /// Leaf 8000_0001 ECX.
    pub(super) leaf_e1_ecx: u32,
    /// Leaf 8000_0001 EDX.
    pub(super) leaf_e1_edx: u32,
    /// Leaf 8000_0007 EDX.
    pub(super) leaf_e7_edx: u32,
    /// Leaf 8000_0008 EBX.
    pub(super) leaf_e8_ebx: u32,
    /// Leaf 8000_0021 EAX.
    pub(super) leaf_e21_eax: u32,
}

impl Words {
    /// What this CPU has and xvm virtualises.
    pub(super) fn of_machine(fpu: &FpuCapabilities, vendor: &Features) -> Self {
        let mut words = Self::of_cpu();
        if fpu.guest_xcr0 & XCR0_AVX == 0 {
            words.drop_avx();
        }
        if fpu.guest_xcr0 & XCR0_AVX512 != XCR0_AVX512 {
            words.drop_avx512();
        }
        if !is_found(vendor, "invpcid") {
            words.leaf_7_ebx &= !INVPCID;
        }
        if !is_found(vendor, "rdtscp") {
            words.leaf_7_ecx &= !RDPID;
            words.leaf_e1_edx &= !RDTSCP;
        }
        words
    }

    /// RDPID, in leaf 7 ECX, where there is MSR TSC_AUX for it to read.
    pub(super) fn emulated_rdpid(&self) -> u32 {
        match self.leaf_e1_edx & RDTSCP {
            0 => 0,
            _ => RDPID,
        }
    }

    fn of_cpu() -> Self {
        let (basic, extended) = (x86::cpuid(0, 0).eax, x86::cpuid(super::EXTENDED, 0).eax);
        // A leaf beyond the last one is answered with another's data.
        let leaf = |number, subleaf| {
            let last = if number >= super::EXTENDED {
                extended
            } else {
                basic
            };
            if number <= last {
                x86::cpuid(number, subleaf)
            } else {
                x86::Cpuid::default()
            }
        };
        let (one, seven) = (leaf(1, 0), leaf(7, 0));
        let seven_sub = |n| {
            if n <= seven.eax {
                leaf(7, n)
            } else {
                x86::Cpuid::default()
            }
        };
        let (e1, e8) = (leaf(0x8000_0001, 0), leaf(0x8000_0008, 0));
        Self {
            leaf_1_ecx: one.ecx & LEAF_1_ECX | LEAF_1_ECX_EMULATED,
            leaf_1_edx: one.edx & LEAF_1_EDX,
            leaf_7_ebx: seven.ebx & LEAF_7_EBX | LEAF_7_EBX_EMULATED,
            leaf_7_ecx: seven.ecx & LEAF_7_ECX,
            leaf_7_edx: seven.edx & LEAF_7_EDX,
            leaf_7_1_eax: seven_sub(1).eax & LEAF_7_1_EAX,
            leaf_7_1_edx: seven_sub(1).edx & LEAF_7_1_EDX,
            leaf_7_2_edx: seven_sub(2).edx & LEAF_7_2_EDX,
            leaf_d_1_eax: leaf(0xd, 1).eax & LEAF_D_1_EAX,
            leaf_e1_ecx: e1.ecx & LEAF_E1_ECX,
            leaf_e1_edx: e1.edx & LEAF_E1_EDX,
            leaf_e7_edx: leaf(0x8000_0007, 0).edx & LEAF_E7_EDX,
            leaf_e8_ebx: e8.ebx & LEAF_E8_EBX,
            leaf_e21_eax: leaf(0x8000_0021, 0).eax & LEAF_E21_EAX | emulated_e21_eax(),
        }
    }

    fn drop_avx(&mut self) {
        self.leaf_1_ecx &= !AVX_1_ECX;
        self.leaf_7_ebx &= !AVX_7_EBX;
        self.leaf_7_ecx &= !AVX_7_ECX;
        self.leaf_7_1_eax &= !AVX_7_1_EAX;
        self.leaf_7_1_edx &= !AVX_7_1_EDX;
        self.leaf_e1_ecx &= !AVX_E1_ECX;
    }

    fn drop_avx512(&mut self) {
        self.leaf_7_ebx &= !AVX512_7_EBX;
        self.leaf_7_ecx &= !AVX512_7_ECX;
        self.leaf_7_edx &= !AVX512_7_EDX;
        self.leaf_7_1_eax &= !AVX512_7_1_EAX;
    }
}

/// What is so on this machine, whether or not its CPU has leaf 8000_0021 to tell it.
fn emulated_e21_eax() -> u32 {
    let host = x86::cpuid(0, 0);
    if [host.ebx, host.edx, host.ecx] != super::AMD {
        return 0;
    }
    let serializes = x86::host_has(bindings::X86_FEATURE_LFENCE_RDTSC);
    LEAF_E21_EAX_EMULATED | if serializes { LFENCE_SERIALIZES } else { 0 }
}

/// Whether the vendor's extension can give this to guests: SVM has no controls for these instructions, and so no
/// names for them.
fn is_found(vendor: &Features, name: &str) -> bool {
    match vendor.names.iter().position(|known| *known == name) {
        Some(n) => vendor.found & (1 << n) != 0,
        None => true,
    }
}
