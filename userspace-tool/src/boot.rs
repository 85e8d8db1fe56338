//! Loads a Linux kernel by the 64-bit boot protocol (Documentation/arch/x86/boot.rst and
//! zero-page.rst).

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{
    bail,
    Context,
    Result, //
};
use kvm_bindings::kvm_regs;
use linux_loader::bootparam::{
    boot_e820_entry,
    boot_params,
    setup_header, //
};
use linux_loader::loader::{
    bzimage::BzImage,
    KernelLoader, //
};
use vm_memory::{
    Address,
    Bytes,
    GuestAddress,
    GuestMemory as _,
    GuestMemoryRegion, //
};

use crate::acpi;
use crate::memory::GuestMemory;

/// Guest physical address of `boot_params`, the "zero page".
const ZERO_PAGE: u64 = 0x7000;
/// Guest physical address of the command line.
const COMMAND_LINE: u64 = 0x2_0000;
/// Bytes set aside for the command line, its NUL included.
const COMMAND_LINE_ROOM: usize = 0x1_0000;
/// Where RAM ends below 1 MiB: what follows is the EBDA, the VGA window and the BIOS area on a PC.
const EBDA: u64 = 0x9_fc00;
/// Where the kernel goes: the start of extended memory.
const KERNEL: u64 = 0x10_0000;
/// The 64-bit entry point is this far into the kernel.
const ENTRY_64: u64 = 0x200;

/// `type_of_loader` of a loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;
/// `loadflags`: the segments are set up, and the heap may be used.
const CAN_USE_HEAP: u8 = 1 << 7;
/// `xloadflags`: the kernel has the 64-bit entry point.
const XLF_KERNEL_64: u16 = 1 << 0;
/// First version of the protocol with `xloadflags`.
const VERSION_XLOADFLAGS: u16 = 0x020c;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// The kernel's command line: what the tool says of the machine, before anything that the user
/// adds.
///
/// The rate of the TSC cannot be found out well in a guest, whose timers are late whenever the host
/// has other things to do; `tsc_khz` is what the device says of it. Nor can the guest check one
/// clock against another for the same reason, and needs not: `tsc=reliable` says so.
pub fn command_line(tsc_khz: Option<u32>, append: Option<&str>) -> String {
    let mut line = "console=ttyS0".to_string();
    if let Some(khz) = tsc_khz {
        line.push_str(&format!(" tsc=reliable tsc_early_khz={khz}"));
    }
    if let Some(append) = append {
        line.push(' ');
        line.push_str(append);
    }
    line
}

/// Loads kernel, initial RAM disk and command line into `memory`; returns the registers to start
/// with.
pub fn load(
    memory: &GuestMemory,
    kernel: &Path,
    initrd: Option<&Path>,
    command_line: &str,
) -> Result<kvm_regs> {
    let name = kernel.display();
    let mut image = File::open(kernel).with_context(|| format!("{name}"))?;
    let loaded =
        BzImage::load(memory, Some(GuestAddress(KERNEL)), &mut image, None).with_context(|| {
            format!("{name}: not a bzImage, or too large for the guest's memory (--mem)")
        })?;
    let mut header = loaded
        .setup_header
        .with_context(|| format!("{name}: no setup header"))?;
    if header.version < VERSION_XLOADFLAGS || header.xloadflags & XLF_KERNEL_64 == 0 {
        bail!("{name}: not a 64-bit kernel");
    }
    let kernel_end = KERNEL + u64::from(header.init_size).max(loaded.kernel_end - KERNEL);
    if let Some(initrd) = initrd {
        load_initrd(memory, &mut header, kernel_end, initrd)?;
    }
    write_command_line(memory, &mut header, command_line)?;
    header.type_of_loader = LOADER_UNDEFINED;
    header.loadflags |= CAN_USE_HEAP;
    let parameters = boot_parameters(memory, header)?;
    memory
        .write_obj(Wire(parameters), GuestAddress(ZERO_PAGE))
        .context("guest memory is too small")?;
    Ok(kvm_regs {
        rip: KERNEL + ENTRY_64,
        rsi: ZERO_PAGE,
        rsp: ZERO_PAGE,
        ..Default::default()
    })
}

/// Puts the initial RAM disk as high as the kernel allows.
fn load_initrd(
    memory: &GuestMemory,
    header: &mut setup_header,
    kernel_end: u64,
    path: &Path,
) -> Result<()> {
    let name = path.display();
    let mut content = Vec::new();
    File::open(path)
        .and_then(|mut file| file.read_to_end(&mut content))
        .with_context(|| format!("{name}"))?;
    let low_ram = memory.iter().next().map_or(0, |region| region.len());
    let top = low_ram.min(u64::from(header.initrd_addr_max) + 1);
    let start = top
        .checked_sub(content.len() as u64)
        .map(|start| start & !0xfff)
        .filter(|start| *start >= kernel_end);
    let Some(start) = start else {
        bail!(
            "{name}: no room for {} KiB above the kernel: use a larger --mem",
            content.len() >> 10
        );
    };
    memory
        .write_slice(&content, GuestAddress(start))
        .with_context(|| format!("{name}"))?;
    // Both fit: `start` and the length are below `initrd_addr_max`, which is 32 bits wide.
    header.ramdisk_image = u32::try_from(start)?;
    header.ramdisk_size = u32::try_from(content.len())?;
    Ok(())
}

fn write_command_line(
    memory: &GuestMemory,
    header: &mut setup_header,
    line: &str,
) -> Result<()> {
    let most = (header.cmdline_size as usize).min(COMMAND_LINE_ROOM - 1);
    if line.len() > most {
        bail!(
            "the kernel takes a command line of {most} bytes, this one has {}: shorten --append",
            line.len()
        );
    }
    let terminated = [line.as_bytes(), b"\0"].concat();
    memory
        .write_slice(&terminated, GuestAddress(COMMAND_LINE))
        .context("guest memory is too small")?;
    header.cmd_line_ptr = COMMAND_LINE as u32;
    Ok(())
}

fn boot_parameters(memory: &GuestMemory, header: setup_header) -> Result<boot_params> {
    let mut parameters = boot_params {
        hdr: header,
        acpi_rsdp_addr: acpi::RSDP,
        ..Default::default()
    };
    let map = memory_map(memory);
    parameters.e820_entries = u8::try_from(map.len())?;
    parameters.e820_table[..map.len()].copy_from_slice(&map);
    Ok(parameters)
}

/// The memory map of the guest (zero-page.rst, `e820_table`).
fn memory_map(memory: &GuestMemory) -> Vec<boot_e820_entry> {
    let entry = |addr, end: u64, type_| boot_e820_entry {
        addr,
        size: end - addr,
        type_,
    };
    let mut map = vec![
        entry(0, EBDA, E820_RAM),
        entry(acpi::RSDP, acpi::END, E820_RESERVED),
    ];
    for region in memory.iter() {
        // The first region has everything below 1 MiB in it, which the two entries above describe.
        let start = region.start_addr().raw_value().max(KERNEL);
        let end = region.start_addr().raw_value() + region.len();
        if end > start {
            map.push(entry(start, end, E820_RAM));
        }
    }
    map
}

/// `boot_params` as it is written to guest memory.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
struct Wire(boot_params);

// SAFETY: `boot_params` is a packed structure of integers and arrays of such: any bytes are a value
// of it, and it has no padding.
unsafe impl vm_memory::ByteValued for Wire {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A kernel of `body` bytes that has nothing but a header.
    fn image(name: &str, body: usize) -> Result<std::path::PathBuf> {
        let mut bytes = vec![0_u8; 1024 + body];
        bytes[0x1f1] = 1; // setup_sects
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
        bytes[0x211] = 1; // loadflags: LOADED_HIGH
        bytes[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes()); // initrd_addr_max
        bytes[0x236] = 1; // xloadflags: 64-bit
        bytes[0x238..0x23c].copy_from_slice(&2047_u32.to_le_bytes()); // cmdline_size
        bytes[0x260..0x264].copy_from_slice(&0x20_0000_u32.to_le_bytes()); // init_size
        write_file(name, &bytes)
    }

    fn write_file(name: &str, bytes: &[u8]) -> Result<std::path::PathBuf> {
        let path = std::env::temp_dir().join(format!("xvm-tool-{}-{name}", std::process::id()));
        File::create(&path)?.write_all(bytes)?;
        Ok(path)
    }

    #[test]
    fn a_kernel_is_placed_by_the_protocol() -> Result<()> {
        let memory = crate::memory::allocate(16 << 20)?;
        let kernel = image("kernel", 512)?;
        let initrd = write_file("initrd", &[0x5a; 5000])?;
        let regs = load(&memory, &kernel, Some(&initrd), "console=ttyS0 quiet")?;
        assert_eq!((regs.rip, regs.rsi), (0x10_0200, 0x7000));
        let parameters: Wire = memory.read_obj(GuestAddress(ZERO_PAGE))?;
        let header = parameters.0.hdr;
        let (address, size) = (header.ramdisk_image, header.ramdisk_size);
        assert_eq!((address, size), ((16 << 20) - 8192, 5000));
        assert_eq!(
            memory.read_obj::<u8>(GuestAddress(u64::from(address)))?,
            0x5a
        );
        let mut line = [0; 20];
        memory.read_slice(&mut line, GuestAddress(u64::from(header.cmd_line_ptr)))?;
        assert_eq!(&line, b"console=ttyS0 quiet\0");
        Ok(())
    }

    #[test]
    fn the_user_s_part_of_the_command_line_is_last() {
        assert_eq!(command_line(None, None), "console=ttyS0");
        assert_eq!(
            command_line(Some(2_000_000), Some("quiet")),
            "console=ttyS0 tsc=reliable tsc_early_khz=2000000 quiet"
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() -> Result<()> {
        let memory = crate::memory::allocate(4 << 20)?;
        let kernel = image("small", 512)?;
        let initrd = write_file("large-initrd", &vec![0; 3 << 20])?;
        assert!(load(&memory, &kernel, Some(&initrd), "").is_err());
        assert!(load(&memory, &kernel, None, &"x".repeat(2048)).is_err());
        assert!(load(&memory, &image("large", 8 << 20)?, None, "").is_err());
        assert!(load(&memory, &initrd, None, "").is_err());
        Ok(())
    }

    #[test]
    fn the_memory_map_has_no_overlap() -> Result<()> {
        let map = memory_map(&crate::memory::allocate(4 << 30)?);
        let ends: Vec<_> = map
            .iter()
            .map(|entry| (entry.addr, entry.addr + entry.size))
            .collect();
        assert!(ends.windows(2).all(|pair| pair[0].1 <= pair[1].0));
        assert_eq!(ends.last(), Some(&(1 << 32, 5 << 30)));
        Ok(())
    }
}
