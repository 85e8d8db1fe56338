// SPDX-License-Identifier: GPL-2.0

//! kvmclock's structure in guest memory (x86/msr.rst, `MSR_KVM_SYSTEM_TIME_NEW`), and the arithmetic that a guest does
//! with it.

use super::scaling;

const NS_PER_SECOND: u64 = 1_000_000_000;

/// Bit of `flags`: what vCPUs read at one time is the same time.
pub const TSC_STABLE: u8 = 1 << 0;
/// Bit of `flags`: the VMM had stopped the guest.
pub const GUEST_STOPPED: u8 = 1 << 1;

/// How ticks become nanoseconds: ((ticks shifted left by `shift`) × `mul`) >> 32. A negative `shift` is one to the right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// `tsc_to_system_mul`.
    pub mul: u32,
    /// `tsc_shift`.
    pub shift: i8,
}

impl Scale {
    /// Of a counter with `khz` kHz; 0 counts as 1. The multiplier has its highest bit set, for the most precision.
    pub fn from_khz(khz: u32) -> Self {
        // A tick takes `above / below` ns, brought to between a half and 1 by the shift: 20 to the left for 1 kHz, 12 to the
        // right for 2^32 kHz.
        let (mut above, mut below) = (NS_PER_SECOND, u64::from(khz.max(1)) * 1000);
        let mut shift = 0;
        while above >= below {
            below <<= 1;
            shift += 1;
        }
        while above * 2 < below {
            above <<= 1;
            shift -= 1;
        }
        // Below 1, so that the 32 bits behind the point are all there is.
        let mul = scaling::ratio(above, below, 32).unwrap_or(0) as u32;
        Self { mul, shift }
    }

    /// The nanoseconds that `ticks` take, as a guest computes them: modulo 2^64.
    pub fn ns(self, ticks: u64) -> u64 {
        let distance = self.shift.unsigned_abs().into();
        let shifted = if self.shift < 0 {
            ticks.wrapping_shr(distance)
        } else {
            ticks.wrapping_shl(distance)
        };
        ((u128::from(shifted) * u128::from(self.mul)) >> 32) as u64
    }
}

/// `struct pvclock_vcpu_time_info` without its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeInfo {
    /// The guest's TSC at one moment.
    pub tsc: u64,
    /// kvmclock at that moment, in nanoseconds.
    pub ns: u64,
    /// From ticks of the guest's TSC to nanoseconds.
    pub scale: Scale,
    /// [`TSC_STABLE`], [`GUEST_STOPPED`].
    pub flags: u8,
}

impl TimeInfo {
    /// Bytes of the whole structure.
    pub const SIZE: usize = 32;
    /// Offset of the version, 4 bytes.
    pub const VERSION: u64 = 0;
    /// Offset of what [`TimeInfo::to_bytes`] makes.
    pub const REST: u64 = 4;
    /// Offset of `flags`, a byte.
    pub const FLAGS: u64 = 29;

    /// The bytes that follow the version.
    pub fn to_bytes(self) -> [u8; Self::SIZE - 4] {
        let mut bytes = [0; Self::SIZE - 4];
        bytes[4..12].copy_from_slice(&self.tsc.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.ns.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.scale.mul.to_le_bytes());
        bytes[24] = self.scale.shift as u8;
        bytes[25] = self.flags;
        bytes
    }
}

/// The version that says "being written", and the one that follows when it is done (x86/msr.rst: odd, then even).
pub fn versions(found: u32) -> (u32, u32) {
    let odd = found.wrapping_add(1) | 1;
    (odd, odd.wrapping_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_of_ticks_is_a_second() {
        for khz in [
            1,
            999,
            1000,
            70_000,
            1_500_000,
            2_596_104,
            3_000_000,
            u32::MAX,
        ] {
            let scale = Scale::from_khz(khz);
            assert!(scale.mul >> 31 == 1);
            let ns = scale.ns(u64::from(khz) * 1000);
            assert!(ns.abs_diff(1_000_000_000) <= 4, "{khz} kHz: {ns}");
        }
        assert_eq!(Scale::from_khz(0), Scale::from_khz(1));
    }

    #[test]
    fn days_do_not_overflow() {
        let scale = Scale::from_khz(4_000_000);
        let year = 365 * 24 * 3600u64;
        let ns = scale.ns(year * 4_000_000_000);
        assert!(ns.abs_diff(year * 1_000_000_000) < year);
        assert!(scale.ns(u64::MAX) > 0);
    }

    #[test]
    fn fields_are_where_the_guest_looks() {
        let info = TimeInfo {
            tsc: 0x1122_3344_5566_7788,
            ns: 0x99aa_bbcc_ddee_ff00,
            scale: Scale {
                mul: 0x8765_4321,
                shift: -2,
            },
            flags: TSC_STABLE,
        };
        let bytes = info.to_bytes();
        assert_eq!(bytes[..4], [0; 4]);
        assert_eq!(bytes[4], 0x88);
        assert_eq!(bytes[12], 0x00);
        assert_eq!(bytes[13], 0xff);
        assert_eq!(bytes[20..24], [0x21, 0x43, 0x65, 0x87]);
        assert_eq!(bytes[24], 0xfe);
        assert_eq!(
            bytes[TimeInfo::FLAGS as usize - TimeInfo::REST as usize],
            TSC_STABLE
        );
    }

    #[test]
    fn versions_are_odd_then_even() {
        assert_eq!(versions(0), (1, 2));
        assert_eq!(versions(2), (3, 4));
        assert_eq!(versions(3), (5, 6));
        assert_eq!(versions(u32::MAX), (1, 2));
        assert_eq!(versions(u32::MAX - 1), (u32::MAX, 0));
    }
}
