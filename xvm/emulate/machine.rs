// SPDX-License-Identifier: GPL-2.0

//! What the emulator asks of a vCPU, and why it may stop.

use super::super::vectors;

/// Default operand and address size of the code that runs: CS.L and CS.D (Intel SDM vol. 3, 3.4.5; AMD APM vol. 2, 4.8.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeSize {
    /// Real mode, virtual-8086 mode, and protected mode with CS.D = 0.
    Bits16,
    /// Protected and compatibility mode with CS.D = 1.
    Bits32,
    /// 64-bit mode.
    Bits64,
}

/// How segments are checked and whether an exception has an error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// CR0.PE = 0: limits are checked, types are not, exceptions have no error code.
    Real,
    /// RFLAGS.VM = 1: as in real mode, but exceptions go to protected mode, with their error code.
    Virtual8086,
    /// Protected mode, compatibility mode and 64-bit mode.
    Protected,
}

/// A segment register, numbered as in instructions (Intel SDM vol. 2, 3.1.1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentName {
    /// Extra segment.
    Es,
    /// Code segment.
    Cs,
    /// Stack segment.
    Ss,
    /// Data segment.
    Ds,
    /// Segment with a base of its own in 64-bit mode.
    Fs,
    /// Segment with a base of its own in 64-bit mode.
    Gs,
}

/// A segment register with its hidden part (Intel SDM vol. 3, 3.4.5; AMD APM vol. 2, 4.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The visible part.
    pub selector: u16,
    /// First linear address.
    pub base: u64,
    /// Last offset, in bytes, whatever the granularity.
    pub limit: u32,
    /// Type, bits 3:0.
    pub typ: u8,
    /// Code or data rather than a system segment.
    pub s: bool,
    /// Descriptor privilege level.
    pub dpl: u8,
    /// Present.
    pub present: bool,
    /// For software.
    pub avl: bool,
    /// 64-bit code.
    pub l: bool,
    /// Default size of code; upper bound of expand-down data.
    pub db: bool,
    /// Granularity of the limit in the descriptor.
    pub g: bool,
    /// Holds a null selector.
    pub unusable: bool,
}

/// An exception to inject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Exception vector.
    pub vector: u8,
    /// Error code, if this exception has one in the current mode.
    pub error_code: Option<u32>,
    /// For a page fault, what goes to CR2.
    pub address: Option<u64>,
}

impl Fault {
    /// #UD, invalid opcode.
    pub const INVALID_OPCODE: Fault = Fault {
        vector: vectors::INVALID_OPCODE,
        error_code: None,
        address: None,
    };

    /// #GP(0), general protection.
    pub const GENERAL_PROTECTION: Fault = Fault {
        vector: vectors::GENERAL_PROTECTION,
        error_code: Some(0),
        address: None,
    };
}

/// Why an instruction was not completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The guest gets an exception. RIP is still at the instruction.
    Fault(Fault),
    /// Userspace must complete an access; then the instruction is executed again from its start.
    Userspace,
    /// Not an instruction that this emulator knows.
    Unknown,
}

/// The vCPU, as the emulator sees it.
///
/// For one state and one instruction the sequence of [`read`](Machine::read), [`check_write`](Machine::check_write),
/// [`write`](Machine::write), [`io_permitted`](Machine::io_permitted), [`io_in`](Machine::io_in) and
/// [`io_out`](Machine::io_out) calls between two commits is always the same as long as they are answered the same.
pub trait Machine {
    /// All 64 bits of a general-purpose register: 0 RAX, 1 RCX, 2 RDX, 3 RBX, 4 RSP, 5 RBP, 6 RSI, 7 RDI, 8 to 15.
    fn gpr(&self, index: u8) -> u64;

    /// Sets all 64 bits of a general-purpose register.
    fn set_gpr(&mut self, index: u8, value: u64);

    /// Address of the instruction, relative to CS.
    fn rip(&self) -> u64;

    /// Sets RIP.
    fn set_rip(&mut self, rip: u64);

    /// RFLAGS.
    fn rflags(&self) -> u64;

    /// Sets RFLAGS. Only the status flags ever differ from what [`rflags`](Machine::rflags) returned.
    fn set_rflags(&mut self, rflags: u64);

    /// A segment register.
    fn segment(&self, name: SegmentName) -> Segment;

    /// Default operand and address size.
    fn code_size(&self) -> CodeSize;

    /// Real, virtual-8086 or protected mode.
    fn mode(&self) -> Mode;

    /// Reads data at a linear address with the privilege of the vCPU. A fault means that nothing was read, even if
    /// only the second of two pages faults. Outside of 64-bit code addresses wrap at 4 GiB.
    fn read(&mut self, linear: u64, data: &mut [u8]) -> Result<(), Stop>;

    /// Faults as [`write`](Machine::write) would, and changes nothing. Comes before a read that is followed by a write
    /// to the same bytes, so that the fault is that of a write and the device sees no read that is then repeated.
    fn check_write(&mut self, linear: u64, length: usize) -> Result<(), Stop>;

    /// Writes data at a linear address. A fault means that nothing was written.
    fn write(&mut self, linear: u64, data: &[u8]) -> Result<(), Stop>;

    /// #GP if the I/O privilege level and the permission map of the TSS deny the port (Intel SDM vol. 1, "Protected-Mode I/O"). A
    /// machine whose intercepts come after these checks has nothing to do.
    fn io_permitted(&mut self, port: u16, size: u8) -> Result<(), Stop>;

    /// Reads `data.len() / size` times from a port, `size` bytes (1, 2 or 4) each.
    fn io_in(&mut self, port: u16, size: u8, data: &mut [u8]) -> Result<(), Stop>;

    /// Writes `data.len() / size` times to a port, `size` bytes (1, 2 or 4) each.
    fn io_out(&mut self, port: u16, size: u8, data: &[u8]) -> Result<(), Stop>;

    /// The registers now hold the result of the accesses made so far: none of them is made again.
    fn commit(&mut self);
}
