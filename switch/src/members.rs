//! Who is in a network, and how each of them is found.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use crate::frame::Own;
use crate::handshake::Handshakes;
use crate::link::Link;
use crate::protocol::{Join, MOST_MEMBERS, Member as Shown, Network, VERSION};

/// A member.
#[derive(Debug)]
pub struct Member {
    id: String,
    /// In small letters.
    names: Vec<String>,
    /// What is its own.
    pub own: Own,
    /// Open as long as it is a member.
    pub lease: OwnedFd,
    /// Its microVM.
    pub port: Option<Link>,
    /// What is beyond the network, for it.
    pub uplink: Option<Link>,
    /// What passt leaves out of them there.
    pub handshakes: Handshakes,
    /// Its port has ended, and waits for its uplink to do so: what that had of the host is another's then.
    pub leaving: bool,
    /// Frames of its guest's.
    pub sent: u64,
    /// Those of them in another's name.
    pub denied: u64,
    /// Frames for it that found no room.
    pub lost: u64,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Members {
    /// By the numbers that they are known by in the event loop.
    all: BTreeMap<u64, Member>,
    by_mac: HashMap<[u8; 6], u64>,
    by_ip: HashMap<Ipv4Addr, u64>,
}

impl Members {
    /// What it would be called, if it may become a member.
    ///
    /// # Errors
    /// Why not, for people; docker's words where it has some.
    pub fn own(&self, join: &Join, network: &Network) -> Result<Own, String> {
        if join.version != VERSION {
            return Err(format!(
                "its switch speaks version {VERSION}, this program {}: stop its containers",
                join.version
            ));
        }
        if self.all.len() >= MOST_MEMBERS {
            return Err(format!("it has {MOST_MEMBERS} members, and no room for more"));
        }
        if self.by_mac.contains_key(&join.mac) || join.mac == network.gateway_mac() || join.mac[0] & 1 != 0 {
            return Err("another has this MAC address".into());
        }
        let ip = match join.ip {
            Some(ip) => self.may_have(ip, network).map(|()| ip),
            None => {
                self.free(network).ok_or_else(|| "no available IPv4 addresses on this network's address pool".into())
            }
        };
        ip.map(|ip| Own { mac: join.mac, ip })
    }

    fn may_have(&self, ip: Ipv4Addr, network: &Network) -> Result<(), String> {
        if !network.has(ip) || ip == network.gateway || is_edge(ip, network) {
            let (first, len) = (Ipv4Addr::from(u32::from(network.gateway) & network.mask()), network.prefix_len);
            return Err(format!("{ip} is not an address for a member of {first}/{len}"));
        }
        if self.by_ip.contains_key(&ip) { Err("Address already in use".into()) } else { Ok(()) }
    }

    fn free(&self, network: &Network) -> Option<Ipv4Addr> {
        let first = u32::from(network.gateway) & network.mask();
        // There are no more members than this, and the gateway and the edges.
        let most = (!network.mask()).min(MOST_MEMBERS as u32 + 3);
        (1..=most).map(|number| Ipv4Addr::from(first + number)).find(|ip| self.may_have(*ip, network).is_ok())
    }

    /// Makes one a member.
    pub fn add(&mut self, key: u64, join: Join, own: Own, lease: OwnedFd) {
        let names = join.names.into_iter().map(|name| name.to_ascii_lowercase()).collect();
        let new = Member {
            id: join.id,
            names,
            own,
            lease,
            port: None,
            uplink: None,
            handshakes: Handshakes::default(),
            leaving: false,
            sent: 0,
            denied: 0,
            lost: 0,
        };
        self.by_mac.insert(own.mac, key);
        self.by_ip.insert(own.ip, key);
        self.all.insert(key, new);
    }

    /// One that is a member no more.
    pub fn remove(&mut self, key: u64) -> Option<Member> {
        let member = self.all.remove(&key)?;
        self.by_mac.remove(&member.own.mac);
        self.by_ip.remove(&member.own.ip);
        Some(member)
    }

    /// The member with this number.
    pub fn get(&mut self, key: u64) -> Option<&mut Member> {
        self.all.get_mut(&key)
    }

    /// The number of the one with this MAC address.
    pub fn at(&self, mac: &[u8; 6]) -> Option<u64> {
        self.by_mac.get(mac).copied()
    }

    /// The numbers of all of them.
    pub fn keys(&self) -> Vec<u64> {
        self.all.keys().copied().collect()
    }

    /// The MAC address of whoever has this one.
    pub fn mac_of(&self, ip: Ipv4Addr) -> Option<[u8; 6]> {
        Some(self.all.get(self.by_ip.get(&ip)?)?.own.mac)
    }

    /// The addresses of those that answer to a name in small letters, alone or within the network.
    pub fn named(&self, name: &str, network: &Network) -> Option<Vec<Ipv4Addr>> {
        let within = name.strip_suffix(&network.name.to_ascii_lowercase()).and_then(|name| name.strip_suffix('.'));
        let fits = |member: &&Member| member.names.iter().any(|own| own == name || Some(&own[..]) == within);
        let found: Vec<_> = self.all.values().filter(fits).map(|member| member.own.ip).collect();
        Some(found).filter(|found| !found.is_empty())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// For those who ask.
    pub fn shown(&self) -> Vec<Shown> {
        let shown = |member: &Member| Shown {
            id: member.id.clone(),
            names: member.names.clone(),
            mac: member.own.mac,
            ip: member.own.ip,
            attached: member.port.is_some(),
            sent: member.sent,
            denied: member.denied,
            lost: member.lost,
        };
        self.all.values().map(shown).collect()
    }
}

/// The first and the last address of a network are nobody's.
fn is_edge(ip: Ipv4Addr, network: &Network) -> bool {
    let number = u32::from(ip) & !network.mask();
    number == 0 || number == !network.mask()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn network(prefix_len: u8) -> Network {
        Network { name: "Net".into(), gateway: [172, 28, 5, 1].into(), prefix_len, internal: false }
    }

    fn join(name: &str, last: u8, ip: Option<[u8; 4]>) -> Join {
        let names = vec![name.to_owned(), format!("{name}-Alias")];
        Join { version: VERSION, id: name.into(), names, mac: [2, 0, 0, 0, 0, last], ip: ip.map(Ipv4Addr::from) }
    }

    fn add(members: &mut Members, network: &Network, key: u64, join: Join) -> Result<Ipv4Addr, String> {
        let own = members.own(&join, network)?;
        members.add(key, join, own, UnixStream::pair().unwrap().0.into());
        Ok(own.ip)
    }

    #[test]
    fn each_has_an_address_of_its_own_and_gives_it_back() {
        let (mut members, network) = (Members::default(), network(29));
        let ip = |last: u8| Ok(Ipv4Addr::new(172, 28, 5, last));
        assert_eq!(add(&mut members, &network, 1, join("a", 1, None)), ip(2));
        assert_eq!(add(&mut members, &network, 2, join("b", 2, Some([172, 28, 5, 4]))), ip(4));
        let refused = |members: &mut Members, join| add(members, &network, 9, join).unwrap_err();
        assert_eq!(refused(&mut members, join("c", 3, Some([172, 28, 5, 4]))), "Address already in use");
        for bad in [[172, 28, 5, 1], [172, 28, 5, 0], [172, 28, 5, 7], [172, 28, 5, 8], [10, 0, 0, 1]] {
            assert!(refused(&mut members, join("c", 3, Some(bad))).contains("172.28.5.0/29"), "{bad:?}");
        }
        assert!(refused(&mut members, join("c", 1, None)).contains("MAC address"));
        let other = Join { version: 99, ..join("c", 3, None) };
        assert!(refused(&mut members, other).contains("version"));
        for (key, last) in [(3, 3), (4, 5), (5, 6)] {
            assert_eq!(add(&mut members, &network, key, join("x", last, None)), ip(last));
        }
        assert!(refused(&mut members, join("c", 7, None)).contains("no available"));
        members.remove(1).unwrap();
        assert_eq!(add(&mut members, &network, 6, join("c", 7, None)), ip(2));
        assert_eq!(members.mac_of([172, 28, 5, 2].into()), Some([2, 0, 0, 0, 0, 7]));
        assert_eq!((members.at(&[2, 0, 0, 0, 0, 7]), members.at(&[2, 0, 0, 0, 0, 1])), (Some(6), None));
    }

    #[test]
    fn names_are_those_of_all_that_answer_to_them() {
        let (mut members, network) = (Members::default(), network(24));
        add(&mut members, &network, 1, join("Web", 1, None)).unwrap();
        add(&mut members, &network, 2, Join { names: vec!["web".into()], ..join("b", 2, None) }).unwrap();
        let named = |name| members.named(name, &network).map_or(0, |found| found.len());
        assert_eq!([named("web"), named("web.net"), named("web-alias"), named("web-alias.net")], [2, 2, 1, 1]);
        assert_eq!([named(""), named("net"), named(".net"), named("webnet"), named("web.org"), named("other")], [0; 6]);
    }
}
