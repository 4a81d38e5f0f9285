//! Guest programs of a few instructions, as ELF files that boot by the 64-bit entry like any kernel.

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

/// An ELF64 executable with one loadable segment that is `code`.
pub fn elf(code: &[u8]) -> Vec<u8> {
    let mut file = Vec::with_capacity(HEADERS + code.len());
    file.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // e_type EXEC, e_machine x86-64, e_version.
    file.extend_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [BASE, 64, 0] {
        // e_entry, e_phoff, e_shoff.
        file.extend_from_slice(&word.to_le_bytes());
    }
    // e_flags; e_ehsize, e_phentsize, e_phnum, e_shentsize, e_shnum, e_shstrndx.
    file.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    // p_type LOAD, p_flags R+X; p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align.
    file.extend_from_slice(&[1, 0, 0, 0, 5, 0, 0, 0]);
    for word in [HEADERS as u64, BASE, BASE, code.len() as u64, code.len() as u64, 1] {
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
        assert_eq!(u64::from_le_bytes(file[24..32].try_into().unwrap()), BASE);
    }
}
