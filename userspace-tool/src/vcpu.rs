//! A vCPU's thread: enters the guest, answers its exits, reports how the VM ended.

use std::os::fd::OwnedFd;
use std::panic::{
    catch_unwind,
    AssertUnwindSafe, //
};
use std::sync::atomic::{
    AtomicU8,
    Ordering, //
};
use std::sync::mpsc::Sender;
use std::sync::Arc;
use std::thread::{
    self,
    JoinHandle, //
};

use anyhow::{
    Context,
    Result, //
};
use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV,
    KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES,
    KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, //
};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{
    register_signal_handler,
    Killable,
    SIGRTMIN, //
};

use crate::devices::{
    Devices,
    Request, //
};
use crate::exit::{
    self,
    Exit, //
};
use crate::stats::Stats;

/// How a VM ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest switched the power off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest ended with a status.
    Exit(u8),
    /// HLT where nothing can wake the vCPU.
    Halted,
    /// The guest cannot go on; registers and reason.
    Crashed(String),
    /// The tool cannot go on.
    Failed(String),
    /// The user left.
    Left,
    /// A signal asked the tool to end.
    Signal(u8),
}

impl From<Request> for Outcome {
    fn from(request: Request) -> Self {
        match request {
            Request::PowerOff => Self::PowerOff,
            Request::Reset => Self::Reset,
            Request::Exit(status) => Self::Exit(status),
            Request::Fail(reason) => Self::Failed(reason),
        }
    }
}

/// Where a vCPU says that the VM has ended.
#[derive(Clone)]
pub struct Report {
    /// What it says.
    pub outcomes: Sender<Outcome>,
    /// Becomes readable after that.
    pub ended: Arc<OwnedFd>,
}

impl Report {
    fn send(&self, outcome: Outcome) {
        // Both fail only when the console has stopped listening, because another vCPU was first.
        let _ = self.outcomes.send(outcome);
        let _ = rustix::io::write(&self.ended, &1_u64.to_ne_bytes());
    }
}

/// What a vCPU's thread works with.
pub struct Worker {
    /// The vCPU, and its number.
    pub vcpu: VcpuFd,
    pub id: u8,
    /// Length of the mapping that the vCPU shares with the kernel.
    pub map_size: usize,
    pub devices: Arc<Devices>,
    pub report: Report,
    pub stats: Stats,
}

/// A vCPU whose thread runs.
pub struct Running {
    thread: JoinHandle<Worker>,
    immediate_exit: &'static AtomicU8,
}

/// Makes the signal that stops vCPUs end `KVM_RUN` and do nothing else. Once per process.
pub fn prepare_stop_signal() -> Result<()> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(SIGRTMIN(), nothing).context("sigaction(SIGRTMIN)")
}

impl Running {
    /// Starts the thread.
    pub fn start(mut worker: Worker) -> Result<Self> {
        // SAFETY: The thread gives the worker, and with it the vCPU, back when it ends, however it
        // ends; `Running::stop_all` is the last to use the reference, before it drops the vCPU.
        let immediate_exit = unsafe { exit::immediate_exit(&mut worker.vcpu) };
        let thread = thread::Builder::new()
            .name(format!("vcpu{}", worker.id))
            .spawn(move || {
                let outcome = catch_unwind(AssertUnwindSafe(|| worker.run(immediate_exit)));
                match outcome {
                    Ok(Some(outcome)) => worker.report.send(outcome),
                    Ok(None) => {}
                    Err(_) => worker.report.send(Outcome::Failed(format!(
                        "the thread of vCPU {} panicked",
                        worker.id
                    ))),
                }
                worker
            })
            .context("a thread for a vCPU")?;
        Ok(Self {
            thread,
            immediate_exit,
        })
    }

    /// Stops vCPUs wherever they are, and returns what they counted. All are told before the first
    /// is waited for: what one does then is no longer of use to another.
    pub fn stop_all(running: Vec<Self>) -> Result<Stats> {
        for vcpu in &running {
            vcpu.tell_to_stop();
        }
        // Every thread is waited for, also after one that failed.
        let stopped: Vec<_> = running.into_iter().map(Self::join).collect();
        let mut stats = Stats::default();
        for counted in stopped {
            stats.add(&counted?);
        }
        Ok(stats)
    }

    fn tell_to_stop(&self) {
        // If the thread is about to enter the guest, the byte turns it back; if it is in the guest,
        // the signal does.
        self.immediate_exit.store(1, Ordering::SeqCst);
        if !self.thread.is_finished() {
            // A thread that ends meanwhile needs no signal.
            let _ = self.thread.kill(SIGRTMIN());
        }
    }

    fn join(self) -> Result<Stats> {
        match self.thread.join() {
            Ok(worker) => Ok(worker.stats),
            Err(_) => anyhow::bail!("a vCPU's thread panicked while it reported"),
        }
    }
}

impl Worker {
    /// Runs the guest; `None` if `stop`, the vCPU's `immediate_exit` byte, told it to end.
    fn run(&mut self, stop: &AtomicU8) -> Option<Outcome> {
        loop {
            if let Err(error) = self.vcpu.run() {
                match error.errno() {
                    libc::EINTR if stop.load(Ordering::SeqCst) != 0 => return None,
                    libc::EINTR | libc::EAGAIN => continue,
                    _ => {
                        return Some(Outcome::Failed(format!(
                            "KVM_RUN of vCPU {}: {error}{}",
                            self.id,
                            self.registers()
                        )))
                    }
                }
            }
            self.stats.count(exit::reason(&mut self.vcpu));
            let outcome = self.handle();
            if outcome.is_some() {
                return outcome;
            }
        }
    }

    fn handle(&mut self) -> Option<Outcome> {
        let reason = match exit::decode(&mut self.vcpu, self.map_size) {
            Exit::IoOut { port, size, data } => {
                self.stats.count_port(port, true);
                return data
                    .chunks(size)
                    .find_map(|item| self.devices.write(port, item))
                    .map(Outcome::from);
            }
            Exit::IoIn { port, size, data } => {
                self.stats.count_port(port, false);
                data.chunks_mut(size)
                    .for_each(|item| self.devices.read(port, item));
                return None;
            }
            Exit::MmioRead { address, data } => {
                self.stats.count_mmio(address, false);
                data.fill(0xff);
                return None;
            }
            Exit::MmioWrite { address } => {
                self.stats.count_mmio(address, true);
                return None;
            }
            Exit::Nothing => return None,
            Exit::Halt => return Some(Outcome::Halted),
            Exit::Shutdown => "triple fault".to_string(),
            Exit::FailEntry { reason, cpu } => {
                format!("VM entry failed on CPU {cpu}, hardware reason {reason:#x}")
            }
            Exit::InternalError { suberror, data } => internal_error(suberror, &data),
            Exit::UnknownToKernel(reason) => {
                format!("hardware exit {reason:#x}, unknown to the kernel")
            }
            Exit::SystemEvent(event) => return Some(system_event(event)),
            Exit::Unknown(reason) => format!(
                "exit reason {reason} ({}), unknown to this tool",
                Stats::name(reason)
            ),
        };
        Some(Outcome::Crashed(format!(
            "vCPU {}: {reason}{}",
            self.id,
            self.registers()
        )))
    }

    /// The registers, for a message; each line begins with a newline.
    fn registers(&self) -> String {
        let (Ok(regs), Ok(sregs)) = (self.vcpu.get_regs(), self.vcpu.get_sregs()) else {
            return "\n  (registers cannot be read)".to_string();
        };
        format!(
            "\n  RIP {:016x}  RSP {:016x}  RFLAGS {:08x}  CS {:04x} base {:x} {}-bit\
             \n  RAX {:016x}  RBX {:016x}  RCX {:016x}  RDX {:016x}\
             \n  RSI {:016x}  RDI {:016x}  RBP {:016x}  R8  {:016x}\
             \n  CR0 {:08x}  CR2 {:016x}  CR3 {:x}  CR4 {:x}  EFER {:x}",
            regs.rip,
            regs.rsp,
            regs.rflags,
            sregs.cs.selector,
            sregs.cs.base,
            if sregs.cs.l == 1 {
                64
            } else if sregs.cs.db == 1 {
                32
            } else {
                16
            },
            regs.rax,
            regs.rbx,
            regs.rcx,
            regs.rdx,
            regs.rsi,
            regs.rdi,
            regs.rbp,
            regs.r8,
            sregs.cr0,
            sregs.cr2,
            sregs.cr3,
            sregs.cr4,
            sregs.efer,
        )
    }
}

/// KVM_EXIT_SYSTEM_EVENT (api.rst, section 5).
fn system_event(event: u32) -> Outcome {
    match event {
        kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN => Outcome::PowerOff,
        kvm_bindings::KVM_SYSTEM_EVENT_RESET => Outcome::Reset,
        other => Outcome::Crashed(format!("system event {other}")),
    }
}

/// KVM_EXIT_INTERNAL_ERROR in words (api.rst, section 5; `emulation_failure` of `struct kvm_run`).
fn internal_error(suberror: u32, data: &[u64]) -> String {
    let meaning = match suberror {
        KVM_INTERNAL_ERROR_EMULATION => "an instruction that the kernel cannot emulate",
        KVM_INTERNAL_ERROR_SIMUL_EX => "an exception while one was delivered",
        KVM_INTERNAL_ERROR_DELIVERY_EV => "an exit while an event was delivered",
        KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "an exit reason that the kernel does not know",
        _ => "a reason that this tool does not know",
    };
    let words: Vec<_> = data.iter().map(|word| format!("{word:#x}")).collect();
    let mut text = format!(
        "internal error {suberror} ({meaning}), data [{}]",
        words.join(", ")
    );
    if suberror == KVM_INTERNAL_ERROR_EMULATION {
        if let [flags, instruction @ ..] = data {
            if flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0 {
                let bytes: Vec<u8> = instruction
                    .iter()
                    .flat_map(|word| word.to_le_bytes())
                    .collect();
                if let [length, bytes @ ..] = &bytes[..] {
                    text.push_str(", instruction bytes");
                    bytes
                        .iter()
                        .take((*length).into())
                        .for_each(|byte| text.push_str(&format!(" {byte:02x}")));
                }
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_internal_error_shows_the_instruction() {
        let text = internal_error(KVM_INTERNAL_ERROR_EMULATION, &[1, 0x0000_000b_0f02, 0]);
        assert!(text.ends_with("instruction bytes 0f 0b"), "{text}");
        let text = internal_error(KVM_INTERNAL_ERROR_EMULATION, &[0, 0xb0f02]);
        assert!(text.ends_with("data [0x0, 0xb0f02]"), "{text}");
        assert!(internal_error(KVM_INTERNAL_ERROR_EMULATION, &[]).ends_with("data []"));
    }
}
