// SPDX-License-Identifier: GPL-2.0

//! The vendor-neutral layer.
//!
//! | file | subject |
//! | --- | --- |
//! | **Vendors** | |
//! | `ops`, `exit`, `state` | what a vendor provides: `XvmOps`, `Exit`, guest CPU state |
//! | `vectors` | the exceptions' numbers |
//! | `machine` | the physical machine: which vendor, what it can do |
//! | **Files** | |
//! | `device`, `vm`, `vcpu_file` | `/dev/xvm`, a VM, a vCPU: their ioctls |
//! | `vcpu` | what belongs to a vCPU |
//! | `extension` | `KVM_CHECK_EXTENSION`, and ioctls that are refused |
//! | `enable_cap` | `KVM_ENABLE_CAP` |
//! | **Running a guest** | |
//! | `run`, `run_page` | `KVM_RUN`: the loop around the window; `struct kvm_run` |
//! | `pending`, `init` | what the last exit to userspace left to be done; INIT and start-up IPIs |
//! | `window` | owning the CPU: interrupts off, guest state loaded |
//! | `exits`, `outside` | exits that are handled inside the window, and outside of it |
//! | `events`, `delivery` | events that wait; bringing them to the guest |
//! | `halt`, `spin` | waiting in HLT; a vCPU that spins lets another go first |
//! | `smm` | system management mode |
//! | `kick` | where a vCPU is, and making it leave the guest |
//! | `control`, `system_insn` | control registers: their rules; the instructions that access them |
//! | `device_access` | moves between registers and devices, without the emulator |
//! | `kernel_devices` | the devices in the kernel, by memory and port |
//! | `emulation`, `replay` | the emulator on a vCPU; accesses that were already made |
//! | `guest_memory`, `next_insn` | memory as the guest addresses it: translation; the instruction at RIP |
//! | **State for the VMM**, each file some of a vCPU's ioctls | |
//! | `regs`, `sregs`, `debugregs`, `fpu` | registers |
//! | `stats` | what is counted |
//! | `sync_regs` | registers in `struct kvm_run` |
//! | `cpuid`, `msr` | CPUID, model-specific registers |
//! | `pv` | the paravirtual interface: kvmclock and what else guests know of KVM |
//! | `mce` | machine-check registers, errors that the VMM reports |
//! | `lapic_state`, `mp_state`, `vcpu_events` | local APIC, running or waiting, pending events |
//! | `guest_debug` | debugging the guest from outside |
//! | `translate`, `tsc` | address translation, the time-stamp counter |
//! | `pre_fault` | mapping memory before the guest asks for it |
//! | **A VM's parts** | |
//! | `memory` | guest-physical memory |
//! | `processors` | what the VMM says of the vCPUs before it makes them |
//! | `irqchip`, `targets` | interrupt controllers and timer (`irqchip/pit`); vCPUs as destinations of messages |
//! | `vm_platform` | their ioctls |
//! | `irqfd` | eventfds that raise an interrupt |
//! | `bus`, `ioeventfd`, `coalesced` | writes that the VMM hears of without an exit: by eventfd, or later |
//! | **Pure logic**, tested on the host (`host.rs`) | |
//! | `platform` | interrupt controllers and timers |
//! | `emulate` | decoder, emulator, page-table walker |

mod bus;
mod coalesced;
mod control;
mod cpuid;
mod debugregs;
mod delivery;
mod device;
mod device_access;
mod emulate;
mod emulation;
mod enable_cap;
mod events;
pub(crate) mod exit;
mod exits;
mod extension;
mod fpu;
mod guest_debug;
mod guest_memory;
mod halt;
mod init;
mod ioeventfd;
mod irqchip;
mod irqfd;
mod kernel_devices;
mod kick;
mod lapic_state;
mod machine;
mod mce;
pub(crate) mod memory;
mod mp_state;
mod msr;
mod next_insn;
pub(crate) mod ops;
mod outside;
mod pending;
mod platform;
mod pre_fault;
mod processors;
mod pv;
mod regs;
mod replay;
mod run;
mod run_page;
mod smm;
mod spin;
mod sregs;
pub(crate) mod state;
mod stats;
mod sync_regs;
mod system_insn;
mod targets;
mod translate;
mod tsc;
mod vcpu;
mod vcpu_events;
mod vcpu_file;
pub(crate) mod vectors;
mod vm;
mod vm_platform;
mod window;

pub(crate) use exit::CrAccess;
pub(crate) use exit::Exit;
pub(crate) use exit::MemoryFault;
pub(crate) use exit::PortAccess;
pub(crate) use machine::select;
pub(crate) use ops::XvmOps;
