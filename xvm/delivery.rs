// SPDX-License-Identifier: GPL-2.0

//! Bringing events to the guest: what the next entry delivers, and what the last one did.

use super::ops::Offer;
use super::platform::lapic::Effect;
use super::platform::lapic::Shorthand;
use super::processors::EoiSuppression;
use super::state::Event;
use super::vcpu::Vcpu;
use super::XvmOps;
use crate::linux::timer;

/// Where the offered interrupt came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offered {
    /// From the local APIC, which is told when the guest has taken it.
    Lapic(u8),
    /// From `Events::interrupt`: already acknowledged where it came from.
    Acknowledged,
}

/// What the next entry brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prepared {
    /// There is something to do outside first.
    Outside,
    /// Something about events: what became of it is to be looked at after the exit.
    Busy,
    /// Nothing: exits that have nothing to do with events leave it so. Others who change that interrupt the vCPU.
    Quiet,
}

impl<V: XvmOps> Vcpu<V> {
    /// Before an entry: takes what others left in the mailbox, and decides what the guest is to get. Inside the window.
    #[inline]
    pub(crate) fn prepare_events(&mut self) -> Prepared {
        if !self.shared.mailbox.is_empty() && !self.take_mail() {
            return Prepared::Outside;
        }
        if self.events.triple_fault | self.events.held {
            return self.prepare_rare();
        }
        if let Some(lapic) = &self.lapic {
            let cr8 = lapic.tpr() >> 4;
            if cr8 != self.cr8 {
                self.set_cr8(cr8);
            }
        }
        let mut offer = Offer::default();
        let mut injects = true;
        if let Some(event) = self.events.injected.take() {
            V::inject_exception(&mut self.arch, event);
            self.events.fresh = false;
            offer.nmi_window = self.events.nmis != 0;
        } else if self.events.nmis != 0 {
            offer.nmi_window = !self.inject_nmi();
        } else {
            injects = false;
        }
        match self.offer_interrupt(offer) || injects {
            true => Prepared::Busy,
            false => Prepared::Quiet,
        }
    }

    /// The same where the vCPU shuts down, or interrupts are held back.
    #[cold]
    fn prepare_rare(&mut self) -> Prepared {
        if self.events.triple_fault {
            return Prepared::Outside;
        }
        if let Some(event) = self.events.injected.take() {
            V::inject_exception(&mut self.arch, event);
            self.events.fresh = false;
        }
        V::offer_interrupt(&mut self.arch, Offer::default());
        self.events.offered = None;
        Prepared::Busy
    }

    /// Takes vectors, NMIs and the timer from the mailbox. False when it holds what is done outside of the window, or the
    /// host's timer must be set.
    pub(super) fn take_mail(&mut self) -> bool {
        if self.shared.mailbox.has_smi() && !self.postpone_smi() {
            return false;
        }
        if self.lapic.is_none() {
            return !self.shared.mailbox.wants_update();
        }
        self.take_nmis();
        let timer = self.shared.mailbox.take_timer().then(|| self.guest_tsc());
        let (mailbox, Some(lapic)) = (&self.shared.mailbox, &mut self.lapic) else {
            return true;
        };
        if let Some(tsc) = timer {
            lapic.timer_expired(timer::now(), tsc);
            self.timer_stale = true;
        }
        mailbox.drain_into(lapic);
        self.pv.kicked |= mailbox.take_unhalt();
        // INIT, start-up and the word that guest memory is out of date remain.
        !self.timer_stale && mailbox.is_empty_but_for_smi()
    }

    /// Latches the NMIs that others have sent.
    pub(crate) fn take_nmis(&mut self) {
        let nmis = self.shared.mailbox.take_nmis();
        self.add_nmis(nmis as u8);
    }

    /// Latches NMIs: one while another is being handled, as in hardware; two otherwise, of which the first is delivered at once.
    pub(crate) fn add_nmis(&mut self, nmis: u8) {
        let most = if V::interruptibility(&self.arch).nmi {
            1
        } else {
            2
        };
        let nmis = self.events.nmis.saturating_add(nmis);
        self.events.nmis = nmis.min(most);
    }

    fn inject_nmi(&mut self) -> bool {
        let state = V::interruptibility(&self.arch);
        if state.nmi || state.sti || state.mov_ss || state.trap {
            return false;
        }
        self.events.nmis -= 1;
        V::inject_exception(&mut self.arch, Event::Nmi);
        // A second one follows when the first one's IRET is done.
        self.events.nmis == 0
    }

    /// Offers the guest the interrupt that is due, if any. Whether the guest gets or is asked something.
    #[inline]
    fn offer_interrupt(&mut self, mut offer: Offer) -> bool {
        offer.interrupt_window = !self.acknowledge_pic();
        let offered = match (self.events.interrupt, &self.lapic) {
            (Some(vector), _) => {
                offer.vector = Some(vector);
                Some(Offered::Acknowledged)
            }
            (None, Some(lapic)) => {
                offer.vector = lapic.pending();
                offer.interrupt_window |= self.wants_window();
                offer.vector.map(Offered::Lapic)
            }
            (None, None) => {
                offer.interrupt_window = self.wants_window();
                None
            }
        };
        let certain = V::offer_interrupt(&mut self.arch, offer);
        self.events.offered = offered;
        if certain {
            self.interrupt_delivered();
        }
        self.announce_eoi();
        offer.vector.is_some()
            || offer.interrupt_window
            || offer.nmi_window
            || self.eoi_is_announced()
    }

    /// The INTR pin of the 8259 pair is an interrupt like one from the VMM, once the guest can take it: as the CPU does, it is
    /// acknowledged no earlier. False when the guest can't take it yet.
    fn acknowledge_pic(&mut self) -> bool {
        if self.events.interrupt.is_some() || !self.pic_interrupt() {
            return true;
        }
        if !self.interruptible() {
            return false;
        }
        if let Some(irqchip) = self.irqchip() {
            self.events.interrupt = irqchip.acknowledge_pic();
        }
        true
    }

    /// Whether the VMM's 8259 pair, if it has one, reaches this vCPU.
    pub(crate) fn hears_pic(&self) -> bool {
        self.lapic
            .as_ref()
            .is_none_or(|lapic| lapic.accepts_extint())
    }

    /// Whether the VMM is to be told when the guest can take an interrupt. VMMs ask for it also while LINT0 is masked.
    pub(crate) fn wants_window(&self) -> bool {
        self.window_wanted && self.hears_pic()
    }

    /// Whether nothing keeps an external interrupt from the guest.
    pub(crate) fn interruptible(&self) -> bool {
        let state = V::interruptibility(&self.arch);
        state.interrupt_flag && !state.sti && !state.mov_ss && !state.trap
    }

    /// Whether the 8259 pair asks for an interrupt that this vCPU's local APIC lets through.
    pub(crate) fn pic_interrupt(&self) -> bool {
        // Few systems leave the virtual wire open, so that is asked first.
        let open = self
            .lapic
            .as_ref()
            .is_some_and(|lapic| lapic.accepts_extint());
        open && self.irqchip().is_some_and(|irqchip| irqchip.pic_output())
    }

    fn interrupt_delivered(&mut self) {
        match self.events.offered.take() {
            Some(Offered::Lapic(vector)) => {
                if let Some(lapic) = &mut self.lapic {
                    lapic.acknowledge(vector);
                }
            }
            Some(Offered::Acknowledged) => self.events.interrupt = None,
            None => {}
        }
    }

    /// After an exit: what became of the events, and CR8.
    #[inline(always)]
    pub(crate) fn collect_events(&mut self) {
        let delivery = V::check_guest_faults(&mut self.arch);
        if delivery.interrupt_taken {
            self.interrupt_delivered();
        }
        if delivery.cut_short.is_some() {
            self.events.injected = delivery.cut_short;
        }
        self.collect_eoi();
        self.cr8 = delivery.tpr;
        if let Some(lapic) = &mut self.lapic {
            if delivery.tpr != lapic.tpr() >> 4 {
                lapic.set_tpr(delivery.tpr << 4);
                self.shared.mailbox.publish(lapic);
            }
        }
    }

    /// Does what a write to the local APIC asks for.
    pub(crate) fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Send(message, Shorthand::Self_) => {
                self.shared.mailbox.deliver(&message);
            }
            Effect::Send(message, shorthand) => {
                self.vm.send(&message, shorthand, self.shared.id);
            }
            Effect::Eoi { vector, level } => {
                let irqchip = self.irqchip();
                match irqchip.filter(|irqchip| level || irqchip.wants_end(vector)) {
                    Some(irqchip) if irqchip.is_split() => self.tell_end(vector),
                    Some(irqchip) => irqchip.end_of_interrupt(vector, level),
                    None => {}
                }
            }
            Effect::TimerChanged => self.timer_stale = true,
        }
        if let Some(lapic) = &self.lapic {
            self.shared.mailbox.publish(lapic);
        }
    }

    /// Tells the VMM of the end of an interrupt that its IOAPIC waits for, before the guest goes on.
    fn tell_end(&mut self, vector: u8) {
        let asked = self
            .lapic
            .as_ref()
            .is_some_and(|lapic| lapic.suppresses_eois());
        if asked && self.vm.eoi_suppression() == EoiSuppression::There {
            return;
        }
        let irqchip = self.irqchip();
        if irqchip.is_some_and(|irqchip| irqchip.forwards_end(vector)) {
            self.ended = Some(vector);
            // Closes the window; setting the timer once more does no harm.
            self.timer_stale = true;
        }
    }
}
