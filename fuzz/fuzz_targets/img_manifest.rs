//! Any bytes as the documents of an image: index.json and manifest.json (the first part; parts end at a byte 0xff), and blobs of
//! the digests they have (the other parts).
#![no_main]

use guest_images::Digest;
use guest_images::oci::source::Source;
use guest_images::oci::{docker, layout};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(temp) = tempfile::tempdir() else { return };
    let path = temp.path().join("image.tar");
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, bytes).expect("in memory");
    };
    let mut parts = data.split(|b| *b == 0xff);
    let index = parts.next().unwrap_or_default();
    add("index.json", index);
    add("manifest.json", index);
    for part in parts {
        add(&format!("blobs/sha256/{}", Digest::of(part).hex()), part);
    }
    std::fs::write(&path, tar.into_inner().expect("in memory")).expect("writable");
    if let Ok(source) = Source::archive(&path, temp.path(), 1 << 20) {
        let _ = layout::resolve(&source, None);
        let _ = layout::resolve(&source, Some("latest"));
        let _ = docker::resolve_all(&source);
    }
    // The bytes themselves as an archive.
    std::fs::write(&path, data).expect("writable");
    if let Ok(source) = Source::archive(&path, temp.path(), 1 << 20) {
        let _ = layout::resolve(&source, None);
    }
});
