// SPDX-License-Identifier: GPL-2.0

//! The accesses to memory of an instruction under emulation: the VMM's memory, the devices in the kernel, or the VMM.

use super::Emulation;
use crate::xvm::emulate::walk;
use crate::xvm::emulate::walk::WalkError;
use crate::xvm::emulate::Stop;
use crate::xvm::guest_memory;
use crate::xvm::guest_memory::Sleeping;
use crate::xvm::platform::bus::Space;
use crate::xvm::replay;
use crate::xvm::replay::Answer;
use crate::xvm::replay::Kind;
use crate::xvm::replay::PIECE;
use crate::xvm::XvmOps;
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;

/// A piece of an access that is inside of one page.
pub(super) struct Piece {
    pub(super) gpa: u64,
    pub(super) at: usize,
    pub(super) length: usize,
}

impl<V: XvmOps> Emulation<'_, V> {
    pub(super) fn translate(&mut self, linear: u64, write: bool, fetch: bool) -> Result<u64, Stop> {
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
    pub(super) fn pieces(
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

    pub(super) fn read_piece(&mut self, gpa: u64, data: &mut [u8]) -> Result<(), Stop> {
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

    pub(super) fn write_piece(&mut self, gpa: u64, data: &[u8]) -> Result<(), Stop> {
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

    pub(super) fn ask(&mut self, access: replay::Access) -> Result<[u8; PIECE], Stop> {
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
    pub(super) fn written(&mut self, port: u16, size: u8, data: &[u8]) -> bool {
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
}
