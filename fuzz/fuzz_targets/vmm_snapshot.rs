//! Any bytes as a snapshot's state, and any records in a state whose digest is right.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm::snapshot::Snapshot;
use vmm::snapshot::format::{Writer, parse};

fuzz_target!(|data: &[u8]| {
    if let Ok(records) = parse(data) {
        let _ = Snapshot::decode(&records);
    }
    let mut writer = Writer::default();
    let mut rest = data;
    while let [kind, version, low, high, after @ ..] = rest {
        let (bytes, after) = after.split_at(usize::from(u16::from_le_bytes([*low, *high])).min(after.len()));
        writer.push(u32::from(*kind), u32::from(*version), bytes);
        rest = after;
    }
    let file = writer.finish();
    let records = parse(&file).expect("what a writer wrote");
    let _ = Snapshot::decode(&records);
});
