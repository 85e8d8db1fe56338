// SPDX-License-Identifier: GPL-2.0

//! What an exit to userspace leaves to be done when the vCPU is run again.

use super::device_access::PlainMove;
use super::exits::Skip;
use super::run::Next;
use super::state::RAX;
use super::vcpu::Vcpu;
use super::vcpu::PORT_DATA;
use super::PortAccess;
use super::XvmOps;
use kernel::prelude::*;

/// What the last exit to userspace left to be done before the guest goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pending {
    /// Nothing.
    None,
    /// The VMM carried out IN or OUT: the register is to be set, and RIP to be moved on.
    Port {
        /// The access.
        access: PortAccess,
        /// RIP of the instruction: if the VMM moved it, the instruction is no longer to be completed.
        rip: u64,
    },
    /// The VMM carried out the one access to memory of a move.
    Move {
        /// The move.
        plain: PlainMove,
        /// RIP of the instruction, as above.
        rip: u64,
    },
    /// The VMM made a hypercall for the guest.
    Hypercall {
        /// How long the instruction is.
        skip: Skip,
        /// RIP of the instruction, as above.
        rip: u64,
        /// It was made by 64-bit code.
        wide: bool,
    },
    /// The VMM carried out RDMSR or WRMSR, or refused to.
    Msr {
        /// WRMSR.
        write: bool,
        /// Where the instruction ends.
        skip: Skip,
        /// Its RIP, as above.
        rip: u64,
    },
    /// The VMM carried out an access of the instruction under emulation.
    Access,
}

impl<V: XvmOps> Vcpu<V> {
    /// Completes what userspace did for the guest since the last exit.
    #[inline]
    pub(super) fn complete(&mut self) -> Result<Next> {
        if let Pending::Port { access, rip } = self.pending {
            self.pending = Pending::None;
            self.complete_port(&access, rip);
            return Ok(Next::Guest);
        }
        match self.pending {
            Pending::None => Ok(Next::Guest),
            _ => self.complete_other(),
        }
    }

    #[inline(never)]
    fn complete_other(&mut self) -> Result<Next> {
        match core::mem::replace(&mut self.pending, Pending::None) {
            Pending::None => Ok(Next::Guest),
            Pending::Port { access, rip } => {
                self.complete_port(&access, rip);
                Ok(Next::Guest)
            }
            Pending::Move { plain, rip } => {
                if V::code_context(&self.arch).rip == rip {
                    self.complete_move(&plain);
                }
                Ok(Next::Guest)
            }
            Pending::Hypercall { skip, rip, wide } => {
                if V::code_context(&self.arch).rip == rip {
                    self.complete_hypercall(skip, wide);
                }
                Ok(Next::Guest)
            }
            Pending::Msr { write, skip, rip } => {
                self.complete_msr(write, skip, rip);
                Ok(Next::Guest)
            }
            Pending::Access => {
                self.replay.answered(self.mmio_data());
                self.emulate_exit()
            }
        }
    }

    fn complete_port(&mut self, access: &PortAccess, rip: u64) {
        if V::code_context(&self.arch).rip != rip {
            return;
        }
        if access.input {
            let mut data = [0; 4];
            self.pages.read(PORT_DATA, &mut data);
            let value = u64::from(u32::from_le_bytes(data));
            let rax = &mut V::gprs(&mut self.arch).0[RAX];
            *rax = match access.size {
                1 => (*rax & !0xff) | (value & 0xff),
                2 => (*rax & !0xffff) | (value & 0xffff),
                _ => value,
            };
        }
        self.skip(Skip::BY_CPU);
    }
}
