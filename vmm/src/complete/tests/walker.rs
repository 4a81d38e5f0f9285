//! The page-table walk.

use super::*;
use crate::complete::walk::{Access, Paging, WalkError, fault_code};

impl Guest {
    fn walk(&self, address: u64, access: Access) -> Result<u64, WalkError> {
        let paging = Paging::new(&self.cpu.regs, &self.cpu.sregs).unwrap();
        paging.translate(&self.ram, address, access).map(|physical| physical.0)
    }
}

#[test]
fn marks_accessed_and_dirty_as_the_processor_does() {
    let guest = Guest::new();
    assert_eq!(guest.walk(DATA + 5, Access::Peek), Ok(DATA + 5));
    assert_eq!((guest.entry(DATA) & (ACCESSED | DIRTY), guest.peek(PML4) & ACCESSED), (0, 0));
    assert_eq!(guest.walk(DATA + 5, Access::Read), Ok(DATA + 5));
    assert_eq!(guest.entry(DATA) & (ACCESSED | DIRTY), ACCESSED);
    assert_eq!(guest.walk(DATA + 5, Access::Write), Ok(DATA + 5));
    assert_eq!(guest.entry(DATA) & (ACCESSED | DIRTY), ACCESSED | DIRTY);
    for table in [PML4, PDPT, PD] {
        assert_eq!(guest.peek(table) & (ACCESSED | DIRTY), ACCESSED);
    }
}

#[test]
fn absent_entries_fault_at_every_level() {
    for table in [PML4, PDPT, PD] {
        let guest = Guest::new();
        guest.poke(table, guest.peek(table) & !PRESENT);
        assert_eq!(guest.walk(DATA, Access::Read), Err(WalkError::Fault(0)));
        assert_eq!(guest.walk(DATA, Access::Write), Err(WalkError::Fault(fault_code::WRITE)));
    }
}

#[test]
fn write_protection_counts_at_every_level_and_can_be_off() {
    for table in [PML4, PDPT, PD, PT + (DATA >> 12) * 8] {
        let mut guest = Guest::new();
        guest.poke(table, guest.peek(table) & !WRITABLE);
        assert_eq!(guest.walk(DATA, Access::Read), Ok(DATA));
        let denied = Err(WalkError::Fault(fault_code::PRESENT | fault_code::WRITE));
        assert_eq!(guest.walk(DATA, Access::Write), denied);
        guest.cpu.sregs.cr0 &= !flags::CR0_WP;
        assert_eq!(guest.walk(DATA, Access::Write), Ok(DATA));
    }
}

#[test]
fn smap_guards_user_pages_without_ac() {
    let mut guest = Guest::new();
    guest.map(DATA, DATA | PRESENT | WRITABLE | USER);
    assert_eq!(guest.walk(DATA, Access::Write), Ok(DATA));
    guest.cpu.sregs.cr4 |= flags::CR4_SMAP;
    assert_eq!(guest.walk(DATA, Access::Read), Err(WalkError::Fault(fault_code::PRESENT)));
    assert_eq!(guest.walk(STACK, Access::Read), Ok(STACK));
    guest.cpu.regs.rflags |= flags::AC;
    assert_eq!(guest.walk(DATA, Access::Read), Ok(DATA));
}

#[test]
fn large_pages_translate() {
    let guest = Guest::new();
    // 2 MiB at 4 MiB, 1 GiB at 1 GiB: both onto physical 0.
    guest.poke(PD + 16, PRESENT | WRITABLE | 1 << 7);
    guest.poke(PDPT + 8, PRESENT | WRITABLE | 1 << 7);
    assert_eq!(guest.walk((4 << 20) + 0x12345, Access::Write), Ok(0x12345));
    assert_eq!(guest.peek(PD + 16) & (ACCESSED | DIRTY), ACCESSED | DIRTY);
    assert_eq!(guest.walk((1 << 30) + 0x54321, Access::Read), Ok(0x54321));
    // Inside the large page, but where there is no RAM.
    assert_eq!(guest.walk((1 << 30) + (512 << 20), Access::Read), Err(WalkError::OutsideRam(512 << 20)));
    // Bit 12 is PAT; bit 13 is reserved.
    guest.poke(PDPT + 8, PRESENT | WRITABLE | 1 << 7 | 1 << 12);
    assert_eq!(guest.walk((1 << 30) + 0x54321, Access::Read), Ok(0x54321));
    guest.poke(PDPT + 8, PRESENT | WRITABLE | 1 << 7 | 1 << 13);
    let reserved = Err(WalkError::Fault(fault_code::PRESENT | fault_code::RESERVED));
    assert_eq!(guest.walk((1 << 30) + 0x54321, Access::Read), reserved);
}

#[test]
fn no_execute_is_reserved_where_it_is_off() {
    let mut guest = Guest::new();
    guest.map(DATA, DATA | PRESENT | 1 << 63);
    assert_eq!(guest.walk(DATA, Access::Read), Ok(DATA));
    guest.cpu.sregs.efer &= !flags::EFER_NXE;
    let reserved = Err(WalkError::Fault(fault_code::PRESENT | fault_code::RESERVED));
    assert_eq!(guest.walk(DATA, Access::Read), reserved);
}

#[test]
fn five_levels() {
    let mut guest = Guest::new();
    let pml5 = 0xa000;
    guest.poke(pml5 + 8, PML4 | PRESENT | WRITABLE);
    let address = (1 << 48) + DATA;
    assert_eq!(guest.walk(address, Access::Read), Err(WalkError::NotCanonical));
    guest.cpu.sregs.cr3 = pml5;
    guest.cpu.sregs.cr4 |= flags::CR4_LA57;
    assert_eq!(guest.walk(address, Access::Read), Ok(DATA));
    assert_eq!(guest.walk(1 << 56, Access::Read), Err(WalkError::NotCanonical));
}

#[test]
fn tables_and_pages_without_ram_are_errors() {
    let guest = Guest::new();
    let device = 0xd000_0000;
    guest.map(DATA, device | PRESENT | WRITABLE);
    assert_eq!(guest.walk(DATA + 8, Access::Write), Err(WalkError::OutsideRam(device + 8)));
    guest.poke(PD, 0x000f_ffff_ffff_f000 | PRESENT);
    assert!(matches!(guest.walk(DATA, Access::Read), Err(WalkError::OutsideRam(_))));
    let mut guest = Guest::new();
    guest.map(DATA, device | PRESENT | WRITABLE);
    let error = guest.run(&[0xf3, 0x48, 0x0f, 0xb8, 0x07]).unwrap_err();
    assert!(error.to_string().contains("0xd0000000"), "{error}");
}

#[test]
fn tables_that_change_meanwhile_do_not_confuse() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let guest = Guest::new();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut other = false;
            while !stop.load(Ordering::Relaxed) {
                other = !other;
                guest.map(DATA, if other { (DATA + 0x1000) | PRESENT } else { DATA | PRESENT | WRITABLE });
            }
        });
        for _ in 0..20_000 {
            match guest.walk(DATA, Access::Write) {
                // The page that may be written, never the other one.
                Ok(physical) => assert_eq!(physical, DATA),
                Err(e) => assert!(matches!(e, WalkError::Fault(3) | WalkError::Contended), "{e:?}"),
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}
