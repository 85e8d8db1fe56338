// SPDX-License-Identifier: GPL-2.0

//! Steal time (x86/msr.rst, `MSR_KVM_STEAL_TIME`): how long the vCPU's thread had to wait for a CPU, and whether it is off its
//! CPU now. Others who find it off may leave it the word that its TLB is to be flushed, instead of interrupting it
//! (`KVM_FEATURE_PV_TLB_FLUSH`).

use super::due;
use super::ENABLED;
use crate::linux::preempt;
use crate::linux::preempt::Scheduled;
use crate::linux::user;
use crate::xvm::memory::Current;
use crate::xvm::platform::pvclock;
use crate::xvm::vcpu::Vcpu;
use crate::xvm::XvmOps;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::Relaxed;
use kernel::prelude::*;
use kernel::sync::Arc;

/// Offsets in `struct kvm_steal_time`: the sum in nanoseconds, the version, and the byte that says whether the vCPU is off its CPU.
const STEAL: u64 = 0;
const VERSION: u64 = 8;
const PREEMPTED: u64 = 16;

/// Bits of that byte: it is off; its TLB is to be flushed when it is back.
const OFF: u8 = 1 << 0;
const FLUSH_TLB: u8 = 1 << 1;

/// Bits of the MSR that are reserved.
pub(super) const RESERVED: u64 = 0x3e;

/// What the scheduler's callbacks know. All of it is of the thread that runs the vCPU.
pub(crate) struct OffCpu {
    current: Arc<Current>,
    /// User address of the byte, and the version of the slots by which it was found; 0: none.
    address: AtomicUsize,
    generation: AtomicU64,
    /// The byte has been set, and maybe changed by others since.
    told: AtomicBool,
    /// Between two instructions of the guest's: nothing that its page tables were asked for is still to be done.
    between: AtomicBool,
    /// It has been off its CPU since the structure was last written.
    was_off: AtomicBool,
}

impl OffCpu {
    /// Tells nobody yet; the slots are `current`.
    pub(crate) fn new(current: Arc<Current>) -> Self {
        Self {
            current,
            address: AtomicUsize::new(0),
            generation: AtomicU64::new(0),
            told: AtomicBool::new(false),
            between: AtomicBool::new(false),
            was_off: AtomicBool::new(false),
        }
    }

    /// Whether what the thread does is between two instructions of the guest's.
    #[inline]
    pub(crate) fn set_between(&self, between: bool) {
        self.between.store(between, Relaxed);
    }

    /// Whether the structure is out of date.
    #[inline]
    pub(super) fn was_off(&self) -> bool {
        self.was_off.load(Relaxed)
    }
}

impl Scheduled for OffCpu {
    fn out(&self, preempted: bool) {
        let address = self.address.load(Relaxed);
        if !preempted || address == 0 || !self.between.load(Relaxed) || self.told.load(Relaxed) {
            return;
        }
        self.current.if_still(self.generation.load(Relaxed), || {
            // Before the others can find it.
            self.told.store(true, Relaxed);
            let _ = user::write_nofault(address, &[OFF]);
        });
    }

    fn back(&self) {
        self.was_off.store(true, Relaxed);
    }
}

/// What was last accounted for.
#[derive(Default)]
pub(super) struct Accounted {
    task: usize,
    delay: u64,
}

impl<V: XvmOps> Vcpu<V> {
    /// Whether the guest wants to know.
    #[inline]
    pub(crate) fn tells_steal_time(&self) -> bool {
        self.pv.steal_time & ENABLED != 0
    }

    /// MSR_KVM_STEAL_TIME.
    pub(super) fn set_steal_time(&mut self, value: u64) {
        self.pv.steal_time = value;
        self.shared.off_cpu.address.store(0, Relaxed);
        self.steal_time_passed();
    }

    /// The structure is to be written before the next entry.
    #[inline]
    pub(crate) fn steal_time_passed(&mut self) {
        if self.tells_steal_time() {
            self.pv.due |= due::STEAL;
        }
    }

    /// Writes the structure.
    pub(super) fn write_steal_time(&mut self) {
        let off_cpu = &self.shared.off_cpu;
        off_cpu.was_off.store(false, Relaxed);
        off_cpu.address.store(0, Relaxed);
        if !self.tells_steal_time() {
            return;
        }
        let gpa = self.pv.steal_time & !(RESERVED | ENABLED);
        if self.back_on_cpu(gpa + PREEMPTED).unwrap_or(true) {
            V::flush_tlb(&mut self.arch);
        }
        self.shared.off_cpu.told.store(false, Relaxed);
        let (task, delay) = (preempt::task_name(), preempt::run_delay());
        let accounted = core::mem::replace(&mut self.pv.accounted, Accounted { task, delay });
        // Of another thread, which ran it before, nothing is known.
        let passed = match accounted.task == task {
            true => delay.wrapping_sub(accounted.delay),
            false => 0,
        };
        if self.add_steal_time(gpa, passed).is_ok() {
            self.watch_byte(gpa + PREEMPTED);
        }
    }

    /// Says that the vCPU is on a CPU. Whether its TLB must be flushed.
    fn back_on_cpu(&mut self, gpa: u64) -> Result<bool> {
        let slots = self.main_slots();
        loop {
            let mut word = [0; 4];
            slots.read(gpa, &mut word)?;
            let [byte, rest @ ..] = word;
            let new = [0, rest[0], rest[1], rest[2]].map(u32::from);
            let new = new[0] | new[1] << 8 | new[2] << 16 | new[3] << 24;
            let old = u32::from_le_bytes(word);
            if old == new || slots.compare_exchange(gpa, 4, old.into(), new.into())? {
                return Ok(byte & FLUSH_TLB != 0);
            }
        }
    }

    fn add_steal_time(&mut self, gpa: u64, passed: u64) -> Result {
        let slots = self.main_slots();
        let (mut steal, mut version) = ([0; 8], [0; 4]);
        slots.read(gpa + VERSION, &mut version)?;
        slots.read(gpa + STEAL, &mut steal)?;
        let (odd, even) = pvclock::versions(u32::from_le_bytes(version));
        let steal = u64::from_le_bytes(steal).wrapping_add(passed);
        slots.write(gpa + VERSION, &odd.to_le_bytes())?;
        slots.write(gpa + STEAL, &steal.to_le_bytes())?;
        slots.write(gpa + VERSION, &even.to_le_bytes())
    }

    /// The callbacks may write to the byte from now on.
    fn watch_byte(&mut self, gpa: u64) {
        let slots = self.main_slots();
        let found = slots.by_gpa(gpa).filter(|region| !region.read_only);
        let address = found.map_or(0, |region| region.user_address(gpa));
        let generation = slots.generation();
        drop(slots);
        let off_cpu = &self.shared.off_cpu;
        off_cpu.generation.store(generation, Relaxed);
        off_cpu.address.store(address, Relaxed);
    }
}
