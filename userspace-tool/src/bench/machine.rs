//! The VM in which `guest.S` runs, and how a batch of it is timed.

use std::panic::{
    catch_unwind,
    AssertUnwindSafe, //
};
use std::sync::atomic::{
    AtomicU8,
    Ordering, //
};
use std::sync::mpsc::{
    self,
    RecvTimeoutError, //
};
use std::thread;
use std::time::Duration;

use anyhow::{
    bail,
    Context,
    Result, //
};
use kvm_bindings::kvm_regs;
use kvm_ioctls::{
    Kvm,
    VcpuExit, //
};
use vm_memory::{
    Bytes,
    GuestAddress,
    GuestMemory as _, //
};
use vmm_sys_util::signal::{
    Killable,
    SIGRTMIN, //
};

use super::guest::{
    self,
    Kind, //
};
use crate::vm::{
    Config,
    Machine, //
};
use crate::{
    cpu_state,
    exit, //
};

// Guest physical addresses.
const TICKS: u64 = 0x5000;
const STACK_TOP: u64 = 0x7000;
const IDT: u64 = 0x8000;
const CODE: u64 = 0x1_0000;
const FRESH_PAGES: u64 = 0x100_0000;
const LAPIC: u64 = 0xfee0_0000;
const NO_MEMORY: u64 = 0xd000_0000;

/// Guest memory: what is above, and the fresh pages to its end.
const MEMORY: u64 = 32 << 20;

/// Iterations in a batch; each takes a fresh page.
pub const ITERATIONS: u64 = 256;
const FRESH_BYTES: usize = (ITERATIONS * 4096) as usize;
/// Batches of a kind, after one that warms up.
const BATCHES: usize = 15;

/// A machine with the guest's code in it.
pub struct BenchMachine {
    machine: Machine,
}

impl BenchMachine {
    /// Makes it on the device.
    pub fn new(kvm: &Kvm) -> Result<Self> {
        let machine = Machine::new(
            kvm,
            &Config {
                memory: MEMORY,
                cpus: 1,
                irqchip: true,
            },
        )?;
        let memory = &machine.memory;
        memory.write_slice(guest::code(), GuestAddress(CODE))?;
        for (half, value) in (0..).zip(interrupt_gate(CODE + guest::interrupt_handler())) {
            memory.write_obj(value, GuestAddress(IDT + 16 * guest::VECTOR + 8 * half))?;
        }
        let bench = Self { machine };
        // Each page is to be a fault of its own.
        bench.advise_fresh_pages(libc::MADV_NOHUGEPAGE)?;
        Ok(bench)
    }

    /// Ticks of the guest's TSC for one iteration of `kind`, the loop included: the median of all
    /// batches. A machine that fails, or is not done within `limit`, is not given back: its state
    /// is that of the failure.
    pub fn measure(mut self, kind: Kind, limit: Duration) -> Result<(Self, f64)> {
        let vcpu = self.machine.vcpus.first_mut().context("no vCPU")?;
        // SAFETY: The thread gives the machine, and with it the vCPU, back when it ends, however it
        // ends; the reference is not used after that.
        let stop = unsafe { exit::immediate_exit(vcpu) };
        let (done, waiting) = mpsc::channel();
        let thread = thread::Builder::new()
            .name(kind.name.to_string())
            .spawn(move || {
                let ticks = catch_unwind(AssertUnwindSafe(|| self.batches(&kind, stop)));
                // Nobody listens any more if the time is up.
                let _ = done.send(());
                (self, ticks)
            })
            .context("a thread for the vCPU")?;
        let late = waiting.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
        if late {
            // If the thread is about to enter the guest, the byte turns it back; if it is in the
            // guest, the signal does.
            stop.store(1, Ordering::SeqCst);
            // A thread that ends meanwhile needs no signal.
            let _ = thread.kill(SIGRTMIN());
        }
        let Ok((machine, Ok(ticks))) = thread.join() else {
            bail!("the vCPU's thread panicked");
        };
        if late {
            bail!("no end within {} s", limit.as_secs());
        }
        Ok((machine, ticks?))
    }

    /// Runs all batches, until `stop`, the vCPU's `immediate_exit` byte, tells it to end.
    fn batches(&mut self, kind: &Kind, stop: &AtomicU8) -> Result<f64> {
        self.prepare(kind)?;
        let mut ticks = Vec::with_capacity(BATCHES);
        for batch in 0..=BATCHES {
            self.advise_fresh_pages(libc::MADV_DONTNEED)?;
            self.run_batch(stop)
                .with_context(|| format!("batch {batch}"))?;
            if batch > 0 {
                ticks.push(self.machine.memory.read_obj::<u64>(GuestAddress(TICKS))?);
            }
        }
        ticks.sort_unstable();
        Ok(ticks[BATCHES / 2] as f64 / ITERATIONS as f64)
    }

    fn prepare(&self, kind: &Kind) -> Result<()> {
        let vcpu = self.machine.vcpus.first().context("no vCPU")?;
        let regs = kvm_regs {
            rip: CODE + kind.entry,
            rsp: STACK_TOP,
            r10: TICKS,
            r11: NO_MEMORY,
            r12: ITERATIONS,
            r13: FRESH_PAGES,
            r14: LAPIC,
            ..Default::default()
        };
        cpu_state::set_long(vcpu, &self.machine.memory, regs)?;
        let mut sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
        sregs.idt.base = IDT;
        sregs.idt.limit = (16 * (guest::VECTOR + 1) - 1) as u16;
        vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")
    }

    /// Runs the guest until it says that a batch is done. Exits to userspace are answered with
    /// nothing but the next entry.
    fn run_batch(&mut self, stop: &AtomicU8) -> Result<()> {
        let vcpu = self.machine.vcpus.first_mut().context("no vCPU")?;
        loop {
            match vcpu.run() {
                Ok(VcpuExit::IoOut(guest::USER_PORT, _) | VcpuExit::MmioWrite(NO_MEMORY, _)) => {}
                Ok(VcpuExit::IoOut(guest::BATCH_PORT, _)) => return Ok(()),
                Ok(exit) => bail!("the guest ended with exit {exit:?}"),
                Err(_) if stop.load(Ordering::SeqCst) != 0 => bail!("stopped"),
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
                Err(error) => return Err(error).context("KVM_RUN"),
            }
        }
    }

    /// Gives the kernel advice about the fresh pages; `MADV_DONTNEED` makes them fresh again.
    fn advise_fresh_pages(&self, advice: libc::c_int) -> Result<()> {
        let start = self
            .machine
            .memory
            .get_slice(GuestAddress(FRESH_PAGES), FRESH_BYTES)?;
        // SAFETY: The range was just checked to be in the mapping of the guest's memory, which only
        // the guest uses there.
        let result =
            unsafe { libc::madvise(start.ptr_guard_mut().as_ptr().cast(), FRESH_BYTES, advice) };
        if result == 0 {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error()).context("madvise")
        }
    }
}

/// A 64-bit interrupt gate (SDM vol. 3, figure 7-8), low half first.
fn interrupt_gate(handler: u64) -> [u64; 2] {
    const PRESENT_INTERRUPT_GATE: u64 = 0x8e;
    let low = (handler & 0xffff)
        | (u64::from(cpu_state::BOOT_CS) << 16)
        | (PRESENT_INTERRUPT_GATE << 40)
        | (((handler >> 16) & 0xffff) << 48);
    [low, handler >> 32]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_has_the_handler_s_address_in_three_parts() {
        assert_eq!(
            interrupt_gate(0x1234_5678_9abc_def0),
            [0x9abc_8e00_0010_def0, 0x1234_5678]
        );
    }
}
