//! What the first vCPU starts from: GDT, page tables, registers.
//!
//! Plain values; putting them into a vCPU is `vmm`'s.

use crate::layout::{BOOT_PARAMS_START, GDT_START, PAGE_SIZE, PAGE_TABLES_START, STACK_TOP, START_INFO_START};

/// `__BOOT_CS` of the Linux boot protocol.
const CODE_SELECTOR: u16 = 0x10;
/// `__BOOT_DS`.
const DATA_SELECTOR: u16 = 0x18;
// Descriptors (SDM vol. 3, 3.4.5): present, ring 0, accessed, base 0, limit 4 GiB in pages.
const CODE_64: u64 = 0x00af_9b00_0000_ffff;
const CODE_32: u64 = 0x00cf_9b00_0000_ffff;
const DATA: u64 = 0x00cf_9300_0000_ffff;

// Page-table entries (SDM vol. 3, 4.5.4).
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;
const ENTRIES: u64 = 512;
const LARGE_PAGE_SIZE: u64 = 2 << 20;
/// Page directories: one a GiB.
const DIRECTORIES: u64 = 4;

/// A global descriptor table, in guest memory and here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gdt {
    /// Guest-physical (and linear) address.
    pub base: u64,
    /// Last valid byte.
    pub limit: u16,
    /// The descriptors; the first is null.
    pub entries: Vec<u64>,
    /// Selector for CS.
    pub code: u16,
    /// Selector for DS, ES, FS, GS and SS.
    pub data: u16,
}

/// The processor mode to start in; interrupts are off in each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CpuMode {
    /// 64-bit mode with paging: the first 4 GiB are mapped at their own addresses.
    Long {
        /// Physical address of the PML4.
        cr3: u64,
        /// Segments.
        gdt: Gdt,
    },
    /// 32-bit protected mode without paging.
    Protected {
        /// Segments.
        gdt: Gdt,
    },
}

/// Registers of the first vCPU; those not named are 0, RFLAGS 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuState {
    /// First instruction.
    pub rip: u64,
    /// Stack, 16-byte aligned.
    pub rsp: u64,
    /// Address of `boot_params` for the Linux entry.
    pub rsi: u64,
    /// Address of `hvm_start_info` for the PVH entry.
    pub rbx: u64,
    /// Mode, with what it needs.
    pub mode: CpuMode,
}

impl CpuState {
    /// For the 64-bit Linux entry.
    pub(crate) fn linux(entry: u64) -> CpuState {
        let mode = CpuMode::Long { cr3: PAGE_TABLES_START, gdt: gdt(CODE_64) };
        CpuState { rip: entry, rsp: STACK_TOP, rsi: BOOT_PARAMS_START, rbx: 0, mode }
    }

    /// For the PVH entry.
    pub(crate) fn pvh(entry: u64) -> CpuState {
        let mode = CpuMode::Protected { gdt: gdt(CODE_32) };
        CpuState { rip: entry, rsp: STACK_TOP, rsi: 0, rbx: START_INFO_START, mode }
    }

    /// The segments, whatever the mode.
    pub fn gdt(&self) -> &Gdt {
        match &self.mode {
            CpuMode::Long { gdt, .. } | CpuMode::Protected { gdt } => gdt,
        }
    }
}

fn gdt(code: u64) -> Gdt {
    let entries = vec![0, 0, code, DATA];
    let limit = (size_of::<u64>() * entries.len() - 1) as u16;
    Gdt { base: GDT_START, limit, entries, code: CODE_SELECTOR, data: DATA_SELECTOR }
}

/// The six pages at [`PAGE_TABLES_START`], with their addresses: PML4, PDPT, and directories of 2 MiB pages for the first
/// 4 GiB. One at a time, so that they take no other memory than the guest's.
pub(crate) fn page_tables() -> impl Iterator<Item = (u64, [u8; PAGE_SIZE as usize])> {
    let table = |n: u64| PAGE_TABLES_START + n * PAGE_SIZE;
    (0..2 + DIRECTORIES).map(move |page| {
        let entry = |slot: u64| match page {
            0 if slot == 0 => table(1) | PRESENT_WRITABLE,
            1 if slot < DIRECTORIES => table(2 + slot) | PRESENT_WRITABLE,
            0 | 1 => 0,
            directory => (((directory - 2) * ENTRIES + slot) * LARGE_PAGE_SIZE) | LARGE_PAGE | PRESENT_WRITABLE,
        };
        let mut bytes = [0; PAGE_SIZE as usize];
        for (bytes, slot) in bytes.chunks_exact_mut(size_of::<u64>()).zip(0..) {
            bytes.copy_from_slice(&entry(slot).to_le_bytes());
        }
        (table(page), bytes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_4_gib_are_mapped_at_their_own_addresses() {
        let pages: std::collections::BTreeMap<_, _> = page_tables().collect();
        let entry = |table: u64, slot: u64| {
            let at = (slot * 8) as usize;
            u64::from_le_bytes(pages[&table][at..at + 8].try_into().unwrap())
        };
        let next = |entry: u64| {
            assert_eq!(entry & 0xfff, PRESENT_WRITABLE);
            entry & !0xfff
        };
        for address in (0..4 << 30).step_by(LARGE_PAGE_SIZE as usize) {
            let directories = next(entry(PAGE_TABLES_START, address >> 39));
            let directory = next(entry(directories, address >> 30 & 511));
            assert_eq!(entry(directory, address >> 21 & 511), address | LARGE_PAGE | PRESENT_WRITABLE);
        }
        assert_eq!((entry(PAGE_TABLES_START, 1), entry(PAGE_TABLES_START + PAGE_SIZE, 4)), (0, 0));
        assert_eq!(pages.len(), 6);
    }
}
