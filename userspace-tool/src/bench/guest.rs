//! The guest code of `guest.S`, assembled into this program, and the kinds of exit it has.

use std::arch::global_asm;

use crate::device::Vendor;

global_asm!(include_str!("guest.S"));

extern "C" {
    static xvm_bench_start: u8;
    static xvm_bench_end: u8;
    static xvm_bench_empty: u8;
    static xvm_bench_cpuid: u8;
    static xvm_bench_msr: u8;
    static xvm_bench_vmcall: u8;
    static xvm_bench_vmmcall: u8;
    static xvm_bench_pio_user: u8;
    static xvm_bench_mmio_user: u8;
    static xvm_bench_apic: u8;
    static xvm_bench_hlt_wake: u8;
    static xvm_bench_page_fault: u8;
    static xvm_bench_interrupt: u8;
}

/// The port that the guest writes after each batch.
pub const BATCH_PORT: u16 = 0xe0;
/// The port that the guest writes to come to userspace.
pub const USER_PORT: u16 = 0xe1;
/// The vector that the guest sends to itself.
pub const VECTOR: u64 = 0x40;

/// One kind of exit.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Its name in the output; those that end in `-user` reach userspace.
    pub name: &'static str,
    /// Where its loop is, from the start of the code.
    pub entry: u64,
}

/// How far a label is from the start of the code.
fn offset(label: *const u8) -> u64 {
    label
        .addr()
        .wrapping_sub((&raw const xvm_bench_start).addr()) as u64
}

/// The code, to be copied anywhere.
pub fn code() -> &'static [u8] {
    let length = offset(&raw const xvm_bench_end) as usize;
    // SAFETY: The two labels enclose the code of `guest.S`, which is in a read-only section of this
    // program.
    unsafe { std::slice::from_raw_parts(&raw const xvm_bench_start, length) }
}

/// Where the handler of `VECTOR` is, from the start of the code.
pub fn interrupt_handler() -> u64 {
    offset(&raw const xvm_bench_interrupt)
}

/// The loop around nothing.
pub fn empty() -> Kind {
    Kind {
        name: "empty",
        entry: offset(&raw const xvm_bench_empty),
    }
}

/// All kinds, for a CPU of that vendor.
pub fn kinds(vendor: Vendor) -> [Kind; 8] {
    let hypercall = match vendor {
        Vendor::Vmx => &raw const xvm_bench_vmcall,
        Vendor::Svm => &raw const xvm_bench_vmmcall,
    };
    [
        ("cpuid", &raw const xvm_bench_cpuid),
        ("msr", &raw const xvm_bench_msr),
        ("hypercall", hypercall),
        ("apic", &raw const xvm_bench_apic),
        ("hlt-wake", &raw const xvm_bench_hlt_wake),
        ("page-fault", &raw const xvm_bench_page_fault),
        ("pio-user", &raw const xvm_bench_pio_user),
        ("mmio-user", &raw const xvm_bench_mmio_user),
    ]
    .map(|(name, label)| Kind {
        name,
        entry: offset(label),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_an_entry_of_its_own_in_the_code() {
        for vendor in [Vendor::Svm, Vendor::Vmx] {
            let mut entries: Vec<_> = kinds(vendor).iter().map(|kind| kind.entry).collect();
            entries.extend([empty().entry, interrupt_handler()]);
            entries.sort_unstable();
            entries.dedup();
            assert_eq!(entries.len(), 10);
            assert!(entries.iter().all(|entry| *entry < code().len() as u64));
        }
    }

    #[test]
    fn the_hypercall_is_the_vendor_s() {
        let at = |vendor| {
            let kind = kinds(vendor)
                .into_iter()
                .find(|kind| kind.name == "hypercall");
            kind.map_or(&[][..], |kind| &code()[kind.entry as usize..][..64])
        };
        let has =
            |code: &[u8], instruction: [u8; 3]| code.windows(3).any(|bytes| bytes == instruction);
        assert!(has(at(Vendor::Vmx), [0x0f, 0x01, 0xc1]));
        assert!(has(at(Vendor::Svm), [0x0f, 0x01, 0xd9]));
    }
}
