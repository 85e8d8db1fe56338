//! `xvm info`: what a device is and can do, as found by asking it.

use std::fs;
use std::io::{
    self,
    Write, //
};
use std::path::Path;

use anyhow::{
    Context,
    Result, //
};
use kvm_ioctls::Kvm;

use crate::args::InfoOptions;
use crate::capabilities::NAMES;
use crate::{
    cpuid,
    device, //
};

/// The capability numbers that are asked for. Those after the last one with a name are shown by
/// number.
const CAPABILITIES: std::ops::Range<u32> = 0..300;

/// Prints everything; returns the exit status.
pub fn run(options: &InfoOptions) -> Result<u8> {
    let kvm = device::open(&options.device)?;
    let mut out = io::stdout().lock();
    print_device(&mut out, &kvm, &options.device)?;
    print_limits(&mut out, &kvm)?;
    print_cpu(&mut out, &kvm)?;
    print_capabilities(&mut out, &kvm)?;
    Ok(0)
}

fn print_device(out: &mut impl Write, kvm: &Kvm, path: &Path) -> Result<()> {
    writeln!(out, "device                {}", path.display())?;
    writeln!(out, "vendor                {}", device::vendor(kvm)?)?;
    writeln!(out, "KVM API version       {}", kvm.get_api_version())?;
    for (name, value) in module_parameters(path) {
        writeln!(out, "module parameter      {name} = {value}")?;
    }
    Ok(())
}

/// The parameters of the module that has the device's name, if sysfs shows any.
fn module_parameters(device: &Path) -> Vec<(String, String)> {
    let Some(module) = device.file_name() else {
        return Vec::new();
    };
    let Ok(folder) = fs::read_dir(Path::new("/sys/module").join(module).join("parameters")) else {
        return Vec::new();
    };
    let mut parameters: Vec<_> = folder
        .flatten()
        .filter_map(|entry| {
            let value = fs::read_to_string(entry.path()).ok()?;
            Some((
                entry.file_name().to_string_lossy().into_owned(),
                value.trim_end().to_string(),
            ))
        })
        .collect();
    parameters.sort();
    parameters
}

fn print_limits(out: &mut impl Write, kvm: &Kvm) -> Result<()> {
    writeln!(out, "vCPUs recommended     {}", kvm.get_nr_vcpus())?;
    writeln!(out, "vCPUs at most         {}", kvm.get_max_vcpus())?;
    writeln!(out, "vCPU IDs below        {}", kvm.get_max_vcpu_id())?;
    writeln!(out, "memory slots          {}", kvm.get_nr_memslots())?;
    writeln!(
        out,
        "vCPU mapping          {} bytes",
        kvm.get_vcpu_mmap_size().context("KVM_GET_VCPU_MMAP_SIZE")?
    )?;
    Ok(())
}

fn print_cpu(out: &mut impl Write, kvm: &Kvm) -> Result<()> {
    let supported = cpuid::supported(kvm)?;
    writeln!(
        out,
        "CPUID vendor          {}",
        cpuid::vendor_name(&supported)
    )?;
    writeln!(out, "CPUID entries         {}", supported.as_slice().len())?;
    let msrs = kvm.get_msr_index_list().context("KVM_GET_MSR_INDEX_LIST")?;
    writeln!(out, "MSRs to save          {}", msrs.as_slice().len())?;
    match kvm.get_msr_feature_index_list() {
        Ok(features) => writeln!(out, "feature MSRs          {}", features.as_slice().len())?,
        Err(error) => writeln!(out, "feature MSRs          none: {error}")?,
    }
    Ok(())
}

fn print_capabilities(out: &mut impl Write, kvm: &Kvm) -> Result<()> {
    writeln!(out, "capabilities")?;
    for number in CAPABILITIES {
        let value = kvm.check_extension_raw(u64::from(number));
        if value > 0 {
            let name = NAMES
                .iter()
                .find(|(_, named)| *named == number)
                .map_or("(no name)", |(name, _)| name);
            writeln!(out, "  {number:>3} {name:<32} {value}")?;
        }
    }
    Ok(())
}
