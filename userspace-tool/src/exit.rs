//! Reads why `KVM_RUN` returned, from the page that vCPU and kernel share (api.rst, section 5, "The
//! kvm_run structure").

use std::sync::atomic::AtomicU8;

use kvm_bindings::*;
use kvm_ioctls::VcpuFd;

/// Why `KVM_RUN` returned. Data slices are in the shared page: what is written there is what the
/// guest reads.
#[derive(Debug)]
pub enum Exit<'a> {
    /// OUT or OUTS of `data.len() / size` items of `size` bytes.
    IoOut {
        port: u16,
        size: usize,
        data: &'a [u8],
    },
    /// IN or INS, to be answered in `data`.
    IoIn {
        port: u16,
        size: usize,
        data: &'a mut [u8],
    },
    /// A load from a guest physical address without memory.
    MmioRead { address: u64, data: &'a mut [u8] },
    /// A store to a guest physical address without memory.
    MmioWrite { address: u64 },
    /// HLT, without an interrupt controller in the kernel.
    Halt,
    /// A triple fault.
    Shutdown,
    /// VM entry failed, with the vendor's reason.
    FailEntry { reason: u64, cpu: u32 },
    /// The kernel could not go on, for instance over an instruction that it cannot emulate.
    InternalError { suberror: u32, data: Vec<u64> },
    /// An exit that the kernel has no case for, with the vendor's number.
    UnknownToKernel(u64),
    /// The guest asked the kernel for power-off, reset or the like.
    SystemEvent(u32),
    /// Nothing to do: a signal, or one of the notices that this tool never asks for.
    Nothing,
    /// An exit reason that this tool does not know, or one whose data is out of the page.
    Unknown(u32),
}

/// Number of the last exit reason; valid after each successful `KVM_RUN`.
pub fn reason(vcpu: &mut VcpuFd) -> u32 {
    vcpu.get_kvm_run().exit_reason
}

/// Decodes the last exit of `vcpu`, whose shared mapping is `map_size` bytes long.
pub fn decode(vcpu: &mut VcpuFd, map_size: usize) -> Exit<'_> {
    let run = vcpu.get_kvm_run();
    match run.exit_reason {
        KVM_EXIT_IO => decode_io(run, map_size),
        KVM_EXIT_MMIO => decode_mmio(run),
        KVM_EXIT_UNKNOWN => {
            // SAFETY: The exit reason says that this member is the valid one, and every bit pattern
            // of it is a value.
            Exit::UnknownToKernel(unsafe { run.__bindgen_anon_1.hw.hardware_exit_reason })
        }
        KVM_EXIT_HLT => Exit::Halt,
        KVM_EXIT_SHUTDOWN => Exit::Shutdown,
        KVM_EXIT_FAIL_ENTRY => {
            // SAFETY: The exit reason says that this member is the valid one, and every bit pattern
            // of it is a value.
            let entry = unsafe { run.__bindgen_anon_1.fail_entry };
            Exit::FailEntry {
                reason: entry.hardware_entry_failure_reason,
                cpu: entry.cpu,
            }
        }
        KVM_EXIT_INTERNAL_ERROR => {
            // SAFETY: As above.
            let error = unsafe { run.__bindgen_anon_1.internal };
            let data = error
                .data
                .iter()
                .take(error.ndata as usize)
                .copied()
                .collect();
            Exit::InternalError {
                suberror: error.suberror,
                data,
            }
        }
        KVM_EXIT_SYSTEM_EVENT => {
            // SAFETY: As above.
            Exit::SystemEvent(unsafe { run.__bindgen_anon_1.system_event.type_ })
        }
        KVM_EXIT_INTR | KVM_EXIT_IRQ_WINDOW_OPEN | KVM_EXIT_SET_TPR => Exit::Nothing,
        other => Exit::Unknown(other),
    }
}

fn decode_io(run: &mut kvm_run, map_size: usize) -> Exit<'_> {
    // SAFETY: The exit reason says that this member is the valid one, and every bit pattern of it
    // is a value.
    let io = unsafe { run.__bindgen_anon_1.io };
    let size = usize::from(io.size);
    let length = size.saturating_mul(io.count as usize);
    let in_mapping = usize::try_from(io.data_offset)
        .ok()
        .and_then(|offset| offset.checked_add(length))
        .is_some_and(|end| end <= map_size);
    if !in_mapping || size == 0 {
        return Exit::Unknown(run.exit_reason);
    }
    let base: *mut u8 = std::ptr::from_mut(run).cast();
    // SAFETY: The mapping that `run` begins is `map_size` bytes long and lives as long as the
    // borrow; the range was checked to be in it. The kernel writes it during KVM_RUN only, which
    // needs the vCPU that is borrowed here.
    let data = unsafe { std::slice::from_raw_parts_mut(base.add(io.data_offset as usize), length) };
    if u32::from(io.direction) == KVM_EXIT_IO_OUT {
        Exit::IoOut {
            port: io.port,
            size,
            data,
        }
    } else {
        Exit::IoIn {
            port: io.port,
            size,
            data,
        }
    }
}

fn decode_mmio(run: &mut kvm_run) -> Exit<'_> {
    // SAFETY: The exit reason says that this member is the valid one, and every bit pattern of it
    // is a value.
    let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
    let length = (mmio.len as usize).min(mmio.data.len());
    if mmio.is_write == 0 {
        Exit::MmioRead {
            address: mmio.phys_addr,
            data: &mut mmio.data[..length],
        }
    } else {
        Exit::MmioWrite {
            address: mmio.phys_addr,
        }
    }
}

/// The `immediate_exit` byte of `vcpu`: once it is 1, `KVM_RUN` returns EINTR without entering the
/// guest.
///
/// # Safety
///
/// `vcpu` must not be dropped while the reference is used.
pub unsafe fn immediate_exit(vcpu: &mut VcpuFd) -> &'static AtomicU8 {
    let byte = &raw mut vcpu.get_kvm_run().immediate_exit;
    // SAFETY: The byte is in the shared mapping, which lives as long as the vCPU, as the caller
    // promises. The kernel only reads it. In this process everything that touches it does so
    // through this atomic: the functions above read other members of the structure only.
    unsafe { AtomicU8::from_ptr(byte) }
}
