//! `hvm_start_info` of the PVH boot protocol (Xen, `public/arch-x86/hvm/start_info.h`; docs/misc/pvh.pandoc).
//!
//! One page: the structure, the module list (the initial RAM disk, if there is one), the memory map.

use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::ByteValued;

use crate::{initrd::Placement, layout};

const MODLIST_OFFSET: u64 = 0x40;
const MEMMAP_OFFSET: u64 = 0x60;
/// With a memory map.
const VERSION: u32 = 1;

/// The page at [`layout::START_INFO_START`].
pub(crate) fn start_info(initrd: Option<Placement>, map: &[layout::MapEntry]) -> Vec<u8> {
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: VERSION,
        nr_modules: initrd.is_some().into(),
        modlist_paddr: if initrd.is_some() { layout::START_INFO_START + MODLIST_OFFSET } else { 0 },
        cmdline_paddr: layout::CMDLINE_START,
        memmap_paddr: layout::START_INFO_START + MEMMAP_OFFSET,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    let module = initrd.map_or_else(hvm_modlist_entry::default, |Placement { addr, len }| hvm_modlist_entry {
        paddr: addr,
        size: len,
        ..Default::default()
    });
    let mut page = info.as_slice().to_vec();
    page.resize(MODLIST_OFFSET as usize, 0);
    page.extend_from_slice(module.as_slice());
    page.resize(MEMMAP_OFFSET as usize, 0);
    for entry in map {
        let entry =
            hvm_memmap_table_entry { addr: entry.start, size: entry.len, type_: entry.kind as u32, reserved: 0 };
        page.extend_from_slice(entry.as_slice());
    }
    page
}
