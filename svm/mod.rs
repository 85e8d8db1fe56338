// SPDX-License-Identifier: GPL-2.0

//! AMD SVM, with nested paging.
//!
//! | file | subject |
//! | --- | --- |
//! | `probe` | what a CPU has of SVM |
//! | `vmcb` | layout of the control block |
//! | `intercept` | what the guest doesn't do by itself |
//! | `permission` | the permission maps for ports and MSRs |
//! | `reset` | a VMCB after power-up |
//! | `cpu` | what a physical CPU needs; sharing SVM with KVM |
//! | `asid` | ASIDs of a physical CPU, by generations |
//! | `tlb` | which ASID a guest has, dropping its translations |
//! | `npt` | format of nested page tables |
//! | `vcpu` | a vCPU: its VMCB, and what the hardware doesn't switch |
//! | `window` | opening and closing the window |
//! | `run` | running the guest until an exit |
//! | `exit` | what an exit means |
//! | `event` | events to the guest, and those cut short |
//! | `nmi` | NMI blocking |
//! | `state` | user and system registers |
//! | `msr` | MSRs in the VMCB or switched by the window |
//! | `debug` | debug registers |
//! | `dump` | why VMRUN refused a VMCB |
//! | `asm`, `world_switch.S` | the world switch |
//!
//! Sections are those of the AMD64 Architecture Programmer's Manual (APM), volume 2, unless another is named.

mod asid;
mod asm;
mod cpu;
mod debug;
mod dump;
mod event;
mod exit;
mod intercept;
mod msr;
mod nmi;
mod npt;
mod permission;
mod probe;
mod reset;
mod run;
mod state;
mod tlb;
mod vcpu;
mod vmcb;
mod window;

use crate::linux::irq::IrqsOff;
use crate::xvm::ops::Capabilities;
use crate::xvm::ops::Config;
use crate::xvm::ops::Delivery;
use crate::xvm::ops::Offer;
use crate::xvm::ops::XvmOps;
use crate::xvm::state::CodeContext;
use crate::xvm::state::Event;
use crate::xvm::state::Gprs;
use crate::xvm::state::Interruptibility;
use crate::xvm::state::SystemRegs;
use crate::xvm::state::UserRegs;
use crate::xvm::Exit;
use kernel::prelude::*;

/// AMD's extension, as the vendor-neutral layer sees it.
pub(crate) struct Svm;

impl XvmOps for Svm {
    const NAME: &'static CStr = c"svm";
    const HYPERCALL: [u8; 3] = [0x0f, 0x01, 0xd9];

    type Pages = npt::NestedPages;
    type Cpu = cpu::Cpu;
    type Vcpu = vcpu::Vcpu;

    fn probe() -> Result<Capabilities> {
        probe::probe()
    }

    fn cpu_alloc(cpu: u32) -> Result<cpu::Cpu> {
        cpu::Cpu::new(cpu)
    }

    fn alloc(_caps: &Capabilities, root: u64) -> Result<vcpu::Vcpu> {
        vcpu::Vcpu::new(root)
    }

    fn free(_vcpu: &mut vcpu::Vcpu) {
        // Outside of a window no CPU uses its pages: what CPUs keep of a VMCB they don't write back.
    }

    #[inline]
    fn open(vcpu: &mut vcpu::Vcpu, cpu: &cpu::Cpu, irqs: &IrqsOff) {
        window::open(vcpu, cpu, irqs);
    }

    #[inline]
    fn run(vcpu: &mut vcpu::Vcpu, cpu: &cpu::Cpu) -> Exit {
        run::run(vcpu, cpu)
    }

    #[inline]
    fn close(vcpu: &mut vcpu::Vcpu, cpu: &cpu::Cpu, irqs: &IrqsOff) {
        window::close(vcpu, cpu, irqs);
    }

    fn load_cpu_user_regs(vcpu: &mut vcpu::Vcpu, regs: &UserRegs) {
        vcpu.load_user_regs(regs);
    }

    fn store_cpu_user_regs(vcpu: &vcpu::Vcpu) -> UserRegs {
        vcpu.store_user_regs()
    }

    #[inline]
    fn gprs(vcpu: &mut vcpu::Vcpu) -> &mut Gprs {
        vcpu.gprs()
    }

    fn system_regs(vcpu: &vcpu::Vcpu) -> SystemRegs {
        vcpu.system_regs()
    }

    fn set_system_regs(vcpu: &mut vcpu::Vcpu, regs: &SystemRegs) {
        vcpu.set_system_regs(regs);
    }

    fn read_msr(vcpu: &vcpu::Vcpu, msr: u32) -> Option<u64> {
        vcpu.read_msr(msr)
    }

    fn write_msr(vcpu: &mut vcpu::Vcpu, msr: u32, value: u64) -> bool {
        vcpu.write_msr(msr, value)
    }

    #[inline]
    fn code_context(vcpu: &vcpu::Vcpu) -> CodeContext {
        vcpu.code_context()
    }

    fn set_tpr(vcpu: &mut vcpu::Vcpu, tpr: u8) {
        vcpu.set_tpr(tpr);
    }

    fn configure(vcpu: &mut vcpu::Vcpu, config: &Config) {
        vcpu.configure(config);
    }

    #[inline]
    fn check_guest_faults(vcpu: &mut vcpu::Vcpu) -> Delivery {
        vcpu.delivery()
    }

    fn inject_exception(vcpu: &mut vcpu::Vcpu, event: Event) {
        vcpu.inject(event);
    }

    /// Never true: the CPU waits by itself until the guest can take it.
    #[inline]
    fn offer_interrupt(vcpu: &mut vcpu::Vcpu, offer: Offer) -> bool {
        vcpu.offer(offer);
        false
    }

    fn interruptibility(vcpu: &vcpu::Vcpu) -> Interruptibility {
        vcpu.interruptibility()
    }

    fn set_interruptibility(vcpu: &mut vcpu::Vcpu, state: Interruptibility) {
        vcpu.set_interruptibility(state);
    }

    #[inline]
    fn update_eip(vcpu: &mut vcpu::Vcpu, length: Option<u8>) -> bool {
        let length = length.or_else(|| exit::instruction_length(vcpu));
        vcpu.skip(length)
    }

    #[inline]
    fn flush_tlb(vcpu: &mut vcpu::Vcpu) {
        vcpu.drop_translations();
    }
}
