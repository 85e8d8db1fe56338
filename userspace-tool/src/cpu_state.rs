//! The state in which a vCPU starts: real, protected or long mode.

use anyhow::{
    Context,
    Result, //
};
use kvm_bindings::{
    kvm_regs,
    kvm_segment,
    kvm_sregs, //
};
use kvm_ioctls::VcpuFd;
use vm_memory::{
    Bytes,
    GuestAddress, //
};

use crate::memory::GuestMemory;

// Guest physical addresses of what long mode needs. Below the EBDA, above everything that the boot
// protocol places.
const PML4: u64 = 0x9_0000;
const PDPT: u64 = 0x9_1000;
const PAGE_DIRECTORIES: u64 = 0x9_2000;
const GDT: u64 = 0x9_6000;

// Page-table entry bits (SDM vol. 3, section 5.5; APM vol. 2, section 5.4).
const PTE_PRESENT: u64 = 1 << 0;
const PTE_WRITABLE: u64 = 1 << 1;
const PTE_LARGE: u64 = 1 << 7;

// Control register and EFER bits (SDM vol. 3, section 2.5; APM vol. 2, section 3.1).
const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// RFLAGS bit 1 always reads as 1.
const RFLAGS_RESERVED: u64 = 1 << 1;

// Selectors that the 64-bit boot protocol asks for (Documentation/arch/x86/boot.rst, "64-bit Boot
// Protocol").
/// The 64-bit code segment.
pub const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
const BOOT_TSS: u16 = 0x20;

// Segment types (SDM vol. 3, section 3.4.5.1).
const TYPE_DATA: u8 = 0x3;
const TYPE_CODE: u8 = 0xb;
const TYPE_BUSY_TSS: u8 = 0xb;

/// A flat segment of 4 GiB.
fn flat_segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        selector,
        type_,
        base: 0,
        limit: 0xffff_ffff,
        present: 1,
        s: 1,
        g: 1,
        db: 1,
        ..Default::default()
    }
}

/// The same, for 64-bit code (SDM vol. 3, section 5.2.1: L is set, D is clear).
fn long_code_segment() -> kvm_segment {
    kvm_segment {
        l: 1,
        db: 0,
        ..flat_segment(BOOT_CS, TYPE_CODE)
    }
}

/// The task register: a busy TSS must be there even though nothing switches tasks.
fn task_register() -> kvm_segment {
    kvm_segment {
        selector: BOOT_TSS,
        type_: TYPE_BUSY_TSS,
        limit: 0x67,
        present: 1,
        ..Default::default()
    }
}

/// The descriptor that loads as `segment` (SDM vol. 3, figure 3-8).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 {
        segment.limit >> 12
    } else {
        segment.limit
    });
    let access = u64::from(segment.type_)
        | (u64::from(segment.s) << 4)
        | (u64::from(segment.dpl) << 5)
        | (u64::from(segment.present) << 7);
    let flags =
        (u64::from(segment.l) << 1) | (u64::from(segment.db) << 2) | (u64::from(segment.g) << 3);
    (limit & 0xffff)
        | ((segment.base & 0xff_ffff) << 16)
        | (access << 40)
        | (((limit >> 16) & 0xf) << 48)
        | (flags << 52)
        | (((segment.base >> 24) & 0xff) << 56)
}

/// Writes tables that map the lowest 4 GiB to themselves with 2 MiB pages.
fn write_identity_map(memory: &GuestMemory) -> Result<()> {
    const TABLE: u64 = PTE_PRESENT | PTE_WRITABLE;
    memory.write_obj(PDPT | TABLE, GuestAddress(PML4))?;
    for gib in 0..4 {
        memory.write_obj(
            (PAGE_DIRECTORIES + gib * 4096) | TABLE,
            GuestAddress(PDPT + gib * 8),
        )?;
    }
    for page in 0..4 * 512 {
        memory.write_obj(
            (page << 21) | TABLE | PTE_LARGE,
            GuestAddress(PAGE_DIRECTORIES + page * 8),
        )?;
    }
    Ok(())
}

fn write_gdt(memory: &GuestMemory, sregs: &mut kvm_sregs) -> Result<()> {
    let task = descriptor(&sregs.tr);
    // A 64-bit TSS descriptor takes two entries; the upper half holds base bits 63:32, which are 0.
    let table = [0, 0, descriptor(&sregs.cs), descriptor(&sregs.ds), task, 0];
    for (index, entry) in (0..).zip(table) {
        memory.write_obj(entry, GuestAddress(GDT + 8 * index))?;
    }
    sregs.gdt.base = GDT;
    sregs.gdt.limit = 8 * table.len() as u16 - 1;
    Ok(())
}

fn set_segments(sregs: &mut kvm_sregs, code: kvm_segment) {
    let data = flat_segment(BOOT_DS, TYPE_DATA);
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = task_register();
}

fn write_back(vcpu: &VcpuFd, sregs: &kvm_sregs, regs: &kvm_regs) -> Result<()> {
    vcpu.set_sregs(sregs).context("KVM_SET_SREGS")?;
    vcpu.set_regs(regs).context("KVM_SET_REGS")
}

/// 64-bit mode at `regs.rip`, interrupts off, the lowest 4 GiB mapped to themselves.
pub fn set_long(vcpu: &VcpuFd, memory: &GuestMemory, regs: kvm_regs) -> Result<()> {
    let mut sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
    set_segments(&mut sregs, long_code_segment());
    write_identity_map(memory).context("guest memory is too small for 64-bit mode")?;
    write_gdt(memory, &mut sregs).context("guest memory is too small for 64-bit mode")?;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.cr3 = PML4;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
    write_back(
        vcpu,
        &sregs,
        &kvm_regs {
            rflags: RFLAGS_RESERVED,
            ..regs
        },
    )
}

/// 32-bit protected mode at `regs.rip`, interrupts and paging off.
pub fn set_protected(vcpu: &VcpuFd, memory: &GuestMemory, regs: kvm_regs) -> Result<()> {
    let mut sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
    set_segments(&mut sregs, flat_segment(BOOT_CS, TYPE_CODE));
    write_gdt(memory, &mut sregs).context("guest memory is too small for protected mode")?;
    sregs.cr0 = CR0_PE | CR0_ET;
    write_back(
        vcpu,
        &sregs,
        &kvm_regs {
            rflags: RFLAGS_RESERVED,
            ..regs
        },
    )
}

/// Real mode at the physical address `entry`, below 1 MiB, with SS 0 and SP `stack`.
pub fn set_real(vcpu: &VcpuFd, entry: u64, stack: u16) -> Result<()> {
    let mut sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
    let block = entry & 0xf_0000;
    sregs.cs.base = block;
    sregs.cs.selector = (block >> 4) as u16;
    for segment in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        segment.base = 0;
        segment.selector = 0;
    }
    let regs = kvm_regs {
        rip: entry & 0xffff,
        rsp: u64::from(stack),
        rflags: RFLAGS_RESERVED,
        ..Default::default() //
    };
    write_back(vcpu, &sregs, &regs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_of_the_manual() {
        assert_eq!(descriptor(&long_code_segment()), 0x00af_9b00_0000_ffff);
        assert_eq!(
            descriptor(&flat_segment(BOOT_CS, TYPE_CODE)),
            0x00cf_9b00_0000_ffff
        );
        assert_eq!(
            descriptor(&flat_segment(BOOT_DS, TYPE_DATA)),
            0x00cf_9300_0000_ffff
        );
        assert_eq!(descriptor(&task_register()), 0x0000_8b00_0000_0067);
    }

    #[test]
    fn the_identity_map_maps_each_address_to_itself() -> Result<()> {
        let memory = crate::memory::allocate(2 << 20)?;
        write_identity_map(&memory)?;
        for address in [0, 0x7c00, 0x20_0000, 0xfee0_0000_u64, 0xffff_ffff] {
            let entry = |table: u64, shift: u64| -> Result<u64> {
                let entry: u64 =
                    memory.read_obj(GuestAddress(table + 8 * ((address >> shift) & 511)))?;
                assert_eq!(entry & TABLE_BITS, TABLE_BITS);
                Ok(entry & !0xfff)
            };
            let page = entry(entry(entry(PML4, 39)?, 30)?, 21)?;
            assert_eq!(page | (address & 0x1f_ffff), address);
        }
        Ok(())
    }

    const TABLE_BITS: u64 = PTE_PRESENT | PTE_WRITABLE;
}
