// SPDX-License-Identifier: GPL-2.0

//! Safe words for what the kernel offers and the `kernel` crate lacks.
//!
//! | file | what it wraps |
//! | --- | --- |
//! | `anon_file` | files without a name, for VMs and vCPUs |
//! | `clock` | the host's clocks with its TSC |
//! | `cpus` | CPU hotplug, interrupts between CPUs |
//! | `device` | a misc device with one context for all |
//! | `eventfd` | eventfds: signalling, and being told |
//! | `fpu` | the guest's FPU state next to the kernel's FPU use |
//! | `gup` | from a user address to the page behind it |
//! | `irq` | preemption and interrupts off, as a token |
//! | `memory_file` | files that are memory |
//! | `mmu_notifier` | being told when a process's mappings change |
//! | `page_in` | bringing a page in while the process goes on |
//! | `page` | pages that hardware reads by physical address |
//! | `preempt` | being told when a task leaves its CPU |
//! | `ratelimit` | not filling the kernel's log |
//! | `rcu` | waiting for those who read |
//! | `read_file` | files without a name that can be read |
//! | `run_pages` | pages shared with userspace |
//! | `table` | second-level page tables as a tree of owned pages |
//! | `task` | signals and address space of the calling task |
//! | `thread` | letting another thread go first |
//! | `timer` | high-resolution timers that guests reprogram |
//! | `user` | user memory of the VMM |
//! | `wait` | sleeping until woken from any context |
//! | `words` | large arrays of words that any thread may change |
//! | `x86` | CPU instructions and host CPU state |
//! | `ffi` | declarations of `helpers.c` |

pub(crate) mod anon_file;
pub(crate) mod clock;
pub(crate) mod cpus;
pub(crate) mod device;
pub(crate) mod eventfd;
mod ffi;
pub(crate) mod fpu;
pub(crate) mod gup;
pub(crate) mod irq;
pub(crate) mod memory_file;
pub(crate) mod mmu_notifier;
pub(crate) mod page;
pub(crate) mod page_in;
pub(crate) mod preempt;
pub(crate) mod ratelimit;
pub(crate) mod rcu;
pub(crate) mod read_file;
pub(crate) mod run_pages;
pub(crate) mod table;
pub(crate) mod task;
pub(crate) mod thread;
pub(crate) mod timer;
pub(crate) mod user;
pub(crate) mod wait;
pub(crate) mod words;
pub(crate) mod x86;
