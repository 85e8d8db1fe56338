// SPDX-License-Identifier: GPL-2.0

//! Binary statistics: `KVM_GET_STATS_FD` (api.rst, 4.133) of a VM and of a vCPU.
//!
//! A vCPU's counters are changed by its own thread alone; others read them.

use super::vm::Vm;
use super::XvmOps;
use crate::linux::read_file;
use crate::linux::read_file::ReadFile;
use crate::linux::task;
use crate::linux::timer::Timed;
use crate::uapi;
use crate::xvm::vcpu::Shared;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::Arc;

/// Bytes of a name, the zeros behind it included.
const NAME_SIZE: usize = 48;
/// Bytes of the header, of a descriptor, and of a value.
const HEADER: usize = 24;
const DESCRIPTOR: usize = 16 + NAME_SIZE;
const VALUE: usize = 8;

/// A counter that one thread changes.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Adds to it.
    #[inline]
    pub(crate) fn add(&self, more: u64) {
        let old = self.0.load(Ordering::Relaxed);
        self.0.store(old.wrapping_add(more), Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What is counted of a vCPU.
#[derive(Default)]
pub(crate) struct VcpuStats {
    /// Exits of the guest, those that end a window or not.
    pub(crate) exits: Counter,
    /// Windows: times that a CPU was taken into the guest and back.
    pub(crate) windows: Counter,
    /// Exits to the VMM for port I/O, and for memory of its devices.
    pub(crate) io_exits: Counter,
    pub(crate) mmio_exits: Counter,
    /// Returns from `KVM_RUN` because of a signal.
    pub(crate) signal_exits: Counter,
    /// Times that the vCPU slept in HLT.
    pub(crate) halt_exits: Counter,
    /// Instructions that were emulated.
    pub(crate) insn_emulation: Counter,
    /// Calls to let a vCPU go first that the guest named, and those by which it did.
    pub(crate) directed_yields_attempted: Counter,
    pub(crate) directed_yields: Counter,
}

/// Something that has statistics: names, and values in the same order.
pub(crate) trait Source: Send + Sync + 'static {
    /// The names, all of cumulative counters without a unit.
    const NAMES: &'static [&'static CStr];

    /// The value of number `n`.
    fn value(&self, n: usize) -> u64;

    /// Its number, for a vCPU.
    fn number(&self) -> Option<u32>;
}

impl Source for Timed<Shared> {
    const NAMES: &'static [&'static CStr] = &[
        c"exits",
        c"windows",
        c"io_exits",
        c"mmio_exits",
        c"signal_exits",
        c"halt_exits",
        c"insn_emulation",
        c"directed_yield_attempted",
        c"directed_yield_successful",
    ];

    fn value(&self, n: usize) -> u64 {
        let stats = &self.stats;
        let counters = [
            &stats.exits,
            &stats.windows,
            &stats.io_exits,
            &stats.mmio_exits,
            &stats.signal_exits,
            &stats.halt_exits,
            &stats.insn_emulation,
            &stats.directed_yields_attempted,
            &stats.directed_yields,
        ];
        counters.get(n).map_or(0, |counter| counter.get())
    }

    fn number(&self) -> Option<u32> {
        Some(self.id)
    }
}

impl<V: XvmOps> Source for Vm<V> {
    const NAMES: &'static [&'static CStr] = &[c"remote_tlb_flush"];

    fn value(&self, _: usize) -> u64 {
        self.memory.flushes()
    }

    fn number(&self) -> Option<u32> {
        None
    }
}

/// A file of statistics: header, name, descriptors, values.
struct StatsFile<S: Source> {
    source: Arc<S>,
    name: [u8; NAME_SIZE],
}

/// Makes a file of `source`'s statistics, and returns its descriptor.
///
/// # Errors
///
/// `EMFILE`, `ENFILE`, `ENOMEM`.
pub(crate) fn create<S: Source>(source: Arc<S>) -> Result<isize> {
    let mut name = [0; NAME_SIZE];
    let (pid, number) = (task::pid(), source.number());
    let formatted = match number {
        Some(number) => CString::try_from_fmt(fmt!("kvm-{pid}/vcpu-{number}"))?,
        None => CString::try_from_fmt(fmt!("kvm-{pid}"))?,
    };
    let bytes = formatted.to_bytes();
    let length = bytes.len().min(NAME_SIZE - 1);
    name[..length].copy_from_slice(&bytes[..length]);
    read_file::create(Arc::new(StatsFile { source, name }, GFP_KERNEL_ACCOUNT)?)
}

impl<S: Source> ReadFile for StatsFile<S> {
    const NAME: &'static CStr = c"xvm-stats";

    fn content(&self) -> Result<KVec<u8>> {
        let count = S::NAMES.len();
        let descriptors = HEADER + NAME_SIZE;
        let values = descriptors + count * DESCRIPTOR;
        let mut content = KVec::with_capacity(values + count * VALUE, GFP_KERNEL)?;
        let mut put = |bytes: &[u8]| content.extend_from_slice(bytes, GFP_KERNEL);
        for word in [0, NAME_SIZE, count, HEADER, descriptors, values] {
            put(&(word as u32).to_ne_bytes())?;
        }
        put(&self.name)?;
        for (n, name) in S::NAMES.iter().enumerate() {
            let flags = uapi::KVM_STATS_TYPE_CUMULATIVE
                | uapi::KVM_STATS_UNIT_NONE
                | uapi::KVM_STATS_BASE_POW10;
            put(&flags.to_ne_bytes())?;
            // The exponent, and how many values.
            put(&0u16.to_ne_bytes())?;
            put(&1u16.to_ne_bytes())?;
            put(&((n * VALUE) as u32).to_ne_bytes())?;
            // No buckets.
            put(&0u32.to_ne_bytes())?;
            let mut padded = [0; NAME_SIZE];
            let bytes = name.to_bytes();
            let length = bytes.len().min(NAME_SIZE - 1);
            padded[..length].copy_from_slice(&bytes[..length]);
            put(&padded)?;
        }
        for n in 0..count {
            put(&self.source.value(n).to_ne_bytes())?;
        }
        Ok(content)
    }
}
