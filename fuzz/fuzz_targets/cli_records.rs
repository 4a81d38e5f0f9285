//! Any bytes as what the verbs read from others: a snapshot's record, a line of the attendance socket, the events and answers of a
//! microVM's process. The first byte says which.
#![no_main]

use bulkhead_cli::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((which, bytes)) = data.split_first() else { return };
    match which {
        b'r' => fuzzing::record(bytes),
        b'a' => fuzzing::attendance(bytes),
        b'e' => fuzzing::events(bytes),
        _ => fuzzing::answer(bytes),
    }
});
