//! Network interfaces of machines.

mod tap;

use anyhow::{Context, anyhow};
use guest_protocol::Address;
use rustix::rand::GetRandomFlags;
use serde_json::{Map, Value, json};
use vmm::config::add_device;
use vmm::user_network as user;

use crate::args::{self, Destination, Network, Place, Publish};
use crate::networks::switch::{self, Member, Membership};
use crate::networks::{Networks, NetworksError};
use crate::{egress, paths, plug};

pub use tap::free_network;
use tap::{at_new_tap, at_tap, new_tap};

/// Key of the section in a machine's configuration.
pub const SECTION: &str = "network-interfaces";

/// What [`usual`] is, as `--network` says it.
const USUAL_VARIABLE: &str = "BULKHEAD_NETWORK";
/// Adds an interface for each value of `boot --net`. Those that are told no MAC address get one that nothing else has.
pub fn add(flags: &[String], devices: &mut Map<String, Value>) -> anyhow::Result<()> {
    for flag in flags {
        add_device(devices, "net", flag)?;
    }
    for interface in devices.get_mut(SECTION).and_then(Value::as_array_mut).into_iter().flatten() {
        if interface["guest_mac"].is_null() {
            interface["guest_mac"] = text(random_mac()?).into();
        }
        if interface["new_tap"].is_object() {
            interface["new_tap"] = new_tap(free_network()?);
        }
    }
    Ok(())
}

/// The MAC address of an interface that leads nowhere.
pub const NOBODY: [u8; 6] = [2, 0, 0, 0, 0, 0];

/// The interface of a container that is to be on no network: it sees none of it.
pub fn nowhere() -> Value {
    json!([{ "iface_id": "eth0", "guest_mac": text(NOBODY), "nowhere": true }])
}

/// Whether a machine with these devices is on a network, or can be.
pub fn is_networked(devices: &Map<String, Value>) -> bool {
    devices.get(SECTION).and_then(|section| section.get(0)).is_some_and(|interface| interface["nowhere"] != true)
}

/// How a container is connected.
pub struct Connection {
    /// The machine's part: its device.
    pub section: Value,
    /// The guest's part.
    pub guest: guest_protocol::Network,
    /// Content of its /etc/resolv.conf; `None` leaves the image's own.
    pub resolv_conf: Option<String>,
    /// Its place in a network that was made: its address is its own as long as this is there.
    pub membership: Option<Membership>,
}

/// A container that is to be connected.
#[derive(Debug, Clone, Copy)]
pub struct Who<'a> {
    /// What nobody else has.
    pub id: &'a str,
    /// What it answers to in its network.
    pub names: &'a [&'a str],
    /// What its place there is to be.
    pub place: &'a Place,
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

/// The network that `--network` means, which was made, if it is one of those.
///
/// # Errors
/// There is no such network.
pub fn made(network: Option<&Network>) -> anyhow::Result<Option<crate::networks::Network>> {
    let Some(Network::Named(name)) = network else { return Ok(None) };
    match Networks::existing(&paths::store()) {
        Some(networks) => Ok(Some(networks.find(name)?)),
        None => Err(NetworksError::NotFound(name.clone()).into()),
    }
}

/// Looks whether [`connection`] may do what it is asked for; says whether there is to be an interface. A container that is only checked joins
/// no network that was made.
pub fn check(
    network: Option<&Network>,
    publish: &[Publish],
    egress: &[Destination],
    place: &Place,
) -> anyhow::Result<bool> {
    if let Some(made) = made(network)? {
        if made.internal && !publish.is_empty() {
            return Err(anyhow!("-p: nothing leads into network {}, which is internal; leave -p out", made.name));
        }
        match place.ip.filter(|ip| *ip == made.gateway || !made.subnet.may_have(*ip)) {
            Some(ip) => {
                return Err(anyhow!("--ip {ip}: no configured subnet contains it for a container of {}", made.name));
            }
            None => return Ok(true),
        }
    }
    if place.ip.is_some() || !place.network_alias.is_empty() {
        let flag = if place.ip.is_some() { "--ip" } else { "--network-alias" };
        return Err(anyhow!("{flag}: it is for networks that were made (`bulkhead network create`)"));
    }
    let nobody = Who { id: "", names: &[], place };
    Ok(connection(network, publish, egress, nobody)?.is_some())
}

/// What `run --network`, `-p` and `--egress` ask for. The last two ask for a network where the first does not say.
pub fn connection(
    network: Option<&Network>,
    publish: &[Publish],
    egress: &[Destination],
    who: Who<'_>,
) -> anyhow::Result<Option<Connection>> {
    let implied = (!egress.is_empty()).then_some(&Network::User);
    let connection = connected(network.or(implied), publish, who)?;
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

fn connected(network: Option<&Network>, publish: &[Publish], who: Who<'_>) -> anyhow::Result<Option<Connection>> {
    let ports = !publish.is_empty();
    let mac = who.place.mac_address.map_or_else(random_mac, Ok)?;
    match network {
        None if ports => Ok(Some(through_passt(publish, mac))),
        Some(Network::User) => Ok(Some(through_passt(publish, mac))),
        Some(Network::Named(name)) => in_network(name, publish, who, mac).map(Some),
        Some(Network::None) if ports => Err(anyhow!("-p: the container has no network; use --network user")),
        Some(Network::Tap(_) | Network::NewTap) if ports => Err(anyhow!(
            "-p: a container at a tap interface is reached by its own address; leave -p out, or use --network user"
        )),
        Some(Network::Tap(name)) => at_tap(name, mac).map(Some),
        Some(Network::NewTap) => at_new_tap(mac).map(Some),
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
    who: Who<'_>,
) -> anyhow::Result<Option<Connection>> {
    let Some(interface) = saved.and_then(|section| section.get(0)).filter(|interface| interface["nowhere"] != true)
    else {
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
        (None, None) if interface["port"].is_object() => {
            Network::Named(interface["port"]["network"].as_str().unwrap_or_default().to_owned())
        }
        (None, None) => Network::None,
    };
    let mut clone = connected(Some(&wanted), publish, who)?.map_or_else(unplugged, Ok)?;
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
    if matches!(network, Some(Network::Named(_))) {
        return Err(anyhow!("a bare microVM keeps its addresses, which are none of a network that was made"));
    }
    let nobody = Who { id: "", names: &[], place: &Place::default() };
    let connection = of_clone(Some(saved), network, publish, &[], nobody)?;
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
    let mac = random_mac()?;
    Ok(Connection {
        section: json!([{ "iface_id": "eth0", "guest_mac": text(mac), "unplugged": true }]),
        guest: guest_protocol::Network { mac, mtu: None, address: None },
        resolv_conf: None,
        membership: None,
    })
}

/// What a guest is whose network is passt.
pub fn guest_of_passt(mac: [u8; 6]) -> guest_protocol::Network {
    let address =
        Address { ip: user::GUEST.octets(), prefix_len: user::PREFIX_LEN, gateway: Some(user::GATEWAY.octets()) };
    guest_protocol::Network { mac, mtu: Some(user::MTU), address: Some(address) }
}

fn through_passt(publish: &[Publish], mac: [u8; 6]) -> Connection {
    let publish = switch::published(publish);
    Connection {
        section: json!([{ "iface_id": "eth0", "guest_mac": text(mac), "user": { "publish": publish } }]),
        guest: guest_of_passt(mac),
        resolv_conf: Some(format!("nameserver {}\n", user::RESOLVER)),
        membership: None,
    }
}

/// In a network that was made, among others. What is beyond is passt's, for each of them.
fn in_network(name: &str, publish: &[Publish], who: Who<'_>, mac: [u8; 6]) -> anyhow::Result<Connection> {
    let names = who.names.iter().map(|name| (*name).to_owned()).chain(who.place.network_alias.iter().cloned());
    let member = Member { id: who.id.to_owned(), names: names.collect(), ip: who.place.ip, mac };
    let membership = switch::join(name, member)?;
    let port = membership.port(&switch::published(publish));
    Ok(Connection {
        section: json!([{ "iface_id": "eth0", "guest_mac": text(mac), "port": port }]),
        guest: membership.guest(),
        resolv_conf: Some(format!("nameserver {}\noptions ndots:0\n", membership.network.gateway)),
        membership: Some(membership),
    })
}

/// The host's routes, as /proc/net/route has them; none where there is no such file.
pub fn routes() -> String {
    std::fs::read_to_string("/proc/net/route").unwrap_or_default()
}

/// Whether the same table has a default route.
fn has_default(routes: &str) -> bool {
    routes.lines().skip(1).any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let zero = |at: usize| words.get(at).is_some_and(|word| u32::from_str_radix(word, 16) == Ok(0));
        zero(1) && zero(7)
    })
}

/// A MAC address of the range that is for everybody's own use.
fn random_mac() -> anyhow::Result<[u8; 6]> {
    let mut mac = [0; 6];
    rustix::rand::getrandom(&mut mac, GetRandomFlags::empty()).context("cannot get random numbers")?;
    // Unicast, locally administered (IEEE 802, 8.4).
    mac[0] = mac[0] & 0xfc | 2;
    Ok(mac)
}

/// As it is written.
pub fn text([a, b, c, d, e, f]: [u8; 6]) -> String {
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn connection(
        network: Option<&Network>,
        publish: &[Publish],
        egress: &[Destination],
    ) -> anyhow::Result<Option<Connection>> {
        super::connection(network, publish, egress, Who { id: "", names: &[], place: &Place::default() })
    }

    fn of_clone(
        saved: Option<&Value>,
        network: Option<&Network>,
        publish: &[Publish],
        egress: &[Destination],
    ) -> anyhow::Result<Option<Connection>> {
        super::of_clone(saved, network, publish, egress, Who { id: "", names: &[], place: &Place::default() })
    }

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
        for saved in [None, Some(&nowhere())] {
            assert!(of_clone(saved, Some(&Network::None), &[], &[]).unwrap().is_none());
            assert!(of_clone(saved, Some(&Network::User), &[], &[]).is_err());
        }
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
    }
}
