//! Kernels that are none: ELF files with one segment, made by hand (ELF-64 Object File Format, 1.5).

/// An ELF executable for x86-64 with one loadable segment at the physical address `address`: `bytes` in the file, and
/// `memory` bytes in all.
pub fn executable(address: u64, bytes: &[u8], memory: u64) -> Vec<u8> {
    const HEADERS: u64 = 64 + 56;
    let mut file = Vec::new();
    file.extend([0x7f, b'E', b'L', b'F', 2, 1, 1, 0]);
    file.extend([0; 8]);
    file.extend(2u16.to_le_bytes()); // executable
    file.extend(62u16.to_le_bytes()); // x86-64
    file.extend(1u32.to_le_bytes());
    for value in [address, 64, 0] {
        file.extend(value.to_le_bytes()); // entry, program headers, section headers
    }
    file.extend(0u32.to_le_bytes());
    for value in [64u16, 56, 1, 0, 0, 0] {
        file.extend(value.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes()); // PT_LOAD
    file.extend(5u32.to_le_bytes()); // readable, executable
    for value in [HEADERS, address, address, bytes.len() as u64, memory, 0x1000] {
        file.extend(value.to_le_bytes());
    }
    file.extend(bytes);
    file
}
