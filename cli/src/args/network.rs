//! `--network` and `-p`, with docker's syntax where the meaning is docker's.

use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

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
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Network::None => f.write_str("none"),
            Network::User => f.write_str("user"),
            Network::Tap(name) => write!(f, "tap={name}"),
        }
    }
}

/// What `--network` says.
pub fn network(text: &str) -> Result<Network, String> {
    match text.split_once('=') {
        None if text == "none" => Ok(Network::None),
        None if text == "user" => Ok(Network::User),
        Some(("tap", name)) if !name.is_empty() => Ok(Network::Tap(name.to_owned())),
        _ => Err("it is none, user or tap=NAME".into()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks() {
        assert_eq!(network("none"), Ok(Network::None));
        assert_eq!(network("user"), Ok(Network::User));
        assert_eq!(network("tap=t0"), Ok(Network::Tap("t0".into())));
        for bad in ["", "tap", "tap=", "host", "user=x"] {
            assert!(network(bad).is_err(), "{bad}");
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
