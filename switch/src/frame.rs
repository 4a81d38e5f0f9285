//! A frame that a guest has sent: whether it is in its own name, and where it is to go. Bytes of a hostile guest: they are looked at once,
//! and are the switch's own by then.

use std::net::Ipv4Addr;

use etherparse::{
    ArpEthIpv4Packet, ArpHardwareId, ArpOperation, ArpPacketSlice, EtherType, Ethernet2Slice, IpNumber, Ipv4Slice,
    PacketBuilder, UdpSlice,
};

use crate::protocol::Network;

/// Bytes before what an Ethernet frame carries: two addresses and a type.
const ETHERNET: usize = 14;
/// Where DNS is asked.
const DNS_PORT: u16 = 53;
/// Hops that an answer of the switch may take.
const TTL: u8 = 64;

/// Who a port belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Own {
    /// What its frames are from.
    pub mac: [u8; 6],
    /// What its packets are from.
    pub ip: Ipv4Addr,
}

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// It is in another's name, and goes nowhere.
    Denied,
    /// It is for nobody here: not IPv4, malformed, or to an address that leads nowhere.
    Nobody,
    /// Who has this address?
    Question(Ipv4Addr),
    /// For all other members.
    Everybody,
    /// For the member with this MAC address, if there is one.
    To([u8; 6]),
    /// For the resolver, from this port.
    Dns(u16, &'a [u8]),
    /// For what is beyond the network.
    Out,
}

/// Judges a frame that came in by the port of `own`.
pub fn judge<'a>(frame: &'a [u8], own: Own, network: &Network) -> Verdict<'a> {
    let Ok(ethernet) = Ethernet2Slice::from_slice_without_fcs(frame) else { return Verdict::Nobody };
    if ethernet.source() != own.mac {
        return Verdict::Denied;
    }
    match ethernet.ether_type() {
        EtherType::ARP => arp(ethernet.payload_slice(), own),
        EtherType::IPV4 => ipv4(ethernet.destination(), ethernet.payload_slice(), own, network),
        _ => Verdict::Nobody,
    }
}

/// Only questions, and only in its own name: answers to them are the switch's business (RFC 826; probes, RFC 5227, have no sender).
fn arp(packet: &[u8], own: Own) -> Verdict<'_> {
    let Ok(arp) = ArpPacketSlice::from_slice(packet) else { return Verdict::Nobody };
    if (arp.hw_addr_type(), arp.proto_addr_type()) != (ArpHardwareId::ETHERNET, EtherType::IPV4) {
        return Verdict::Nobody;
    }
    let (Some(sender), Some(target)) = (address(arp.sender_protocol_addr()), address(arp.target_protocol_addr()))
    else {
        return Verdict::Nobody;
    };
    if arp.sender_hw_addr() != own.mac || (sender != own.ip && !sender.is_unspecified()) {
        return Verdict::Denied;
    }
    match arp.operation() {
        ArpOperation::REQUEST if target != own.ip => Verdict::Question(target),
        _ => Verdict::Nobody,
    }
}

fn address(bytes: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from)
}

fn ipv4<'a>(to: [u8; 6], packet: &'a [u8], own: Own, network: &Network) -> Verdict<'a> {
    let Ok(ip) = Ipv4Slice::from_slice(packet) else { return Verdict::Nobody };
    if ip.header().source_addr() != own.ip {
        return Verdict::Denied;
    }
    let destination = ip.header().destination_addr();
    // The bit of an address for many (IEEE 802, 8.2).
    if to[0] & 1 != 0 {
        return Verdict::Everybody;
    }
    if to != network.gateway_mac() {
        return Verdict::To(to);
    }
    if destination != network.gateway {
        // Members are reached directly.
        return if network.has(destination) { Verdict::Nobody } else { Verdict::Out };
    }
    let udp = (ip.payload_ip_number() == IpNumber::UDP && !ip.is_payload_fragmented())
        .then(|| UdpSlice::from_slice(ip.payload().payload).ok());
    match udp.flatten().filter(|udp| udp.destination_port() == DNS_PORT) {
        Some(udp) => Verdict::Dns(udp.source_port(), udp.payload()),
        // Who calls from the host itself, by a published port, has this address.
        None => Verdict::Out,
    }
}

/// Makes a frame of an uplink's one for the guest of `own`: false, if it is not for it. Nobody out there has the address of a member.
pub fn admit(frame: &mut [u8], own: Own, network: &Network) -> bool {
    let sound = Ethernet2Slice::from_slice_without_fcs(frame).is_ok_and(|ethernet| {
        ethernet.ether_type() == EtherType::IPV4
            && Ipv4Slice::from_slice(ethernet.payload_slice()).is_ok_and(|ip| {
                let source = ip.header().source_addr();
                ip.header().destination_addr() == own.ip && (!network.has(source) || source == network.gateway)
            })
    });
    if sound {
        address_to(frame, network.gateway_mac(), own.mac);
    }
    sound
}

/// Writes who a frame is from and for.
fn address_to(frame: &mut [u8], from: [u8; 6], to: [u8; 6]) {
    if let Some(addresses) = frame.first_chunk_mut::<ETHERNET>() {
        addresses[..6].copy_from_slice(&to);
        addresses[6..12].copy_from_slice(&from);
    }
}

/// The answer to a question of `own`: `ip` is at `mac`.
pub fn arp_answer(own: Own, ip: Ipv4Addr, mac: [u8; 6]) -> Vec<u8> {
    let packet = ArpEthIpv4Packet {
        operation: ArpOperation::REPLY,
        sender_mac: mac,
        sender_ipv4: ip.octets(),
        target_mac: own.mac,
        target_ipv4: own.ip.octets(),
    };
    let builder = PacketBuilder::ethernet2(mac, own.mac).arp(packet.into());
    let mut frame = Vec::with_capacity(builder.size());
    // A vector takes all, and the packet is of a size that is known.
    let _ = builder.write(&mut frame);
    frame
}

/// An answer of the resolver to the guest of `own`, which has asked from `port`.
pub fn dns_answer(own: Own, network: &Network, port: u16, answer: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(network.gateway_mac(), own.mac)
        .ipv4(network.gateway.octets(), own.ip.octets(), TTL)
        .udp(DNS_PORT, port);
    let mut frame = Vec::with_capacity(builder.size(answer.len()));
    match builder.write(&mut frame, answer) {
        Ok(()) => frame,
        // Longer than a packet: there is no such answer.
        Err(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
