// SPDX-License-Identifier: GPL-2.0

//! A vCPU's CPUID: the entries that the VMM set, found quickly, and what in them follows the vCPU's state.

use super::features::Words;
use super::model::Model;
use super::AMD;
use super::EXTENDED;
use super::HYGON;
use super::HYPERVISOR;
use super::HYPERVISORS_END;
use super::INDEXED;
use super::KVM;
use crate::linux::x86::Cpuid;
use crate::uapi;
use crate::uapi::kvm_cpuid_entry2;
use crate::xvm::platform::lapic::Mode;
use crate::xvm::pv;
use crate::xvm::vcpu::Vcpu;
use crate::xvm::XvmOps;
use kernel::prelude::*;

/// Leaves of either range whose first entry is kept.
const KEPT: usize = 0x22;
/// No entry.
const NONE: u16 = u16::MAX;

/// Leaf 1 ECX: MONITOR and MWAIT.
const MONITOR: u32 = 1 << 3;
/// The same in IA32_MISC_ENABLE.
const MISC_ENABLE_MONITOR: u64 = 1 << 18;

/// The leaves that tell something of the vCPU's state.
const DYNAMIC: [u32; 2] = [1, 0xd];

/// Bytes of an XSAVE area's legacy region and header.
const XSAVE_MIN: u32 = 576;

/// State of the vCPU that CPUID tells.
#[derive(Clone, Copy, Debug)]
struct Dynamic {
    apic: bool,
    os_xsave: bool,
    xcr0: u64,
}

/// What a vCPU's CPUID answers.
pub(crate) struct GuestCpuid {
    entries: KVec<kvm_cpuid_entry2>,
    /// Place of the first entry of the first basic and extended leaves; `NONE` where there is none, and for those of [`DYNAMIC`].
    first: [[u16; KEPT]; 2],
    /// A leaf beyond the last one answers with zeros, not with the last basic leaf (APM vol 3, E.2; SDM vol 2, CPUID).
    zero_beyond: bool,
    model: Model,
    /// The paravirtual features that it names.
    pv: pv::Features,
    /// CR4.OSXSAVE, kept here since reading CR4 costs more than the rest of CPUID.
    pub(crate) os_xsave: bool,
    /// MONITOR and MWAIT, where they follow MISC_ENABLE and not what the VMM set.
    monitor: Option<bool>,
}

impl GuestCpuid {
    /// No CPUID at all, before the VMM sets one.
    pub(crate) fn new() -> Self {
        Self {
            entries: KVec::new(),
            first: [[NONE; KEPT]; 2],
            zero_beyond: true,
            model: Model::NONE,
            pv: pv::Features::default(),
            os_xsave: false,
            monitor: None,
        }
    }

    /// What the entries `entries`, at most 256, amount to on a machine that supports `words` and the extended states
    /// `xcr0`. `os_xsave` is the vCPU's CR4.OSXSAVE.
    pub(super) fn from_entries(
        entries: KVec<kvm_cpuid_entry2>,
        words: &Words,
        xcr0: u64,
        os_xsave: bool,
    ) -> Self {
        let mut first = [[NONE; KEPT]; 2];
        let fixed = |entry: &kvm_cpuid_entry2| !DYNAMIC.contains(&entry.function);
        let places = entries.iter().enumerate().rev();
        for (place, entry) in places.filter(|(_, entry)| fixed(entry)) {
            if let Some(slot) =
                slot(entry.function).and_then(|(range, leaf)| first[range].get_mut(leaf))
            {
                *slot = place as u16;
            }
        }
        let mut this = Self {
            entries,
            first,
            zero_beyond: true,
            model: Model::NONE,
            pv: pv::Features::default(),
            os_xsave,
            monitor: None,
        };
        if let Some(name) = this.exact(0, 0) {
            let name = [name.ebx, name.edx, name.ecx];
            this.zero_beyond = name == AMD || name == HYGON;
        }
        this.model = Model::new(&this, words, xcr0);
        this.pv = this.find_pv_features();
        this
    }

    /// What the vCPU has by it.
    #[inline]
    pub(crate) fn model(&self) -> &Model {
        &self.model
    }

    /// The paravirtual features that it names.
    pub(crate) fn pv_features(&self) -> pv::Features {
        self.pv
    }

    /// KVM's leaves are at one of the hundreds from 0x4000_0000 on: a VMM may have those of another hypervisor first. The one with
    /// the features.
    fn pv_leaf(&self) -> Option<u32> {
        let name = |base: &u32| {
            self.exact(*base, 0)
                .is_some_and(|leaf| [leaf.ebx, leaf.ecx, leaf.edx] == KVM)
        };
        let base = (HYPERVISOR..HYPERVISORS_END).step_by(0x100).find(name);
        base.map(|base| base + 1)
    }

    fn find_pv_features(&self) -> pv::Features {
        let leaf = self.pv_leaf().and_then(|leaf| self.exact(leaf, 0));
        pv::Features(leaf.map_or(0, |leaf| leaf.eax))
    }

    /// Takes a paravirtual feature away, if it is KVM's name that it is under.
    pub(super) fn hide_pv_feature(&mut self, feature: pv::Features) {
        let Some(leaf) = self.pv_leaf() else { return };
        for entry in self.entries.iter_mut().filter(|one| one.function == leaf) {
            entry.eax &= !feature.0;
        }
        self.pv = self.find_pv_features();
    }

    /// Whether it is that of an AMD CPU or one like it.
    pub(crate) fn is_amd(&self) -> bool {
        self.zero_beyond && !self.entries.is_empty()
    }

    /// The entries as the VMM set them.
    pub(super) fn entries(&self) -> &[kvm_cpuid_entry2] {
        &self.entries
    }

    /// The entry for a leaf, if its place is kept.
    #[inline]
    fn kept(&self, leaf: u32, subleaf: u32) -> Option<&kvm_cpuid_entry2> {
        let [basic, extended] = &self.first;
        let kept = match leaf & EXTENDED {
            0 => basic,
            _ => extended,
        };
        let start = kept.get((leaf & !EXTENDED) as usize)?;
        find(self.entries.get(usize::from(*start)..)?, leaf, subleaf)
    }

    /// The entry for a leaf.
    fn find(&self, leaf: u32, subleaf: u32) -> Option<&kvm_cpuid_entry2> {
        find(&self.entries, leaf, subleaf)
    }

    /// The answer that the VMM set for a leaf.
    pub(super) fn exact(&self, leaf: u32, subleaf: u32) -> Option<Cpuid> {
        self.find(leaf, subleaf).map(value)
    }

    /// The leaf whose data answers for one that isn't there; `None` for zeros.
    fn substitute(&self, leaf: u32) -> Option<u32> {
        if self.zero_beyond {
            return None;
        }
        let range = match leaf {
            HYPERVISOR..=0x4fff_ffff => leaf & 0xffff_ff00,
            _ => leaf & EXTENDED,
        };
        match self.exact(range, 0) {
            Some(range) if leaf <= range.eax => None,
            _ => self.exact(0, 0).map(|basic| basic.eax),
        }
    }

    #[inline]
    fn answer(&self, leaf: u32, subleaf: u32, state: impl Fn() -> Dynamic) -> Cpuid {
        match self.kept(leaf, subleaf) {
            Some(entry) => value(entry),
            None => self.answer_rarely(leaf, subleaf, state()),
        }
    }

    /// The answer for what has no entry, or none whose place is kept.
    #[inline(never)]
    fn answer_rarely(&self, leaf: u32, subleaf: u32, state: Dynamic) -> Cpuid {
        if let Some(entry) = self.find(leaf, subleaf) {
            return self.adjust(entry, state);
        }
        if let Some(entry) = self
            .substitute(leaf)
            .and_then(|leaf| self.find(leaf, subleaf))
        {
            return self.adjust(entry, state);
        }
        let mut answer = Cpuid::default();
        if matches!(leaf, 0xb | 0x1f) {
            // A level that isn't there still tells its number and the CPU's x2APIC ID (SDM vol 2, CPUID).
            if let Some(level) = self.find(leaf, 1) {
                answer.ecx = subleaf & 0xff;
                answer.edx = level.edx;
            }
        }
        answer
    }

    /// Puts in what follows the vCPU's state, in the leaves of [`DYNAMIC`].
    #[inline(never)]
    fn adjust(&self, entry: &kvm_cpuid_entry2, state: Dynamic) -> Cpuid {
        const APIC: u32 = 1 << 9;
        const OS_XSAVE: u32 = 1 << 27;
        const XSAVEC: u32 = 1 << 1;
        let mut answer = value(entry);
        match (entry.function, entry.index) {
            (1, _) => {
                answer.edx = answer.edx & !APIC | if state.apic { APIC } else { 0 };
                answer.ecx = answer.ecx & !OS_XSAVE | if state.os_xsave { OS_XSAVE } else { 0 };
                match self.monitor {
                    None => {}
                    Some(true) => answer.ecx |= MONITOR,
                    Some(false) => answer.ecx &= !MONITOR,
                }
            }
            (0xd, 0) => answer.ebx = self.xsave_size(state.xcr0, false),
            (0xd, 1) if answer.eax & XSAVEC != 0 => answer.ebx = self.xsave_size(state.xcr0, true),
            _ => {}
        }
        answer
    }

    /// Bytes of an XSAVE area with the states of `xcr0` (SDM vol 1, 13.4.3), by the vCPU's own subleaves.
    fn xsave_size(&self, xcr0: u64, compacted: bool) -> u32 {
        const ALIGNED: u32 = 1 << 1;
        let mut size = XSAVE_MIN;
        for index in (2..63).filter(|index| xcr0 & (1 << index) != 0) {
            let Some(state) = self.exact(0xd, index) else {
                continue;
            };
            let start = match compacted {
                true if state.ecx & ALIGNED != 0 => size.saturating_add(63) & !63,
                true => size,
                false => state.ebx,
            };
            size = size.max(start.saturating_add(state.eax));
        }
        size
    }
}

/// Where the first entry of `leaf` is kept.
fn slot(leaf: u32) -> Option<(usize, usize)> {
    let (range, leaf) = ((leaf >> 31) as usize, (leaf & !EXTENDED) as usize);
    (leaf < KEPT).then_some((range, leaf))
}

#[inline]
fn find(entries: &[kvm_cpuid_entry2], leaf: u32, subleaf: u32) -> Option<&kvm_cpuid_entry2> {
    entries.iter().find(|entry| {
        entry.function == leaf && (entry.flags & INDEXED == 0 || entry.index == subleaf)
    })
}

fn value(entry: &kvm_cpuid_entry2) -> Cpuid {
    Cpuid {
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
    }
}

impl<V: XvmOps> Vcpu<V> {
    fn dynamic_cpuid(&self) -> Dynamic {
        Dynamic {
            apic: match &self.lapic {
                Some(lapic) => lapic.mode() != Mode::Disabled,
                None => self.msrs.apic_enabled(),
            },
            os_xsave: self.cpuid.os_xsave,
            xcr0: self.fpu.xcr0(),
        }
    }

    /// After a change of IA32_MISC_ENABLE, or of the entries: MONITOR follows the register, if the VMM wants that
    /// (`KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT` disabled).
    pub(crate) fn update_monitor(&mut self) {
        let quirk = uapi::KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT;
        let enabled = self.msrs.misc_enable() & MISC_ENABLE_MONITOR != 0;
        let follows = self.vm.switches.without_quirk(quirk);
        self.cpuid.monitor = follows.then_some(enabled);
    }

    /// Whether MONITOR and MWAIT are no invalid opcodes.
    pub(crate) fn may_monitor(&self) -> bool {
        let quirk = uapi::KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS;
        !self.vm.switches.without_quirk(quirk) || self.cpuid_lookup(1, 0).ecx & MONITOR != 0
    }

    /// What CPUID answers. Also inside the window.
    #[inline]
    pub(crate) fn cpuid_lookup(&self, leaf: u32, subleaf: u32) -> Cpuid {
        self.cpuid.answer(leaf, subleaf, || self.dynamic_cpuid())
    }

    /// An entry with what follows the vCPU's state put in.
    pub(super) fn current_entry(&self, entry: &kvm_cpuid_entry2) -> kvm_cpuid_entry2 {
        let answer = self.cpuid.adjust(entry, self.dynamic_cpuid());
        kvm_cpuid_entry2 {
            eax: answer.eax,
            ebx: answer.ebx,
            ecx: answer.ecx,
            edx: answer.edx,
            ..*entry
        }
    }
}
