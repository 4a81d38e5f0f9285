//! Packets as guests send them, and as they would to get out.

use proptest::prelude::*;

use super::super::checksum;
use super::*;

const GUEST: [u8; 4] = [10, 0, 2, 15];

fn list(rules: &[&str]) -> Egress {
    Egress::new(rules.iter().map(|rule| rule.parse().unwrap()).collect())
}

/// A sound packet to `to`, with so many bytes of data.
fn packet(protocol: u8, to: [u8; 4], port: u16, data: usize) -> Vec<u8> {
    let l4 = match protocol {
        TCP => 20,
        UDP => 8,
        _ => 4,
    };
    let mut packet = vec![0; L4 + l4 + data];
    packet[HEADER + 12..IP].copy_from_slice(&IPV4.to_be_bytes());
    packet[IP] = 0x45;
    packet[IP + 2..IP + 4].copy_from_slice(&((20 + l4 + data) as u16).to_be_bytes());
    packet[IP + 9] = protocol;
    packet[IP + 12..IP + 16].copy_from_slice(&GUEST);
    packet[IP + 16..L4].copy_from_slice(&to);
    if protocol == TCP || protocol == UDP {
        packet[L4..L4 + 2].copy_from_slice(&40000u16.to_be_bytes());
        packet[L4 + 2..L4 + 4].copy_from_slice(&port.to_be_bytes());
    }
    packet
}

/// With bytes of its own at a place.
fn with(mut packet: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    packet[at..at + bytes.len()].copy_from_slice(bytes);
    packet
}

fn allows(egress: &Egress, packet: &[u8]) -> bool {
    egress.allows(&packet[..packet.len().min(HEAD)], packet.len())
}

#[test]
fn rules_are_networks_and_ports_and_nothing_else() {
    for rule in ["10.0.0.0/8", "1.2.3.4", "0.0.0.0/0", "1.2.3.4:443", "10.0.0.0/8:53", "255.255.255.255"] {
        assert_eq!(String::from(rule.parse::<Rule>().unwrap()), rule);
    }
    let bad = [
        "",
        "1.2.3",
        "1.2.3.4/33",
        "1.2.3.4/",
        "1.2.3.4/8",
        "10.0.0.1/8",
        "1.2.3.4:0",
        "1.2.3.4:",
        "1.2.3.4:65536",
        "1.2.3.4:+1",
        "::1",
        "host:1",
        "1.2.3.4/+8",
    ];
    for rule in bad {
        assert!(rule.parse::<Rule>().is_err(), "{rule}");
    }
}

#[test]
fn what_is_listed_may_leave_and_nothing_else() {
    let egress = list(&["192.0.2.0/24", "198.51.100.1:443"]);
    for (protocol, to, port, may) in [
        (TCP, [192, 0, 2, 255], 1, true),
        (UDP, [192, 0, 2, 0], 53, true),
        (1, [192, 0, 2, 1], 0, true),
        (TCP, [192, 0, 3, 0], 1, false),
        (TCP, [198, 51, 100, 1], 443, true),
        (UDP, [198, 51, 100, 1], 443, true),
        (TCP, [198, 51, 100, 1], 444, false),
        (TCP, [198, 51, 100, 2], 443, false),
        (1, [198, 51, 100, 1], 443, false),
        (132, [198, 51, 100, 1], 443, false),
    ] {
        for data in [0, 30, 5000] {
            assert_eq!(allows(&egress, &packet(protocol, to, port, data)), may, "{protocol} {to:?}:{port}");
        }
    }
    let nothing = list(&[]);
    assert!(!allows(&nothing, &packet(TCP, [192, 0, 2, 1], 1, 0)));
    assert!(allows(&list(&["0.0.0.0/0"]), &packet(UDP, [1, 2, 3, 4], 1, 0)));
}

#[test]
fn large_segments_and_checksums_in_their_place_may_leave() {
    let egress = list(&["192.0.2.1:80"]);
    let tcp = packet(TCP, [192, 0, 2, 1], 80, 60000);
    let left = |flags, kind, start: u16, offset: u16| {
        let [a, b, c, d] = [start.to_le_bytes(), offset.to_le_bytes()].concat()[..] else { unreachable!() };
        with(tcp.clone(), 0, &[flags, kind, 54, 0, 0xb4, 5, a, b, c, d])
    };
    assert!(allows(&egress, &left(NEEDS_CSUM, 0, 34, 16)) && allows(&egress, &left(NEEDS_CSUM, GSO_TCPV4, 34, 16)));
    assert!(allows(&egress, &left(NEEDS_CSUM, GSO_TCPV4 | GSO_ECN, 34, 16)));
    // It would be written over the address, or the port.
    for (start, offset) in [(14, 16), (30, 0), (34, 2), (34, 6), (0, 50), (u16::MAX, 17), (50, 0)] {
        assert!(!allows(&egress, &left(NEEDS_CSUM, 0, start, offset)), "{start} {offset}");
    }
    for (flags, kind) in
        [(2, 0), (3, 0), (NEEDS_CSUM, 3), (NEEDS_CSUM, 4), (NEEDS_CSUM, 5), (NEEDS_CSUM, GSO_ECN), (0, GSO_TCPV4)]
    {
        assert!(!allows(&egress, &left(flags, kind, 34, 16)), "{flags} {kind}");
    }
    let udp = packet(UDP, [192, 0, 2, 1], 80, 100);
    assert!(allows(&egress, &with(udp.clone(), 0, &[NEEDS_CSUM, 0, 0, 0, 0, 0, 34, 0, 6, 0])));
    assert!(!allows(&egress, &with(udp.clone(), 0, &[NEEDS_CSUM, 0, 0, 0, 0, 0, 34, 0, 16, 0])));
    assert!(!allows(&egress, &with(udp, 0, &[NEEDS_CSUM, GSO_TCPV4, 0, 0, 9, 0, 34, 0, 6, 0])));
}

/// Found by fuzzing: its address was listed, and the checksum half behind its end.
#[test]
fn group_6_no_checksum_is_left_behind_the_end() {
    let egress = list(&["1.2.3.4"]);
    for (protocol, place, whole) in [(UDP, 6, 8), (TCP, 16, 20)] {
        for len in 0..=whole {
            let mut short = packet(protocol, [1, 2, 3, 4], 1, 0);
            short.truncate(L4 + len);
            short[IP + 2..IP + 4].copy_from_slice(&(20 + len as u16).to_be_bytes());
            assert!(allows(&egress, &short), "{protocol} {len}");
            let left = with(short, 0, &[NEEDS_CSUM, 0, 0, 0, 0, 0, 34, 0, place, 0]);
            assert_eq!(allows(&egress, &left), len == whole, "{protocol} {len}");
        }
    }
}

#[test]
fn what_can_be_read_in_two_ways_does_not_leave() {
    let egress = list(&["192.0.2.1:80"]);
    let sound = packet(TCP, [192, 0, 2, 1], 80, 100);
    assert!(allows(&egress, &sound));
    let length = |by: i16| (120i16 + 20 + by).to_be_bytes();
    for (what, bad) in [
        ("VLAN", with(sound.clone(), HEADER + 12, &[0x81, 0, 0, 1, 8, 0])),
        ("Q in Q", with(sound.clone(), HEADER + 12, &[0x88, 0xa8])),
        ("IPv6", with(sound.clone(), HEADER + 12, &[0x86, 0xdd])),
        ("a length instead of a type", with(sound.clone(), HEADER + 12, &[0, 154])),
        ("options", with(sound.clone(), IP, &[0x46])),
        ("no header", with(sound.clone(), IP, &[0x44])),
        ("version 6", with(sound.clone(), IP, &[0x65])),
        ("more than there is", with(sound.clone(), IP + 2, &length(1))),
        ("less than there is", with(sound.clone(), IP + 2, &length(-1))),
        ("no room for a header", with(sound.clone(), IP + 2, &[0, 19])),
        ("no room for ports", with(sound.clone(), IP + 2, &[0, 24])),
        ("the first fragment", with(sound.clone(), IP + 6, &[0x20, 0])),
        ("a later one", with(sound.clone(), IP + 6, &[0, 1])),
        ("the flag that is none", with(sound.clone(), IP + 6, &[0x80, 0])),
    ] {
        assert!(!allows(&egress, &bad), "{what}");
    }
    for len in 0..HEAD {
        assert!(!egress.allows(&sound[..len], len) && !egress.allows(&sound[..len], sound.len()), "{len}");
    }
    // A short frame is filled up; do not fragment is no fragment.
    let short = packet(UDP, [192, 0, 2, 1], 80, 0);
    assert!(allows(&egress, &[&short[..], &[0; 18]].concat()) && !allows(&egress, &[&short[..], &[0; 19]].concat()));
    assert!(allows(&egress, &with(sound.clone(), IP + 6, &[0x40, 0])));
    // Where every port is allowed, fragments are.
    let open = list(&["192.0.2.1"]);
    assert!(allows(&open, &with(sound.clone(), IP + 6, &[0, 9])));
    assert!(!allows(&open, &with(with(sound, IP + 6, &[0, 9]), 0, &[NEEDS_CSUM, 0, 0, 0, 0, 0, 34, 0, 16, 0])));
}

#[test]
fn arp_is_about_who_sends_it() {
    let egress = list(&[]);
    let mut arp = vec![0; IP + 28];
    arp[HEADER..HEADER + 14].copy_from_slice(&[255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 1, 8, 6]);
    arp[IP..IP + 14].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1]);
    assert!(allows(&egress, &arp) && allows(&egress, &with(arp.clone(), IP + 7, &[2])));
    for (at, byte) in
        [(0, 1), (1, 1), (IP + 1, 6), (IP + 2, 0x86), (IP + 4, 8), (IP + 7, 3), (IP + 13, 2), (HEADER + 11, 2)]
    {
        assert!(!allows(&egress, &with(arp.clone(), at, &[byte])), "{at}");
    }
    assert!(!allows(&egress, &arp[..IP + 27]));
}

#[test]
fn who_calls_is_answered_at_the_address_and_port_that_it_called_from() {
    let caller = [203, 0, 113, 9];
    let call = |protocol, flags: u8| {
        let mut call = packet(protocol, GUEST, 80, 20);
        call[IP + 12..IP + 16].copy_from_slice(&caller);
        call[L4 + 13] = flags;
        call
    };
    let answer = |to, from: u16, port| with(packet(TCP, to, port, 0), L4, &from.to_be_bytes());
    let mut egress = list(&[]);
    for no_call in [
        call(TCP, ACK),
        call(TCP, SYN | ACK),
        with(call(TCP, SYN), IP + 6, &[0x20, 0]),
        call(TCP, SYN)[..HEAD - 1].to_vec(),
    ] {
        egress.learn(&no_call);
        assert!(!allows(&egress, &answer(caller, 80, 40000)));
    }
    egress.learn(&[]);
    egress.learn(&call(TCP, SYN));
    assert!(allows(&egress, &answer(caller, 80, 40000)));
    for (to, from, port) in [([203, 0, 113, 8], 80, 40000), (caller, 81, 40000), (caller, 80, 40001)] {
        assert!(!allows(&egress, &answer(to, from, port)), "{to:?} {from} {port}");
    }
    let datagram = with(packet(UDP, caller, 40000, 0), L4, &80u16.to_be_bytes());
    assert!(!allows(&egress, &datagram));
    egress.learn(&call(UDP, 0));
    assert!(allows(&egress, &datagram));
}

/// What a receiver makes of a frame, by the book: destination, and a port if there is one in this packet.
fn read(frame: &[u8]) -> Option<([u8; 4], Option<u16>)> {
    let ip = frame.get(14..).filter(|_| frame[12..14] == [8, 0])?;
    let header = usize::from(ip.first()? & 15) * 4;
    let to = ip.get(16..20)?.try_into().ok()?;
    let whole = ip.get(6)? & 0x3f == 0 && *ip.get(7)? == 0;
    let has_port = [TCP, UDP].contains(ip.get(9)?) && whole;
    Some((
        to,
        has_port.then(|| ip.get(header + 2..header + 4)).flatten().map(|port| u16::from_be_bytes([port[0], port[1]])),
    ))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// Whatever becomes of a packet that may leave, it goes where the list says: also after its checksum is completed.
    #[test]
    fn no_packet_gets_anywhere_else(
        protocol in prop::sample::select(vec![TCP, UDP, 1, 0]),
        listed in any::<bool>(),
        port in prop::sample::select(vec![80u16, 81]),
        data in 0usize..60,
        changes in prop::collection::vec((0usize..HEAD, prop_oneof![any::<u8>(), Just(0), Just(1), Just(34), Just(16), Just(0x45)]), 0..6),
    ) {
        let egress = list(&["192.0.2.1:80", "198.51.100.0/24"]);
        let mut packet = packet(protocol, if listed { [192, 0, 2, 1] } else { [198, 51, 100, 7] }, port, data);
        let len = packet.len();
        changes.iter().for_each(|(at, byte)| packet[at % len] = *byte);
        if allows(&egress, &packet) && packet[HEADER + 12..IP] != ARP.to_be_bytes() {
            let (header, frame) = packet.split_first_chunk_mut::<HEADER>().unwrap();
            prop_assert!(checksum::complete(header, frame));
            let (to, port) = read(frame).unwrap();
            prop_assert!(to[..3] == [198, 51, 100] || (to == [192, 0, 2, 1] && port == Some(80)), "{to:?} {port:?}");
            // Nobody reads a VLAN tag, another version or options in it.
            prop_assert_eq!((&frame[12..14], frame[14]), (&[8u8, 0][..], 0x45));
        }
    }

    /// No bytes are a surprise.
    #[test]
    fn any_bytes_are_judged(bytes in prop::collection::vec(any::<u8>(), 0..HEAD + 10), len in 0usize..70000) {
        let mut egress = list(&["0.0.0.0/0"]);
        egress.learn(&bytes);
        let _ = egress.allows(&bytes[..bytes.len().min(HEAD)], len);
    }
}
