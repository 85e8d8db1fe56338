// SPDX-License-Identifier: GPL-2.0

//! Debug registers. VMRUN switches DR6 and DR7; DR0 to DR3 are switched by the window when the guest uses them.
//!
//! A guest uses them when DR7 enables a breakpoint, or it touches any debug register: until it does, all accesses are intercepted, and the
//! first of a window loads them and is tried again. Most windows thus leave them alone.

use super::state::DR6;
use super::vcpu::Vcpu;
use crate::linux::x86;
use crate::xvm::state::DebugRegs;

/// DR7: L0, G0 to L3, G3.
const DR7_ENABLED: u64 = 0xff;

/// DR0 to DR3.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DebugAddresses {
    /// The guest's, as long as the CPU doesn't have them.
    guest: [u64; 4],
    /// The host's, while the CPU has the guest's.
    host: Option<[u64; 4]>,
}

impl Vcpu {
    /// The guest's debug registers.
    pub(super) fn debug_regs(&self) -> DebugRegs {
        let save = &self.vmcb().save;
        DebugRegs {
            address: match self.debug.host {
                Some(_) => x86::dr0_to_dr3(),
                None => self.debug.guest,
            },
            dr6: save.dr6,
            dr7: save.dr7,
        }
    }

    /// Sets DR0 to DR3.
    pub(super) fn set_debug_addresses(&mut self, addresses: &[u64; 4]) {
        self.debug.guest = *addresses;
        if self.debug.host.is_some() {
            // SAFETY: #VMEXIT disables all breakpoints; closing the window puts the host's values back.
            unsafe { x86::write_dr0_to_dr3(addresses) };
        }
    }

    /// Whether breakpoints are enabled. The guest can't change that while its debug registers aren't in the CPU.
    #[inline]
    pub(super) fn breakpoints_enabled(&self) -> bool {
        self.vmcb().save.dr7 & DR7_ENABLED != 0
    }

    /// Loads DR0 to DR3 if breakpoints are enabled. Within a window, before an entry.
    pub(super) fn load_enabled_breakpoints(&mut self) {
        if self.breakpoints_enabled() {
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

    /// Takes DR0 to DR3 back from the CPU, if it has the guest's. Returns the host's then.
    pub(super) fn unload_debug_addresses(&mut self) -> Option<[u64; 4]> {
        let host = self.debug.host.take()?;
        self.debug.guest = x86::dr0_to_dr3();
        self.vmcb_mut().control.intercept_debug_registers(true);
        Some(host)
    }

    /// Puts the host's debug registers back, at the end of a window.
    pub(super) fn restore_host_debug_registers(&self, addresses: Option<[u64; 4]>) {
        if let Some(addresses) = addresses {
            // SAFETY: #VMEXIT has disabled all breakpoints, or opening the window has.
            unsafe { x86::write_dr0_to_dr3(&addresses) };
        }
        if self.vmcb().save.dr6 != DR6 {
            // The kernel expects what its handler left.
            x86::write_dr6(DR6);
        }
        let dr7 = x86::host_dr7();
        if dr7 != 0 {
            // SAFETY: It is the host's own, with its addresses in place.
            unsafe { x86::write_dr7(dr7) };
        }
    }
}
