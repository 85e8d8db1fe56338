// SPDX-License-Identifier: GPL-2.0

//! A VM's ioctls on its virtual platform: interrupt controllers, PIT, GSI routing (api.rst, 4.24 to 4.29, 4.52, 4.70 to 4.72).

use super::irqchip::Chips;
use super::irqchip::IrqChip;
use super::platform::ioapic::IoApicState;
use super::platform::pic::Chip;
use super::platform::pic::PicState;
use super::platform::pit::ChannelState;
use super::platform::pit::PitState;
use super::platform::routing;
use super::vm::Vm;
use super::XvmOps;
use crate::linux::timer;
use crate::linux::timer::Timed;
use crate::linux::user;
use crate::uapi;
use kernel::prelude::*;
use kernel::sync::Arc;

/// Where a chip's state is in `struct kvm_irqchip`.
const CHIP: usize = core::mem::offset_of!(uapi::kvm_irqchip, chip);

/// The last address at which three pages for the TSS fit below 4 GiB.
const LAST_TSS_ADDRESS: usize = u32::MAX as usize - 3 * 4096 + 1;

impl<V: XvmOps> Vm<V> {
    /// `KVM_SET_TSS_ADDR`: the pages that real mode on VMX without unrestricted guest needs, which xvm never does.
    pub(super) fn set_tss_address(&self, arg: usize) -> Result<isize> {
        if arg > LAST_TSS_ADDRESS {
            return Err(EINVAL);
        }
        Ok(0)
    }

    /// `KVM_SET_IDENTITY_MAP_ADDR`: needed by the same guests; to be set before the first vCPU.
    pub(super) fn set_identity_map_address(&self, arg: usize) -> Result<isize> {
        user::read::<u64>(arg)?;
        if self.has_vcpus() {
            return Err(EINVAL);
        }
        Ok(0)
    }

    /// The in-kernel interrupt controllers, for an ioctl that is about them.
    fn chips(&self) -> Result<&Arc<Timed<IrqChip>>> {
        self.irqchip().ok_or(ENXIO)
    }

    /// The same where the 8259 pair and the IOAPIC are meant.
    fn full_chips(&self) -> Result<&Arc<Timed<IrqChip>>> {
        self.irqchip()
            .filter(|irqchip| !irqchip.is_split())
            .ok_or(ENXIO)
    }

    /// `KVM_GET_IRQCHIP`.
    pub(super) fn get_irqchip(&self, arg: usize) -> Result<isize> {
        let irqchip = self.full_chips()?;
        let id: u32 = user::read(arg)?;
        match id {
            uapi::KVM_IRQCHIP_PIC_MASTER | uapi::KVM_IRQCHIP_PIC_SLAVE => {
                let state = irqchip.with(|chips| chips.pic.state(pic_chip(id)));
                user::write(arg + CHIP, &pic_to_bytes(&state))?;
            }
            uapi::KVM_IRQCHIP_IOAPIC => {
                let state = irqchip.with(|chips| chips.ioapic.state());
                user::write(arg + CHIP, &ioapic_to_words(&state))?;
            }
            _ => return Err(EINVAL),
        }
        Ok(0)
    }

    /// `KVM_SET_IRQCHIP`.
    pub(super) fn set_irqchip(&self, arg: usize) -> Result<isize> {
        let irqchip = self.full_chips()?;
        let id: u32 = user::read(arg)?;
        match id {
            uapi::KVM_IRQCHIP_PIC_MASTER | uapi::KVM_IRQCHIP_PIC_SLAVE => {
                let state = pic_from_bytes(&user::read(arg + CHIP)?);
                irqchip.with(|chips| chips.pic.set_state(pic_chip(id), &state));
            }
            uapi::KVM_IRQCHIP_IOAPIC => {
                irqchip.set_ioapic(&ioapic_from_words(&user::read(arg + CHIP)?));
            }
            _ => return Err(EINVAL),
        }
        Ok(0)
    }

    /// `KVM_CREATE_PIT2`.
    pub(super) fn create_pit2(&self, arg: usize) -> Result<isize> {
        let config: uapi::kvm_pit_config = user::read(arg)?;
        // KVM's order: a second PIT is refused before a missing irqchip.
        let irqchip = self.full_chips().map_err(|_| ENOENT)?;
        irqchip.create_pit(config.flags & uapi::KVM_PIT_SPEAKER_DUMMY != 0)?;
        Ok(0)
    }

    /// `KVM_CREATE_PIT`, from before there were flags.
    pub(super) fn create_pit(&self) -> Result<isize> {
        let irqchip = self.full_chips().map_err(|_| ENOENT)?;
        irqchip.create_pit(true)?;
        Ok(0)
    }

    /// `KVM_GET_PIT`: the channels alone.
    pub(super) fn get_pit(&self, arg: usize) -> Result<isize> {
        let state = self
            .chips()?
            .with(|chips| with_pit(chips, |pit| pit.state(timer::now())))?;
        let channels = pit_to_kvm(&state).channels;
        user::write(arg, &uapi::kvm_pit_state { channels })?;
        Ok(0)
    }

    /// `KVM_SET_PIT`: the flags stay.
    pub(super) fn set_pit(&self, arg: usize) -> Result<isize> {
        let uapi::kvm_pit_state { channels } = user::read(arg)?;
        self.chips()?.with(|chips| {
            with_pit(chips, |pit| {
                let now = timer::now();
                let state = uapi::kvm_pit_state2 {
                    channels,
                    flags: pit.state(now).flags,
                    ..uapi::kvm_pit_state2::default()
                };
                pit.set_state(&pit_from_kvm(&state), now);
            })
        })?;
        Ok(0)
    }

    /// `KVM_GET_PIT2`.
    pub(super) fn get_pit2(&self, arg: usize) -> Result<isize> {
        let state = self
            .chips()?
            .with(|chips| with_pit(chips, |pit| pit.state(timer::now())))?;
        user::write(arg, &pit_to_kvm(&state))?;
        Ok(0)
    }

    /// `KVM_SET_PIT2`.
    pub(super) fn set_pit2(&self, arg: usize) -> Result<isize> {
        let state: uapi::kvm_pit_state2 = user::read(arg)?;
        let state = pit_from_kvm(&state);
        self.chips()?
            .with(|chips| with_pit(chips, |pit| pit.set_state(&state, timer::now())))?;
        Ok(0)
    }

    /// `KVM_REINJECT_CONTROL` (4.99).
    pub(super) fn reinject_control(&self, arg: usize) -> Result<isize> {
        let control: uapi::kvm_reinject_control = user::read(arg)?;
        let makes_up = control.pit_reinject != 0;
        self.chips()?
            .with(|chips| with_pit(chips, |pit| pit.make_up(makes_up)))?;
        Ok(0)
    }

    /// `KVM_IRQ_LINE`, and `KVM_IRQ_LINE_STATUS` if `status`.
    pub(super) fn irq_line(&self, arg: usize, status: bool) -> Result<isize> {
        // struct kvm_irq_level: GSI (and, on return, status), level.
        let [gsi, level]: [u32; 2] = user::read(arg)?;
        let seen = self.chips()?.set_line(gsi, level != 0);
        if status {
            user::write(arg, &[u32::from(seen), level])?;
        }
        Ok(0)
    }

    /// `KVM_SET_GSI_ROUTING`.
    pub(super) fn set_gsi_routing(&self, arg: usize) -> Result<isize> {
        // struct kvm_irq_routing: number of entries, flags, entries.
        let [count, flags]: [u32; 2] = user::read(arg)?;
        if self.irqchip().is_none() || count > routing::GSIS || flags != 0 {
            return Err(EINVAL);
        }
        let entries = arg + core::mem::size_of::<[u32; 2]>();
        let mut routes = KVVec::with_capacity(count as usize, GFP_KERNEL_ACCOUNT)?;
        for entry in user::read_array::<RoutingEntry>(entries, count as usize)?.iter() {
            let route = route(entry)?;
            if let routing::Target::Msi { address, .. } = route.target {
                if self.is_bad_msi((address >> 32) as u32) {
                    return Err(EINVAL);
                }
            } else if self.full_chips().is_err() {
                return Err(EINVAL);
            }
            // VMMs pass them sorted, so that this is the end.
            let at = routes.partition_point(|other: &routing::Entry| other.gsi <= route.gsi);
            routes
                .insert_within_capacity(at, route)
                .map_err(|_| EINVAL)?;
        }
        routing::check(&routes).map_err(|_| EINVAL)?;
        self.chips()?.set_routes(routes);
        Ok(0)
    }

    /// With APIC IDs of 32 bits the upper half of an MSI's address has bits 31:8 of one, and nothing else.
    fn is_bad_msi(&self, address_high: u32) -> bool {
        address_high & 0xff != 0 && self.targets().wide_ids()
    }

    /// `KVM_SIGNAL_MSI`: 1 when a vCPU got it, 0 when it was blocked.
    pub(super) fn signal_msi(&self, arg: usize) -> Result<isize> {
        let msi: uapi::kvm_msi = user::read(arg)?;
        let irqchip = self.irqchip().ok_or(EINVAL)?;
        if msi.flags != 0 || self.is_bad_msi(msi.address_hi) {
            return Err(EINVAL);
        }
        let address = u64::from(msi.address_hi) << 32 | u64::from(msi.address_lo);
        Ok(irqchip.signal_msi(address, msi.data).into())
    }
}

fn with_pit<R>(
    chips: &mut Chips,
    work: impl FnOnce(&mut super::platform::pit::Pit) -> R,
) -> Result<R> {
    chips.pit.as_mut().map(work).ok_or(ENXIO)
}

fn pic_chip(id: u32) -> Chip {
    match id {
        uapi::KVM_IRQCHIP_PIC_MASTER => Chip::Master,
        _ => Chip::Slave,
    }
}

/// `struct kvm_pic_state`: bytes in this order.
fn pic_to_bytes(state: &PicState) -> [u8; 16] {
    [
        state.last_irr,
        state.irr,
        state.imr,
        state.isr,
        state.priority_add,
        state.irq_base,
        state.read_reg_select,
        state.poll,
        state.special_mask,
        state.init_state,
        state.auto_eoi,
        state.rotate_on_auto_eoi,
        state.special_fully_nested_mode,
        state.init4,
        state.elcr,
        state.elcr_mask,
    ]
}

fn pic_from_bytes(bytes: &[u8; 16]) -> PicState {
    PicState {
        last_irr: bytes[0],
        irr: bytes[1],
        imr: bytes[2],
        isr: bytes[3],
        priority_add: bytes[4],
        irq_base: bytes[5],
        read_reg_select: bytes[6],
        poll: bytes[7],
        special_mask: bytes[8],
        init_state: bytes[9],
        auto_eoi: bytes[10],
        rotate_on_auto_eoi: bytes[11],
        special_fully_nested_mode: bytes[12],
        init4: bytes[13],
        elcr: bytes[14],
        elcr_mask: bytes[15],
    }
}

/// `struct kvm_ioapic_state` as words of eight bytes: base; ioregsel and ID; IRR and padding; the redirection table.
fn ioapic_to_words(state: &IoApicState) -> [u64; 27] {
    let mut words = [0; 27];
    words[0] = state.base_address;
    words[1] = u64::from(state.id) << 32 | u64::from(state.ioregsel);
    words[2] = state.irr.into();
    words[3..].copy_from_slice(&state.redirtbl);
    words
}

fn ioapic_from_words(words: &[u64; 27]) -> IoApicState {
    let mut state = IoApicState {
        base_address: words[0],
        ioregsel: words[1] as u32,
        id: (words[1] >> 32) as u32,
        irr: words[2] as u32,
        ..IoApicState::default()
    };
    state.redirtbl.copy_from_slice(&words[3..]);
    state
}

fn pit_to_kvm(state: &PitState) -> uapi::kvm_pit_state2 {
    uapi::kvm_pit_state2 {
        channels: state.channels.map(|channel| uapi::kvm_pit_channel_state {
            count: channel.count,
            latched_count: channel.latched_count,
            count_latched: channel.count_latched,
            status_latched: channel.status_latched,
            status: channel.status,
            read_state: channel.read_state,
            write_state: channel.write_state,
            write_latch: channel.write_latch,
            rw_mode: channel.rw_mode,
            mode: channel.mode,
            bcd: channel.bcd,
            gate: channel.gate,
            count_load_time: channel.count_load_time,
        }),
        flags: state.flags,
        ..uapi::kvm_pit_state2::default()
    }
}

fn pit_from_kvm(state: &uapi::kvm_pit_state2) -> PitState {
    PitState {
        channels: state.channels.map(|channel| ChannelState {
            count: channel.count,
            latched_count: channel.latched_count,
            count_latched: channel.count_latched,
            status_latched: channel.status_latched,
            status: channel.status,
            read_state: channel.read_state,
            write_state: channel.write_state,
            write_latch: channel.write_latch,
            rw_mode: channel.rw_mode,
            mode: channel.mode,
            bcd: channel.bcd,
            gate: channel.gate,
            count_load_time: channel.count_load_time,
        }),
        flags: state.flags,
    }
}

/// `struct kvm_irq_routing_entry`: GSI, type, flags, padding, and eight words by type.
type RoutingEntry = [u32; 12];

fn route(entry: &RoutingEntry) -> Result<routing::Entry> {
    let [gsi, kind, flags, _, first, second, third, ..] = *entry;
    if flags != 0 {
        return Err(EINVAL);
    }
    let target = match kind {
        uapi::KVM_IRQ_ROUTING_IRQCHIP => match (first, u8::try_from(second).map_err(|_| EINVAL)?) {
            (uapi::KVM_IRQCHIP_PIC_MASTER, pin @ 0..8) => routing::Target::Pic { pin },
            (uapi::KVM_IRQCHIP_PIC_SLAVE, pin @ 0..8) => routing::Target::Pic { pin: pin + 8 },
            (uapi::KVM_IRQCHIP_IOAPIC, pin) => routing::Target::IoApic { pin },
            _ => return Err(EINVAL),
        },
        uapi::KVM_IRQ_ROUTING_MSI => routing::Target::Msi {
            address: u64::from(second) << 32 | u64::from(first),
            data: third,
        },
        _ => return Err(EINVAL),
    };
    routing::Entry::new(gsi, target).map_err(|_| EINVAL)
}
