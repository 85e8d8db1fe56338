// SPDX-License-Identifier: GPL-2.0

//! Carrying out an instruction for the guest: the emulator's [`Machine`](emulate::Machine) is the vCPU.
//!
//! - this file: an instruction from its bytes to its end;
//! - [`access`]: its accesses to memory;
//! - [`machine`]: what the emulator asks of the vCPU.
//!
//! Memory goes to the VMM's memory, to the local APIC, to the IOAPIC, or to the VMM as an MMIO exit. Outside of the window.

mod access;
mod machine;

use super::emulate;
use super::emulate::DecodeError;
use super::emulate::Fault;
use super::emulate::Insn;
use super::emulate::Stop;
use super::guest_memory::INSN_MAX;
use super::state::CodeContext;
use super::state::SystemRegs;
use super::state::UserRegs;
use super::vcpu::Vcpu;
use super::XvmOps;
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;

/// What became of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Emulated {
    /// It is done, or an exception is queued: the guest goes on.
    Done,
    /// Userspace has been asked for an access.
    Userspace,
    /// Not an instruction that is known; its bytes.
    Unknown([u8; INSN_MAX], usize),
    /// The VMM has nothing mapped where the guest's memory should be.
    Failed(Error),
}

/// A vCPU under emulation: its registers are copies until the instruction has succeeded.
pub(super) struct Emulation<'a, V: XvmOps> {
    pub(super) vcpu: &'a mut Vcpu<V>,
    pub(super) user: UserRegs,
    pub(super) context: CodeContext,
    system: SystemRegs,
    /// An error of the host's, which an access ran into.
    failed: Option<Error>,
}

/// What becomes of bytes that are no instruction.
fn refusal(error: DecodeError) -> Stop {
    match error {
        DecodeError::TooLong => Stop::Fault(Fault::GENERAL_PROTECTION),
        _ => Stop::Unknown,
    }
}

impl<'a, V: XvmOps> Emulation<'a, V> {
    pub(super) fn new(vcpu: &'a mut Vcpu<V>) -> Self {
        Self {
            user: V::store_cpu_user_regs(&vcpu.arch),
            context: V::code_context(&vcpu.arch),
            system: V::system_regs(&vcpu.arch),
            vcpu,
            failed: None,
        }
    }

    fn fail(&mut self, error: Error) -> Stop {
        self.failed = Some(error);
        Stop::Unknown
    }

    /// The bytes at RIP, as many as there are before a page that faults.
    fn fetch(&mut self) -> Result<([u8; INSN_MAX], usize), Stop> {
        let mut code = [0; INSN_MAX];
        let linear = self.context.linear(self.user.rip);
        let first = INSN_MAX.min(PAGE_SIZE - (linear % PAGE_SIZE as u64) as usize);
        let gpa = self.translate(linear, false, true)?;
        let read = self.vcpu.current_slots().read(gpa, &mut code[..first]);
        read.map_err(|error| self.fail(error))?;
        let whole = emulate::decode(&code[..first], self.context.code_size());
        if first == INSN_MAX || whole != Err(DecodeError::Truncated) {
            return Ok((code, first));
        }
        let gpa = self.translate(
            self.context.wrap(linear.wrapping_add(first as u64)),
            false,
            true,
        )?;
        let read = self.vcpu.current_slots().read(gpa, &mut code[first..]);
        read.map_err(|error| self.fail(error))?;
        Ok((code, INSN_MAX))
    }

    fn execute(&mut self) -> Result<(), (Stop, [u8; INSN_MAX], usize)> {
        let begun = self.vcpu.replay.begin(self.user.rip);
        let (insn, code, length) = match begun {
            Some(insn) => (insn, [0; INSN_MAX], 0),
            None => {
                let (code, length) = self.fetch().map_err(|stop| (stop, [0; INSN_MAX], 0))?;
                let insn = emulate::decode(&code[..length], self.context.code_size());
                let insn = insn.map_err(|error| (refusal(error), code, length))?;
                self.vcpu.replay.keep(&insn);
                (insn, code, length)
            }
        };
        self.execute_one(&insn).map_err(|stop| (stop, code, length))
    }

    fn execute_one(&mut self, insn: &Insn) -> Result<(), Stop> {
        if let Some(result) = self.execute_system(insn) {
            return result;
        }
        emulate::execute(self, insn)
    }

    /// Gives the registers back.
    fn finish(&mut self) {
        V::load_cpu_user_regs(&mut self.vcpu.arch, &self.user);
        V::update_eip(&mut self.vcpu.arch, Some(0));
        self.vcpu.replay.clear();
    }
}

impl<V: XvmOps> Vcpu<V> {
    /// Carries out the instruction at RIP.
    pub(crate) fn emulate(&mut self) -> Emulated {
        self.shared.stats.insn_emulation.add(1);
        let mut emulation = Emulation::new(self);
        let result = emulation.execute();
        let failed = emulation.failed;
        match result {
            Ok(()) => {
                emulation.finish();
                Emulated::Done
            }
            Err((Stop::Userspace, ..)) => {
                // Iterations of a string instruction that are complete stay so.
                let user = emulation.user;
                V::load_cpu_user_regs(&mut self.arch, &user);
                Emulated::Userspace
            }
            Err((Stop::Fault(fault), ..)) => {
                let user = emulation.user;
                V::load_cpu_user_regs(&mut self.arch, &user);
                self.replay.clear();
                self.raise(fault);
                Emulated::Done
            }
            Err((Stop::Unknown, code, length)) => {
                self.replay.clear();
                match failed {
                    Some(error) if error == EAGAIN => Emulated::Done,
                    Some(error) => Emulated::Failed(error),
                    None => Emulated::Unknown(code, length),
                }
            }
        }
    }

    /// Brings the bytes of the instruction at RIP in; queues the exception that fetching them raises. May sleep.
    ///
    /// # Errors
    ///
    /// `EFAULT` and its kin where the VMM has no memory; `EAGAIN` when the guest should try again.
    pub(crate) fn fetch_code(&mut self) -> Result {
        let mut emulation = Emulation::new(self);
        let stop = emulation.fetch().err();
        let failed = emulation.failed;
        if let Some(Stop::Fault(fault)) = stop {
            self.raise(fault);
        }
        failed.map_or(Ok(()), Err)
    }

    /// Overwrites the instruction at RIP with `code` as the guest could itself. Whether that was possible. May sleep.
    pub(crate) fn patch_code(&mut self, code: &[u8]) -> bool {
        let mut emulation = Emulation::new(self);
        let linear = emulation.context.linear(emulation.user.rip);
        let Ok(pieces) = emulation.pieces(linear, code.len(), true) else {
            return false;
        };
        let slots = self.current_slots();
        pieces.into_iter().flatten().all(|piece| {
            let part = piece.at..piece.at + piece.length;
            code.get(part)
                .is_some_and(|part| slots.write(piece.gpa, part).is_ok())
        })
    }

    /// Queues an exception that the emulator found.
    pub(crate) fn raise(&mut self, fault: Fault) {
        if let Some(address) = fault.address {
            let mut system = V::system_regs(&self.arch);
            system.cr2 = address;
            V::set_system_regs(&mut self.arch, &system);
        }
        self.events.queue_exception(fault.vector, fault.error_code);
    }
}
