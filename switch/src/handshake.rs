//! The end of TCP's handshake (RFC 9293, 3.5) with who calls a guest through passt. That of Debian 12 says nothing to the guest's SYN,ACK until the
//! client has said something: a server that speaks first never gets to do so, for it waits for the handshake's end. So the guest is told by us, by
//! the ACK that is due; the one of a newer passt does no harm beside it.
//!
//! ```text
//! guest ── SYN,ACK ──► passt
//!   us  ── ARP: who has …? ──► passt          it has read both by the time it answers
//!   us  ◄── ARP: I ── passt
//! guest ◄── ACK ── us
//! ```
//!
//! Not before: the same passt never comes to the end of what it does if it finds a SYN,ACK and more of that connection in one reading.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use etherparse::{
    ArpEthIpv4Packet, ArpOperation, ArpPacketSlice, EtherType, Ethernet2Slice, IpNumber, Ipv4Slice, PacketBuilder,
    TcpSlice,
};

/// Most of a guest's handshakes that wait: the guest begins one that is forgotten anew.
const MOST: usize = 64;
/// Who asks, as the answer says, before the number of the question: of the range that is for everybody's own use, and nobody's here.
const ASKER: [u8; 4] = [0x02, b'a', b'c', b'k'];
/// What may be sent before passt's first own word on that, in units that it says: 64 KiB with those that it has, and its buffer has that room.
const WINDOW: u16 = 256;
/// Hops that an ACK may take.
const TTL: u8 = 64;

/// Those of one guest that passt has not answered yet.
#[derive(Debug, Default)]
pub struct Handshakes {
    /// The ACKs that are due, by the numbers of their questions, in order.
    due: VecDeque<(u16, Vec<u8>)>,
    asked: u16,
}

/// A frame of passt's.
#[derive(Debug, PartialEq, Eq)]
pub enum Came {
    /// It is the guest's business.
    Frame,
    /// It is nobody's.
    Nothing,
    /// It was for us, and this is due to the guest.
    Due(Vec<u8>),
}

impl Handshakes {
    /// Looks at a frame of the guest's that goes to passt. Returns what is to follow it there, if anything.
    pub fn sent(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        // Nearly all are none.
        if frame.get(12..14)? != [8, 0] || *frame.get(23)? != IpNumber::TCP.0 {
            return None;
        }
        let (ack, question) = due(frame, self.asked)?;
        if self.due.len() >= MOST {
            self.due.pop_front();
        }
        self.due.push_back((self.asked, ack));
        self.asked = self.asked.wrapping_add(1);
        Some(question)
    }

    /// Looks at a frame of passt's.
    pub fn came(&mut self, frame: &[u8]) -> Came {
        let Some(number) = answered(frame) else { return Came::Frame };
        // Answers come in the order of the questions: those before it were lost.
        match self.due.iter().position(|(asked, _)| *asked == number) {
            Some(place) => self.due.drain(..=place).next_back().map_or(Came::Nothing, |(_, ack)| Came::Due(ack)),
            None => Came::Nothing,
        }
    }
}

/// The ACK that is due to a SYN,ACK, and the question of this number that follows it. None: it is no SYN,ACK.
fn due(frame: &[u8], number: u16) -> Option<(Vec<u8>, Vec<u8>)> {
    let ethernet = Ethernet2Slice::from_slice_without_fcs(frame).ok()?;
    let ip = Ipv4Slice::from_slice(ethernet.payload_slice()).ok()?;
    let tcp = TcpSlice::from_slice(ip.payload().payload).ok()?;
    if !(tcp.syn() && tcp.ack()) || ip.is_payload_fragmented() {
        return None;
    }
    let (guest, caller) = (ip.header().source_addr(), ip.header().destination_addr());
    let ack = PacketBuilder::ethernet2(ethernet.destination(), ethernet.source())
        .ipv4(caller.octets(), guest.octets(), TTL)
        .tcp(tcp.destination_port(), tcp.source_port(), tcp.acknowledgment_number(), WINDOW)
        .ack(tcp.sequence_number().wrapping_add(1));
    let mut bytes = Vec::with_capacity(ack.size(0));
    ack.write(&mut bytes, &[]).ok()?;
    Some((bytes, question(number, [ethernet.source(), ethernet.destination()], guest, caller)))
}

/// A question that passt answers at once, and of which the guest hears nothing ([`Handshakes::came`]).
pub fn knock(guest: Ipv4Addr, gateway: Ipv4Addr) -> Vec<u8> {
    // From nobody's address: passt takes who sends for its guest.
    question(u16::MAX, [[0xff; 6]; 2], guest, gateway)
}

/// Who has the address `wanted`? passt says that it does, whichever that is but for the guest's.
fn question(number: u16, [from, to]: [[u8; 6]; 2], ip: Ipv4Addr, wanted: Ipv4Addr) -> Vec<u8> {
    let mut asker = [0; 6];
    asker[..4].copy_from_slice(&ASKER);
    asker[4..].copy_from_slice(&number.to_be_bytes());
    let packet = ArpEthIpv4Packet {
        operation: ArpOperation::REQUEST,
        sender_mac: asker,
        sender_ipv4: ip.octets(),
        target_mac: [0; 6],
        target_ipv4: wanted.octets(),
    };
    let builder = PacketBuilder::ethernet2(from, to).arp(packet.into());
    let mut frame = Vec::with_capacity(builder.size());
    // A vector takes all, and the packet is of a size that is known.
    let _ = builder.write(&mut frame);
    frame
}

/// The number of the question that this frame is the answer to, if it is one.
fn answered(frame: &[u8]) -> Option<u16> {
    let ethernet = Ethernet2Slice::from_slice_without_fcs(frame).ok()?;
    if ethernet.ether_type() != EtherType::ARP {
        return None;
    }
    let arp = ArpPacketSlice::from_slice(ethernet.payload_slice()).ok()?;
    let number = arp.target_hw_addr().strip_prefix(&ASKER)?.first_chunk().copied().map(u16::from_be_bytes)?;
    (arp.operation() == ArpOperation::REPLY).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::TransportSlice;
    use proptest::prelude::*;

    const GATEWAY: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 9];

    /// A segment of 10.0.2.15:80 to 192.0.2.7:40000.
    fn segment(syn: bool, ack: bool) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(GUEST, GATEWAY).ipv4([10, 0, 2, 15], [192, 0, 2, 7], 64).tcp(
            80,
            40_000,
            u32::MAX,
            1000,
        );
        let builder = if syn { builder.syn() } else { builder };
        let builder = if ack { builder.ack(256) } else { builder };
        let mut frame = Vec::new();
        builder.write(&mut frame, &[]).unwrap();
        frame
    }

    /// As passt answers a question.
    fn answer(question: &[u8]) -> Vec<u8> {
        let asked = ArpPacketSlice::from_slice(&question[14..]).unwrap();
        let bytes = |slice: &[u8]| <[u8; 4]>::try_from(slice).unwrap();
        let packet = ArpEthIpv4Packet {
            operation: ArpOperation::REPLY,
            sender_mac: [9; 6],
            sender_ipv4: bytes(asked.target_protocol_addr()),
            target_mac: asked.sender_hw_addr().try_into().unwrap(),
            target_ipv4: bytes(asked.sender_protocol_addr()),
        };
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([9; 6], GUEST).arp(packet.into()).write(&mut frame).unwrap();
        frame
    }

    #[test]
    fn a_syn_ack_is_acknowledged_once_passt_has_answered_what_came_after_it() {
        let mut handshakes = Handshakes::default();
        let question = handshakes.sent(&segment(true, true)).unwrap();
        assert_eq!(handshakes.came(&segment(false, true)), Came::Frame);
        let Came::Due(ack) = handshakes.came(&answer(&question)) else { panic!("nothing is due") };
        let packet = etherparse::SlicedPacket::from_ethernet(&ack).unwrap();
        let Some(TransportSlice::Tcp(tcp)) = &packet.transport else { panic!("no TCP: {packet:?}") };
        assert_eq!((&ack[..6], &ack[6..12]), (&GUEST[..], &GATEWAY[..]));
        assert_eq!((&ack[26..30], &ack[30..34]), (&[192, 0, 2, 7][..], &[10, 0, 2, 15][..]));
        assert_eq!((tcp.source_port(), tcp.destination_port()), (40_000, 80));
        assert!(tcp.ack() && !tcp.syn());
        // After the last number comes the first.
        assert_eq!((tcp.sequence_number(), tcp.acknowledgment_number()), (256, 0));
        assert_eq!(tcp.calc_checksum_ipv4([192, 0, 2, 7], [10, 0, 2, 15]).unwrap(), tcp.checksum());
        assert_eq!(handshakes.came(&answer(&question)), Came::Nothing, "it was one");
        // One that was not answered is forgotten.
        handshakes.sent(&segment(true, true)).unwrap();
        let question = handshakes.sent(&segment(true, true)).unwrap();
        assert!(matches!(handshakes.came(&answer(&question)), Came::Due(_)));
        assert!(handshakes.due.is_empty());
    }

    #[test]
    fn nothing_else_is() {
        let mut handshakes = Handshakes::default();
        for (syn, ack) in [(true, false), (false, true), (false, false)] {
            assert_eq!(handshakes.sent(&segment(syn, ack)), None, "{syn} {ack}");
        }
        // What the guest itself has asked.
        let mut own = answer(&handshakes.sent(&segment(true, true)).unwrap());
        own[32..38].copy_from_slice(&GUEST);
        assert_eq!(handshakes.came(&own), Came::Frame);
        // As many as there can be, of which the last ones count.
        let questions: Vec<_> = (0..2 * MOST).filter_map(|_| handshakes.sent(&segment(true, true))).collect();
        assert_eq!((questions.len(), handshakes.due.len()), (2 * MOST, MOST));
        assert_eq!(handshakes.came(&answer(&questions[MOST - 1])), Came::Nothing);
        assert!(matches!(handshakes.came(&answer(&questions[MOST])), Came::Due(_)));
        // Nobody waits for the answer to a knock.
        assert_eq!(handshakes.came(&answer(&knock([10, 0, 2, 15].into(), [10, 0, 2, 2].into()))), Came::Nothing);
    }

    proptest! {
        #[test]
        fn frames_may_be_anything(mut frame in prop::collection::vec(any::<u8>(), 0..80), kind in 0..3) {
            if let (Some(bytes), 1..) = (frame.get_mut(12..24), kind) {
                bytes.copy_from_slice(&[8, if kind == 1 { 0 } else { 6 }, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6]);
            }
            let mut handshakes = Handshakes::default();
            let _ = handshakes.sent(&frame);
            let _ = handshakes.came(&frame);
        }
    }
}
