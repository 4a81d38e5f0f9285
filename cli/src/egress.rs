//! `--egress`: where a container's packets may go, with names looked up on this host, once.

use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};

use anyhow::{Context, anyhow};
use vmm::egress::Rule;

use crate::args::Destination;

/// Where resolvers listen.
const DNS: u16 = 53;

/// The rules that these destinations come to. Where there are names among them, the container's own resolvers, which are in the
/// content of its /etc/resolv.conf, are allowed as well: it would ask for the same names.
pub fn rules(destinations: &[Destination], resolv_conf: Option<&str>) -> anyhow::Result<Vec<Rule>> {
    let mut rules = Vec::new();
    for destination in destinations {
        match destination {
            Destination::Rule(rule) => rules.push(*rule),
            Destination::Name { host, port } => {
                let of = || format!("--egress: cannot look up '{host}'");
                let found = (host.as_str(), 0).to_socket_addrs().with_context(of)?;
                let before = rules.len();
                rules.extend(found.filter_map(ipv4).map(|address| Rule::host(address, *port)));
                if rules.len() == before {
                    return Err(anyhow!("--egress: '{host}' has no IPv4 address"));
                }
            }
        }
    }
    if destinations.iter().any(|destination| matches!(destination, Destination::Name { .. })) {
        rules.extend(resolvers(resolv_conf.unwrap_or_default()).map(|address| Rule::host(address, Some(DNS))));
    }
    let mut unique: Vec<Rule> = Vec::new();
    rules.into_iter().for_each(|rule| {
        if !unique.contains(&rule) {
            unique.push(rule);
        }
    });
    Ok(unique)
}

fn ipv4(address: SocketAddr) -> Option<Ipv4Addr> {
    match address {
        SocketAddr::V4(address) => Some(*address.ip()),
        SocketAddr::V6(_) => None,
    }
}

/// Those of resolv.conf(5).
fn resolvers(conf: &str) -> impl Iterator<Item = Ipv4Addr> {
    conf.lines().filter_map(|line| line.strip_prefix("nameserver")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::egress;

    fn texts(destinations: &[&str], resolv_conf: &str) -> anyhow::Result<Vec<String>> {
        let destinations: Vec<_> = destinations.iter().map(|text| egress(text).unwrap()).collect();
        Ok(rules(&destinations, Some(resolv_conf))?.into_iter().map(String::from).collect())
    }

    #[test]
    fn names_are_looked_up_and_bring_the_resolvers_along() {
        let conf = "search here\nnameserver 10.0.2.3\nnameserver ::1\nnameserver\t192.0.2.9\n";
        assert_eq!(texts(&["10.0.0.0/8", "192.0.2.1:80"], conf).unwrap(), ["10.0.0.0/8", "192.0.2.1:80"]);
        let with_name = ["127.0.0.1:80", "10.0.2.3:53", "192.0.2.9:53"];
        assert_eq!(texts(&["localhost:80", "127.0.0.1:80"], conf).unwrap(), with_name);
        let error = texts(&["no-such-name.invalid"], conf).unwrap_err().to_string();
        assert!(error.contains("no-such-name.invalid"), "{error}");
    }
}
