//! Frames of a hostile member before a network's switch: no panic, and what leaves its port has its addresses; what comes from beyond
//! is from nobody of the network. And before what ends handshakes with passt: at most the sender hears of that.

#![no_main]

use std::net::Ipv4Addr;

use libfuzzer_sys::fuzz_target;
use switch::frame::{Own, Verdict, admit, judge};
use switch::handshake::{Came, Handshakes};
use switch::protocol::Network;

const OWN: Own = Own { mac: [2, 0, 0, 0, 0, 2], ip: Ipv4Addr::new(172, 28, 5, 2) };

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let mut frame = data.to_vec();
    // Most of what is interesting comes after the right addresses.
    if kind & 1 != 0 && frame.len() >= 12 {
        frame[6..12].copy_from_slice(&OWN.mac);
    }
    let network = Network { name: "net".into(), gateway: [172, 28, 5, 1].into(), prefix_len: 24, internal: kind & 2 != 0 };
    match judge(&frame, OWN, &network) {
        Verdict::Denied | Verdict::Nobody => {}
        Verdict::Question(ip) => {
            assert!(frame[6..12] == OWN.mac && frame[22..28] == OWN.mac && ip != OWN.ip);
            assert!(frame[28..32] == OWN.ip.octets() || frame[28..32] == [0; 4]);
        }
        _ => assert!(frame[6..12] == OWN.mac && frame[26..30] == OWN.ip.octets()),
    }
    let mut handshakes = Handshakes::default();
    assert!(!matches!(handshakes.came(&frame), Came::Due(_)), "nothing was due");
    if let Some(mut question) = handshakes.sent(&frame) {
        // As passt answers: the asker is now who is asked.
        question[21] = 2;
        question.copy_within(22..32, 32);
        let Came::Due(ack) = handshakes.came(&question) else { panic!("nothing is due") };
        assert_eq!((&ack[..6], &ack[6..12], ack[47]), (&frame[6..12], &frame[..6], 0x10));
    }
    if admit(&mut frame, OWN, &network) {
        assert_eq!((&frame[..6], &frame[6..12]), (&OWN.mac[..], &network.gateway_mac()[..]));
        assert!(frame[26..29] != [172, 28, 5] || frame[29] == 1, "from a member");
    }
});
