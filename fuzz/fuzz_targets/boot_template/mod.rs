//! Well-formed kernels for the fuzzer to spoil, and what must hold for each kernel it makes of them.

use std::cell::OnceCell;

use boot::{Image, Platform, Protocol};
use vm_memory::{GuestAddress, GuestMemoryMmap};

const RAM: usize = 32 << 20;
const TEXT: u64 = 0x100_0000;

thread_local! {
    /// Never cleared: nothing that is checked here reads it.
    static MEMORY: OnceCell<GuestMemoryMmap<()>> = const { OnceCell::new() };
}

/// Loads it; whatever comes of it must be inside the rules.
pub fn check(kernel: &[u8], protocol: Protocol) {
    let Ok(image) = Image::from_bytes("k", kernel) else { return };
    let platform = Platform { cpus: 2, ioapic: 0xfec0_0000, lapic: 0xfee0_0000, irq_pins: 24 };
    let result = MEMORY.with(|memory| {
        let memory = memory.get_or_init(|| GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).expect("memory"));
        boot::load_images(memory, &image, None, "", protocol, &platform)
    });
    match result {
        Ok(state) => assert!((1 << 20..RAM as u64).contains(&state.rip), "entered at {:#x}", state.rip),
        Err(error) => {
            let said = error.to_string();
            assert!(said.starts_with("kernel k: ") && !said.contains('\n'), "{said:?}");
        }
    }
}

/// The template with patches: each a little-endian 16-bit offset, a length, and so many bytes. An offset beyond the end
/// cuts the file short instead.
#[allow(dead_code, reason = "not every target patches")]
pub fn patched(mut kernel: Vec<u8>, mut patches: &[u8]) -> Vec<u8> {
    while let [low, high, len, rest @ ..] = patches {
        let (bytes, rest) = rest.split_at(rest.len().min(usize::from(*len)));
        let offset = usize::from(u16::from_le_bytes([*low, *high]));
        match kernel.get_mut(offset..) {
            Some(at) => at.iter_mut().zip(bytes).for_each(|(at, byte)| *at = *byte),
            None => kernel.truncate(offset % 0x800),
        }
        patches = rest;
    }
    kernel
}

/// An ELF kernel with text, bss and these notes.
#[allow(dead_code, reason = "not every target wants one")]
pub fn elf(notes: &[u8]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let mut put = |bytes: &[u8]| file.extend(bytes);
    put(&[2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [TEXT, 64, 0] {
        put(&word.to_le_bytes());
    }
    put(&[0, 0, 0, 0, 64, 0, 56, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
    let len = notes.len() as u64;
    for (kind, offset, addr, file_len, memory_len) in
        [(1_u32, 0x100_u64, TEXT, 0x40_u64, 0x40_u64), (1, 0x140, TEXT + 0x1000, 0, 0x1000), (4, 0x140, TEXT, len, len)]
    {
        put(&kind.to_le_bytes());
        put(&7_u32.to_le_bytes());
        for word in [offset, addr, addr, file_len, memory_len, 0x1000] {
            put(&word.to_le_bytes());
        }
    }
    file.resize(0x140, 0x90);
    file.extend(notes);
    file
}

/// A bzImage of protocol 2.15.
#[allow(dead_code, reason = "not every target wants one")]
pub fn bzimage() -> Vec<u8> {
    let mut file = vec![0; 0xa00];
    let fields: [(usize, u64, usize); 14] = [
        (0x1f1, 2, 1),
        (0x1f4, 0x40, 4),
        (0x1fe, 0xaa55, 2),
        (0x200, 0x6aeb, 2),
        (0x202, 0x5372_6448, 4),
        (0x206, 0x020f, 2),
        (0x211, 1, 1),
        (0x22c, 0x7fff_ffff, 4),
        (0x230, 0x20_0000, 4),
        (0x234, 1, 1),
        (0x236, 1, 2),
        (0x238, 2047, 4),
        (0x258, TEXT, 8),
        (0x260, 0x10_0000, 4),
    ];
    for (at, value, len) in fields {
        file[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
    }
    file
}
