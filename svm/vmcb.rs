// SPDX-License-Identifier: GPL-2.0

//! The virtual machine control block (APM vol 2, appendix B): layout, and the fields that are sets of smaller ones.

use core::mem::offset_of;
use kernel::bitfield;
use kernel::num::Bounded;

/// A segment register as the VMCB holds it (table B-2). Its attributes are bits 47:40 and 55:52 of a descriptor, adjacent.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Segment {
    pub(super) selector: u16,
    pub(super) attributes: u16,
    /// In bytes.
    pub(super) limit: u32,
    pub(super) base: u64,
}

/// The control area (table B-1).
#[repr(C)]
pub(super) struct Control {
    /// Low half: reads of CR0 to CR15 are intercepted; high half: writes.
    pub(super) intercept_cr: u32,
    /// The same for DR0 to DR15.
    pub(super) intercept_dr: u32,
    /// One bit a vector.
    pub(super) intercept_exceptions: u32,
    /// Three words of intercepts, see `intercept.rs`.
    pub(super) intercepts: [u32; 3],
    _reserved_1: [u32; 9],
    /// PAUSE executed again after more cycles than this starts the count anew.
    pub(super) pause_threshold: u16,
    /// Number of PAUSE that pass before one is intercepted.
    pub(super) pause_count: u16,
    pub(super) iopm_base: u64,
    pub(super) msrpm_base: u64,
    pub(super) tsc_offset: u64,
    pub(super) asid: u32,
    pub(super) tlb_control: TlbControl,
    _reserved_2: [u8; 3],
    pub(super) interrupt: InterruptControl,
    /// Bit 0: interrupt shadow.
    pub(super) interrupt_state: InterruptState,
    pub(super) exit_code: u64,
    pub(super) exit_info_1: u64,
    pub(super) exit_info_2: u64,
    /// EXITINTINFO: the event whose delivery an exit cut short.
    pub(super) exit_event: EventField,
    /// Bit 0: nested paging.
    pub(super) nested_control: u64,
    _avic_bar: u64,
    _ghcb: u64,
    /// EVENTINJ: the event that the next VMRUN delivers.
    pub(super) event_injection: EventField,
    pub(super) nested_cr3: u64,
    _virtualization_control: u64,
    pub(super) clean: Clean,
    _reserved_3: u32,
    /// RIP behind an intercepted instruction, where CPUID has NRIPS.
    pub(super) next_rip: u64,
    _fetched_bytes: [u8; 16],
    _reserved_4: [u8; 0x400 - 0xe0],
}

/// The state save area (table B-2). VMRUN and #VMEXIT switch the first half of it; what VMLOAD and VMSAVE do is marked.
#[repr(C)]
pub(super) struct Save {
    pub(super) es: Segment,
    pub(super) cs: Segment,
    pub(super) ss: Segment,
    pub(super) ds: Segment,
    /// VMLOAD.
    pub(super) fs: Segment,
    /// VMLOAD.
    pub(super) gs: Segment,
    pub(super) gdtr: Segment,
    /// VMLOAD.
    pub(super) ldtr: Segment,
    pub(super) idtr: Segment,
    /// VMLOAD.
    pub(super) tr: Segment,
    _reserved_1: [u8; 0xcb - 0xa0],
    pub(super) cpl: u8,
    _reserved_2: u32,
    pub(super) efer: u64,
    _reserved_3: [u8; 0x148 - 0xd8],
    pub(super) cr4: u64,
    pub(super) cr3: u64,
    pub(super) cr0: u64,
    pub(super) dr7: u64,
    pub(super) dr6: u64,
    pub(super) rflags: u64,
    pub(super) rip: u64,
    _reserved_4: [u8; 0x1d8 - 0x180],
    pub(super) rsp: u64,
    _shadow_stack: [u64; 3],
    pub(super) rax: u64,
    /// VMLOAD, and all up to `sysenter_eip`.
    pub(super) star: u64,
    pub(super) lstar: u64,
    pub(super) cstar: u64,
    pub(super) sfmask: u64,
    pub(super) kernel_gs_base: u64,
    pub(super) sysenter_cs: u64,
    pub(super) sysenter_esp: u64,
    pub(super) sysenter_eip: u64,
    pub(super) cr2: u64,
    _reserved_5: [u8; 0x268 - 0x248],
    /// The guest's PAT, with nested paging.
    pub(super) pat: u64,
    _debug_control: [u64; 5],
    _reserved_6: [u8; 0x2e0 - 0x298],
    /// Where CPUID has VirtSpecCtrl.
    pub(super) spec_ctrl: u64,
}

/// The whole of it, at the start of a page of its own.
#[repr(C)]
pub(super) struct Vmcb {
    pub(super) control: Control,
    pub(super) save: Save,
}

const _: () = {
    assert!(offset_of!(Control, pause_threshold) == 0x3c);
    assert!(offset_of!(Control, asid) == 0x58);
    assert!(offset_of!(Control, exit_code) == 0x70);
    assert!(offset_of!(Control, event_injection) == 0xa8);
    assert!(offset_of!(Control, clean) == 0xc0);
    assert!(offset_of!(Control, next_rip) == 0xc8);
    assert!(offset_of!(Vmcb, save) == 0x400);
    assert!(offset_of!(Save, cpl) == 0xcb);
    assert!(offset_of!(Save, efer) == 0xd0);
    assert!(offset_of!(Save, rflags) == 0x170);
    assert!(offset_of!(Save, rsp) == 0x1d8);
    assert!(offset_of!(Save, star) == 0x200);
    assert!(offset_of!(Save, cr2) == 0x240);
    assert!(offset_of!(Save, pat) == 0x268);
    assert!(offset_of!(Save, spec_ctrl) == 0x2e0);
};

/// NP_ENABLE in `nested_control` (15.25.3).
pub(super) const NP_ENABLE: u64 = 1;

/// TLB_CONTROL: what VMRUN drops from the TLB (15.16.2).
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TlbControl(u8);

impl TlbControl {
    /// Nothing.
    pub(super) const KEEP: Self = Self(0);
    /// Everything, the host's entries too.
    pub(super) const FLUSH_ALL: Self = Self(1);
    /// This guest's ASID, where CPUID has FlushByAsid.
    pub(super) const FLUSH_ASID: Self = Self(3);
}

bitfield! {
    /// V_TPR to V_INTR_VECTOR, offset 0x60 (15.21.2 to 15.21.5).
    pub(super) struct InterruptControl(u64) {
        /// CR8 of the guest.
        3:0 tpr;
        /// A virtual interrupt is pending.
        8:8 irq => bool;
        /// The interrupt ignores `tpr`.
        20:20 ignore_tpr => bool;
        /// The guest's RFLAGS.IF and CR8 hold off its virtual interrupts alone.
        24:24 masking => bool;
        /// Vector of the virtual interrupt.
        39:32 vector;
    }
}

bitfield! {
    /// Offset 0x68.
    pub(super) struct InterruptState(u64) {
        /// The guest is in the shadow of STI, MOV SS or POP SS.
        0:0 shadow => bool;
    }
}

bitfield! {
    /// EVENTINJ and EXITINTINFO (15.20).
    pub(super) struct EventField(u64) {
        7:0 vector;
        10:8 kind;
        11:11 has_error_code => bool;
        31:31 valid => bool;
        63:32 error_code;
    }
}

bitfield! {
    /// VMCB clean bits (15.15.3): the CPU may use what it kept of these fields since the last VMRUN.
    pub(super) struct Clean(u32) {
        /// Intercepts, TSC offset, PAUSE filter.
        0:0 intercepts => bool;
        /// IOPM and MSRPM addresses.
        1:1 permission_maps => bool;
        2:2 asid => bool;
        /// `InterruptControl`.
        3:3 interrupt => bool;
        /// Nested CR3, PAT.
        4:4 nested_paging => bool;
        /// CR0, CR3, CR4, EFER.
        5:5 control_registers => bool;
        /// DR6, DR7.
        6:6 debug_registers => bool;
        /// GDTR, IDTR.
        7:7 descriptor_tables => bool;
        /// ES, CS, SS, DS, CPL.
        8:8 segments => bool;
        9:9 cr2 => bool;
    }
}

impl InterruptControl {
    /// With CR8, of which bits 3:0 count.
    pub(super) fn with_cr8(self, tpr: u8) -> Self {
        self.with_tpr(Bounded::<u64, 4>::from_expr(u64::from(tpr & 0xf)))
    }
}

impl Clean {
    /// All that the fields above name.
    pub(super) const ALL: Self = Self::from_raw(0x3ff);
    /// Nothing.
    pub(super) const NONE: Self = Self::from_raw(0);
}

impl EventField {
    /// No event.
    pub(super) const NONE: Self = Self::from_raw(0);
}

/// Values of [`EventField::kind`] (15.20).
pub(super) mod kind {
    pub(crate) const INTERRUPT: u8 = 0;
    pub(crate) const NMI: u8 = 2;
    pub(crate) const EXCEPTION: u8 = 3;
    pub(crate) const SOFTWARE: u8 = 4;
}
