// SPDX-License-Identifier: GPL-2.0
/*
 * One-line helpers for what is a macro or a static inline in the kernel's headers, each called from one place in linux/.
 */
#include <linux/cc_platform.h>
#include <linux/cpuhotplug.h>
#include <linux/entry-virt.h>
#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/preempt.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/smp.h>
#include <linux/swait.h>
#include <linux/uaccess.h>
#include <asm/cpu_entry_area.h>
#include <asm/cpufeature.h>
#include <asm/debugreg.h>
#include <asm/desc.h>
#include <asm/fpu/api.h>
#include <asm/mce.h>
#include <asm/msr.h>
#include <asm/nospec-branch.h>
#include <asm/tlbflush.h>
#include <asm/tsc.h>

#include "helpers.h"

/* The CPU's number; each of the two is one call, because every window makes it. */
unsigned int xvm_irqs_off(void)
{
	preempt_disable();
	raw_local_irq_disable();
	return raw_smp_processor_id();
}

void xvm_irqs_on(void)
{
	raw_local_irq_enable();
	preempt_enable();
}

bool xvm_signal_pending(void) { return signal_pending(current); }
bool xvm_has_work(void) { return __xfer_to_guest_mode_work_pending(); }
int xvm_do_work(void) { return xfer_to_guest_mode_handle_work(); }
unsigned long xvm_page_to_phys(struct page *page) { return page_to_phys(page); }
void *xvm_phys_to_virt(unsigned long phys) { return phys_to_virt(phys); }
unsigned long xvm_virt_to_phys(void *address) { return virt_to_phys(address); }
void xvm_kick(unsigned int cpu) { arch_smp_send_reschedule(cpu); }

static void nothing(void *unused) {}

/* On those of the CPUs that are online, but for this one; then none is in the mask. */
void xvm_interrupt_and_wait(struct cpumask *cpus)
{
	preempt_disable();
	smp_call_function_many(cpus, nothing, NULL, true);
	preempt_enable();
	cpumask_clear(cpus);
}

bool xvm_host_has(unsigned int feature) { return boot_cpu_has(feature); }
bool xvm_host_has_bug(unsigned int bug) { return boot_cpu_has(bug); }
unsigned long xvm_cpu_dr7(void) { return this_cpu_read(cpu_dr7); }
void xvm_load_fixmap_gdt(void) { load_fixmap_gdt(raw_smp_processor_id()); }
unsigned long xvm_tss_address(void) { return (unsigned long)&get_cpu_entry_area(raw_smp_processor_id())->tss.x86_tss; }
void xvm_invalidate_tss_limit(void) { invalidate_tss_limit(); }
void xvm_load_ds(u16 selector) { loadsegment(ds, selector); }
void xvm_load_es(u16 selector) { loadsegment(es, selector); }
void xvm_load_fs(u16 selector) { loadsegment(fs, selector); }
void xvm_load_gs(u16 selector) { load_gs_index(selector); }
void xvm_set_ibpb_exit_to_user(void) { this_cpu_write(x86_ibpb_exit_to_user, true); }
unsigned long xvm_rdtsc(void) { return rdtsc_ordered(); }
unsigned int xvm_tsc_khz(void) { return tsc_khz; }
int xvm_rdmsr_safe(u32 msr, u64 *value) { return rdmsrq_safe(msr, value); }
void xvm_put_page(struct page *page) { put_page(page); }
void xvm_set_page_dirty(struct page *page) { SetPageDirty(page); }
bool xvm_page_is_dirty(struct page *page) { return (PageAnon(page) && !folio_test_swapcache(page_folio(page))) || PageDirty(page); }
bool xvm_page_is_huge(struct page *page) { return folio_test_large(page_folio(page)); }
void xvm_put_task(struct task_struct *task) { put_task_struct(task); }
void xvm_cond_resched(void) { cond_resched(); }
bool xvm_host_encrypts_memory(void) { return cc_platform_has(CC_ATTR_MEM_ENCRYPT); }

/* A machine check that ended a guest's run: to the handler it came from user mode, with interrupts on. */
void xvm_machine_check(void)
{
	struct pt_regs regs = { .cs = 3, .flags = X86_EFLAGS_IF };

	do_machine_check(&regs);
}

/* 1 done, 0 the value was another, -EFAULT. */
int xvm_user_cmpxchg4(u32 __user *address, u32 old, u32 new) { return __try_cmpxchg_user(address, &old, new, fault); }
int xvm_user_cmpxchg8(u64 __user *address, u64 old, u64 new) { return __try_cmpxchg_user(address, &old, new, fault); }

/* What __get_user does, without its call. */
int xvm_read_user8(u64 *to, const u64 __user *from)
{
	__uaccess_begin_nospec();
	unsafe_get_user(*to, from, fault);
	__uaccess_end();
	return 0;
fault:
	__uaccess_end();
	return -EFAULT;
}
