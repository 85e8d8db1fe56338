// SPDX-License-Identifier: GPL-2.0

//! Instructions that the emulator carries out for guests whose CPUID has them, where the CPU hasn't: they raise #UD there
//! (`KVM_GET_EMULATED_CPUID`; api.rst, 4.88).

use super::features;
use super::features::Words;
use super::INDEXED;
use crate::uapi::kvm_cpuid_entry2;
use crate::xvm::emulate::Op;
use crate::xvm::machine::Machine;
use crate::xvm::vcpu::Vcpu;
use crate::xvm::XvmOps;

/// MOVBE in leaf 1 ECX.
const MOVBE: u32 = 1 << 22;

/// What a VMM may put into its guests' CPUID for such instructions' sake.
pub(super) fn emulated<V: XvmOps>(machine: &Machine<V>) -> [kvm_cpuid_entry2; 3] {
    let words = Words::of_machine(&machine.fpu, &machine.caps.features);
    [
        kvm_cpuid_entry2 {
            eax: 7,
            ..kvm_cpuid_entry2::default()
        },
        kvm_cpuid_entry2 {
            function: 1,
            ecx: MOVBE,
            ..kvm_cpuid_entry2::default()
        },
        kvm_cpuid_entry2 {
            function: 7,
            flags: INDEXED,
            ecx: words.emulated_rdpid(),
            ..kvm_cpuid_entry2::default()
        },
    ]
}

impl<V: XvmOps> Vcpu<V> {
    /// Whether an instruction that raised #UD is carried out by the emulator.
    pub(crate) fn emulates(&self, op: Op) -> bool {
        match op {
            Op::Movbe => self.cpuid_lookup(1, 0).ecx & MOVBE != 0,
            Op::Rdpid => {
                self.cpuid_lookup(7, 0).ecx & features::RDPID != 0 && self.cpuid.model().tsc_aux
            }
            _ => false,
        }
    }
}
