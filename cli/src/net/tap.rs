//! Tap interfaces: the host's, and microVMs' own.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use anyhow::{Context, anyhow};
use guest_protocol::Address;
use rustix::rand::GetRandomFlags;
use serde_json::{Value, json};

use super::{Connection, text};

/// Networks for microVMs' own taps are parts of 198.18.0.0/15, which is nobody's on the internet (RFC 2544, RFC 6890), and by
/// default nobody's on a host, either.
const OWN_RANGE: u32 = 198 << 24 | 18 << 16;
const OWN_RANGE_MASK: u32 = u32::MAX << 17;
/// Length of their prefixes: two addresses each.
const OWN_PREFIX: u8 = 30;
/// How often to look for a free one.
const TRIES: usize = 100;

/// At a tap interface that has an address on the host the container gets one beside it, and the host as its gateway. At one
/// that has none (it may be part of a bridge) addresses are the container's business.
pub fn at_tap(name: &str, mac: [u8; 6]) -> anyhow::Result<Connection> {
    let routes = std::fs::read_to_string("/proc/net/route").context("/proc/net/route")?;
    let address = network_of(name, &routes).and_then(|(network, prefix_len)| {
        let host = host_address(network)?;
        Some(Address { ip: beside(host, prefix_len)?.octets(), prefix_len, gateway: Some(host.octets()) })
    });
    Ok(Connection {
        section: json!([{ "iface_id": "eth0", "guest_mac": text(mac), "host_dev_name": name }]),
        guest: guest_protocol::Network { mac, mtu: None, address },
        resolv_conf: address.and_then(|_| resolvers(&std::fs::read_to_string("/etc/resolv.conf").ok()?)),
        membership: None,
    })
}

/// At a tap interface of its own, in a network of the two of them.
pub fn at_new_tap(mac: [u8; 6]) -> anyhow::Result<Connection> {
    let network = free_network()?;
    let [host, guest] = hosts(network);
    let address = Address { ip: guest.octets(), prefix_len: OWN_PREFIX, gateway: Some(host.octets()) };
    Ok(Connection {
        section: json!([{ "iface_id": "eth0", "guest_mac": text(mac), "new_tap": new_tap(network) }]),
        guest: guest_protocol::Network { mac, mtu: None, address: Some(address) },
        resolv_conf: std::fs::read_to_string("/etc/resolv.conf").ok().and_then(|conf| resolvers(&conf)),
        membership: None,
    })
}

/// A tap interface's part of the configuration, in such a network.
pub fn new_tap(network: Ipv4Addr) -> Value {
    let [host, _] = hosts(network);
    json!({ "host_ip": host, "prefix_len": OWN_PREFIX })
}

/// The host's address in such a network, and its guest's.
fn hosts(network: Ipv4Addr) -> [Ipv4Addr; 2] {
    [1, 2].map(|at| Ipv4Addr::from(u32::from(network) + at))
}

/// One of the networks for microVMs' own taps that nothing of this host is in.
pub fn free_network() -> anyhow::Result<Ipv4Addr> {
    let routes = std::fs::read_to_string("/proc/net/route").context("/proc/net/route")?;
    // There are far more of them than of interfaces.
    for _ in 0..TRIES {
        let mut random = [0; 4];
        rustix::rand::getrandom(&mut random, GetRandomFlags::empty()).context("cannot get random numbers")?;
        let network = nth_network(u32::from_ne_bytes(random));
        if is_free(network, &routes) {
            return Ok(network);
        }
    }
    let range = Ipv4Addr::from(OWN_RANGE);
    Err(anyhow!("no network of {range}/15 is free for a tap of the microVM's own; use --network tap=NAME"))
}

fn nth_network(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(OWN_RANGE | (number << (32 - OWN_PREFIX)) & !OWN_RANGE_MASK)
}

/// Whether no interface's own network has anything in common with this one.
fn is_free(network: Ipv4Addr, routes: &str) -> bool {
    let own_mask = u32::MAX << (32 - OWN_PREFIX);
    interfaces_networks(routes).all(|(_, other, mask)| {
        let common = mask & own_mask;
        u32::from(network) & common != other & common
    })
}

/// The network that `name` itself is in, by the kernel's table of routes (proc(5)), and the length of its prefix.
fn network_of(name: &str, routes: &str) -> Option<(Ipv4Addr, u8)> {
    let own = interfaces_networks(routes).find(|(interface, ..)| *interface == name);
    own.map(|(_, network, mask)| (network.into(), mask.leading_ones() as u8))
}

/// By the same table: interfaces, the networks they are in, and those's masks.
fn interfaces_networks(routes: &str) -> impl Iterator<Item = (&str, u32, u32)> {
    routes.lines().skip(1).filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| u32::from_str_radix(words.get(at)?, 16).ok().map(u32::swap_bytes);
        let (network, gateway, mask) = (number(1)?, number(2)?, number(7)?);
        (gateway == 0 && mask != 0).then(|| (words[0], network, mask))
    })
}

/// This host's own address in a network: where it would send from. Nothing is sent.
fn host_address(network: Ipv4Addr) -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::from(u32::from(network) + 1), 9)).ok()?;
    match socket.local_addr().ok()? {
        SocketAddr::V4(address) => Some(*address.ip()),
        SocketAddr::V6(_) => None,
    }
}

/// The next address of the host's network, or the first if the host has the last. None: there is no other.
fn beside(host: Ipv4Addr, prefix_len: u8) -> Option<Ipv4Addr> {
    let hosts = u32::MAX.checked_shr(prefix_len.into()).unwrap_or(0);
    let own = u32::from(host) & hosts;
    // The first and the last of all name the network and everybody in it.
    let next = if own + 1 < hosts { own + 1 } else { 1 };
    (next != own && hosts > 2).then(|| (u32::from(host) & !hosts | next).into())
}

/// Those of the host's resolvers that others reach, too.
fn resolvers(conf: &str) -> Option<String> {
    let loopback =
        |line: &str| line.split_whitespace().nth(1).is_none_or(|word| word.starts_with("127.") || word == "::1");
    let lines: Vec<&str> = conf.lines().filter(|line| !line.starts_with("nameserver") || !loopback(line)).collect();
    lines.iter().any(|line| line.starts_with("nameserver")).then(|| lines.join("\n") + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_beside_its_host() {
        let beside = |host: [u8; 4], prefix_len| beside(host.into(), prefix_len).map(|ip| ip.octets());
        assert_eq!(beside([192, 0, 2, 1], 24), Some([192, 0, 2, 2]));
        assert_eq!(beside([192, 0, 2, 254], 24), Some([192, 0, 2, 1]));
        assert_eq!(beside([10, 0, 0, 6], 30), Some([10, 0, 0, 5]));
        assert_eq!((beside([10, 0, 0, 6], 31), beside([10, 0, 0, 6], 32)), (None, None));
        let routes = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                      eth0\t00000000\tFE02A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                      t0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert_eq!(network_of("t0", routes), Some(([192, 0, 2, 0].into(), 24)));
        assert_eq!((network_of("eth0", routes), network_of("t1", "")), (None, None));
    }

    #[test]
    fn networks_of_taps_are_those_that_no_interface_has() {
        let networks = [nth_network(0), nth_network(1), nth_network(u32::MAX)].map(|network| network.octets());
        assert_eq!(networks, [[198, 18, 0, 0], [198, 18, 0, 4], [198, 19, 255, 252]]);
        let routes = "head\nbulkhead0\t040012C6\t00000000\t0001\t0\t0\t0\tFCFFFFFF\t0\t0\t0\n";
        assert!(!is_free([198, 18, 0, 4].into(), routes));
        assert!(is_free([198, 18, 0, 0].into(), routes) && is_free([198, 18, 0, 8].into(), routes));
        // One that has all of them, and a default route, which has none.
        assert!(!is_free([198, 18, 0, 0].into(), "head\nx\t000012C6\t00000000\t1\t0\t0\t0\t0000FEFF\t0\n"));
        assert!(is_free([198, 18, 0, 0].into(), "head\nx\t00000000\t00000000\t1\t0\t0\t0\t00000000\t0\n"));
    }

    #[test]
    fn resolvers_of_the_host_alone_are_not_the_guests() {
        let conf = "search here\nnameserver 127.0.0.53\nnameserver 192.0.2.9\n";
        assert_eq!(resolvers(conf).unwrap(), "search here\nnameserver 192.0.2.9\n");
        assert_eq!(resolvers("nameserver 127.0.0.53\nnameserver ::1\n"), None);
    }
}
