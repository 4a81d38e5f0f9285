//! The `network-interfaces` section and the `--net` flag, and how they become devices.

use std::os::fd::OwnedFd;
#[cfg(any(test, feature = "testing"))]
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::backend::Backend;
use super::egress::{Egress, MOST_RULES, Rule};
use super::passt::{Started, User};
use super::stream::Stream;
use super::switch::Port;
use super::tap::{NAME_MOST, NewTap, Tap};
use super::{MOST_PAIRS, Net, Offer};
use crate::virtio::VirtioDevice;
use crate::virtio::limit::{Direction, RateLimiter, Scope};
use crate::virtio::table::{Built, DeviceError, DeviceKind, Given};

const SECTION: &str = "network-interfaces";

/// Its line of the table.
pub const KIND: DeviceKind = DeviceKind {
    name: "net",
    config_key: SECTION,
    flag: "net",
    flag_syntax: "user|tap[=NAME][,mac=MAC]",
    help: "a network interface as eth0, eth1, ... in the order given; user: through passt, without privileges; tap: one of the host's, or a new one",
    parse_flag,
    id_key: Some("iface_id"),
    swappable: &["host_dev_name", "new_tap", "user", "port", "unplugged"],
    adjustable: &["egress"],
    limiters: &[
        ("rx_rate_limiter", Scope::Only(Direction::ToGuest)),
        ("tx_rate_limiter", Scope::Only(Direction::FromGuest)),
    ],
    told: None,
    writable_files: |_| Vec::new(),
    reaches: |_| Vec::new(),
    check: |section| parse(section).and_then(|interfaces| check(&interfaces)),
    build,
    given: Some(Given { count: |section| wanted(section).map(|(_, count)| count), build: build_given, opens: false }),
    kernel_args: |_| None,
    syscalls: &[
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_writev,
        libc::SYS_recvfrom,
        libc::SYS_sendto,
        libc::SYS_ioctl,
        libc::SYS_epoll_wait,
        libc::SYS_ppoll,
    ],
    prompt_syscalls: &[],
    ioctls: super::tap::IOCTLS,
    workers: &[],
    works: |section| !parse(section).is_ok_and(|interfaces| interfaces.iter().all(|interface| interface.nowhere)),
    #[cfg(any(test, feature = "testing"))]
    sample,
};

/// One interface, as in the configuration.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Interface {
    iface_id: String,
    /// The driver makes one up if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    guest_mac: Option<Mac>,
    /// A tap interface of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    host_dev_name: Option<String>,
    /// Ours: a tap interface that goes with the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    new_tap: Option<NewTap>,
    /// Ours: user mode, through passt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<User>,
    /// Ours: a port of a switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    port: Option<Port>,
    /// Bytes of the largest IP packet, for the driver to know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mtu: Option<u16>,
    /// Ours: pairs of queues, 1 if it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    num_queue_pairs: Option<u16>,
    /// Ours: where packets of the guest's may go; everywhere if it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    egress: Option<Vec<Rule>>,
    /// Ours: nothing is at the other end of the cable yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unplugged: bool,
    /// Ours: nor will there ever be.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    nowhere: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rx_rate_limiter: Option<RateLimiter>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tx_rate_limiter: Option<RateLimiter>,
}

impl Interface {
    /// Now, at least.
    fn leads_nowhere(&self) -> bool {
        self.unplugged || self.nowhere
    }
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
    let (host_dev_name, new_tap, user) = match kind.split_once('=') {
        None if kind == "user" => (None, None, Some(User::default())),
        None if kind == "tap" => (None, Some(NewTap::default()), None),
        Some(("tap", name)) => (Some(name.to_owned()), None, None),
        _ => return Err(wrong(format!("'{value}' is neither user nor tap nor tap=NAME, with ,mac=MAC or without"))),
    };
    let iface_id = format!("eth{}", interfaces.len());
    interfaces.push(Interface { iface_id, guest_mac: mac, host_dev_name, new_tap, user, ..Interface::default() });
    check(&interfaces)?;
    *section = serde_json::to_value(interfaces).map_err(DeviceError::section(SECTION))?;
    Ok(())
}

/// What can be told without opening anything.
fn check(interfaces: &[Interface]) -> Result<(), DeviceError> {
    for (index, interface) in interfaces.iter().enumerate() {
        let Interface { iface_id: id, host_dev_name, new_tap, user, port, unplugged, nowhere, .. } = interface;
        if interfaces[..index].iter().any(|other| other.iface_id == *id) {
            return Err(invalid(format!("two interfaces have the iface_id '{id}'")));
        }
        let behind = [host_dev_name.is_some(), new_tap.is_some(), user.is_some(), port.is_some(), *unplugged, *nowhere];
        if behind.iter().filter(|there| **there).count() != 1 {
            let one_of = "host_dev_name, new_tap, user, port, unplugged and nowhere";
            return Err(invalid(format!("interface '{id}' needs one of {one_of}")));
        }
        if let Some(name) = host_dev_name.as_deref().filter(|name| !is_name(name)) {
            return Err(invalid(format!("interface '{id}': '{name}' is not the name of an interface")));
        }
        // 68 bytes is what every host must take (RFC 791).
        if interface.mtu.is_some_and(|mtu| mtu < 68) {
            return Err(invalid(format!("interface '{id}': an mtu is 68 bytes at least")));
        }
        let pairs = interface.num_queue_pairs.unwrap_or(1);
        if !(1..=MOST_PAIRS).contains(&pairs.into()) {
            return Err(invalid(format!("interface '{id}': num_queue_pairs is 1 to {MOST_PAIRS}")));
        }
        if interface.egress.as_ref().is_some_and(|rules| rules.len() > MOST_RULES) {
            return Err(invalid(format!("interface '{id}': egress has {MOST_RULES} rules at most")));
        }
        let sound = user.as_ref().map_or(Ok(()), User::check).and(new_tap.as_ref().map_or(Ok(()), NewTap::check));
        let sound = sound.and(port.as_ref().map_or(Ok(()), Port::check));
        sound.map_err(|why| invalid(format!("interface '{id}': {why}")))?;
    }
    Ok(())
}

/// What Linux takes; `%` would make it a pattern.
fn is_name(name: &str) -> bool {
    (1..=NAME_MOST).contains(&name.len())
        && ![".", ".."].contains(&name)
        && name.bytes().all(|byte| byte.is_ascii_graphic() && !b"/:%".contains(&byte))
}

fn build(section: &Value) -> Built {
    let interfaces = parse(section)?;
    check(&interfaces)?;
    interfaces.iter().map(|interface| device(interface, behind(interface)?)).collect()
}

/// What is to be behind an interface.
enum Behind {
    Nothing,
    Tap(Tap),
    Passt(Started),
    Switch(Started),
}

impl Behind {
    /// The program that was started for it.
    fn helper(&self) -> Option<u32> {
        match self {
            Behind::Passt(started) | Behind::Switch(started) => started.pid,
            Behind::Nothing | Behind::Tap(_) => None,
        }
    }
}

/// What is behind an interface, for whoever is no device.
pub(super) struct Beyond {
    pub backend: Box<dyn Backend>,
    pub egress: Option<Egress>,
    /// As in [`Opened`].
    pub helper: Option<u32>,
}

/// What is behind an interface, for a device in another process.
pub struct Opened {
    /// What that is given.
    pub descriptors: Vec<OwnedFd>,
    /// The number of a program that has been started, and is nobody's child. It ends when nobody has the descriptors any more.
    pub helper: Option<u32>,
}

/// Opens, makes or starts it.
fn behind(interface: &Interface) -> Result<Behind, DeviceError> {
    let pairs = interface.num_queue_pairs.unwrap_or(1).into();
    Ok(if let Some(name) = &interface.host_dev_name {
        Behind::Tap(Tap::open(name, pairs).map_err(DeviceError::host(SECTION, format!("tap '{name}'")))?)
    } else if let Some(new) = &interface.new_tap {
        let tap = new.make(pairs, interface.mtu);
        Behind::Tap(tap.map_err(DeviceError::host(SECTION, "a tap of its own".into()))?)
    } else if let Some(user) = &interface.user {
        Behind::Passt(user.start().map_err(DeviceError::host(SECTION, "passt".into()))?)
    } else if let Some(port) = &interface.port {
        Behind::Switch(port.start().map_err(DeviceError::host(SECTION, "the network".into()))?)
    } else {
        Behind::Nothing
    })
}

/// Opens, makes or starts what is behind an interface as configured, for whoever is no device; and where packets may go.
pub(super) fn opened(interface: &Value) -> Result<Beyond, DeviceError> {
    let interface: Interface = serde_json::from_value(interface.clone()).map_err(DeviceError::section(SECTION))?;
    check(std::slice::from_ref(&interface))?;
    let behind = behind(&interface)?;
    let helper = behind.helper();
    let backend = backend(behind)?;
    let backend = backend.ok_or_else(|| invalid(format!("interface '{}': it leads nowhere", interface.iface_id)))?;
    Ok(Beyond { backend, egress: interface.egress.map(Egress::new), helper })
}

/// Opens, makes or starts what is behind an interface as configured, for a device in another process, which takes it by these
/// descriptors ([`Given`]).
///
/// # Errors
/// As when a device is built.
pub fn descriptors(interface: &Value) -> Result<Opened, DeviceError> {
    let section = Value::Array(vec![interface.clone()]);
    let (interface, _) = wanted(&section)?;
    let behind = behind(&interface)?;
    let helper = behind.helper();
    let descriptors = match behind {
        Behind::Nothing => Vec::new(),
        Behind::Tap(tap) => tap.into_descriptors(),
        Behind::Passt(started) | Behind::Switch(started) => vec![started.socket.into()],
    };
    Ok(Opened { descriptors, helper })
}

/// The one interface of a section, and how many descriptors there are behind it.
fn wanted(section: &Value) -> Result<(Interface, usize), DeviceError> {
    let interfaces = parse(section)?;
    check(&interfaces)?;
    let [interface]: [Interface; 1] = interfaces.try_into().map_err(|_| invalid("it is about one interface".into()))?;
    let count = match interface.leads_nowhere() {
        _ if by_socket(&interface) => 1,
        true => 0,
        false => interface.num_queue_pairs.unwrap_or(1).into(),
    };
    Ok((interface, count))
}

/// What is behind it is a process that speaks frames.
fn by_socket(interface: &Interface) -> bool {
    interface.user.is_some() || interface.port.is_some()
}

fn build_given(section: &Value, descriptors: Vec<OwnedFd>) -> Built {
    let (interface, count) = wanted(section)?;
    if descriptors.len() != count {
        return Err(invalid(format!("it takes {count} descriptors")));
    }
    let behind = if by_socket(&interface) {
        let kind = if interface.user.is_some() { Behind::Passt } else { Behind::Switch };
        let started = |socket: OwnedFd| Started { socket: socket.into(), pid: None };
        descriptors.into_iter().next().map_or(Behind::Nothing, |socket| kind(started(socket)))
    } else if interface.leads_nowhere() {
        Behind::Nothing
    } else {
        let tap = Tap::of_descriptors(descriptors);
        Behind::Tap(tap.map_err(DeviceError::host(SECTION, "the tap that was given".into()))?)
    };
    Ok(vec![device(&interface, behind)?])
}

fn device(interface: &Interface, behind: Behind) -> Result<Box<dyn VirtioDevice>, DeviceError> {
    let pairs = interface.num_queue_pairs.unwrap_or(1);
    let backend = backend(behind)?;
    let offer = Offer { mac: interface.guest_mac.map(|Mac(bytes)| bytes), mtu: interface.mtu, pairs };
    let egress = interface.egress.clone().map(Egress::new);
    let net = Net::new(offer, backend, egress);
    Ok(Box::new(net.map_err(DeviceError::host(SECTION, "watch the packets' source".into()))?))
}

fn backend(behind: Behind) -> Result<Option<Box<dyn Backend>>, DeviceError> {
    Ok(match behind {
        Behind::Nothing => None,
        Behind::Tap(tap) => Some(Box::new(tap)),
        Behind::Passt(passt) => Some(Box::new(Stream::to_passt(passt.socket).map_err(stream_error())?)),
        Behind::Switch(switch) => Some(Box::new(Stream::to_process(switch.socket).map_err(stream_error())?)),
    })
}

fn stream_error() -> impl FnOnce(std::io::Error) -> DeviceError {
    DeviceError::host(SECTION, "what is behind it".into())
}

/// Where packets may go that an interface's guest sends.
pub(super) fn egress(interface: &Value) -> Result<Option<Vec<Rule>>, DeviceError> {
    let interface: Interface = serde_json::from_value(interface.clone()).map_err(DeviceError::section(SECTION))?;
    Ok(interface.egress)
}

#[cfg(any(test, feature = "testing"))]
fn sample(_: &Path) -> Value {
    serde_json::json!([{ "iface_id": "eth0", "guest_mac": "02:00:00:00:00:01", "unplugged": true, "num_queue_pairs": 2, "mtu": 1500 }])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::os::unix::net::UnixStream;

    fn error(section: Value) -> String {
        build(&section).err().unwrap().to_string()
    }

    #[test]
    fn the_flag_makes_interfaces_in_order() {
        let mut section = Value::Null;
        parse_flag("user", &mut section).unwrap();
        parse_flag("tap=tap0,mac=02:00:00:00:00:Fe", &mut section).unwrap();
        parse_flag("tap", &mut section).unwrap();
        let wanted = json!([{ "iface_id": "eth0", "user": {} },
                            { "iface_id": "eth1", "host_dev_name": "tap0", "guest_mac": "02:00:00:00:00:fe" },
                            { "iface_id": "eth2", "new_tap": {} }]);
        assert_eq!(section, wanted);
        for bad in ["", "tap=", "user=x", "tap=a/b", "tap=%d", "tap=a,mac=1", "vhost", "tap=sixteen-letters-"] {
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
            (one(json!({})), "one of host_dev_name, new_tap, user, port, unplugged and nowhere"),
            (one(json!({ "nowhere": true, "user": {} })), "one of"),
            (one(json!({ "user": {}, "host_dev_name": "tap0" })), "one of"),
            (one(json!({ "new_tap": { "host_ip": "10.0.0.1" } })), "or neither"),
            (one(json!({ "new_tap": { "host_ip": "10.0.0.1", "prefix_len": 31 } })), "1 to 30"),
            (one(json!({ "host_dev_name": "a b" })), "'a b' is not the name"),
            (one(json!({ "host_dev_name": "bulkhead-none" })), "there is no such interface"),
            (one(json!({ "unplugged": true, "guest_mac": "02:00:00:00:00" })), "is not a MAC address"),
            (one(json!({ "unplugged": true, "guest_mac": "+2:00:00:00:00:00" })), "is not a MAC address"),
            (one(json!({ "unplugged": true, "guest_mac": "01:00:00:00:00:00" })), "of one interface"),
            (one(json!({ "unplugged": true, "rx_rate_limiter": { "ops": { "size": -1 } } })), "-1"),
            (one(json!({ "unplugged": true, "rate_limiter": {} })), "rate_limiter"),
            (one(json!({ "unplugged": true, "mtu": 67 })), "68 bytes"),
            (one(json!({ "unplugged": true, "mtu": 65536 })), "65536"),
            (one(json!({ "unplugged": true, "num_queue_pairs": 0 })), "1 to 8"),
            (one(json!({ "unplugged": true, "num_queue_pairs": 9 })), "1 to 8"),
            (one(json!({ "unplugged": true, "egress": ["10.0.0.1/8"] })), "'10.0.0.1/8' is not IP"),
            (one(json!({ "unplugged": true, "egress": vec!["10.0.0.1"; 1025] })), "1024 rules at most"),
            (one(json!({ "user": { "publish": [port(0)] } })), "port 0"),
            (one(json!({ "user": { "publish": [{ "protocol": "sctp" }] } })), "sctp"),
        ] {
            let said = error(section);
            assert!(said.contains(words) && said.starts_with(SECTION) && !said.contains('\n'), "{said}");
        }
        let twice = json!([{ "iface_id": "a", "unplugged": true }, { "iface_id": "a", "unplugged": true }]);
        assert!(error(twice).contains("two interfaces"));
    }

    #[test]
    fn what_is_behind_an_interface_can_come_from_somebody_else() {
        let given = KIND.given.unwrap();
        let section = |more: &str| json!([{ "iface_id": "eth0", more: {} }]);
        let socket = || vec![OwnedFd::from(UnixStream::pair().unwrap().0)];
        assert_eq!((given.count)(&section("user")).unwrap(), 1);
        assert_eq!((given.build)(&section("user"), socket()).unwrap().len(), 1);
        let port = json!([{ "iface_id": "eth0", "port": { "socket": "/s", "greeting": "g", "network": "n" } }]);
        assert_eq!(((given.count)(&port).unwrap(), (given.build)(&port, socket()).unwrap().len()), (1, 1));
        let unplugged = json!([{ "iface_id": "eth0", "unplugged": true }]);
        let nowhere = json!([{ "iface_id": "eth0", "nowhere": true }]);
        for nothing in [&unplugged, &nowhere] {
            assert_eq!((given.count)(nothing).unwrap(), 0);
            assert_eq!((given.build)(nothing, Vec::new()).unwrap().len(), 1);
        }
        // What leads nowhere for now may have something to do later.
        let works = [&unplugged, &json!([unplugged[0], nowhere[0]]), &nowhere].map(|section| (KIND.works)(section));
        assert_eq!(works, [true, true, false]);
        let error = |section: Value, descriptors| (given.build)(&section, descriptors).err().unwrap().to_string();
        for (section, descriptors, words) in [
            (section("user"), Vec::new(), "takes 1 descriptors"),
            (unplugged, socket(), "takes 0 descriptors"),
            (section("new_tap"), socket(), "the tap that was given"),
            (
                json!([{ "iface_id": "eth0", "host_dev_name": "t", "num_queue_pairs": 2 }]),
                socket(),
                "takes 2 descriptors",
            ),
            (json!([]), socket(), "about one interface"),
            (json!([{ "iface_id": "eth0" }]), socket(), "one of host_dev_name"),
        ] {
            let said = error(section, descriptors);
            assert!(said.contains(words) && !said.contains('\n'), "{said}");
        }
    }
}
