//! What the kernel finds: `boot_params`, `hvm_start_info`, page tables, GDT, command line.

use linux_loader::loader::{
    bootparam::boot_params,
    elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info},
};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::{MIB, Memory, PLATFORM, boot, build::*, memory};
use crate::{BootError, CommandLine, Image, Protocol, cmdline::CommandLineError, load_images};

fn load(mem: &Memory, kernel: &[u8], cmdline: &str, protocol: Protocol) -> Result<(), BootError> {
    let (kernel, initrd) = (Image::from_bytes("k", kernel)?, Image::from_bytes("i", &[1; 100])?);
    load_images(mem, &kernel, Some(&initrd), cmdline, protocol, &PLATFORM).map(|_| ())
}

impl From<crate::image::ImageError> for BootError {
    fn from(source: crate::image::ImageError) -> BootError {
        BootError::Kernel { name: "k".into(), source: source.into() }
    }
}

#[test]
fn boot_params_hold_the_memory_map_and_the_header() {
    let mem = memory(8192 * MIB);
    load(&mem, &ElfFile::kernel().bytes(), "quiet", Protocol::Auto).unwrap();
    let params: boot_params = mem.read_obj(GuestAddress(0x7000)).unwrap();
    assert_eq!((params.e820_entries, params.sentinel), (4, 0));
    let table: Vec<(u64, u64, u32)> =
        params.e820_table[..5].iter().map(|entry| (entry.addr, entry.size, entry.r#type)).collect();
    let expected = [(0, 0x9_fc00, 1), (0x9_fc00, 0x400, 2), (MIB, 3071 * MIB, 1), (1 << 32, 5120 * MIB, 1), (0, 0, 0)];
    assert_eq!(table, expected);
    let header = params.hdr;
    assert_eq!(({ header.boot_flag }, { header.header }), (0xaa55, 0x5372_6448));
    assert_eq!(({ header.cmd_line_ptr }, { header.cmdline_size }), (0x2_0000, 6));
    assert_eq!(({ header.ramdisk_image }, { header.ramdisk_size }), (0x7fff_f000, 100));
    assert_eq!(mem.read_obj::<[u8; 6]>(GuestAddress(0x2_0000)).unwrap(), *b"quiet\0");
}

#[test]
fn start_info_holds_the_memory_map_and_the_module() {
    let mem = memory(8192 * MIB);
    load(&mem, &ElfFile::kernel().bytes(), "quiet", Protocol::Pvh).unwrap();
    let info: hvm_start_info = mem.read_obj(GuestAddress(0x6000)).unwrap();
    assert_eq!((info.magic, info.version, info.nr_modules, info.memmap_entries), (0x336e_c578, 1, 1, 4));
    assert_eq!((info.cmdline_paddr, info.rsdp_paddr), (0x2_0000, 0));
    let module: hvm_modlist_entry = mem.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
    assert_eq!((module.paddr, module.size), (0x7fff_f000, 100));
    let entry = |n: u64| mem.read_obj::<hvm_memmap_table_entry>(GuestAddress(info.memmap_paddr + 24 * n)).unwrap();
    let last = entry(3);
    assert_eq!((last.addr, last.size, last.type_), (1 << 32, 5120 * MIB, 1));
    assert_eq!((entry(1).addr, entry(1).type_), (0x9_fc00, 2));
    // The Linux structure is not there.
    assert_eq!(mem.read_obj::<u32>(GuestAddress(0x7202)).unwrap(), 0);
}

#[test]
fn an_elf_kernel_is_told_to_randomise_unless_told_not_to() {
    for (cmdline, flags) in [("quiet", 2), ("", 2), ("nokaslr", 0), ("a nokaslr b", 0), ("nokaslr=x xnokaslr", 2)] {
        let mem = memory(64 * MIB);
        load(&mem, &ElfFile::kernel().bytes(), cmdline, Protocol::Auto).unwrap();
        let params: boot_params = mem.read_obj(GuestAddress(0x7000)).unwrap();
        assert_eq!({ params.hdr.loadflags }, flags, "{cmdline:?}");
    }
}

/// Walks the tables as the processor does (SDM vol. 3, 4.5).
#[test]
fn the_first_4_gib_are_mapped_at_their_own_addresses() {
    let (mem, _) = boot(&bzimage(), Protocol::Auto, 64).unwrap();
    let entry = |table: u64, index: u64| {
        let entry: u64 = mem.read_obj(GuestAddress(table + index % 512 * 8)).unwrap();
        assert_eq!(entry & 3, 3, "not present and writable: entry {index} of {table:#x}");
        entry
    };
    for addr in (0..1 << 32).step_by(2 << 20) {
        let directory = entry(entry(0x9000, addr >> 39) & !0xfff, addr >> 30) & !0xfff;
        assert!((0x9000..0xf000).contains(&directory));
        assert_eq!(entry(directory, addr >> 21), addr | 0x83);
    }
    for unmapped in [0x9008, 0xa020] {
        assert_eq!(mem.read_obj::<u64>(GuestAddress(unmapped)).unwrap(), 0);
    }
}

#[test]
fn the_gdt_in_memory_is_the_one_in_the_state() {
    for (protocol, code) in [(Protocol::Linux64, 0x00af_9b00_0000_ffff_u64), (Protocol::Pvh, 0x00cf_9b00_0000_ffff)] {
        let (mem, state) = boot(&ElfFile::kernel().bytes(), protocol, 64).unwrap();
        let gdt = state.gdt();
        let read: Vec<u64> = (0..4).map(|n| mem.read_obj(GuestAddress(gdt.base + n * 8)).unwrap()).collect();
        assert_eq!((read.as_slice(), gdt.limit), (gdt.entries.as_slice(), 31));
        assert_eq!((read[usize::from(gdt.code / 8)], gdt.data), (code, 0x18));
    }
}

#[test]
fn a_command_line_is_as_long_as_its_kernel_takes() {
    let mem = memory(64 * MIB);
    let elf = ElfFile::kernel().bytes();
    for (kernel, max) in [(elf, 2047), (bzimage(), CMDLINE_SIZE as usize)] {
        load(&mem, &kernel, &"x".repeat(max), Protocol::Auto).unwrap();
        let error = load(&mem, &kernel, &"x".repeat(max + 1), Protocol::Auto).unwrap_err();
        let expected = format!("kernel command line: {} bytes are more than the {max} that this kernel takes", max + 1);
        assert_eq!(error.to_string(), expected);
    }
    let mut greedy = bzimage();
    set(&mut greedy, 0x238, &[0xff; 4]);
    load(&mem, &greedy, &"x".repeat(0xffff), Protocol::Auto).unwrap();
    load(&mem, &greedy, &"x".repeat(0x1_0000), Protocol::Auto).unwrap_err();
}

#[test]
fn a_command_line_is_printable() {
    let mem = memory(64 * MIB);
    for (text, position) in [("a\0b", 1), ("ab\nc", 2), ("\u{e9}", 0), ("a\u{7f}", 1), ("\t", 0)] {
        let error = load(&mem, &bzimage(), text, Protocol::Auto).unwrap_err();
        let BootError::CommandLine(CommandLineError::NotPrintable { position: at, .. }) = error else {
            panic!("{error}");
        };
        assert_eq!(at, position);
    }
}

proptest! {
    #[test]
    fn group_9_a_command_line_never_outgrows_its_capacity(max in 0..40_usize, pushes in prop::collection::vec(".{0,12}", 0..8)) {
        let mut line = CommandLine::new(max);
        for text in &pushes {
            let before = line.as_str().to_owned();
            match line.push(text) {
                Ok(()) => prop_assert!(line.as_str().starts_with(&before) && line.as_str().ends_with(text.as_str())),
                Err(_) => prop_assert_eq!(line.as_str(), before),
            }
            prop_assert!(line.as_str().len() <= max);
            prop_assert!(line.as_str().bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        }
    }
}

#[test]
fn parameters_are_set_apart_by_one_space() {
    let mut line = CommandLine::new(9);
    for text in ["", "a=b", "", "c"] {
        line.push(text).unwrap();
    }
    assert_eq!(line.as_str(), "a=b c");
    assert_eq!(line.push("1234"), Err(CommandLineError::TooLong { len: 10, max: 9 }));
    line.push("123").unwrap();
    assert_eq!(line.as_str(), "a=b c 123");
}
