// SPDX-License-Identifier: GPL-2.0

//! Vectors of the exceptions that xvm raises or looks at (SDM vol 3, table 7-1).

/// #DB, debug exception; no error code.
pub const DEBUG: u8 = 1;
/// #BP, INT3; no error code.
pub const BREAKPOINT: u8 = 3;
/// #OF, INTO; no error code.
pub const OVERFLOW: u8 = 4;
/// #UD, invalid opcode; no error code.
pub const INVALID_OPCODE: u8 = 6;
/// #DF, double fault; error code 0.
pub const DOUBLE_FAULT: u8 = 8;
/// #SS, stack fault.
pub const STACK_FAULT: u8 = 12;
/// #GP, general protection.
pub const GENERAL_PROTECTION: u8 = 13;
/// #PF, page fault.
pub const PAGE_FAULT: u8 = 14;
/// #MC, machine check; no error code.
pub const MACHINE_CHECK: u8 = 18;
