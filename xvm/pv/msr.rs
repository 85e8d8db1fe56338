// SPDX-License-Identifier: GPL-2.0

//! KVM's own MSRs (x86/msr.rst). Also inside the window: a write only notes what it asks for.

use super::due;
use super::steal;
use super::Features;
use crate::xvm::platform::lapic::Effect;
use crate::xvm::platform::Gp;
use crate::xvm::vcpu::Vcpu;
use crate::xvm::XvmOps;

/// MSR_KVM_WALL_CLOCK and MSR_KVM_SYSTEM_TIME, outside of KVM's range.
const WALL_CLOCK_OLD: u32 = 0x11;
const SYSTEM_TIME_OLD: u32 = 0x12;
/// MSR_KVM_WALL_CLOCK_NEW, MSR_KVM_SYSTEM_TIME_NEW.
const WALL_CLOCK: u32 = 0x4b56_4d00;
const SYSTEM_TIME: u32 = 0x4b56_4d01;
/// MSR_KVM_ASYNC_PF_EN, MSR_KVM_ASYNC_PF_INT, MSR_KVM_ASYNC_PF_ACK.
const ASYNC_PF_EN: u32 = 0x4b56_4d02;
const ASYNC_PF_INT: u32 = 0x4b56_4d06;
const ASYNC_PF_ACK: u32 = 0x4b56_4d07;
const STEAL_TIME: u32 = 0x4b56_4d03;
const EOI_EN: u32 = 0x4b56_4d04;
const POLL_CONTROL: u32 = 0x4b56_4d05;

/// What a VMM saves and restores, in this order.
pub(crate) const STATE: &[u32] = &[
    SYSTEM_TIME_OLD,
    WALL_CLOCK_OLD,
    SYSTEM_TIME,
    WALL_CLOCK,
    // The vector before what makes use of it.
    ASYNC_PF_INT,
    ASYNC_PF_EN,
    ASYNC_PF_ACK,
    STEAL_TIME,
    EOI_EN,
    POLL_CONTROL,
];

/// The feature that `msr` comes with.
fn feature(msr: u32) -> Option<Features> {
    Some(match msr {
        WALL_CLOCK_OLD | SYSTEM_TIME_OLD => Features::CLOCKSOURCE,
        WALL_CLOCK | SYSTEM_TIME => Features::CLOCKSOURCE2,
        ASYNC_PF_EN => Features::ASYNC_PF,
        ASYNC_PF_INT | ASYNC_PF_ACK => Features::ASYNC_PF_INT,
        STEAL_TIME => Features::STEAL_TIME,
        EOI_EN => Features::PV_EOI,
        POLL_CONTROL => Features::POLL_CONTROL,
        _ => return None,
    })
}

impl<V: XvmOps> Vcpu<V> {
    fn require_feature(&self, msr: u32) -> Result<(), Gp> {
        match feature(msr) {
            Some(feature) if self.may_use(feature) => Ok(()),
            _ => Err(Gp),
        }
    }

    /// Reads one of KVM's MSRs.
    ///
    /// # Errors
    ///
    /// [`Gp`] when there is none of this number, or the guest may not use it.
    pub(crate) fn read_pv_msr(&self, msr: u32) -> Result<u64, Gp> {
        self.require_feature(msr)?;
        match msr {
            WALL_CLOCK_OLD | WALL_CLOCK => Ok(self.vm.clock.wall()),
            SYSTEM_TIME_OLD | SYSTEM_TIME => Ok(self.pv.system_time),
            ASYNC_PF_EN => Ok(self.pv.async_pf.msrs().0),
            ASYNC_PF_INT => Ok(self.pv.async_pf.msrs().1),
            ASYNC_PF_ACK => Ok(0),
            STEAL_TIME => Ok(self.pv.steal_time),
            EOI_EN => Ok(self.pv.eoi),
            POLL_CONTROL => Ok(u64::from(!self.pv.polls_itself)),
            _ => Err(Gp),
        }
    }

    /// Writes one of KVM's MSRs; the window must close then, so that what it asks for is done.
    ///
    /// # Errors
    ///
    /// As [`Vcpu::read_pv_msr`], and for a value that it doesn't take.
    pub(crate) fn write_pv_msr(&mut self, msr: u32, value: u64) -> Result<Effect, Gp> {
        self.require_feature(msr)?;
        match msr {
            WALL_CLOCK_OLD | WALL_CLOCK => {
                self.vm.clock.set_wall(value);
                self.pv.due |= due::WALL_CLOCK;
            }
            SYSTEM_TIME_OLD | SYSTEM_TIME => {
                self.pv.system_time = value;
                self.pv.clock_changed();
            }
            ASYNC_PF_EN => self.set_async_pf(value)?,
            ASYNC_PF_INT => self.set_async_pf_vector(value)?,
            // There is place for the next token.
            ASYNC_PF_ACK => self.pv.due |= due::ASYNC_PF,
            STEAL_TIME if value & steal::RESERVED == 0 => self.set_steal_time(value),
            EOI_EN => self.set_pv_eoi(value)?,
            POLL_CONTROL if value <= 1 => self.pv.polls_itself = value == 0,
            _ => return Err(Gp),
        }
        Ok(Effect::TimerChanged)
    }
}
