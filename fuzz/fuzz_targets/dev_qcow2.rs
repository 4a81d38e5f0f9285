//! Block requests to a qcow2 image in which some bytes of the header and the tables are others: it is refused, or each request is
//! answered and nothing is read of other files.

#![no_main]

mod device;

use std::cell::Cell;
use std::fs;

use device::disk::requests;
use device::{Input, machine_of};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

/// Bytes of a cluster: the least there can be.
const CLUSTER: usize = 512;
/// Bytes of the disk: what two tables of the second level lead to.
const DISK: u64 = 64 << 10;
/// Clusters: header, table of reference counts, one block of those, first level, second level, data.
const CLUSTERS: usize = 6;

thread_local! {
    static HOOK: Cell<bool> = const { Cell::new(false) };
}

/// A sound image (version 2) of which the first cluster has data.
fn image() -> Vec<u8> {
    let mut bytes = vec![0; CLUSTERS * CLUSTER];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    let place = |cluster: usize| (cluster * CLUSTER) as u64;
    // Magic number, version, no backing file; cluster bits, size, no encryption; tables.
    put(0, b"QFI\xfb\0\0\0\x02");
    put(20, &9u32.to_be_bytes());
    put(24, &DISK.to_be_bytes());
    put(36, &2u32.to_be_bytes());
    put(40, &place(3).to_be_bytes());
    put(48, &place(1).to_be_bytes());
    put(56, &1u32.to_be_bytes());
    put(CLUSTER, &place(2).to_be_bytes());
    (0..CLUSTERS).for_each(|cluster| put(2 * CLUSTER + 2 * cluster, &1u16.to_be_bytes()));
    let copied = 1 << 63;
    put(3 * CLUSTER, &(place(4) | copied).to_be_bytes());
    put(4 * CLUSTER, &(place(5) | copied).to_be_bytes());
    put(5 * CLUSTER, &[7; CLUSTER]);
    bytes
}

/// A mistake of the library's costs the disk, and is no finding: the device catches it. What reaches the fuzzer is one.
fn let_devices_catch_panics() {
    HOOK.with(|hook| {
        if !hook.replace(true) {
            std::panic::set_hook(Box::new(|_| {}));
        }
    });
}

fuzz_target!(|data: &[u8]| {
    let_devices_catch_panics();
    let mut input = Input(data);
    let mut bytes = image();
    let settings = input.byte();
    for _ in 0..settings & 7 {
        let at = usize::from(input.u16()) % bytes.len();
        bytes[at] = input.byte();
    }
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("image");
    fs::write(&path, &bytes).expect("an image");
    let read_only = settings & 8 != 0;
    let section = json!([{ "drive_id": "d", "path_on_host": path, "format": "qcow2", "is_read_only": read_only }]);
    if let Some(mut driver) = machine_of("blk", &section) {
        requests(&mut driver, input);
    } else {
        assert!(settings & 7 != 0, "a sound image was refused");
    }
    assert!(!read_only || fs::read(&path).expect("the image") == bytes, "a read-only image was written");
});
