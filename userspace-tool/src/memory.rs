//! Guest memory: where it is in the guest's physical address space, and its memory slots.

use anyhow::{
    Context,
    Result, //
};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{
    Address,
    GuestAddress,
    GuestMemoryMmap,
    GuestMemoryRegion,
    GuestRegionMmap,
    MmapRegion, //
};

/// The guest's memory, mapped into this process.
pub type GuestMemory = GuestMemoryMmap<()>;

/// The hole below 4 GiB that holds IOAPIC, LAPIC and the pages of `vm::VMX_PAGES`.
pub const HOLE_START: u64 = 0xc000_0000;
/// RAM goes on here.
pub const HOLE_END: u64 = 1 << 32;

/// Start and length of each piece of RAM, for a guest with `size` bytes.
fn ranges(size: u64) -> Vec<(u64, u64)> {
    let low = size.min(HOLE_START);
    let mut ranges = vec![(0, low)];
    if size > low {
        ranges.push((HOLE_END, size - low));
    }
    ranges
}

/// Maps `size` bytes of memory, a multiple of the page size. Pages come when they are touched.
pub fn allocate(size: u64) -> Result<GuestMemory> {
    let mut regions = Vec::new();
    for (start, length) in ranges(size) {
        let mapping = MmapRegion::new(usize::try_from(length)?).with_context(|| {
            format!(
                "no room for {} MiB of guest memory: use a smaller --mem",
                size >> 20
            )
        })?;
        regions.push(
            GuestRegionMmap::new(mapping, GuestAddress(start))
                .context("guest memory wraps around")?,
        );
    }
    GuestMemory::from_regions(regions).context("guest memory")
}

/// Makes a memory slot of each piece of RAM. The VM must not outlive `memory`.
pub fn register(vm: &VmFd, memory: &GuestMemory) -> Result<()> {
    use vm_memory::GuestMemory;
    for (slot, region) in memory.iter().enumerate() {
        let slot = kvm_userspace_memory_region {
            slot: u32::try_from(slot)?,
            flags: 0,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: The range is a mapping of its own that `memory` keeps. Guest and kernel write it
        // at any time, which is why it is only reached through volatile accessors; `vm::Machine`
        // drops the VM before the memory.
        unsafe { vm.set_user_memory_region(slot) }.with_context(|| {
            format!(
                "KVM_SET_USER_MEMORY_REGION: {:#x} bytes at {:#x}",
                slot.memory_size, slot.guest_phys_addr
            )
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_round_the_hole() {
        assert_eq!(ranges(512 << 20), [(0, 512 << 20)]);
        assert_eq!(ranges(HOLE_START), [(0, HOLE_START)]);
        assert_eq!(ranges(4 << 30), [(0, HOLE_START), (HOLE_END, 1 << 30)]);
    }
}
