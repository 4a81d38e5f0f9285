//! Where the initial RAM disk goes.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::{MIB, PLATFORM, build::*, memory};
use crate::{
    Image, Protocol,
    initrd::{InitrdError, Placement, place},
    load_images,
};

const KERNEL: (u64, u64) = (16 * MIB, 20 * MIB + 1);

#[test]
fn it_goes_as_high_as_it_may() {
    let at = |len, max, low_end| place(len, KERNEL, max, low_end).unwrap().addr;
    assert_eq!(at(1, u64::MAX, 64 * MIB), 64 * MIB - 0x1000);
    assert_eq!(at(0x1001, u64::MAX, 64 * MIB), 64 * MIB - 0x2000);
    assert_eq!(at(0x1000, 0x7fff_ffff, 3072 * MIB), 0x7fff_f000);
    assert_eq!(at(0x1000, 32 * MIB - 1, 64 * MIB), 32 * MIB - 0x1000);
    // A last address that is not a page's last.
    assert_eq!(at(0x1000, 32 * MIB, 64 * MIB), 32 * MIB - 0x1000);
}

#[test]
fn it_keeps_clear_of_the_kernel() {
    let above = 44 * MIB - 0x1000;
    assert_eq!(place(above, KERNEL, u64::MAX, 64 * MIB).unwrap().addr, 20 * MIB + 0x1000);
    assert!(matches!(place(above + 1, KERNEL, u64::MAX, 64 * MIB), Err(InitrdError::NoRoom { .. })));
    // Under it, if there is no room above.
    assert_eq!(place(4 * MIB, KERNEL, u64::MAX, 20 * MIB + 1).unwrap().addr, 12 * MIB);
    assert_eq!(place(15 * MIB, KERNEL, u64::MAX, 20 * MIB + 1).unwrap().addr, MIB);
    assert!(matches!(place(15 * MIB + 1, KERNEL, u64::MAX, 20 * MIB + 1), Err(InitrdError::NoRoom { .. })));
}

#[test]
fn group_9_what_finds_no_room_says_what_there_is() {
    let (mem, bytes) = (memory(32 * MIB), vec![1; 32 << 20]);
    let (kernel, initrd) = (ElfFile::kernel().bytes(), Image::from_bytes("i", &bytes).unwrap());
    let kernel = Image::from_bytes("k", &kernel).unwrap();
    let error = load_images(&mem, &kernel, Some(&initrd), "", Protocol::Auto, &PLATFORM).unwrap_err();
    assert_eq!(
        error.to_string(),
        "initrd i: 0x2000000 bytes find no room below 0x2000000 beside the kernel, \
         which takes 0x1000000..0x1803004; give the guest more memory"
    );
}

#[test]
fn a_bzimage_says_how_high_and_is_told_where() {
    let (mem, kernel) = (memory(64 * MIB), bzimage());
    let (kernel, initrd) = (Image::from_bytes("k", &kernel).unwrap(), Image::from_bytes("i", &[7; 5000]).unwrap());
    load_images(&mem, &kernel, Some(&initrd), "", Protocol::Auto, &PLATFORM).unwrap();
    let addr = u64::from(INITRD_MAX) + 1 - 0x2000;
    let params: linux_loader::loader::bootparam::boot_params = mem.read_obj(GuestAddress(0x7000)).unwrap();
    assert_eq!(({ params.hdr.ramdisk_image }, { params.hdr.ramdisk_size }), (addr as u32, 5000));
    assert_eq!(mem.read_obj::<[u8; 2]>(GuestAddress(addr + 4999)).unwrap(), [7, 0]);
}

proptest! {
    #[test]
    fn it_is_always_in_ram_and_beside_the_kernel(
        len in 1..u64::MAX, small in 1..64 * MIB, start in MIB..64 * MIB, size in 0..64 * MIB, max in 0..u64::MAX, ram in 2 * MIB..3072 * MIB,
    ) {
        for len in [len, small] {
            let kernel = (start, start + size);
            if let Ok(Placement { addr, len: placed }) = place(len, kernel, max, ram) {
                let end = addr + placed;
                prop_assert_eq!(placed, len);
                prop_assert!(addr % 0x1000 == 0 && addr >= MIB && end <= ram && end - 1 <= max);
                prop_assert!(addr >= kernel.1 || end.next_multiple_of(0x1000) <= kernel.0);
            }
        }
    }
}
