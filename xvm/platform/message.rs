// SPDX-License-Identifier: GPL-2.0

//! An interrupt message: what an IPI, an IOAPIC pin or an MSI puts on the APIC bus.

/// The physical destination that every local APIC answers to.
///
/// Sources with 8-bit destinations write it 0xff; they widen it, so that a local APIC whose x2APIC ID is 255 keeps an
/// address of its own (Intel SDM vol. 3, 12.12.9).
pub const BROADCAST: u32 = u32::MAX;

/// How the destination takes the message (Intel SDM vol. 3, 12.5.1 and 12.6.1, "delivery mode").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The vector goes to every destination.
    Fixed,
    /// The vector goes to one of the destinations.
    LowestPriority,
    /// System management interrupt.
    Smi,
    /// Non-maskable interrupt; the vector is ignored.
    Nmi,
    /// INIT.
    Init,
    /// Start-up IPI: the vector is the page number of the code to start.
    Startup,
    /// The vector comes from an external 8259.
    ExtInt,
    /// Encoding 3, which no manual defines: no local APIC accepts it.
    Reserved,
}

impl Delivery {
    /// Decodes a delivery mode field of three bits; higher bits are ignored.
    pub fn from_bits(bits: u8) -> Delivery {
        match bits & 7 {
            0 => Delivery::Fixed,
            1 => Delivery::LowestPriority,
            2 => Delivery::Smi,
            4 => Delivery::Nmi,
            5 => Delivery::Init,
            6 => Delivery::Startup,
            7 => Delivery::ExtInt,
            _ => Delivery::Reserved,
        }
    }
}

/// An interrupt on the APIC bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Destination: an APIC ID, [`BROADCAST`], or a set of logical IDs.
    pub dest: u32,
    /// `dest` is logical, not physical.
    pub logical: bool,
    /// How it is to be taken.
    pub delivery: Delivery,
    /// Interrupt vector; its meaning depends on `delivery`.
    pub vector: u8,
    /// Level-triggered: the EOI goes back to the IOAPIC.
    pub level: bool,
}

register! {
    /// MSI address (Intel SDM vol. 3, 12.11.1). Bits 63:40 extend the destination where the VMM asked for 32-bit IDs
    /// (api.rst, KVM_CAP_X2APIC_API).
    struct MsiAddress(u64) {
        logical: bool = 2;
        redirection_hint: bool = 3;
        dest: u8 = 19..12;
        dest_high: u32 = 63..40;
    }
}

register! {
    /// MSI data (Intel SDM vol. 3, 12.11.2).
    struct MsiData(u32) {
        vector: u8 = 7..0;
        delivery: u8 = 10..8;
        level: bool = 15;
    }
}

impl Message {
    /// Widens an 8-bit destination: the physical 0xff is the broadcast.
    pub(super) fn widen(dest: u8, logical: bool) -> u32 {
        match dest {
            0xff if !logical => BROADCAST,
            _ => u32::from(dest),
        }
    }

    /// Decodes a message-signalled interrupt.
    ///
    /// `x2apic_ext_dest`: the upper address bits hold bits 31:8 of the destination, and 0xff is an APIC like any other.
    pub fn from_msi(address: u64, data: u32, x2apic_ext_dest: bool) -> Message {
        let address = MsiAddress(address);
        let data = MsiData(data);
        let logical = address.logical();
        let dest = if x2apic_ext_dest {
            (address.dest_high() << 8) | u32::from(address.dest())
        } else {
            Self::widen(address.dest(), logical)
        };
        let delivery = match Delivery::from_bits(data.delivery()) {
            // The hint asks for one processor out of a logical set (12.11.1).
            Delivery::Fixed if logical && address.redirection_hint() => Delivery::LowestPriority,
            // Start-up exists in the ICR alone (12.11.2).
            Delivery::Startup => Delivery::Reserved,
            delivery => delivery,
        };
        Message {
            dest,
            logical,
            delivery,
            vector: data.vector(),
            level: data.level(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn msi_fields() {
        let message = Message::from_msi(0xfee0_500c, 0x8031, false);
        assert_eq!(
            message,
            Message {
                dest: 5,
                logical: true,
                delivery: Delivery::LowestPriority,
                vector: 0x31,
                level: true,
            }
        );
        assert_eq!(Message::from_msi(0xfeef_f000, 0x444, false).dest, BROADCAST);
        // Eight logical IDs are no broadcast.
        assert_eq!(Message::from_msi(0xfeef_f004, 0x44, false).dest, 0xff);
        let wide = Message::from_msi(0x0001_0200_feef_f000, 0x444, true);
        assert_eq!((wide.dest, wide.delivery), (0x0001_02ff, Delivery::Nmi));
        assert_eq!(
            Message::from_msi(0xfee0_0000, 0x600, false).delivery,
            Delivery::Reserved
        );
    }
}
