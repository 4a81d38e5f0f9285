//! Which of a guest's packets may leave: an allow-list of IPv4 networks and ports, and answers to those who have called the guest.
//!
//! A packet is judged by bytes that the guest cannot change any more, and by what whoever takes it will read in them: anything that
//! two readers may read in two ways does not leave. So with a list there is
//!
//! - ARP, and IPv4 without options; no VLAN tags, no IPv6, no other protocol of Ethernet;
//! - no packet whose lengths do not agree;
//! - no fragment but to where every port is allowed, since a later fragment has no ports, and may write over those of the first;
//! - no checksum that is left to be completed anywhere but at its place: it would be written over what was judged.
//!
//! Who calls the guest (a SYN, a datagram) is remembered, so many at a time, and may be answered at the address and port that it
//! called from. It keeps no other state.

use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::backend::HEADER;

const IP: usize = HEADER + 14;
const L4: usize = IP + 20;
/// Bytes of a packet that are judged: headers up to a TCP header without options.
pub const HEAD: usize = L4 + 20;

const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const TCP: u8 = 6;
const UDP: u8 = 17;
const SYN: u8 = 2;
const ACK: u8 = 16;
/// VIRTIO_NET_HDR_F_NEEDS_CSUM; VIRTIO_NET_HDR_GSO_TCPV4, and _ECN, which may come with it.
const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_ECN: u8 = 0x80;
/// Frames shorter than this are filled up with anything.
const SHORTEST_FRAME: usize = 60;
/// Callers that are remembered: a power of two.
const CALLERS: usize = 4096;
/// Most rules of a list.
pub const MOST_RULES: usize = 1024;

/// Where packets may go: a network, and a port of TCP and UDP, or everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rule {
    network: Ipv4Addr,
    prefix_len: u8,
    port: Option<u16>,
}

/// What is wrong with a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not IP[/LENGTH][:PORT], with a length of 0 to 32 and an IPv4 address that has no bits beyond it")]
pub struct BadRule(String);

impl Rule {
    /// One address, and one port of it or all.
    pub fn host(address: Ipv4Addr, port: Option<u16>) -> Self {
        Rule { network: address, prefix_len: 32, port }
    }

    fn mask(&self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix_len)).unwrap_or(0)
    }

    fn has(&self, address: u32) -> bool {
        (address ^ u32::from(self.network)) & self.mask() == 0
    }
}

impl FromStr for Rule {
    type Err = BadRule;

    fn from_str(text: &str) -> Result<Self, BadRule> {
        let number = |word: &str| word.parse::<u16>().ok().filter(|_| word.bytes().all(|byte| byte.is_ascii_digit()));
        let parse = || {
            let (network, port) = match text.split_once(':') {
                Some((network, port)) => (network, Some(number(port).filter(|port| *port > 0)?)),
                None => (text, None),
            };
            let (address, prefix_len) = match network.split_once('/') {
                Some((address, len)) => (address, number(len).filter(|len| *len <= 32)? as u8),
                None => (network, 32),
            };
            let rule = Rule { network: address.parse().ok()?, prefix_len, port };
            (u32::from(rule.network) & !rule.mask() == 0).then_some(rule)
        };
        parse().ok_or_else(|| BadRule(text.to_owned()))
    }
}

impl TryFrom<String> for Rule {
    type Error = BadRule;

    fn try_from(text: String) -> Result<Self, BadRule> {
        text.parse()
    }
}

impl From<Rule> for String {
    fn from(Rule { network, prefix_len, port }: Rule) -> String {
        let port = port.map(|port| format!(":{port}")).unwrap_or_default();
        if prefix_len == 32 { format!("{network}{port}") } else { format!("{network}/{prefix_len}{port}") }
    }
}

/// One that has called the guest: protocol, its address and port, the guest's port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Caller {
    protocol: u8,
    address: u32,
    port: u16,
    guest_port: u16,
}

impl Caller {
    fn place(&self) -> usize {
        let ports = u64::from(self.port) << 16 | u64::from(self.guest_port);
        let key = u64::from(self.address) << 32 | ports;
        // Fibonacci hashing (Knuth, vol. 3, 6.4).
        ((key ^ u64::from(self.protocol)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as usize % CALLERS
    }
}

/// The list, and who has called.
pub struct Egress {
    rules: Vec<Rule>,
    callers: Box<[Caller]>,
}

/// What an IPv4 packet says of itself.
struct Datagram {
    protocol: u8,
    source: u32,
    destination: u32,
    /// Ports, and the flags of TCP; none in protocols that have none, and where they are not in this part.
    ports: Option<(u16, u16)>,
    flags: u8,
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

fn long(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from(word(bytes, at)?) << 16 | u32::from(word(bytes, at + 2)?))
}

impl Datagram {
    /// Of a packet of `len` bytes, header included, that begins with `head`. None if it is no sound IPv4.
    fn of(head: &[u8], len: usize) -> Option<Self> {
        let total = usize::from(word(head, IP + 2)?);
        let frame = len.checked_sub(HEADER)?;
        let there = len.checked_sub(IP)?;
        // Nothing behind it but what fills up a short frame.
        let agree = total >= 20 && total <= there && (total == there || frame <= SHORTEST_FRAME);
        if *head.get(IP)? != 0x45 || !agree {
            return None;
        }
        // More fragments follow, or it has a place in a packet; the flag that is no flag is 0 (RFC 791).
        let place = word(head, IP + 6)?;
        let fragment = place & 0x3fff != 0;
        let protocol = *head.get(IP + 9)?;
        let least = match protocol {
            TCP => 20 + 20,
            UDP => 20 + 8,
            _ => usize::MAX,
        };
        let has_ports = !fragment && total >= least;
        Some(Datagram {
            protocol,
            source: long(head, IP + 12)?,
            destination: long(head, IP + 16)?,
            ports: has_ports.then(|| Some((word(head, L4)?, word(head, L4 + 2)?))).flatten(),
            flags: if has_ports && protocol == TCP { *head.get(L4 + 13)? } else { 0 },
        })
        .filter(|_| place & 0x8000 == 0)
    }
}

impl Egress {
    /// What these rules allow.
    pub fn new(rules: Vec<Rule>) -> Self {
        Egress { rules, callers: vec![Caller::default(); CALLERS].into_boxed_slice() }
    }

    /// Other rules; who has called is still known.
    pub fn set_rules(&mut self, rules: Vec<Rule>) {
        self.rules = rules;
    }

    /// Whether a packet of the guest's of `len` bytes, header included, may leave, whose first bytes, up to [`HEAD`], are `head`.
    pub fn allows(&self, head: &[u8], len: usize) -> bool {
        self.judge(head, len).unwrap_or(false)
    }

    fn judge(&self, head: &[u8], len: usize) -> Option<bool> {
        if head.len() != len.min(HEAD) {
            return None;
        }
        match word(head, HEADER + 12)? {
            ARP => Some(is_arp(head)?),
            IPV4 => {
                let datagram = Datagram::of(head, len)?;
                Some(leaves_as_it_is(head, &datagram)? && self.may_go(&datagram))
            }
            _ => Some(false),
        }
    }

    fn may_go(&self, datagram: &Datagram) -> bool {
        let Datagram { protocol, destination, ports, .. } = *datagram;
        let allowed = |rule: &Rule| {
            rule.has(destination) && rule.port.is_none_or(|port| ports.is_some_and(|(_, other)| other == port))
        };
        self.rules.iter().any(allowed)
            || ports.is_some_and(|(guest_port, port)| {
                let caller = Caller { protocol, address: destination, port, guest_port };
                self.callers.get(caller.place()) == Some(&caller)
            })
    }

    /// Looks at a packet for the guest: whoever calls may be answered.
    pub fn learn(&mut self, packet: &[u8]) {
        let Some(datagram) = Datagram::of(packet, packet.len()) else { return };
        let Datagram { protocol, source: address, ports: Some((port, guest_port)), flags, .. } = datagram else {
            return;
        };
        let calls = protocol == UDP || flags & (SYN | ACK) == SYN;
        if calls && word(packet, HEADER + 12) == Some(IPV4) {
            let caller = Caller { protocol, address, port, guest_port };
            self.callers[caller.place()] = caller;
        }
    }
}

/// ARP about IPv4 addresses on Ethernet (RFC 826), by whom it says, and nothing left to do.
fn is_arp(head: &[u8]) -> Option<bool> {
    let asks_nothing = head[0] == 0 && head[1] == 0;
    let kind = [word(head, IP)?, word(head, IP + 2)?, word(head, IP + 4)?] == [1, IPV4, 0x0604];
    let operation = matches!(word(head, IP + 6)?, 1 | 2);
    let sender = head.get(HEADER + 6..HEADER + 12)? == head.get(IP + 8..IP + 14)?;
    Some(asks_nothing && kind && operation && sender && head.len() >= IP + 28)
}

/// Whether nothing that the header leaves to others changes what was judged.
fn leaves_as_it_is(head: &[u8], datagram: &Datagram) -> Option<bool> {
    let little = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    let place = match datagram.protocol {
        TCP => 16,
        UDP => 6,
        _ => 0,
    };
    // With ports, it has a whole header of its protocol, and the checksum's place is in that.
    let in_place = datagram.ports.is_some() && usize::from(little(6)) == L4 - HEADER && little(8) == place;
    let checksum = match head[0] {
        0 => true,
        NEEDS_CSUM => in_place,
        _ => false,
    };
    let segments = match head[1] & !GSO_ECN {
        0 => head[1] == 0,
        GSO_TCPV4 => datagram.protocol == TCP && head[0] == NEEDS_CSUM && datagram.ports.is_some(),
        _ => false,
    };
    Some(checksum && segments)
}

#[cfg(test)]
mod tests;
