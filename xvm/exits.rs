// SPDX-License-Identifier: GPL-2.0

//! Exits that are handled inside the window: nothing here sleeps, allocates, or touches userspace but by reads that may fail.

use super::device_access;
use super::msr::is_x2apic;
use super::platform::bus::Space;
use super::platform::Gp;
use super::pv::Called;
use super::state::RAX;
use super::state::RBX;
use super::state::RCX;
use super::state::RDX;
use super::vcpu::MpState;
use super::vcpu::Vcpu;
use super::vectors::BREAKPOINT;
use super::vectors::GENERAL_PROTECTION;
use super::vectors::INVALID_OPCODE;
use super::Exit;
use super::PortAccess;
use super::XvmOps;

/// What became of an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handled {
    /// The guest goes on.
    Resume,
    /// The window must close for the host; nothing else is to be done.
    Host,
    /// To be handled outside of the window.
    Outside(Exit),
}

/// Handles exits that take the guest's registers alone and change nothing about events. True when it has; else nothing has happened.
#[inline]
pub(crate) fn simple<V: XvmOps>(vcpu: &mut Vcpu<V>, exit: &Exit) -> bool {
    let carried_out = match exit {
        Exit::Cpuid => cpuid(vcpu),
        Exit::MsrRead => msr_read(vcpu),
        Exit::Hypercall => vcpu.unknown_hypercall(),
        _ => None,
    };
    carried_out.is_some_and(|skip| vcpu.skip(skip))
}

/// Handles `exit`, which isn't a simple one, or says who has to.
#[inline]
pub(crate) fn handle<V: XvmOps>(vcpu: &mut Vcpu<V>, exit: Exit) -> Handled {
    let done = match exit {
        Exit::Host => return Handled::Host,
        Exit::Cpuid => cpuid_late(vcpu),
        Exit::MsrRead => msr_read_late(vcpu),
        Exit::MsrWrite => msr_write(vcpu),
        Exit::Hypercall => match vcpu.hypercall_inside() {
            Called::Answered => true,
            // What follows the window lets others run.
            Called::Yield => return Handled::Outside(Exit::Pause),
            Called::Outside => false,
        },
        Exit::Port(access) => port(vcpu, &access),
        Exit::Memory(fault) => {
            device_access::local_apic(vcpu, &fault) || device_access::bus(vcpu, &fault)
        }
        Exit::Hlt => halt(vcpu),
        // Memory is write-back and coherent: there is nothing to be flushed for the guest.
        Exit::CacheFlush => match vcpu.plan_skip() {
            Some(skip) => vcpu.skip(skip),
            None => false,
        },
        Exit::MonitorMwait => monitor_mwait(vcpu),
        Exit::Undefined => raise(vcpu, INVALID_OPCODE, None),
        Exit::Refused => raise(vcpu, GENERAL_PROTECTION, Some(0)),
        // #UD may be the other vendor's hypercall, to be looked at outside; #BP exits for the VMM's debugger.
        Exit::Exception { vector, error_code }
            if vector != INVALID_OPCODE && vector != BREAKPOINT =>
        {
            raise(vcpu, vector, error_code)
        }
        // The next look at the events does what these ask for.
        Exit::NmiWindow => true,
        Exit::InterruptWindow if !vcpu.wants_window() => true,
        Exit::TprChanged if vcpu.lapic.is_some() => true,
        // The VMM's interrupt is delivered before the VMM is told that there is room for another.
        Exit::InterruptWindow if vcpu.events.interrupt.is_some() => true,
        _ => false,
    };
    if done && (vcpu.timer_stale || vcpu.mp_state != MpState::Runnable) {
        Handled::Host
    } else if done {
        Handled::Resume
    } else {
        Handled::Outside(exit)
    }
}

fn raise<V: XvmOps>(vcpu: &mut Vcpu<V>, vector: u8, error_code: Option<u32>) -> bool {
    vcpu.events.queue_exception(vector, error_code);
    true
}

/// MONITOR and MWAIT do nothing: as in KVM, even if the guest doesn't have them, unless the VMM says otherwise (api.rst, 7.31).
#[cold]
fn monitor_mwait<V: XvmOps>(vcpu: &mut Vcpu<V>) -> bool {
    if !vcpu.may_monitor() {
        return raise(vcpu, INVALID_OPCODE, None);
    }
    match vcpu.plan_skip() {
        Some(skip) => vcpu.skip(skip),
        None => false,
    }
}

/// CPUID, where it doesn't fault.
#[inline]
fn cpuid<V: XvmOps>(vcpu: &mut Vcpu<V>) -> Option<Skip> {
    if vcpu.msrs.cpuid_faults() && is_user(vcpu) {
        return None;
    }
    let skip = vcpu.plan_skip()?;
    let gprs = V::gprs(&mut vcpu.arch);
    let (leaf, subleaf) = (gprs.0[RAX] as u32, gprs.0[RCX] as u32);
    let answer = vcpu.cpuid_lookup(leaf, subleaf);
    let gprs = V::gprs(&mut vcpu.arch);
    gprs.0[RAX] = answer.eax.into();
    gprs.0[RBX] = answer.ebx.into();
    gprs.0[RCX] = answer.ecx.into();
    gprs.0[RDX] = answer.edx.into();
    Some(skip)
}

/// CPUID where user code must not use it; or else whose length nobody knows here.
#[cold]
fn cpuid_late<V: XvmOps>(vcpu: &mut Vcpu<V>) -> bool {
    let faults = vcpu.msrs.cpuid_faults() && is_user(vcpu);
    faults && raise(vcpu, GENERAL_PROTECTION, Some(0))
}

#[cold]
fn is_user<V: XvmOps>(vcpu: &Vcpu<V>) -> bool {
    V::code_context(&vcpu.arch).cpl != 0
}

/// RDMSR of a register that isn't the local APIC's, where nothing is wrong with it.
#[inline]
fn msr_read<V: XvmOps>(vcpu: &mut Vcpu<V>) -> Option<Skip> {
    let index = V::gprs(&mut vcpu.arch).0[RCX] as u32;
    if is_x2apic(index) || !vcpu.msr_allowed(index, false) {
        return None;
    }
    let skip = vcpu.plan_skip()?;
    finish_msr_read(vcpu, index).then_some(skip)
}

/// RDMSR of any other.
fn msr_read_late<V: XvmOps>(vcpu: &mut Vcpu<V>) -> bool {
    let Some(skip) = vcpu.plan_skip() else {
        return false;
    };
    let index = V::gprs(&mut vcpu.arch).0[RCX] as u32;
    match vcpu.msr_allowed(index, false) && finish_msr_read(vcpu, index) {
        true => vcpu.skip(skip),
        false => refuse_msr(vcpu),
    }
}

/// False when the register can't be read.
#[inline]
fn finish_msr_read<V: XvmOps>(vcpu: &mut Vcpu<V>, index: u32) -> bool {
    let Ok(value) = vcpu.read_msr(index, false) else {
        return false;
    };
    let gprs = V::gprs(&mut vcpu.arch);
    gprs.0[RAX] = value & 0xffff_ffff;
    gprs.0[RDX] = value >> 32;
    true
}

fn msr_write<V: XvmOps>(vcpu: &mut Vcpu<V>) -> bool {
    let Some(skip) = vcpu.plan_skip() else {
        return false;
    };
    let gprs = V::gprs(&mut vcpu.arch);
    let index = gprs.0[RCX] as u32;
    let value = (gprs.0[RDX] << 32) | (gprs.0[RAX] & 0xffff_ffff);
    if !vcpu.msr_allowed(index, true) {
        return refuse_msr(vcpu);
    }
    match vcpu.write_msr(index, value, false) {
        Ok(effect) => {
            vcpu.apply(effect);
            vcpu.skip(skip)
        }
        Err(Gp) => refuse_msr(vcpu),
    }
}

/// An access to an MSR that fails, without having changed anything: #GP, unless the VMM may want to carry it out.
#[cold]
fn refuse_msr<V: XvmOps>(vcpu: &mut Vcpu<V>) -> bool {
    vcpu.vm.switches.user_space_msr() == 0 && raise(vcpu, GENERAL_PROTECTION, Some(0))
}

/// HLT with the in-kernel local APIC: if something is there to wake the vCPU it does not sleep.
fn halt<V: XvmOps>(vcpu: &mut Vcpu<V>) -> bool {
    if vcpu.lapic.is_none() {
        return false;
    }
    let Some(skip) = vcpu.plan_skip() else {
        return false;
    };
    vcpu.skip(skip);
    vcpu.shared.stats.halt_exits.add(1);
    if !vcpu.wakes() {
        vcpu.mp_state = MpState::Halted;
    }
    true
}

/// Ports of the 8259 pair, and writes that the VMM hears of without an exit; the others are dealt with outside.
fn port<V: XvmOps>(vcpu: &mut Vcpu<V>, access: &PortAccess) -> bool {
    if access.string {
        return false;
    }
    let rax = V::gprs(&mut vcpu.arch).0[RAX];
    let irqchip = vcpu.irqchip();
    let pic = irqchip.filter(|irqchip| irqchip.is_pic_port(access.port, access.size));
    match pic {
        Some(pic) if access.input => {
            let value = pic.pic_read(access.port);
            V::gprs(&mut vcpu.arch).0[RAX] = (rax & !0xff) | u64::from(value);
        }
        Some(pic) => pic.pic_write(access.port, rax as u8),
        None => {
            let (data, port) = (rax.to_le_bytes(), access.port.into());
            let data = &data[..usize::from(access.size & 7)];
            if access.input || !vcpu.bus_write_now(Space::Port, port, data) {
                return false;
            }
        }
    }
    vcpu.skip(Skip::BY_CPU)
}

/// How far an instruction that was carried out reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Skip(Option<u8>);

impl Skip {
    /// The CPU tells, as both vendors' do for port I/O.
    pub(crate) const BY_CPU: Skip = Skip(None);

    /// The decoder has told.
    pub(crate) const fn bytes(length: u8) -> Skip {
        Skip(Some(length))
    }
}

impl<V: XvmOps> Vcpu<V> {
    /// Finds out how long the instruction at RIP is, which exited, before it is carried out. `None` when its bytes
    /// are not at hand inside the window.
    #[inline]
    pub(crate) fn plan_skip(&mut self) -> Option<Skip> {
        if self.vm.machine.caps.instruction_length {
            return Some(Skip::BY_CPU);
        }
        self.length_nofault().map(Skip::bytes)
    }

    /// Moves RIP behind the instruction.
    #[inline]
    pub(crate) fn skip(&mut self, skip: Skip) -> bool {
        V::update_eip(&mut self.arch, skip.0)
    }
}
