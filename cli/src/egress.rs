//! `--egress`: where a container's packets may go, with names looked up on this host, once.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::anyhow;
use dns_lookup::{AddrFamily, AddrInfoHints, SockType, getaddrinfo};
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
                let found = look_up(host)
                    .map_err(|error| anyhow!("--egress: cannot look up an IPv4 address of '{host}': {error}"))?;
                rules.extend(found.into_iter().map(|address| Rule::host(address, *port)));
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

/// The IPv4 addresses of a name, of which there is one at least. Nobody is asked for others, which could fail.
fn look_up(name: &str) -> std::io::Result<Vec<Ipv4Addr>> {
    let hints = AddrInfoHints {
        address: AddrFamily::Inet.into(),
        socktype: SockType::Stream.into(),
        ..AddrInfoHints::default()
    };
    let ipv4 = |info: dns_lookup::AddrInfo| match info.sockaddr.ip() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    };
    getaddrinfo(Some(name), None, Some(hints))?.filter_map(|info| info.map(ipv4).transpose()).collect()
}

/// Those of resolv.conf(5).
fn resolvers(conf: &str) -> impl Iterator<Item = Ipv4Addr> {
    conf.lines().filter_map(|line| line.strip_prefix("nameserver")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::process::Command;

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

    /// A resolver that has no answer for IPv6 addresses, in namespaces of the test's own.
    #[test]
    fn nobody_is_asked_for_addresses_that_a_rule_cannot_have() {
        const CHILD: &str = "BULKHEAD_TEST_RESOLVER";
        if std::env::var_os(CHILD).is_some() {
            let socket = UdpSocket::bind("127.0.0.1:53").unwrap();
            std::thread::spawn(move || answer(&socket));
            return assert_eq!(texts(&["one.example:80"], "").unwrap(), ["192.0.2.7:80"]);
        }
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("resolv.conf", "nameserver 127.0.0.1\n");
        // No daemon of the host's is asked, which some have for it.
        write("nsswitch.conf", "hosts: dns\n");
        let inside = |script: &str| {
            let mut command = Command::new("unshare");
            command.args(["-mn", "sh", "-c", script, "sh"]).arg(dir.path()).env(CHILD, "1");
            command
        };
        let ready = "ip link set lo up && mount --bind \"$1/resolv.conf\" /etc/resolv.conf && \
                     { ! [ -e /etc/nsswitch.conf ] || mount --bind \"$1/nsswitch.conf\" /etc/nsswitch.conf; }";
        if !inside(ready).output().is_ok_and(|tried| tried.status.success()) {
            return println!(
                "SKIP nobody_is_asked_for_addresses_that_a_rule_cannot_have: no namespaces can be had here"
            );
        }
        let test = "egress::tests::nobody_is_asked_for_addresses_that_a_rule_cannot_have";
        let mut again = inside(&format!("{ready} && exec \"$2\" --exact {test} --nocapture"));
        let ended = again.arg(std::env::current_exe().unwrap()).output().unwrap();
        let said = String::from_utf8_lossy(&ended.stdout);
        assert!(ended.status.success() && said.contains(" 1 passed"), "{ended:?}");
    }

    /// Answers DNS queries of one question (RFC 1035, 4.1): one address for A, SERVFAIL for all else.
    fn answer(socket: &UdpSocket) {
        let mut buffer = [0; 512];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let mut message = buffer[..len].to_vec();
            let is_a = message[len - 4..] == [0, 1, 0, 1];
            message[2] |= 0x80;
            message[3] = if is_a { 0x80 } else { 0x82 };
            message[7] = is_a.into();
            if is_a {
                // The question's name, class IN, a minute.
                message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7]);
            }
            socket.send_to(&message, from).unwrap();
        }
    }
}
