//! The addresses of a network.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where those come from that nobody has chosen: parts of 172.28.0.0/14, which is private (RFC 1918), and where docker takes its
/// own from last.
const POOL: u32 = 172 << 24 | 28 << 16;
/// How many there are in it.
const POOL_SIZE: u32 = 1 << 10;
/// The length of their prefixes.
const PREFIX_LEN: u8 = 24;
/// Room for a switch and some members, and no more than a private range has.
const LENGTHS: std::ops::RangeInclusive<u8> = 8..=29;

/// A network, as CIDR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    network: u32,
    prefix_len: u8,
}

impl Subnet {
    /// The length of its prefix.
    pub fn prefix_len(self) -> u8 {
        self.prefix_len
    }

    /// The first address that somebody can have.
    pub fn first(self) -> Ipv4Addr {
        (self.network + 1).into()
    }

    fn mask(self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix_len)).unwrap_or(0)
    }

    /// Whether somebody in it can have this address.
    pub fn may_have(self, ip: Ipv4Addr) -> bool {
        let number = u32::from(ip) & !self.mask();
        (u32::from(ip) ^ self.network) & self.mask() == 0 && number != 0 && number != !self.mask()
    }

    /// Whether they have an address in common.
    pub fn overlaps(self, other: Subnet) -> bool {
        (self.network ^ other.network) & self.mask() & other.mask() == 0
    }

    /// One that has nothing in common with any of these.
    pub fn free(taken: &[Subnet]) -> Option<Subnet> {
        let all = (0..POOL_SIZE)
            .map(|number| Subnet { network: POOL | number << (32 - u32::from(PREFIX_LEN)), prefix_len: PREFIX_LEN });
        all.into_iter().find(|subnet| !taken.iter().any(|other| other.overlaps(*subnet)))
    }
}

/// The networks of a table of routes, as in /proc/net/route (proc(5)); not the default ones.
pub fn routed(routes: &str) -> impl Iterator<Item = Subnet> {
    routes.lines().skip(1).filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| u32::from_str_radix(words.get(at)?, 16).ok().map(u32::swap_bytes);
        let (network, mask) = (number(1)?, number(7)?);
        (mask != 0).then(|| Subnet { network: network & mask, prefix_len: mask.leading_ones() as u8 })
    })
}

impl FromStr for Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (network, len) = text.split_once('/')?;
            let prefix_len = len.parse().ok().filter(|_| len.bytes().all(|byte| byte.is_ascii_digit()))?;
            let network: Ipv4Addr = network.parse().ok()?;
            Some(Subnet { network: network.into(), prefix_len })
        };
        let subnet = parse().ok_or_else(|| format!("invalid CIDR address: '{text}'; it is as 10.1.2.0/24, of IPv4"))?;
        if !LENGTHS.contains(&subnet.prefix_len) {
            return Err(format!("'{text}': a prefix has {} to {} bits", LENGTHS.start(), LENGTHS.end()));
        }
        let network = subnet.network & subnet.mask();
        let first = Ipv4Addr::from(network);
        if network != subnet.network {
            return Err(format!("'{text}' has bits beyond its prefix; it should be {first}/{}", subnet.prefix_len));
        }
        match first.is_loopback() || first.is_multicast() || first.octets()[0] == 0 || first.octets()[0] >= 240 {
            true => Err(format!("'{text}' is not a network of hosts")),
            false => Ok(subnet),
        }
    }
}

impl TryFrom<String> for Subnet {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> String {
        subnet.to_string()
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.network), self.prefix_len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn a_subnet_is_as_it_is_written() {
        for good in ["10.0.0.0/8", "172.28.5.0/24", "192.168.1.248/29"] {
            assert_eq!(subnet(good).to_string(), good);
        }
        for bad in [
            "",
            "10.0.0.0",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0.0/7",
            "10.0.0.0/30",
            "10.0.0.1/24",
            "::/64",
            "127.0.0.0/8",
            "224.0.0.0/8",
            "0.0.0.0/8",
            "240.0.0.0/8",
            "10.0.0/24",
            "10.0.0.0/24/1",
        ] {
            let said = bad.parse::<Subnet>().unwrap_err();
            assert!(!said.contains('\n'), "{said}");
        }
    }

    #[test]
    fn its_edges_are_nobodys() {
        let subnet = subnet("10.1.2.0/29");
        let may = [0, 1, 6, 7, 8].map(|last| subnet.may_have(Ipv4Addr::new(10, 1, 2, last)));
        assert_eq!((may, subnet.first()), ([false, true, true, false, false], [10, 1, 2, 1].into()));
    }

    #[test]
    fn a_free_one_has_nothing_in_common_with_any_other() {
        assert_eq!(Subnet::free(&[]).unwrap().to_string(), "172.28.0.0/24");
        let taken = [subnet("172.28.0.0/23"), subnet("172.28.2.128/25")];
        assert_eq!(Subnet::free(&taken).unwrap().to_string(), "172.28.3.0/24");
        assert_eq!(Subnet::free(&[subnet("172.16.0.0/12")]), None);
        assert!(
            subnet("10.0.0.0/8").overlaps(subnet("10.1.0.0/16"))
                && !subnet("10.0.0.0/16").overlaps(subnet("10.1.0.0/16"))
        );
        let routes = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                      eth0\t00000000\tFE02A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                      t0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\nrubbish\n";
        assert_eq!(routed(routes).map(|subnet| subnet.to_string()).collect::<Vec<_>>(), ["192.0.2.0/24"]);
    }
}
