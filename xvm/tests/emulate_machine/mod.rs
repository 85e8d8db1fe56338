// SPDX-License-Identifier: GPL-2.0

//! A vCPU for the tests of the emulator: some memory, ports, and a userspace that can be asked for every access.

use xvm_logic::emulate::execute;
use xvm_logic::emulate::CodeSize;
use xvm_logic::emulate::Fault;
use xvm_logic::emulate::Insn;
use xvm_logic::emulate::Machine;
use xvm_logic::emulate::Mode;
use xvm_logic::emulate::Segment;
use xvm_logic::emulate::SegmentName;
use xvm_logic::emulate::Stop;

/// An access that has been made, or is to be made, with its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    Read(u64, Vec<u8>),
    Write(u64, Vec<u8>),
    In(u16, u8, Vec<u8>),
    Out(u16, u8, Vec<u8>),
}

/// What the guest can see of its registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registers {
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
}

#[derive(Clone, Debug)]
pub struct TestMachine {
    pub registers: Registers,
    pub segments: [Segment; 6],
    pub code_size: CodeSize,
    pub mode: Mode,
    /// Linear address of the first byte of `memory`; there is nothing around it.
    pub base: u64,
    pub memory: Vec<u8>,
    /// Bytes at the start of `memory` that can't be written.
    pub read_only: usize,
    /// All accesses, in order.
    pub history: Vec<Access>,
    /// Whether every access is for userspace to complete.
    pub ask_userspace: bool,
    pub commits: usize,
    /// The registers at the last commit.
    committed: Registers,
    /// What userspace has completed since the last commit.
    log: Vec<Access>,
    cursor: usize,
    pending: Option<Access>,
}

/// A segment that covers everything.
pub const FLAT: Segment = Segment {
    selector: 0x10,
    base: 0,
    limit: u32::MAX,
    typ: 3,
    s: true,
    dpl: 0,
    present: true,
    avl: false,
    l: false,
    db: true,
    g: true,
    unusable: false,
};

impl TestMachine {
    /// Flat segments, protected mode.
    pub fn new(code_size: CodeSize, base: u64, memory: Vec<u8>) -> Self {
        let registers = Registers {
            gpr: [0; 16],
            rip: 0x1000,
            rflags: 2,
        };
        TestMachine {
            committed: registers.clone(),
            registers,
            segments: [FLAT; 6],
            code_size,
            mode: Mode::Protected,
            base,
            memory,
            read_only: 0,
            history: Vec::new(),
            ask_userspace: false,
            commits: 0,
            log: Vec::new(),
            cursor: 0,
            pending: None,
        }
    }

    /// Executes `insn`, again and again as long as userspace has something to complete.
    pub fn run(&mut self, insn: &Insn) -> Result<(), Stop> {
        self.committed = self.registers.clone();
        loop {
            let result = execute(self, insn);
            match result {
                Ok(()) => assert_eq!(self.log, [], "the last accesses were not committed"),
                Err(_) => assert_eq!(self.registers, self.committed, "{result:?}"),
            }
            if result != Err(Stop::Userspace) {
                self.log.clear();
                self.cursor = 0;
                return result;
            }
            self.complete();
        }
    }

    /// Userspace completes what it was asked for.
    fn complete(&mut self) {
        let pending = self.pending.take().expect("userspace was asked");
        let done = self.perform(pending);
        self.log.push(done);
        self.cursor = 0;
    }

    fn access(&mut self, wanted: Access) -> Result<Access, Stop> {
        if let Some(done) = self.log.get(self.cursor) {
            assert!(done.is_answer_to(&wanted), "{done:x?} for {wanted:x?}");
            self.cursor += 1;
            return Ok(done.clone());
        }
        if self.ask_userspace {
            assert_eq!(self.pending, None, "executed before userspace was done");
            self.pending = Some(wanted);
            return Err(Stop::Userspace);
        }
        Ok(self.perform(wanted))
    }

    fn perform(&mut self, mut access: Access) -> Access {
        match &mut access {
            Access::Read(linear, data) => {
                let start = (*linear - self.base) as usize;
                let length = data.len();
                data.copy_from_slice(&self.memory[start..start + length]);
            }
            Access::Write(linear, data) => {
                let start = (*linear - self.base) as usize;
                self.memory[start..start + data.len()].copy_from_slice(data);
            }
            Access::In(port, _, data) => {
                for (i, byte) in data.iter_mut().enumerate() {
                    *byte = (self.history.len() + i) as u8 ^ *port as u8;
                }
            }
            Access::Out(..) => (),
        }
        self.history.push(access.clone());
        access
    }

    /// #PF if a byte is outside of memory, or is to be written and can't be.
    fn check(&self, linear: u64, length: usize, write: bool) -> Result<(), Stop> {
        let first = if write { self.read_only } else { 0 };
        for i in 0..length as u64 {
            let address = linear.wrapping_add(i);
            let offset = address.wrapping_sub(self.base) as usize;
            if offset >= self.memory.len() || offset < first {
                return Err(Stop::Fault(Fault {
                    vector: 14,
                    error_code: Some(if write { 2 } else { 0 }),
                    address: Some(address),
                }));
            }
        }
        Ok(())
    }
}

impl Access {
    /// Whether a completed access answers another, which has no data yet if it is a read.
    fn is_answer_to(&self, wanted: &Access) -> bool {
        match (self, wanted) {
            (Access::Read(a, x), Access::Read(b, y)) => a == b && x.len() == y.len(),
            (Access::In(a, s, x), Access::In(b, t, y)) => (a, s, x.len()) == (b, t, y.len()),
            _ => self == wanted,
        }
    }

    fn into_data(self) -> Vec<u8> {
        match self {
            Access::Read(_, data) | Access::Write(_, data) => data,
            Access::In(_, _, data) | Access::Out(_, _, data) => data,
        }
    }
}

impl Machine for TestMachine {
    fn gpr(&self, index: u8) -> u64 {
        self.registers.gpr[usize::from(index)]
    }

    fn set_gpr(&mut self, index: u8, value: u64) {
        self.registers.gpr[usize::from(index)] = value;
    }

    fn rip(&self) -> u64 {
        self.registers.rip
    }

    fn set_rip(&mut self, rip: u64) {
        self.registers.rip = rip;
    }

    fn rflags(&self) -> u64 {
        self.registers.rflags
    }

    fn set_rflags(&mut self, rflags: u64) {
        self.registers.rflags = rflags;
    }

    fn segment(&self, name: SegmentName) -> Segment {
        self.segments[name as usize]
    }

    fn code_size(&self) -> CodeSize {
        self.code_size
    }

    fn mode(&self) -> Mode {
        self.mode
    }

    fn read(&mut self, linear: u64, data: &mut [u8]) -> Result<(), Stop> {
        self.check(linear, data.len(), false)?;
        let done = self.access(Access::Read(linear, data.to_vec()))?;
        data.copy_from_slice(&done.into_data());
        Ok(())
    }

    fn check_write(&mut self, linear: u64, length: usize) -> Result<(), Stop> {
        self.check(linear, length, true)
    }

    fn write(&mut self, linear: u64, data: &[u8]) -> Result<(), Stop> {
        self.check(linear, data.len(), true)?;
        self.access(Access::Write(linear, data.to_vec()))?;
        Ok(())
    }

    fn io_permitted(&mut self, port: u16, size: u8) -> Result<(), Stop> {
        // The ports from 0xf000 up are not for this guest.
        if u32::from(port) + u32::from(size) > 0xf000 {
            return Err(Stop::Fault(Fault {
                vector: 13,
                error_code: Some(0),
                address: None,
            }));
        }
        Ok(())
    }

    fn io_in(&mut self, port: u16, size: u8, data: &mut [u8]) -> Result<(), Stop> {
        assert_eq!(data.len() % usize::from(size), 0);
        let done = self.access(Access::In(port, size, data.to_vec()))?;
        data.copy_from_slice(&done.into_data());
        Ok(())
    }

    fn io_out(&mut self, port: u16, size: u8, data: &[u8]) -> Result<(), Stop> {
        assert_eq!(data.len() % usize::from(size), 0);
        self.access(Access::Out(port, size, data.to_vec()))?;
        Ok(())
    }

    fn commit(&mut self) {
        assert_eq!(self.cursor, self.log.len(), "an access was not made again");
        self.log.clear();
        self.cursor = 0;
        self.committed = self.registers.clone();
        self.commits += 1;
    }
}
