// SPDX-License-Identifier: GPL-2.0

//! Debugging the guest from outside: `KVM_SET_GUEST_DEBUG` (api.rst, 4.87), `KVM_EXIT_DEBUG`.
//!
//! The guest sees nothing of it: its own debug registers and RFLAGS.TF are kept while others are in force. A step goes over what
//! happens in between (an interrupt's handler, a system call), as RFLAGS.TF of the interrupted code does.

use super::emulate::Machine;
use super::emulate::Op;
use super::emulate::Operand;
use super::emulation::Emulation;
use super::ops::Debugging;
use super::run::Next;
use super::state::seg;
use super::state::Event;
use super::state::SystemRegs;
use super::vcpu::Vcpu;
use super::vectors::BREAKPOINT;
use super::vectors::DEBUG;
use super::vectors::OVERFLOW;
use super::XvmOps;
use crate::linux::user;
use crate::uapi;
use crate::uapi::kvm_run;
use core::mem::offset_of;
use kernel::prelude::*;

/// DR6: a debug register was accessed; and all that tells what happened but for the breakpoints: BD, BS, BT.
const DR6_BD: u64 = 1 << 13;
const DR6_CAUSES: u64 = 0b111 << 13;
/// DR6: the breakpoints that matched.
const DR6_MATCHES: u64 = 0xf;
/// DR6: bus lock and RTM, which are 0 when it was that.
const DR6_INVERTED: u64 = 1 << 11 | 1 << 16;
/// DR6 when nothing has happened.
const DR6_NOTHING: u64 = 0xffff_0ff0;
/// DR7: general detect.
const DR7_GD: u64 = 1 << 13;
/// RFLAGS.TF.
const RFLAGS_TF: u64 = 1 << 8;
/// SS.B: the stack pointer has 32 bits.
const STACK_32: u16 = 1 << 10;
/// PUSHF, and its prefixes: operand size, and in 64-bit code any REX.
const PUSHF: u8 = 0x9c;
const OPERAND_SIZE: u8 = 0x66;
const PUSHF_MAX: usize = 3;

/// What the VMM asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct GuestDebug {
    /// `KVM_GUESTDBG_*`.
    control: u32,
    /// RIP when the vCPU began to run.
    started: u64,
}

impl GuestDebug {
    fn asks(&self, any: u32) -> bool {
        self.control & any != 0
    }
}

impl SystemRegs {
    /// What #DB does to DR6 and DR7. `happened`: what it is of, as in DR6, but for bits 11 and 16, which are set when it is of that.
    pub(super) fn note_debug(&mut self, happened: u64) {
        let debug = &mut self.debug;
        debug.dr6 = debug.dr6 & !DR6_MATCHES | happened & (DR6_MATCHES | DR6_CAUSES) | DR6_INVERTED;
        debug.dr6 &= !(happened & DR6_INVERTED);
        debug.dr7 &= !DR7_GD;
    }
}

impl<V: XvmOps> Vcpu<V> {
    /// `KVM_SET_GUEST_DEBUG`.
    ///
    /// # Errors
    ///
    /// `EBUSY` when an exception is to be injected and another waits; `EFAULT`.
    pub(crate) fn set_guest_debug(&mut self, arg: usize) -> Result<isize> {
        let asked: uapi::kvm_guest_debug = user::read(arg)?;
        let control = asked.control;
        if control & (uapi::KVM_GUESTDBG_INJECT_DB | uapi::KVM_GUESTDBG_INJECT_BP) != 0 {
            self.inject_for_debugger(control & uapi::KVM_GUESTDBG_INJECT_DB != 0)?;
        }
        self.guest_debug.control = match control & uapi::KVM_GUESTDBG_ENABLE {
            0 => 0,
            _ => control,
        };
        let debug = &self.guest_debug;
        let [dr0, dr1, dr2, dr3, _, _, _, dr7] = asked.arch.debugreg;
        let debugging = Debugging {
            breakpoints: debug
                .asks(uapi::KVM_GUESTDBG_USE_HW_BP)
                .then_some(([dr0, dr1, dr2, dr3], dr7)),
            step: debug.asks(uapi::KVM_GUESTDBG_SINGLESTEP),
            int3: debug.asks(uapi::KVM_GUESTDBG_USE_SW_BP),
        };
        let debugging = debug.asks(uapi::KVM_GUESTDBG_ENABLE).then_some(debugging);
        // A step begins anew where the guest is now.
        self.config.debug = None;
        self.configure();
        self.config.debug = debugging;
        self.configure();
        self.events.held = false;
        Ok(0)
    }

    fn inject_for_debugger(&mut self, debug_exception: bool) -> Result {
        match self.events.injected {
            Some(Event::Exception { .. } | Event::Software { .. }) => return Err(EBUSY),
            _ => self.events.make_room(),
        }
        self.events.injected = Some(match debug_exception {
            true => Event::Exception {
                vector: DEBUG,
                error_code: None,
            },
            false => Event::software_exception(BREAKPOINT),
        });
        Ok(())
    }

    /// When the vCPU begins to run: notes where, and whether interrupts have to wait. They do, too, in an interrupt shadow that a step
    /// leaves, because one vendor must end it for the step.
    pub(super) fn begin_debugging(&mut self) {
        let state = V::interruptibility(&self.arch);
        let shadow = state.sti || state.mov_ss;
        let debug = &mut self.guest_debug;
        debug.started = V::code_context(&self.arch).rip;
        self.events.held = debug.asks(uapi::KVM_GUESTDBG_BLOCKIRQ)
            || shadow && debug.asks(uapi::KVM_GUESTDBG_SINGLESTEP);
    }

    /// #DB. It is the guest's own if the VMM has neither breakpoints nor steps.
    pub(super) fn debug_trap(&mut self, dr6: u64, dr7: u64) -> Result<Next> {
        let (step, breakpoints) = (uapi::KVM_GUESTDBG_SINGLESTEP, uapi::KVM_GUESTDBG_USE_HW_BP);
        if !self.guest_debug.asks(step | breakpoints) {
            self.raise_debug(dr6);
            return Ok(Next::Guest);
        }
        if self.guest_debug.asks(step) {
            self.hide_step_in_memory();
        }
        Ok(self.exit_debug(DEBUG, dr6, dr7))
    }

    /// INT3, which the VMM may have put there.
    pub(super) fn software_breakpoint(&mut self) -> Next {
        self.exit_debug(BREAKPOINT, 0, 0)
    }

    /// An instruction that is intercepted while the VMM debugs.
    pub(super) fn debugged_instruction(&mut self) -> Result<Next> {
        let Some(insn) = self.peek(Self::decode_nofault) else {
            return self.touch_code();
        };
        let event = match (insn.op, insn.operands) {
            (Op::Int3, _) => return Ok(self.software_breakpoint()),
            (Op::MovDr, _) => match self.general_detect() {
                Some(next) => return Ok(next),
                None => return self.emulate_exit(),
            },
            (Op::Into, _) => Event::Software {
                vector: OVERFLOW,
                length: insn.length,
                exception: true,
            },
            (Op::Int, [Operand::Immediate(vector), _]) => Event::Software {
                vector: vector as u8,
                length: insn.length,
                exception: false,
            },
            _ => return self.emulate_exit(),
        };
        self.events.injected = Some(event);
        Ok(Next::Guest)
    }

    /// An access to a debug register with DR7.GD set, the VMM's or the guest's own, is #DB.
    fn general_detect(&mut self) -> Option<Next> {
        let breakpoints = self.config.debug.and_then(|debug| debug.breakpoints);
        let own = V::system_regs(&self.arch).debug.dr7;
        match breakpoints {
            Some((_, dr7)) if dr7 & DR7_GD != 0 => {
                Some(self.exit_debug(DEBUG, DR6_NOTHING | DR6_BD, dr7))
            }
            None if own & DR7_GD != 0 => {
                self.raise_debug(DR6_NOTHING | DR6_BD);
                Some(Next::Guest)
            }
            _ => None,
        }
    }

    /// Gives the guest a #DB of its own; `dr6` says of what, in a register that said nothing before.
    fn raise_debug(&mut self, dr6: u64) {
        let mut system = V::system_regs(&self.arch);
        system.note_debug(dr6 ^ DR6_INVERTED);
        V::set_system_regs(&mut self.arch, &system);
        self.events.queue_exception(DEBUG, None);
    }

    fn exit_debug(&mut self, exception: u8, dr6: u64, dr7: u64) -> Next {
        let context = V::code_context(&self.arch);
        let pages = &self.pages;
        let arch = offset_of!(kvm_run, __bindgen_anon_1.debug.arch);
        let field = |offset: usize, value: u64| pages.set(arch + offset, value);
        pages.set(
            arch + offset_of!(uapi::kvm_debug_exit_arch, exception),
            u32::from(exception),
        );
        field(
            offset_of!(uapi::kvm_debug_exit_arch, pc),
            context.linear(context.rip),
        );
        field(offset_of!(uapi::kvm_debug_exit_arch, dr6), dr6);
        field(offset_of!(uapi::kvm_debug_exit_arch, dr7), dr7);
        self.set_exit(uapi::KVM_EXIT_DEBUG);
        Next::Userspace
    }

    /// If the step was over PUSHF, clears RFLAGS.TF in what it pushed. What can't be read or written stays as it is.
    fn hide_step_in_memory(&mut self) {
        let started = self.guest_debug.started;
        let mut emulation = Emulation::new(self);
        let length = emulation.context.rip.wrapping_sub(started);
        let mut code = [0; PUSHF_MAX];
        let Some(code) = code.get_mut(..length as usize) else {
            return;
        };
        let long = matches!(emulation.code_size(), super::emulate::CodeSize::Bits64);
        let at = emulation.context.linear(started);
        if emulation.read(at, code).is_err() || emulation.user.rflags & RFLAGS_TF != 0 {
            return;
        }
        let is_prefix = |byte: &u8| *byte == OPERAND_SIZE || long && *byte & 0xf0 == 0x40;
        match code.split_last() {
            Some((&PUSHF, prefixes)) if prefixes.iter().all(is_prefix) => {}
            _ => return,
        }
        let rsp = emulation.user.gprs.0[super::state::RSP];
        let stack = V::system_regs(&emulation.vcpu.arch).segments[seg::SS];
        let offset = match stack.attributes & STACK_32 {
            _ if long => rsp,
            0 => rsp & 0xffff,
            _ => rsp & 0xffff_ffff,
        };
        let base = if long { 0 } else { stack.base };
        // The byte that TF is in.
        let at = emulation
            .context
            .wrap(base.wrapping_add(offset).wrapping_add(1));
        let mut flags = [0];
        if emulation.read(at, &mut flags).is_ok() {
            flags[0] &= !((RFLAGS_TF >> 8) as u8);
            let _ = emulation.write(at, &flags);
        }
    }
}
