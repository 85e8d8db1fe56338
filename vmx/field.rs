// SPDX-License-Identifier: GPL-2.0

//! The fields of the VMCS that xvm uses: their encodings (SDM vol 3, appendix B) and the bits of those that are
//! sets of controls (26.6 to 26.8).

/// A VMCS field, by its encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Field(pub(super) u32);

impl Field {
    /// The field for segment register `index` (ES, CS, SS, DS, FS, GS, LDTR, TR), where `self` is that of ES.
    pub(super) const fn of_segment(self, index: usize) -> Self {
        Self(self.0 + 2 * index as u32)
    }
}

macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident = $encoding:literal;)*) => {
        $($(#[$doc])* pub(super) const $name: Field = Field($encoding);)*
    };
}

// 16-bit fields (B.1).
fields! {
    /// Virtual-processor identifier; 0 is the host's.
    VPID = 0x0000;
    /// Selector of ES, the first of eight.
    GUEST_SELECTOR = 0x0800;
    /// The host's ES.
    HOST_ES_SELECTOR = 0x0c00;
    /// The host's CS.
    HOST_CS_SELECTOR = 0x0c02;
    /// The host's SS.
    HOST_SS_SELECTOR = 0x0c04;
    /// The host's DS.
    HOST_DS_SELECTOR = 0x0c06;
    /// The host's FS.
    HOST_FS_SELECTOR = 0x0c08;
    /// The host's GS.
    HOST_GS_SELECTOR = 0x0c0a;
    /// Selector of the TSS.
    HOST_TR_SELECTOR = 0x0c0c;
}

// 64-bit fields (B.2).
fields! {
    /// Physical address of the MSR bitmaps.
    MSR_BITMAP = 0x2004;
    /// Added to the TSC in the guest.
    TSC_OFFSET = 0x2010;
    /// What the TSC is multiplied with in the guest, 48 bits of it behind the point.
    TSC_MULTIPLIER = 0x2032;
    /// Physical address of the virtual-APIC page, of which only VTPR is used.
    VIRTUAL_APIC_PAGE = 0x2012;
    /// EPT pointer.
    EPT_POINTER = 0x201a;
    /// The address whose translation failed.
    GUEST_PHYSICAL_ADDRESS = 0x2400;
    /// Always all ones: no shadow VMCS.
    VMCS_LINK_POINTER = 0x2800;
    /// The guest's IA32_DEBUGCTL.
    GUEST_DEBUGCTL = 0x2802;
    /// The guest's IA32_PAT.
    GUEST_PAT = 0x2804;
    /// The guest's IA32_EFER.
    GUEST_EFER = 0x2806;
    /// The first of the guest's four PDPTEs.
    GUEST_PDPTE0 = 0x280a;
    /// The host's IA32_PAT.
    HOST_PAT = 0x2c00;
    /// The host's IA32_EFER.
    HOST_EFER = 0x2c02;
}

// 32-bit fields (B.3).
fields! {
    /// Pin-based controls.
    PIN_CONTROLS = 0x4000;
    /// Primary processor-based controls.
    PRIMARY_CONTROLS = 0x4002;
    /// One bit a vector: the exception exits.
    EXCEPTION_BITMAP = 0x4004;
    /// With the mask and match of page faults 0, bit 14 alone decides about them.
    PAGE_FAULT_MASK = 0x4006;
    /// See above.
    PAGE_FAULT_MATCH = 0x4008;
    /// Number of CR3 values that don't exit.
    CR3_TARGET_COUNT = 0x400a;
    /// VM-exit controls.
    EXIT_CONTROLS = 0x400c;
    /// Number of MSRs stored at exit.
    EXIT_MSR_STORE_COUNT = 0x400e;
    /// Number of MSRs loaded at exit.
    EXIT_MSR_LOAD_COUNT = 0x4010;
    /// VM-entry controls.
    ENTRY_CONTROLS = 0x4012;
    /// Number of MSRs loaded at entry.
    ENTRY_MSR_LOAD_COUNT = 0x4014;
    /// The event that the next entry delivers.
    ENTRY_INTERRUPTION_INFO = 0x4016;
    /// Its error code.
    ENTRY_EXCEPTION_ERROR_CODE = 0x4018;
    /// Length of the instruction that made it.
    ENTRY_INSTRUCTION_LENGTH = 0x401a;
    /// A CR8 below it exits.
    TPR_THRESHOLD = 0x401c;
    /// Secondary processor-based controls.
    SECONDARY_CONTROLS = 0x401e;
    /// PAUSE-loop exiting: the most TSC ticks between two PAUSEs of a loop.
    PLE_GAP = 0x4020;
    /// PAUSE-loop exiting: how many ticks a loop may last.
    PLE_WINDOW = 0x4022;
    /// Why the last VMX instruction failed (31.4).
    INSTRUCTION_ERROR = 0x4400;
    /// Why the guest exited (appendix C).
    EXIT_REASON = 0x4402;
    /// The event that made the guest exit.
    EXIT_INTERRUPTION_INFO = 0x4404;
    /// Its error code.
    EXIT_INTERRUPTION_ERROR_CODE = 0x4406;
    /// The event whose delivery the exit cut short.
    IDT_VECTORING_INFO = 0x4408;
    /// Its error code.
    IDT_VECTORING_ERROR_CODE = 0x440a;
    /// Length of the instruction that exited.
    EXIT_INSTRUCTION_LENGTH = 0x440c;
    /// Limit of ES, the first of eight.
    GUEST_LIMIT = 0x4800;
    /// Limit of the GDT.
    GUEST_GDTR_LIMIT = 0x4810;
    /// Limit of the IDT.
    GUEST_IDTR_LIMIT = 0x4812;
    /// Access rights of ES, the first of eight.
    GUEST_ACCESS_RIGHTS = 0x4814;
    /// What blocks interrupts and NMIs.
    GUEST_INTERRUPTIBILITY = 0x4824;
    /// Active, halted, shut down or waiting for SIPI: always active.
    GUEST_ACTIVITY = 0x4826;
    /// The guest's IA32_SYSENTER_CS.
    GUEST_SYSENTER_CS = 0x482a;
    /// How long the guest runs without an exit at most, in units of the preemption timer.
    GUEST_PREEMPTION_TIMER = 0x482e;
    /// The host's IA32_SYSENTER_CS.
    HOST_SYSENTER_CS = 0x4c00;
}

// Natural-width fields (B.4).
fields! {
    /// Bits of CR0 that the host owns.
    CR0_MASK = 0x6000;
    /// Bits of CR4 that the host owns.
    CR4_MASK = 0x6002;
    /// What the guest reads of the host's bits of CR0.
    CR0_SHADOW = 0x6004;
    /// What the guest reads of the host's bits of CR4.
    CR4_SHADOW = 0x6006;
    /// More about the exit (29.2.1).
    EXIT_QUALIFICATION = 0x6400;
    /// The guest's CR0.
    GUEST_CR0 = 0x6800;
    /// The guest's CR3.
    GUEST_CR3 = 0x6802;
    /// The guest's CR4.
    GUEST_CR4 = 0x6804;
    /// Base of ES, the first of eight.
    GUEST_BASE = 0x6806;
    /// Base of the GDT.
    GUEST_GDTR_BASE = 0x6816;
    /// Base of the IDT.
    GUEST_IDTR_BASE = 0x6818;
    /// The guest's DR7.
    GUEST_DR7 = 0x681a;
    /// The guest's RSP.
    GUEST_RSP = 0x681c;
    /// The guest's RIP.
    GUEST_RIP = 0x681e;
    /// The guest's RFLAGS.
    GUEST_RFLAGS = 0x6820;
    /// Debug exceptions found and not yet delivered.
    GUEST_PENDING_DEBUG = 0x6822;
    /// The guest's IA32_SYSENTER_ESP.
    GUEST_SYSENTER_ESP = 0x6824;
    /// The guest's IA32_SYSENTER_EIP.
    GUEST_SYSENTER_EIP = 0x6826;
    /// The host's CR0.
    HOST_CR0 = 0x6c00;
    /// The host's CR3.
    HOST_CR3 = 0x6c02;
    /// The host's CR4.
    HOST_CR4 = 0x6c04;
    /// Base of the host's FS: userspace's.
    HOST_FS_BASE = 0x6c06;
    /// Base of the host's GS: the per-CPU area.
    HOST_GS_BASE = 0x6c08;
    /// Base of the host's TSS.
    HOST_TR_BASE = 0x6c0a;
    /// Base of the host's GDT.
    HOST_GDTR_BASE = 0x6c0c;
    /// Base of the host's IDT.
    HOST_IDTR_BASE = 0x6c0e;
    /// The host's IA32_SYSENTER_ESP.
    HOST_SYSENTER_ESP = 0x6c10;
    /// The host's IA32_SYSENTER_EIP.
    HOST_SYSENTER_EIP = 0x6c12;
    /// Where the host goes on after an exit.
    HOST_RIP = 0x6c16;
}

/// Pin-based controls (26.6.1).
pub(super) mod pin {
    pub(crate) const EXTERNAL_INTERRUPT_EXITING: u32 = 1 << 0;
    pub(crate) const NMI_EXITING: u32 = 1 << 3;
    pub(crate) const VIRTUAL_NMIS: u32 = 1 << 5;
    pub(crate) const PREEMPTION_TIMER: u32 = 1 << 6;
}

/// Primary processor-based controls (26.6.2).
pub(super) mod primary {
    pub(crate) const INTERRUPT_WINDOW_EXITING: u32 = 1 << 2;
    pub(crate) const USE_TSC_OFFSETTING: u32 = 1 << 3;
    pub(crate) const HLT_EXITING: u32 = 1 << 7;
    pub(crate) const INVLPG_EXITING: u32 = 1 << 9;
    pub(crate) const MWAIT_EXITING: u32 = 1 << 10;
    pub(crate) const RDPMC_EXITING: u32 = 1 << 11;
    pub(crate) const CR3_LOAD_EXITING: u32 = 1 << 15;
    pub(crate) const CR3_STORE_EXITING: u32 = 1 << 16;
    pub(crate) const CR8_LOAD_EXITING: u32 = 1 << 19;
    pub(crate) const CR8_STORE_EXITING: u32 = 1 << 20;
    pub(crate) const USE_TPR_SHADOW: u32 = 1 << 21;
    pub(crate) const NMI_WINDOW_EXITING: u32 = 1 << 22;
    pub(crate) const MOV_DR_EXITING: u32 = 1 << 23;
    pub(crate) const UNCONDITIONAL_IO_EXITING: u32 = 1 << 24;
    pub(crate) const USE_MSR_BITMAPS: u32 = 1 << 28;
    pub(crate) const MONITOR_EXITING: u32 = 1 << 29;
    pub(crate) const ACTIVATE_SECONDARY: u32 = 1 << 31;
}

/// Secondary processor-based controls (26.6.2, table 26-7).
pub(super) mod secondary {
    pub(crate) const ENABLE_EPT: u32 = 1 << 1;
    pub(crate) const ENABLE_RDTSCP: u32 = 1 << 3;
    pub(crate) const ENABLE_VPID: u32 = 1 << 5;
    pub(crate) const WBINVD_EXITING: u32 = 1 << 6;
    pub(crate) const UNRESTRICTED_GUEST: u32 = 1 << 7;
    pub(crate) const PAUSE_LOOP_EXITING: u32 = 1 << 10;
    pub(crate) const ENABLE_INVPCID: u32 = 1 << 12;
    pub(crate) const USE_TSC_SCALING: u32 = 1 << 25;
}

/// VM-exit controls (26.7.1).
pub(super) mod exit {
    pub(crate) const SAVE_DEBUG_CONTROLS: u32 = 1 << 2;
    pub(crate) const HOST_ADDRESS_SPACE_SIZE: u32 = 1 << 9;
    pub(crate) const SAVE_PAT: u32 = 1 << 18;
    pub(crate) const LOAD_PAT: u32 = 1 << 19;
    pub(crate) const SAVE_EFER: u32 = 1 << 20;
    pub(crate) const LOAD_EFER: u32 = 1 << 21;
}

/// VM-entry controls (26.8.1).
pub(super) mod entry {
    pub(crate) const LOAD_DEBUG_CONTROLS: u32 = 1 << 2;
    pub(crate) const IA32E_MODE_GUEST: u32 = 1 << 9;
    pub(crate) const LOAD_PAT: u32 = 1 << 14;
    pub(crate) const LOAD_EFER: u32 = 1 << 15;
}
