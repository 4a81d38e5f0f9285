//! The guest's network, set up in networks of this process's own. It takes CAP_SYS_ADMIN and ip(8); where there is neither nothing is tried.
//! In a process apart, since it starts programs, which have copies of other tests' descriptors for a moment.

use guest_init::network::{prepare, set_up};
use guest_init::sys::{Attempt, attempt};
use guest_protocol::{Address, Network};
use std::process::Command;

/// What an interface has that nobody has told anything.
const USUAL_MTU: u16 = 1500;

fn ip(words: &str) -> String {
    let done = Command::new("ip").args(words.split(' ')).output().unwrap();
    assert!(done.status.success(), "ip {words}: {done:?}");
    String::from_utf8(done.stdout).unwrap()
}

const NEWNET: Attempt = Attempt::Unshare(0x4000_0000);

/// A network of this thread's own, with an interface that nobody has told anything. It takes CAP_SYS_ADMIN.
fn own_network() -> bool {
    let installed = Command::new("ip").arg("-V").output().is_ok();
    if !installed || attempt(NEWNET).is_err() {
        return false;
    }
    ip("link add eth0 type veth peer name other");
    ip("link set other up");
    true
}

fn told(last: u8, mtu: Option<u16>, address: Option<[u8; 4]>) -> Network {
    let address = address.map(|ip| Address { ip, prefix_len: 20, gateway: Some([ip[0], ip[1], ip[2], 1]) });
    Network { mac: [2, 0, 0, 0, 0, last], mtu, address }
}

fn assert_is(network: &Network) {
    let link = ip("link show dev eth0");
    assert!(link.contains(&format!("02:00:00:00:00:{:02x} ", network.mac[5])) && link.contains(",UP"), "{link}");
    assert!(link.contains(&format!(" mtu {} ", network.mtu.unwrap_or(USUAL_MTU))), "{link}");
    let (addresses, routes) = (ip("-o address show dev eth0"), ip("-4 route show"));
    match &network.address {
        Some(Address { ip: [a, b, c, d], .. }) => {
            assert!(addresses.contains(&format!(" inet {a}.{b}.{c}.{d}/20 ")), "{addresses}");
            assert_eq!(addresses.lines().count(), 1, "no IPv6, no other address: {addresses}");
            assert!(routes.starts_with(&format!("default via {a}.{b}.{c}.1 dev eth0")), "{routes}");
            assert_eq!(routes.lines().count(), 2, "{routes}");
        }
        None => {
            assert!(!addresses.contains(" inet ") && routes.is_empty(), "{addresses}{routes}");
            // That of its own MAC address, where there is IPv6.
            let wanted = format!(" inet6 fe80::ff:fe00:{:x}/64 ", network.mac[5]);
            assert!(addresses.is_empty() || addresses.contains(&wanted), "{addresses}");
        }
    }
}

#[test]
fn a_clone_is_on_its_own_network_whatever_it_was_prepared_for() {
    let usual = |last| told(last, Some(65520), Some([10, 0, 2, 15]));
    let others = [told(3, Some(9000), Some([172, 28, 3, 7])), told(4, None, Some([10, 0, 2, 15])), told(5, None, None)];
    for network in [usual(2)].iter().chain(&others) {
        for prepared in [None, Some(usual(1))] {
            if !own_network() {
                return;
            }
            if let Some(prepared) = &prepared {
                assert!(prepare(prepared));
                assert_is(prepared);
            }
            set_up(network, prepared.as_ref()).unwrap();
            assert_is(network);
        }
    }
}

#[test]
fn without_an_interface_nothing_is_prepared() {
    if attempt(NEWNET).is_ok() {
        assert!(!prepare(&told(1, None, None)) && set_up(&told(1, None, None), None).is_err());
    }
}
