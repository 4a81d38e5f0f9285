//! Frames as guests send them, and as they would to be somebody else.

use proptest::prelude::*;

use super::*;

const OWN: Own = Own { mac: [2, 0, 0, 0, 0, 2], ip: Ipv4Addr::new(172, 28, 5, 2) };
const OTHER: Own = Own { mac: [2, 0, 0, 0, 0, 3], ip: Ipv4Addr::new(172, 28, 5, 3) };

fn network() -> Network {
    Network { name: "net".into(), gateway: [172, 28, 5, 1].into(), prefix_len: 24, internal: false }
}

fn udp(from: Own, to: [u8; 6], ip: [u8; 4], port: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(from.mac, to).ipv4(from.ip.octets(), ip, 64).udp(1234, port);
    builder.write(&mut frame, b"payload").unwrap();
    frame
}

fn question(from: [u8; 6], sender: Own, target: Ipv4Addr, operation: ArpOperation) -> Vec<u8> {
    let packet = ArpEthIpv4Packet {
        operation,
        sender_mac: sender.mac,
        sender_ipv4: sender.ip.octets(),
        target_mac: [0; 6],
        target_ipv4: target.octets(),
    };
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(from, [0xff; 6]).arp(packet.into()).write(&mut frame).unwrap();
    // As Ethernet fills it up.
    frame.resize(60, 0);
    frame
}

fn judged(frame: &[u8]) -> Verdict<'_> {
    judge(frame, OWN, &network())
}

#[test]
fn what_is_in_its_own_name_goes_where_it_is_to() {
    let gateway = network().gateway_mac();
    assert_eq!(judged(&udp(OWN, OTHER.mac, [172, 28, 5, 3], 80)), Verdict::To(OTHER.mac));
    assert_eq!(judged(&udp(OWN, [0xff; 6], [172, 28, 5, 255], 80)), Verdict::Everybody);
    assert_eq!(judged(&udp(OWN, [1, 0, 0x5e, 0, 0, 0xfb], [224, 0, 0, 251], 5353)), Verdict::Everybody);
    assert_eq!(judged(&udp(OWN, gateway, [198, 51, 100, 7], 53)), Verdict::Out);
    assert_eq!(judged(&udp(OWN, gateway, [172, 28, 5, 1], 53)), Verdict::Dns(1234, b"payload"));
    // Who calls from the host is answered there; members are not reached by it.
    assert_eq!(judged(&udp(OWN, gateway, [172, 28, 5, 1], 80)), Verdict::Out);
    assert_eq!(judged(&udp(OWN, gateway, [172, 28, 5, 3], 53)), Verdict::Nobody);
}

#[test]
fn nobody_is_somebody_else() {
    let as_other = Own { mac: OWN.mac, ip: OTHER.ip };
    for frame in [
        udp(OTHER, [2, 0, 0, 0, 0, 4], [172, 28, 5, 4], 80),
        udp(as_other, [2, 0, 0, 0, 0, 4], [172, 28, 5, 4], 80),
        udp(Own { mac: OWN.mac, ip: [172, 28, 5, 1].into() }, OTHER.mac, [172, 28, 5, 3], 80),
        udp(Own { mac: OWN.mac, ip: [198, 51, 100, 7].into() }, network().gateway_mac(), [198, 51, 100, 8], 80),
        question(OTHER.mac, OWN, OTHER.ip, ArpOperation::REQUEST),
        question(OWN.mac, OTHER, OTHER.ip, ArpOperation::REQUEST),
        question(OWN.mac, as_other, OTHER.ip, ArpOperation::REQUEST),
        question(OWN.mac, as_other, OTHER.ip, ArpOperation::REPLY),
        question(OWN.mac, Own { mac: OTHER.mac, ip: OWN.ip }, OTHER.ip, ArpOperation::REQUEST),
    ] {
        assert_eq!(judged(&frame), Verdict::Denied, "{frame:02x?}");
    }
}

#[test]
fn questions_are_for_the_switch_and_nothing_else_of_arp_is() {
    let ask = |sender, target| question(OWN.mac, sender, target, ArpOperation::REQUEST);
    assert_eq!(judged(&ask(OWN, OTHER.ip)), Verdict::Question(OTHER.ip));
    let probe = Own { mac: OWN.mac, ip: Ipv4Addr::UNSPECIFIED };
    assert_eq!(judged(&ask(probe, OTHER.ip)), Verdict::Question(OTHER.ip));
    assert_eq!([judged(&ask(OWN, OWN.ip)), judged(&ask(probe, OWN.ip))], [Verdict::Nobody; 2]);
    assert_eq!(judged(&question(OWN.mac, OWN, OTHER.ip, ArpOperation::REPLY)), Verdict::Nobody);
    let answer = arp_answer(OWN, OTHER.ip, OTHER.mac);
    let arp = ArpPacketSlice::from_slice(&answer[ETHERNET..]).unwrap();
    assert_eq!((&answer[..6], &answer[6..12], arp.operation()), (&OWN.mac[..], &OTHER.mac[..], ArpOperation::REPLY));
    assert_eq!((arp.sender_hw_addr(), arp.sender_protocol_addr()), (&OTHER.mac[..], &OTHER.ip.octets()[..]));
}

#[test]
fn what_is_malformed_or_of_another_protocol_goes_nowhere() {
    let whole = udp(OWN, OTHER.mac, [172, 28, 5, 3], 80);
    for len in 0..whole.len() {
        assert_eq!(judged(&whole[..len]), Verdict::Nobody, "{len}");
    }
    for kind in [0x86dd_u16, 0x8100, 0x88a8, 0x0600, 0] {
        let mut other = whole.clone();
        other[12..14].copy_from_slice(&kind.to_be_bytes());
        assert_eq!(judged(&other), Verdict::Nobody, "{kind:x}");
    }
    // A later part of a packet has no ports.
    let mut part = udp(OWN, network().gateway_mac(), [172, 28, 5, 1], 53);
    part[ETHERNET + 7] = 1;
    assert_eq!(judged(&part), Verdict::Out);
}

#[test]
fn from_beyond_comes_what_is_for_it_and_from_nobody_here() {
    let outside = |ip: [u8; 4]| udp(Own { mac: [9; 6], ip: ip.into() }, [0xff; 6], OWN.ip.octets(), 80);
    for (source, wanted) in
        [([198, 51, 100, 7], true), ([172, 28, 5, 1], true), ([172, 28, 5, 3], false), ([172, 28, 5, 2], false)]
    {
        let mut frame = outside(source);
        assert_eq!(admit(&mut frame, OWN, &network()), wanted, "{source:?}");
        if wanted {
            assert_eq!((&frame[..6], &frame[6..12]), (&OWN.mac[..], &network().gateway_mac()[..]));
        }
    }
    assert!(!admit(&mut outside([198, 51, 100, 7])[..30], OWN, &network()));
    assert!(!admit(&mut question([9; 6], OTHER, OWN.ip, ArpOperation::REQUEST), OWN, &network()));
    assert!(!admit(&mut outside([198, 51, 100, 7]), OTHER, &network()));
}

#[test]
fn an_answer_of_the_resolver_is_a_sound_datagram() {
    let frame = dns_answer(OWN, &network(), 1234, b"answer");
    let whole = etherparse::SlicedPacket::from_ethernet(&frame).unwrap();
    let Some(etherparse::TransportSlice::Udp(udp)) = whole.transport else { panic!() };
    assert_eq!((udp.source_port(), udp.destination_port(), udp.payload()), (53, 1234, &b"answer"[..]));
    let source = network().gateway.octets();
    let sum = udp.to_header().calc_checksum_ipv4_raw(source, OWN.ip.octets(), b"answer").unwrap();
    assert_eq!(udp.checksum(), sum);
    assert!(dns_answer(OWN, &network(), 1234, &[0; 70_000]).is_empty());
}

proptest! {
    /// Whatever a guest sends, what leaves its port has its addresses.
    #[test]
    fn what_goes_anywhere_is_in_its_own_name(mut frame in prop::collection::vec(any::<u8>(), 0..120), kind in 0..4_u8, at in any::<prop::sample::Index>(), with in any::<u8>()) {
        match kind {
            0 => {}
            1 => frame = udp(OWN, OTHER.mac, [172, 28, 5, 3], 80),
            2 => frame = udp(OWN, network().gateway_mac(), [172, 28, 5, 1], 53),
            _ => frame = question(OWN.mac, OWN, OTHER.ip, ArpOperation::REQUEST),
        }
        if !frame.is_empty() {
            let place = at.index(frame.len());
            frame[place] = with;
        }
        match judged(&frame) {
            Verdict::Denied | Verdict::Nobody => {}
            Verdict::Question(_) => prop_assert!(frame[22..28] == OWN.mac && [&OWN.ip.octets()[..], &[0; 4]].contains(&&frame[28..32])),
            _ => prop_assert!(frame[6..12] == OWN.mac && frame[26..30] == OWN.ip.octets()),
        }
        let _ = admit(&mut frame, OWN, &network());
    }
}
