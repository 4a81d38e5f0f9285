//! The `network-interfaces` section and the `--net` flag, and how they become devices.

#[cfg(any(test, feature = "testing"))]
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Net;
use super::backend::Backend;
use super::passt::User;
use super::stream::Stream;
use super::tap::{NAME_MOST, Tap};
use crate::virtio::VirtioDevice;
use crate::virtio::limit::{Direction, RateLimiter, Scope};
use crate::virtio::table::{DeviceError, DeviceKind};

const SECTION: &str = "network-interfaces";

/// Its line of the table.
pub const KIND: DeviceKind = DeviceKind {
    name: "net",
    config_key: SECTION,
    flag: "net",
    flag_syntax: "user|tap=NAME[,mac=MAC]",
    help: "a network interface as eth0, eth1, ... in the order given; user: through passt, without privileges; tap: one of the host's",
    parse_flag,
    id_key: Some("iface_id"),
    swappable: &["host_dev_name", "user", "unplugged"],
    limiters: &[
        ("rx_rate_limiter", Scope::Only(Direction::ToGuest)),
        ("tx_rate_limiter", Scope::Only(Direction::FromGuest)),
    ],
    told: None,
    writable_files: |_| Vec::new(),
    check: |section| parse(section).and_then(|interfaces| check(&interfaces)),
    build,
    kernel_args: |_| None,
    syscalls: &[
        libc::SYS_read,
        libc::SYS_writev,
        libc::SYS_recvfrom,
        libc::SYS_sendto,
        libc::SYS_ioctl,
        libc::SYS_epoll_wait,
    ],
    #[cfg(any(test, feature = "testing"))]
    sample,
};

/// One interface, as in the configuration.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Interface {
    iface_id: String,
    /// The driver makes one up if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    guest_mac: Option<Mac>,
    /// A tap interface of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    host_dev_name: Option<String>,
    /// Ours: user mode, through passt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<User>,
    /// Ours: nothing is at the other end of the cable yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unplugged: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rx_rate_limiter: Option<RateLimiter>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tx_rate_limiter: Option<RateLimiter>,
}

/// A unicast MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
struct Mac([u8; 6]);

impl TryFrom<String> for Mac {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let byte = |word: &str| {
            u8::from_str_radix(word, 16).ok().filter(|_| word.len() == 2 && word.bytes().all(|b| b.is_ascii_hexdigit()))
        };
        let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
        let bytes: Option<[u8; 6]> = bytes.and_then(|bytes| bytes.try_into().ok());
        let bytes = bytes.ok_or_else(|| format!("'{text}' is not a MAC address, as in 02:00:00:00:00:01"))?;
        if bytes[0] & 1 != 0 || bytes == [0; 6] {
            return Err(format!("'{text}' is not the MAC address of one interface"));
        }
        Ok(Mac(bytes))
    }
}

impl From<Mac> for String {
    fn from(Mac([a, b, c, d, e, f]): Mac) -> String {
        format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

fn invalid(reason: String) -> DeviceError {
    DeviceError::Invalid { section: SECTION, reason }
}

fn parse(section: &Value) -> Result<Vec<Interface>, DeviceError> {
    serde_json::from_value(section.clone()).map_err(DeviceError::section(SECTION))
}

fn parse_flag(value: &str, section: &mut Value) -> Result<(), DeviceError> {
    let wrong = |reason: String| DeviceError::Invalid { section: "--net", reason };
    let (kind, mac) = match value.split_once(",mac=") {
        Some((kind, mac)) => (kind, Some(Mac::try_from(mac.to_owned()).map_err(wrong)?)),
        None => (value, None),
    };
    let mut interfaces = if section.is_null() { Vec::new() } else { parse(section)? };
    let (host_dev_name, user) = match kind.split_once('=') {
        None if kind == "user" => (None, Some(User::default())),
        Some(("tap", name)) => (Some(name.to_owned()), None),
        _ => return Err(wrong(format!("'{value}' is neither user nor tap=NAME, with ,mac=MAC or without"))),
    };
    let iface_id = format!("eth{}", interfaces.len());
    let (rx_rate_limiter, tx_rate_limiter) = (None, None);
    let unplugged = false;
    interfaces.push(Interface {
        iface_id,
        guest_mac: mac,
        host_dev_name,
        user,
        unplugged,
        rx_rate_limiter,
        tx_rate_limiter,
    });
    check(&interfaces)?;
    *section = serde_json::to_value(interfaces).map_err(DeviceError::section(SECTION))?;
    Ok(())
}

/// What can be told without opening anything.
fn check(interfaces: &[Interface]) -> Result<(), DeviceError> {
    for (index, interface) in interfaces.iter().enumerate() {
        let Interface { iface_id: id, host_dev_name, user, unplugged, .. } = interface;
        if interfaces[..index].iter().any(|other| other.iface_id == *id) {
            return Err(invalid(format!("two interfaces have the iface_id '{id}'")));
        }
        if usize::from(host_dev_name.is_some()) + usize::from(user.is_some()) + usize::from(*unplugged) != 1 {
            return Err(invalid(format!("interface '{id}' needs one of host_dev_name, user and unplugged")));
        }
        if let Some(name) = host_dev_name.as_deref().filter(|name| !is_name(name)) {
            return Err(invalid(format!("interface '{id}': '{name}' is not the name of an interface")));
        }
        user.as_ref().map_or(Ok(()), User::check).map_err(|why| invalid(format!("interface '{id}': {why}")))?;
    }
    Ok(())
}

/// What Linux takes; `%` would make it a pattern.
fn is_name(name: &str) -> bool {
    (1..=NAME_MOST).contains(&name.len())
        && ![".", ".."].contains(&name)
        && name.bytes().all(|byte| byte.is_ascii_graphic() && !b"/:%".contains(&byte))
}

fn build(section: &Value) -> Result<Vec<Box<dyn VirtioDevice>>, DeviceError> {
    let interfaces = parse(section)?;
    check(&interfaces)?;
    interfaces.iter().map(|interface| Ok(Box::new(open(interface)?) as Box<dyn VirtioDevice>)).collect()
}

fn open(interface: &Interface) -> Result<Net, DeviceError> {
    let mut backend: Option<Box<dyn Backend>> = None;
    if let Some(name) = &interface.host_dev_name {
        backend = Some(Box::new(Tap::open(name).map_err(DeviceError::host(SECTION, format!("tap '{name}'")))?));
    } else if let Some(user) = &interface.user {
        let stream = user.start().and_then(Stream::to_process).map_err(DeviceError::host(SECTION, "passt".into()))?;
        backend = Some(Box::new(stream));
    }
    let mac = interface.guest_mac.map(|Mac(bytes)| bytes);
    Net::new(mac, backend).map_err(DeviceError::host(SECTION, "watch the packets' source".into()))
}

#[cfg(any(test, feature = "testing"))]
fn sample(_: &Path) -> Value {
    serde_json::json!([{ "iface_id": "eth0", "guest_mac": "02:00:00:00:00:01", "unplugged": true }])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn error(section: Value) -> String {
        build(&section).err().unwrap().to_string()
    }

    #[test]
    fn the_flag_makes_interfaces_in_order() {
        let mut section = Value::Null;
        parse_flag("user", &mut section).unwrap();
        parse_flag("tap=tap0,mac=02:00:00:00:00:Fe", &mut section).unwrap();
        let wanted = json!([{ "iface_id": "eth0", "user": {} },
                            { "iface_id": "eth1", "host_dev_name": "tap0", "guest_mac": "02:00:00:00:00:fe" }]);
        assert_eq!(section, wanted);
        for bad in ["", "tap", "tap=", "user=x", "tap=a/b", "tap=%d", "tap=a,mac=1", "vhost", "tap=sixteen-letters-"] {
            let said = parse_flag(bad, &mut Value::Null).unwrap_err().to_string();
            assert!(!said.contains('\n'), "{said}");
        }
    }

    #[test]
    fn bad_sections_say_what_is_wrong() {
        let one = |more: Value| {
            let mut interface = json!({ "iface_id": "eth0" });
            interface.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!([interface])
        };
        let port = |port: u16| json!({ "protocol": "tcp", "host_ip": "127.0.0.1", "host_port": port, "guest_port": 1 });
        for (section, words) in [
            (one(json!({})), "one of host_dev_name, user and unplugged"),
            (one(json!({ "user": {}, "host_dev_name": "tap0" })), "one of"),
            (one(json!({ "host_dev_name": "a b" })), "'a b' is not the name"),
            (one(json!({ "host_dev_name": "bulkhead-none" })), "there is no such interface"),
            (one(json!({ "unplugged": true, "guest_mac": "02:00:00:00:00" })), "is not a MAC address"),
            (one(json!({ "unplugged": true, "guest_mac": "+2:00:00:00:00:00" })), "is not a MAC address"),
            (one(json!({ "unplugged": true, "guest_mac": "01:00:00:00:00:00" })), "of one interface"),
            (one(json!({ "unplugged": true, "rx_rate_limiter": { "ops": { "size": -1 } } })), "-1"),
            (one(json!({ "unplugged": true, "rate_limiter": {} })), "rate_limiter"),
            (one(json!({ "user": { "publish": [port(0)] } })), "port 0"),
            (one(json!({ "user": { "publish": [{ "protocol": "sctp" }] } })), "sctp"),
        ] {
            let said = error(section);
            assert!(said.contains(words) && said.starts_with(SECTION) && !said.contains('\n'), "{said}");
        }
        let twice = json!([{ "iface_id": "a", "unplugged": true }, { "iface_id": "a", "unplugged": true }]);
        assert!(error(twice).contains("two interfaces"));
    }
}
