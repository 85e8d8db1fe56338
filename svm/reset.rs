// SPDX-License-Identifier: GPL-2.0

//! The controls that every guest begins with, and the state after power-up.

use super::permission::PermissionMaps;
use super::probe::Features;
use super::vmcb::Clean;
use super::vmcb::Control;
use super::vmcb::InterruptControl;
use super::vmcb::Vmcb;
use super::vmcb::NP_ENABLE;
use crate::xvm::state::SystemRegs;
use crate::xvm::state::UserRegs;

/// PAT after a reset (7.8.1).
const PAT: u64 = 0x0007_0406_0007_0406;

impl Vmcb {
    /// Sets a zeroed VMCB to the state after power-up, for nested page tables at physical address `root`.
    pub(super) fn reset(&mut self, features: &Features, root: u64) {
        self.control.intercept_all(features);
        self.control.nested_control = NP_ENABLE;
        self.control.nested_cr3 = root;
        self.control.interrupt = InterruptControl::from_raw(0).with_masking(true);
        self.save.set_user_regs(&UserRegs::at_power_up());
        self.save.set_system_regs(&SystemRegs::at_power_up());
        self.save.pat = PAT;
    }
}

impl Control {
    /// Sets the permission maps, those of the physical CPU, which knows nothing of this VMCB.
    pub(super) fn set_maps(&mut self, maps: &PermissionMaps, msrs_exit: bool) {
        self.iopm_base = maps.io_base();
        self.msrpm_base = match msrs_exit {
            true => maps.closed_msr_base(),
            false => maps.msr_base(),
        };
        self.clean = Clean::NONE;
    }
}
