// SPDX-License-Identifier: GPL-2.0

//! Guest CPU state as the vendor-neutral layer sees it: plain values, copied from and to the control block by `XvmOps`.

/// General registers by their number in ModRM: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15. The assembly of both
/// world switches relies on this layout.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gprs(pub(crate) [u64; 16]);

/// Number of RAX in [`Gprs`].
pub(crate) const RAX: usize = 0;
/// Number of RCX in [`Gprs`].
pub(crate) const RCX: usize = 1;
/// Number of RDX in [`Gprs`].
pub(crate) const RDX: usize = 2;
/// Number of RBX in [`Gprs`].
pub(crate) const RBX: usize = 3;
/// Number of RSP in [`Gprs`].
pub(crate) const RSP: usize = 4;
/// Place of RSI.
pub(crate) const RSI: usize = 6;

/// What a program sees: general registers, RIP, RFLAGS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct UserRegs {
    /// The general registers, RSP included.
    pub(crate) gprs: Gprs,
    /// RIP.
    pub(crate) rip: u64,
    /// RFLAGS; bit 1 is always set.
    pub(crate) rflags: u64,
}

/// A segment register with its hidden part, limit in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Base address.
    pub(crate) base: u64,
    /// Limit in bytes, granularity applied.
    pub(crate) limit: u32,
    /// Selector.
    pub(crate) selector: u16,
    /// Attributes as in a descriptor's bytes 5 and 6: type 3:0, S 4, DPL 6:5, P 7, AVL 8, L 9, D/B 10, G 11, and `UNUSABLE`.
    pub(crate) attributes: u16,
}

/// Attribute bit of [`Segment`]: a null selector was loaded (VMX: unusable; SVM: not present).
pub(crate) const UNUSABLE: u16 = 1 << 12;

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DescriptorTable {
    /// Linear base address.
    pub(crate) base: u64,
    /// Limit in bytes.
    pub(crate) limit: u16,
}

/// Numbers of the registers in [`SystemRegs::segments`], as instructions encode the first six.
pub(crate) mod seg {
    pub(crate) const ES: usize = 0;
    pub(crate) const CS: usize = 1;
    pub(crate) const SS: usize = 2;
    pub(crate) const DS: usize = 3;
    pub(crate) const FS: usize = 4;
    pub(crate) const GS: usize = 5;
    pub(crate) const LDTR: usize = 6;
    pub(crate) const TR: usize = 7;
}

/// What an operating system sees: segments, descriptor tables, control registers, EFER.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SystemRegs {
    /// ES, CS, SS, DS, FS, GS, LDTR, TR.
    pub(crate) segments: [Segment; 8],
    /// GDTR.
    pub(crate) gdtr: DescriptorTable,
    /// IDTR.
    pub(crate) idtr: DescriptorTable,
    /// CR0.
    pub(crate) cr0: u64,
    /// CR2.
    pub(crate) cr2: u64,
    /// CR3.
    pub(crate) cr3: u64,
    /// CR4.
    pub(crate) cr4: u64,
    /// EFER, with LMA.
    pub(crate) efer: u64,
    /// The four page-directory-pointer-table entries of PAE paging, as loaded (SDM vol 3, 4.4.1); zero in other modes. The
    /// vendor may ignore them on write where the CPU reads them itself (SVM), and then reads them as zero.
    pub(crate) pdptrs: [u64; 4],
    /// DR0 to DR3, DR6, DR7.
    pub(crate) debug: DebugRegs,
}

/// What finding the instruction at RIP takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CodeContext {
    /// RIP.
    pub(crate) rip: u64,
    /// Base of CS.
    pub(crate) cs_base: u64,
    /// Attributes of CS, as in [`Segment`].
    pub(crate) cs_attributes: u16,
    /// The current privilege level, 0 to 3.
    pub(crate) cpl: u8,
    /// CR0.
    pub(crate) cr0: u64,
    /// CR3.
    pub(crate) cr3: u64,
    /// CR4.
    pub(crate) cr4: u64,
    /// EFER, with LMA.
    pub(crate) efer: u64,
}

/// The debug registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DebugRegs {
    /// DR0 to DR3: linear addresses.
    pub(crate) address: [u64; 4],
    /// DR6.
    pub(crate) dr6: u64,
    /// DR7.
    pub(crate) dr7: u64,
}

/// An event to be delivered through the guest's IDT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// An external interrupt.
    Interrupt(u8),
    /// An NMI.
    Nmi,
    /// An exception that the CPU found.
    Exception {
        /// Its vector, 0 to 31.
        vector: u8,
        /// The error code to be pushed, if the vector has one.
        error_code: Option<u32>,
    },
    /// INT n, INT3 or INTO whose delivery was cut short; `length` is the instruction's, in bytes.
    Software {
        /// Its vector.
        vector: u8,
        /// Bytes of the instruction.
        length: u8,
        /// INT3 or INTO: a software exception, not a software interrupt.
        exception: bool,
    },
}

impl Event {
    /// Its number in the interrupt table.
    pub(crate) fn vector(self) -> u8 {
        match self {
            Event::Interrupt(vector)
            | Event::Exception { vector, .. }
            | Event::Software { vector, .. } => vector,
            Event::Nmi => 2,
        }
    }

    /// #BP or #OF as their instructions of one byte raise them: RIP is at the instruction.
    pub(crate) fn software_exception(vector: u8) -> Self {
        Event::Software {
            vector,
            length: 1,
            exception: true,
        }
    }
}

/// What keeps interrupts and NMIs from the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Interruptibility {
    /// RFLAGS.IF is set.
    pub(crate) interrupt_flag: bool,
    /// Blocking by STI (on SVM: the interrupt shadow, whatever made it).
    pub(crate) sti: bool,
    /// Blocking by MOV SS or POP SS (never set on SVM).
    pub(crate) mov_ss: bool,
    /// An NMI was delivered and IRET has not ended it.
    pub(crate) nmi: bool,
    /// The trap of a single step is due (`XvmOps::update_eip`): interrupts and NMIs come after it.
    pub(crate) trap: bool,
}

impl UserRegs {
    /// The values after power-up (SDM vol 3, table 10-1). RDX tells family, model and stepping, which the virtual CPU's CPUID decides.
    pub(crate) fn at_power_up() -> Self {
        Self {
            gprs: Gprs::default(),
            rip: 0xfff0,
            rflags: 2,
        }
    }
}

impl SystemRegs {
    /// The values after power-up (SDM vol 3, table 10-1).
    pub(crate) fn at_power_up() -> Self {
        let of = |selector, base, attributes| Segment {
            base,
            limit: 0xffff,
            selector,
            attributes,
        };
        let data = of(0, 0, 0x93);
        Self {
            segments: [
                data,
                of(0xf000, 0xffff_0000, 0x9b),
                data,
                data,
                data,
                data,
                of(0, 0, 0x82),
                of(0, 0, 0x8b),
            ],
            gdtr: DescriptorTable {
                base: 0,
                limit: 0xffff,
            },
            idtr: DescriptorTable {
                base: 0,
                limit: 0xffff,
            },
            cr0: 0x6000_0010,
            debug: DebugRegs::at_power_up(),
            ..Self::default()
        }
    }
}

impl DebugRegs {
    /// The values after power-up (SDM vol 3, table 10-1).
    pub(crate) fn at_power_up() -> Self {
        Self {
            address: [0; 4],
            dr6: 0xffff_0ff0,
            dr7: 0x400,
        }
    }
}
