//! Packets of any kind before a list of where they may go: no panic, and one that may leave goes where the list says, whatever
//! becomes of its checksum.

#![no_main]

use devices::virtio::net::egress::{Egress, HEAD};
use libfuzzer_sys::fuzz_target;

/// Bytes of a packet's header.
const HEADER: usize = 12;

fuzz_target!(|data: &[u8]| {
    let Some((kinds, mut data)) = data.split_first() else { return };
    let rules = ["192.0.2.1:80", "198.51.100.0/24"].map(|rule| rule.parse().expect("a rule"));
    let mut egress = Egress::new(rules.into());
    // Half of it came in before, if the first byte says so.
    if kinds & 1 != 0 {
        let (first, second) = data.split_at(data.len() / 2);
        egress.learn(first);
        data = second;
    }
    if !egress.allows(&data[..data.len().min(HEAD)], data.len()) {
        return;
    }
    let mut frame = data[HEADER..].to_vec();
    let word = |bytes: &[u8], at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    if word(&frame, 12) == 0x0806 {
        assert_eq!(frame[6..12], frame[22..28], "another's ARP");
        return;
    }
    // Whoever completes the checksum writes there.
    if data[0] & 1 != 0 {
        let little = |at: usize| usize::from(u16::from_le_bytes([data[at], data[at + 1]]));
        let field = little(6) + little(8);
        frame[field..field + 2].fill(0xff);
    }
    assert_eq!((word(&frame, 12), frame[14]), (0x0800, 0x45));
    let (to, ports) = (&frame[30..34], frame.get(34..38));
    let whole = word(&frame, 20) & 0x3fff == 0;
    let port = ports.filter(|_| whole && [6, 17].contains(&frame[23])).map(|ports| word(ports, 2));
    let listed = to[..3] == [198, 51, 100] || (to == [192, 0, 2, 1] && port == Some(80));
    // Or it is an answer, which has ports.
    assert!(listed || (kinds & 1 != 0 && port.is_some()), "{to:?} {port:?}");
});
