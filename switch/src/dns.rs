//! Names of members, by DNS (RFC 1035): questions of hostile guests.

use std::net::Ipv4Addr;

use simple_dns::rdata::{A, RData};
use simple_dns::{CLASS, OPCODE, Packet, PacketFlag, QCLASS, QTYPE, RCODE, ResourceRecord, TYPE};

/// How long an answer may be kept, seconds: an address is another's once its container has ended.
const TTL: u32 = 1;
/// Most addresses in an answer, so that it is no longer than a datagram that everybody takes.
const MOST: usize = 16;

/// What becomes of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is answered with this.
    Is(Vec<u8>),
    /// It is about what is not of this network.
    Elsewhere,
    /// It is none.
    None,
}

/// Answers `query`; `find` knows the addresses of a name in small letters, without a dot at its end. None: it is no name of this network.
/// What is not of the network is nobody's if `alone`.
pub fn answer(query: &[u8], alone: bool, find: impl Fn(&str) -> Option<Vec<Ipv4Addr>>) -> Answer {
    let Ok(packet) = Packet::parse(query) else { return Answer::None };
    let [question] = &packet.questions[..] else { return Answer::None };
    if packet.has_flags(PacketFlag::RESPONSE) || packet.opcode() != OPCODE::StandardQuery {
        return Answer::None;
    }
    let name = question.qname.to_string().to_ascii_lowercase();
    let (addresses, code) = match find(name.trim_end_matches('.')) {
        Some(addresses) => (addresses, RCODE::NoError),
        None if alone => (Vec::new(), RCODE::NameError),
        None => return Answer::Elsewhere,
    };
    let mut reply = Packet::new_reply(packet.id());
    reply.set_flags(PacketFlag::RECURSION_AVAILABLE | PacketFlag::AUTHORITATIVE_ANSWER);
    if packet.has_flags(PacketFlag::RECURSION_DESIRED) {
        reply.set_flags(PacketFlag::RECURSION_DESIRED);
    }
    *reply.rcode_mut() = code;
    reply.questions.push(question.clone());
    let wanted = matches!(question.qtype, QTYPE::TYPE(TYPE::A) | QTYPE::ANY)
        && matches!(question.qclass, QCLASS::CLASS(CLASS::IN) | QCLASS::ANY);
    for address in addresses.into_iter().take(if wanted { MOST } else { 0 }) {
        let data = RData::A(A { address: address.into() });
        reply.answers.push(ResourceRecord::new(question.qname.clone(), CLASS::IN, TTL, data));
    }
    reply.build_bytes_vec_compressed().map_or(Answer::None, Answer::Is)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use simple_dns::{Name, Question};

    fn question(name: &str, kind: QTYPE) -> Vec<u8> {
        let mut packet = Packet::new_query(7);
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
        packet.questions.push(Question::new(Name::new(name).unwrap(), kind, QCLASS::CLASS(CLASS::IN), false));
        packet.build_bytes_vec().unwrap()
    }

    fn find(name: &str) -> Option<Vec<Ipv4Addr>> {
        (name == "web").then(|| vec![[172, 28, 0, 2].into(), [172, 28, 0, 3].into()])
    }

    #[test]
    fn names_of_the_network_have_addresses() {
        let Answer::Is(bytes) = answer(&question("WeB", QTYPE::TYPE(TYPE::A)), false, find) else { panic!() };
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!((packet.id(), packet.rcode()), (7, RCODE::NoError));
        assert!(
            packet.has_flags(PacketFlag::RESPONSE | PacketFlag::RECURSION_AVAILABLE | PacketFlag::RECURSION_DESIRED)
        );
        let addresses: Vec<_> = packet.answers.iter().map(|answer| answer.rdata.clone()).collect();
        let wanted = [0xac1c_0002, 0xac1c_0003].map(|address| RData::A(A { address }));
        assert_eq!((packet.questions.len(), &addresses[..]), (1, &wanted[..]));
        // It is known, but has nothing of this kind: whoever asks for both does not wait for the other.
        let Answer::Is(bytes) = answer(&question("web", QTYPE::TYPE(TYPE::AAAA)), false, find) else { panic!() };
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!((packet.rcode(), packet.answers.len()), (RCODE::NoError, 0));
    }

    #[test]
    fn other_names_are_asked_elsewhere_or_are_none() {
        let query = question("example.org", QTYPE::TYPE(TYPE::A));
        assert_eq!(answer(&query, false, find), Answer::Elsewhere);
        let Answer::Is(bytes) = answer(&query, true, find) else { panic!() };
        assert_eq!(Packet::parse(&bytes).unwrap().rcode(), RCODE::NameError);
    }

    #[test]
    fn what_is_no_question_has_no_answer() {
        let mut reply = Packet::new_reply(1);
        reply.questions.push(Question::new(Name::new("web").unwrap(), QTYPE::ANY, QCLASS::ANY, false));
        assert_eq!(answer(&reply.build_bytes_vec().unwrap(), false, find), Answer::None);
        assert_eq!(answer(&Packet::new_query(1).build_bytes_vec().unwrap(), false, find), Answer::None);
        let query = question("web", QTYPE::ANY);
        for len in 0..query.len() {
            assert_eq!(answer(&query[..len], true, find), Answer::None, "{len}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_more_than_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..600), at in any::<prop::sample::Index>(), with in any::<u8>()) {
            let _ = answer(&bytes, true, find);
            bytes = question("a.name.of.several.parts", QTYPE::ANY);
            let place = at.index(bytes.len());
            bytes[place] = with;
            if let Answer::Is(reply) = answer(&bytes, true, |_| Some(vec![Ipv4Addr::LOCALHOST; 100])) {
                prop_assert!(reply.len() <= 512 && Packet::parse(&reply).is_ok());
            }
        }
    }
}
