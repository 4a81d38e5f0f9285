//! RAM around the hole, and the memory map.

use vm_memory::GuestAddress;

use super::MIB;
use crate::layout::*;

fn map(bytes: u64) -> Vec<(u64, u64, u32)> {
    let regions = ram_regions(bytes).unwrap().into_iter().map(|(start, len)| (start.0, len)).collect();
    let ram = Ram::from_regions(regions).unwrap();
    ram.memory_map().iter().map(|entry| (entry.start, entry.start + entry.len, entry.kind as u32)).collect()
}

const BASE: (u64, u64, u32) = (0, 0x9_fc00, 1);
const MP_TABLE: (u64, u64, u32) = (0x9_fc00, 0xa_0000, 2);

#[test]
fn memory_below_the_hole_is_one_region() {
    for mib in [2, 64, 3072] {
        assert_eq!(ram_regions(mib * MIB).unwrap(), [(GuestAddress(0), mib * MIB)]);
        assert_eq!(map(mib * MIB), [BASE, MP_TABLE, (MIB, mib * MIB, 1)]);
    }
}

#[test]
fn memory_that_does_not_fit_goes_on_above_4_gib() {
    for (bytes, above) in [(3072 * MIB + 0x1000, 0x1000), (8192 * MIB, 5120 * MIB)] {
        assert_eq!(ram_regions(bytes).unwrap(), [(GuestAddress(0), 0xc000_0000), (GuestAddress(1 << 32), above)]);
        assert_eq!(map(bytes), [BASE, MP_TABLE, (MIB, 0xc000_0000, 1), (1 << 32, (1 << 32) + above, 1)]);
    }
}

#[test]
fn group_9_odd_sizes_are_refused() {
    assert_eq!(ram_regions(0), Err(LayoutError::TooSmall { bytes: 0 }));
    assert_eq!(ram_regions(2 * MIB - 0x1000), Err(LayoutError::TooSmall { bytes: 2 * MIB - 0x1000 }));
    assert_eq!(ram_regions(64 * MIB + 1), Err(LayoutError::Unaligned { bytes: 64 * MIB + 1 }));
    assert_eq!(ram_regions(u64::MAX), Err(LayoutError::Unaligned { bytes: u64::MAX }));
    let most = (1 << 52) - (1 << 30);
    assert_eq!(ram_regions(most + 0x1000), Err(LayoutError::TooLarge { bytes: most + 0x1000 }));
    let regions = ram_regions(most).unwrap();
    assert_eq!(regions[1].0.0 + regions[1].1, 1 << 52);
}

#[test]
fn memory_that_is_laid_out_otherwise_is_refused() {
    let of = |regions: &[(u64, u64)]| Ram::from_regions(regions.to_vec());
    assert_eq!(of(&[]), Err(LayoutError::NoLowMemory { start: 0, end: 0 }));
    assert_eq!(of(&[(MIB, 4 * MIB)]), Err(LayoutError::NoLowMemory { start: MIB, end: 5 * MIB }));
    assert_eq!(of(&[(0, MIB)]), Err(LayoutError::NoLowMemory { start: 0, end: MIB }));
    let over = LayoutError::OverHole { start: 0, end: 3073 * MIB };
    assert_eq!(of(&[(0, 3073 * MIB)]), Err(over));
    assert!(matches!(of(&[(0, 2 * MIB), (u64::MAX, 2)]), Err(LayoutError::TooLarge { .. })));
    let crumbs: Vec<(u64, u64)> = (0..200).map(|n| (n * 4 * MIB, 2 * MIB)).collect();
    assert_eq!(of(&crumbs), Err(LayoutError::TooFragmented { entries: 202 }));
}

#[test]
fn adjacent_regions_are_one() {
    let ram = Ram::from_regions(vec![(2 * MIB, 2 * MIB), (0, 2 * MIB)]).unwrap();
    assert_eq!((ram.low_end(), ram.end()), (4 * MIB, 4 * MIB));
    assert_eq!(ram.memory_map().len(), 3);
}

/// Fixed addresses that must not run into each other.
#[test]
fn the_low_area_is_disjoint() {
    let ranges = [
        (GDT_START, GDT_START + 4 * 8),
        (START_INFO_START, BOOT_PARAMS_START),
        (BOOT_PARAMS_START, BOOT_PARAMS_START + PAGE_SIZE),
        (STACK_TOP - 0xff0, STACK_TOP),
        (PAGE_TABLES_START, PAGE_TABLES_END),
        (CMDLINE_START, CMDLINE_START + CMDLINE_CAPACITY),
        (MP_TABLE_START, MP_TABLE_START + MP_TABLE_SIZE),
        (BASE_MEMORY_END, HIGH_MEMORY_START),
    ];
    assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0));
}
