// SPDX-License-Identifier: GPL-2.0

//! What the emulator asks of the vCPU: registers, memory, ports.

use super::Emulation;
use crate::xvm::emulate;
use crate::xvm::emulate::CodeSize;
use crate::xvm::emulate::Machine;
use crate::xvm::emulate::Mode;
use crate::xvm::emulate::SegmentName;
use crate::xvm::emulate::Stop;
use crate::xvm::guest_memory;
use crate::xvm::replay;
use crate::xvm::replay::Kind;
use crate::xvm::replay::PIECE;
use crate::xvm::state::seg;
use crate::xvm::state::UNUSABLE;
use crate::xvm::vcpu::PORT_DATA;
use crate::xvm::XvmOps;
use kernel::prelude::*;

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
