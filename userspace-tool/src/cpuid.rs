//! The CPUID that a vCPU gets: what the device supports, with the fields that say which CPU of how
//! many this is.

use anyhow::{
    Context,
    Result, //
};
use kvm_bindings::{
    kvm_cpuid_entry2,
    CpuId,
    KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
    KVM_MAX_CPUID_ENTRIES, //
};
use kvm_ioctls::{
    Cap,
    Kvm, //
};

/// Leaf 1 EDX: memory type range registers.
pub const LEAF1_EDX_MTRR: u32 = 1 << 12;

const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
const LEAF1_EDX_HTT: u32 = 1 << 28;

/// Level types of leaves 0xb and 0x1f (SDM vol. 2, CPUID).
const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// What the device can give to a guest (api.rst, section 4.46).
pub fn supported(kvm: &Kvm) -> Result<CpuId> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .context("KVM_GET_SUPPORTED_CPUID")
}

/// The vendor's name in leaf 0, twelve characters; empty if there is no such leaf.
pub fn vendor_name(cpuid: &CpuId) -> String {
    let leaf = cpuid.as_slice().iter().find(|entry| entry.function == 0);
    let registers = leaf.map(|leaf| [leaf.ebx, leaf.edx, leaf.ecx]);
    registers
        .iter()
        .flatten()
        .flat_map(|register| register.to_le_bytes())
        .map(char::from)
        .collect()
}

/// The CPUID of vCPU `id` of `cpus`, which are the cores of one package with a thread each.
pub fn for_vcpu(kvm: &Kvm, supported: &CpuId, id: u8, cpus: u8) -> Result<CpuId> {
    let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        .filter(|entry| !is_topology(entry.function))
        .copied()
        .collect();
    if supported
        .as_slice()
        .iter()
        .any(|entry| entry.function == 0xb)
    {
        entries.extend(topology(0xb, id, cpus));
    }
    for entry in &mut entries {
        set_identity(entry, id, cpus, tsc_deadline);
    }
    CpuId::from_entries(&entries)
        .ok()
        .context("the device supports more CPUID leaves than KVM_SET_CPUID2 takes")
}

/// The leaves that are made anew: what the device says of them describes the host, if anything.
fn is_topology(function: u32) -> bool {
    matches!(function, 0xb | 0x1f)
}

/// Number of bits of the APIC ID that tell the CPUs of the package apart.
fn id_bits(cpus: u8) -> u32 {
    u32::from(cpus).next_power_of_two().trailing_zeros()
}

/// Leaf 0xb or 0x1f: a level of threads (one each), a level of cores, and the end.
fn topology(function: u32, id: u8, cpus: u8) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, shift: u32, processors: u32, kind: u32| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: index | (kind << 8),
        edx: u32::from(id),
        ..Default::default()
    };
    [
        level(0, 0, 1, LEVEL_SMT),
        level(1, id_bits(cpus), u32::from(cpus), LEVEL_CORE),
        level(2, 0, 0, 0),
    ]
}

fn set_field(register: &mut u32, shift: u32, bits: u32, value: u32) {
    let mask = ((1 << bits) - 1) << shift;
    *register = *register & !mask | (value << shift) & mask;
}

fn set_identity(entry: &mut kvm_cpuid_entry2, id: u8, cpus: u8, tsc_deadline: bool) {
    let (id, cpus_in_package) = (u32::from(id), u32::from(cpus));
    match entry.function {
        0x1 => {
            set_field(&mut entry.ebx, 24, 8, id);
            set_field(&mut entry.ebx, 16, 8, cpus_in_package);
            set_field(
                &mut entry.edx,
                LEAF1_EDX_HTT.trailing_zeros(),
                1,
                u32::from(cpus > 1),
            );
            entry.ecx |= LEAF1_ECX_HYPERVISOR;
            // Emulated by the interrupt controller in the kernel, so that the supported leaves do
            // not have it.
            if tsc_deadline {
                entry.ecx |= LEAF1_ECX_TSC_DEADLINE;
            }
        }
        // Intel's cache leaf: cores in the package less one, and CPUs that share the cache less
        // one. The caches of levels 1 and 2 belong to a core, that of level 3 to the package.
        0x4 if entry.eax & 0x1f != 0 => {
            let level = (entry.eax >> 5) & 7;
            let span = (1 << id_bits(cpus)) - 1;
            set_field(&mut entry.eax, 26, 6, span);
            set_field(&mut entry.eax, 14, 12, if level >= 3 { span } else { 0 });
        }
        // AMD's core count less one, and how many bits of the APIC ID it takes.
        0x8000_0008 => {
            set_field(&mut entry.ecx, 0, 8, cpus_in_package - 1);
            set_field(&mut entry.ecx, 12, 4, id_bits(cpus));
        }
        // AMD's APIC ID, compute unit (one thread each) and node.
        0x8000_001e => {
            entry.eax = id;
            entry.ebx = id & 0xff;
            entry.ecx = 0;
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vendor_s_name_is_in_three_registers() -> Result<()> {
        let leaf = kvm_cpuid_entry2 {
            ebx: 0x6874_7541,
            edx: 0x6974_6e65,
            ecx: 0x444d_4163,
            ..Default::default()
        };
        let cpuid = CpuId::from_entries(&[leaf]).ok().context("one entry")?;
        assert_eq!(vendor_name(&cpuid), "AuthenticAMD");
        Ok(())
    }

    #[test]
    fn a_cpu_knows_its_number() {
        let mut leaf = kvm_cpuid_entry2 {
            function: 1,
            ebx: 0xff12_0845,
            ..Default::default()
        };
        set_identity(&mut leaf, 3, 4, true);
        assert_eq!(leaf.ebx, 0x0304_0845);
        assert_eq!(leaf.ecx, LEAF1_ECX_TSC_DEADLINE | LEAF1_ECX_HYPERVISOR);
        assert_eq!(leaf.edx, LEAF1_EDX_HTT);
    }

    #[test]
    fn one_cpu_is_no_multiprocessor() {
        let mut leaf = kvm_cpuid_entry2 {
            function: 1,
            edx: u32::MAX,
            ..Default::default()
        };
        set_identity(&mut leaf, 0, 1, false);
        assert_eq!(leaf.edx, !LEAF1_EDX_HTT);
        assert_eq!(leaf.ecx & LEAF1_ECX_TSC_DEADLINE, 0);
    }

    #[test]
    fn topology_levels_end() {
        let levels = topology(0xb, 2, 3);
        assert_eq!((levels[1].eax, levels[1].ebx, levels[1].ecx), (2, 3, 0x201));
        assert_eq!((levels[2].ebx, levels[2].ecx), (0, 2));
        assert!(levels.iter().all(|level| level.edx == 2));
    }

    #[test]
    fn shared_caches_span_the_package_and_others_do_not() {
        for (level, shared) in [(1, 0), (3, 3)] {
            let mut leaf = kvm_cpuid_entry2 {
                function: 4,
                eax: (u32::MAX << 8) | (level << 5) | 1,
                ..Default::default()
            };
            set_identity(&mut leaf, 0, 3, false);
            assert_eq!(((leaf.eax >> 14) & 0xfff, leaf.eax >> 26), (shared, 3));
        }
    }
}
