/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Where things are in the memory of a test guest, for C and assembly.
 *
 * Everything that a real-mode guest needs is below 64 KiB, so that with all segment bases 0 an offset is a physical
 * address in every mode. All page tables map addresses to themselves.
 */
#ifndef SELFTESTS_LAYOUT_H
#define SELFTESTS_LAYOUT_H

#define GUEST_IVT		0x0000	/* real-mode vectors */
#define GUEST_GDT		0x1000
#define GUEST_TSS		0x1800
#define GUEST_IDT		0x2000	/* 256 gates */
#define GUEST_REPORT		0x3000	/* struct report */
#define GUEST_HANDLERS		0x4000	/* exception handlers, at most 12 KiB */
#define GUEST_IST_STACK		0x8000	/* top of the stack of IST 1 and of privilege level 0, 4 KiB */
#define GUEST_CODE		0x8000	/* the fragment under test, at most 16 KiB */
#define GUEST_DATA		0xc000	/* 8 KiB for it */
#define GUEST_STACK		0xf000	/* top of its stack */
#define GUEST_PML4		0x10000
#define GUEST_PDPT		0x11000
#define GUEST_PD		0x12000	/* four: 4 GiB in pages of 2 MiB */
#define GUEST_PT		0x16000	/* the first 2 MiB, in pages of 4 KiB */
#define GUEST_PAE_PDPT		0x17000
#define GUEST_PD32		0x18000	/* 4 GiB in pages of 4 MiB */
#define GUEST_FREE		0x20000	/* for tests */
#define GUEST_MEMORY		0xa0000	/* end of the memory that vm_create() makes */
#define GUEST_MMIO		0xa0000	/* nothing there, up to 1 MiB: accesses end in KVM_EXIT_MMIO */
#define GUEST_HIGH		0x100000	/* where tests add memory of their own */

/* Ports by which the guest tells where it is. */
#define PORT_DONE		0xe0	/* the fragment is through */
#define PORT_SYNC		0xe1	/* it has reached a point that the test waits for */
#define PORT_EXCEPTION		0xe2	/* an exception has filled the report */

/* Selectors. SYSCALL with STAR = SELECTOR_STAR << 32 loads the four 64-bit ones. */
#define SELECTOR_CODE64		0x08
#define SELECTOR_DATA		0x10
#define SELECTOR_CODE32		0x18
#define SELECTOR_CODE16		0x20
#define SELECTOR_DATA16		0x28
#define SELECTOR_USER_DATA	0x33
#define SELECTOR_USER_CODE	0x3b
#define SELECTOR_TSS		0x40	/* two entries */
#define SELECTOR_NOT_PRESENT	0x50	/* a data segment that is not present */
#define SELECTOR_STAR		0x002b0008

/* Offsets in struct report. */
#define REPORT_VECTOR		0x00
#define REPORT_ERROR		0x08
#define REPORT_RIP		0x10
#define REPORT_CS		0x18
#define REPORT_FLAGS		0x20
#define REPORT_RSP		0x28
#define REPORT_CR2		0x30
#define REPORT_FIXUP		0x38
#define REPORT_COUNT		0x40
#define REPORT_NO_ERROR		0xeeeeeeee	/* error code of vectors that have none */

#endif
