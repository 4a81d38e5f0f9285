//! Guests with an interface, and containers that are on a network or not.

use super::*;
use guest_init::sys::{Attempt, attempt};

/// What init prepares, and what the container may be on.
fn usual() -> Network {
    let address = Address { ip: [10, 0, 2, 15], prefix_len: 24, gateway: Some([10, 0, 2, 1]) };
    Network { mac: [2, 0, 0, 0, 0, 1], mtu: None, address: Some(address) }
}

/// The interfaces that a process of the container finds, by either way to look for them, and whether it has itself to talk to.
const LOOK: &str =
    "sed -n 's/^ *\\([a-z0-9]*\\):.*/\\1/p' /proc/net/dev; cd /sys/class/net; ls -d lo eth0 2>&-; cat lo/carrier";

fn interfaces(order: Start, prepares: bool) -> Option<Vec<String>> {
    let mut host = Host::with_interface()?;
    if prepares {
        host.prepare_and_clone(Some(usual()));
        host.accept_again();
    }
    let (stdout, stderr, status) = run_on(host, order);
    assert_eq!((stderr.as_str(), status), ("", ExitStatus::Code(0)));
    Some(stdout.lines().map(str::to_owned).collect())
}

#[test]
fn a_container_on_no_network_sees_nothing_but_its_loopback_interface() {
    if attempt(Attempt::Unshare(0x4000_0000)).is_err() || Command::new("ip").arg("-V").output().is_err() {
        return eprintln!("SKIP: no network namespaces here, or no ip(8)");
    }
    for prepares in [true, false] {
        let own = Sysctl { path: "net/ipv4/ip_unprivileged_port_start".into(), value: "77".into() };
        let look = format!("{LOOK}; cat /proc/sys/{}", own.path);
        let asks = Start { settings: Settings { sysctls: vec![own], ..Settings::default() }, ..start(shell(&look)) };
        let Some(alone) = interfaces(asks, prepares) else { return };
        assert_eq!(alone, ["lo", "lo", "1", "77"], "prepared: {prepares}");
        let mut networked = interfaces(Start { network: Some(usual()), ..start(shell(LOOK)) }, prepares).unwrap();
        networked.sort();
        assert_eq!(networked[1..], ["eth0", "eth0", "lo", "lo", "other"], "prepared: {prepares}");
    }
}
