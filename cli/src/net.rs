//! Network interfaces of machines.

use anyhow::Context;
use rustix::rand::GetRandomFlags;
use serde_json::{Map, Value};
use vmm::config::add_device;

/// Key of the section in a machine's configuration.
const SECTION: &str = "network-interfaces";

/// Adds an interface for each value of `boot --net`. Those that are told no MAC address get one that nothing else has.
pub fn add(flags: &[String], devices: &mut Map<String, Value>) -> anyhow::Result<()> {
    for flag in flags {
        add_device(devices, "net", flag)?;
    }
    for interface in devices.get_mut(SECTION).and_then(Value::as_array_mut).into_iter().flatten() {
        if interface["guest_mac"].is_null() {
            interface["guest_mac"] = text(mac()?).into();
        }
    }
    Ok(())
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
}
