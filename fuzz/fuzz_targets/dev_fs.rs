//! FUSE requests of any kind about files that are there and others: each chain comes back, nothing outside the shared
//! directory is reached, and nothing is left open.

#![no_main]

mod device;

use std::cell::RefCell;
use std::fs;
use std::path::Path;

use device::{Input, machine, recovers};
use devices::virtio::testing::{Driver, Part};
use libfuzzer_sys::fuzz_target;

const INIT: u32 = 26;
/// What waits for others, or has no answer: FORGET, INTERRUPT, DESTROY, BATCH_FORGET.
const SILENT: [u32; 4] = [2, 36, 38, 42];
const NAMES: [&[u8]; 8] = [b"a\0", b"b\0", b"d\0", b"..\0", b".\0", b"/etc/passwd\0", b"d/../../x\0", b"l\0"];

thread_local! {
    static MACHINE: RefCell<(Driver, tempfile::TempDir)> = RefCell::new(machine("fs"));
}

fn header(len: usize, opcode: u32, node: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend((40 + len as u32).to_le_bytes());
    bytes.extend(opcode.to_le_bytes());
    bytes.extend(9u64.to_le_bytes());
    bytes.extend(node.to_le_bytes());
    bytes.extend([0; 16]);
    bytes
}

/// A request's arguments: small numbers that may be handles, sizes or modes, then names.
fn body(input: &mut Input) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..input.byte() % 12 {
        match input.byte() {
            wild @ 250.. => bytes.extend(u64::from(wild).wrapping_mul(input.u64()).to_le_bytes()),
            small => bytes.extend(u32::from(small).to_le_bytes()),
        }
    }
    for _ in 0..input.byte() % 3 {
        bytes.extend(NAMES[usize::from(input.byte() % 8)]);
    }
    bytes
}

fn empty(shared: &Path) {
    // The device has the directory that was there: what is in it goes, and it stays.
    for entry in fs::read_dir(shared).into_iter().flatten().flatten() {
        let _ = fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path()));
    }
}

fuzz_target!(|data: &[u8]| {
    MACHINE.with_borrow_mut(|(driver, dir)| {
        let mut input = Input(data);
        driver.bring_up(u64::MAX);
        let mut init = header(16, INIT, 0);
        init.extend([7u32, 31, 0, u32::MAX].iter().flat_map(|word| word.to_le_bytes()));
        driver.request(1, &[Part::Read(&init), Part::Write(256)]);
        let mut known = vec![1u64, (1 << 56) | 1];
        while !input.is_empty() {
            let opcode = u32::from(input.byte() % 56);
            let node = match input.byte() {
                255 => input.u64(),
                index => known[usize::from(index) % known.len()],
            };
            let body = body(&mut input);
            let (request, room) = (header(body.len(), opcode, node), if SILENT.contains(&opcode) { 0 } else { 4096 });
            let queue = usize::from(input.byte() & 1);
            // FALLOCATE would fill the disk of whoever fuzzes.
            if opcode == 43 {
                continue;
            }
            let done = driver.request(queue, &[Part::Read(&request), Part::Read(&body), Part::Write(room)]);
            // LOOKUP, MKNOD, MKDIR and CREATE tell a number.
            if [1, 8, 9, 35].contains(&opcode) && done.written > 40 && known.len() < 64 {
                known.extend(done.data[16..24].try_into().map(u64::from_le_bytes));
            }
        }
        assert!(!dir.path().join("x").exists(), "a file outside the shared directory");
        recovers(driver);
        empty(&dir.path().join("shared"));
    });
});
