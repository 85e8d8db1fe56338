// SPDX-License-Identifier: GPL-2.0

//! The devices in the kernel as a guest's accesses reach them: local APIC and IOAPIC by memory, 8259 pair and PIT by port.

use super::platform::lapic::Lapic;
use super::vcpu::Vcpu;
use super::XvmOps;
use crate::linux::timer;

/// Where an access to the local APIC's page is.
const APIC_PAGE: u64 = 0xfff;

/// What of the local APIC is at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Local {
    /// Its registers.
    Registers,
    /// They would be there in xAPIC mode (`KVM_X86_QUIRK_LAPIC_MMIO_HOLE`): reads are all ones, writes go nowhere.
    Hole,
    /// Something else.
    Nothing,
}

/// The time for an access to the local APIC at `offset`, where it matters.
pub(crate) fn device_time(offset: u32) -> u64 {
    match Lapic::uses_time(offset) {
        true => timer::now(),
        false => 0,
    }
}

impl<V: XvmOps> Vcpu<V> {
    /// What of the local APIC is at an address.
    fn at_local_apic(&self, gpa: u64) -> Local {
        let page = gpa & !APIC_PAGE;
        match &self.lapic {
            Some(lapic) if lapic.page() == Some(page) => Local::Registers,
            Some(lapic) if lapic.is_at(page) && self.vm.switches.apic_hole() => Local::Hole,
            _ => Local::Nothing,
        }
    }

    /// Whether an address belongs to the local APIC or the IOAPIC.
    pub(crate) fn is_kernel_device(&self, gpa: u64) -> bool {
        self.at_local_apic(gpa) != Local::Nothing
            || self.irqchip().is_some_and(|irqchip| irqchip.is_ioapic(gpa))
    }

    /// Reads from a device in the kernel. False when there is none at this address.
    pub(super) fn device_read(&mut self, gpa: u64, data: &mut [u8]) -> bool {
        let value = match self.at_local_apic(gpa) {
            Local::Registers => {
                let now = device_time((gpa & APIC_PAGE & !3) as u32);
                self.lapic
                    .as_mut()
                    .map(|lapic| lapic.read((gpa & APIC_PAGE & !3) as u32, now))
            }
            Local::Hole => {
                data.fill(0xff);
                return true;
            }
            Local::Nothing => self.irqchip().and_then(|irqchip| irqchip.ioapic_read(gpa)),
        };
        let Some(value) = value else {
            return false;
        };
        // Only aligned accesses of 4 bytes are defined (SDM vol 3, 12.4.1); others read the bytes of the register, then zero.
        let bytes = value.to_le_bytes();
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = bytes.get((gpa & 3) as usize + i).copied().unwrap_or(0);
        }
        true
    }

    /// Writes to a device in the kernel. False when there is none at this address.
    pub(super) fn device_write(&mut self, gpa: u64, data: &[u8]) -> bool {
        let mut bytes = [0; 4];
        let length = data.len().min(4);
        bytes[..length].copy_from_slice(&data[..length]);
        let value = u32::from_le_bytes(bytes);
        match self.at_local_apic(gpa) {
            Local::Registers => {
                // As in hardware, what isn't an aligned access of at least 4 bytes has no effect.
                if gpa & 3 == 0 && data.len() >= 4 {
                    self.lapic_write((gpa & APIC_PAGE) as u32, value);
                }
                true
            }
            Local::Hole => true,
            Local::Nothing => self
                .irqchip()
                .is_some_and(|irqchip| irqchip.ioapic_write(gpa, value).is_some()),
        }
    }

    /// Writes the local APIC's register at `offset` in its page.
    pub(crate) fn lapic_write(&mut self, offset: u32, value: u32) {
        let (now, tsc) = match Lapic::uses_time(offset) {
            true => (timer::now(), self.guest_tsc()),
            false => (0, 0),
        };
        if let Some(lapic) = &mut self.lapic {
            let effect = lapic.write(offset, value, now, tsc);
            self.apply(effect);
        }
    }

    /// Reads a byte from a port in the kernel.
    pub(crate) fn port_read(&mut self, port: u16) -> Option<u8> {
        let irqchip = self.irqchip()?;
        if irqchip.is_pic_port(port, 1) {
            return Some(irqchip.pic_read(port));
        }
        irqchip.pit_read(port)
    }

    /// Writes a byte to a port in the kernel.
    pub(crate) fn port_write(&mut self, port: u16, value: u8) -> Option<()> {
        let irqchip = self.irqchip()?;
        if irqchip.is_pic_port(port, 1) {
            irqchip.pic_write(port, value);
            return Some(());
        }
        irqchip.pit_write(port, value)
    }
}
