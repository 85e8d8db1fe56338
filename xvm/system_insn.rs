// SPDX-License-Identifier: GPL-2.0

//! Instructions on the machine's state, where the CPU doesn't tell their operands, or that belong to the other vendor.

use super::emulate;
use super::emulate::Fault;
use super::emulate::Insn;
use super::emulate::Machine;
use super::emulate::Op;
use super::emulate::Operand;
use super::emulate::Stop;
use super::emulation::Emulation;
use super::msr::TSC_AUX;
use super::vcpu::Vcpu;
use super::CrAccess;
use super::XvmOps;

impl<V: XvmOps> Emulation<'_, V> {
    /// Executes `insn` if it is one of these.
    pub(super) fn execute_system(&mut self, insn: &Insn) -> Option<Result<(), Stop>> {
        let result = match (insn.op, insn.operands) {
            (Op::MovCr, [Operand::Control(cr), Operand::Register(from)]) => {
                let value = self.gpr(from.index);
                self.privileged(|this| this.vcpu.write_cr(cr, value))
            }
            (Op::MovCr, [Operand::Register(to), Operand::Control(cr)]) => self.privileged(|this| {
                let value = this.vcpu.read_cr(cr);
                this.set_gpr(to.index, value);
                Ok(())
            }),
            (Op::MovDr, [Operand::Debug(dr), Operand::Register(from)]) => {
                let value = match from.size {
                    8 => self.gpr(from.index),
                    _ => self.gpr(from.index) & 0xffff_ffff,
                };
                self.privileged(|this| this.vcpu.write_dr(dr, value))
            }
            (Op::MovDr, [Operand::Register(to), Operand::Debug(dr)]) => self.privileged(|this| {
                let value = this.vcpu.read_dr(dr)?;
                this.set_gpr(to.index, value);
                Ok(())
            }),
            (Op::Clts, _) => self.privileged(|this| this.vcpu.clts()),
            (Op::Lmsw, [operand, _]) => match emulate::load(self, insn, &operand) {
                Ok(value) => self.privileged(|this| this.vcpu.lmsw(value as u16)),
                Err(stop) => Err(stop),
            },
            // SVM intercepts it while CR0 holds what the guest is not to see.
            (Op::Smsw, [operand, _]) => match self.vcpu.smsw(self.context.cpl) {
                Ok(cr0) => emulate::store(self, insn, &operand, cr0),
                Err(fault) => Err(Stop::Fault(fault)),
            },
            // Where the CPU lacks it.
            (Op::Rdpid, [Operand::Register(to), _]) => {
                let id = V::read_msr(&self.vcpu.arch, TSC_AUX).unwrap_or(0);
                self.set_gpr(to.index, id & 0xffff_ffff);
                Ok(())
            }
            (Op::Wbinvd | Op::Invd, _) => self.privileged(|_| Ok(())),
            _ => return None,
        };
        if result.is_ok() {
            let rip = self.user.rip.wrapping_add(insn.length.into());
            self.user.rip = self.context.wrap(rip);
        }
        Some(result)
    }

    fn privileged(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<(), Fault>,
    ) -> Result<(), Stop> {
        if self.context.cpl != 0 {
            return Err(Stop::Fault(Fault::GENERAL_PROTECTION));
        }
        work(self).map_err(Stop::Fault)
    }
}

impl<V: XvmOps> Vcpu<V> {
    /// Carries out an access to a control register whose operands the CPU told. Outside of the window.
    pub(crate) fn access_cr(&mut self, access: &CrAccess) {
        let mut user = V::store_cpu_user_regs(&self.arch);
        let result = match *access {
            CrAccess::Write { cr, gpr } => self.write_cr(cr, user.gprs.0[usize::from(gpr & 15)]),
            CrAccess::Read { cr, gpr } => {
                user.gprs.0[usize::from(gpr & 15)] = self.read_cr(cr);
                V::load_cpu_user_regs(&mut self.arch, &user);
                Ok(())
            }
            CrAccess::Clts => self.clts(),
            CrAccess::Lmsw(value) => self.lmsw(value),
        };
        match result {
            Ok(()) => {
                V::update_eip(&mut self.arch, None);
            }
            Err(fault) => self.raise(fault),
        }
    }

    /// The value of CR0, CR2, CR3, CR4 or CR8.
    fn read_cr(&self, cr: u8) -> u64 {
        let system = V::system_regs(&self.arch);
        match cr {
            0 => system.cr0,
            2 => system.cr2,
            3 => system.cr3,
            4 => system.cr4,
            _ => self.task_priority().into(),
        }
    }
}
