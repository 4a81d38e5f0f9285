//! `boot_params` of the 64-bit Linux boot protocol (Documentation/arch/x86/boot.rst, zero-page.rst).

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};

use crate::{bzimage, initrd::Placement, layout};

/// "Undefined" boot loader: none is assigned to us.
const UNDEFINED_LOADER: u8 = 0xff;

/// `loadflags` bit 1: the decompressor's word that address randomisation is on. An ELF kernel meets no decompressor, and
/// without it a kernel that could randomise its memory regions does not.
const KASLR_FLAG: u8 = 1 << 1;

/// The header that stands in for a bzImage's when the kernel is an ELF file.
///
/// `nokaslr` is heeded here, because it is the decompressor that reads it: the kernel proper does not look for it.
pub(crate) fn elf_header(cmdline: &str) -> setup_header {
    let kaslr = !cmdline.split(' ').any(|word| word == "nokaslr");
    setup_header {
        boot_flag: 0xaa55,
        header: bzimage::MAGIC,
        version: 0x020c,
        loadflags: if kaslr { KASLR_FLAG } else { 0 },
        kernel_alignment: 0x100_0000,
        ..Default::default()
    }
}

/// Fills `boot_params`: the kernel's own `header`, what a boot loader adds to it, and the memory map.
///
/// All other fields are zero, the sentinel with them, as the protocol asks.
pub(crate) fn params(
    header: setup_header,
    cmdline_len: usize,
    initrd: Option<Placement>,
    map: &[layout::MapEntry],
) -> boot_params {
    let mut params = boot_params { hdr: header, ..Default::default() };
    params.hdr.type_of_loader = UNDEFINED_LOADER;
    params.hdr.cmd_line_ptr = layout::CMDLINE_START as u32;
    if params.hdr.cmdline_size == 0 {
        params.hdr.cmdline_size = cmdline_len as u32;
    }
    if let Some(Placement { addr, len }) = initrd {
        // Both are below the hole, hence 32-bit: the ext_ halves stay zero.
        params.hdr.ramdisk_image = addr as u32;
        params.hdr.ramdisk_size = len as u32;
    }
    let mut entries = 0;
    let mut table = params.e820_table;
    for (slot, entry) in table.iter_mut().zip(map) {
        *slot = boot_e820_entry { addr: entry.start, size: entry.len, r#type: entry.kind as u32 };
        entries += 1;
    }
    params.e820_table = table;
    params.e820_entries = entries;
    params
}
