// SPDX-License-Identifier: GPL-2.0

//! Which ASID a guest runs with, and dropping its translations (APM vol 2, 15.16). The ASIDs themselves are in `asid.rs`, sharing them
//! with KVM in `cpu.rs`.

use super::asid::Pool;
use super::cpu::Cpu;
use super::cpu::Found;
use super::vcpu::Vcpu;
use super::vmcb::TlbControl;

impl Vcpu {
    /// Makes the next entry drop all translations.
    #[inline]
    pub(super) fn drop_translations(&mut self) {
        self.flush = true;
        self.attention = true;
    }

    /// Takes an ASID for a window that opens.
    pub(super) fn take_asid(&mut self, cpu: &Cpu, found: Found) {
        if found.borrowed() {
            self.set_asid(Pool::BORROWED);
            self.drop_translations();
        } else if cpu.is_current(self.tag) {
            self.set_asid(self.tag.asid());
        } else {
            self.renew_asid(cpu);
        }
    }

    /// Makes the next entry drop all translations, if that was asked for. Within a window.
    #[inline]
    pub(super) fn obey_flush(&mut self, cpu: &Cpu) {
        if !self.flush {
            return;
        }
        let borrowed = self.window.is_some_and(|window| window.found.borrowed());
        if borrowed || self.features.flush_by_asid {
            self.flush = false;
            let flush = self.features.flush();
            self.vmcb_mut().control.tlb_control = flush;
        } else {
            self.renew_asid(cpu);
        }
    }

    /// Takes an ASID that has no translations.
    fn renew_asid(&mut self, cpu: &Cpu) {
        let given = cpu.give_asid();
        self.tag = given.tag;
        self.flush = false;
        self.set_asid(given.tag.asid());
        if given.flush_all {
            self.vmcb_mut().control.tlb_control = TlbControl::FLUSH_ALL;
        }
    }

    fn set_asid(&mut self, asid: u32) {
        let control = &mut self.vmcb_mut().control;
        if control.asid != asid {
            control.asid = asid;
            control.clean = control.clean.with_asid(false);
        }
    }
}
