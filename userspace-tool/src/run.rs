//! `xvm run`: builds a VM, lets it run, turns its end into an exit status.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{
    mpsc,
    Arc, //
};

use anyhow::{
    bail,
    Context,
    Result, //
};
use kvm_bindings::kvm_regs;
use kvm_ioctls::{
    Cap,
    Kvm,
    VcpuFd, //
};
use rustix::event::{
    eventfd,
    EventfdFlags, //
};
use vm_memory::{
    Bytes,
    GuestAddress, //
};

use crate::args::{
    FlatOptions,
    Mode,
    RunOptions, //
};
use crate::console::Console;
use crate::devices::{
    Devices,
    Listener, //
};
use crate::output::say;
use crate::stats::Stats;
use crate::vcpu::{
    prepare_stop_signal,
    Outcome,
    Report,
    Running,
    Worker, //
};
use crate::vm::{
    Config,
    Machine, //
};
use crate::{
    acpi,
    boot,
    cpu_state,
    device, //
};

/// Exit status when the guest rebooted and should not.
const STATUS_REBOOT: u8 = 123;
/// Exit status when the guest crashed.
const STATUS_CRASHED: u8 = 126;
/// Exit status when a signal ended the tool, less the signal's number.
const STATUS_SIGNAL: u8 = 128;

/// Runs the VM until it ends for good; returns the tool's exit status.
pub fn run(options: &RunOptions) -> Result<u8> {
    if options.cpus > 1 && !has_irqchip(options) {
        bail!("a bare image with several CPUs needs --irqchip: only a LAPIC can start the others");
    }
    let kvm = device::open(&options.device)?;
    prepare_stop_signal()?;
    let mut stats = Stats::default();
    let outcome = run_until_end(&kvm, options, &mut stats)?;
    if options.stats {
        say(format_args!("{stats}"));
    }
    match outcome {
        Outcome::PowerOff | Outcome::Halted | Outcome::Left => Ok(0),
        Outcome::Reset => Ok(STATUS_REBOOT),
        Outcome::Exit(status) => Ok(status),
        Outcome::Signal(signal) => Ok(STATUS_SIGNAL.saturating_add(signal)),
        Outcome::Failed(reason) => bail!(reason),
        Outcome::Crashed(reason) => {
            say(format_args!("xvm: the guest crashed: {reason}"));
            Ok(STATUS_CRASHED)
        }
    }
}

/// Runs the VM again each time the guest reboots. The terminal is the console's until this returns.
fn run_until_end(kvm: &Kvm, options: &RunOptions, stats: &mut Stats) -> Result<Outcome> {
    let mut console: Option<Console> = None;
    loop {
        let machine = build(kvm, options)?;
        let console = match &mut console {
            Some(console) => console,
            none => none.insert(Console::new()?),
        };
        let outcome = run_machine(kvm, machine, options, console, stats)?;
        if outcome != Outcome::Reset || options.no_reboot {
            return Ok(outcome);
        }
    }
}

/// The VM with everything loaded, ready to be started.
fn build(kvm: &Kvm, options: &RunOptions) -> Result<Machine> {
    let irqchip = has_irqchip(options);
    let machine = Machine::new(
        kvm,
        &Config {
            memory: options.mem,
            cpus: options.cpus,
            irqchip,
        },
    )?;
    let first = machine.vcpus.first().context("no vCPU")?;
    if let Some(kernel) = &options.kernel {
        acpi::write(&machine.memory, options.cpus)?;
        let line = command_line(kvm, first, options);
        if options.verbose {
            say(format_args!("xvm: kernel command line: {line}"));
        }
        let regs = boot::load(&machine.memory, kernel, options.initrd.as_deref(), &line)?;
        cpu_state::set_long(first, &machine.memory, regs)?;
    } else if let (Some(image), Some(load)) = (&options.flat, options.flat_options.load) {
        load_flat(&machine, image, load, &options.flat_options)?;
    }
    Ok(machine)
}

/// The kernel's command line, as the user and the device want it.
fn command_line(kvm: &Kvm, vcpu: &VcpuFd, options: &RunOptions) -> String {
    if options.append_only {
        return options.append.clone().unwrap_or_default();
    }
    let tsc_khz = if kvm.check_extension(Cap::GetTscKhz) {
        // A device that cannot tell after all: the guest finds out itself.
        vcpu.get_tsc_khz().ok().filter(|khz| *khz != 0)
    } else {
        None
    };
    boot::command_line(tsc_khz, options.append.as_deref())
}

fn has_irqchip(options: &RunOptions) -> bool {
    options.kernel.is_some() || options.flat_options.irqchip
}

/// Loads a bare image and sets the first vCPU to its entry.
fn load_flat(machine: &Machine, image: &Path, load: u64, options: &FlatOptions) -> Result<()> {
    let name = image.display();
    let content = fs::read(image).with_context(|| format!("{name}"))?;
    machine
        .memory
        .write_slice(&content, GuestAddress(load))
        .with_context(|| {
            format!(
                "{name}: {} bytes at {load:#x} are not all in guest memory (--mem)",
                content.len()
            )
        })?;
    let vcpu = machine.vcpus.first().context("no vCPU")?;
    let entry = options.entry.unwrap_or(load);
    let regs = kvm_regs {
        rip: entry,
        rsp: load,
        ..Default::default()
    };
    match options.mode() {
        Mode::Real if entry >= 1 << 20 => {
            bail!("real mode reaches addresses below 0x100000 only, not {entry:#x}")
        }
        Mode::Real => cpu_state::set_real(vcpu, entry, load as u16),
        Mode::Protected => cpu_state::set_protected(vcpu, &machine.memory, regs),
        Mode::Long => cpu_state::set_long(vcpu, &machine.memory, regs),
    }
}

/// Starts the vCPUs, serves the console until the VM ends, and stops them all.
fn run_machine(
    kvm: &Kvm,
    machine: Machine,
    options: &RunOptions,
    console: &mut Console,
    stats: &mut Stats,
) -> Result<Outcome> {
    let map_size = kvm.get_vcpu_mmap_size().context("KVM_GET_VCPU_MMAP_SIZE")?;
    let listener = if options.kernel.is_some() {
        Listener::Driver
    } else {
        Listener::Poll
    };
    let devices = Arc::new(Devices::new(&machine.vm, has_irqchip(options), listener)?);
    let ended =
        Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context("eventfd")?);
    let (sender, outcomes) = mpsc::channel();
    let report = Report {
        outcomes: sender,
        ended: ended.clone(),
    };
    let mut running = Vec::new();
    let mut started = Ok(());
    for (id, vcpu) in (0..).zip(machine.vcpus) {
        let worker = Worker {
            vcpu,
            id,
            map_size,
            devices: devices.clone(),
            report: report.clone(),
            stats: Stats::default(),
        };
        match Running::start(worker) {
            Ok(vcpu) => running.push(vcpu),
            Err(error) => started = Err(error),
        }
    }
    // Whatever went wrong, the vCPUs stop before the memory goes.
    let outcome = started.and_then(|()| console.serve(&devices, &ended, &outcomes));
    let stopped = Running::stop_all(running);
    let flushed = devices.serial().flush();
    stats.add(&stopped?);
    if options.stats {
        stats.count_in_kernel(&options.device, machine.vm.as_raw_fd());
    }
    flushed?;
    outcome
}
