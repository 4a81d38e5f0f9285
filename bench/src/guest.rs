//! Guest programs, as ELF files that boot by the 64-bit entry like any kernel: of a few instructions, and one that is a crate
//! of its own.

/// Where they are loaded and entered: 1 MiB, where RAM begins again above the BIOS area.
const BASE: u64 = 0x10_0000;
const HEADERS: usize = 64 + 56;

/// Writes 1 (power-off) to the exit port: four instructions.
pub const NULL: &[u8] = &[
    0x66, 0xba, 0x00, 0x06, // mov $0x600, %dx
    0xb0, 0x01, // mov $1, %al
    0xee, // out %al, (%dx)
    0xf4, // hlt
];

/// Halts for ever: a machine to look at from outside.
pub const HALT: &[u8] = &[
    0xf4, // hlt
    0xeb, 0xfd, // jmp to it
];

/// Says "r" on the serial port, waits until the byte at [`GO`] is not zero, and powers off.
pub const WAIT: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, // mov $0x3f8, %dx
    0xb0, 0x72, // mov $'r', %al
    0xee, // out %al, (%dx)
    0x80, 0x3c, 0x25, 0x00, 0x00, 0x20, 0x00, 0x00, // 1: cmpb $0, GO
    0x74, 0xf6, // je 1b
    0x66, 0xba, 0x00, 0x06, // mov $0x600, %dx
    0xb0, 0x01, // mov $1, %al
    0xee, // out %al, (%dx)
    0xf4, // hlt
];

/// What [`WAIT`] waits for: a guest-physical address.
pub const GO: u64 = 0x20_0000;

/// A process in ring 3 that answers over vsock (package `bench-guest`).
pub const ANSWER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest"));

/// A guest for [`fill`] begins with this page.
pub const FILLED: u64 = 0x20_0000;

/// Writes to each of `pages` pages from [`FILLED`] on, and says "r" on the serial port; then, for each byte of serial input,
/// writes to the first `again` of them, and says so again. What it writes stands at the end of a page, where whoever looks for
/// something in it finds it last.
pub fn fill(pages: u32, again: u32) -> Vec<u8> {
    let mut code = vec![0x31, 0xdb]; // xor %ebx, %ebx
    code.push(0xb9); // mov $pages, %ecx
    code.extend(pages.to_le_bytes());
    code.extend([
        0xff, 0xc3, // 1: inc %ebx
        0xbf, 0x00, 0x00, 0x20, 0x00, // mov $FILLED, %edi
        0x48, 0x89, 0x9f, 0xf8, 0x0f, 0x00, 0x00, // 2: mov %rbx, 0xff8(%rdi)
        0x48, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, // add $0x1000, %rdi
        0xff, 0xc9, // dec %ecx
        0x75, 0xee, // jnz 2b
        0x66, 0xba, 0xf8, 0x03, // mov $0x3f8, %dx
        0xb0, 0x72, // mov $'r', %al
        0xee, // out %al, (%dx)
        0x66, 0xba, 0xfd, 0x03, // 3: mov $0x3fd, %dx
        0xec, // in (%dx), %al
        0xa8, 0x01, // test $1, %al
        0x74, 0xf7, // jz 3b
        0x66, 0xba, 0xf8, 0x03, // mov $0x3f8, %dx
        0xec, // in (%dx), %al
    ]);
    code.push(0xb9); // mov $again, %ecx
    code.extend(again.to_le_bytes());
    code.extend([0xeb, 0xcb]); // jmp 1b
    code
}

/// An ELF64 executable with one loadable segment that is `code`.
pub fn elf(code: &[u8]) -> Vec<u8> {
    elf_at(BASE, code)
}

/// The same, for any address that is a multiple of the page size.
pub fn elf_at(base: u64, code: &[u8]) -> Vec<u8> {
    // As part of the segment, the headers have what lies in the file and in memory at the same place of a page.
    let start = base + HEADERS as u64;
    let length = (HEADERS + code.len()) as u64;
    let mut file = Vec::with_capacity(HEADERS + code.len());
    file.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // e_type EXEC, e_machine x86-64, e_version.
    file.extend_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [start, 64, 0] {
        // e_entry, e_phoff, e_shoff.
        file.extend_from_slice(&word.to_le_bytes());
    }
    // e_flags; e_ehsize, e_phentsize, e_phnum, e_shentsize, e_shnum, e_shstrndx.
    file.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    // p_type LOAD, p_flags R+X; p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align.
    file.extend_from_slice(&[1, 0, 0, 0, 5, 0, 0, 0]);
    for word in [0, base, base, length, length, 0x1000] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(code);
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_headers_and_code() {
        let file = elf(NULL);
        assert_eq!(file.len(), HEADERS + NULL.len());
        assert_eq!(&file[HEADERS..], NULL);
        assert_eq!(file[54], 56, "e_phentsize");
        assert_eq!(u64::from_le_bytes(file[24..32].try_into().unwrap()), BASE + HEADERS as u64);
    }

    #[test]
    fn the_jumps_of_the_filling_guest_lead_where_they_should() {
        let code = fill(7, 9);
        // Targets of jumps to labels 2, 3 and 1: first bytes of what is there.
        for (jump, target) in [(0x75, [0x48, 0x89]), (0x74, [0x66, 0xba]), (0xeb, [0xff, 0xc3])] {
            let at = code.windows(2).rposition(|pair| pair[0] == jump && pair[1] >= 0x80).unwrap();
            let to = (at + 2).wrapping_add_signed((code[at + 1] as i8).into());
            assert_eq!(code[to..to + 2], target, "jump {jump:#x}");
        }
    }
}
