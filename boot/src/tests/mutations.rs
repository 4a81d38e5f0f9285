//! Malformed kernels by the thousand: each loads inside the rules, or is a one-line error about the kernel.

use proptest::prelude::*;

use super::{MIB, Memory, PLATFORM, build::*, memory};
use crate::{CpuState, Image, Protocol, load_images};

fn samples() -> [(Vec<u8>, Protocol); 3] {
    let elf = ElfFile::kernel().bytes();
    [(elf.clone(), Protocol::Auto), (elf, Protocol::Pvh), (bzimage(), Protocol::Auto)]
}

/// Loads it, and checks what came of it.
fn check(mem: &Memory, kernel: &[u8], protocol: Protocol) {
    let Ok(image) = Image::from_bytes("k", kernel) else {
        return assert!(kernel.is_empty());
    };
    match load_images(mem, &image, None, "", protocol, &PLATFORM) {
        Ok(CpuState { rip, .. }) => assert!((MIB..64 * MIB).contains(&rip), "entered at {rip:#x}"),
        Err(error) => {
            let said = error.to_string();
            assert!(said.starts_with("kernel k: ") && !said.contains('\n'), "{said:?}");
        }
    }
}

/// Every byte of the headers, to values that turn sizes and offsets small, large, and off by one.
#[test]
fn group_9_every_byte_of_the_headers_may_be_anything() {
    let mem = memory(64 * MIB);
    for (kernel, protocol) in samples() {
        let headers: Vec<usize> = match protocol {
            Protocol::Auto if kernel[0] == 0 => (0x1f0..0x270).collect(),
            _ => (0..0x40 + 3 * 56).chain(0x400..kernel.len()).collect(),
        };
        for at in headers {
            let was = kernel[at];
            for now in [0, 1, 0x7f, 0x80, 0xff, was ^ 1, was ^ 0x80, was.wrapping_add(1), was.wrapping_sub(1)] {
                let mut kernel = kernel.clone();
                kernel[at] = now;
                check(&mem, &kernel, protocol);
            }
        }
    }
}

proptest! {
    #[test]
    fn group_9_many_bytes_may_be_anything(
        sample in 0..3_usize,
        changes in prop::collection::vec((0..0x600_usize, any::<u8>()), 1..8),
        len in 0..0x1000_usize,
    ) {
        let (mut kernel, protocol) = samples()[sample].clone();
        for (at, byte) in changes {
            let at = at % kernel.len();
            kernel[at] = byte;
        }
        kernel.truncate(len);
        check(&memory(64 * MIB), &kernel, protocol);
    }

    #[test]
    fn group_9_words_may_be_anything(
        sample in 0..3_usize,
        at in 0..0x300_usize,
        word in prop_oneof![any::<u64>(), (0..64_u32).prop_map(|n| 1 << n), (0..64_u32).prop_map(|n| (1 << n) - 1)],
    ) {
        let (mut kernel, protocol) = samples()[sample].clone();
        set(&mut kernel, at, &word.to_le_bytes());
        check(&memory(64 * MIB), &kernel, protocol);
    }

    #[test]
    fn group_9_notes_may_be_anything(notes in prop::collection::vec(prop_oneof![Just(0_u8), Just(4), Just(18), Just(0xff), any::<u8>()], 0..64)) {
        let mut file = ElfFile::kernel();
        file.parts.pop();
        file.part(PT_NOTE, 0, &notes, 0);
        check(&memory(64 * MIB), &file.bytes(), Protocol::Pvh);
    }
}
