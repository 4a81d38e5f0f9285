//! `--network`, `-p` and `--egress`, with docker's syntax where the meaning is docker's.

use std::fmt;
use std::net::Ipv4Addr;

use clap::Args;
use serde::{Deserialize, Serialize};
use vmm::egress::Rule;

use crate::containers::is_name;

/// What a container's interface leads to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// There is none.
    #[default]
    None,
    /// passt.
    User,
    /// A tap interface of the host.
    Tap(String),
    /// A tap interface of its own, which goes with the microVM.
    NewTap,
    /// A network that was made (`network create`), by its name or id.
    Named(String),
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Network::None => f.write_str("none"),
            Network::User => f.write_str("user"),
            Network::Tap(name) => write!(f, "tap={name}"),
            Network::NewTap => f.write_str("tap"),
            Network::Named(name) => f.write_str(name),
        }
    }
}

/// What `--network` says.
pub fn network(text: &str) -> Result<Network, String> {
    match text.split_once('=') {
        None if text == "none" => Ok(Network::None),
        None if text == "user" => Ok(Network::User),
        None if text == "tap" => Ok(Network::NewTap),
        Some(("tap", name)) if !name.is_empty() => Ok(Network::Tap(name.to_owned())),
        // docker's words for what there is not here.
        None if is_name(text) && !["host", "bridge", "default"].contains(&text) => Ok(Network::Named(text.to_owned())),
        _ => Err("it is none, user, tap, tap=NAME, or the name of a network (`bulkhead network ls`)".into()),
    }
}

/// What a container's place in its network is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args, Serialize, Deserialize)]
#[serde(default)]
pub struct Place {
    /// The container's address in its network, where that is one of `bulkhead network`; a free one if not given
    #[arg(long, value_name = "IP")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<Ipv4Addr>,
    /// MAC address of the container's interface; a random one if not given
    #[arg(long, value_name = "MAC", value_parser = mac)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac_address: Option<[u8; 6]>,
    /// Another name of the container in its network; may be repeated
    #[arg(long, value_name = "NAME", value_parser = alias)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub network_alias: Vec<String>,
}

fn mac(text: &str) -> Result<[u8; 6], String> {
    let byte = |word: &str| {
        u8::from_str_radix(word, 16).ok().filter(|_| word.len() == 2 && word.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
    let bytes: Option<[u8; 6]> = bytes.and_then(|bytes| bytes.try_into().ok());
    // That of one interface: the other kind is for many (IEEE 802, 8.2).
    let bytes = bytes.filter(|bytes| bytes[0] & 1 == 0 && *bytes != [0; 6]);
    bytes.ok_or_else(|| format!("'{text}' is not the MAC address of an interface, as in 02:00:00:00:00:01"))
}

/// A name that DNS can have: parts of up to 63 bytes.
fn alias(text: &str) -> Result<String, String> {
    let part = |part: &str| {
        (1..=63).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
    };
    match text.len() <= 253 && text.split('.').all(part) {
        true => Ok(text.to_owned()),
        false => Err(format!("'{text}' is not a name for DNS")),
    }
}

/// A port of the host that leads to one of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// Where the host listens.
    pub host_ip: Ipv4Addr,
    pub host_port: u16,
    pub guest_port: u16,
    pub udp: bool,
}

/// What `-p` says: `[IP:]HOST:GUEST[/PROTOCOL]`.
pub fn publish(text: &str) -> Result<Publish, String> {
    let (ports, udp) = match text.split_once('/') {
        None => (text, false),
        Some((ports, "tcp")) => (ports, false),
        Some((ports, "udp")) => (ports, true),
        Some((_, other)) => return Err(format!("'{other}' is neither tcp nor udp")),
    };
    let port = |word: &str| match word.parse::<u16>() {
        Ok(port @ 1..) => Ok(port),
        _ => Err(format!("'{word}' is not a port; ports are 1 to 65535")),
    };
    let (host_ip, host_port, guest_port) = match ports.split(':').collect::<Vec<_>>()[..] {
        [host, guest] => (Ipv4Addr::LOCALHOST, host, guest),
        [ip, host, guest] => {
            let ip = ip.parse().map_err(|_| format!("'{ip}' is not an IPv4 address"))?;
            (ip, host, guest)
        }
        _ => return Err("it is [IP:]HOST_PORT:PORT[/tcp|/udp]".into()),
    };
    Ok(Publish { host_ip, host_port: port(host_port)?, guest_port: port(guest_port)?, udp })
}

/// Where packets may go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Destination {
    /// A network or an address, and a port or all of them.
    Rule(Rule),
    /// A name, whatever its addresses are when the microVM starts.
    Name {
        /// The name.
        host: String,
        /// None: all of them.
        port: Option<u16>,
    },
}

/// What `--egress` says: `CIDR`, `IP`, `HOST`, each with a port or without.
pub fn egress(text: &str) -> Result<Destination, String> {
    let not_a_rule = match text.parse() {
        Ok(rule) => return Ok(Destination::Rule(rule)),
        Err(error) => error,
    };
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let is_name = host.bytes().all(letter) && host.bytes().any(|byte| byte.is_ascii_alphabetic());
    if !is_name || host.starts_with('-') {
        return Err(format!("{not_a_rule}, nor is it HOST[:PORT]"));
    }
    let number = |word: &str| match word.parse::<u16>() {
        Ok(port @ 1..) if word.bytes().all(|byte| byte.is_ascii_digit()) => Ok(port),
        _ => Err(format!("'{word}' is not a port; ports are 1 to 65535")),
    };
    Ok(Destination::Name { host: host.to_owned(), port: port.map(number).transpose()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks() {
        assert_eq!(network("none"), Ok(Network::None));
        assert_eq!(network("user"), Ok(Network::User));
        assert_eq!(network("tap=t0"), Ok(Network::Tap("t0".into())));
        assert_eq!(network("tap"), Ok(Network::NewTap));
        assert_eq!(network("web_1"), Ok(Network::Named("web_1".into())));
        for bad in ["", "tap=", "host", "user=x", "bridge", "container:x", "a/b", ".x"] {
            assert!(network(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn places_in_a_network() {
        assert_eq!(mac("02:00:00:00:00:Fe"), Ok([2, 0, 0, 0, 0, 0xfe]));
        for bad in ["", "02:00:00:00:00", "01:00:00:00:00:01", "00:00:00:00:00:00", "2:0:0:0:0:1", "02:00:00:00:00:0g"]
        {
            assert!(mac(bad).is_err(), "{bad}");
        }
        for (name, good) in [("db", true), ("a.b_c-1", true), ("", false), ("a..b", false), ("a b", false)] {
            assert_eq!(alias(name).is_ok(), good, "{name}");
        }
        assert!(alias(&"x".repeat(64)).is_err() && alias(&"x.".repeat(200)).is_err());
    }

    #[test]
    fn destinations_are_networks_addresses_and_names() {
        let rule = |text: &str| Ok(Destination::Rule(text.parse().unwrap()));
        let name = |host: &str, port| Ok(Destination::Name { host: host.into(), port });
        assert_eq!((egress("10.0.0.0/8"), egress("192.0.2.1:443")), (rule("10.0.0.0/8"), rule("192.0.2.1:443")));
        assert_eq!(egress("example.org:443"), name("example.org", Some(443)));
        assert_eq!(egress("a-host"), name("a-host", None));
        for bad in [
            "",
            "10.0.0.1/8",
            "1.2.3",
            "1.2.3.4.5",
            "a b",
            "-x",
            "host:",
            "host:0",
            "host:+1",
            "host:1:2",
            "::1",
            "[::1]:80",
            "host/8",
        ] {
            assert!(egress(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ports_are_on_the_loopback_interface_unless_told_otherwise() {
        let got = publish("8080:80").unwrap();
        assert_eq!((got.host_ip, got.host_port, got.guest_port, got.udp), (Ipv4Addr::LOCALHOST, 8080, 80, false));
        let got = publish("0.0.0.0:53:5353/udp").unwrap();
        assert_eq!((got.host_ip, got.host_port, got.guest_port, got.udp), (Ipv4Addr::UNSPECIFIED, 53, 5353, true));
        for bad in ["", "80", "0:80", "80:65536", "80:80/sctp", "localhost:1:2", "1:2:3:4", "::1:2:3", "+1:2x"] {
            assert!(publish(bad).is_err(), "{bad}");
        }
    }
}
