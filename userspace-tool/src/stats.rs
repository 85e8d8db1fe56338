//! Counts the exits to userspace: `--stats`.

use std::collections::BTreeMap;
use std::fmt::{
    self,
    Display, //
};
use std::fs;
use std::os::fd::RawFd;
use std::path::Path;

use kvm_bindings::*;

/// How often `KVM_RUN` returned, by exit reason, and for I/O by port and direction, for MMIO by
/// page and direction.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    reasons: BTreeMap<u32, u64>,
    ports: BTreeMap<(u16, bool), u64>,
    pages: BTreeMap<(u64, bool), u64>,
    /// The kernel's own counters of the VM, where debugfs shows them.
    kernel: BTreeMap<String, u64>,
}

/// Where the counts by address end: the rest is in the totals.
const MOST_LINES: usize = 16;

impl Stats {
    /// One return with this exit reason.
    pub fn count(&mut self, reason: u32) {
        *self.reasons.entry(reason).or_default() += 1;
    }

    /// One IN, or OUT if `write`.
    pub fn count_port(&mut self, port: u16, write: bool) {
        *self.ports.entry((port, write)).or_default() += 1;
    }

    /// One load, or store if `write`, where there is no memory.
    pub fn count_mmio(&mut self, address: u64, write: bool) {
        *self.pages.entry((address & !0xfff, write)).or_default() += 1;
    }

    /// Adds the kernel's counters of the VM with file descriptor `vm`, which are there as long as
    /// the VM is.
    ///
    /// `/dev/kvm` has them in `/sys/kernel/debug/kvm/PID-FD`, one number a file; another device
    /// where it is called so too.
    pub fn count_in_kernel(&mut self, device: &Path, vm: RawFd) {
        let Some(name) = device.file_name() else {
            return;
        };
        let folder = Path::new("/sys/kernel/debug")
            .join(name)
            .join(format!("{}-{vm}", std::process::id()));
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let value = fs::read_to_string(entry.path())
                .ok()
                .and_then(|text| text.trim().parse::<u64>().ok());
            if let Some(value @ 1..) = value {
                *self
                    .kernel
                    .entry(entry.file_name().to_string_lossy().into_owned())
                    .or_default() += value;
            }
        }
    }

    /// Adds what another vCPU counted.
    pub fn add(&mut self, other: &Self) {
        merge(&mut self.reasons, &other.reasons);
        merge(&mut self.ports, &other.ports);
        merge(&mut self.pages, &other.pages);
        merge(&mut self.kernel, &other.kernel);
    }

    /// An exit reason's name in the ABI, less `KVM_EXIT_`.
    pub fn name(reason: u32) -> &'static str {
        match reason {
            KVM_EXIT_UNKNOWN => "UNKNOWN",
            KVM_EXIT_EXCEPTION => "EXCEPTION",
            KVM_EXIT_IO => "IO",
            KVM_EXIT_HYPERCALL => "HYPERCALL",
            KVM_EXIT_DEBUG => "DEBUG",
            KVM_EXIT_HLT => "HLT",
            KVM_EXIT_MMIO => "MMIO",
            KVM_EXIT_IRQ_WINDOW_OPEN => "IRQ_WINDOW_OPEN",
            KVM_EXIT_SHUTDOWN => "SHUTDOWN",
            KVM_EXIT_FAIL_ENTRY => "FAIL_ENTRY",
            KVM_EXIT_INTR => "INTR",
            KVM_EXIT_SET_TPR => "SET_TPR",
            KVM_EXIT_TPR_ACCESS => "TPR_ACCESS",
            KVM_EXIT_NMI => "NMI",
            KVM_EXIT_INTERNAL_ERROR => "INTERNAL_ERROR",
            KVM_EXIT_SYSTEM_EVENT => "SYSTEM_EVENT",
            KVM_EXIT_IOAPIC_EOI => "IOAPIC_EOI",
            KVM_EXIT_HYPERV => "HYPERV",
            KVM_EXIT_X86_RDMSR => "X86_RDMSR",
            KVM_EXIT_X86_WRMSR => "X86_WRMSR",
            KVM_EXIT_DIRTY_RING_FULL => "DIRTY_RING_FULL",
            KVM_EXIT_X86_BUS_LOCK => "X86_BUS_LOCK",
            KVM_EXIT_NOTIFY => "NOTIFY",
            KVM_EXIT_MEMORY_FAULT => "MEMORY_FAULT",
            _ => "?",
        }
    }
}

fn merge<K: Clone + Ord>(into: &mut BTreeMap<K, u64>, from: &BTreeMap<K, u64>) {
    for (key, count) in from {
        *into.entry(key.clone()).or_default() += count;
    }
}

/// The entries with the highest counts.
fn largest<K: Copy>(counts: &BTreeMap<K, u64>) -> Vec<(K, u64)> {
    let mut sorted: Vec<_> = counts.iter().map(|(key, count)| (*key, *count)).collect();
    sorted.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    sorted.truncate(MOST_LINES);
    sorted
}

impl Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "exits to userspace: {}",
            self.reasons.values().sum::<u64>()
        )?;
        for (reason, count) in largest(&self.reasons) {
            writeln!(f, "  {count:>10}  {}", Self::name(reason))?;
        }
        for ((port, write), count) in largest(&self.ports) {
            writeln!(
                f,
                "  {count:>10}  {} port {port:#x}",
                if write { "OUT" } else { "IN " }
            )?;
        }
        for ((page, write), count) in largest(&self.pages) {
            writeln!(
                f,
                "  {count:>10}  MMIO {} page {page:#x}",
                if write { "write" } else { "read" }
            )?;
        }
        if !self.kernel.is_empty() {
            writeln!(f, "counted by the kernel:")?;
        }
        for (name, count) in &self.kernel {
            writeln!(f, "  {count:>10}  {name}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_vcpus_add_up_and_the_largest_come_first() {
        let (mut one, mut other) = (Stats::default(), Stats::default());
        one.count(KVM_EXIT_HLT);
        for stats in [&mut one, &mut other] {
            stats.count(KVM_EXIT_IO);
            stats.count_port(0x3f8, true);
            stats.count_mmio(0xd000_0123, false);
        }
        one.add(&other);
        let text = one.to_string();
        let lines: Vec<_> = text.lines().map(str::trim_start).collect();
        assert_eq!(
            lines,
            [
                "exits to userspace: 3",
                "2  IO",
                "1  HLT",
                "2  OUT port 0x3f8",
                "2  MMIO read page 0xd0000000" //
            ]
        );
    }
}
