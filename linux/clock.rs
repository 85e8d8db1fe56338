// SPDX-License-Identifier: GPL-2.0

//! The host's clocks, and its TSC at the same moment.

use super::x86;
use kernel::bindings;
use kernel::prelude::*;

/// A moment, by the host's clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// The TSC.
    pub(crate) tsc: u64,
    /// Nanoseconds since boot, with time in suspend, at the rate that no NTP has corrected (`CLOCK_MONOTONIC_RAW` and what
    /// `CLOCK_BOOTTIME` adds).
    pub(crate) ns: u64,
    /// Nanoseconds of `CLOCK_REALTIME`.
    pub(crate) real: u64,
    /// The clocks are made from the TSC, which counts alike on all CPUs: the three are exactly of one moment, and go on
    /// alike.
    pub(crate) exact: bool,
}

impl Moment {
    /// Now. In process context.
    pub(crate) fn now() -> Self {
        let mut found = bindings::system_time_snapshot::default();
        // SAFETY: The structure lives through the call, which fills it in for this clock always.
        unsafe {
            bindings::ktime_get_snapshot_id(bindings::CLOCK_REALTIME as c_int, &mut found);
        }
        // SAFETY: Reads an offset between clocks.
        let asleep = unsafe { bindings::ktime_mono_to_any(0, bindings::tk_offsets_TK_OFFS_BOOT) };
        let by_tsc = matches!(
            found.cs_id,
            bindings::clocksource_ids_CSID_X86_TSC | bindings::clocksource_ids_CSID_X86_TSC_EARLY
        );
        Self {
            tsc: if by_tsc { found.cycles } else { x86::rdtsc() },
            ns: (found.monoraw as u64).wrapping_add(asleep as u64),
            real: found.systime as u64,
            exact: by_tsc && tsc_is_stable(),
        }
    }
}

/// Whether the host trusts its TSC to count alike, and at one rate, on all CPUs.
#[inline]
pub(crate) fn tsc_is_stable() -> bool {
    // SAFETY: Reads a flag.
    unsafe { bindings::check_tsc_unstable() == 0 }
}
