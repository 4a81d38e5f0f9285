//! Any bytes as the files that the monitor reads besides a snapshot's state: a configuration of ours or in Firecracker's format, a
//! working set, KVM's CPUID leaves, and the lines of an event stream. The first byte says which.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm::api::Draft;
use vmm::config::SerialConfig;
use vmm::events::Event;
use vmm::{VmConfig, fuzzing};

const HOST_MIB: u64 = 1024;

fuzz_target!(|data: &[u8]| {
    let Some((which, bytes)) = data.split_first() else { return };
    match which {
        b'c' => {
            let config = std::str::from_utf8(bytes).ok().and_then(|text| VmConfig::from_json(text).ok());
            if let Some(config) = config.filter(|config| config.validate(HOST_MIB).is_ok()) {
                let text = serde_json::to_string(&config).expect("JSON");
                assert_eq!(VmConfig::from_json(&text).expect("what was written"), config);
            }
        }
        b'd' => {
            if let Ok(draft) = Draft::from_file(bytes, SerialConfig::Off) {
                let _ = draft.to_config().map(|config| config.validate(HOST_MIB));
            }
        }
        b'w' | b'W' => fuzzing::working_set(bytes, *which == b'W'),
        b'p' | b'P' => fuzzing::cpuid_cache(bytes, *which == b'P'),
        _ => drop(serde_json::from_slice::<Event>(bytes)),
    }
});
