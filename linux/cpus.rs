// SPDX-License-Identifier: GPL-2.0

//! The machine's CPUs: those online at load, those that come later, and prodding one.

use super::ffi;
use kernel::bindings;
use kernel::cpu::CpuId;
use kernel::cpumask::CpumaskVar;
use kernel::prelude::*;
use kernel::sync::SetOnce;

/// What is checked on each CPU. One for the module: the kernel's callback has no argument.
static CHECK: SetOnce<fn() -> Result> = SetOnce::new();

/// A check that has passed on every online CPU, and must pass on each that comes online; ends when it is dropped.
///
/// # Invariants
///
/// `state` is a hotplug state that was set up.
pub(crate) struct OnlineCheck {
    state: bindings::cpuhp_state,
}

impl OnlineCheck {
    /// Runs `check` on all online CPUs, and from now on each that comes online. May sleep; once in the module's life.
    ///
    /// # Errors
    ///
    /// What `check` returned on a CPU that failed; `EBUSY` if there is a check already.
    pub(crate) fn new(check: fn() -> Result) -> Result<Self> {
        if !CHECK.populate(check) {
            return Err(EBUSY);
        }
        // SAFETY: The callback lives as long as the module, and `drop` removes it.
        let state = unsafe {
            bindings::__cpuhp_setup_state(
                bindings::cpuhp_state_CPUHP_AP_ONLINE_DYN,
                kernel::str::as_char_ptr_in_const_context(c"xvm:online"),
                true,
                Some(online),
                None,
                false,
            )
        };
        if state < 0 {
            return Err(Error::from_errno(state));
        }
        // INVARIANT: Just set up.
        Ok(Self {
            state: state as bindings::cpuhp_state,
        })
    }
}

impl Drop for OnlineCheck {
    fn drop(&mut self) {
        // SAFETY: By the type's invariant.
        unsafe { bindings::__cpuhp_remove_state(self.state, false) };
    }
}

/// # Safety
///
/// Called by the kernel on the CPU that comes online, in a thread bound to it.
unsafe extern "C" fn online(cpu: u32) -> c_int {
    let result = CHECK.as_ref().map_or(Ok(()), |check| check());
    match result {
        Ok(()) => 0,
        Err(error) => {
            pr_err!("CPU {} can't run guests as the others do\n", cpu);
            error.to_errno()
        }
    }
}

/// Number of CPU numbers that are possible.
pub(crate) fn possible() -> u32 {
    kernel::cpu::nr_cpu_ids()
}

/// Number of CPUs that are online now.
pub(crate) fn online_count() -> u32 {
    // SAFETY: The counter is always there; it is read once, and may change under us as any such number may.
    let count = unsafe { core::ptr::read_volatile(&raw const bindings::__num_online_cpus.counter) };
    u32::try_from(count).unwrap_or(1)
}

/// Interrupts `cpu`, so that a guest there exits; a host interrupt without further effect. From any context.
pub(crate) fn kick(cpu: u32) {
    // SAFETY: The caller's number was an online CPU's; sending to one that went offline has no effect.
    unsafe { ffi::xvm_kick(cpu) };
}

/// CPUs to be interrupted together.
pub(crate) struct Interrupted(CpumaskVar);

// SAFETY: The mask is memory that it owns, with no tie to a thread.
unsafe impl Send for Interrupted {}

impl Interrupted {
    /// None. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(CpumaskVar::new_zero(GFP_KERNEL)?))
    }

    /// Adds a CPU; numbers that there aren't are ignored.
    pub(crate) fn add(&mut self, cpu: u32) {
        if let Some(cpu) = CpuId::from_u32(cpu) {
            self.0.set(cpu);
        }
    }

    /// Interrupts those that were added, but for the calling one, and waits until each has taken the interrupt: what ran there with
    /// interrupts off has ended. Then there are none. Not with interrupts off; does not sleep.
    pub(crate) fn interrupt_and_wait(&mut self) {
        // SAFETY: The mask is valid and ours. CPUs that are offline are left out; they run no guest.
        unsafe { ffi::xvm_interrupt_and_wait(self.0.as_raw()) };
    }
}
