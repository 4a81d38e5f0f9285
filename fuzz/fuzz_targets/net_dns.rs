//! Questions of a hostile member for a network's resolver: no panic, and an answer is one of DNS, of a bounded length.

#![no_main]

use std::net::Ipv4Addr;

use libfuzzer_sys::fuzz_target;
use switch::dns::{Answer, answer};

fuzz_target!(|data: &[u8]| {
    let Some((kind, query)) = data.split_first() else { return };
    let known = |name: &str| name.starts_with('w').then(|| vec![Ipv4Addr::LOCALHOST; usize::from(*kind)]);
    if let Answer::Is(reply) = answer(query, kind & 1 != 0, known) {
        assert!(reply.len() <= 1024 && reply[..2] == query[..2] && reply[2] & 0x80 != 0);
    }
});
