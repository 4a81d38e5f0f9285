//! Any text is a queue trace or an error, and one that is reads back as it is written.

#![no_main]

use devices::virtio::trace::Trace;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(trace) = text.parse::<Trace>() {
        assert_eq!(trace.to_string().parse(), Ok(trace));
    }
});
