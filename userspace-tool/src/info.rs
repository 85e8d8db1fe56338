//! `xvm info`: what a device is and can do, as found by asking it.

use std::fs;
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

/// The capability numbers that are asked for. Those after the last one with a name are shown by number.
const CAPABILITIES: std::ops::Range<u32> = 0..300;

/// Prints everything; returns the exit status.
pub fn run(options: &InfoOptions) -> Result<u8> {
    let kvm = device::open(&options.device)?;
    print_device(&kvm, &options.device)?;
    print_limits(&kvm)?;
    print_cpu(&kvm)?;
    print_capabilities(&kvm);
    Ok(0)
}

fn print_device(kvm: &Kvm, path: &Path) -> Result<()> {
    println!("device                {}", path.display());
    println!("vendor                {}", device::vendor(kvm)?);
    println!("KVM API version       {}", kvm.get_api_version());
    for (name, value) in module_parameters(path) {
        println!("module parameter      {name} = {value}");
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

fn print_limits(kvm: &Kvm) -> Result<()> {
    println!("vCPUs recommended     {}", kvm.get_nr_vcpus());
    println!("vCPUs at most         {}", kvm.get_max_vcpus());
    println!("vCPU IDs below        {}", kvm.get_max_vcpu_id());
    println!("memory slots          {}", kvm.get_nr_memslots());
    println!(
        "vCPU mapping          {} bytes",
        kvm.get_vcpu_mmap_size().context("KVM_GET_VCPU_MMAP_SIZE")?
    );
    Ok(())
}

fn print_cpu(kvm: &Kvm) -> Result<()> {
    let supported = cpuid::supported(kvm)?;
    println!("CPUID vendor          {}", cpuid::vendor_name(&supported));
    println!("CPUID entries         {}", supported.as_slice().len());
    let msrs = kvm.get_msr_index_list().context("KVM_GET_MSR_INDEX_LIST")?;
    println!("MSRs to save          {}", msrs.as_slice().len());
    match kvm.get_msr_feature_index_list() {
        Ok(features) => println!("feature MSRs          {}", features.as_slice().len()),
        Err(error) => println!("feature MSRs          none: {error}"),
    }
    Ok(())
}

fn print_capabilities(kvm: &Kvm) {
    println!("capabilities");
    for number in CAPABILITIES {
        let value = kvm.check_extension_raw(u64::from(number));
        if value > 0 {
            let name = NAMES
                .iter()
                .find(|(_, named)| *named == number)
                .map_or("(no name)", |(name, _)| name);
            println!("  {number:>3} {name:<32} {value}");
        }
    }
}
