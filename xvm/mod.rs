// SPDX-License-Identifier: GPL-2.0

//! The vendor-neutral layer.
//!
//! | file | subject |
//! | --- | --- |
//! | `machine` | the physical machine: which vendor, what it can do |
//! | `device` | `/dev/xvm` and its ioctls |
//! | `vm`, `vcpu` | a VM's and a vCPU's ioctls |
//! | `run` | `KVM_RUN`: the loop around the window |
//! | `window` | owning the CPU: interrupts off, guest state loaded |
//! | `exits` | exits that are handled inside the window |
//! | `ops`, `exit`, `state` | what a vendor provides: `XvmOps`, `Exit`, guest CPU state |
//! | `memory` | guest-physical memory |
//! | `platform` | interrupt controllers and timers (pure logic) |
//! | `emulate` | decoder, emulator, page-table walker (pure logic) |

mod control;
mod cpuid;
mod debugregs;
mod delivery;
mod device;
mod device_access;
mod emulate;
mod emulation;
mod events;
pub(crate) mod exit;
mod exits;
mod extension;
mod fpu;
mod guest_memory;
mod irqchip;
mod kick;
mod lapic_state;
mod machine;
pub(crate) mod memory;
mod mp_state;
mod msr;
pub(crate) mod ops;
mod platform;
mod regs;
mod replay;
mod run;
mod run_page;
mod sregs;
pub(crate) mod state;
mod system_insn;
mod targets;
mod translate;
mod tsc;
mod vcpu;
mod vcpu_events;
mod vm;
mod vm_platform;
mod window;

pub(crate) use exit::CrAccess;
pub(crate) use exit::Exit;
pub(crate) use exit::MemoryFault;
pub(crate) use exit::PortAccess;
pub(crate) use machine::select;
pub(crate) use ops::XvmOps;
