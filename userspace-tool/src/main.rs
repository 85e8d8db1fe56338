//! `xvm`: runs virtual machines on `/dev/xvm`, or on `/dev/kvm` for comparison.
//!
//! `args` is the command line; `run` (with `flat`) builds a VM and waits for its end; the rest is
//! one subject a file.

mod acpi;
mod args;
mod bench;
mod boot;
mod capabilities;
mod console;
mod cpu_state;
mod cpuid;
mod device;
mod devices;
mod exit;
mod info;
mod memory;
mod output;
mod run;
mod stats;
mod terminal;
mod vcpu;
mod vm;

use std::process::ExitCode;

use clap::Parser;

use args::{
    Args,
    Command, //
};

/// Exit status of the tool when the tool itself failed, as opposed to the guest.
const STATUS_TOOL_ERROR: u8 = 125;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // --help and --version arrive here too, as errors that are not failures. Where even the
            // message cannot be written, the exit status is all that is left to tell.
            let _ = error.print();
            let failed = error.use_stderr();
            return ExitCode::from(if failed { STATUS_TOOL_ERROR } else { 0 });
        }
    };
    let result = match args.command {
        Command::Run(options) => run::run(&options),
        Command::Info(options) => info::run(&options),
        Command::Bench(options) => bench::run(&options),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            output::say(format_args!("xvm: {error:#}"));
            ExitCode::from(STATUS_TOOL_ERROR)
        }
    }
}
