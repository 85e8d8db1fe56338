// SPDX-License-Identifier: GPL-2.0

//! Exits that are handled outside of the window: interrupts are on, the VMM's memory can be brought in, and userspace asked.

use super::emulation::Emulated;
use super::exits::Skip;
use super::irqchip::IrqChip;
use super::memory::Filled;
use super::pending::Pending;
use super::platform::bus::Space;
use super::run::Next;
use super::state::RAX;
use super::state::RCX;
use super::state::RDX;
use super::vcpu::Vcpu;
use super::vectors;
use super::Exit;
use super::MemoryFault;
use super::PortAccess;
use super::XvmOps;
use crate::uapi;
use core::sync::atomic::Ordering;
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;

impl<V: XvmOps> Vcpu<V> {
    /// Handles an exit outside of the window.
    #[inline]
    pub(super) fn handle(&mut self, exit: Exit) -> Result<Next> {
        self.slots.refresh();
        match exit {
            Exit::Port(access) if !access.string => self.port(&access),
            _ => self.handle_other(exit),
        }
    }

    /// The same for what isn't an access to a port, nearly all of which go to userspace.
    #[inline(never)]
    fn handle_other(&mut self, exit: Exit) -> Result<Next> {
        match exit {
            Exit::Memory(fault) => self.memory_fault(&fault),
            Exit::Instruction if self.config.debug.is_some() => self.debugged_instruction(),
            Exit::Port(_) | Exit::Instruction => self.emulate_exit(),
            Exit::Cr(access) => {
                let before = self.cr8;
                self.access_cr(&access);
                self.after_cr8(before)
            }
            Exit::Hlt => self.halt(),
            Exit::Hypercall => self.hypercall_outside(),
            Exit::Xsetbv => self.xsetbv_exit(),
            Exit::MsrRead => self.msr_exit(false),
            Exit::MsrWrite => self.msr_exit(true),
            Exit::Pause => {
                self.yield_to_another();
                Ok(Next::Guest)
            }
            Exit::Debug { dr6, dr7 } => self.debug_trap(dr6, dr7),
            Exit::Exception { vector, .. } if vector == vectors::BREAKPOINT => {
                Ok(self.software_breakpoint())
            }
            Exit::Exception { .. } => self.invalid_opcode(),
            Exit::InterruptWindow => {
                self.window_wanted = false;
                self.set_exit(uapi::KVM_EXIT_IRQ_WINDOW_OPEN);
                Ok(Next::Userspace)
            }
            Exit::TprChanged => {
                self.set_exit(uapi::KVM_EXIT_SET_TPR);
                Ok(Next::Userspace)
            }
            Exit::TripleFault => self.shut_down(),
            Exit::EntryFailure { reason } => Ok(self.fail_entry(reason)),
            Exit::Unknown { code } => Ok(self.unknown_exit(code)),
            Exit::TaskSwitch => Ok(self.internal_error(uapi::KVM_INTERNAL_ERROR_EMULATION, &[])),
            // Inside the window the instruction's bytes weren't at hand: bring them in, and let the guest try again.
            _ => self.touch_code(),
        }
    }

    fn fill(&mut self, fault: &MemoryFault, patient: bool) -> Result<Filled> {
        let (slots, spare) = (&self.slots, &mut self.spare);
        self.vm
            .memory
            .fill(slots, fault.gpa, fault.write, patient, spare)
    }

    fn memory_fault(&mut self, fault: &MemoryFault) -> Result<Next> {
        let mut filled = self.fill(fault, false);
        if let Ok(Filled::Slow(user)) = filled {
            if self.go_on_without(fault.gpa, user, fault.write) {
                return Ok(Next::Guest);
            }
            filled = self.fill(fault, true);
        }
        if let Err(error) = filled {
            if error == EFAULT || error == EHWPOISON {
                self.exit_memory_fault(fault.gpa & !0xfff, PAGE_SIZE as u64, 0);
            }
        }
        match filled? {
            Filled::NotPrivate => {
                let private = u64::from(uapi::KVM_MEMORY_EXIT_FLAG_PRIVATE);
                self.exit_memory_fault(fault.gpa & !0xfff, PAGE_SIZE as u64, private);
                Err(EFAULT)
            }
            Filled::Mapped(_) | Filled::Again | Filled::Slow(_) => Ok(Next::Guest),
            // Tables that the CPU reads to deliver an event, where no memory is.
            Filled::Device if self.events.injected.is_some() => Ok(self.delivery_error(fault)),
            Filled::Device if fault.fetch => {
                Ok(self.internal_error(uapi::KVM_INTERNAL_ERROR_EMULATION, &[]))
            }
            Filled::Device => match self.plain_move(fault) {
                Some(next) => Ok(next),
                None => self.emulate_exit(),
            },
        }
    }

    /// Asks the VMM, or its stand-in, for the access of a move between a register and a device of its own, without the emulator. `None`
    /// when the instruction isn't such a move.
    fn plain_move(&mut self, fault: &MemoryFault) -> Option<Next> {
        if self.is_kernel_device(fault.gpa) {
            return None;
        }
        let plain = self.peek(|vcpu| vcpu.decode_move(fault))?;
        let data = plain.source.map_or([0; 8], |source| self.move_data(source));
        if plain.source.is_some()
            && self.bus_write(Space::Memory, fault.gpa, &data[..plain.bytes()])
        {
            self.skip(plain.skip());
            return Some(Next::Guest);
        }
        self.exit_mmio(fault.gpa, &data, plain.size.into(), plain.source.is_some());
        self.pending = Pending::Move {
            plain,
            rip: V::code_context(&self.arch).rip,
        };
        Some(Next::Userspace)
    }

    fn port(&mut self, access: &PortAccess) -> Result<Next> {
        // The ports of the 8259 pair are served inside.
        if access.size == 1 && IrqChip::may_be_pit_port(access.port) {
            let rax = V::gprs(&mut self.arch).0[RAX];
            let done = if access.input {
                let value = self.port_read(access.port);
                value.map(|value| V::gprs(&mut self.arch).0[RAX] = (rax & !0xff) | u64::from(value))
            } else {
                self.port_write(access.port, rax as u8)
            };
            if done.is_some() {
                self.skip(Skip::BY_CPU);
                return Ok(Next::Guest);
            }
        }
        if !access.input {
            let data = V::gprs(&mut self.arch).0[RAX].to_le_bytes();
            let data = &data[..usize::from(access.size & 7)];
            if self.bus_write_again(Space::Port, access.port.into(), data) {
                self.skip(Skip::BY_CPU);
                return Ok(Next::Guest);
            }
            self.give_port_data(data);
            if self.vm.switches.skips_first(access.port) {
                self.skip(Skip::BY_CPU);
                self.exit_io(false, access.size, access.port, 1);
                return Ok(Next::Userspace);
            }
        }
        self.pending = Pending::Port {
            access: *access,
            rip: V::code_context(&self.arch).rip,
        };
        self.exit_io(access.input, access.size, access.port, 1);
        Ok(Next::Userspace)
    }

    /// Emulates the instruction at RIP.
    pub(super) fn emulate_exit(&mut self) -> Result<Next> {
        let before = self.cr8;
        match self.emulate() {
            Emulated::Done => self.after_cr8(before),
            // The guest's page tables, or its code, are where no memory is.
            Emulated::Failed(error) if error == ENXIO => {
                Ok(self.internal_error(uapi::KVM_INTERNAL_ERROR_EMULATION, &[]))
            }
            Emulated::Failed(error) => Err(self.failed(error)),
            Emulated::Unknown(code, length) => {
                Ok(self.unknown_instruction(&code[..length.min(code.len())]))
            }
            Emulated::Userspace => {
                self.pending = Pending::Access;
                self.exit_access();
                Ok(Next::Userspace)
            }
        }
    }

    /// An instruction that the emulator doesn't know. User code must not bring the VM down, unless the VMM asked to be told (api.rst, 7.27).
    fn unknown_instruction(&mut self, code: &[u8]) -> Next {
        let told = &self.vm.switches.exit_on_emulation_failure;
        if V::code_context(&self.arch).cpl != 0 && !told.load(Ordering::Relaxed) {
            self.events.queue_exception(vectors::INVALID_OPCODE, None);
            return Next::Guest;
        }
        self.internal_error(uapi::KVM_INTERNAL_ERROR_EMULATION, code)
    }

    /// HLT without an in-kernel local APIC is the VMM's business.
    fn halt(&mut self) -> Result<Next> {
        let Some(skip) = self.peek(Self::plan_skip) else {
            return self.touch_code();
        };
        if self.lapic.is_some() {
            // Inside the window the instruction's bytes weren't at hand; they are now, and the guest does it again.
            return Ok(Next::Guest);
        }
        self.skip(skip);
        self.set_exit(uapi::KVM_EXIT_HLT);
        Ok(Next::Userspace)
    }

    fn xsetbv_exit(&mut self) -> Result<Next> {
        let Some(skip) = self.peek(Self::plan_skip) else {
            // The guest tries again; the bytes will be there.
            return self.touch_code();
        };
        let gprs = V::gprs(&mut self.arch).0;
        let value = (gprs[RDX] << 32) | (gprs[RAX] & 0xffff_ffff);
        match self.xsetbv(gprs[RCX] as u32, value) {
            Ok(()) => {
                self.skip(skip);
            }
            Err(fault) => self.raise(fault),
        }
        Ok(Next::Guest)
    }

    /// #UD: the other vendor's hypercall is carried out, RSM where it is none, and what the guest's CPU has and this one
    /// hasn't; all else is the guest's.
    fn invalid_opcode(&mut self) -> Result<Next> {
        use super::emulate::Op;
        match self
            .peek(Self::decode_nofault)
            .map(|insn| (insn.op, insn.length))
        {
            Some((Op::Vmcall | Op::Vmmcall, length)) => self.foreign_hypercall(length),
            Some((Op::Rsm, _)) if self.smm.is_inside() => self.leave_smm(),
            // It may be RSM, whose bytes aren't at hand.
            None if self.smm.is_inside() => self.touch_code(),
            Some((op, _)) if self.emulates(op) => self.emulate_exit(),
            _ => {
                self.events.queue_exception(vectors::INVALID_OPCODE, None);
                Ok(Next::Guest)
            }
        }
    }

    /// With the local APIC in userspace the VMM is told when the guest lowers CR8.
    fn after_cr8(&mut self, before: u8) -> Result<Next> {
        if self.lapic.is_none() && self.cr8 < before {
            self.set_exit(uapi::KVM_EXIT_SET_TPR);
            return Ok(Next::Userspace);
        }
        Ok(Next::Guest)
    }

    pub(super) fn shut_down(&mut self) -> Result<Next> {
        // What could not be delivered is gone with the shutdown.
        self.events.triple_fault = false;
        self.events.injected = None;
        self.set_exit(uapi::KVM_EXIT_SHUTDOWN);
        Ok(Next::Userspace)
    }

    /// `KVM_RUN` fails for a reason that isn't the one of the last exit, above all not `KVM_EXIT_MEMORY_FAULT`.
    fn failed(&self, error: Error) -> Error {
        self.set_exit(uapi::KVM_EXIT_UNKNOWN);
        error
    }

    /// Brings the page of the instruction at RIP in, so that it can be read inside the window.
    pub(super) fn touch_code(&mut self) -> Result<Next> {
        match self.fetch_code() {
            Ok(()) => Ok(Next::Guest),
            Err(error) if error == EAGAIN => Ok(Next::Guest),
            Err(error) if error == ENXIO => {
                Ok(self.internal_error(uapi::KVM_INTERNAL_ERROR_EMULATION, &[]))
            }
            Err(error) => Err(self.failed(error)),
        }
    }
}
