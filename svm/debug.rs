// SPDX-License-Identifier: GPL-2.0

//! Debug registers and single-stepping. VMRUN switches DR6 and DR7; DR0 to DR3 are switched by the window when the guest uses them.
//!
//! A guest uses them when DR7 enables a breakpoint, or it touches any debug register: until it does, all accesses are intercepted, and the
//! first of a window loads them and is tried again. Most windows thus leave them alone.
//!
//! When the VMM debugs, accesses stay intercepted, and what the guest sees of its registers is kept here: DR6 in the VMCB then says what
//! happened since the entry, and DR7 and the addresses are those of the VMM, if it has any.

use super::vcpu::Vcpu;
use crate::linux::x86;
use crate::xvm::ops::Debugging;
use crate::xvm::state::DebugRegs;
use crate::xvm::Exit;

/// DR7: L0, G0 to L3, G3.
const DR7_ENABLED: u64 = 0xff;
/// DR7: general detect.
const DR7_GD: u64 = 1 << 13;
/// DR7: bit 10 reads as 1.
const DR7_FIXED: u64 = 1 << 10;
/// DR7: bits 12, 14, 15 and the upper half are 0.
const DR7_DEFINED: u64 = 0xffff_2fff;
/// DR6: its bits that read as 1.
const DR6: u64 = 0xffff_0ff0;
/// DR6: single step.
const DR6_BS: u64 = 1 << 14;
/// RFLAGS.TF.
const RFLAGS_TF: u64 = 1 << 8;
/// DEBUGCTL: single-step on branches alone.
const DEBUGCTL_BTF: u64 = 1 << 1;
/// #DB.
const DB: u8 = 1;

/// A vCPU's debug registers, as far as the VMCB doesn't have them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Debug {
    /// The guest's DR0 to DR3, as long as the CPU doesn't have them.
    guest: [u64; 4],
    /// The host's, while the CPU has the guest's or the VMM's.
    host: Option<[u64; 4]>,
    /// Debugging by the VMM.
    vmms: Option<Vmms>,
    /// The trap of a single step over an instruction that was carried out for the guest is due.
    trap: bool,
}

/// Debugging by the VMM: what it asks for, and what the guest sees meanwhile.
#[derive(Clone, Copy, Debug)]
struct Vmms {
    asked: Debugging,
    dr6: u64,
    dr7: u64,
    /// RFLAGS.TF; only if the VMM steps.
    tf: bool,
}

impl Debug {
    /// Whether the VMM debugs.
    #[inline]
    pub(super) fn is_vmms(&self) -> bool {
        self.vmms.is_some()
    }

    /// Whether a single step's trap is due.
    pub(super) fn is_trap_due(&self) -> bool {
        self.trap
    }

    /// The guest's RFLAGS, where the VMCB has `rflags`.
    pub(super) fn hide_step(&self, rflags: u64) -> u64 {
        match self.vmms {
            Some(Vmms { asked, tf, .. }) if asked.step => {
                rflags & !RFLAGS_TF | if tf { RFLAGS_TF } else { 0 }
            }
            _ => rflags,
        }
    }
}

impl Vcpu {
    /// The guest's debug registers.
    pub(super) fn debug_regs(&self) -> DebugRegs {
        let save = &self.vmcb().save;
        let (dr6, dr7) = match self.debug.vmms {
            Some(vmms) => (vmms.dr6, vmms.dr7),
            None => (save.dr6, save.dr7),
        };
        DebugRegs {
            address: match self.debug.host {
                Some(_) if !self.debug.is_vmms() => x86::dr0_to_dr3(),
                _ => self.debug.guest,
            },
            dr6,
            dr7,
        }
    }

    /// Sets them.
    pub(super) fn set_debug_regs(&mut self, regs: &DebugRegs) {
        let (dr6, dr7) = (regs.dr6 | DR6, regs.dr7 | DR7_FIXED);
        self.debug.guest = regs.address;
        if let Some(vmms) = &mut self.debug.vmms {
            (vmms.dr6, vmms.dr7) = (dr6, dr7);
            return;
        }
        if self.debug.host.is_some() {
            // SAFETY: #VMEXIT disables all breakpoints; closing the window puts the host's values back.
            unsafe { x86::write_dr0_to_dr3(&regs.address) };
        }
        self.write_dr6_dr7(dr6, dr7);
    }

    fn write_dr6_dr7(&mut self, dr6: u64, dr7: u64) {
        let vmcb = self.vmcb_mut();
        vmcb.save.dr6 = dr6;
        vmcb.save.dr7 = dr7;
        vmcb.control.clean = vmcb.control.clean.with_debug_registers(false);
    }

    /// Begins, changes or ends debugging by the VMM.
    pub(super) fn set_debugging(&mut self, asked: Option<Debugging>) {
        if self.debug.vmms.map(|vmms| vmms.asked) == asked {
            return;
        }
        let regs = self.debug_regs();
        let mut rflags = self.debug.hide_step(self.vmcb().save.rflags);
        self.debug.vmms = asked.map(|asked| Vmms {
            asked,
            dr6: regs.dr6,
            dr7: regs.dr7,
            tf: rflags & RFLAGS_TF != 0,
        });
        self.set_debug_regs(&regs);
        if asked.is_some_and(|asked| asked.step) {
            rflags |= RFLAGS_TF;
        }
        self.vmcb_mut().save.rflags = rflags;
        let int3 = asked.is_some_and(|asked| asked.int3);
        self.vmcb_mut().control.intercept_int3(int3);
        self.attention = true;
    }

    /// RFLAGS for the VMCB, when the guest's become `rflags`: a step of the VMM's that is in force stays so.
    pub(super) fn show_rflags(&mut self, rflags: u64) -> u64 {
        let now = self.vmcb().save.rflags;
        match &mut self.debug.vmms {
            Some(vmms) if vmms.asked.step => {
                vmms.tf = rflags & RFLAGS_TF != 0;
                rflags & !RFLAGS_TF | now & RFLAGS_TF
            }
            _ => rflags,
        }
    }

    /// An instruction was carried out for the guest with RFLAGS.TF set: the trap comes before it executes another.
    #[cold]
    pub(super) fn note_trap(&mut self) {
        if self.debug_control & DEBUGCTL_BTF == 0 {
            self.set_trap(true);
        }
    }

    /// Whether the trap of a single step is due.
    pub(super) fn set_trap(&mut self, due: bool) {
        self.debug.trap = due;
        self.attention |= due;
    }

    /// Before an entry: the exit that a due trap is. What the VMM has injected goes first, and the trap is forgotten then.
    pub(super) fn take_trap(&mut self) -> Option<Exit> {
        if !core::mem::take(&mut self.debug.trap) || self.events.injected.valid() {
            return None;
        }
        let save = &self.vmcb().save;
        let (dr6, dr7) = (save.dr6, save.dr7);
        if self.debug.is_vmms() {
            return Some(Exit::Debug {
                dr6: DR6 | DR6_BS,
                dr7,
            });
        }
        self.write_dr6_dr7(dr6 | DR6_BS, dr7);
        Some(self.debug_exit())
    }

    /// What #DB is to the vendor-neutral layer. After the instruction the VMM's next step begins.
    pub(super) fn debug_exit(&mut self) -> Exit {
        let save = &self.vmcb().save;
        let (dr6, dr7, rflags) = (save.dr6, save.dr7, save.rflags);
        let Some(vmms) = &mut self.debug.vmms else {
            return Exit::Exception {
                vector: DB,
                error_code: None,
            };
        };
        if vmms.asked.step {
            // The instruction has cleared it: POPF, IRET.
            vmms.tf &= rflags & RFLAGS_TF != 0;
            self.vmcb_mut().save.rflags = rflags | RFLAGS_TF;
        }
        Exit::Debug { dr6, dr7 }
    }

    /// Whether breakpoints are enabled. The guest can't change that while its debug registers aren't in the CPU.
    #[inline]
    pub(super) fn breakpoints_enabled(&self) -> bool {
        self.vmcb().save.dr7 & DR7_ENABLED != 0
    }

    /// When the VMM debugs, makes DR0 to DR3, DR6 and DR7 what they have to be. Within a window, before an entry.
    pub(super) fn prepare_debugging(&mut self) {
        let Some(vmms) = self.debug.vmms else {
            return;
        };
        let own = (self.debug.guest, vmms.dr7);
        let (addresses, dr7) = vmms.asked.breakpoints.unwrap_or(own);
        // General detect is looked after where the access is carried out.
        self.write_dr6_dr7(DR6, dr7 & DR7_DEFINED & !DR7_GD | DR7_FIXED);
        if dr7 & DR7_ENABLED != 0 {
            self.debug.host.get_or_insert_with(x86::dr0_to_dr3);
            // SAFETY: Opening the window, and each #VMEXIT, has disabled all breakpoints; closing it puts the host's values back.
            unsafe { x86::write_dr0_to_dr3(&addresses) };
        }
    }

    /// Loads DR0 to DR3 if breakpoints are enabled. Within a window, before an entry.
    pub(super) fn load_enabled_breakpoints(&mut self) {
        if self.breakpoints_enabled() && !self.debug.is_vmms() {
            self.load_debug_addresses();
        }
    }

    /// Loads DR0 to DR3 and lets the guest access its debug registers. Within a window.
    pub(super) fn load_debug_addresses(&mut self) {
        if self.debug.host.is_some() {
            return;
        }
        self.debug.host = Some(x86::dr0_to_dr3());
        // SAFETY: Opening the window, and each #VMEXIT, has disabled all breakpoints; closing it puts the host's values back.
        unsafe { x86::write_dr0_to_dr3(&self.debug.guest) };
        self.vmcb_mut().control.intercept_debug_registers(false);
    }

    /// Takes DR0 to DR3 back from the CPU, if it has the guest's or the VMM's. Returns the host's then.
    pub(super) fn unload_debug_addresses(&mut self) -> Option<[u64; 4]> {
        let host = self.debug.host.take()?;
        if !self.debug.is_vmms() {
            self.debug.guest = x86::dr0_to_dr3();
            self.vmcb_mut().control.intercept_debug_registers(true);
        }
        Some(host)
    }

    /// Puts the host's debug registers back, at the end of a window.
    #[inline]
    pub(super) fn restore_host_debug_registers(&self, addresses: Option<[u64; 4]>, dr7: u64) {
        if let Some(addresses) = addresses {
            // SAFETY: #VMEXIT has disabled all breakpoints, or opening the window has.
            unsafe { x86::write_dr0_to_dr3(&addresses) };
        }
        if self.vmcb().save.dr6 != DR6 {
            // The kernel expects what its handler left.
            x86::write_dr6(DR6);
        }
        if dr7 != 0 {
            // SAFETY: It is the host's own, with its addresses in place.
            unsafe { x86::write_dr7(dr7) };
        }
    }
}
