// SPDX-License-Identifier: GPL-2.0

//! Intel VMX (SDM vol 3, chapters 25 to 33).
//!
//! | file | what is in it |
//! | --- | --- |
//! | `capability` | whether the CPU has what is needed |
//! | `controls` | the controls, chosen from what the CPU offers |
//! | `vmcs` | a VMCS, and VMX operation around its use |
//! | `field` | the fields of the VMCS and the bits of controls |
//! | `instruction` | the VMX instructions |
//! | `cache` | fields kept in memory |
//! | `vcpu` | a vCPU: what it consists of and how it begins |
//! | `cpu` | what is kept for a physical CPU |
//! | `window` | open, run, close |
//! | `host` | the host's state in the window; mitigations that are once a window |
//! | `world_switch.S`, `frame` | one entry and exit, in assembly |
//! | `exit` | from exit reason to `Exit` |
//! | `event` | injection, events cut short, windows, interruptibility |
//! | `registers` | general, segment and control registers, TPR |
//! | `msr` | MSR bitmap, MSRs held and switched |
//! | `debug` | debug registers |
//! | `ept` | format of second-level page tables |
//! | `tlb` | VPIDs and flushing |
//! | `dump` | what is logged of failed entries |

mod cache;
mod capability;
mod controls;
mod cpu;
mod debug;
mod dump;
mod ept;
mod event;
mod exit;
mod field;
mod frame;
mod host;
mod instruction;
mod msr;
mod registers;
mod tlb;
mod vcpu;
mod vmcs;
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

/// Intel VMX.
pub(crate) struct Vmx;

impl XvmOps for Vmx {
    const NAME: &'static CStr = c"vmx";
    const HYPERCALL: [u8; 3] = [0x0f, 0x01, 0xc1];

    type Pages = ept::Ept;
    type Cpu = cpu::Cpu;
    type Vcpu = vcpu::Vcpu;

    fn probe() -> Result<Capabilities> {
        capability::probe()
    }

    fn cpu_alloc(cpu: u32) -> Result<Self::Cpu> {
        Ok(cpu::Cpu::new(cpu))
    }

    fn alloc(_caps: &Capabilities, root: u64) -> Result<Self::Vcpu> {
        vcpu::Vcpu::new(root)
    }

    fn free(_vcpu: &mut Self::Vcpu) {
        // Outside of a window no CPU has the VMCS, and the VPID goes back when the vCPU is dropped.
    }

    #[inline]
    fn open(vcpu: &mut Self::Vcpu, cpu: &Self::Cpu, irqs: &IrqsOff) {
        window::open(vcpu, cpu, irqs);
    }

    #[inline]
    fn run(vcpu: &mut Self::Vcpu, _cpu: &Self::Cpu) -> Exit {
        window::run(vcpu)
    }

    #[inline]
    fn close(vcpu: &mut Self::Vcpu, _cpu: &Self::Cpu, _irqs: &IrqsOff) {
        window::close(vcpu);
    }

    fn load_cpu_user_regs(vcpu: &mut Self::Vcpu, regs: &UserRegs) {
        registers::load_user(vcpu, regs);
    }

    fn store_cpu_user_regs(vcpu: &Self::Vcpu) -> UserRegs {
        registers::store_user(vcpu)
    }

    #[inline]
    fn gprs(vcpu: &mut Self::Vcpu) -> &mut Gprs {
        &mut vcpu.frame.gprs
    }

    fn system_regs(vcpu: &Self::Vcpu) -> SystemRegs {
        registers::system(vcpu)
    }

    fn set_system_regs(vcpu: &mut Self::Vcpu, regs: &SystemRegs) {
        registers::set_system(vcpu, regs);
    }

    fn read_msr(vcpu: &Self::Vcpu, msr: u32) -> Option<u64> {
        msr::read(vcpu, msr)
    }

    fn write_msr(vcpu: &mut Self::Vcpu, msr: u32, value: u64) -> bool {
        msr::write(vcpu, msr, value)
    }

    #[inline]
    fn code_context(vcpu: &Self::Vcpu) -> CodeContext {
        registers::code_context(vcpu)
    }

    fn set_tpr(vcpu: &mut Self::Vcpu, tpr: u8) {
        registers::set_tpr(vcpu, tpr);
    }

    fn configure(vcpu: &mut Self::Vcpu, config: &Config) {
        vcpu.vmcs.write(field::TSC_OFFSET, config.tsc_offset);
        let multiplier = config.tsc_ratio.unwrap_or(capability::TSC_UNSCALED);
        vcpu.tsc_multiplier.set(multiplier);
        vcpu.set_root(config.root);
        vcpu.primary
            .set_bits(field::primary::HLT_EXITING, !config.free_hlt);
        let mwait = field::primary::MONITOR_EXITING | field::primary::MWAIT_EXITING;
        vcpu.primary.set_bits(mwait, !config.free_mwait);
        vcpu.set_pause_exiting(!config.free_pause);
        // Without bitmaps every access exits.
        vcpu.primary
            .set_bits(field::primary::USE_MSR_BITMAPS, !config.msrs_exit);
        debug::set_debugging(vcpu, config.debug);
    }

    #[inline]
    fn check_guest_faults(vcpu: &mut Self::Vcpu) -> Delivery {
        Delivery {
            // What was offered and not delivered for certain waits for `Exit::InterruptWindow`.
            interrupt_taken: false,
            cut_short: vcpu.events.vectoring.take(),
            tpr: registers::tpr(vcpu),
        }
    }

    fn inject_exception(vcpu: &mut Self::Vcpu, event: Event) {
        event::inject(vcpu, event);
    }

    #[inline]
    fn offer_interrupt(vcpu: &mut Self::Vcpu, offer: Offer) -> bool {
        event::offer(vcpu, offer)
    }

    #[inline]
    fn interruptibility(vcpu: &Self::Vcpu) -> Interruptibility {
        event::interruptibility(vcpu)
    }

    fn set_interruptibility(vcpu: &mut Self::Vcpu, state: Interruptibility) {
        event::set_interruptibility(vcpu, state);
    }

    #[inline]
    fn update_eip(vcpu: &mut Self::Vcpu, length: Option<u8>) -> bool {
        registers::skip_instruction(vcpu, length);
        true
    }

    #[inline]
    fn flush_tlb(vcpu: &mut Self::Vcpu) {
        vcpu.tlb.flush_all();
    }
}
