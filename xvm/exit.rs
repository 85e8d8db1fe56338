// SPDX-License-Identifier: GPL-2.0

//! Why a guest stopped running, in words that know no vendor.

/// An access to an I/O port that exited (SDM vol 3, 29.2.1 table 29-5; APM vol 2, 15.10.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortAccess {
    /// The port.
    pub(crate) port: u16,
    /// Bytes: 1, 2 or 4.
    pub(crate) size: u8,
    /// IN or INS.
    pub(crate) input: bool,
    /// INS or OUTS: the emulator does it.
    pub(crate) string: bool,
}

/// An access to a guest-physical address that the second-level tables don't allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryFault {
    /// The guest-physical address.
    pub(crate) gpa: u64,
    /// A write (also of an accessed or dirty bit by the guest's page walk).
    pub(crate) write: bool,
    /// An instruction fetch.
    pub(crate) fetch: bool,
    /// Made by the CPU's walk of the guest's page tables, not by an instruction's operand.
    pub(crate) walk: bool,
}

/// An access to a control register with its operands known. CPUs that don't tell them exit with [`Exit::Instruction`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CrAccess {
    /// MOV to CRn from a general register (0 to 15, as in ModRM).
    Write {
        /// 0, 3, 4 or 8.
        cr: u8,
        /// The register's number.
        gpr: u8,
    },
    /// MOV from CRn to a general register.
    Read {
        /// 3 or 8.
        cr: u8,
        /// The register's number.
        gpr: u8,
    },
    /// CLTS.
    Clts,
    /// LMSW with its operand.
    Lmsw(u16),
}

/// Why the guest stopped running.
///
/// The guest's RIP is that of the instruction that exited, unless the case says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// A host interrupt waits: the window must close. Also a host NMI or machine check, which the vendor has dealt with.
    Host,
    /// CPUID.
    Cpuid,
    /// HLT.
    Hlt,
    /// PAUSE, often enough to be noticed.
    Pause,
    /// VMCALL or VMMCALL.
    Hypercall,
    /// RDMSR; the number is in ECX.
    MsrRead,
    /// WRMSR; the number is in ECX, the value in EDX:EAX.
    MsrWrite,
    /// XSETBV; XCR number in ECX, the value in EDX:EAX. CPL has been checked by the CPU.
    Xsetbv,
    /// INVD or WBINVD, WBNOINVD.
    CacheFlush,
    /// An access to an I/O port.
    Port(PortAccess),
    /// An access to a control register.
    Cr(CrAccess),
    /// An intercepted instruction whose operands the CPU doesn't tell: to be decoded (moves to and from CR and DR, LMSW, descriptor tables).
    Instruction,
    /// MONITOR or MWAIT.
    MonitorMwait,
    /// An intercepted instruction that this virtual CPU doesn't have: #UD (VMX and SVM instructions, SKINIT…).
    Undefined,
    /// RDPMC and such, which this virtual CPU refuses: #GP(0).
    Refused,
    /// An access that the second-level tables don't allow.
    Memory(MemoryFault),
    /// An exception of the guest that is intercepted, with its error code: to be given to it (after what debugging asks for).
    Exception {
        /// Its vector, 0 to 31.
        vector: u8,
        /// Its error code, if the vector has one.
        error_code: Option<u32>,
    },
    /// #DB while the VMM debugs (`Config::debug`). Nothing of it is in the guest's own debug registers.
    Debug {
        /// DR6 as the CPU has set it, from a value that said nothing.
        dr6: u64,
        /// The DR7 that is in force.
        dr7: u64,
    },
    /// The guest can take an external interrupt now.
    InterruptWindow,
    /// The guest can take an NMI now.
    NmiWindow,
    /// The guest wrote CR8 in a way that was to be told (VMX: TPR below threshold; RIP is behind the instruction).
    TprChanged,
    /// A task switch by a gate or a far transfer, which isn't emulated.
    TaskSwitch,
    /// A triple fault, or SHUTDOWN on SVM.
    TripleFault,
    /// The CPU refused the guest's state: VMX instruction error or exit reason with its qualification; SVM VMEXIT_INVALID. The vendor has logged it.
    EntryFailure {
        /// What `kvm_run.fail_entry.hardware_entry_failure_reason` says.
        reason: u64,
    },
    /// An exit that the vendor's code doesn't know.
    Unknown {
        /// The vendor's exit code.
        code: u64,
    },
}
