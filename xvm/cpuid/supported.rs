// SPDX-License-Identifier: GPL-2.0

//! The leaves that guests can be offered: the CPU's own, through the allow-lists, and those of the hypervisor's
//! making. What tells one CPU of the virtual machine from another (APIC IDs, topology) is left zero: only the VMM
//! knows it.

use super::features::Words;
use super::EXTENDED;
use super::HYPERVISOR;
use super::INDEXED;
use super::INTEL;
use super::KVM;
use crate::linux::x86;
use crate::linux::x86::Cpuid;
use crate::uapi::kvm_cpuid_entry2;
use crate::xvm::machine::Machine;
use crate::xvm::pv;
use crate::xvm::XvmOps;
use kernel::prelude::*;

/// Frequency of the local APIC's timer before its divider, in Hz, which leaf 0x15 tells as that of the core crystal
/// clock (SDM vol 3, 12.5.4).
const APIC_TIMER_HZ: u32 = 1_000_000_000;

/// The last basic leaf that is offered: leaves of later numbers have features that no list names.
const BASIC_MAX: u32 = 0x1f;
/// The last extended leaf that is offered.
const EXTENDED_MAX: u32 = 0x8000_0021;

/// Subleaves of leaf 4 are counted by the CPU; no CPU has as many as these.
const CACHES_MAX: u32 = 16;

/// The entries, as they are made.
struct Leaves<'a, V: XvmOps> {
    machine: &'a Machine<V>,
    words: Words,
    entries: KVec<kvm_cpuid_entry2>,
}

/// All leaves that guests on `machine` can be offered.
///
/// # Errors
///
/// `ENOMEM`.
pub(super) fn supported<V: XvmOps>(machine: &Machine<V>) -> Result<KVec<kvm_cpuid_entry2>> {
    let mut leaves = Leaves {
        machine,
        words: Words::of_machine(&machine.fpu, &machine.caps.features),
        entries: KVec::with_capacity(40, GFP_KERNEL_ACCOUNT)?,
    };
    leaves.basic()?;
    leaves.hypervisor()?;
    leaves.extended()?;
    Ok(leaves.entries)
}

impl<V: XvmOps> Leaves<'_, V> {
    fn push(&mut self, function: u32, index: Option<u32>, value: Cpuid) -> Result {
        let entry = kvm_cpuid_entry2 {
            function,
            index: index.unwrap_or(0),
            flags: if index.is_some() { INDEXED } else { 0 },
            eax: value.eax,
            ebx: value.ebx,
            ecx: value.ecx,
            edx: value.edx,
            padding: [0; 3],
        };
        Ok(self.entries.push(entry, GFP_KERNEL_ACCOUNT)?)
    }

    fn basic(&mut self) -> Result {
        let host = x86::cpuid(0, 0);
        let intel = [host.ebx, host.edx, host.ecx] == INTEL;
        let last = host.eax.min(BASIC_MAX);
        let last = if intel { last.max(0x15) } else { last };
        self.push(0, None, Cpuid { eax: last, ..host })?;
        self.leaf_1()?;
        if intel {
            self.push(2, None, x86::cpuid(2, 0))?;
            self.caches(host.eax)?;
        }
        // ARAT: the local APIC's timer runs in every power state.
        let power = Cpuid {
            eax: 1 << 2,
            ..Cpuid::default()
        };
        self.push(6, None, power)?;
        self.leaf_7()?;
        // Zero means no topology here; VMMs that have one fill it in.
        self.push(0xb, Some(0), Cpuid::default())?;
        self.leaf_d()?;
        if intel {
            self.leaf_15()?;
        }
        Ok(())
    }

    /// Versions and features.
    fn leaf_1(&mut self) -> Result {
        let host = x86::cpuid(1, 0);
        let leaf = Cpuid {
            eax: host.eax,
            // The size of CLFLUSH's line alone: APIC ID and number of logical processors are the VMM's.
            ebx: host.ebx & 0xff00,
            ecx: self.words.leaf_1_ecx,
            edx: self.words.leaf_1_edx,
        };
        self.push(1, None, leaf)
    }

    /// Leaf 4, caches: those of the CPU, shared with nobody.
    fn caches(&mut self, last: u32) -> Result {
        if last < 4 {
            return Ok(());
        }
        for index in 0..CACHES_MAX {
            let mut cache = x86::cpuid(4, index);
            let end = cache.eax & 0x1f == 0;
            // Numbers of IDs that share the cache, and of cores in the package, less one.
            cache.eax &= 0x3fff;
            self.push(4, Some(index), cache)?;
            if end {
                break;
            }
        }
        Ok(())
    }

    /// Structured extended features.
    fn leaf_7(&mut self) -> Result {
        let words = self.words;
        let sub_1 = words.leaf_7_1_eax | words.leaf_7_1_edx != 0;
        let last = match (sub_1, words.leaf_7_2_edx) {
            (_, 1..) => 2,
            (true, 0) => 1,
            (false, 0) => 0,
        };
        let leaf = Cpuid {
            eax: last,
            ebx: words.leaf_7_ebx,
            ecx: words.leaf_7_ecx,
            edx: words.leaf_7_edx,
        };
        self.push(7, Some(0), leaf)?;
        if last >= 1 {
            let leaf = Cpuid {
                eax: words.leaf_7_1_eax,
                edx: words.leaf_7_1_edx,
                ..Cpuid::default()
            };
            self.push(7, Some(1), leaf)?;
        }
        if last >= 2 {
            let leaf = Cpuid {
                edx: words.leaf_7_2_edx,
                ..Cpuid::default()
            };
            self.push(7, Some(2), leaf)?;
        }
        Ok(())
    }

    /// Extended states. EBX of the first two subleaves follows XCR0, and is filled in when the guest asks.
    fn leaf_d(&mut self) -> Result {
        let xcr0 = self.machine.fpu.guest_xcr0;
        let all = Cpuid {
            eax: xcr0 as u32,
            // XCR0 has its value after reset: x87 and the header alone.
            ebx: 576,
            ecx: self.machine.fpu.size as u32,
            edx: (xcr0 >> 32) as u32,
        };
        self.push(0xd, Some(0), all)?;
        let instructions = Cpuid {
            eax: self.words.leaf_d_1_eax,
            ..Cpuid::default()
        };
        self.push(0xd, Some(1), instructions)?;
        for state in (2..63).filter(|state| xcr0 & (1 << state) != 0) {
            let mut leaf = x86::cpuid(0xd, state);
            // Bit 0 would say that it is a supervisor state, which none is; bit 1 says that it is aligned when
            // compacted.
            leaf.ecx &= 0b10;
            leaf.edx = 0;
            self.push(0xd, Some(state), leaf)?;
        }
        Ok(())
    }

    /// Frequencies: TSC = crystal × EBX / EAX. Guests need no other clock to know both that of the TSC and of the
    /// local APIC's timer.
    fn leaf_15(&mut self) -> Result {
        let leaf = Cpuid {
            eax: APIC_TIMER_HZ / 1000,
            ebx: x86::tsc_khz(),
            ecx: APIC_TIMER_HZ,
            edx: 0,
        };
        self.push(0x15, None, leaf)
    }

    fn hypervisor(&mut self) -> Result {
        let [ebx, ecx, edx] = KVM;
        let name = Cpuid {
            eax: HYPERVISOR + 1,
            ebx,
            ecx,
            edx,
        };
        self.push(HYPERVISOR, None, name)?;
        let features = Cpuid {
            eax: pv::SUPPORTED.0,
            ..Cpuid::default()
        };
        self.push(HYPERVISOR + 1, None, features)
    }

    fn extended(&mut self) -> Result {
        let host = x86::cpuid(EXTENDED, 0);
        let first = match self.words.leaf_e21_eax {
            0 => 0x8000_0008,
            _ => EXTENDED_MAX,
        };
        let last = host.eax.clamp(first, EXTENDED_MAX);
        self.push(EXTENDED, None, Cpuid { eax: last, ..host })?;
        let features = Cpuid {
            eax: x86::cpuid(0x8000_0001, 0).eax,
            // Package type, of AMD.
            ebx: x86::cpuid(0x8000_0001, 0).ebx & 0xf000_0000,
            ecx: self.words.leaf_e1_ecx,
            edx: self.words.leaf_e1_edx,
        };
        self.push(0x8000_0001, None, features)?;
        // The brand's name; caches and TLBs.
        for leaf in 0x8000_0002..=0x8000_0006 {
            self.push(leaf, None, x86::cpuid(leaf, 0))?;
        }
        let power = Cpuid {
            edx: self.words.leaf_e7_edx,
            ..Cpuid::default()
        };
        self.push(0x8000_0007, None, power)?;
        let sizes = Cpuid {
            // Linear addresses have 48 bits: no LA57.
            eax: 48 << 8 | u32::from(self.machine.maxphyaddr()),
            ebx: self.words.leaf_e8_ebx,
            ..Cpuid::default()
        };
        self.push(0x8000_0008, None, sizes)?;
        if host.eax >= 0x8000_001a {
            // TLBs of 1 GiB pages; widths of execution units.
            self.push(0x8000_0019, None, x86::cpuid(0x8000_0019, 0))?;
            self.push(0x8000_001a, None, x86::cpuid(0x8000_001a, 0))?;
        }
        if last >= 0x8000_0021 {
            let more = Cpuid {
                eax: self.words.leaf_e21_eax,
                ..Cpuid::default()
            };
            self.push(0x8000_0021, None, more)?;
        }
        Ok(())
    }
}
