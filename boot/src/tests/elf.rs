//! ELF kernels: what loads, and what each malformed one is told.

use vm_memory::{Bytes, GuestAddress};

use super::{boot, build::*, refusal};
use crate::{CpuMode, Protocol};

#[test]
fn a_kernel_is_entered_in_64_bit_mode() {
    let (mem, state) = boot(&ElfFile::kernel().bytes(), Protocol::Auto, 64).unwrap();
    assert_eq!((state.rip, state.rsi, state.rbx), (ENTRY, 0x7000, 0));
    assert!(matches!(state.mode, CpuMode::Long { cr3: 0x9000, .. }));
    let mut text = [0; 65];
    mem.read_slice(&mut text, GuestAddress(TEXT)).unwrap();
    assert_eq!((&text[..64], text[64]), ([0x90; 64].as_slice(), 0));
    assert_eq!(mem.read_obj::<[u8; 6]>(GuestAddress(DATA)).unwrap(), *b"data\0\0");
}

#[test]
fn a_kernel_is_entered_by_pvh_in_32_bit_mode() {
    let (_, state) = boot(&ElfFile::kernel().bytes(), Protocol::Pvh, 64).unwrap();
    assert_eq!((state.rip, state.rsi, state.rbx), (PVH_ENTRY, 0, 0x6000));
    assert!(matches!(state.mode, CpuMode::Protected { .. }));
}

#[test]
fn a_pvh_entry_may_be_4_bytes_and_unpadded() {
    let mut file = ElfFile::kernel();
    file.parts.pop();
    // The last note's descriptor ends the segment, at a length that is no multiple of 4.
    let mut notes = note(b"Xen\0", 18, &(PVH_ENTRY as u32).to_le_bytes());
    notes.extend(note(b"GNU\0", 3, b"12345"));
    notes.truncate(notes.len() - 3);
    file.part(PT_NOTE, 0, &notes, 0);
    assert_eq!(boot(&file.bytes(), Protocol::Pvh, 64).unwrap().1.rip, PVH_ENTRY);
}

#[test]
fn notes_are_not_read_for_the_64_bit_entry() {
    let mut file = ElfFile::kernel();
    file.parts[2].file_len = u64::MAX;
    assert!(boot(&file.bytes(), Protocol::Linux64, 64).is_ok());
    assert!(refusal(&file.bytes(), Protocol::Pvh).contains("program header 2: p_filesz"));
}

/// Each a kernel with one thing wrong, and what is said of it.
#[test]
fn group_9_every_malformed_kernel_is_told_which_field_is_wrong() {
    let part = |change: fn(&mut Part)| {
        let mut file = ElfFile::kernel();
        change(&mut file.parts[1]);
        file.bytes()
    };
    let header = |at: usize, bytes: &[u8]| {
        let mut file = ElfFile::kernel().bytes();
        set(&mut file, at, bytes);
        file
    };
    let place = "kernel k: program header 1: p_paddr";
    let cases: Vec<(Vec<u8>, String)> = vec![
        (b"\x7fELF".to_vec(), "kernel k: ELF header: the file has 0x4 bytes".into()),
        (header(4, &[1]), "kernel k: ELF header: EI_CLASS is 0x1, expected 2 (64-bit)".into()),
        (header(5, &[2]), "kernel k: ELF header: EI_DATA is 0x2".into()),
        (header(16, &[1]), "kernel k: ELF header: e_type is 0x1".into()),
        (header(18, &[183]), "kernel k: ELF header: e_machine is 0xb7".into()),
        (header(54, &[32]), "kernel k: ELF header: e_phentsize is 0x20".into()),
        (header(56, &[0, 0]), "kernel k: ELF header: e_phnum is 0".into()),
        (header(56, &[0xff, 0xff]), "kernel k: ELF header: e_phnum is 65535".into()),
        (header(56, &[100, 0]), "kernel k: ELF header: e_phoff 0x40 puts 100 program headers outside".into()),
        (header(32, &[0xff; 8]), "kernel k: ELF header: e_phoff 0xffffffffffffffff".into()),
        (header(32, &[0; 8]), "kernel k: ELF header: e_phoff 0x0".into()),
        (header(24, &(DATA + 4).to_le_bytes()), "kernel k: ELF header: e_entry 0x1800004 is outside".into()),
        (part(|p| p.offset = 0x10_0000), "kernel k: program header 1: p_filesz 0x4 at p_offset 0x100000 runs".into()),
        (part(|p| p.offset = u64::MAX), "kernel k: program header 1: p_filesz 0x4 at p_offset 0xfff".into()),
        (part(|p| p.memory_len = 3), "kernel k: program header 1: p_filesz 0x4 is more than p_memsz 0x3".into()),
        (part(|p| p.memory_len = 0), "kernel k: program header 1: p_filesz 0x4 is more than p_memsz 0x0".into()),
        (part(|p| p.memory_len = u64::MAX), "kernel k: program header 1: p_memsz 0xffffffffffffffff".into()),
        (part(|p| p.addr = u64::MAX - 1), "kernel k: program header 1: p_memsz 0x3004 from p_paddr 0xff".into()),
        (part(|p| p.addr = 0x9000), format!("{place} 0x9000 with p_memsz 0x3004 lies over the low area")),
        (part(|p| p.addr = 0xf_f000), format!("{place} 0xff000 with p_memsz 0x3004 lies over the low area")),
        (part(|p| p.addr = 0xbfff_f000), format!("{place} 0xbffff000 with p_memsz 0x3004 lies over the device hole")),
        (part(|p| p.addr = 0xd000_0000), format!("{place} 0xd0000000 with p_memsz 0x3004 lies over the device hole")),
        (part(|p| p.addr = 1 << 32), format!("{place} 0x100000000 with p_memsz 0x3004 does not fit")),
        (part(|p| p.addr = 0x3ff_d000), format!("{place} 0x3ffd000 with p_memsz 0x3004 does not fit")),
        (part(|p| p.addr = TEXT + 63), "kernel k: program headers 0 and 1: both put something at p_paddr".into()),
        (part(|p| p.addr = TEXT - 1), "kernel k: program headers 0 and 1: both put something".into()),
    ];
    for (file, expected) in cases {
        let said = refusal(&file, Protocol::Auto);
        assert!(said.starts_with(&expected), "expected {expected:?}, got {said:?}");
        assert!(!said.contains('\n'), "{said:?}");
    }
}

#[test]
fn a_kernel_without_segments_is_refused() {
    let mut file = ElfFile::kernel();
    file.parts.retain(|part| part.kind != PT_LOAD);
    assert_eq!(refusal(&file.bytes(), Protocol::Auto), "kernel k: program headers: none is PT_LOAD with contents");
}

#[test]
fn a_truncated_kernel_is_refused_wherever_it_ends() {
    let file = ElfFile::kernel().bytes();
    let notes = file.len() as u64 - ElfFile::kernel().parts[2].file_len;
    for len in 1..file.len() {
        let loaded = boot(&file[..len], Protocol::Auto, 64).is_ok();
        assert_eq!(loaded, len as u64 >= notes, "{len:#x} bytes");
        assert!(boot(&file[..len], Protocol::Pvh, 64).is_err(), "{len:#x} bytes");
    }
}

#[test]
fn group_9_malformed_notes_are_told_apart() {
    let cases: [(&[u8], &str); 9] = [
        (&[0; 5], "note at 0x0: header 0xc runs past the notes (0x5 bytes)"),
        (&note(b"Xen\0", 17, &[0; 4]), "notes: no XEN_ELFNOTE_PHYS32_ENTRY"),
        (&note(b"Xen ", 18, &[0; 4]), "notes: no XEN_ELFNOTE_PHYS32_ENTRY"),
        (&note(b"Xen\0", 18, &[]), "XEN_ELFNOTE_PHYS32_ENTRY: n_descsz is neither 4 nor 8"),
        (&note(b"Xen\0", 18, &[0xff; 8]), "XEN_ELFNOTE_PHYS32_ENTRY: the entry is not a 32-bit address"),
        (&note(b"Xen\0", 18, &[0xff; 4]), "notes: XEN_ELFNOTE_PHYS32_ENTRY 0xffffffff is outside"),
        (&[[0xff; 4], [0; 4], [18, 0, 0, 0]].concat(), "note at 0x0: n_namesz 0xffffffff runs past"),
        (&[[0; 4], [0xff; 4], [18, 0, 0, 0]].concat(), "note at 0x0: n_descsz 0xffffffff runs past"),
        (&[note(b"A\0\0", 1, b"b"), vec![1; 12]].concat(), "note at 0x14: n_namesz 0x1010101 runs past"),
    ];
    for (notes, expected) in cases {
        let mut file = ElfFile::kernel();
        file.parts.pop();
        file.part(PT_NOTE, 0, notes, 0);
        let said = refusal(&file.bytes(), Protocol::Pvh);
        assert!(said.starts_with("kernel k: ") && said.contains(expected), "expected {expected:?}, got {said:?}");
    }
}

#[test]
fn group_9_too_many_notes_are_refused_before_they_are_read() {
    let mut file = ElfFile::kernel();
    file.parts.pop();
    file.part(PT_NOTE, 0, &vec![0; 0x1_0001], 0);
    let said = refusal(&file.bytes(), Protocol::Pvh);
    assert_eq!(said, "kernel k: program header 2: p_filesz 0x10001 of PT_NOTE is more than 0x10000");
}

#[test]
fn what_is_neither_format_is_refused() {
    for kernel in [b"#!".as_slice(), &[0; 4096], b"\x1f\x8b\x08"] {
        let said = refusal(kernel, Protocol::Auto);
        assert!(said.ends_with("neither an ELF vmlinux nor a bzImage"), "{said}");
    }
}
