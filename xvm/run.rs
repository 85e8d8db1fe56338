// SPDX-License-Identifier: GPL-2.0

//! `KVM_RUN` (api.rst, 4.10): the loop around the window, and the exits that are handled outside of it.

use super::device_access::PlainMove;
use super::emulation::Emulated;
use super::exits::Skip;
use super::irqchip::IrqChip;
use super::machine::Machine;
use super::memory::Filled;
use super::platform::bus::Space;
use super::platform::lapic::Reset;
use super::pv::OffCpu;
use super::state::seg;
use super::state::DebugRegs;
use super::state::Interruptibility;
use super::state::SystemRegs;
use super::state::UserRegs;
use super::state::RAX;
use super::state::RCX;
use super::state::RDX;
use super::vcpu::MpState;
use super::vcpu::Shared;
use super::vcpu::Vcpu;
use super::vcpu::PORT_DATA;
use super::vectors;
use super::window::Left;
use super::window::Window;
use super::Exit;
use super::MemoryFault;
use super::PortAccess;
use super::XvmOps;
use crate::linux::preempt::Watch;
use crate::linux::task;
use crate::linux::task::SignalMask;
use crate::uapi;
use core::pin::pin;
use core::sync::atomic::Ordering;
use kernel::page::PAGE_SIZE;
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

/// Whether the guest goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It does.
    Guest,
    /// Userspace has to do something first.
    Userspace,
}

impl<V: XvmOps> Vcpu<V> {
    /// Runs the guest until userspace is needed, or a signal comes.
    ///
    /// # Errors
    ///
    /// `EINTR` when a signal or `immediate_exit` ended it, `EINVAL` when the VMM's CR8 is none, `EFAULT` or `EHWPOISON` when guest
    /// memory isn't there.
    pub(crate) fn run(&mut self, shared: &Shared, machine: &Machine<V>) -> Result {
        let _mask = self.signal_mask.map(SignalMask::set);
        let watch = pin!(Watch::new(&shared.off_cpu));
        let result = self
            .take_synced()
            .and_then(|()| self.run_guest(watch.as_ref(), machine));
        self.give_synced();
        self.fill_run_page();
        // `immediate_exit` leaves the reason of the exit that was completed: VMMs look at it after that.
        if result == Err(EINTR) && task::signal_pending() {
            shared.stats.signal_exits.add(1);
            self.set_exit(uapi::KVM_EXIT_INTR);
        }
        result
    }

    fn run_guest(&mut self, watch: Pin<&Watch<'_, OffCpu>>, machine: &Machine<V>) -> Result {
        self.announce_thread()?;
        if self.lapic.is_none() {
            let cr8 = self.asked_cr8();
            if cr8 > 0xf {
                return Err(EINVAL);
            }
            self.set_cr8(cr8 as u8);
        }
        if self.complete()? == Next::Userspace {
            return Ok(());
        }
        if self.immediate_exit() {
            return Err(EINTR);
        }
        if self.config.debug.is_some() {
            self.begin_debugging();
        }
        self.window_wanted = self.asked_window() && !self.has_pic();
        if self.window_wanted && self.ready_for_interrupt() {
            self.set_exit(uapi::KVM_EXIT_IRQ_WINDOW_OPEN);
            return Ok(());
        }
        self.steal_time_passed();
        loop {
            self.shared.off_cpu.set_between(true);
            if self.tells_steal_time() {
                watch.begin(&self.vm.watching);
            }
            if self.mp_state != MpState::Runnable && !self.sleep() {
                return Err(EINTR);
            }
            if self.pv.async_pf.is_stuck() && !self.wait_for_page() {
                return Err(EINTR);
            }
            // What nobody uses any more of old slots is freed here rather than with interrupts off.
            self.slots.refresh();
            if self.slots.ring().is_some_and(|ring| ring.is_full()) {
                self.set_exit(uapi::KVM_EXIT_DIRTY_RING_FULL);
                return Ok(());
            }
            if self.smi_waits() || !self.shared.mailbox.is_empty() {
                self.take_init();
                self.take_smi()?;
            }
            if self.mp_state != MpState::Runnable {
                continue;
            }
            self.serve_guest();
            self.set_timer();
            if let Some(vector) = self.ended.take() {
                self.exit_eoi(vector);
                return Ok(());
            }
            if self.events.triple_fault {
                return self.shut_down().map(|_| ());
            }
            self.shared.stats.windows.add(1);
            let left = Window::open(self, machine).run();
            match left {
                Left::Exit(exit) => {
                    self.shared.off_cpu.set_between(false);
                    if self.handle(exit)? == Next::Userspace {
                        return Ok(());
                    }
                }
                // The next window closes at once if there is some when it opens.
                Left::Host => task::do_work()?,
            }
        }
    }

    /// Handles an exit outside of the window.
    #[inline]
    fn handle(&mut self, exit: Exit) -> Result<Next> {
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

    /// Completes what userspace did for the guest since the last exit.
    #[inline]
    fn complete(&mut self) -> Result<Next> {
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

    fn shut_down(&mut self) -> Result<Next> {
        // What could not be delivered is gone with the shutdown.
        self.events.triple_fault = false;
        self.events.injected = None;
        self.set_exit(uapi::KVM_EXIT_SHUTDOWN);
        Ok(Next::Userspace)
    }

    /// An INIT or start-up IPI (SDM vol 3, 10.4.3).
    pub(crate) fn take_init(&mut self) {
        if self.lapic.is_none() || self.postpone_init() {
            return;
        }
        if self.shared.mailbox.take_init() {
            self.reset_by_init();
        }
        if self.mp_state == MpState::InitReceived {
            if let Some(page) = self.shared.mailbox.take_startup() {
                let mut system = V::system_regs(&self.arch);
                system.segments[seg::CS].selector = u16::from(page) << 8;
                system.segments[seg::CS].base = u64::from(page) << 12;
                self.set_system_regs(&system);
                V::load_cpu_user_regs(
                    &mut self.arch,
                    &UserRegs {
                        rip: 0,
                        ..UserRegs::at_power_up()
                    },
                );
                self.mp_state = MpState::Runnable;
            }
        } else {
            // Only a processor that waits for it takes a start-up IPI.
            self.shared.mailbox.take_startup();
        }
    }

    fn reset_by_init(&mut self) {
        let old = V::system_regs(&self.arch);
        // CD and NW stay as they are (SDM vol 3, table 10-1).
        let system = SystemRegs {
            cr0: (SystemRegs::at_power_up().cr0 & !0x6000_0000) | (old.cr0 & 0x6000_0000),
            debug: DebugRegs::at_power_up(),
            ..SystemRegs::at_power_up()
        };
        self.set_system_regs(&system);
        V::load_cpu_user_regs(&mut self.arch, &UserRegs::at_power_up());
        V::set_interruptibility(&mut self.arch, Interruptibility::default());
        self.events = super::events::Events::default();
        self.forget_smi();
        self.reset_pv();
        self.replay.clear();
        self.pending = Pending::None;
        if let Some(lapic) = &mut self.lapic {
            lapic.open_at_reset(self.vm.switches.opens_lint0());
            lapic.reset(Reset::Init);
            self.shared.mailbox.publish(lapic);
        }
        self.timer_stale = true;
        self.mp_state = match self.shared.bootstrap {
            true => MpState::Runnable,
            false => MpState::InitReceived,
        };
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

    /// Whether the VMM may queue an interrupt now.
    pub(super) fn ready_for_interrupt(&self) -> bool {
        self.hears_pic()
            && self.interruptible()
            && self.events.interrupt.is_none()
            && self.events.injected.is_none()
    }
}
