//! Network interfaces of machines.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use anyhow::{Context, anyhow};
use guest_protocol::Address;
use rustix::rand::GetRandomFlags;
use serde_json::{Map, Value, json};
use vmm::config::add_device;
use vmm::user_network as user;

use crate::args::{self, Destination, Network, Publish};
use crate::{egress, plug};

/// Key of the section in a machine's configuration.
pub const SECTION: &str = "network-interfaces";

/// Networks for microVMs' own taps are parts of 198.18.0.0/15, which is nobody's on the internet (RFC 2544, RFC 6890), and by
/// default nobody's on a host, either.
const OWN_RANGE: u32 = 198 << 24 | 18 << 16;
const OWN_RANGE_MASK: u32 = u32::MAX << 17;
/// Length of their prefixes: two addresses each.
const OWN_PREFIX: u8 = 30;
/// What [`usual`] is, as `--network` says it.
const USUAL_VARIABLE: &str = "BULKHEAD_NETWORK";
/// How often to look for a free one.
const TRIES: usize = 100;

/// Adds an interface for each value of `boot --net`. Those that are told no MAC address get one that nothing else has.
pub fn add(flags: &[String], devices: &mut Map<String, Value>) -> anyhow::Result<()> {
    for flag in flags {
        add_device(devices, "net", flag)?;
    }
    for interface in devices.get_mut(SECTION).and_then(Value::as_array_mut).into_iter().flatten() {
        if interface["guest_mac"].is_null() {
            interface["guest_mac"] = text(mac()?).into();
        }
        if interface["new_tap"].is_object() {
            interface["new_tap"] = new_tap(free_network()?);
        }
    }
    Ok(())
}

/// How a container is connected.
pub struct Connection {
    /// The machine's part: its device.
    pub section: Value,
    /// The guest's part.
    pub guest: guest_protocol::Network,
    /// Content of its /etc/resolv.conf; `None` leaves the image's own.
    pub resolv_conf: Option<String>,
}

/// The network of a container of which `--network` says nothing: through passt if `-p` or `--egress` ask for one; else what
/// `BULKHEAD_NETWORK` says; else through passt where that leads anywhere, and none where it does not.
pub fn usual(publish: &[Publish], egress: &[Destination]) -> anyhow::Result<Network> {
    if !publish.is_empty() || !egress.is_empty() {
        return Ok(Network::User);
    }
    match std::env::var(USUAL_VARIABLE).ok().filter(|word| !word.is_empty()) {
        Some(word) => args::network(&word).map_err(|reason| anyhow!("{USUAL_VARIABLE}='{word}': {reason}")),
        None if user_leads_somewhere() => Ok(Network::User),
        None => Ok(Network::None),
    }
}

/// passt is installed, and this host has a way out that it can give to a guest.
fn user_leads_somewhere() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = std::env::split_paths(&path).any(|directory| directory.join("passt").is_file());
    installed && std::fs::read_to_string("/proc/net/route").is_ok_and(|routes| has_default(&routes))
}

/// What `run --network`, `-p` and `--egress` ask for. The last two ask for a network where the first does not say.
pub fn connection(
    network: Option<&Network>,
    publish: &[Publish],
    egress: &[Destination],
) -> anyhow::Result<Option<Connection>> {
    let implied = (!egress.is_empty()).then_some(&Network::User);
    let connection = connected(network.or(implied), publish)?;
    match connection {
        None if !egress.is_empty() => {
            Err(anyhow!("--egress: the container has no network; use --network user or --network tap"))
        }
        Some(connection) => connection.limited(egress).map(Some),
        None => Ok(None),
    }
}

impl Connection {
    /// The same, with nothing but `egress` to be reached, if there is any.
    fn limited(mut self, egress: &[Destination]) -> anyhow::Result<Self> {
        if !egress.is_empty() {
            self.section[0]["egress"] = json!(egress::rules(egress, self.resolv_conf.as_deref())?);
        }
        Ok(self)
    }
}

fn connected(network: Option<&Network>, publish: &[Publish]) -> anyhow::Result<Option<Connection>> {
    let ports = !publish.is_empty();
    match network {
        None if ports => through_passt(publish).map(Some),
        Some(Network::User) => through_passt(publish).map(Some),
        Some(Network::None) if ports => Err(anyhow!("-p: the container has no network; use --network user")),
        Some(Network::Tap(_) | Network::NewTap) if ports => Err(anyhow!(
            "-p: a container at a tap interface is reached by its own address; leave -p out, or use --network user"
        )),
        Some(Network::Tap(name)) => at_tap(name).map(Some),
        Some(Network::NewTap) => at_new_tap().map(Some),
        None | Some(Network::None) => Ok(None),
    }
}

/// The same for a clone of one that was saved with the interfaces `saved`: what `network` and `publish` ask for, else what
/// the original had, but for its ports of the host, of which each is one container's only. Where its packets may go is what it was,
/// unless `egress` says it anew. None: it was saved without an interface.
pub fn of_clone(
    saved: Option<&Value>,
    network: Option<&Network>,
    publish: &[Publish],
    egress: &[Destination],
) -> anyhow::Result<Option<Connection>> {
    let Some(interface) = saved.and_then(|section| section.get(0)) else {
        let asked = network.is_some_and(|network| *network != Network::None) || !publish.is_empty();
        let refused = "it was saved without a network, so no clone of it can have one; leave --network and -p out";
        return if asked { Err(anyhow!(refused)) } else { Ok(None) };
    };
    let wanted = match (network, interface["host_dev_name"].as_str()) {
        (Some(network), _) => network.clone(),
        (None, _) if !publish.is_empty() => Network::User,
        (None, Some(tap)) => Network::Tap(tap.to_owned()),
        (None, None) if interface["new_tap"].is_object() => Network::NewTap,
        (None, None) if interface["user"].is_object() => Network::User,
        (None, None) => Network::None,
    };
    let mut clone = connected(Some(&wanted), publish)?.map_or_else(unplugged, Ok)?;
    if !interface["egress"].is_null() {
        clone.section[0]["egress"] = interface["egress"].clone();
    }
    clone.limited(egress).map(Some)
}

/// The interfaces of a bare machine that goes on from a snapshot where it had `saved`: the one it has leads to what `network` and
/// `publish` ask for, and the guest, which cannot be told, keeps its addresses. Without either they lead to what they led to.
pub fn of_bare_clone(
    saved: &Value,
    network: Option<&Network>,
    publish: &[Publish],
    egress: &[Destination],
) -> anyhow::Result<Value> {
    let mut section = bare_clone(saved, network, publish)?;
    if !egress.is_empty() {
        let rules = json!(egress::rules(egress, None)?);
        let interfaces = section.as_array_mut().filter(|interfaces| !interfaces.is_empty());
        let interfaces = interfaces.ok_or_else(|| anyhow!("--egress: it was saved without a network; leave it out"))?;
        interfaces.iter_mut().for_each(|interface| interface["egress"] = rules.clone());
    }
    Ok(section)
}

fn bare_clone(saved: &Value, network: Option<&Network>, publish: &[Publish]) -> anyhow::Result<Value> {
    if network.is_none() && publish.is_empty() {
        return Ok(saved.clone());
    }
    if saved.as_array().is_some_and(|interfaces| interfaces.len() > 1) && network != Some(&Network::None) {
        let several = "it has several interfaces; --network can only be none, which leads nowhere";
        return Err(anyhow!(several));
    }
    let connection = of_clone(Some(saved), network, publish, &[])?;
    let mut section = plug::unplugged(saved);
    if let Some(behind) = connection.as_ref().filter(|connection| connection.section[0]["unplugged"].is_null()) {
        let interface = section.get_mut(0).and_then(Value::as_object_mut).ok_or_else(|| anyhow!("no interface"))?;
        interface.remove("unplugged");
        let members = behind.section[0].as_object().into_iter().flatten();
        interface.extend(
            members.filter(|(key, _)| plug::BEHIND.contains(&key.as_str())).map(|(k, v)| (k.clone(), v.clone())),
        );
    }
    Ok(section)
}

/// For a guest that has an interface, and is to have nothing behind it.
fn unplugged() -> anyhow::Result<Connection> {
    let mac = mac()?;
    Ok(Connection {
        section: json!([{ "iface_id": "eth0", "guest_mac": text(mac), "unplugged": true }]),
        guest: guest_protocol::Network { mac, mtu: None, address: None },
        resolv_conf: None,
    })
}

fn through_passt(publish: &[Publish]) -> anyhow::Result<Connection> {
    let mac = mac()?;
    let port = |port: &Publish| {
        let protocol = if port.udp { "udp" } else { "tcp" };
        json!({ "protocol": protocol, "host_ip": port.host_ip, "host_port": port.host_port, "guest_port": port.guest_port })
    };
    let publish: Vec<Value> = publish.iter().map(port).collect();
    let address =
        Address { ip: user::GUEST.octets(), prefix_len: user::PREFIX_LEN, gateway: Some(user::GATEWAY.octets()) };
    Ok(Connection {
        section: json!([{ "iface_id": "eth0", "guest_mac": text(mac), "user": { "publish": publish } }]),
        guest: guest_protocol::Network { mac, mtu: Some(user::MTU), address: Some(address) },
        resolv_conf: Some(format!("nameserver {}\n", user::RESOLVER)),
    })
}

/// At a tap interface that has an address on the host the container gets one beside it, and the host as its gateway. At one
/// that has none (it may be part of a bridge) addresses are the container's business.
fn at_tap(name: &str) -> anyhow::Result<Connection> {
    let routes = std::fs::read_to_string("/proc/net/route").context("/proc/net/route")?;
    let address = network_of(name, &routes).and_then(|(network, prefix_len)| {
        let host = host_address(network)?;
        Some(Address { ip: beside(host, prefix_len)?.octets(), prefix_len, gateway: Some(host.octets()) })
    });
    let mac = mac()?;
    Ok(Connection {
        section: json!([{ "iface_id": "eth0", "guest_mac": text(mac), "host_dev_name": name }]),
        guest: guest_protocol::Network { mac, mtu: None, address },
        resolv_conf: address.and_then(|_| resolvers(&std::fs::read_to_string("/etc/resolv.conf").ok()?)),
    })
}

/// At a tap interface of its own, in a network of the two of them.
fn at_new_tap() -> anyhow::Result<Connection> {
    let network = free_network()?;
    let [host, guest] = hosts(network);
    let address = Address { ip: guest.octets(), prefix_len: OWN_PREFIX, gateway: Some(host.octets()) };
    let mac = mac()?;
    Ok(Connection {
        section: json!([{ "iface_id": "eth0", "guest_mac": text(mac), "new_tap": new_tap(network) }]),
        guest: guest_protocol::Network { mac, mtu: None, address: Some(address) },
        resolv_conf: std::fs::read_to_string("/etc/resolv.conf").ok().and_then(|conf| resolvers(&conf)),
    })
}

/// A tap interface's part of the configuration, in such a network.
fn new_tap(network: Ipv4Addr) -> Value {
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

/// Whether the same table has a default route.
fn has_default(routes: &str) -> bool {
    routes.lines().skip(1).any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let zero = |at: usize| words.get(at).is_some_and(|word| u32::from_str_radix(word, 16) == Ok(0));
        zero(1) && zero(7)
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

/// A MAC address of the range that is for everybody's own use.
fn mac() -> anyhow::Result<[u8; 6]> {
    let mut mac = [0; 6];
    rustix::rand::getrandom(&mut mac, GetRandomFlags::empty()).context("cannot get random numbers")?;
    // Unicast, locally administered (IEEE 802, 8.4).
    mac[0] = mac[0] & 0xfc | 2;
    Ok(mac)
}

/// As it is written.
fn text([a, b, c, d, e, f]: [u8; 6]) -> String {
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_have_addresses_of_their_own_or_those_they_are_given() {
        let mut devices = Map::new();
        add(&[], &mut devices).unwrap();
        assert!(devices.is_empty());
        add(&["user", "user", "tap=t0,mac=02:00:00:00:00:09"].map(str::to_owned), &mut devices).unwrap();
        let section = &devices[SECTION];
        assert_ne!(section[0]["guest_mac"], section[1]["guest_mac"]);
        assert_eq!(section[2]["guest_mac"], "02:00:00:00:00:09");
        let error = add(&["bridge".into()], &mut devices).unwrap_err().to_string();
        assert!(error.starts_with("--net: 'bridge'"), "{error}");
    }

    #[test]
    fn a_default_route_leads_everywhere() {
        let head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
        let own = "eth0\t0000A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let half = "tun0\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000080\t0\t0\t0\n";
        let default = "eth0\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";
        assert!(!has_default(head) && !has_default(&[head, own, half].concat()) && !has_default(""));
        assert!(has_default(&[head, own, default].concat()));
    }

    #[test]
    fn ports_need_a_network_that_can_have_them() {
        let port = [Publish { host_ip: Ipv4Addr::LOCALHOST, host_port: 80, guest_port: 8080, udp: true }];
        assert!(connection(None, &[], &[]).unwrap().is_none());
        assert!(connection(Some(&Network::None), &[], &[]).unwrap().is_none());
        for network in [Network::None, Network::Tap("t".into()), Network::NewTap] {
            assert!(connection(Some(&network), &port, &[]).is_err_and(|error| error.to_string().starts_with("-p: ")));
        }
        let user = connection(None, &port, &[]).unwrap().unwrap();
        let wanted =
            json!({ "publish": [{ "protocol": "udp", "host_ip": "127.0.0.1", "host_port": 80, "guest_port": 8080 }] });
        assert_eq!(user.section[0]["user"], wanted);
        let other = connection(Some(&Network::User), &[], &[]).unwrap().unwrap();
        assert_ne!(user.guest.mac, other.guest.mac);
        assert_eq!(other.section[0]["guest_mac"], text(other.guest.mac));
    }

    #[test]
    fn a_clone_has_what_the_original_had_but_for_its_ports_and_address() {
        let publish = json!([{ "protocol": "tcp", "host_ip": "127.0.0.1", "host_port": 80, "guest_port": 80 }]);
        let user = json!([{ "iface_id": "eth0", "guest_mac": "02:00:00:00:00:01", "user": { "publish": publish } }]);
        let of = |saved: &Value, network: Option<Network>, publish: &[Publish]| {
            of_clone(Some(saved), network.as_ref(), publish, &[]).map(|clone| clone.unwrap().section[0].clone())
        };
        let clone = of(&user, None, &[]).unwrap();
        assert_eq!(clone["user"], json!({ "publish": [] }));
        assert_ne!(clone["guest_mac"], user[0]["guest_mac"]);
        let port = [Publish { host_ip: Ipv4Addr::LOCALHOST, host_port: 81, guest_port: 80, udp: false }];
        assert_eq!(of(&user, None, &port).unwrap()["user"]["publish"][0]["host_port"], 81);
        let tap = json!([{ "iface_id": "eth0", "host_dev_name": "bulkhead-none" }]);
        assert_eq!(of(&tap, None, &[]).unwrap()["host_dev_name"], "bulkhead-none");
        assert_eq!(of(&tap, Some(Network::Tap("other".into())), &[]).unwrap()["host_dev_name"], "other");
        let own = json!([{ "iface_id": "eth0", "new_tap": { "host_ip": "192.0.2.1", "prefix_len": 30 } }]);
        assert_ne!(of(&own, None, &[]).unwrap()["new_tap"], own[0]["new_tap"]);
        let none = of(&tap, Some(Network::None), &[]).unwrap();
        assert_eq!(none["unplugged"], true);
        assert_eq!(of(&json!([none]), None, &[]).unwrap()["unplugged"], true);
        assert!(of(&tap, Some(Network::None), &port).is_err());
        for (network, publish) in [(Some(Network::User), &[][..]), (None, &port)] {
            assert!(
                of_clone(None, network.as_ref(), publish, &[]).err().unwrap().to_string().contains("without a network")
            );
        }
        assert!(of_clone(None, Some(&Network::None), &[], &[]).unwrap().is_none());
    }

    #[test]
    fn what_may_be_reached_goes_with_the_container_and_its_clones() {
        let listed = [Destination::Rule("192.0.2.1:80".parse().unwrap())];
        let name = [Destination::Name { host: "localhost".into(), port: Some(80) }];
        let refused = connection(Some(&Network::None), &[], &listed);
        assert!(refused.is_err_and(|error| error.to_string().starts_with("--egress: ")));
        assert!(connection(None, &[], &listed).unwrap().unwrap().section[0]["user"].is_object());
        let user = connection(Some(&Network::User), &[], &listed).unwrap().unwrap();
        assert_eq!(user.section[0]["egress"], json!(["192.0.2.1:80"]));
        assert!(connection(Some(&Network::User), &[], &[]).unwrap().unwrap().section[0]["egress"].is_null());
        let named = connection(Some(&Network::User), &[], &name).unwrap().unwrap();
        assert_eq!(named.section[0]["egress"], json!(["127.0.0.1:80", "10.0.2.3:53"]));
        let of = |network, egress| of_clone(Some(&user.section), network, &[], egress).unwrap().unwrap().section;
        for network in [None, Some(&Network::NewTap), Some(&Network::None)] {
            assert_eq!(of(network, &[])[0]["egress"], user.section[0]["egress"], "{network:?}");
        }
        assert_eq!(of(None, &name)[0]["egress"], named.section[0]["egress"]);
        let bare = of_bare_clone(&user.section, Some(&Network::None), &[], &[]).unwrap();
        assert_eq!(bare[0]["egress"], user.section[0]["egress"]);
        let bare = of_bare_clone(&user.section, None, &[], &name).unwrap();
        assert_eq!(bare[0]["egress"], json!(["127.0.0.1:80"]));
        assert!(of_bare_clone(&Value::Null, None, &[], &name).is_err());
    }

    #[test]
    fn a_bare_clone_keeps_its_addresses_wherever_it_leads() {
        let tap = json!([{ "iface_id": "eth0", "guest_mac": "02:00:00:00:00:01", "host_dev_name": "bulkhead-none" }]);
        let of = |saved: &Value, network: Option<Network>| of_bare_clone(saved, network.as_ref(), &[], &[]);
        assert_eq!(of(&tap, None).unwrap(), tap);
        assert_eq!(of(&tap, Some(Network::None)).unwrap(), plug::unplugged(&tap));
        let user = of(&tap, Some(Network::User)).unwrap();
        let wanted = json!([{ "iface_id": "eth0", "guest_mac": "02:00:00:00:00:01", "user": { "publish": [] } }]);
        assert_eq!(user, wanted);
        let two = json!([tap[0], { "iface_id": "eth1", "user": {} }]);
        assert!(of(&two, Some(Network::User)).unwrap_err().to_string().contains("several"));
        assert_eq!(of(&two, Some(Network::None)).unwrap(), plug::unplugged(&two));
        assert!(of(&Value::Null, Some(Network::User)).unwrap_err().to_string().contains("without a network"));
    }

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
    fn a_tap_of_its_own_is_in_a_network_that_no_interface_has() {
        let own = connection(Some(&Network::NewTap), &[], &[]).unwrap().unwrap();
        let address = own.guest.address.unwrap();
        let host: Ipv4Addr = own.section[0]["new_tap"]["host_ip"].as_str().unwrap().parse().unwrap();
        assert_eq!(address.gateway, Some(host.octets()));
        assert_eq!(
            (u32::from(host) + 1, own.section[0]["new_tap"]["prefix_len"].clone()),
            (u32::from_be_bytes(address.ip), json!(30))
        );
        let mut section = Map::new();
        add(&["tap".into()], &mut section).unwrap();
        assert_eq!(section[SECTION][0]["new_tap"]["prefix_len"], 30);

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
