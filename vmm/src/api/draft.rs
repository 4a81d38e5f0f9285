//! A machine's configuration while it is being made: by requests, or from a file in Firecracker's format, which is the
//! same as the requests in one.

use devices::virtio::{DEVICES, DeviceKind};
use serde_json::{Map, Value};

use super::bodies::{self, BodyError, MachineBody, MetricsBody};
use super::routes::absent;
use super::{DeviceUpdate, json};
use crate::config::{BootSource, ConfigError, MachineConfig, SerialConfig, SnapshotSource, VmConfig};

/// Most bytes of device sections: what a client can make this process keep.
const MAX_SECTIONS: usize = 1 << 20;

/// A configuration that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum DraftError {
    /// The file is not JSON.
    #[error("machine configuration: {0}")]
    Json(#[from] serde_json::Error),
    /// It is not an object.
    #[error("machine configuration: not a JSON object")]
    NotAnObject,
    /// A section is not what it should be.
    #[error("{section}: {source}")]
    Section {
        /// Its key.
        section: String,
        /// What is wrong.
        source: BodyError,
    },
    /// A section that nothing is behind.
    #[error("{section}: {what} not supported yet")]
    Absent {
        /// Its key.
        section: String,
        /// What there is none of, and a verb.
        what: &'static str,
    },
    /// A device's section.
    #[error(transparent)]
    Device(#[from] devices::virtio::DeviceError),
    /// Values that are out of range.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Too much to keep.
    #[error("{0}: the devices' sections are more than {MAX_SECTIONS} bytes")]
    TooLarge(&'static str),
    /// A machine needs something to run.
    #[error("there is no kernel: set boot-source first")]
    NoKernel,
}

/// The configuration so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Draft {
    /// Kernel, initrd, command line.
    pub boot_source: Option<BootSource>,
    /// vCPUs and memory.
    pub machine: MachineConfig,
    /// As a client said; see [`MachineBody`].
    pub track_dirty_pages: bool,
    /// The serial console.
    pub serial: SerialConfig,
    /// Device sections.
    pub devices: Map<String, Value>,
    /// Where metrics go.
    pub metrics: Option<MetricsBody>,
    /// The machine is not booted but restored.
    pub snapshot: Option<SnapshotSource>,
}

impl Draft {
    /// Reads a configuration file; `serial` is the console of one that says nothing about it.
    pub fn from_file(text: &[u8], serial: SerialConfig) -> Result<Self, DraftError> {
        let Value::Object(sections) = json::without_nulls(json::parse(text)?) else {
            return Err(DraftError::NotAnObject);
        };
        let mut draft = Draft { serial, ..Draft::default() };
        for (key, section) in sections {
            draft.section(&key, section)?;
        }
        Ok(draft)
    }

    /// What a machine is made of, as a configuration again.
    pub fn of(config: &VmConfig) -> Self {
        Draft {
            boot_source: config.boot_source.clone(),
            snapshot: config.snapshot.clone(),
            machine: MachineConfig { track_dirty_pages: false, ..config.machine.clone() },
            track_dirty_pages: config.machine.track_dirty_pages,
            serial: config.serial.clone(),
            devices: config.devices.clone(),
            ..Draft::default()
        }
    }

    fn section(&mut self, key: &str, section: Value) -> Result<(), DraftError> {
        let wrong = |source| DraftError::Section { section: key.to_owned(), source };
        if let Some(kind) = DEVICES.iter().find(|kind| kind.config_key == key) {
            return self.set_section(kind, section);
        }
        match key {
            "boot-source" => self.boot_source = Some(serde_json::from_value(section).map_err(|e| wrong(e.into()))?),
            "machine-config" => {
                let body = MachineBody::parse(section).and_then(MachineBody::complete).map_err(wrong)?;
                self.set_machine(&body, false, u64::MAX)?;
            }
            "snapshot" => self.snapshot = Some(serde_json::from_value(section).map_err(|e| wrong(e.into()))?),
            "serial" => self.serial = bodies::serial(section).map_err(wrong)?,
            "metrics" => self.metrics = Some(serde_json::from_value(section).map_err(|e| wrong(e.into()))?),
            // No devices of a kind that there is none of.
            _ if section.as_array().is_some_and(Vec::is_empty) && absent(key).is_some() => {}
            _ => {
                return Err(match absent(key) {
                    Some(what) => DraftError::Absent { section: key.to_owned(), what },
                    None => ConfigError::unknown_key(key).into(),
                });
            }
        }
        Ok(())
    }

    /// Sets vCPUs and memory; `host_mib` is the host's RAM, MiB.
    pub fn set_machine(&mut self, body: &MachineBody, partial: bool, host_mib: u64) -> Result<(), DraftError> {
        let before = if partial { self.machine.clone() } else { MachineConfig::default() };
        let machine = MachineConfig {
            vcpu_count: body.vcpu_count.unwrap_or(before.vcpu_count),
            mem_size_mib: body.mem_size_mib.unwrap_or(before.mem_size_mib),
            track_dirty_pages: false,
        };
        machine.validate(host_mib)?;
        self.machine = machine;
        self.track_dirty_pages = body.track_dirty_pages.unwrap_or(partial && self.track_dirty_pages);
        Ok(())
    }

    /// Adds a device, or replaces the one with its id.
    pub fn set_device(&mut self, update: DeviceUpdate) -> Result<(), DraftError> {
        let Some(kind) = DEVICES.iter().find(|kind| kind.config_key == update.section) else {
            return Err(ConfigError::unknown_key(update.section).into());
        };
        let section = match kind.id_key {
            None => update.changes.into(),
            Some(id_key) => {
                let mut list = match self.devices.get(kind.config_key) {
                    Some(Value::Array(list)) => list.clone(),
                    _ => Vec::new(),
                };
                let same = |device: &Value| device.get(id_key).and_then(Value::as_str) == Some(&update.id);
                match list.iter().position(same) {
                    Some(index) => list[index] = update.changes.into(),
                    None => list.push(update.changes.into()),
                }
                Value::Array(list)
            }
        };
        self.set_section(kind, section)
    }

    fn set_section(&mut self, kind: &DeviceKind, section: Value) -> Result<(), DraftError> {
        (kind.check)(&section)?;
        let others = self.devices.iter().filter(|(key, _)| *key != kind.config_key);
        let bytes: usize = others.map(|(_, other)| other.to_string().len()).sum();
        if bytes + section.to_string().len() > MAX_SECTIONS {
            return Err(DraftError::TooLarge(kind.config_key));
        }
        self.devices.insert(kind.config_key.to_owned(), section);
        Ok(())
    }

    /// Whether nothing of the machine has been set: a snapshot brings its own.
    pub fn is_blank(&self) -> bool {
        let Draft { serial, metrics, track_dirty_pages, .. } = self.clone();
        *self == Draft { serial, metrics, track_dirty_pages, ..Draft::default() }
    }

    /// The machine to build.
    pub fn to_config(&self) -> Result<VmConfig, DraftError> {
        if self.boot_source.is_none() && self.snapshot.is_none() {
            return Err(DraftError::NoKernel);
        }
        Ok(VmConfig {
            cpuid_cache: None,
            boot_source: self.boot_source.clone(),
            snapshot: self.snapshot.clone(),
            machine: MachineConfig { track_dirty_pages: self.track_dirty_pages, ..self.machine.clone() },
            serial: self.serial.clone(),
            devices: self.devices.clone(),
        })
    }

    /// All of it, as a configuration file.
    pub fn describe(&self) -> Value {
        let mut map = self.devices.clone();
        map.insert("machine-config".into(), bodies::machine_config(&self.machine, self.track_dirty_pages));
        let sections = [
            ("boot-source", serde_json::to_value(&self.boot_source)),
            ("snapshot", serde_json::to_value(&self.snapshot)),
            ("serial", serde_json::to_value(&self.serial)),
            ("metrics", serde_json::to_value(&self.metrics)),
        ];
        for (key, section) in sections {
            // Plain data always becomes JSON, and what is not set is left out.
            if let Some(section) = section.ok().filter(|section| !section.is_null()) {
                map.insert(key.into(), section);
            }
        }
        Value::Object(map)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: &Value) -> Result<Draft, DraftError> {
        Draft::from_file(value.to_string().as_bytes(), SerialConfig::Stdio)
    }

    fn error(value: Value) -> String {
        read(&value).unwrap_err().to_string()
    }

    /// Every key there is in such files, with the values that mean nothing in particular.
    fn firecrackers() -> Value {
        json!({
            "boot-source": { "kernel_image_path": "/k", "boot_args": "console=ttyS0", "initrd_path": null },
            "cpu-config": null,
            "drives": [{ "drive_id": "rootfs", "partuuid": null, "is_root_device": true, "cache_type": "Unsafe",
                         "is_read_only": false, "path_on_host": "/d", "io_engine": "Sync", "rate_limiter": null,
                         "socket": null }],
            "machine-config": { "vcpu_count": 2, "mem_size_mib": 1024, "smt": false, "track_dirty_pages": true,
                                "huge_pages": "None", "cpu_template": "None" },
            "balloon": null, "pmem": [], "vsock": null, "logger": null, "metrics": null,
            "mmds-config": null, "entropy": null, "serial": null, "memory-hotplug": null,
            "network-interfaces": [{ "iface_id": "eth0", "guest_mac": "06:00:AC:10:00:02", "host_dev_name": "tap0",
                                     "rx_rate_limiter": null, "tx_rate_limiter": null, "mtu": null }],
        })
    }

    #[test]
    fn a_file_of_firecrackers_is_a_machine() {
        let draft = read(&firecrackers()).unwrap();
        let config = draft.to_config().unwrap();
        assert_eq!((config.machine.vcpu_count, config.machine.mem_size_mib), (2, 1024));
        assert_eq!(config.boot_source.unwrap().boot_args, "console=ttyS0");
        assert_eq!(config.serial, SerialConfig::Stdio);
        assert_eq!(config.devices.keys().collect::<Vec<_>>(), ["drives", "network-interfaces", "pmem"]);
        assert!(draft.track_dirty_pages);
    }

    #[test]
    fn what_it_tells_reads_back() {
        let mut draft = read(&firecrackers()).unwrap();
        draft.metrics = Some(MetricsBody { metrics_path: "/m".into(), ..MetricsBody::default() });
        assert_eq!(read(&draft.describe()).unwrap(), draft);
    }

    #[test]
    fn a_value_that_would_change_something_is_refused_by_its_name() {
        let with = |section: &str, key: &str, value: Value| {
            let mut file = firecrackers();
            let place = if file[section].is_array() { &mut file[section][0] } else { &mut file[section] };
            if place.is_null() {
                *place = json!({});
            }
            place[key] = value;
            error(file)
        };
        for (section, key, value) in [
            ("machine-config", "smt", json!(true)),
            ("machine-config", "cpu_template", json!("T2")),
            ("machine-config", "huge_pages", json!("2M")),
            ("machine-config", "gdb_socket_path", json!("/g")),
            ("drives", "partuuid", json!("0eaa91a0-01")),
            ("drives", "socket", json!("/s")),
            ("drives", "cache_type", json!("Fast")),
            ("drives", "io_engine", json!("Magic")),
            ("boot-source", "kernel", json!("/k")),
            ("serial", "rate_limiter", json!({ "size": 1, "refill_time": 1 })),
        ] {
            let said = with(section, key, value);
            assert!(said.contains(section), "{section}.{key}: {said}");
            let value_named = ["Fast", "Magic"].iter().any(|word| said.contains(word));
            assert!(said.contains(key) || value_named, "{section}.{key}: {said}");
        }
    }

    #[test]
    fn a_section_that_nothing_is_behind_is_refused() {
        for key in ["logger", "cpu-config", "mmds-config", "memory-hotplug"] {
            let mut file = firecrackers();
            file[key] = json!({ "x": 1 });
            let said = error(file);
            assert!(said.starts_with(key) && said.contains("not supported"), "{said}");
        }
        assert!(error(json!({ "boot-sauce": {} })).contains("unknown key 'boot-sauce'"));
        assert!(error(json!([])).contains("not a JSON object"));
        assert!(read(&json!({})).unwrap().to_config().unwrap_err().to_string().contains("no kernel"));
    }

    #[test]
    fn a_device_replaces_the_one_with_its_id() {
        let drive = |id: &str, path: &str| {
            let changes = json!({ "drive_id": id, "path_on_host": path, "is_root_device": false });
            DeviceUpdate { section: "drives", id: id.into(), changes: changes.as_object().unwrap().clone() }
        };
        let mut draft = Draft::default();
        for (id, path) in [("a", "/1"), ("b", "/2"), ("a", "/3")] {
            draft.set_device(drive(id, path)).unwrap();
        }
        let paths: Vec<_> = draft.devices["drives"].as_array().unwrap().iter().map(|d| &d["path_on_host"]).collect();
        assert_eq!(paths, ["/3", "/2"]);
        assert!(!draft.is_blank());
    }

    #[test]
    fn what_a_client_makes_us_keep_is_bounded() {
        let mut draft = Draft::default();
        let path = "x".repeat(MAX_SECTIONS / 8);
        let error = (0..)
            .find_map(|n| {
                let changes = json!({ "drive_id": n.to_string(), "path_on_host": path });
                let changes = changes.as_object().unwrap().clone();
                draft.set_device(DeviceUpdate { section: "drives", id: n.to_string(), changes }).err()
            })
            .unwrap();
        assert!(matches!(error, DraftError::TooLarge("drives")), "{error}");
        assert!(draft.describe().to_string().len() < 2 * MAX_SECTIONS);
    }
}
