//! Opens the device that speaks the KVM ABI, and says what to do when it does not.

use std::ffi::CString;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{
    anyhow,
    bail,
    Result, //
};
use kvm_bindings::KVM_API_VERSION;
use kvm_ioctls::Kvm;

use crate::cpuid;

/// Opens `path` and checks that it speaks KVM API version 12 (api.rst, section 4.1).
pub fn open(path: &Path) -> Result<Kvm> {
    let name = path.display();
    let c_path = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| anyhow!("{name}: a NUL byte in the path"))?;
    let kvm = Kvm::new_with_path(c_path)
        .map_err(|error| anyhow!("{name}: {}", open_advice(path, error.errno())))?;
    let version = kvm.get_api_version();
    if version < 0 {
        bail!(
            "{name}: does not answer KVM_GET_API_VERSION, so it is no KVM-compatible device; \
             use /dev/xvm or /dev/kvm"
        );
    }
    if version != KVM_API_VERSION as i32 {
        bail!("{name}: speaks KVM API version {version}, this tool speaks {KVM_API_VERSION}");
    }
    Ok(kvm)
}

/// The kind of hardware virtualisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// Intel's, and that of CPUs made after it.
    Vmx,
    /// AMD's, and that of CPUs made after it.
    Svm,
}

impl fmt::Display for Vendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vmx => "vmx",
            Self::Svm => "svm",
        })
    }
}

/// The vendor that the device runs on: the one whose name is in the CPUID that it supports.
pub fn vendor(kvm: &Kvm) -> Result<Vendor> {
    let supported = cpuid::supported(kvm)?;
    let name = cpuid::vendor_name(&supported);
    match name.as_str() {
        "GenuineIntel" | "CentaurHauls" | "  Shanghai  " => Ok(Vendor::Vmx),
        "AuthenticAMD" | "HygonGenuine" => Ok(Vendor::Svm),
        _ => bail!("the device's CPUID names the unknown vendor {name:?}"),
    }
}

/// What to do about a device that cannot be opened.
fn open_advice(path: &Path, errno: i32) -> String {
    let module = match path.file_name().and_then(|name| name.to_str()) {
        Some("xvm") => "insmod xvm.ko first (or use --device /dev/kvm)",
        Some("kvm") => "modprobe kvm_amd or kvm_intel first (or use --device /dev/xvm)",
        _ => "is the path right?",
    };
    match errno {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => format!("no such device: {module}"),
        libc::EACCES | libc::EPERM => {
            "permission denied: run as root, or join the group that the device belongs to"
                .to_string()
        }
        other => std::io::Error::from_raw_os_error(other).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_device_says_what_to_load() {
        let error = open(Path::new("/nonexistent/xvm"))
            .err()
            .map(|error| error.to_string());
        assert_eq!(
            error.as_deref(),
            Some(
                "/nonexistent/xvm: no such device: insmod xvm.ko first (or use --device /dev/kvm)"
            )
        );
    }

    #[test]
    fn a_device_of_another_kind_is_refused() {
        let error = open(Path::new("/dev/null"))
            .err()
            .map(|error| error.to_string());
        assert!(error.is_some_and(|text| text.contains("no KVM-compatible device")));
    }
}
