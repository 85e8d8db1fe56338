// SPDX-License-Identifier: GPL-2.0

//! Carrying out an instruction for the guest: the emulator's [`Machine`] is the vCPU.
//!
//! Memory goes to the VMM's memory, to the local APIC, to the IOAPIC, or to the VMM as an MMIO exit. Outside of the window.

use super::emulate;
use super::emulate::walk;
use super::emulate::walk::WalkError;
use super::emulate::CodeSize;
use super::emulate::DecodeError;
use super::emulate::Fault;
use super::emulate::Insn;
use super::emulate::Machine;
use super::emulate::Mode;
use super::emulate::SegmentName;
use super::emulate::Stop;
use super::guest_memory;
use super::guest_memory::Sleeping;
use super::guest_memory::INSN_MAX;
use super::platform::bus::Space;
use super::replay;
use super::replay::Answer;
use super::replay::Kind;
use super::replay::PIECE;
use super::state::seg;
use super::state::CodeContext;
use super::state::SystemRegs;
use super::state::UserRegs;
use super::state::UNUSABLE;
use super::vcpu::Vcpu;
use super::vcpu::PORT_DATA;
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

/// A piece of an access that is inside of one page.
struct Piece {
    gpa: u64,
    at: usize,
    length: usize,
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

    fn translate(&mut self, linear: u64, write: bool, fetch: bool) -> Result<u64, Stop> {
        let paging = self.vcpu.paging(&self.context);
        let access = walk::Access {
            write,
            fetch,
            user: self.context.cpl == 3,
            implicit: false,
            ac: self.user.rflags & guest_memory::ALIGNMENT_CHECK != 0,
        };
        let slots = self.vcpu.current_slots();
        match walk::walk(&mut Sleeping(slots), &paging, linear, access) {
            Ok(translation) => Ok(translation.gpa),
            Err(WalkError::Fault(fault)) => Err(Stop::Fault(fault)),
            Err(WalkError::Table(error)) => {
                self.failed = Some(error);
                Err(Stop::Unknown)
            }
            // Other vCPUs change the tables under us: the guest executes the instruction again.
            Err(WalkError::Contended) => {
                self.failed = Some(EAGAIN);
                Err(Stop::Unknown)
            }
        }
    }

    /// The pieces of an access, translated before any is made.
    fn pieces(
        &mut self,
        linear: u64,
        length: usize,
        write: bool,
    ) -> Result<[Option<Piece>; 2], Stop> {
        let first = length.min(PAGE_SIZE - (linear % PAGE_SIZE as u64) as usize);
        let head = Piece {
            gpa: self.translate(linear, write, false)?,
            at: 0,
            length: first,
        };
        if first == length {
            return Ok([Some(head), None]);
        }
        let next = self.context.wrap(linear.wrapping_add(first as u64));
        let tail = Piece {
            gpa: self.translate(next, write, false)?,
            at: first,
            length: length - first,
        };
        Ok([Some(head), Some(tail)])
    }

    fn read_piece(&mut self, gpa: u64, data: &mut [u8]) -> Result<(), Stop> {
        match self.vcpu.current_slots().read(gpa, data) {
            Ok(()) => return Ok(()),
            Err(error) if error == ENXIO => {}
            Err(error) => return Err(self.fail(error)),
        }
        if self.vcpu.device_read(gpa, data) {
            return Ok(());
        }
        for (i, part) in data.chunks_mut(PIECE).enumerate() {
            let access = replay::Access {
                kind: Kind::Read,
                address: gpa.wrapping_add((i * PIECE) as u64),
                length: part.len() as u16,
                data: [0; PIECE],
            };
            let answer = self.ask(access)?;
            part.copy_from_slice(&answer[..part.len()]);
        }
        Ok(())
    }

    fn write_piece(&mut self, gpa: u64, data: &[u8]) -> Result<(), Stop> {
        match self.vcpu.current_slots().write(gpa, data) {
            Ok(()) => return Ok(()),
            Err(error) if error == ENXIO => {}
            Err(error) => return Err(self.fail(error)),
        }
        if self.vcpu.device_write(gpa, data) {
            return Ok(());
        }
        for (i, part) in data.chunks(PIECE).enumerate() {
            let mut access = replay::Access {
                kind: Kind::Write,
                address: gpa.wrapping_add((i * PIECE) as u64),
                length: part.len() as u16,
                data: [0; PIECE],
            };
            access.data[..part.len()].copy_from_slice(part);
            self.ask_for_write(access, part)?;
        }
        Ok(())
    }

    fn ask(&mut self, access: replay::Access) -> Result<[u8; PIECE], Stop> {
        match self.vcpu.replay.access(access) {
            Answer::Done(data) => Ok(data),
            Answer::Ask => Err(Stop::Userspace),
            Answer::TooMany => Err(Stop::Unknown),
        }
    }

    /// A write is made by the VMM's stand-in, if there is one for it: once, also when the instruction is executed again.
    fn ask_for_write(&mut self, access: replay::Access, data: &[u8]) -> Result<(), Stop> {
        let asked = self.ask(access);
        if asked.is_err()
            && self.vcpu.replay.asked().is_some()
            && self.vcpu.bus_write(Space::Memory, access.address, data)
        {
            self.vcpu.replay.made();
            return Ok(());
        }
        asked.map(|_| ())
    }

    /// Whether the elements of a string are written to a port by the VMM's stand-in. As in KVM the first one decides for all.
    fn written(&mut self, port: u16, size: u8, data: &[u8]) -> bool {
        let mut elements = data.chunks(usize::from(size.max(1)));
        let mut write = |element: &[u8]| self.vcpu.bus_write(Space::Port, port.into(), element);
        let taken = elements.next().is_some_and(&mut write);
        if taken {
            elements.for_each(|element| {
                write(element);
            });
        }
        taken
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

impl<V: XvmOps> Machine for Emulation<'_, V> {
    fn gpr(&self, index: u8) -> u64 {
        self.user.gprs.0[usize::from(index & 15)]
    }

    fn set_gpr(&mut self, index: u8, value: u64) {
        self.user.gprs.0[usize::from(index & 15)] = value;
    }

    fn rip(&self) -> u64 {
        self.user.rip
    }

    fn set_rip(&mut self, rip: u64) {
        self.user.rip = rip;
    }

    fn rflags(&self) -> u64 {
        self.user.rflags
    }

    fn set_rflags(&mut self, rflags: u64) {
        self.user.rflags = rflags;
    }

    fn segment(&self, name: SegmentName) -> emulate::Segment {
        let number = match name {
            SegmentName::Es => seg::ES,
            SegmentName::Cs => seg::CS,
            SegmentName::Ss => seg::SS,
            SegmentName::Ds => seg::DS,
            SegmentName::Fs => seg::FS,
            SegmentName::Gs => seg::GS,
        };
        let segment = &self.system.segments[number];
        let bit = |n: u32| segment.attributes & (1 << n) != 0;
        emulate::Segment {
            selector: segment.selector,
            base: segment.base,
            limit: segment.limit,
            typ: (segment.attributes & 0xf) as u8,
            s: bit(4),
            dpl: ((segment.attributes >> 5) & 3) as u8,
            present: bit(7),
            avl: bit(8),
            l: bit(9),
            db: bit(10),
            g: bit(11),
            unusable: segment.attributes & UNUSABLE != 0,
        }
    }

    fn code_size(&self) -> CodeSize {
        self.context.code_size()
    }

    fn mode(&self) -> Mode {
        if self.system.cr0 & 1 == 0 {
            Mode::Real
        } else if guest_memory::is_virtual_8086(self.user.rflags) {
            Mode::Virtual8086
        } else {
            Mode::Protected
        }
    }

    fn read(&mut self, linear: u64, data: &mut [u8]) -> Result<(), Stop> {
        for piece in self.pieces(linear, data.len(), false)?.iter().flatten() {
            self.read_piece(piece.gpa, &mut data[piece.at..piece.at + piece.length])?;
        }
        Ok(())
    }

    fn check_write(&mut self, linear: u64, length: usize) -> Result<(), Stop> {
        self.pieces(linear, length, true).map(|_| ())
    }

    fn write(&mut self, linear: u64, data: &[u8]) -> Result<(), Stop> {
        for piece in self.pieces(linear, data.len(), true)?.iter().flatten() {
            self.write_piece(piece.gpa, &data[piece.at..piece.at + piece.length])?;
        }
        Ok(())
    }

    fn io_permitted(&mut self, _: u16, _: u8) -> Result<(), Stop> {
        // Both vendors check IOPL and the TSS's permission map before the intercept.
        Ok(())
    }

    fn io_in(&mut self, port: u16, size: u8, data: &mut [u8]) -> Result<(), Stop> {
        if size == 1
            && data.iter_mut().all(|byte| {
                self.vcpu
                    .port_read(port)
                    .map(|value| *byte = value)
                    .is_some()
            })
        {
            return Ok(());
        }
        let access = port_access(Kind::PortIn, port, size, data.len());
        self.ask(access)?;
        self.vcpu.pages.read(PORT_DATA, data);
        Ok(())
    }

    fn io_out(&mut self, port: u16, size: u8, data: &[u8]) -> Result<(), Stop> {
        if size == 1
            && data
                .iter()
                .all(|byte| self.vcpu.port_write(port, *byte).is_some())
        {
            return Ok(());
        }
        let access = port_access(Kind::PortOut, port, size, data.len());
        if self.vcpu.replay.asked().is_none() {
            self.vcpu.pages.write(PORT_DATA, data);
        }
        let asked = self.ask(access);
        if asked.is_err() && self.vcpu.replay.asked().is_some() && self.written(port, size, data) {
            self.vcpu.replay.made();
            return Ok(());
        }
        asked.map(|_| ())
    }

    fn commit(&mut self) {
        self.vcpu.replay.commit();
    }
}

/// An access to a port; its element size goes where the data of an access to memory would be.
fn port_access(kind: Kind, port: u16, size: u8, length: usize) -> replay::Access {
    let mut data = [0; PIECE];
    data[0] = size;
    replay::Access {
        kind,
        address: port.into(),
        length: length as u16,
        data,
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
