// SPDX-License-Identifier: GPL-2.0

//! Accesses to devices in userspace by the instruction under emulation.
//!
//! An instruction that needs userspace is stopped and executed again from its start when userspace has answered. What it did before
//! is remembered here in order: a read that was answered gives the same data again, a write that was made isn't made
//! again. The decoded instruction is kept too, so that it is the same one that goes on.

use super::emulate::Insn;

/// An instruction makes few accesses, in pieces of eight bytes: the most are a batch of 256 bytes for INS or OUTS in two pages, and its port.
const ACCESSES: usize = 40;

/// Bytes of an access to memory.
pub(crate) const PIECE: usize = 8;

/// What an access is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A read from guest-physical memory.
    Read,
    /// A write to guest-physical memory.
    Write,
    /// A read from a port (string instructions).
    PortIn,
    /// A write to a port.
    PortOut,
}

/// An access that userspace made, or is to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    /// What it is.
    pub(crate) kind: Kind,
    /// Guest-physical address or port.
    pub(crate) address: u64,
    /// Bytes; for ports, of all elements (their data are in the shared page).
    pub(crate) length: u16,
    /// The data of an access to memory.
    pub(crate) data: [u8; PIECE],
}

/// The log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Replay {
    done: [Option<Access>; ACCESSES],
    /// Accesses in `done`.
    count: usize,
    /// The next one that the instruction under execution makes.
    next: usize,
    /// What userspace has been asked for.
    asked: Option<Access>,
    insn: Option<Insn>,
    rip: u64,
}

impl Default for Replay {
    fn default() -> Self {
        Self {
            done: [None; ACCESSES],
            count: 0,
            next: 0,
            asked: None,
            insn: None,
            rip: 0,
        }
    }
}

/// What the log says to an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It was made; these are its data.
    Done([u8; PIECE]),
    /// Userspace has been asked for it now.
    Ask,
    /// It makes more accesses than any instruction does.
    TooMany,
}

impl Replay {
    /// Forgets all: the instruction is complete, or given up.
    pub(crate) fn clear(&mut self) {
        self.commit();
        self.asked = None;
        self.insn = None;
    }

    /// The registers hold the result of all accesses so far.
    pub(crate) fn commit(&mut self) {
        self.count = 0;
        self.next = 0;
    }

    /// Starts, or starts again, the instruction at `rip`. Returns it if it had begun.
    pub(crate) fn begin(&mut self, rip: u64) -> Option<Insn> {
        if self.rip != rip {
            // The VMM moved the vCPU elsewhere: what was under way there is gone.
            self.clear();
            self.rip = rip;
        }
        self.next = 0;
        self.insn
    }

    /// Keeps the instruction.
    pub(crate) fn keep(&mut self, insn: &Insn) {
        self.insn = Some(*insn);
    }

    /// The instruction makes an access.
    pub(crate) fn access(&mut self, access: Access) -> Answer {
        if self.next < self.count {
            if let Some(Some(done)) = self.done.get(self.next) {
                let same = (done.kind, done.address, done.length)
                    == (access.kind, access.address, access.length);
                if same {
                    self.next += 1;
                    return Answer::Done(done.data);
                }
            }
            // The VMM changed registers meanwhile: what follows is another access.
            self.count = self.next;
        }
        if self.next >= ACCESSES {
            return Answer::TooMany;
        }
        self.asked = Some(access);
        Answer::Ask
    }

    /// The access that userspace was to be asked for has been made without it.
    pub(crate) fn made(&mut self) {
        self.answered([0; PIECE]);
        self.next = self.count;
    }

    /// What userspace has been asked for.
    pub(crate) fn asked(&self) -> Option<&Access> {
        self.asked.as_ref()
    }

    /// Userspace has answered; `data` are what it read.
    pub(crate) fn answered(&mut self, data: [u8; PIECE]) {
        if let (Some(mut access), Some(slot)) = (self.asked.take(), self.done.get_mut(self.count)) {
            if access.kind == Kind::Read {
                access.data = data;
            }
            *slot = Some(access);
            self.count += 1;
        }
    }
}
