// SPDX-License-Identifier: GPL-2.0

//! The guest's general registers, segments, descriptor tables, control registers and EFER, in the VMCS.

use super::cache::Cached;
use super::debug;
use super::event;
use super::field;
use super::field::entry;
use super::field::primary;
use super::vcpu::Vcpu;
use super::vmcs::Vmcs;
use super::vmcs::CR4_VMXE;
use crate::xvm::state::seg;
use crate::xvm::state::CodeContext;
use crate::xvm::state::DescriptorTable;
use crate::xvm::state::Segment;
use crate::xvm::state::SystemRegs;
use crate::xvm::state::UserRegs;
use crate::xvm::state::RSP;
use crate::xvm::state::UNUSABLE;

const CR0_MP: u64 = 1 << 1;
const CR0_EM: u64 = 1 << 2;
const CR0_TS: u64 = 1 << 3;
const CR0_WP: u64 = 1 << 16;
const CR0_AM: u64 = 1 << 18;
const CR0_PG: u64 = 1 << 31;

const CR4_VME: u64 = 1 << 0;
const CR4_PVI: u64 = 1 << 1;
const CR4_TSD: u64 = 1 << 2;
const CR4_DE: u64 = 1 << 3;
const CR4_PAE: u64 = 1 << 5;
const CR4_PGE: u64 = 1 << 7;
const CR4_PCE: u64 = 1 << 8;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXMMEXCPT: u64 = 1 << 10;

const EFER_LMA: u64 = 1 << 10;

/// CS.L, among the attributes of a segment.
const CODE_64: u16 = 1 << 9;

/// Bits of CR0 that the guest changes without an exit: they turn nothing on or off that xvm must know of.
const CR0_GUEST: u64 = CR0_MP | CR0_EM | CR0_TS | CR0_WP | CR0_AM;

/// Bits of CR4 that the guest changes without an exit: every CPU with EPT has them, they need no check, and
/// what they do to the TLB (PGE) the CPU does by itself.
const CR4_GUEST: u64 =
    CR4_VME | CR4_PVI | CR4_TSD | CR4_DE | CR4_PGE | CR4_PCE | CR4_OSFXSR | CR4_OSXMMEXCPT;

/// Where the virtual-APIC page has VTPR (SDM vol 3, 31.1.1); its upper four bits are CR8.
const VTPR: usize = 0x80;

/// The activity state of a processor that executes instructions (SDM vol 3, 26.4.2).
const ACTIVE: u64 = 0;

/// `XvmOps::load_cpu_user_regs`.
pub(super) fn load_user(vcpu: &mut Vcpu, regs: &UserRegs) {
    vcpu.frame.gprs = regs.gprs;
    vcpu.cache.set(Cached::Rsp, regs.gprs.0[RSP]);
    let waits_in_guest = vcpu.primary.get() & u64::from(primary::HLT_EXITING) == 0;
    if waits_in_guest && vcpu.cache.get(&vcpu.vmcs, Cached::Rip) != regs.rip {
        // The HLT was one of what it did before.
        vcpu.vmcs.write(field::GUEST_ACTIVITY, ACTIVE);
    }
    vcpu.cache.set(Cached::Rip, regs.rip);
    let rflags = debug::show_rflags(vcpu, regs.rflags);
    vcpu.cache.set(Cached::Rflags, rflags);
}

/// `XvmOps::store_cpu_user_regs`.
pub(super) fn store_user(vcpu: &Vcpu) -> UserRegs {
    let mut gprs = vcpu.frame.gprs;
    gprs.0[RSP] = vcpu.cache.get(&vcpu.vmcs, Cached::Rsp);
    UserRegs {
        gprs,
        rip: vcpu.cache.get(&vcpu.vmcs, Cached::Rip),
        rflags: vcpu
            .debug
            .hide_step(vcpu.cache.get(&vcpu.vmcs, Cached::Rflags)),
    }
}

/// `XvmOps::update_eip`.
#[inline]
pub(super) fn skip_instruction(vcpu: &mut Vcpu, length: Option<u8>) {
    let [old, rflags, blocking, told] = vcpu.cache.instruction(&vcpu.vmcs);
    let mut rip = old.wrapping_add(length.map_or(told, u64::from));
    // Outside of 64-bit mode RIP has 32 bits, which only matters when it wraps there.
    if rip >> 32 != old >> 32 && !is_64_bit(vcpu) {
        rip &= 0xffff_ffff;
    }
    vcpu.cache.set(Cached::Rip, rip);
    event::note_retired(vcpu, rflags, blocking);
}

/// Whether the guest executes 64-bit code: IA-32e mode, and CS.L.
#[cold]
fn is_64_bit(vcpu: &Vcpu) -> bool {
    vcpu.vmcs.with(|| {
        vcpu.vmcs.read(field::GUEST_EFER) & EFER_LMA != 0
            && segment(&vcpu.vmcs, seg::CS).attributes & CODE_64 != 0
    })
}

/// Access rights as the VMCS has them (SDM vol 3, table 26-2): the 4 bits between P and AVL are reserved.
struct AccessRights(u32);

impl AccessRights {
    fn of(segment: &Segment, index: usize) -> Self {
        let mut attributes = u32::from(segment.attributes);
        // A segment that isn't present is unusable, but for the TSS, which always is usable.
        if attributes & (1 << 7) == 0 && index != seg::TR {
            attributes |= u32::from(UNUSABLE);
        }
        match index {
            // The CPU has set the busy bit when TR was loaded.
            seg::TR => attributes |= 2,
            seg::LDTR => {}
            // It has set the accessed bit too, whatever userspace says.
            _ if attributes & 1 << 4 != 0 => attributes |= 1,
            _ => {}
        }
        Self(attributes & 0xff | (attributes & 0x1f00) << 4)
    }

    fn attributes(&self) -> u16 {
        (self.0 & 0xff | self.0 >> 4 & 0x1f00) as u16
    }
}

fn segment(vmcs: &Vmcs, index: usize) -> Segment {
    Segment {
        base: vmcs.read(field::GUEST_BASE.of_segment(index)),
        limit: vmcs.read(field::GUEST_LIMIT.of_segment(index)) as u32,
        selector: vmcs.read(field::GUEST_SELECTOR.of_segment(index)) as u16,
        attributes: AccessRights(vmcs.read(field::GUEST_ACCESS_RIGHTS.of_segment(index)) as u32)
            .attributes(),
    }
}

fn set_segment(vmcs: &Vmcs, index: usize, segment: &Segment) {
    vmcs.write(field::GUEST_BASE.of_segment(index), segment.base);
    vmcs.write(
        field::GUEST_LIMIT.of_segment(index),
        u64::from(segment.limit),
    );
    vmcs.write(
        field::GUEST_SELECTOR.of_segment(index),
        u64::from(segment.selector),
    );
    vmcs.write(
        field::GUEST_ACCESS_RIGHTS.of_segment(index),
        u64::from(AccessRights::of(segment, index).0),
    );
}

/// Whether the guest pages by PAE, with four PDPTEs in registers.
fn is_pae(cr0: u64, cr4: u64, efer: u64) -> bool {
    cr0 & CR0_PG != 0 && cr4 & CR4_PAE != 0 && efer & EFER_LMA == 0
}

/// `XvmOps::code_context`. The caller's use decides what of it is read.
#[inline(always)]
pub(super) fn code_context(vcpu: &Vcpu) -> CodeContext {
    let rip = vcpu.cache.if_known(Cached::Rip);
    vcpu.vmcs.with_reads(|reads| {
        let rights =
            |index| AccessRights(reads.field(field::GUEST_ACCESS_RIGHTS.of_segment(index)) as u32);
        let shown =
            |real, shadow, guest: u64| reads.field(real) & guest | reads.field(shadow) & !guest;
        CodeContext {
            rip: rip.unwrap_or_else(|| reads.field(field::GUEST_RIP)),
            cs_base: reads.field(field::GUEST_BASE.of_segment(seg::CS)),
            cs_attributes: rights(seg::CS).attributes(),
            cpl: (rights(seg::SS).attributes() >> 5 & 3) as u8,
            cr0: shown(field::GUEST_CR0, field::CR0_SHADOW, CR0_GUEST),
            cr3: reads.field(field::GUEST_CR3),
            cr4: shown(field::GUEST_CR4, field::CR4_SHADOW, CR4_GUEST),
            efer: reads.field(field::GUEST_EFER),
        }
    })
}

/// CR0 as the guest sees it.
fn read_cr0(vmcs: &Vmcs) -> u64 {
    vmcs.read(field::GUEST_CR0) & CR0_GUEST | vmcs.read(field::CR0_SHADOW) & !CR0_GUEST
}

/// CR4 as the guest sees it.
fn read_cr4(vmcs: &Vmcs) -> u64 {
    vmcs.read(field::GUEST_CR4) & CR4_GUEST | vmcs.read(field::CR4_SHADOW) & !CR4_GUEST
}

/// `XvmOps::system_regs`.
pub(super) fn system(vcpu: &Vcpu) -> SystemRegs {
    let mut regs = SystemRegs::default();
    vcpu.vmcs.with(|| read_system(vcpu, &mut regs));
    regs
}

fn read_system(vcpu: &Vcpu, regs: &mut SystemRegs) {
    let vmcs = &vcpu.vmcs;
    for (index, slot) in regs.segments.iter_mut().enumerate() {
        *slot = segment(vmcs, index);
    }
    regs.gdtr = DescriptorTable {
        base: vmcs.read(field::GUEST_GDTR_BASE),
        limit: vmcs.read(field::GUEST_GDTR_LIMIT) as u16,
    };
    regs.idtr = DescriptorTable {
        base: vmcs.read(field::GUEST_IDTR_BASE),
        limit: vmcs.read(field::GUEST_IDTR_LIMIT) as u16,
    };
    regs.cr0 = read_cr0(vmcs);
    regs.cr2 = vcpu.cr2;
    regs.cr3 = vmcs.read(field::GUEST_CR3);
    regs.cr4 = read_cr4(vmcs);
    regs.efer = vmcs.read(field::GUEST_EFER);
    regs.debug = debug::get(vcpu);
    if is_pae(regs.cr0, regs.cr4, regs.efer) {
        for (n, slot) in regs.pdptrs.iter_mut().enumerate() {
            *slot = vmcs.read(field::GUEST_PDPTE0.of_segment(n));
        }
    }
}

/// `XvmOps::set_system_regs`.
pub(super) fn set_system(vcpu: &mut Vcpu, regs: &SystemRegs) {
    vcpu.cr2 = regs.cr2;
    vcpu.tlb.flush_guest();
    vcpu.vmcs.with(|| write_system(vcpu, regs));
    debug::set(vcpu, &regs.debug);
}

fn write_system(vcpu: &Vcpu, regs: &SystemRegs) {
    let (vmcs, controls) = (&vcpu.vmcs, &vcpu.controls);
    for (index, slot) in regs.segments.iter().enumerate() {
        set_segment(vmcs, index, slot);
    }
    vmcs.write(field::GUEST_GDTR_BASE, regs.gdtr.base);
    vmcs.write(field::GUEST_GDTR_LIMIT, u64::from(regs.gdtr.limit));
    vmcs.write(field::GUEST_IDTR_BASE, regs.idtr.base);
    vmcs.write(field::GUEST_IDTR_LIMIT, u64::from(regs.idtr.limit));
    vmcs.write(field::GUEST_CR0, regs.cr0 | controls.cr0_fixed);
    vmcs.write(field::CR0_SHADOW, regs.cr0);
    vmcs.write(field::GUEST_CR3, regs.cr3);
    vmcs.write(field::GUEST_CR4, regs.cr4 | controls.cr4_fixed | CR4_VMXE);
    vmcs.write(field::CR4_SHADOW, regs.cr4);
    if is_pae(regs.cr0, regs.cr4, regs.efer) {
        for (n, &pdpte) in regs.pdptrs.iter().enumerate() {
            vmcs.write(field::GUEST_PDPTE0.of_segment(n), pdpte);
        }
    }
    vmcs.write(field::GUEST_EFER, regs.efer);
    let mode = match regs.efer & EFER_LMA != 0 {
        true => entry::IA32E_MODE_GUEST,
        false => 0,
    };
    vmcs.write(field::ENTRY_CONTROLS, u64::from(controls.entry | mode));
}

/// Says which bits of CR0 and CR4 are the guest's. The VMCS must be current.
pub(super) fn initialise(vmcs: &Vmcs) {
    vmcs.write(field::CR0_MASK, !CR0_GUEST);
    vmcs.write(field::CR4_MASK, !CR4_GUEST);
}

/// `XvmOps::tpr`.
#[inline]
pub(super) fn tpr(vcpu: &Vcpu) -> u8 {
    // SAFETY: The page is the vCPU's own and 4096 bytes long. The CPU writes the byte in the guest alone, on
    // this thread.
    unsafe { vcpu.virtual_apic.as_ptr().add(VTPR).read_volatile() >> 4 }
}

/// `XvmOps::set_tpr`.
pub(super) fn set_tpr(vcpu: &mut Vcpu, tpr: u8) {
    // SAFETY: As in `tpr`.
    unsafe {
        vcpu.virtual_apic
            .as_ptr()
            .add(VTPR)
            .write_volatile(tpr << 4)
    };
}

/// Sets the TPR threshold to the TPR, so that any lowering of it exits and is told. Before an entry.
#[inline]
pub(super) fn write_tpr_threshold(vcpu: &mut Vcpu) {
    let tpr = u64::from(tpr(vcpu));
    if tpr != vcpu.tpr_threshold.get()
        && vcpu.primary.get() & u64::from(primary::USE_TPR_SHADOW) != 0
    {
        vcpu.tpr_threshold.set(tpr);
        vcpu.tpr_threshold.write_back(&vcpu.vmcs);
    }
}
