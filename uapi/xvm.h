/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * The interface of /dev/xvm, for a VMM: that of KVM (API version 12), with the kernel's own header.
 *
 * What of it is implemented, refused or absent is listed in abi.h.
 */
#ifndef XVM_H
#define XVM_H

#include <linux/kvm.h>

#define XVM_DEVICE "/dev/xvm"

#endif
