// SPDX-License-Identifier: GPL-2.0

//! Ratios of two frequencies, as the CPUs take them for a guest's TSC: fixed-point numbers.

/// `above` / `below` with `fraction` bits behind the point, rounded down. `None` when it doesn't fit 64 bits, or `below` is 0.
///
/// Both are below 2^63. There is no division of 128 bits in the kernel.
pub fn ratio(above: u64, below: u64, fraction: u8) -> Option<u64> {
    let mut quotient = above.checked_div(below)?;
    let mut rest = above % below;
    for _ in 0..fraction {
        if quotient >> 63 != 0 {
            return None;
        }
        rest <<= 1;
        quotient <<= 1;
        if rest >= below {
            rest -= below;
            quotient |= 1;
        }
    }
    Some(quotient)
}

/// `value` × `ratio`, modulo 2^64; `ratio` has `fraction` bits behind the point, at most 64.
pub fn scale(value: u64, ratio: u64, fraction: u8) -> u64 {
    ((u128::from(value) * u128::from(ratio)) >> fraction.min(64)) as u64
}

/// How a CPU scales its TSC for guests (APM vol 2, 15.30.5; SDM vol 3, 27.6.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TscScaling {
    /// Bits of the ratio behind the point.
    pub fraction: u8,
    /// Ratios are below this.
    pub limit: u64,
}

impl TscScaling {
    /// The ratio that makes a TSC of `host` kHz one of `guest` kHz, if the CPU has it.
    pub fn ratio(&self, guest: u32, host: u32) -> Option<u64> {
        ratio(guest.into(), host.into(), self.fraction)
            .filter(|ratio| *ratio != 0 && *ratio < self.limit)
    }

    /// Guests' frequencies in kHz are below this, on a host of `host` kHz.
    pub fn limit_khz(&self, host: u32) -> u64 {
        scale(self.limit, host.into(), self.fraction).min(i32::MAX as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SVM: TscScaling = TscScaling {
        fraction: 32,
        limit: 0xff_ffff_ffff,
    };
    const VMX: TscScaling = TscScaling {
        fraction: 48,
        limit: u64::MAX,
    };

    #[test]
    fn ratios_are_what_division_makes() {
        assert_eq!(ratio(1, 1, 32), Some(1 << 32));
        assert_eq!(ratio(1, 3, 32), Some(0x5555_5555));
        assert_eq!(ratio(7, 2, 48), Some(7 << 47));
        assert_eq!(ratio(1 << 40, 1, 32), None);
        assert_eq!(ratio((1 << 40) - 1, 1, 24), Some(((1 << 40) - 1) << 24));
        assert_eq!(ratio(0, 5, 32), Some(0));
        assert_eq!(ratio(1, 0, 32), None);
    }

    #[test]
    fn a_scaled_second_has_as_many_ticks_as_asked_for() {
        for scaling in [SVM, VMX] {
            for (guest, host) in [
                (1_000_000, 2_596_104),
                (3_700_001, 2_000_000),
                (5, 4_000_000),
            ] {
                let ratio = scaling.ratio(guest, host).unwrap();
                let ticks = scale(u64::from(host) * 1000, ratio, scaling.fraction);
                assert!(ticks.abs_diff(u64::from(guest) * 1000) <= 1);
            }
        }
    }

    #[test]
    fn what_the_cpu_lacks_is_refused() {
        assert_eq!(SVM.ratio(256_000, 1000), None);
        assert!(SVM.ratio(255_000, 1000).is_some());
        assert_eq!(SVM.ratio(0, 1000), None);
        assert_eq!(SVM.ratio(1, 0), None);
        assert_eq!(SVM.limit_khz(1000), 255_999);
        assert_eq!(SVM.limit_khz(u32::MAX), i32::MAX as u64);
        assert_eq!(VMX.limit_khz(0), 0);
    }
}
