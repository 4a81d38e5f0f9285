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

/// The six pages at [`PAGE_TABLES_START`]: PML4, PDPT, and directories of 2 MiB pages for the first 4 GiB.
pub(crate) fn page_tables() -> Vec<u8> {
    let table = |n: u64| PAGE_TABLES_START + n * PAGE_SIZE;
    let mut bytes = vec![0; (PAGE_SIZE * (2 + DIRECTORIES)) as usize];
    // Fills `page` from its first entry on.
    let mut fill = |page: u64, entries: &mut dyn Iterator<Item = u64>| {
        let slots = bytes[(page * PAGE_SIZE) as usize..].chunks_exact_mut(size_of::<u64>());
        slots.zip(entries).for_each(|(slot, entry)| slot.copy_from_slice(&(entry | PRESENT_WRITABLE).to_le_bytes()));
    };
    fill(0, &mut std::iter::once(table(1)));
    fill(1, &mut (0..DIRECTORIES).map(|n| table(2 + n)));
    fill(2, &mut (0..ENTRIES * DIRECTORIES).map(|n| (n * LARGE_PAGE_SIZE) | LARGE_PAGE));
    bytes
}
