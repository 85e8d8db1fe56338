/* SPDX-License-Identifier: GPL-2.0 */
/* What helpers.c offers to the Rust code in linux/, declared there in ffi.rs. */
#ifndef XVM_HELPERS_H
#define XVM_HELPERS_H

#include <linux/types.h>

struct cpumask;
struct page;
struct task_struct;

unsigned int xvm_irqs_off(void);
void xvm_irqs_on(void);
bool xvm_signal_pending(void);
bool xvm_has_work(void);
int xvm_do_work(void);
unsigned long xvm_page_to_phys(struct page *page);
void *xvm_phys_to_virt(unsigned long phys);
unsigned long xvm_virt_to_phys(void *address);
void xvm_kick(unsigned int cpu);
void xvm_interrupt_and_wait(struct cpumask *cpus);
bool xvm_host_has(unsigned int feature);
bool xvm_host_has_bug(unsigned int bug);
unsigned long xvm_cpu_dr7(void);
void xvm_load_fixmap_gdt(void);
unsigned long xvm_tss_address(void);
void xvm_invalidate_tss_limit(void);
void xvm_load_ds(u16 selector);
void xvm_load_es(u16 selector);
void xvm_load_fs(u16 selector);
void xvm_load_gs(u16 selector);
void xvm_set_ibpb_exit_to_user(void);
unsigned long xvm_rdtsc(void);
unsigned int xvm_tsc_khz(void);
int xvm_rdmsr_safe(u32 msr, u64 *value);
void xvm_put_page(struct page *page);
void xvm_set_page_dirty(struct page *page);
bool xvm_page_is_huge(struct page *page);
bool xvm_page_is_dirty(struct page *page);
void xvm_cond_resched(void);
void xvm_put_task(struct task_struct *task);
bool xvm_host_encrypts_memory(void);
void xvm_machine_check(void);
int xvm_user_cmpxchg4(u32 __user *address, u32 old, u32 new);
int xvm_user_cmpxchg8(u64 __user *address, u64 old, u64 new);
int xvm_read_user8(u64 *to, const u64 __user *from);

#endif
