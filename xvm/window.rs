// SPDX-License-Identifier: GPL-2.0

//! The window: the time in which the CPU is the guest's.
//!
//! Preemption and interrupts are off; the control block is current; FPU state, XCR0, syscall MSRs and debug registers are the
//! guest's. Every exit that needs no sleeping, no userspace and no host interrupt is handled inside, and the guest entered
//! again. A host interrupt makes the guest exit and ends the window, which bounds the host's latency.

use super::delivery::Prepared;
use super::exits;
use super::exits::Handled;
use super::machine::Machine;
use super::vcpu::Vcpu;
use super::Exit;
use super::XvmOps;
use crate::linux::fpu::KernelFpu;
use crate::linux::irq::IrqsOff;
use crate::linux::task;

/// The most exits that one window handles. A host interrupt ends a window long before; this is for a CPU that doesn't exit for
/// one, as Bochs doesn't when host and guest both have RFLAGS.IF clear.
const EXITS_MAX: u32 = 10_000;

/// Why the window closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// The host wants the CPU, or there is something to do that needs interrupts.
    Host,
    /// An exit that is handled outside.
    Exit(Exit),
}

/// An open window. Dropping it closes it.
pub(crate) struct Window<'a, V: XvmOps> {
    vcpu: &'a mut Vcpu<V>,
    machine: &'a Machine<V>,
    // Dropped in this order, after `drop` has put the host's state back: interrupts on, then the FPU released.
    irqs: IrqsOff,
    fpu: KernelFpu,
}

impl<'a, V: XvmOps> Window<'a, V> {
    /// Opens the window for `vcpu` on this CPU.
    #[inline]
    pub(crate) fn open(vcpu: &'a mut Vcpu<V>, machine: &'a Machine<V>) -> Self {
        let fpu = KernelFpu::begin();
        let irqs = IrqsOff::new();
        V::open(&mut vcpu.arch, machine.cpu(&irqs), &irqs);
        vcpu.fpu.load(&fpu, &irqs);
        if vcpu.last_cpu != irqs.cpu() {
            // What this CPU remembers of the vCPU may be from before it ran elsewhere.
            vcpu.last_cpu = irqs.cpu();
            V::flush_tlb(&mut vcpu.arch);
            vcpu.moved();
        }
        Self {
            vcpu,
            machine,
            irqs,
            fpu,
        }
    }

    /// Runs the guest until there is something to do outside.
    pub(crate) fn run(&mut self) -> Left {
        let vcpu = &mut *self.vcpu;
        let cpu = self.machine.cpu(&self.irqs);
        // Who sets these from now on interrupts this CPU, which ends the window.
        if task::has_work() || vcpu.must_serve() {
            return Left::Host;
        }
        let mut exits = 0;
        while exits < EXITS_MAX {
            vcpu.shared.presence.enter(self.irqs.cpu());
            let flushes = vcpu.vm.memory.flushes();
            if vcpu.flushed != flushes {
                vcpu.flushed = flushes;
                V::flush_tlb(&mut vcpu.arch);
            }
            let prepared = vcpu.prepare_events();
            if prepared == Prepared::Outside {
                vcpu.shared.presence.leave();
                break;
            }
            let (exit, simple) = loop {
                exits = exits.wrapping_add(1);
                let exit = V::run(&mut vcpu.arch, cpu);
                let simple = exits::simple(vcpu, &exit);
                if !simple || prepared != Prepared::Quiet || exits >= EXITS_MAX {
                    break (exit, simple);
                }
            };
            vcpu.shared.presence.leave();
            vcpu.collect_events();
            let left = match simple {
                true => continue,
                false => exits::handle(vcpu, exit),
            };
            let left = match left {
                Handled::Resume => continue,
                Handled::Host => Left::Host,
                Handled::Outside(exit) => Left::Exit(exit),
            };
            vcpu.shared.stats.exits.add(u64::from(exits));
            return left;
        }
        vcpu.shared.stats.exits.add(u64::from(exits));
        Left::Host
    }
}

impl<V: XvmOps> Drop for Window<'_, V> {
    #[inline]
    fn drop(&mut self) {
        self.vcpu.fpu.save(&self.fpu, &self.irqs);
        V::close(
            &mut self.vcpu.arch,
            self.machine.cpu(&self.irqs),
            &self.irqs,
        );
    }
}
