//! The command line.

use std::path::PathBuf;

use clap::{
    ArgGroup,
    Parser,
    Subcommand, //
};

const MIB: u64 = 1 << 20;

/// Smallest guest that makes sense: real-mode memory and the boot structures.
const MIN_MEMORY: u64 = MIB;
/// Largest guest: 1 TiB, which every CPU with EPT or NPT can map.
const MAX_MEMORY: u64 = 1 << 40;
/// As many as an 8-bit APIC ID can name (0xff is broadcast).
const MAX_CPUS: i64 = 255;

/// Runs virtual machines on /dev/xvm, or on /dev/kvm for comparison
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a Linux kernel, or start a bare image
    Run(RunOptions),
    /// Show what a device is and can do
    Info(InfoOptions),
    /// Measure what exits cost
    Bench(BenchOptions),
}

#[derive(Clone, Debug, clap::Args)]
pub struct InfoOptions {
    /// Device that speaks the KVM ABI
    #[arg(long, value_name = "PATH", default_value = "/dev/xvm")]
    pub device: PathBuf,
}

const BENCH_NOTES: &str = "\
A guest does each kind of exit in a loop and times it with its TSC: instructions where the TSC
counts those (QEMU with -icount, Bochs), cycles elsewhere. A number is the median over
batches, for one exit and its return, less the loop's own cost.

KINDS handled in the kernel
  cpuid       CPUID
  msr         RDMSR of IA32_APIC_BASE
  hypercall   VMCALL or VMMCALL with a number that does not exist
  apic        write to the LAPIC's TPR
  hlt-wake    IPI to itself, HLT, wake, interrupt, EOI
  page-fault  first write to a page of guest memory
KINDS handled in userspace
  pio-user    OUT
  mmio-user   write where there is no memory

OUTPUT
  RESULT <kind> <ticks>                                        for one device
  BENCH <vendor> <kind> kvm=<ticks> xvm=<ticks> ratio=<ratio>  with --compare; then a table
  BENCH <vendor> <kind> failed: <reason>                       on standard error

EXIT STATUS
  0    every kind was measured
  1    at least one failed
  125  nothing could be measured; standard error says why";

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = BENCH_NOTES)]
pub struct BenchOptions {
    /// Device that speaks the KVM ABI
    #[arg(long, value_name = "PATH", default_value = "/dev/xvm")]
    pub device: PathBuf,
    /// Measure this device as well (xvm=), and compare it with the first (kvm=)
    #[arg(long, value_name = "PATH")]
    pub compare: Option<PathBuf>,
    /// Name to print for the vendor; svm or vmx, as the device's CPUID says, without this
    #[arg(long, value_name = "NAME", requires = "compare")]
    pub vendor: Option<String>,
    /// Only these kinds, separated by commas
    #[arg(long, value_name = "KINDS", value_delimiter = ',')]
    pub kinds: Vec<String>,
    /// Give up on a kind that is not done after so many seconds, and go on with the next
    #[arg(long, value_name = "S", default_value_t = 30)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub timeout: u64,
    /// One JSON object a line instead of RESULT or BENCH
    #[arg(long)]
    pub json: bool,
}

const RUN_NOTES: &str = "\
KEYS, when standard input is a terminal (in raw mode then: Ctrl-C goes to the guest)
  Ctrl-A x       end the VM and leave
  Ctrl-A Ctrl-A  send one Ctrl-A to the guest
  Ctrl-A h       list these keys

THE KERNEL'S COMMAND LINE (--append-only leaves it out, --verbose shows it)
  console=ttyS0      the console is the serial port
  tsc_early_khz=N    the TSC's rate as the device tells it (KVM_GET_TSC_KHZ), since a guest
                     measures it badly, and slowly, while the host does other things
  tsc=reliable       do not check the TSC against slower clocks, for the same reason

THE MACHINE
  Serial port (16550A) at I/O port 0x3f8, IRQ 4: standard input and output. In the kernel
  module: LAPIC, IOAPIC, 8259 pair, 8254 PIT. ACPI with power-off (S5), reset register and PM
  timer (ports 0x600-0x60b, 0xcf9). CMOS clock at 0x70 (the host's time, UTC). Reset by the
  keyboard controller (0xfe to port 0x64). No PCI. What is not there reads as all ones, ports
  and memory alike. RAM from 0 to 3 GiB, the rest from 4 GiB on.

EXIT STATUS
  0        the guest powered off, a bare image halted, or Ctrl-A x
  0..255   the byte that the guest wrote to I/O port 0xf4, which ends the VM at once.
           From a Linux guest, for status N:
             printf \"\\\\$(printf %03o N)\" | dd of=/dev/port bs=1 seek=244 conv=notrunc
  123      the guest rebooted, with --no-reboot
  125      the tool could not start or go on; standard error says why
  126      the guest crashed (triple fault, failed VM entry, emulation failure); standard
           error has the registers (on AMD after a triple fault: those of the reset)
  128+N    signal N ended the tool";

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = RUN_NOTES)]
#[command(group = ArgGroup::new("image").required(true).args(["kernel", "flat"]))]
pub struct RunOptions {
    /// Linux kernel to boot by the 64-bit boot protocol
    #[arg(long, value_name = "BZIMAGE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk for the kernel
    #[arg(
        long,
        value_name = "FILE",
        requires = "kernel",
        conflicts_with = "flat"
    )]
    pub initrd: Option<PathBuf>,
    /// Added to the kernel's command line (see THE KERNEL'S COMMAND LINE)
    #[arg(
        long,
        value_name = "TEXT",
        requires = "kernel",
        conflicts_with = "flat"
    )]
    pub append: Option<String>,
    /// The kernel's command line is that of --append, and nothing else
    #[arg(long, requires = "kernel", conflicts_with = "flat")]
    pub append_only: bool,
    /// Bare image to load and start, in real mode unless told otherwise
    #[arg(long, value_name = "FILE", requires = "load")]
    pub flat: Option<PathBuf>,
    /// Guest memory; K, M or G may follow, M when none does
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse_memory)]
    pub mem: u64,
    /// Number of virtual CPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=MAX_CPUS))]
    pub cpus: u8,
    /// Device that speaks the KVM ABI
    #[arg(long, value_name = "PATH", default_value = "/dev/xvm")]
    pub device: PathBuf,
    /// When the guest reboots, end with status 123 instead of starting it again
    #[arg(long)]
    pub no_reboot: bool,
    /// Count exits by reason, and print them to standard error at the end
    #[arg(long)]
    pub stats: bool,
    /// Say on standard error what the guest is started with
    #[arg(long, short)]
    pub verbose: bool,
    #[command(flatten)]
    pub flat_options: FlatOptions,
}

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Bare images")]
pub struct FlatOptions {
    /// Guest physical address where the image goes
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    #[arg(requires = "flat", conflicts_with = "kernel")]
    pub load: Option<u64>,
    /// Where execution begins; the load address without this
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    #[arg(requires = "flat", conflicts_with = "kernel")]
    pub entry: Option<u64>,
    /// Start in real mode (the default): CS base is the entry's 64 KiB block, SP the load address
    #[arg(long, requires = "flat", conflicts_with = "kernel", group = "mode")]
    pub real: bool,
    /// Start in 32-bit protected mode, flat segments, paging off
    #[arg(long, requires = "flat", conflicts_with = "kernel", group = "mode")]
    pub protected: bool,
    /// Start in 64-bit mode, 4 GiB identity-mapped by tables at 0x90000 to 0x97000
    #[arg(long, requires = "flat", conflicts_with = "kernel", group = "mode")]
    pub long: bool,
    /// With interrupt controllers and timer in the kernel: HLT then waits instead of ending the VM
    #[arg(long, requires = "flat", conflicts_with = "kernel")]
    pub irqchip: bool,
}

/// The mode a bare image starts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Real,
    Protected,
    Long,
}

impl FlatOptions {
    /// The mode that was asked for.
    pub fn mode(&self) -> Mode {
        if self.protected {
            Mode::Protected
        } else if self.long {
            Mode::Long
        } else {
            Mode::Real
        }
    }
}

/// A number, decimal or `0x` and hexadecimal.
fn parse_address(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "not an address: 31744 and 0x7c00 are".to_string())
}

/// A memory size in bytes from `512M` and the like: whole pages between 1 MiB and 1 TiB.
fn parse_memory(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "k" | "K" => 1 << 10,
        "" | "m" | "M" => MIB,
        "g" | "G" => 1 << 30,
        _ => return Err("the unit is K, M or G".to_string()),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "not a size: 512M and 2G are".to_string())?;
    match number.checked_mul(unit) {
        Some(size) if !(MIN_MEMORY..=MAX_MEMORY).contains(&size) => {
            Err("must be between 1M and 1024G".to_string())
        }
        Some(size) if size % 4096 != 0 => Err("must be a multiple of 4K".to_string()),
        Some(size) => Ok(size),
        None => Err("must be between 1M and 1024G".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn run_options(line: &str) -> Result<RunOptions, clap::Error> {
        match Args::try_parse_from(line.split_whitespace())?.command {
            Command::Run(options) => Ok(options),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_memory("512M"), Ok(512 << 20));
        assert_eq!(parse_memory("64"), Ok(64 << 20));
        assert_eq!(parse_memory("2g"), Ok(2 << 30));
        assert_eq!(parse_memory("2048K"), Ok(2 << 20));
        for bad in [
            "",
            "M",
            "1T",
            "-1M",
            "512K",
            "1025K",
            "99999999999999999999",
            "18446744073709551615G",
            "0",
        ] {
            assert!(parse_memory(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses() {
        assert_eq!(parse_address("0x7c00"), Ok(0x7c00));
        assert_eq!(parse_address("4096"), Ok(4096));
        assert!(parse_address("7c00h").is_err());
        assert!(parse_address("0x").is_err());
    }

    #[test]
    fn a_kernel_gets_the_documented_defaults() -> Result<(), clap::Error> {
        let options = run_options("xvm run --kernel bz")?;
        assert_eq!((options.mem, options.cpus), (512 << 20, 1));
        assert_eq!(options.device, PathBuf::from("/dev/xvm"));
        Ok(())
    }

    #[test]
    fn a_bare_image_starts_in_the_mode_asked_for() -> Result<(), clap::Error> {
        assert_eq!(
            run_options("xvm run --flat f --load 0")?
                .flat_options
                .mode(),
            Mode::Real
        );
        assert_eq!(
            run_options("xvm run --flat f --load 0 --long")?
                .flat_options
                .mode(),
            Mode::Long
        );
        Ok(())
    }

    #[test]
    fn contradictions_are_refused() {
        for line in [
            "xvm run",
            "xvm run --kernel a --flat b --load 0",
            "xvm run --flat b",
            "xvm run --initrd i --flat b --load 0",
            "xvm run --kernel a --load 0",
            "xvm run --flat b --load 0 --real --long",
            "xvm run --kernel a --cpus 0",
        ] {
            assert!(run_options(line).is_err(), "{line}");
        }
    }
}
