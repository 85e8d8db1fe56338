// SPDX-License-Identifier: GPL-2.0

//! `struct kvm_run`: what a vCPU tells its VMM and is told (api.rst, section 5).

use super::replay::Kind;
use super::run::Next;
use super::vcpu::Vcpu;
use super::vcpu::PORT_DATA;
use super::MemoryFault;
use super::XvmOps;
use crate::uapi;
use crate::uapi::kvm_run;
use core::mem::offset_of;
use core::mem::size_of;

/// `KVM_EXIT_HYPERCALL_LONG_MODE`, a macro that bindgen doesn't see: 64-bit code made the hypercall.
const LONG_MODE: u64 = 1 << 0;

impl<V: XvmOps> Vcpu<V> {
    /// Sets the exit reason.
    pub(super) fn set_exit(&self, reason: u32) {
        self.pages.set(offset_of!(kvm_run, exit_reason), reason);
    }

    pub(super) fn exit_io(&self, input: bool, size: u8, port: u16, count: u32) {
        let direction = if input {
            uapi::KVM_EXIT_IO_IN
        } else {
            uapi::KVM_EXIT_IO_OUT
        };
        let pages = &self.pages;
        pages.set(
            offset_of!(kvm_run, __bindgen_anon_1.io.direction),
            direction as u8,
        );
        pages.set(offset_of!(kvm_run, __bindgen_anon_1.io.size), size);
        pages.set(offset_of!(kvm_run, __bindgen_anon_1.io.port), port);
        pages.set(offset_of!(kvm_run, __bindgen_anon_1.io.count), count);
        pages.set(
            offset_of!(kvm_run, __bindgen_anon_1.io.data_offset),
            PORT_DATA as u64,
        );
        self.shared.stats.io_exits.add(1);
        self.set_exit(uapi::KVM_EXIT_IO);
    }

    /// Leaves the bytes that go to a port, 1, 2 or 4, where [`Vcpu::exit_io`] says that they are.
    pub(super) fn give_port_data(&self, data: &[u8]) {
        match *data {
            [byte] => self.pages.set(PORT_DATA, byte),
            [a, b] => self.pages.set(PORT_DATA, u16::from_le_bytes([a, b])),
            [a, b, c, d] => self.pages.set(PORT_DATA, u32::from_le_bytes([a, b, c, d])),
            _ => self.pages.write(PORT_DATA, data),
        }
    }

    /// Asks userspace for the access that the emulator stopped at.
    pub(super) fn exit_access(&self) {
        let Some(access) = self.replay.asked() else {
            return;
        };
        if matches!(access.kind, Kind::PortIn | Kind::PortOut) {
            let size = access.data[0].max(1);
            let count = u32::from(access.length) / u32::from(size);
            self.exit_io(
                access.kind == Kind::PortIn,
                size,
                access.address as u16,
                count,
            );
            return;
        }
        let write = access.kind == Kind::Write;
        self.exit_mmio(
            access.address,
            &access.data,
            u32::from(access.length),
            write,
        );
    }

    /// Asks userspace for an access to memory.
    pub(super) fn exit_mmio(&self, gpa: u64, data: &[u8; 8], length: u32, write: bool) {
        let pages = &self.pages;
        pages.set(offset_of!(kvm_run, __bindgen_anon_1.mmio.phys_addr), gpa);
        pages.write(offset_of!(kvm_run, __bindgen_anon_1.mmio.data), data);
        pages.set(offset_of!(kvm_run, __bindgen_anon_1.mmio.len), length);
        pages.set(
            offset_of!(kvm_run, __bindgen_anon_1.mmio.is_write),
            u8::from(write),
        );
        self.shared.stats.mmio_exits.add(1);
        self.set_exit(uapi::KVM_EXIT_MMIO);
    }

    /// Tells which guest-physical memory could not be mapped, with the errno of `KVM_RUN` (api.rst, 8.44); `flags` are
    /// `KVM_MEMORY_EXIT_FLAG_*`.
    pub(super) fn exit_memory_fault(&self, gpa: u64, size: u64, flags: u64) {
        let pages = &self.pages;
        pages.set(
            offset_of!(kvm_run, __bindgen_anon_1.memory_fault.flags),
            flags,
        );
        pages.set(offset_of!(kvm_run, __bindgen_anon_1.memory_fault.gpa), gpa);
        pages.set(
            offset_of!(kvm_run, __bindgen_anon_1.memory_fault.size),
            size,
        );
        self.set_exit(uapi::KVM_EXIT_MEMORY_FAULT);
    }

    /// Tells the VMM of the end of an interrupt of its IOAPIC.
    pub(super) fn exit_eoi(&self, vector: u8) {
        self.pages
            .set(offset_of!(kvm_run, __bindgen_anon_1.eoi.vector), vector);
        self.set_exit(uapi::KVM_EXIT_IOAPIC_EOI);
    }

    /// What userspace read.
    pub(super) fn mmio_data(&self) -> [u8; 8] {
        let mut data = [0; 8];
        self.pages
            .read(offset_of!(kvm_run, __bindgen_anon_1.mmio.data), &mut data);
        data
    }

    /// Asks userspace to make a hypercall of the guest's (5, `KVM_EXIT_HYPERCALL`); the answer is taken to be 0.
    pub(super) fn exit_hypercall(&self, number: u64, arguments: &[u64], wide: bool) {
        let pages = &self.pages;
        let first = offset_of!(kvm_run, __bindgen_anon_1.hypercall.args);
        for (i, argument) in arguments.iter().enumerate() {
            pages.set(first + i * size_of::<u64>(), *argument);
        }
        pages.set(offset_of!(kvm_run, __bindgen_anon_1.hypercall.nr), number);
        pages.set(offset_of!(kvm_run, __bindgen_anon_1.hypercall.ret), 0u64);
        let flags = if wide { LONG_MODE } else { 0 };
        pages.set(
            offset_of!(kvm_run, __bindgen_anon_1.hypercall.__bindgen_anon_1.flags),
            flags,
        );
        self.set_exit(uapi::KVM_EXIT_HYPERCALL);
    }

    /// What userspace answered.
    pub(super) fn hypercall_answer(&self) -> u64 {
        let answer = offset_of!(kvm_run, __bindgen_anon_1.hypercall.ret);
        self.pages.get(answer).unwrap_or(0)
    }

    /// Whether the VMM wants `KVM_RUN` to return at once.
    pub(super) fn immediate_exit(&self) -> bool {
        self.pages
            .get::<u8>(offset_of!(kvm_run, immediate_exit__unsafe))
            != Some(0)
    }

    /// CR8 as the VMM sets it, where the local APIC is its own.
    pub(super) fn asked_cr8(&self) -> u64 {
        self.pages.get(offset_of!(kvm_run, cr8)).unwrap_or(0)
    }

    /// Whether the VMM wants to know when the guest can take an interrupt.
    pub(super) fn asked_window(&self) -> bool {
        self.pages
            .get::<u8>(offset_of!(kvm_run, request_interrupt_window))
            .is_some_and(|asked| asked != 0)
    }

    pub(super) fn fail_entry(&self, reason: u64) -> Next {
        let pages = &self.pages;
        pages.set(
            offset_of!(
                kvm_run,
                __bindgen_anon_1.fail_entry.hardware_entry_failure_reason
            ),
            reason,
        );
        pages.set(
            offset_of!(kvm_run, __bindgen_anon_1.fail_entry.cpu),
            self.last_cpu,
        );
        self.set_exit(uapi::KVM_EXIT_FAIL_ENTRY);
        Next::Userspace
    }

    pub(super) fn unknown_exit(&self, code: u64) -> Next {
        let pages = &self.pages;
        let data = offset_of!(kvm_run, __bindgen_anon_1.internal.data);
        pages.set(offset_of!(kvm_run, __bindgen_anon_1.internal.ndata), 2u32);
        pages.set(data, code);
        pages.set(data + 8, u64::from(self.last_cpu));
        pages.set(
            offset_of!(kvm_run, __bindgen_anon_1.internal.suberror),
            uapi::KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
        );
        self.set_exit(uapi::KVM_EXIT_INTERNAL_ERROR);
        Next::Userspace
    }

    /// An internal error, with the bytes of the instruction that was the reason (`KVM_EXIT_INTERNAL_ERROR`,
    /// `emulation_failure`).
    pub(super) fn internal_error(&self, suberror: u32, code: &[u8]) -> Next {
        let pages = &self.pages;
        let at = offset_of!(kvm_run, __bindgen_anon_1.emulation_failure.flags);
        let bytes = u64::from(!code.is_empty())
            * u64::from(uapi::KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES);
        pages.set(
            offset_of!(kvm_run, __bindgen_anon_1.internal.suberror),
            suberror,
        );
        // Two words of flags and bytes follow `ndata` and `flags` (api.rst, KVM_CAP_EXIT_ON_EMULATION_FAILURE).
        pages.set(
            offset_of!(kvm_run, __bindgen_anon_1.internal.ndata),
            if code.is_empty() { 1u32 } else { 4 },
        );
        pages.set(at, bytes);
        let mut insn = [0u8; 16];
        insn[0] = code.len().min(15) as u8;
        insn[1..=code.len().min(15)].copy_from_slice(&code[..code.len().min(15)]);
        pages.write(at + 8, &insn);
        self.set_exit(uapi::KVM_EXIT_INTERNAL_ERROR);
        Next::Userspace
    }

    /// The delivery of an event needs memory that isn't there (`KVM_INTERNAL_ERROR_DELIVERY_EV`). The data: the event's vector, the
    /// access (bits 2:0: read, write, fetch), RIP, the guest-physical address, the CPU.
    pub(super) fn delivery_error(&self, fault: &MemoryFault) -> Next {
        let pages = &self.pages;
        let access = match (fault.write, fault.fetch) {
            (true, _) => 2u64,
            (_, true) => 4,
            _ => 1,
        };
        let words = [
            self.events
                .injected
                .map_or(0, |event| event.vector().into()),
            access,
            V::code_context(&self.arch).rip,
            fault.gpa,
            self.last_cpu.into(),
        ];
        let data = offset_of!(kvm_run, __bindgen_anon_1.internal.data);
        for (i, word) in words.into_iter().enumerate() {
            pages.set(data + i * 8, word);
        }
        pages.set(
            offset_of!(kvm_run, __bindgen_anon_1.internal.ndata),
            words.len() as u32,
        );
        pages.set(
            offset_of!(kvm_run, __bindgen_anon_1.internal.suberror),
            uapi::KVM_INTERNAL_ERROR_DELIVERY_EV,
        );
        self.set_exit(uapi::KVM_EXIT_INTERNAL_ERROR);
        Next::Userspace
    }

    /// What every return from `KVM_RUN` tells.
    pub(super) fn fill_run_page(&self) {
        let pages = &self.pages;
        let state = V::interruptibility(&self.arch);
        let ready = self.has_pic() || self.ready_for_interrupt();
        pages.set(offset_of!(kvm_run, if_flag), u8::from(state.interrupt_flag));
        pages.set(
            offset_of!(kvm_run, ready_for_interrupt_injection),
            u8::from(ready),
        );
        pages.set(offset_of!(kvm_run, cr8), u64::from(self.cr8));
        pages.set(offset_of!(kvm_run, apic_base), self.apic_base());
        let smm = match self.smm.is_inside() {
            true => uapi::KVM_RUN_X86_SMM as u16,
            false => 0,
        };
        pages.set(offset_of!(kvm_run, flags), smm);
    }
}
