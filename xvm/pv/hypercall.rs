// SPDX-License-Identifier: GPL-2.0

//! Hypercalls (x86/hypercalls.rst): the number is in RAX, the arguments in RBX, RCX, RDX and RSI, the answer goes to RAX.

use super::Features;
use crate::linux::clock::Moment;
use crate::uapi;
use crate::xvm::emulate::CodeSize;
use crate::xvm::exits::Skip;
use crate::xvm::pending::Pending;
use crate::xvm::platform::Delivery;
use crate::xvm::platform::Message;
use crate::xvm::run::Next;
use crate::xvm::state::RAX;
use crate::xvm::state::RBX;
use crate::xvm::state::RCX;
use crate::xvm::state::RDX;
use crate::xvm::state::RSI;
use crate::xvm::vcpu::Vcpu;
use crate::xvm::vectors;
use crate::xvm::XvmOps;
use core::sync::atomic::Ordering;
use kernel::prelude::*;

/// Numbers (`KVM_HC_*`).
mod number {
    pub(super) const VAPIC_POLL_IRQ: u64 = 1;
    pub(super) const KICK_CPU: u64 = 5;
    pub(super) const CLOCK_PAIRING: u64 = 9;
    pub(super) const SEND_IPI: u64 = 10;
    pub(super) const SCHED_YIELD: u64 = 11;
    pub(super) const MAP_GPA_RANGE: u64 = 12;
    /// No known one is larger.
    pub(super) const LAST: u64 = MAP_GPA_RANGE;
}

/// Answers (`-KVM_E*`).
mod answer {
    pub(super) const DONE: u64 = 0;
    pub(super) const EPERM: u64 = -1i64 as u64;
    pub(super) const EFAULT: u64 = -14i64 as u64;
    pub(super) const EINVAL: u64 = -22i64 as u64;
    pub(super) const EOPNOTSUPP: u64 = -95i64 as u64;
    pub(super) const ENOSYS: u64 = -1000i64 as u64;
}

/// The hypercalls that a VMM may ask for (`KVM_CAP_EXIT_HYPERCALL`), a bit each.
pub(crate) const FOR_VMM: u64 = 1 << number::MAP_GPA_RANGE;

const NS_PER_SECOND: u64 = 1_000_000_000;

/// `struct kvm_clock_pairing`: seconds, nanoseconds, TSC, and 40 bytes that are zero.
const PAIRING_SIZE: usize = 64;

/// A hypercall that the guest makes.
#[derive(Clone, Copy, Debug)]
struct Call {
    number: u64,
    arguments: [u64; 4],
    /// Made by 64-bit code: registers count whole.
    wide: bool,
}

impl Call {
    /// What RAX becomes for an answer.
    fn rax(&self, answer: u64) -> u64 {
        if self.wide {
            answer
        } else {
            answer & 0xffff_ffff
        }
    }
}

/// What becomes of a call inside the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Called {
    /// It is answered.
    Answered,
    /// It is answered, and others should run now.
    Yield,
    /// It is made outside.
    Outside,
}

impl<V: XvmOps> Vcpu<V> {
    fn call(&mut self, wide: bool) -> Call {
        let gprs = V::gprs(&mut self.arch).0;
        let mask = if wide { u64::MAX } else { 0xffff_ffff };
        Call {
            number: gprs[RAX] & mask,
            arguments: [RBX, RCX, RDX, RSI].map(|register| gprs[register] & mask),
            wide,
        }
    }

    /// Answers a hypercall that nobody knows. `None`, and nothing has happened, for one that may be known.
    #[inline]
    pub(crate) fn unknown_hypercall(&mut self) -> Option<Skip> {
        // Of code that isn't 64-bit only the lower half counts.
        if V::gprs(&mut self.arch).0[RAX] & 0xffff_ffff <= number::LAST {
            return None;
        }
        let skip = self.plan_skip()?;
        let context = V::code_context(&self.arch);
        let answer = match context.cpl {
            0 => answer::ENOSYS,
            _ => answer::EPERM,
        };
        V::gprs(&mut self.arch).0[RAX] = match context.code_size() {
            CodeSize::Bits64 => answer,
            _ => answer & 0xffff_ffff,
        };
        Some(skip)
    }

    /// Makes the guest's hypercall if that is possible inside the window.
    pub(crate) fn hypercall_inside(&mut self) -> Called {
        match self.plan_skip() {
            Some(skip) => self.hypercall_inside_with(skip),
            None => Called::Outside,
        }
    }

    fn hypercall_inside_with(&mut self, skip: Skip) -> Called {
        let context = V::code_context(&self.arch);
        let call = self.call(context.code_size() == CodeSize::Bits64);
        let [first, second, ..] = call.arguments;
        let mut called = Called::Answered;
        let answer = match call.number {
            _ if context.cpl != 0 => answer::EPERM,
            // The exit was all it wanted.
            number::VAPIC_POLL_IRQ => answer::DONE,
            number::SEND_IPI if self.may_use(Features::PV_SEND_IPI) => self.send_ipis(&call),
            number::KICK_CPU if self.may_use(Features::PV_UNHALT) => {
                // Without a local APIC in the kernel HLT is the VMM's.
                if self.lapic.is_some() {
                    self.vm.targets().unhalt(second as u32);
                }
                answer::DONE
            }
            number::SCHED_YIELD if self.may_use(Features::PV_SCHED_YIELD) => {
                if self.may_yield_to(first) {
                    called = Called::Yield;
                }
                answer::DONE
            }
            number::CLOCK_PAIRING | number::MAP_GPA_RANGE => return Called::Outside,
            _ => answer::ENOSYS,
        };
        self.answer(&call, answer, skip);
        called
    }

    fn answer(&mut self, call: &Call, answer: u64, skip: Skip) {
        V::gprs(&mut self.arch).0[RAX] = call.rax(answer);
        self.skip(skip);
    }

    /// Whether the vCPU that a hypercall names may be waiting for a CPU, so that this one's can be given to it. Notes which it is.
    fn may_yield_to(&mut self, id: u64) -> bool {
        self.shared.stats.directed_yields_attempted.add(1);
        self.yield_to = u32::try_from(id)
            .ok()
            .filter(|id| *id != self.shared.id && self.vm.targets().is_outside(*id));
        self.yield_to.is_some()
    }

    /// Sends an interrupt to those of up to 128 vCPUs that two bitmaps name. Returns how many took it.
    fn send_ipis(&self, call: &Call) -> u64 {
        const RESERVED: u64 = 0x800 | 0xc_0000;
        const ASSERT: u64 = 1 << 14;
        const LEVEL: u64 = 1 << 15;
        let [low, high, min, icr] = call.arguments;
        if self.lapic.is_none() {
            return answer::EOPNOTSUPP;
        }
        if icr & RESERVED != 0 {
            return answer::EINVAL;
        }
        let message = Message {
            dest: 0,
            logical: false,
            delivery: Delivery::from_bits((icr >> 8) as u8),
            vector: icr as u8,
            level: icr & LEVEL != 0,
        };
        if message.delivery == Delivery::Init && icr & LEVEL != 0 && icr & ASSERT == 0 {
            // The end of an INIT, which nobody waits for.
            return 0;
        }
        // One destination each: the lowest priority among one is its own.
        let named = match call.wide {
            true => [low, high],
            false => [low | high << 32, 0],
        };
        self.vm.targets().send_to(&message, min as u32, named)
    }

    /// Makes the guest's hypercall, outside of the window.
    ///
    /// # Errors
    ///
    /// As [`Vcpu::touch_code`].
    pub(crate) fn hypercall_outside(&mut self) -> Result<Next> {
        let Some(skip) = self.peek(Self::plan_skip) else {
            return self.touch_code();
        };
        self.make_call(skip)
    }

    fn make_call(&mut self, skip: Skip) -> Result<Next> {
        let context = V::code_context(&self.arch);
        let call = self.call(context.code_size() == CodeSize::Bits64);
        let answer = match call.number {
            _ if context.cpl != 0 => answer::EPERM,
            number::CLOCK_PAIRING => self.pair_clocks(&call),
            number::MAP_GPA_RANGE => match self.map_gpa_range(&call) {
                Some(answer) => answer,
                None => {
                    let rip = context.rip;
                    self.pending = Pending::Hypercall {
                        skip,
                        rip,
                        wide: call.wide,
                    };
                    return Ok(Next::Userspace);
                }
            },
            _ => {
                // It is one for the window, where it could not be made for want of the instruction's bytes.
                return Ok(Next::Guest);
            }
        };
        self.answer(&call, answer, skip);
        Ok(Next::Guest)
    }

    /// Tells the guest what time it was by the host's clock at one value of its TSC.
    fn pair_clocks(&mut self, call: &Call) -> u64 {
        const WALL_CLOCK: u64 = 0;
        let [gpa, kind, ..] = call.arguments;
        let now = Moment::now();
        if kind != WALL_CLOCK || !now.exact {
            return answer::EOPNOTSUPP;
        }
        let mut pairing = [0; PAIRING_SIZE];
        pairing[..8].copy_from_slice(&(now.real / NS_PER_SECOND).to_le_bytes());
        pairing[8..16].copy_from_slice(&(now.real % NS_PER_SECOND).to_le_bytes());
        pairing[16..24].copy_from_slice(&self.guest_tsc_at(now.tsc).to_le_bytes());
        match self.main_slots().write(gpa, &pairing) {
            Ok(()) => answer::DONE,
            Err(_) => answer::EFAULT,
        }
    }

    /// Asks the VMM to change what memory is. The answer, if it isn't asked.
    fn map_gpa_range(&mut self, call: &Call) -> Option<u64> {
        let [gpa, pages, attributes, _] = call.arguments;
        let wanted = self.vm.switches.hypercalls.load(Ordering::Relaxed);
        if wanted & (1 << number::MAP_GPA_RANGE) == 0 {
            return Some(answer::ENOSYS);
        }
        if gpa % 4096 != 0 || (gpa / 4096).checked_add(pages).is_none() || pages == 0 {
            return Some(answer::EINVAL);
        }
        let arguments = [gpa, pages, attributes];
        self.exit_hypercall(number::MAP_GPA_RANGE, &arguments, call.wide);
        None
    }

    /// The VMM has made the call.
    pub(crate) fn complete_hypercall(&mut self, skip: Skip, wide: bool) {
        let answer = self.hypercall_answer();
        let answer = if wide { answer } else { answer & 0xffff_ffff };
        V::gprs(&mut self.arch).0[RAX] = answer;
        self.skip(skip);
    }

    /// The instruction of the other vendor's that makes hypercalls raised #UD: guests that came from there have it. It is replaced
    /// with this CPU's own, unless the VMM doesn't want that (`KVM_X86_QUIRK_FIX_HYPERCALL_INSN`). What can't be written to is
    /// made as it is.
    ///
    /// # Errors
    ///
    /// As [`Vcpu::hypercall_outside`].
    pub(crate) fn foreign_hypercall(&mut self, length: u8) -> Result<Next> {
        let quirk = u64::from(uapi::KVM_X86_QUIRK_FIX_HYPERCALL_INSN);
        if self.vm.switches.disabled_quirks.load(Ordering::Relaxed) & quirk != 0 {
            self.events.queue_exception(vectors::INVALID_OPCODE, None);
            return Ok(Next::Guest);
        }
        if usize::from(length) == V::HYPERCALL.len() && self.patch_code(&V::HYPERCALL) {
            return Ok(Next::Guest);
        }
        let skip = Skip::bytes(length);
        match self.hypercall_inside_with(skip) {
            Called::Outside => self.make_call(skip),
            _ => Ok(Next::Guest),
        }
    }
}
