// SPDX-License-Identifier: GPL-2.0

//! INIT and start-up IPIs (SDM vol 3, 10.4.3).

use super::pending::Pending;
use super::platform::lapic::Reset;
use super::state::seg;
use super::state::DebugRegs;
use super::state::Interruptibility;
use super::state::SystemRegs;
use super::state::UserRegs;
use super::vcpu::MpState;
use super::vcpu::Vcpu;
use super::XvmOps;

impl<V: XvmOps> Vcpu<V> {
    /// An INIT or start-up IPI (SDM vol 3, 10.4.3).
    pub(crate) fn take_init(&mut self) {
        if self.lapic.is_none() || self.postpone_init() {
            return;
        }
        if self.shared.mailbox.take_init() {
            self.reset_by_init();
        }
        if self.mp_state == MpState::InitReceived {
            if let Some(page) = self.shared.mailbox.take_startup() {
                let mut system = V::system_regs(&self.arch);
                system.segments[seg::CS].selector = u16::from(page) << 8;
                system.segments[seg::CS].base = u64::from(page) << 12;
                self.set_system_regs(&system);
                V::load_cpu_user_regs(
                    &mut self.arch,
                    &UserRegs {
                        rip: 0,
                        ..UserRegs::at_power_up()
                    },
                );
                self.mp_state = MpState::Runnable;
            }
        } else {
            // Only a processor that waits for it takes a start-up IPI.
            self.shared.mailbox.take_startup();
        }
    }

    fn reset_by_init(&mut self) {
        let old = V::system_regs(&self.arch);
        // CD and NW stay as they are (SDM vol 3, table 10-1).
        let system = SystemRegs {
            cr0: (SystemRegs::at_power_up().cr0 & !0x6000_0000) | (old.cr0 & 0x6000_0000),
            debug: DebugRegs::at_power_up(),
            ..SystemRegs::at_power_up()
        };
        self.set_system_regs(&system);
        V::load_cpu_user_regs(&mut self.arch, &UserRegs::at_power_up());
        V::set_interruptibility(&mut self.arch, Interruptibility::default());
        self.events = super::events::Events::default();
        self.forget_smi();
        self.reset_pv();
        self.replay.clear();
        self.pending = Pending::None;
        if let Some(lapic) = &mut self.lapic {
            lapic.open_at_reset(self.vm.switches.opens_lint0());
            lapic.reset(Reset::Init);
            self.shared.mailbox.publish(lapic);
        }
        self.timer_stale = true;
        self.mp_state = match self.shared.bootstrap {
            true => MpState::Runnable,
            false => MpState::InitReceived,
        };
    }
}
