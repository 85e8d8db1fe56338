// SPDX-License-Identifier: GPL-2.0

//! Guest linear address → guest-physical address (Intel SDM vol. 3, chapter 4; AMD APM vol. 2, chapter 5).
//!
//! No paging, 32-bit paging with PSE-36, PAE paging and 4-level paging. There is no LA57 and no protection key.

use super::super::vectors::PAGE_FAULT;
use super::machine::Fault;

const CR0_WP: u64 = 1 << 16;
const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;
const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;

/// Bits of a paging-structure entry.
const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;

/// Bits of a page-fault error code (Intel SDM vol. 3, 4.7).
const ERROR_PRESENT: u32 = 1 << 0;
const ERROR_WRITE: u32 = 1 << 1;
const ERROR_USER: u32 = 1 << 2;
const ERROR_RESERVED: u32 = 1 << 3;
const ERROR_FETCH: u32 = 1 << 4;

/// How often a walk starts again because another CPU changed an entry that was about to be marked accessed.
const MAX_RESTARTS: usize = 16;

/// Access to the guest's paging structures.
pub trait TableAccess {
    /// Why an entry can't be accessed: it is not in memory, say.
    type Error;

    /// Reads an entry of `size` (4 or 8) bytes.
    fn read(&mut self, gpa: u64, size: u8) -> Result<u64, Self::Error>;

    /// Replaces an entry of `size` bytes if it is still `old`, atomically; tells whether it was. For a table in
    /// read-only memory it does nothing and returns true.
    fn compare_exchange(
        &mut self,
        gpa: u64,
        size: u8,
        old: u64,
        new: u64,
    ) -> Result<bool, Self::Error>;
}

/// The registers that rule translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paging {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// The four PDPTE registers of PAE paging; `None` where the entries are read from memory in each walk (AMD APM
    /// vol. 2, 15.25.10).
    pub pdptes: Option<[u64; 4]>,
    /// Width of a physical address, in bits.
    pub maxphyaddr: u8,
    /// Whether the guest has 1 GiB pages.
    pub gigabyte_pages: bool,
}

/// What is done at the address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// A write.
    pub write: bool,
    /// An instruction fetch.
    pub fetch: bool,
    /// With CPL 3, and not an implicit access.
    pub user: bool,
    /// Made by the CPU for itself: descriptor tables, task state.
    pub implicit: bool,
    /// RFLAGS.AC.
    pub ac: bool,
}

/// Where an address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Guest-physical address.
    pub gpa: u64,
    /// Bytes in the page that maps it.
    pub page_size: u64,
    /// R/W of all levels.
    pub writable: bool,
    /// U/S of all levels.
    pub user: bool,
}

impl Translation {
    fn new(frame: u64, page_size: u64, linear: u64, rights: u64) -> Self {
        Translation {
            gpa: frame | linear & (page_size - 1),
            page_size,
            writable: rights & WRITABLE != 0,
            user: rights & USER != 0,
        }
    }

    /// Without paging a linear address, of 32 bits, is the physical one.
    fn identity(linear: u64) -> Self {
        Translation::new(linear & 0xffff_f000, 4096, linear, WRITABLE | USER)
    }
}

/// Why there is no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError<E> {
    /// #PF.
    Fault(Fault),
    /// An entry can't be accessed.
    Table(E),
    /// Entries kept changing under the walk. To be tried again later.
    Contended,
}

/// Translates `linear`, which is canonical, for `access`; marks entries accessed and dirty.
pub fn walk<T: TableAccess>(
    tables: &mut T,
    paging: &Paging,
    linear: u64,
    access: Access,
) -> Result<Translation, WalkError<T::Error>> {
    for _ in 0..MAX_RESTARTS {
        let (translation, path) = look_up(tables, paging, linear, access)?;
        if mark(tables, &path, access.write).map_err(WalkError::Table)? {
            return Ok(translation);
        }
    }
    Err(WalkError::Contended)
}

/// As [`walk()`], but changes no entry.
pub fn inspect<T: TableAccess>(
    tables: &mut T,
    paging: &Paging,
    linear: u64,
    access: Access,
) -> Result<Translation, WalkError<T::Error>> {
    look_up(tables, paging, linear, access).map(|(translation, _)| translation)
}

/// An entry on the way to a page.
#[derive(Clone, Copy)]
struct Step {
    gpa: u64,
    size: u8,
    entry: u64,
    leaf: bool,
}

/// The entries on the way, that of level 1 first. What has no accessed flag is left out.
type Path = [Option<Step>; 4];

/// Sets accessed and dirty flags. Returns false if an entry has changed meanwhile.
fn mark<T: TableAccess>(tables: &mut T, path: &Path, write: bool) -> Result<bool, T::Error> {
    for step in path.iter().rev().flatten() {
        let dirty = if write && step.leaf { DIRTY } else { 0 };
        let marked = step.entry | ACCESSED | dirty;
        if marked != step.entry
            && !tables.compare_exchange(step.gpa, step.size, step.entry, marked)?
        {
            return Ok(false);
        }
    }
    Ok(true)
}

fn look_up<T: TableAccess>(
    tables: &mut T,
    paging: &Paging,
    linear: u64,
    access: Access,
) -> Result<(Translation, Path), WalkError<T::Error>> {
    let mut path: Path = [None; 4];
    let Some(format) = Format::of(paging) else {
        return Ok((Translation::identity(linear), path));
    };
    let linear = format.linear(linear);
    let fault = |cause| WalkError::Fault(page_fault(paging, linear, access, cause));
    let mut level = format.levels();
    let mut table = format.root(paging);
    let mut rights = WRITABLE | USER;
    loop {
        let size = format.entry_size();
        let gpa = table + format.index(linear, level) * u64::from(size);
        let entry = match paging.pdptes {
            Some(pdptes) if !format.has_rights(level) => pdptes[((linear >> 30) & 3) as usize],
            _ => tables.read(gpa, size).map_err(WalkError::Table)?,
        };
        if entry & PRESENT == 0 {
            return Err(fault(0));
        }
        let leaf = format.is_leaf(paging, level, entry);
        if entry & format.reserved(paging, level, leaf) != 0 {
            return Err(fault(ERROR_PRESENT | ERROR_RESERVED));
        }
        if format.has_rights(level) {
            rights = rights & entry | (rights | entry) & NO_EXECUTE;
            path[level as usize - 1] = Some(Step {
                gpa,
                size,
                entry,
                leaf,
            });
        }
        if !leaf {
            table = format.frame(paging, 1, entry);
            level -= 1;
        } else if is_permitted(paging, rights, access) {
            let frame = format.frame(paging, level, entry);
            let page_size = 1 << format.shift(level);
            return Ok((Translation::new(frame, page_size, linear, rights), path));
        } else {
            return Err(fault(ERROR_PRESENT));
        }
    }
}

/// Access rights (Intel SDM vol. 3, 4.6.1). NX is in `rights` only where EFER.NXE makes it a right: else it is
/// reserved.
fn is_permitted(paging: &Paging, rights: u64, access: Access) -> bool {
    let user_page = rights & USER != 0;
    if access.user && !user_page {
        return false;
    }
    let write_protected = rights & WRITABLE == 0 && (access.user || paging.cr0 & CR0_WP != 0);
    if access.write && write_protected {
        return false;
    }
    let supervisor_to_user = !access.user && user_page;
    if access.fetch {
        let smep = supervisor_to_user && paging.cr4 & CR4_SMEP != 0;
        rights & NO_EXECUTE == 0 && !smep
    } else {
        let smap = supervisor_to_user && paging.cr4 & CR4_SMAP != 0;
        !smap || access.ac && !access.implicit
    }
}

fn page_fault(paging: &Paging, linear: u64, access: Access, cause: u32) -> Fault {
    let mut error_code = cause;
    if access.write {
        error_code |= ERROR_WRITE;
    }
    if access.user {
        error_code |= ERROR_USER;
    }
    let nx = paging.cr4 & CR4_PAE != 0 && paging.efer & EFER_NXE != 0;
    if access.fetch && (nx || paging.cr4 & CR4_SMEP != 0) {
        error_code |= ERROR_FETCH;
    }
    Fault {
        vector: PAGE_FAULT,
        error_code: Some(error_code),
        address: Some(linear),
    }
}

/// The kind of paging structures.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Bits32,
    Pae,
    Level4,
}

impl Format {
    fn of(paging: &Paging) -> Option<Self> {
        if paging.cr0 & CR0_PG == 0 {
            None
        } else if paging.cr4 & CR4_PAE == 0 {
            Some(Format::Bits32)
        } else if paging.efer & EFER_LMA == 0 {
            Some(Format::Pae)
        } else {
            Some(Format::Level4)
        }
    }

    fn levels(self) -> u32 {
        match self {
            Format::Bits32 => 2,
            Format::Pae => 3,
            Format::Level4 => 4,
        }
    }

    fn entry_size(self) -> u8 {
        match self {
            Format::Bits32 => 4,
            _ => 8,
        }
    }

    /// The bits of an address that are translated.
    fn linear(self, linear: u64) -> u64 {
        match self {
            Format::Level4 => linear,
            _ => linear & 0xffff_ffff,
        }
    }

    fn root(self, paging: &Paging) -> u64 {
        match self {
            Format::Bits32 => paging.cr3 & 0xffff_f000,
            Format::Pae => paging.cr3 & 0xffff_ffe0,
            Format::Level4 => paging.cr3 & low_bits(paging.maxphyaddr.min(52)) & !0xfff,
        }
    }

    fn index_bits(self) -> u8 {
        match self {
            Format::Bits32 => 10,
            _ => 9,
        }
    }

    /// log2 of the bytes that an entry of `level` maps.
    fn shift(self, level: u32) -> u32 {
        12 + (level - 1) * u32::from(self.index_bits())
    }

    fn index(self, linear: u64, level: u32) -> u64 {
        (linear >> self.shift(level)) & low_bits(self.index_bits())
    }

    /// Whether entries of `level` have access rights and an accessed flag: PDPTEs of PAE paging have not.
    fn has_rights(self, level: u32) -> bool {
        !(self == Format::Pae && level == 3)
    }

    fn is_leaf(self, paging: &Paging, level: u32, entry: u64) -> bool {
        let large = match (self, level) {
            (_, 1) => return true,
            (Format::Bits32, 2) => paging.cr4 & CR4_PSE != 0,
            (_, 2) => true,
            (Format::Level4, 3) => paging.gigabyte_pages,
            _ => false,
        };
        large && entry & LARGE != 0
    }

    /// The address in an entry: of the page, if it is a leaf of `level`; of a table, as if it were one of level 1.
    fn frame(self, paging: &Paging, level: u32, entry: u64) -> u64 {
        let aligned = !low_bits(self.shift(level) as u8);
        match (self, level) {
            // PSE-36: bits 39:32 are in bits 20:13 (Intel SDM vol. 3, table 4-4).
            (Format::Bits32, 2) => entry & aligned | (((entry >> 13) & 0xff) << 32),
            _ => entry & aligned & low_bits(paging.maxphyaddr.min(52)),
        }
    }

    /// The reserved bits of an entry (Intel SDM vol. 3, tables 4-4 to 4-20).
    fn reserved(self, paging: &Paging, level: u32, leaf: bool) -> u64 {
        let nx = if paging.efer & EFER_NXE == 0 {
            NO_EXECUTE
        } else {
            0
        };
        let beyond_address = !low_bits(paging.maxphyaddr);
        let unaligned = if leaf {
            low_bits(self.shift(level) as u8) & !0x1fff
        } else {
            0
        };
        match (self, level) {
            (Format::Bits32, 2) if leaf => {
                let address_bits = low_bits(paging.maxphyaddr.clamp(32, 40) - 32);
                (1 << 21) | ((0xff & !address_bits) << 13)
            }
            (Format::Bits32, _) => 0,
            // QEMU's emulated CPUs set the accessed bit here too.
            (Format::Pae, 3) => beyond_address | 0x1c6,
            (Format::Pae, _) => beyond_address & !NO_EXECUTE | nx | unaligned,
            (Format::Level4, 4) => beyond_address & low_bits(52) | nx | LARGE,
            (Format::Level4, 3) if !paging.gigabyte_pages => {
                beyond_address & low_bits(52) | nx | LARGE
            }
            (Format::Level4, _) => beyond_address & low_bits(52) | nx | unaligned,
        }
    }
}

/// A mask of the low `count` bits.
fn low_bits(count: u8) -> u64 {
    1u64.checked_shl(u32::from(count))
        .map_or(u64::MAX, |bit| bit - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    const READ: Access = Access {
        write: false,
        fetch: false,
        user: false,
        implicit: false,
        ac: false,
    };
    const WRITE: Access = Access {
        write: true,
        ..READ
    };
    const FETCH: Access = Access {
        fetch: true,
        ..READ
    };
    const USER_READ: Access = Access { user: true, ..READ };
    const USER_WRITE: Access = Access {
        write: true,
        ..USER_READ
    };
    const ALL: u64 = PRESENT | WRITABLE | USER;
    const CR0_PE: u64 = 1;

    /// Entries by address; what is not there is not in memory.
    #[derive(Default)]
    struct Tables {
        entries: HashMap<u64, u64>,
        /// How many exchanges fail.
        contention: usize,
    }

    impl TableAccess for Tables {
        type Error = u64;

        fn read(&mut self, gpa: u64, _size: u8) -> Result<u64, u64> {
            self.entries.get(&gpa).copied().ok_or(gpa)
        }

        fn compare_exchange(
            &mut self,
            gpa: u64,
            _size: u8,
            old: u64,
            new: u64,
        ) -> Result<bool, u64> {
            if self.contention > 0 {
                self.contention -= 1;
                return Ok(false);
            }
            let entry = self.entries.get_mut(&gpa).ok_or(gpa)?;
            let unchanged = *entry == old;
            if unchanged {
                *entry = new;
            }
            Ok(unchanged)
        }
    }

    fn tables(entries: &[(u64, u64)]) -> Tables {
        Tables {
            entries: entries.iter().copied().collect(),
            contention: 0,
        }
    }

    fn paging(cr4: u64, efer: u64) -> Paging {
        Paging {
            cr0: CR0_PG | CR0_PE,
            cr3: 0x1000,
            cr4,
            efer,
            pdptes: None,
            maxphyaddr: 40,
            gigabyte_pages: true,
        }
    }

    fn long_mode() -> Paging {
        paging(CR4_PAE, EFER_LMA | EFER_NXE)
    }

    /// 4-level tables that map one 4 KiB page, with the rights of each level from the leaf up.
    const LINEAR: u64 = 0xffff_8123_4567_89ab;
    const LEAF: u64 = 0x4000 + ((LINEAR >> 12) & 0x1ff) * 8;

    fn one_page(rights: [u64; 4]) -> Tables {
        tables(&[
            (0x1000 + ((LINEAR >> 39) & 0x1ff) * 8, 0x2000 | rights[3]),
            (0x2000 + ((LINEAR >> 30) & 0x1ff) * 8, 0x3000 | rights[2]),
            (0x3000 + ((LINEAR >> 21) & 0x1ff) * 8, 0x4000 | rights[1]),
            (LEAF, 0x77_7777_7000 | rights[0]),
        ])
    }

    /// The error code of the page fault, if that is the outcome.
    fn error_code<T: core::fmt::Debug>(result: Result<T, WalkError<u64>>) -> Option<u32> {
        match result {
            Err(WalkError::Fault(fault)) => fault.error_code,
            _ => None,
        }
    }

    #[test]
    fn without_paging_the_address_is_cut_to_32_bits() {
        let paging = Paging {
            cr0: CR0_PE,
            ..paging(0, 0)
        };
        let found = walk(&mut tables(&[]), &paging, 0x1_2345_6789, WRITE).unwrap();
        assert_eq!(found.gpa, 0x2345_6789);
    }

    #[test]
    fn four_levels_mark_what_they_use() {
        let mut memory = one_page([ALL; 4]);
        let found = walk(&mut memory, &long_mode(), LINEAR, READ).unwrap();
        assert_eq!(
            found,
            Translation {
                gpa: 0x77_7777_79ab,
                page_size: 4096,
                writable: true,
                user: true
            }
        );
        assert!(memory.entries.values().all(|e| e & ACCESSED != 0));
        assert_eq!(memory.entries[&LEAF] & DIRTY, 0);
        walk(&mut memory, &long_mode(), LINEAR, WRITE).unwrap();
        let dirty = memory.entries.values().filter(|&e| e & DIRTY != 0).count();
        assert_eq!((dirty, memory.entries[&LEAF] & DIRTY), (1, DIRTY));
    }

    #[test]
    fn cr3_holds_more_than_an_address() {
        let with_pcid = Paging {
            cr3: (1 << 63) | (1 << 45) | 0x1fff,
            ..long_mode()
        };
        let mut memory = one_page([ALL; 4]);
        assert!(walk(&mut memory, &with_pcid, LINEAR, READ).is_ok());
    }

    #[test]
    fn inspecting_and_faulting_mark_nothing() {
        let mut memory = one_page([ALL, ALL, ALL, PRESENT | WRITABLE]);
        let found = inspect(&mut memory, &long_mode(), LINEAR, WRITE).unwrap();
        assert!(found.writable && !found.user);
        let refused = walk(&mut memory, &long_mode(), LINEAR, USER_READ);
        assert_eq!(error_code(refused), Some(ERROR_PRESENT | ERROR_USER));
        let marks = ACCESSED | DIRTY;
        assert!(memory.entries.values().all(|e| e & marks == 0));
    }

    #[test]
    fn large_pages_keep_the_low_bits() {
        let pml4e = (0x1000, 0x2000 | ALL);
        let mut memory = tables(&[pml4e, (0x2008, 0x40_0000_0000 | LARGE | ALL)]);
        let found = walk(&mut memory, &long_mode(), 0x7654_3210, READ).unwrap();
        assert_eq!((found.gpa, found.page_size), (0x40_3654_3210, 1 << 30));
        let mut memory = tables(&[
            pml4e,
            (0x2008, 0x3000 | ALL),
            (0x3000 + 0x1b2 * 8, 0x20_0000 | LARGE | ALL),
        ]);
        let found = walk(&mut memory, &long_mode(), 0x7654_3210, READ).unwrap();
        assert_eq!((found.gpa, found.page_size), (0x34_3210, 2 << 20));
    }

    #[test]
    fn reserved_bits_fault() {
        let reserved = Some(0b1001);
        let no_gigabyte_pages = Paging {
            gigabyte_pages: false,
            ..long_mode()
        };
        let no_nx = paging(CR4_PAE, EFER_LMA);
        let cases = [
            (long_mode(), [ALL | (1 << 40), ALL, ALL, ALL], reserved),
            (long_mode(), [ALL | (1 << 51), ALL, ALL, ALL], reserved),
            (long_mode(), [ALL | (1 << 52), ALL, ALL, ALL], None),
            (
                long_mode(),
                [ALL, ALL | LARGE | (1 << 13), ALL, ALL],
                reserved,
            ),
            (
                long_mode(),
                [ALL, ALL, ALL | LARGE | (1 << 29), ALL],
                reserved,
            ),
            (long_mode(), [ALL, ALL, ALL, ALL | LARGE], reserved),
            (no_gigabyte_pages, [ALL, ALL, ALL | LARGE, ALL], reserved),
            (no_nx, [ALL | NO_EXECUTE, ALL, ALL, ALL], reserved),
            (long_mode(), [ALL | NO_EXECUTE, ALL, ALL, ALL], None),
        ];
        for (paging, rights, expected) in cases {
            let result = walk(&mut one_page(rights), &paging, LINEAR, READ);
            assert_eq!(error_code(result), expected, "{rights:x?}");
        }
    }

    #[test]
    fn rights_are_those_of_all_levels() {
        const SUPERVISOR: u64 = PRESENT | WRITABLE;
        const READ_ONLY: u64 = PRESENT | USER;
        let write_protect = Paging {
            cr0: CR0_PG | CR0_PE | CR0_WP,
            ..long_mode()
        };
        let with = |bits| Paging {
            cr4: CR4_PAE | bits,
            ..long_mode()
        };
        let nx = ALL | NO_EXECUTE;
        let ac = Access { ac: true, ..READ };
        let implicit = Access {
            implicit: true,
            ..ac
        };
        let cases = [
            (long_mode(), [ALL, READ_ONLY, ALL, ALL], WRITE, None),
            (write_protect, [ALL, READ_ONLY, ALL, ALL], WRITE, Some(3)),
            (long_mode(), [ALL, ALL, READ_ONLY, ALL], USER_WRITE, Some(7)),
            (long_mode(), [ALL, ALL, ALL, SUPERVISOR], USER_READ, Some(5)),
            (long_mode(), [ALL, ALL, ALL, nx], FETCH, Some(0x11)),
            (long_mode(), [ALL, ALL, ALL, nx], READ, None),
            (with(CR4_SMEP), [ALL; 4], FETCH, Some(0x11)),
            (with(CR4_SMEP), [SUPERVISOR, ALL, ALL, ALL], FETCH, None),
            (with(CR4_SMEP), [ALL; 4], READ, None),
            (with(CR4_SMAP), [ALL; 4], READ, Some(1)),
            (with(CR4_SMAP), [ALL; 4], ac, None),
            (with(CR4_SMAP), [ALL; 4], implicit, Some(1)),
            (with(CR4_SMAP), [ALL; 4], USER_READ, None),
            (with(CR4_SMAP), [ALL; 4], FETCH, None),
        ];
        for (paging, rights, access, expected) in cases {
            let result = walk(&mut one_page(rights), &paging, LINEAR, access);
            assert_eq!(error_code(result), expected, "{rights:x?} {access:?}");
        }
    }

    #[test]
    fn absent_pages_tell_the_access_and_the_address() {
        let mut memory = one_page([0, ALL, ALL, ALL]);
        let result = walk(&mut memory, &long_mode(), LINEAR, USER_WRITE);
        let expected = Fault {
            vector: 14,
            error_code: Some(ERROR_WRITE | ERROR_USER),
            address: Some(LINEAR),
        };
        assert_eq!(result, Err(WalkError::Fault(expected)));
        let no_nx = paging(CR4_PAE, EFER_LMA);
        let result = walk(&mut memory, &no_nx, LINEAR, FETCH);
        assert_eq!(error_code(result), Some(0));
    }

    #[test]
    fn legacy_paging_has_4_mib_pages_with_36_bits() {
        let paging = paging(CR4_PSE, 0);
        let pde = 0x1000 + 0x3ff * 4;
        let mut memory = tables(&[(pde, 0x0080_0000 | (0x12 << 13) | LARGE | ALL)]);
        let found = walk(&mut memory, &paging, 0xffff_fffe, WRITE).unwrap();
        assert_eq!((found.gpa, found.page_size), (0x12_00bf_fffe, 4 << 20));
        memory.entries.insert(pde, (1 << 21) | LARGE | ALL);
        let result = walk(&mut memory, &paging, 0xffff_fffe, READ);
        assert_eq!(error_code(result), Some(ERROR_PRESENT | ERROR_RESERVED));
        let narrow = Paging {
            maxphyaddr: 36,
            ..paging
        };
        memory.entries.insert(pde, (1 << 17) | LARGE | ALL);
        let result = walk(&mut memory, &narrow, 0xffff_fffe, READ);
        assert_eq!(error_code(result), Some(ERROR_PRESENT | ERROR_RESERVED));
    }

    #[test]
    fn legacy_paging_without_pse_has_two_levels() {
        let mut memory = tables(&[(0x1004, 0x2000 | LARGE | ALL), (0x2008, 0x5000 | ALL)]);
        let found = walk(&mut memory, &paging(0, 0), 0x40_2345, READ).unwrap();
        assert_eq!((found.gpa, found.page_size), (0x5345, 4096));
    }

    #[test]
    fn pae_takes_its_pdptes_from_registers_or_memory() {
        let from_memory = Paging {
            cr3: 0x1020,
            ..paging(CR4_PAE, 0)
        };
        let mut memory = tables(&[
            (0x1038, 0x2000 | PRESENT),
            (0x2000, 0x20_0000 | LARGE | ALL),
            (0x3000, 0x40_0000 | LARGE | ALL),
        ]);
        let found = walk(&mut memory, &from_memory, 0xc000_0123, WRITE).unwrap();
        assert_eq!((found.gpa, found.page_size), (0x20_0123, 2 << 20));
        assert_eq!(memory.entries[&0x1038], 0x2000 | PRESENT);
        let from_registers = Paging {
            pdptes: Some([0, 0, 0, 0x3000 | PRESENT]),
            ..from_memory
        };
        let found = walk(&mut memory, &from_registers, 0xc000_0123, WRITE).unwrap();
        assert_eq!(found.gpa, 0x40_0123);
        let result = walk(&mut memory, &from_registers, 0x123, WRITE);
        assert_eq!(error_code(result), Some(ERROR_WRITE));
        memory.entries.insert(0x1038, 0x2000 | PRESENT | WRITABLE);
        let result = walk(&mut memory, &from_memory, 0xc000_0123, READ);
        assert_eq!(error_code(result), Some(ERROR_PRESENT | ERROR_RESERVED));
    }

    #[test]
    fn pae_reserves_all_bits_beyond_the_address() {
        let nxe = paging(CR4_PAE, EFER_NXE);
        let no_nxe = paging(CR4_PAE, 0);
        let reserved = Some(0b1001);
        let cases = [
            (nxe, ALL, None),
            (nxe, ALL | (1 << 39), None),
            (nxe, ALL | (1 << 40), reserved),
            (nxe, ALL | (1 << 62), reserved),
            (nxe, ALL | NO_EXECUTE, None),
            (no_nxe, ALL | NO_EXECUTE, reserved),
            (nxe, ALL | LARGE | (1 << 20), reserved),
        ];
        for (paging, pde, expected) in cases {
            let mut memory = tables(&[
                (0x1000, 0x2000 | PRESENT),
                (0x2000, 0x3000 | pde),
                (0x3000, ALL),
                (0x80_0000_3000, ALL),
            ]);
            let result = walk(&mut memory, &paging, 0, READ);
            assert_eq!(error_code(result), expected, "{pde:x}");
            memory.entries.insert(0x2000, 0x3000 | ALL);
            memory.entries.insert(0x3000, pde & !LARGE);
            let result = walk(&mut memory, &paging, 0, READ);
            let expected = expected.filter(|_| pde & LARGE == 0);
            assert_eq!(error_code(result), expected, "{pde:x}");
        }
    }

    #[test]
    fn tables_outside_of_memory_are_reported() {
        let mut memory = tables(&[(0x1000, 0xdead_b000 | ALL)]);
        let result = walk(&mut memory, &long_mode(), 0, READ);
        assert_eq!(result, Err(WalkError::Table(0xdead_b000)));
    }

    #[test]
    fn contention_restarts_the_walk_but_not_for_ever() {
        let mut memory = one_page([ALL; 4]);
        memory.contention = 3;
        assert!(walk(&mut memory, &long_mode(), LINEAR, WRITE).is_ok());
        let mut memory = one_page([ALL; 4]);
        memory.contention = usize::MAX;
        let result = walk(&mut memory, &long_mode(), LINEAR, WRITE);
        assert_eq!(result, Err(WalkError::Contended));
    }
}
