//! Guest-physical addresses, and RAM around the hole below 4 GiB.
//!
//! Does not place devices: the hole is theirs, and `vmm` fills it.

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

/// Size of a page.
pub const PAGE_SIZE: u64 = 0x1000;
/// The boot GDT, below the BIOS data area's end so that nothing a kernel keeps is there.
pub const GDT_START: u64 = 0x500;
/// `hvm_start_info`, its module list and its memory map: one page.
pub const START_INFO_START: u64 = 0x6000;
/// `boot_params` (the "zero page"): one page.
pub const BOOT_PARAMS_START: u64 = 0x7000;
/// The boot stack grows down from here, in the page after `boot_params`.
pub const STACK_TOP: u64 = 0x8ff0;
/// Page tables: one PML4, one PDPT, four page directories.
pub const PAGE_TABLES_START: u64 = 0x9000;
/// End of the page tables.
pub const PAGE_TABLES_END: u64 = 0xf000;
/// The command line, with its NUL.
pub const CMDLINE_START: u64 = 0x2_0000;
/// Most bytes a command line may have, with its NUL, whatever the kernel would take.
pub const CMDLINE_CAPACITY: u64 = 0x1_0000;
/// The MP table, in the last KiB of base memory, where kernels look for it.
pub const MP_TABLE_START: u64 = 0x9_fc00;
/// Room for the MP table.
pub const MP_TABLE_SIZE: u64 = 0x400;
/// End of base memory (640 KiB).
pub const BASE_MEMORY_END: u64 = 0xa_0000;
/// Kernels and initial RAM disks go here and above.
pub const HIGH_MEMORY_START: u64 = 0x10_0000;
/// RAM below 4 GiB ends here at the latest.
pub const HOLE_START: u64 = 0xc000_0000;
/// RAM goes on here.
pub const HOLE_END: u64 = 0x1_0000_0000;
/// Least RAM that can be laid out: the low area and as much again for a kernel.
pub const MIN_RAM: u64 = 2 * HIGH_MEMORY_START;
/// RAM must end below this: the most that a guest-physical address can be (SDM vol. 3, 4.1.4: 52 bits).
pub const MAX_ADDRESS: u64 = 1 << 52;
/// Most entries of a memory map (`E820_MAX_ENTRIES_ZEROPAGE`).
const MAX_MAP_ENTRIES: usize = 128;

/// Memory that cannot be laid out.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Not whole pages.
    #[error("size {bytes:#x} is not a multiple of {PAGE_SIZE:#x} bytes")]
    Unaligned {
        /// The size asked for.
        bytes: u64,
    },
    /// Nothing could boot in it.
    #[error("size {bytes:#x} is less than the least a guest can have, {MIN_RAM:#x} bytes")]
    TooSmall {
        /// The size asked for.
        bytes: u64,
    },
    /// No processor could address it.
    #[error("size {bytes:#x} is more than 52-bit physical addresses can reach")]
    TooLarge {
        /// The size asked for.
        bytes: u64,
    },
    /// RAM does not start at 0, or ends within the low area.
    #[error("there must be RAM from 0 to {MIN_RAM:#x} at least, and it is from {start:#x} to {end:#x}")]
    NoLowMemory {
        /// Start of the first region.
        start: u64,
        /// End of the first region.
        end: u64,
    },
    /// RAM where devices are.
    #[error("RAM from {start:#x} to {end:#x} lies over the device hole {HOLE_START:#x}..{HOLE_END:#x}")]
    OverHole {
        /// Start of the region.
        start: u64,
        /// End of the region.
        end: u64,
    },
    /// More pieces than a guest can be told of.
    #[error("a memory map of {entries} entries is more than the {MAX_MAP_ENTRIES} a guest can be told")]
    TooFragmented {
        /// Entries it would take.
        entries: usize,
    },
}

/// The regions that `bytes` of RAM take: one below the hole and, if that is not enough, one above it.
///
/// Whether the host's processor can address that much is the caller's to check.
pub fn ram_regions(bytes: u64) -> Result<Vec<(GuestAddress, u64)>, LayoutError> {
    if bytes % PAGE_SIZE != 0 {
        return Err(LayoutError::Unaligned { bytes });
    }
    if bytes < MIN_RAM {
        return Err(LayoutError::TooSmall { bytes });
    }
    if bytes > MAX_ADDRESS - (HOLE_END - HOLE_START) {
        return Err(LayoutError::TooLarge { bytes });
    }
    let low = bytes.min(HOLE_START);
    let mut regions = vec![(GuestAddress(0), low)];
    if bytes > low {
        regions.push((GuestAddress(HOLE_END), bytes - low));
    }
    Ok(regions)
}

/// What a range of guest-physical addresses is (the numbers are those of E820 and of PVH alike).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeKind {
    /// Free for the guest.
    Ram = 1,
    /// Not to be touched.
    Reserved = 2,
}

/// One entry of the memory map that the guest is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// Guest-physical start.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// What is there.
    pub kind: RangeKind,
}

/// The RAM of a guest, checked to be as this module has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ram {
    /// Start and end of each piece, ascending, with a gap between any two; the first starts at 0.
    pieces: Vec<(u64, u64)>,
}

impl Ram {
    /// The RAM of `mem`.
    pub fn of<M: GuestMemoryBackend>(mem: &M) -> Result<Ram, LayoutError> {
        let regions = mem.iter().map(|region| (region.start_addr().0, region.len()));
        Ram::from_regions(regions.collect())
    }

    /// RAM of these regions (start, bytes), which do not overlap.
    pub fn from_regions(mut regions: Vec<(u64, u64)>) -> Result<Ram, LayoutError> {
        regions.sort_unstable();
        let mut pieces: Vec<(u64, u64)> = Vec::new();
        for (start, len) in regions {
            let end = start.checked_add(len).filter(|end| *end <= MAX_ADDRESS);
            let end = end.ok_or(LayoutError::TooLarge { bytes: len })?;
            if start < HOLE_END && end > HOLE_START {
                return Err(LayoutError::OverHole { start, end });
            }
            match pieces.last_mut() {
                Some(last) if last.1 == start => last.1 = end,
                _ => pieces.push((start, end)),
            }
        }
        let (start, end) = pieces.first().copied().unwrap_or_default();
        if start != 0 || end < MIN_RAM {
            return Err(LayoutError::NoLowMemory { start, end });
        }
        let ram = Ram { pieces };
        let entries = ram.memory_map().len();
        if entries > MAX_MAP_ENTRIES {
            return Err(LayoutError::TooFragmented { entries });
        }
        Ok(ram)
    }

    /// End of the RAM that starts at 0: kernel and initial RAM disk go below it.
    pub fn low_end(&self) -> u64 {
        self.pieces[0].1
    }

    /// End of all RAM.
    pub fn end(&self) -> u64 {
        self.pieces[self.pieces.len() - 1].1
    }

    /// The memory map that the guest is told. What it does not name (the BIOS area, the hole) is not RAM.
    pub fn memory_map(&self) -> Vec<MapEntry> {
        let entry = |start: u64, end: u64, kind| MapEntry { start, len: end - start, kind };
        let mut map = vec![
            entry(0, MP_TABLE_START, RangeKind::Ram),
            entry(MP_TABLE_START, BASE_MEMORY_END, RangeKind::Reserved),
            entry(HIGH_MEMORY_START, self.low_end(), RangeKind::Ram),
        ];
        map.extend(self.pieces[1..].iter().map(|&(start, end)| entry(start, end, RangeKind::Ram)));
        map
    }

    /// Whether `start..end` may hold a kernel or an initial RAM disk.
    pub(crate) fn place(&self, start: u64, end: u64) -> Result<(), PlaceError> {
        if start < HIGH_MEMORY_START {
            Err(PlaceError::LowArea)
        } else if start < HOLE_END && end > HOLE_START {
            Err(PlaceError::Hole)
        } else if end > self.low_end() {
            Err(PlaceError::NotRam { low_end: self.low_end() })
        } else {
            Ok(())
        }
    }
}

/// Why a range cannot hold a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// Over the tables of this crate, or what is no RAM to the guest.
    #[error("lies over the low area 0x0..{HIGH_MEMORY_START:#x}, which holds the boot tables")]
    LowArea,
    /// Over the devices.
    #[error("lies over the device hole {HOLE_START:#x}..{HOLE_END:#x}")]
    Hole,
    /// Beyond RAM (or in RAM above the hole, which the entry code cannot reach).
    #[error("does not fit the guest's RAM below the device hole, which ends at {low_end:#x}")]
    NotRam {
        /// End of RAM below the hole.
        low_end: u64,
    },
}
