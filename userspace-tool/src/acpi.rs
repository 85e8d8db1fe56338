//! The ACPI tables of the guest: CPUs and IOAPIC, power-off, reset, PM timer (ACPI specification
//! 6.5, chapter 5).

use anyhow::{
    Context,
    Result, //
};
use vm_memory::{
    Bytes,
    GuestAddress, //
};

use crate::memory::GuestMemory;

/// Guest physical address of the RSDP, where a BIOS would have it; the other tables follow.
pub const RSDP: u64 = 0xe_0000;
/// End of the area that tables may take.
pub const END: u64 = 0x10_0000;

/// I/O ports of the fixed hardware: PM1a status and enable, PM1a control, PM timer.
pub const PM1A_EVENT: u16 = 0x600;
pub const PM1A_CONTROL: u16 = 0x604;
pub const PM_TIMER: u16 = 0x608;
/// The reset register and the value that resets.
pub const RESET: u16 = 0xcf9;
pub const RESET_VALUE: u8 = 0x06;
/// `SLP_TYP` of S5, as the DSDT tells it.
pub const SLEEP_TYPE_S5: u16 = 5;

/// Where the interrupt controllers are, as KVM_CREATE_IRQCHIP makes them.
const LAPIC: u32 = 0xfee0_0000;
const IOAPIC: u32 = 0xfec0_0000;
/// The system control interrupt, level-triggered; nothing raises it.
const SCI: u16 = 9;

/// `DefinitionBlock { Name (\_S5, Package () { 5, 0, 0, 0 }) }` (sections 20.2.5.1 and 20.2.5.4).
const DSDT_BODY: [u8; 13] = [
    0x08,
    b'_',
    b'S',
    b'5',
    b'_',
    0x12,
    0x07,
    0x04,
    0x0a,
    SLEEP_TYPE_S5 as u8,
    0x00,
    0x00,
    0x00,
];

// FADT fields (section 5.2.9).
const FADT_LENGTH: usize = 276;
/// IAPC_BOOT_ARCH: there are legacy devices, there is no VGA; no 8042 flag, so that Linux does not
/// look for a keyboard.
const BOOT_ARCH: u16 = (1 << 0) | (1 << 2);
/// WBINVD works, C1 on all CPUs, no fixed power or sleep button, 32-bit PM timer, reset register.
const FADT_FLAGS: u32 = (1 << 0) | (1 << 2) | (1 << 4) | (1 << 5) | (1 << 8) | (1 << 10);

/// Writes all tables for `cpus` CPUs.
pub fn write(memory: &GuestMemory, cpus: u8) -> Result<()> {
    let facs_at = RSDP + 0x40;
    let dsdt_at = facs_at + 0x40;
    let dsdt = table(b"DSDT", 2, &DSDT_BODY);
    let fadt_at = align(dsdt_at + dsdt.len() as u64);
    let fadt = fadt(facs_at, dsdt_at);
    let madt_at = align(fadt_at + fadt.len() as u64);
    let madt = madt(cpus);
    let xsdt_at = align(madt_at + madt.len() as u64);
    let xsdt = table(
        b"XSDT",
        1,
        &[fadt_at.to_le_bytes(), madt_at.to_le_bytes()].concat(),
    );
    let parts = [
        (RSDP, rsdp(xsdt_at)),
        (facs_at, facs()),
        (dsdt_at, dsdt),
        (fadt_at, fadt),
        (madt_at, madt),
        (xsdt_at, xsdt),
    ];
    for (address, bytes) in parts {
        memory
            .write_slice(&bytes, GuestAddress(address))
            .context("guest memory is too small for the ACPI tables")?;
    }
    Ok(())
}

fn align(address: u64) -> u64 {
    address.next_multiple_of(16)
}

/// The byte that makes `bytes` add up to 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0_u8, |sum, byte| sum.wrapping_add(*byte))
        .wrapping_neg()
}

/// A table with its header (section 5.2.6).
fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(36 + body.len());
    bytes.extend(signature);
    bytes.extend((36 + body.len() as u32).to_le_bytes());
    bytes.extend([revision, 0]);
    bytes.extend(b"XVM   XVMTOOL ");
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(b"XVM ");
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(body);
    bytes[9] = checksum(&bytes);
    bytes
}

/// Root System Description Pointer (section 5.2.5.3), with one checksum over its first 20 bytes and
/// one over all.
fn rsdp(xsdt: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(36);
    bytes.extend(b"RSD PTR \0XVM   \x02");
    bytes.extend(0_u32.to_le_bytes());
    bytes.extend(36_u32.to_le_bytes());
    bytes.extend(xsdt.to_le_bytes());
    bytes.extend([0; 4]);
    bytes[8] = checksum(&bytes[..20]);
    bytes[32] = checksum(&bytes);
    bytes
}

/// Firmware ACPI Control Structure (section 5.2.10): no waking vector, no lock taken.
fn facs() -> Vec<u8> {
    let mut bytes = vec![0; 64];
    bytes[0..4].copy_from_slice(b"FACS");
    bytes[4] = 64;
    bytes[32] = 2;
    bytes
}

/// Generic address of an I/O port (section 5.2.3.2): `width` bits, accessed in units of that width.
fn io_address(port: u16, width: u8) -> [u8; 12] {
    let access_size = (width / 8).trailing_zeros() as u8 + 1;
    let [low, high] = port.to_le_bytes();
    [1, width, 0, access_size, low, high, 0, 0, 0, 0, 0, 0]
}

/// Fixed ACPI Description Table (section 5.2.9).
fn fadt(facs: u64, dsdt: u64) -> Vec<u8> {
    let mut bytes = vec![0; FADT_LENGTH];
    let mut put =
        |offset: usize, field: &[u8]| bytes[offset..offset + field.len()].copy_from_slice(field);
    put(36, &(facs as u32).to_le_bytes());
    put(40, &(dsdt as u32).to_le_bytes());
    put(46, &SCI.to_le_bytes());
    put(56, &u32::from(PM1A_EVENT).to_le_bytes());
    put(64, &u32::from(PM1A_CONTROL).to_le_bytes());
    put(76, &u32::from(PM_TIMER).to_le_bytes());
    put(88, &[4, 2, 0, 4]); // lengths of PM1 event, PM1 control, PM2 control, PM timer
    put(96, &0xffff_u16.to_le_bytes()); // P_LVL2_LAT: no C2
    put(98, &0xffff_u16.to_le_bytes()); // P_LVL3_LAT: no C3
    put(108, &[0x32]); // CENTURY: where the CMOS clock keeps it
    put(109, &BOOT_ARCH.to_le_bytes());
    put(112, &FADT_FLAGS.to_le_bytes());
    put(116, &io_address(RESET, 8));
    put(128, &[RESET_VALUE]);
    put(131, &[5]); // FADT minor version
    put(140, &dsdt.to_le_bytes());
    put(148, &io_address(PM1A_EVENT, 32));
    put(172, &io_address(PM1A_CONTROL, 16));
    put(208, &io_address(PM_TIMER, 32));
    table(b"FACP", 6, &bytes[36..])
}

/// Multiple APIC Description Table (section 5.2.12).
fn madt(cpus: u8) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(LAPIC.to_le_bytes());
    // PCAT_COMPAT: an 8259 pair is there as well.
    body.extend(1_u32.to_le_bytes());
    // Processor local APIC: UID, APIC ID, enabled.
    for cpu in 0..cpus {
        body.extend([0, 8, cpu, cpu, 1, 0, 0, 0]);
    }
    // I/O APIC with ID 0, its address, its first GSI.
    body.extend([1, 12, 0, 0]);
    body.extend(IOAPIC.to_le_bytes());
    body.extend(0_u32.to_le_bytes());
    // GSI 0 to 15 are the ISA interrupts, edge-triggered; the SCI alone is active high, level.
    body.extend([2, 10, 0, SCI as u8, SCI as u8, 0, 0, 0, 0x0d, 0]);
    // LINT1 of all CPUs is NMI.
    body.extend([4, 6, 0xff, 0, 0, 1]);
    table(b"APIC", 5, &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn read(memory: &GuestMemory, address: u64, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        memory.read_slice(&mut bytes, GuestAddress(address))?;
        Ok(bytes)
    }

    fn pointer(bytes: &[u8]) -> u64 {
        bytes
            .iter()
            .rev()
            .fold(0, |value, byte| (value << 8) | u64::from(*byte))
    }

    fn read_table(memory: &GuestMemory, address: u64, signature: &[u8]) -> Result<Vec<u8>> {
        let header = read(memory, address, 8)?;
        assert_eq!(&header[..4], signature);
        let bytes = read(memory, address, pointer(&header[4..8]) as usize)?;
        assert_eq!(sum(&bytes), 0);
        assert!(address + bytes.len() as u64 <= END);
        Ok(bytes)
    }

    #[test]
    fn every_table_is_reached_and_adds_up() -> Result<()> {
        let memory = crate::memory::allocate(2 << 20)?;
        write(&memory, 255)?;
        let rsdp = read(&memory, RSDP, 36)?;
        assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
        let xsdt = read_table(&memory, pointer(&rsdp[24..32]), b"XSDT")?;
        let fadt = read_table(&memory, pointer(&xsdt[36..44]), b"FACP")?;
        let madt = read_table(&memory, pointer(&xsdt[44..52]), b"APIC")?;
        assert_eq!(fadt.len(), FADT_LENGTH);
        assert_eq!(madt.len(), 44 + 255 * 8 + 12 + 10 + 6);
        let dsdt = read_table(&memory, pointer(&fadt[140..148]), b"DSDT")?;
        assert_eq!(pointer(&fadt[40..44]), pointer(&fadt[140..148]));
        // The package's length counts from its own length byte to the end of the table.
        assert_eq!(usize::from(dsdt[36 + 6]), dsdt.len() - (36 + 6));
        let facs = pointer(&fadt[36..40]);
        assert_eq!((facs % 64, &read(&memory, facs, 4)?[..]), (0, &b"FACS"[..]));
        Ok(())
    }

    #[test]
    fn ports_are_given_in_their_own_width() {
        assert_eq!(io_address(PM1A_CONTROL, 16)[..6], [1, 16, 0, 2, 0x04, 0x06]);
        assert_eq!(io_address(RESET, 8)[3], 1);
        assert_eq!(io_address(PM_TIMER, 32)[3], 3);
    }
}
