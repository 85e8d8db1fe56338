//! `xvm bench`: what exits cost, on one device or compared between two.
//!
//! The guest times itself with its TSC. Where that counts instructions (QEMU's TCG under `-icount`,
//! Bochs) the numbers are instructions a round trip, elsewhere they are TSC cycles.

mod guest;
mod machine;

use std::io::{
    self,
    Write, //
};
use std::path::Path;
use std::time::Duration;

use anyhow::{
    bail,
    Context,
    Error,
    Result, //
};
use kvm_ioctls::Kvm;

use crate::args::BenchOptions;
use crate::device::{
    self,
    Vendor, //
};
use crate::output::say;
use crate::vcpu::prepare_stop_signal;
use guest::Kind;
use machine::BenchMachine;

/// What xvm may cost, as a part of KVM's cost, for an exit handled in the kernel and for one that
/// reaches userspace.
const GOAL_KERNEL: f64 = 0.25;
const GOAL_USER: f64 = 0.6;

/// Exit status when a kind could not be measured.
const STATUS_FAILED: u8 = 1;

/// A device with its machine and its loop overhead.
struct Subject {
    name: String,
    kvm: Kvm,
    /// None after a failure: the next kind gets a new one.
    machine: Option<BenchMachine>,
    overhead: f64,
    limit: Duration,
}

impl Subject {
    fn new(path: &Path, limit: Duration) -> Result<(Self, Vendor)> {
        let kvm = device::open(path)?;
        let vendor = device::vendor(&kvm)?;
        let mut subject = Self {
            name: path.display().to_string(),
            kvm,
            machine: None,
            overhead: 0.0,
            limit,
        };
        subject.overhead = subject
            .ticks(guest::empty())
            .with_context(|| subject.name.clone())?;
        Ok((subject, vendor))
    }

    fn ticks(&mut self, kind: Kind) -> Result<f64> {
        let machine = match self.machine.take() {
            Some(machine) => machine,
            None => BenchMachine::new(&self.kvm)?,
        };
        let (machine, ticks) = machine.measure(kind, self.limit)?;
        self.machine = Some(machine);
        Ok(ticks)
    }

    /// Ticks for one exit of `kind` and its return.
    fn cost(&mut self, kind: Kind) -> Result<f64> {
        let ticks = self.ticks(kind).with_context(|| self.name.clone())?;
        Ok((ticks - self.overhead).max(0.0))
    }
}

/// Measures, prints, returns the exit status. A kind that fails does not stop the others.
pub fn run(options: &BenchOptions) -> Result<u8> {
    prepare_stop_signal()?;
    let limit = Duration::from_secs(options.timeout);
    let (subject, vendor) = Subject::new(&options.device, limit)?;
    let kinds = chosen(vendor, &options.kinds)?;
    let (label, failures) = match &options.compare {
        None => (vendor.to_string(), measure_one(subject, &kinds, options.json)?),
        Some(other) => {
            let label = options.vendor.clone().unwrap_or_else(|| vendor.to_string());
            let other = Subject::new(other, limit)?.0;
            let failures = compare(subject, other, &kinds, &label, options.json)?;
            (label, failures)
        }
    };
    for (kind, error) in &failures {
        say(format_args!("BENCH {label} {} failed: {error:#}", kind.name));
    }
    Ok(if failures.is_empty() { 0 } else { STATUS_FAILED })
}

/// The kinds that could not be measured, and why.
type Failures = Vec<(Kind, Error)>;

/// The kinds that were asked for, all without a wish.
fn chosen(vendor: Vendor, names: &[String]) -> Result<Vec<Kind>> {
    let all = guest::kinds(vendor);
    if let Some(unknown) = names
        .iter()
        .find(|name| all.iter().all(|kind| kind.name != name.as_str()))
    {
        bail!(
            "--kinds: no exit is called {unknown}: there are {}",
            all.map(|kind| kind.name).join(", ")
        );
    }
    Ok(all
        .into_iter()
        .filter(|kind| names.is_empty() || names.iter().any(|name| name == kind.name))
        .collect())
}

fn measure_one(mut subject: Subject, kinds: &[Kind], json: bool) -> Result<Failures> {
    let mut failures = Failures::new();
    let mut out = io::stdout();
    for kind in kinds {
        match subject.cost(*kind) {
            Ok(cost) if json => {
                writeln!(out, "{{\"exit\":\"{}\",\"ticks\":{cost:.1}}}", kind.name)?;
            }
            Ok(cost) => writeln!(out, "RESULT {} {cost:.0}", kind.name)?,
            Err(error) => failures.push((*kind, error)),
        }
    }
    Ok(failures)
}

fn compare(
    mut kvm: Subject,
    mut xvm: Subject,
    kinds: &[Kind],
    label: &str,
    json: bool,
) -> Result<Failures> {
    let mut failures = Failures::new();
    let mut table = format!(
        "exit         {:>12} {:>12}    ratio     goal\n",
        kvm.name, xvm.name
    );
    let mut out = io::stdout();
    for kind in kinds {
        let row = kvm.cost(*kind).and_then(|before| {
            Ok(Row {
                name: kind.name,
                kvm: before,
                xvm: xvm.cost(*kind)?,
            })
        });
        match row {
            Ok(row) => {
                writeln!(out, "{}", row.line(label, json))?;
                table.push_str(&row.to_table());
            }
            Err(error) => failures.push((*kind, error)),
        }
    }
    writeln!(out, "\n{table}")?;
    Ok(failures)
}

/// One kind of exit on both devices.
struct Row {
    name: &'static str,
    kvm: f64,
    xvm: f64,
}

impl Row {
    fn ratio(&self) -> f64 {
        self.xvm / self.kvm.max(1.0)
    }

    fn goal(&self) -> f64 {
        if self.name.contains("user") {
            GOAL_USER
        } else {
            GOAL_KERNEL
        }
    }

    fn line(&self, label: &str, json: bool) -> String {
        let Self { name, kvm, xvm } = self;
        let ratio = self.ratio();
        if json {
            format!(
                "{{\"vendor\":\"{label}\",\"exit\":\"{name}\",\
                 \"kvm\":{kvm:.1},\"xvm\":{xvm:.1},\"ratio\":{ratio:.3}}}"
            )
        } else {
            format!("BENCH {label} {name} kvm={kvm:.0} xvm={xvm:.0} ratio={ratio:.2}")
        }
    }

    fn to_table(&self) -> String {
        let verdict = if self.ratio() <= self.goal() {
            "met"
        } else {
            "missed"
        };
        format!(
            "{:<12} {:>12.0} {:>12.0} {:>8.2} {:>8.2} {verdict}\n",
            self.name,
            self.kvm,
            self.xvm,
            self.ratio(),
            self.goal()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_machine_readable() {
        let row = Row {
            name: "cpuid",
            kvm: 3149.0,
            xvm: 315.2,
        };
        assert_eq!(
            row.line("svm", false),
            "BENCH svm cpuid kvm=3149 xvm=315 ratio=0.10"
        );
        assert!(row.line("svm", true).contains("\"ratio\":0.100"));
    }

    #[test]
    fn the_goal_depends_on_where_the_exit_is_handled() {
        let verdict = |name, xvm| {
            Row {
                name,
                kvm: 1000.0,
                xvm,
            }
            .to_table()
        };
        assert!(verdict("cpuid", 250.0).contains("met"));
        assert!(verdict("cpuid", 251.0).contains("missed"));
        assert!(verdict("pio-user", 600.0).contains("met"));
    }

    #[test]
    fn kinds_can_be_chosen_and_unknown_ones_are_named() -> Result<()> {
        let names = |names: &[&str]| {
            names
                .iter()
                .map(|name| name.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(chosen(Vendor::Svm, &[])?.len(), 8);
        assert_eq!(chosen(Vendor::Vmx, &names(&["msr", "apic"]))?.len(), 2);
        assert!(chosen(Vendor::Vmx, &names(&["msr", "nmi"])).is_err());
        Ok(())
    }
}
