// SPDX-License-Identifier: GPL-2.0

//! Addresses and ports whose writes the VMM wants to hear of without an exit (api.rst, 4.59 `KVM_IOEVENTFD`, 4.116
//! `KVM_REGISTER_COALESCED_MMIO`): what a write must be like to be one of these.

use super::Invalid;

/// What an address is one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Space {
    /// Guest-physical memory.
    Memory,
    /// Ports.
    Port,
    /// Subchannels of s390's channel I/O, where nothing is ever written here.
    Channel,
}

/// A write that rings: at exactly this address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doorbell {
    /// What the address is one of.
    pub space: Space,
    /// The address.
    pub address: u64,
    /// Bytes of the write; 0: any.
    length: u8,
    /// The value written; `None`: any.
    value: Option<u64>,
}

impl Doorbell {
    /// A doorbell.
    ///
    /// # Errors
    ///
    /// For a length that no write has, an address so high that the write would wrap around, and a value without a length.
    pub fn new(
        space: Space,
        address: u64,
        length: u32,
        value: Option<u64>,
    ) -> Result<Self, Invalid> {
        let valid = matches!(length, 0 | 1 | 2 | 4 | 8)
            && address.checked_add(length.into()).is_some()
            && (length != 0 || value.is_none());
        let doorbell = Self {
            space,
            address,
            length: length as u8,
            value,
        };
        valid.then_some(doorbell).ok_or(Invalid)
    }

    /// Whether a write could ring both.
    pub fn collides(&self, other: &Self) -> bool {
        let lengths = self.length == 0 || other.length == 0 || self.length == other.length;
        let values = match (self.value, other.value) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        };
        (self.space, self.address) == (other.space, other.address) && lengths && values
    }

    /// Whether a write of `data`, little-endian, at its address rings it.
    pub fn rings(&self, data: &[u8]) -> bool {
        if self.length == 0 {
            return true;
        }
        let mut bytes = [0; 8];
        let Some(low) = bytes.get_mut(..data.len()) else {
            return false;
        };
        low.copy_from_slice(data);
        data.len() == usize::from(self.length)
            && self
                .value
                .is_none_or(|value| value == u64::from_le_bytes(bytes))
    }
}

/// A range whose writes are collected for later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zone {
    /// What the address is one of.
    pub space: Space,
    /// The first address.
    pub address: u64,
    /// How many addresses.
    pub size: u32,
}

impl Zone {
    /// Whether `length` bytes at `address` are in it.
    pub fn contains(&self, space: Space, address: u64, length: u64) -> bool {
        self.space == space
            && address
                .checked_sub(self.address)
                .and_then(|offset| offset.checked_add(length))
                .is_some_and(|end| end <= self.size.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doorbell(length: u32, value: Option<u64>) -> Doorbell {
        Doorbell::new(Space::Memory, 0x1000, length, value).unwrap()
    }

    #[test]
    fn what_a_doorbell_may_be() {
        for length in 0..=16 {
            let made = Doorbell::new(Space::Port, 0x10, length, None);
            assert_eq!(made.is_ok(), [0, 1, 2, 4, 8].contains(&length), "{length}");
        }
        assert!(Doorbell::new(Space::Memory, 0, 0, Some(1)).is_err());
        assert!(Doorbell::new(Space::Memory, u64::MAX - 3, 4, None).is_err());
        assert!(Doorbell::new(Space::Memory, u64::MAX - 4, 4, None).is_ok());
        assert!(Doorbell::new(Space::Memory, u64::MAX, 0, None).is_ok());
        assert!(Doorbell::new(Space::Memory, 0, (1 << 8) | 4, None).is_err());
    }

    #[test]
    fn what_rings() {
        assert!(doorbell(0, None).rings(&[1, 2]));
        assert!(doorbell(2, None).rings(&[1, 2]));
        assert!(!doorbell(2, None).rings(&[1, 2, 3, 4]));
        assert!(doorbell(2, Some(0x201)).rings(&[1, 2]));
        assert!(!doorbell(2, Some(0x202)).rings(&[1, 2]));
        assert!(!doorbell(4, Some(0x201)).rings(&[1, 2]));
        assert!(doorbell(8, Some(u64::MAX)).rings(&[0xff; 8]));
        // The value is compared whole: a doorbell that asks for more than fits never rings.
        assert!(!doorbell(2, Some(0x1_0201)).rings(&[1, 2]));
        assert!(!doorbell(8, None).rings(&[0; 16]));
    }

    #[test]
    fn what_collides() {
        let (any, two) = (doorbell(0, None), doorbell(2, None));
        assert!(any.collides(&two) && two.collides(&any) && two.collides(&two));
        assert!(two.collides(&doorbell(2, Some(5))) && doorbell(2, Some(5)).collides(&two));
        assert!(!doorbell(2, Some(5)).collides(&doorbell(2, Some(6))));
        assert!(!two.collides(&doorbell(4, None)));
        let port = Doorbell::new(Space::Port, 0x1000, 2, None).unwrap();
        let next = Doorbell::new(Space::Memory, 0x1002, 2, None).unwrap();
        assert!(!two.collides(&port) && !two.collides(&next));
    }

    #[test]
    fn what_a_zone_contains() {
        let zone = Zone {
            space: Space::Port,
            address: 0x100,
            size: 8,
        };
        assert!(zone.contains(Space::Port, 0x100, 8));
        assert!(zone.contains(Space::Port, 0x107, 1));
        assert!(!zone.contains(Space::Port, 0x107, 2));
        assert!(!zone.contains(Space::Port, 0xff, 2));
        assert!(!zone.contains(Space::Memory, 0x100, 1));
        let top = Zone {
            space: Space::Memory,
            address: u64::MAX - 1,
            size: u32::MAX,
        };
        assert!(top.contains(Space::Memory, u64::MAX, 1));
        assert!(!top.contains(Space::Memory, u64::MAX, u64::MAX));
    }
}
