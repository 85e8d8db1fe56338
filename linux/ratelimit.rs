// SPDX-License-Identifier: GPL-2.0

//! Not letting a guest or a VMM fill the kernel's log.

use kernel::bindings;

/// Whether something may be logged now: ten times in five seconds, shared with all of the kernel that asks the same way. What is left
/// out is counted in the log.
#[cold]
pub(crate) fn allow() -> bool {
    // SAFETY: The string is terminated and lives for ever.
    unsafe { bindings::__printk_ratelimit(kernel::str::as_char_ptr_in_const_context(c"xvm")) != 0 }
}
