//! A virtual machine: its memory, its interrupt controllers, its vCPUs.

use std::sync::Arc;

use anyhow::{
    bail,
    Context,
    Result, //
};
use kvm_bindings::{
    kvm_lapic_state,
    kvm_msr_entry,
    kvm_pit_config,
    CpuId,
    Msrs,
    KVM_PIT_SPEAKER_DUMMY, //
};
use kvm_ioctls::{
    Cap,
    Kvm,
    VcpuFd,
    VmFd, //
};

use crate::cpuid;
use crate::memory::{
    self,
    GuestMemory, //
};

/// Three pages that KVM on Intel wants for its task state segment, and one for its identity map: in
/// the hole, below the BIOS.
const TSS_PAGES: usize = 0xfffb_d000;
const IDENTITY_MAP_PAGE: u64 = 0xfffb_c000;

/// LAPIC registers (SDM vol. 3, table 12-1) and delivery modes of their local vector tables.
const LAPIC_LVT_LINT0: usize = 0x350;
const LAPIC_LVT_LINT1: usize = 0x360;
const DELIVERY_NMI: u32 = 4 << 8;
const DELIVERY_EXTINT: u32 = 7 << 8;

/// IA32_MTRR_DEF_TYPE: enabled, write-back (SDM vol. 3, section 13.11.2.1).
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLED_WRITE_BACK: u64 = (1 << 11) | 6;

/// What a VM is made with.
pub struct Config {
    /// Bytes of memory.
    pub memory: u64,
    /// Number of vCPUs.
    pub cpus: u8,
    /// PICs, IOAPIC, LAPICs and PIT in the kernel.
    pub irqchip: bool,
}

/// A VM with its vCPUs in the state that `KVM_CREATE_VCPU` gives them. Fields are dropped in this
/// order.
pub struct Machine {
    pub vcpus: Vec<VcpuFd>,
    pub vm: Arc<VmFd>,
    pub memory: GuestMemory,
}

impl Machine {
    /// Makes the VM.
    pub fn new(kvm: &Kvm, config: &Config) -> Result<Self> {
        check_limits(kvm, config)?;
        let memory = memory::allocate(config.memory)?;
        let vm = Arc::new(kvm.create_vm().context("KVM_CREATE_VM")?);
        if config.irqchip {
            create_irqchip(&vm)?;
        }
        memory::register(&vm, &memory)?;
        let mut vcpus = Vec::new();
        let supported = if kvm.check_extension(Cap::ExtCpuid) {
            Some(cpuid::supported(kvm)?)
        } else {
            None
        };
        for id in 0..config.cpus {
            let vcpu = vm
                .create_vcpu(u64::from(id))
                .with_context(|| format!("KVM_CREATE_VCPU {id}"))?;
            if let Some(supported) = &supported {
                set_features(&vcpu, &cpuid::for_vcpu(kvm, supported, id, config.cpus)?)?;
            }
            if config.irqchip {
                connect_lapic(&vcpu)?;
            }
            vcpus.push(vcpu);
        }
        Ok(Self { vcpus, vm, memory })
    }
}

fn check_limits(kvm: &Kvm, config: &Config) -> Result<()> {
    if !kvm.check_extension(Cap::UserMemory) {
        bail!("the device lacks KVM_CAP_USER_MEMORY");
    }
    let most = kvm.get_max_vcpus();
    if usize::from(config.cpus) > most {
        bail!("the device takes at most {most} vCPUs: use a smaller --cpus");
    }
    Ok(())
}

fn create_irqchip(vm: &VmFd) -> Result<()> {
    if vm.check_extension(Cap::SetTssAddr) {
        vm.set_tss_address(TSS_PAGES).context("KVM_SET_TSS_ADDR")?;
    }
    if vm.check_extension(Cap::SetIdentityMapAddr) {
        vm.set_identity_map_address(IDENTITY_MAP_PAGE)
            .context("KVM_SET_IDENTITY_MAP_ADDR")?;
    }
    vm.create_irq_chip().context("KVM_CREATE_IRQCHIP")?;
    let pit = kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    };
    vm.create_pit2(pit).context("KVM_CREATE_PIT2")
}

fn set_features(vcpu: &VcpuFd, cpuid: &CpuId) -> Result<()> {
    vcpu.set_cpuid2(cpuid).context("KVM_SET_CPUID2")?;
    let leaf1 = cpuid.as_slice().iter().find(|entry| entry.function == 1);
    if leaf1.is_some_and(|leaf| leaf.edx & cpuid::LEAF1_EDX_MTRR != 0) {
        // Memory is write-back, as firmware would have set it.
        let entry = kvm_msr_entry {
            index: MSR_MTRR_DEF_TYPE,
            data: MTRR_ENABLED_WRITE_BACK,
            ..Default::default()
        };
        let msrs = Msrs::from_entries(&[entry]).ok().context("one MSR")?;
        if vcpu.set_msrs(&msrs).context("KVM_SET_MSRS")? != 1 {
            bail!("KVM_SET_MSRS: CPUID has MTRRs, but MSR {MSR_MTRR_DEF_TYPE:#x} is refused");
        }
    }
    Ok(())
}

/// Connects LINT0 to the 8259 and LINT1 to NMI, as firmware does.
fn connect_lapic(vcpu: &VcpuFd) -> Result<()> {
    let mut lapic = vcpu.get_lapic().context("KVM_GET_LAPIC")?;
    set_lapic_register(&mut lapic, LAPIC_LVT_LINT0, DELIVERY_EXTINT);
    set_lapic_register(&mut lapic, LAPIC_LVT_LINT1, DELIVERY_NMI);
    vcpu.set_lapic(&lapic).context("KVM_SET_LAPIC")
}

fn set_lapic_register(lapic: &mut kvm_lapic_state, offset: usize, value: u32) {
    for (register, byte) in lapic.regs[offset..].iter_mut().zip(value.to_le_bytes()) {
        *register = byte as _;
    }
}
