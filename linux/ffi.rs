// SPDX-License-Identifier: GPL-2.0

//! Declarations of `helpers.c`, and of the few kernel functions that the kernel's own bindings lack.
//!
//! Safety: none of these is meant to be called outside of `linux/`, where each call argues for itself.

use core::ffi::c_void;
use kernel::ffi::c_char;
use kernel::ffi::c_int;

/// `struct page`. The kernel's own binding of it has a member without size, by which the compiler says that it isn't FFI-safe.
pub(super) type Page = c_void;

/// `struct task_struct`, for the same reason.
pub(super) type Task = c_void;

extern "C" {
    pub(super) fn xvm_irqs_off() -> u32;
    pub(super) fn xvm_irqs_on();
    pub(super) fn xvm_signal_pending() -> bool;
    pub(super) fn xvm_has_work() -> bool;
    pub(super) fn xvm_do_work() -> i32;
    pub(super) fn xvm_page_to_phys(page: *mut Page) -> usize;
    pub(super) fn xvm_phys_to_virt(phys: usize) -> *mut c_void;
    pub(super) fn xvm_virt_to_phys(address: *mut c_void) -> usize;
    pub(super) fn xvm_kick(cpu: u32);
    pub(super) fn xvm_interrupt_and_wait(cpus: *mut kernel::bindings::cpumask);
    pub(super) fn xvm_host_has(feature: u32) -> bool;
    pub(super) fn xvm_host_has_bug(bug: u32) -> bool;
    pub(super) fn xvm_cpu_dr7() -> usize;
    pub(super) fn xvm_load_fixmap_gdt();
    pub(super) fn xvm_tss_address() -> usize;
    pub(super) fn xvm_invalidate_tss_limit();
    pub(super) fn xvm_load_ds(selector: u16);
    pub(super) fn xvm_load_es(selector: u16);
    pub(super) fn xvm_load_fs(selector: u16);
    pub(super) fn xvm_load_gs(selector: u16);
    pub(super) fn xvm_set_ibpb_exit_to_user();
    pub(super) fn xvm_rdtsc() -> u64;
    pub(super) fn xvm_tsc_khz() -> u32;
    pub(super) fn xvm_rdmsr_safe(msr: u32, value: *mut u64) -> c_int;
    pub(super) fn xvm_put_page(page: *mut Page);
    pub(super) fn xvm_set_page_dirty(page: *mut Page);
    pub(super) fn xvm_page_is_huge(page: *mut Page) -> bool;
    pub(super) fn xvm_page_is_dirty(page: *mut Page) -> bool;
    pub(super) fn xvm_cond_resched();
    pub(super) fn xvm_put_task(task: *mut Task);
    pub(super) fn single_task_running() -> bool;
    pub(super) fn xvm_read_user8(to: *mut u64, from: usize) -> c_int;
    pub(super) fn xvm_user_cmpxchg4(address: usize, old: u32, new: u32) -> c_int;
    pub(super) fn xvm_user_cmpxchg8(address: usize, old: u64, new: u64) -> c_int;
    pub(super) fn xvm_host_encrypts_memory() -> bool;
    pub(super) fn xvm_machine_check();
    pub(super) fn spec_ctrl_current() -> u64;

    pub(super) fn anon_inode_getfd(
        name: *const c_char,
        fops: *const c_void,
        private: *mut c_void,
        flags: c_int,
    ) -> c_int;
    pub(super) fn anon_inode_getfile_fmode(
        name: *const c_char,
        fops: *const c_void,
        private: *mut c_void,
        flags: c_int,
        mode: u32,
    ) -> *mut c_void;
    pub(super) fn anon_inode_create_getfile(
        name: *const c_char,
        fops: *const c_void,
        private: *mut c_void,
        flags: c_int,
        context: *const c_void,
    ) -> *mut c_void;
}
