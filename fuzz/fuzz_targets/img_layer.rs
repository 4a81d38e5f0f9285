//! Any bytes as a layer: a tar stream becomes an EROFS image or a typed error, in bounded memory.
#![no_main]

use guest_images::layer::{Flavour, Limits, from_tar};
use libfuzzer_sys::fuzz_target;
use std::io::Cursor;

fuzz_target!(|data: &[u8]| {
    let limits = Limits { bytes: 16 << 20, entries: 10_000, metadata: 8 << 20 };
    for flavour in [Flavour::Layer, Flavour::Rootfs] {
        // Headers with wrong checksums would end most inputs at once: make them right.
        let mut tar = data.to_vec();
        for header in tar.chunks_exact_mut(512) {
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let _ = from_tar(data, Cursor::new(Vec::new()), flavour, limits, [0; 16]);
        let _ = from_tar(&tar[..], Cursor::new(Vec::new()), flavour, limits, [0; 16]);
    }
});
