//! How fast a container may read, write, send and receive: token buckets of its microVM's devices, the same for all that reach the
//! guest's disks and network, whatever the host's own schedulers can do.

use anyhow::bail;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::net;
use crate::size;

/// The section of disks in a machine's configuration.
const DRIVES: &str = "drives";
/// The limiters of a device in each section: to the guest, and from it.
const LIMITERS: [(&str, [&str; 2]); 2] =
    [(DRIVES, ["read_rate_limiter", "write_rate_limiter"]), (net::SECTION, ["rx_rate_limiter", "tx_rate_limiter"])];
/// A bucket is full again after this time, milliseconds: it is what may come at once, too.
const REFILL_MS: u64 = 1000;

/// Bytes and operations per second; nothing is no limit, and so is 0, which lifts one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rates {
    /// Most bytes that are read from each of its disks in a second, as 10m; 0 for no limit
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_read_bps: Option<u64>,
    /// Most bytes that are written to its disk in a second
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_write_bps: Option<u64>,
    /// Most reads from each of its disks in a second
    #[arg(long, value_name = "N", value_parser = number)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_read_iops: Option<u64>,
    /// Most writes to its disk in a second
    #[arg(long, value_name = "N", value_parser = number)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_write_iops: Option<u64>,
    /// Most bytes that it receives from its network in a second
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_receive_bps: Option<u64>,
    /// Most bytes that it sends in a second
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_send_bps: Option<u64>,
}

/// docker's four have a device of the host before the rate.
fn alone(text: &str) -> Result<&str, String> {
    match text.rsplit_once(':') {
        Some((_, rate)) => {
            Err(format!("a rate is for each of a container's disks, so there is no device to name: write {rate}"))
        }
        None => Ok(text),
    }
}

fn bytes(text: &str) -> Result<u64, String> {
    if text == "0" { Ok(0) } else { size::bytes(alone(text)?) }
}

fn number(text: &str) -> Result<u64, String> {
    alone(text)?.parse().map_err(|_| format!("'{text}' is not a number of operations per second"))
}

impl Rates {
    /// These, and where nothing is said, those.
    pub fn or(self, other: Self) -> Self {
        Rates {
            device_read_bps: self.device_read_bps.or(other.device_read_bps),
            device_write_bps: self.device_write_bps.or(other.device_write_bps),
            device_read_iops: self.device_read_iops.or(other.device_read_iops),
            device_write_iops: self.device_write_iops.or(other.device_write_iops),
            network_receive_bps: self.network_receive_bps.or(other.network_receive_bps),
            network_send_bps: self.network_send_bps.or(other.network_send_bps),
        }
    }

    /// Those of them that are limits: one that is lifted is none.
    pub fn that_limit(self) -> Self {
        let limit = |rate: Option<u64>| rate.filter(|rate| *rate > 0);
        Rates {
            device_read_bps: limit(self.device_read_bps),
            device_write_bps: limit(self.device_write_bps),
            device_read_iops: limit(self.device_read_iops),
            device_write_iops: limit(self.device_write_iops),
            network_receive_bps: limit(self.network_receive_bps),
            network_send_bps: limit(self.network_send_bps),
        }
    }

    /// That a container has what is to be limited.
    ///
    /// # Errors
    /// It has no network.
    pub fn check(self, network: bool) -> anyhow::Result<()> {
        let wanted = self.network_receive_bps.or(self.network_send_bps).is_some();
        if wanted && !network {
            bail!(
                "a rate of the network, but the container has no network; give it one (--network), or leave the rate out"
            );
        }
        Ok(())
    }

    /// Bytes that are read and written, reads and writes.
    pub fn of_disks(self) -> [Option<u64>; 4] {
        [self.device_read_bps, self.device_write_bps, self.device_read_iops, self.device_write_iops]
    }

    /// Limits an interface that is to be, or is to have other limits.
    pub fn limit_interface(self, interface: &mut Value) {
        let [_, (_, limiters)] = self.members();
        limiters.iter().for_each(|(key, limiter)| merge(&mut interface[*key], limiter));
    }

    /// Limits the devices of a machine that is to be.
    pub fn limit(self, devices: &mut Map<String, Value>) {
        for (section, members) in self.members() {
            for device in devices.get_mut(section).and_then(Value::as_array_mut).into_iter().flatten() {
                members.iter().for_each(|(key, limiter)| merge(&mut device[*key], limiter));
            }
        }
    }

    /// What is to be changed of a running machine's devices: the path of each and what it is told (docs/control-api.md).
    pub fn changes(self, devices: &Map<String, Value>) -> Vec<(String, Value)> {
        let mut changes = Vec::new();
        for (section, members) in self.members().into_iter().filter(|(_, members)| !members.is_empty()) {
            let id_key = if section == DRIVES { "drive_id" } else { "iface_id" };
            for device in devices.get(section).and_then(Value::as_array).into_iter().flatten() {
                let id = device[id_key].as_str().unwrap_or_default();
                let mut body = json!({ id_key: id });
                members.iter().for_each(|(key, limiter)| body[*key] = limiter.clone());
                changes.push((format!("/{section}/{id}"), body));
            }
        }
        changes
    }

    /// Of each section the limiters that something is said of.
    fn members(self) -> [(&'static str, Vec<(&'static str, Value)>); 2] {
        let limiters = |list: [(&'static str, Option<u64>, Option<u64>); 2]| {
            let said = list.into_iter().filter(|(_, bytes, operations)| bytes.or(*operations).is_some());
            said.map(|(key, bytes, operations)| (key, limiter(bytes, operations))).collect()
        };
        let [(drives, [read, write]), (interfaces, [receive, send])] = LIMITERS;
        let disks = [
            (read, self.device_read_bps, self.device_read_iops),
            (write, self.device_write_bps, self.device_write_iops),
        ];
        let networks = [(receive, self.network_receive_bps, None), (send, self.network_send_bps, None)];
        [(drives, limiters(disks)), (interfaces, limiters(networks))]
    }
}

/// Limits a clone's devices as those of its original were.
pub fn keep(saved: &Map<String, Value>, devices: &mut Map<String, Value>) {
    for (section, limiters) in LIMITERS {
        let saved = saved.get(section).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let devices = devices.get_mut(section).and_then(Value::as_array_mut);
        for (device, saved) in devices.into_iter().flatten().zip(saved) {
            let limiters = limiters.into_iter().filter(|key| !saved[*key].is_null());
            limiters.for_each(|key| device[key] = saved[key].clone());
        }
    }
}

/// A limiter with what is said.
fn limiter(bytes: Option<u64>, operations: Option<u64>) -> Value {
    let buckets = [("bandwidth", bytes), ("ops", operations)];
    let said = buckets.into_iter().filter_map(|(key, rate)| Some((key, rate?)));
    said.map(|(key, rate)| (key.to_owned(), json!({ "size": rate, "refill_time": REFILL_MS })))
        .collect::<Map<_, _>>()
        .into()
}

/// As a running machine takes a change: what a limiter is not told stays.
fn merge(old: &mut Value, new: &Value) {
    match (old.as_object_mut(), new.as_object()) {
        (Some(old), Some(new)) => old.extend(new.clone()),
        _ => *old = new.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices() -> Map<String, Value> {
        let devices = json!({
            "drives": [{ "drive_id": "layers" }, { "drive_id": "upper" }],
            "network-interfaces": [{ "iface_id": "eth0" }],
            "vsock": {},
        });
        devices.as_object().unwrap().clone()
    }

    #[test]
    fn each_disk_and_interface_has_the_limits() {
        let rates = Rates {
            device_read_bps: Some(1 << 20),
            device_read_iops: Some(100),
            network_send_bps: Some(0),
            ..Rates::default()
        };
        let mut limited = devices();
        rates.limit(&mut limited);
        let bucket = |size: u64| json!({ "size": size, "refill_time": 1000 });
        let read = json!({ "bandwidth": bucket(1 << 20), "ops": bucket(100) });
        let drive = |id| json!({ "drive_id": id, "read_rate_limiter": read });
        assert_eq!(limited["drives"], json!([drive("layers"), drive("upper")]));
        let send = json!({ "bandwidth": bucket(0) });
        assert_eq!(limited["network-interfaces"], json!([{ "iface_id": "eth0", "tx_rate_limiter": send }]));
        assert_eq!(limited["vsock"], json!({}));
        let changes = rates.changes(&devices());
        let paths: Vec<_> = changes.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(paths, ["/drives/layers", "/drives/upper", "/network-interfaces/eth0"]);
        assert_eq!(changes[1].1, drive("upper"));
        // What is not said stays.
        Rates { device_read_bps: Some(5), ..Rates::default() }.limit(&mut limited);
        assert_eq!(limited["drives"][0]["read_rate_limiter"], json!({ "bandwidth": bucket(5), "ops": bucket(100) }));
        assert!(Rates::default().changes(&devices()).is_empty());
        let mut clone = devices();
        keep(&limited, &mut clone);
        assert_eq!(clone, limited);
    }

    #[test]
    fn rates_are_read_and_a_device_is_refused_with_what_to_write() {
        assert_eq!((bytes("10m"), bytes("0"), number("100")), (Ok(10 << 20), Ok(0), Ok(100)));
        assert!(bytes("/dev/sda:1mb").unwrap_err().contains("write 1mb"));
        assert!(number("/dev/sda:5").unwrap_err().contains("write 5"));
        assert!(number("many").is_err() && bytes("-1").is_err() && number("-1").is_err());
    }

    #[test]
    fn what_is_said_anew_counts() {
        let old = Rates { device_read_bps: Some(1), device_write_iops: Some(2), ..Rates::default() };
        let new = Rates { device_read_bps: Some(0), ..Rates::default() };
        assert_eq!(new.or(old), Rates { device_read_bps: Some(0), device_write_iops: Some(2), ..Rates::default() });
        assert_eq!(new.or(old).that_limit(), Rates { device_write_iops: Some(2), ..Rates::default() });
        let sends = Rates { network_send_bps: Some(1), ..old };
        assert!(old.check(false).is_ok() && sends.check(true).is_ok() && sends.check(false).is_err());
    }
}
