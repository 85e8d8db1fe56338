// SPDX-License-Identifier: GPL-2.0

//! An interrupt message: what an IPI, an IOAPIC pin or an MSI puts on the APIC bus.

/// The physical destination that every local APIC answers to.
///
/// Sources with 8-bit destinations write it 0xff. The ICR of xAPIC mode widens that, so that a local APIC whose x2APIC ID is
/// 255 keeps an address of its own (Intel SDM vol. 3, 12.12.9); for devices see [`Message::addressees_from_device`].
pub const BROADCAST: u32 = u32::MAX;

/// What 8-bit destinations have as broadcast.
const SHORT_BROADCAST: u32 = 0xff;

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

/// Whose local APICs a message may match, so that the others need not be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addressees {
    /// Those with an x2APIC ID in a range.
    Ids {
        /// The first ID.
        first: u32,
        /// How many.
        count: usize,
    },
    /// Any.
    Anyone,
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

    /// Who may be addressed by an IPI without a shorthand.
    pub fn addressees(&self) -> Addressees {
        match self.dest {
            BROADCAST => Addressees::Anyone,
            first if !self.logical => Addressees::Ids { first, count: 1 },
            // A cluster of x2APIC mode (12.12.10.2). Logical IDs of xAPIC mode are in the lowest byte, and any APIC may have any.
            dest if dest > SHORT_BROADCAST => Addressees::Ids {
                first: (dest >> 16) << 4,
                count: 16,
            },
            _ => Addressees::Anyone,
        }
    }

    /// Who may be addressed by an MSI, or a message of the IOAPIC. To these the physical 0xff is the broadcast, as KVM has
    /// it, unless the VMM wants it `exact`: then an APIC in x2APIC mode has it for an ID (api.rst, KVM_CAP_X2APIC_API).
    pub fn addressees_from_device(&self, exact: bool) -> (Message, Addressees) {
        if self.logical || self.dest != SHORT_BROADCAST {
            return (*self, self.addressees());
        }
        let dest = if exact { SHORT_BROADCAST } else { BROADCAST };
        (Message { dest, ..*self }, Addressees::Anyone)
    }

    /// Decodes a message-signalled interrupt. `wide`: the upper address bits hold bits 31:8 of the destination.
    pub fn from_msi(address: u64, data: u32, wide: bool) -> Message {
        let address = MsiAddress(address);
        let data = MsiData(data);
        let logical = address.logical();
        let high = if wide { address.dest_high() } else { 0 };
        let dest = (high << 8) | u32::from(address.dest());
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
        let high = Message::from_msi(0x0001_0200_feef_f000, 0x444, false);
        assert_eq!(high.dest, 0xff);
        let wide = Message::from_msi(0x0001_0200_feef_f000, 0x444, true);
        assert_eq!((wide.dest, wide.delivery), (0x0001_02ff, Delivery::Nmi));
        assert_eq!(
            Message::from_msi(0xfee0_0000, 0x600, false).delivery,
            Delivery::Reserved
        );
    }

    #[test]
    fn few_are_asked() {
        let message = |address| Message::from_msi(address, 0x44, true);
        let ids = |first, count| Addressees::Ids { first, count };
        assert_eq!(message(0xfee0_5000).addressees(), ids(5, 1));
        // Eight logical IDs are no broadcast, and may be of any cluster of xAPIC mode.
        let logical = message(0xfeef_f004);
        assert_eq!(
            logical.addressees_from_device(false),
            (logical, Addressees::Anyone)
        );
        assert_eq!(message(0x0012_0000_fee0_1004).addressees(), ids(0x120, 16));
        assert_eq!(message(0x100_fee0_0004).addressees(), ids(0, 16));
        let everyone = message(0xfeef_f000);
        assert_eq!(everyone.addressees(), ids(255, 1));
        let (sent, to) = everyone.addressees_from_device(false);
        assert_eq!((sent.dest, to), (BROADCAST, Addressees::Anyone));
        let (sent, to) = everyone.addressees_from_device(true);
        assert_eq!((sent.dest, to), (0xff, Addressees::Anyone));
    }
}
