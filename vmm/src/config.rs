//! What a machine is made of: plain data, JSON-compatible with Firecracker's configuration file where the meaning
//! is the same. Unknown keys are refused, so that a misspelt option is never silently ignored.
//!
//! Device sections (`drives`, `vsock`, `entropy`, …) stay JSON values here: each device's own file in `devices`
//! parses its section, found through the device table.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Most vCPUs a machine may have: what the guest kernels built here are configured for.
pub const MAX_VCPUS: u8 = 32;
/// Least guest RAM, MiB.
pub const MIN_MEMORY_MIB: u64 = 16;

/// A machine, before it is built.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct VmConfig {
    /// What it boots.
    #[serde(rename = "boot-source", default, skip_serializing_if = "Option::is_none")]
    pub boot_source: Option<BootSource>,
    /// What it goes on from, instead of booting (ours; not in Firecracker's file).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotSource>,
    /// Its vCPUs and memory.
    #[serde(rename = "machine-config", default)]
    pub machine: MachineConfig,
    /// Where its serial console goes.
    #[serde(default)]
    pub serial: SerialConfig,
    /// A file to keep KVM's CPUID leaves in from one machine to the next. No part of the JSON: it is about the host, and
    /// said by who starts the process.
    #[serde(skip)]
    pub cpuid_cache: Option<PathBuf>,
    /// Device sections by their key in the device table.
    #[serde(flatten)]
    pub devices: serde_json::Map<String, serde_json::Value>,
}

/// A snapshot to go on from.
///
/// The machine is the snapshot's: its CPUs, memory and devices. Device sections given beside it replace those of the
/// snapshot, to give the same devices other files; the console is as the `serial` section beside it says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotSource {
    /// The snapshot's directory.
    pub path: PathBuf,
    /// Go on at once; otherwise the machine stays paused until it is told to.
    #[serde(default = "yes")]
    pub resume: bool,
    /// How memory comes out of the snapshot's files.
    #[serde(default)]
    pub paging: Paging,
}

/// How a machine's memory comes out of a snapshot's files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Paging {
    /// As a private mapping of them: what is in the page cache costs next to nothing.
    #[default]
    Map,
    /// By userfaultfd: what the first machine wanted within a second is read in one go for all that come later.
    Userfault,
}

fn yes() -> bool {
    true
}

/// Kernel, initrd and command line.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// An ELF `vmlinux` or a `bzImage`.
    pub kernel_image_path: PathBuf,
    /// The initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<PathBuf>,
    /// The kernel's command line; the virtio-mmio devices are put in front of it.
    #[serde(default)]
    pub boot_args: String,
    /// How to enter the kernel (ours; not in Firecracker's file).
    #[serde(default)]
    pub protocol: BootProtocol,
}

/// How to enter the kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootProtocol {
    /// As the file wants it.
    #[default]
    Auto,
    /// By the 64-bit entry of the Linux boot protocol.
    Linux64,
    /// By the PVH entry that an ELF note names.
    Pvh,
}

impl From<BootProtocol> for boot::Protocol {
    fn from(protocol: BootProtocol) -> Self {
        match protocol {
            BootProtocol::Auto => boot::Protocol::Auto,
            BootProtocol::Linux64 => boot::Protocol::Linux64,
            BootProtocol::Pvh => boot::Protocol::Pvh,
        }
    }
}

/// vCPUs and memory.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct MachineConfig {
    /// 1 to [`MAX_VCPUS`].
    pub vcpu_count: u8,
    /// Guest RAM in MiB.
    pub mem_size_mib: u64,
    /// Make each snapshot of the machine one that the next can be a change to.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub track_dirty_pages: bool,
}

impl Default for MachineConfig {
    fn default() -> Self {
        MachineConfig { vcpu_count: 1, mem_size_mib: 128, track_dirty_pages: false }
    }
}

/// Where the serial console goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "mode", rename_all = "kebab-case", deny_unknown_fields)]
pub enum SerialConfig {
    /// The monitor's own stdin and stdout.
    Stdio,
    /// The first MiB of output into a file; no input.
    Log {
        /// Created, or truncated.
        path: PathBuf,
    },
    /// Output is thrown away; no input.
    #[default]
    Off,
}

/// A configuration that cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The text is not the JSON of a machine.
    #[error("machine configuration: {0}")]
    Json(#[from] serde_json::Error),
    /// A top-level key that no device has.
    #[error(
        "machine configuration: unknown key '{key}'; the keys are boot-source, snapshot, machine-config, serial, {known}"
    )]
    UnknownKey {
        /// The key.
        key: String,
        /// The device keys there are.
        known: String,
    },
    /// A device's flag that is not what the device understands.
    #[error(transparent)]
    Device(#[from] devices::virtio::DeviceError),
    /// Nothing to run.
    #[error("machine configuration: one of boot-source and snapshot is needed")]
    NoSource,
    /// vCPU count out of range.
    #[error("machine-config: vcpu_count {0} is not between 1 and {MAX_VCPUS}")]
    Vcpus(u8),
    /// Too little memory.
    #[error("machine-config: mem_size_mib {0} is less than {MIN_MEMORY_MIB} MiB")]
    MemoryTooSmall(u64),
    /// More memory than the host has.
    #[error("machine-config: {asked} MiB of guest memory is more than this host's {host} MiB; ask for less")]
    MemoryTooLarge {
        /// MiB asked for.
        asked: u64,
        /// MiB of RAM in the host.
        host: u64,
    },
}

impl ConfigError {
    /// A top-level key that no device has.
    pub fn unknown_key(key: &str) -> Self {
        let known = devices::virtio::DEVICES.iter().map(|kind| kind.config_key).collect::<Vec<_>>().join(", ");
        ConfigError::UnknownKey { key: key.to_owned(), known }
    }
}

impl MachineConfig {
    /// Checks that it can be had; `host_mib` is the host's RAM in MiB.
    pub fn validate(&self, host_mib: u64) -> Result<(), ConfigError> {
        let MachineConfig { vcpu_count, mem_size_mib, .. } = *self;
        if !(1..=MAX_VCPUS).contains(&vcpu_count) {
            return Err(ConfigError::Vcpus(vcpu_count));
        }
        if mem_size_mib < MIN_MEMORY_MIB {
            return Err(ConfigError::MemoryTooSmall(mem_size_mib));
        }
        if mem_size_mib > host_mib {
            return Err(ConfigError::MemoryTooLarge { asked: mem_size_mib, host: host_mib });
        }
        Ok(())
    }
}

/// Adds what a device's flag says to the device sections: `--net user` is `("net", "user")`.
pub fn add_device(
    devices: &mut serde_json::Map<String, serde_json::Value>,
    flag: &str,
    value: &str,
) -> Result<(), ConfigError> {
    let kind = devices::virtio::DEVICES.iter().find(|kind| kind.flag == flag);
    let kind = kind.ok_or_else(|| ConfigError::unknown_key(flag))?;
    Ok((kind.parse_flag)(value, devices.entry(kind.config_key).or_insert(serde_json::Value::Null))?)
}

impl VmConfig {
    /// Parses a configuration file's text.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        Ok(serde_json::from_str(text)?)
    }

    /// The machine of a snapshot, as `self`, which names the snapshot, changes it.
    pub fn over(self, saved: VmConfig) -> VmConfig {
        let mut devices = saved.devices;
        devices.extend(self.devices);
        let machine = MachineConfig { track_dirty_pages: self.machine.track_dirty_pages, ..saved.machine };
        VmConfig {
            boot_source: None,
            snapshot: self.snapshot,
            machine,
            serial: self.serial,
            cpuid_cache: self.cpuid_cache,
            devices,
        }
    }

    /// Checks everything that can be checked without touching the host; `host_mib` is the host's RAM in MiB.
    pub fn validate(&self, host_mib: u64) -> Result<(), ConfigError> {
        let known = |key: &str| devices::virtio::DEVICES.iter().any(|kind| kind.config_key == key);
        if let Some(key) = self.devices.keys().find(|key| !known(key)) {
            return Err(ConfigError::unknown_key(key));
        }
        if self.boot_source.is_some() == self.snapshot.is_some() {
            return Err(ConfigError::NoSource);
        }
        self.machine.validate(host_mib)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"{ "boot-source": { "kernel_image_path": "/k" } }"#;

    fn with(f: impl FnOnce(&mut VmConfig)) -> Result<(), ConfigError> {
        let mut config = VmConfig::from_json(MINIMAL).unwrap();
        f(&mut config);
        config.validate(1024)
    }

    #[test]
    fn defaults_are_a_small_machine() {
        let config = VmConfig::from_json(MINIMAL).unwrap();
        assert_eq!(config.machine, MachineConfig { vcpu_count: 1, mem_size_mib: 128, track_dirty_pages: false });
        assert_eq!(config.serial, SerialConfig::Off);
        config.validate(1024).unwrap();
    }

    #[test]
    fn it_reads_back_what_it_writes() {
        let text = r#"{ "boot-source": { "kernel_image_path": "/k", "boot_args": "quiet" }, "entropy": {},
                        "serial": { "mode": "log", "path": "/l" }, "drives": [] }"#;
        let config = VmConfig::from_json(text).unwrap();
        let again = VmConfig::from_json(&serde_json::to_string(&config).unwrap()).unwrap();
        assert_eq!(config, again);
        assert!(config.devices.contains_key("entropy"));
    }

    #[test]
    fn a_snapshot_brings_its_machine_and_takes_other_files() {
        let saved = r#"{ "boot-source": { "kernel_image_path": "/k" }, "machine-config": { "mem_size_mib": 256 },
                         "entropy": {}, "drives": [1], "serial": { "mode": "stdio" } }"#;
        let text = r#"{ "snapshot": { "path": "/s" }, "drives": [2] }"#;
        let config = VmConfig::from_json(text).unwrap().over(VmConfig::from_json(saved).unwrap());
        config.validate(1024).unwrap();
        assert_eq!((config.machine.mem_size_mib, &config.serial), (256, &SerialConfig::Off));
        assert_eq!((config.devices.len(), &config.devices["drives"]), (2, &serde_json::json!([2])));
        assert!(config.snapshot.is_some_and(|snapshot| snapshot.resume));
        let both = r#"{ "snapshot": { "path": "/s" }, "boot-source": { "kernel_image_path": "/k" } }"#;
        for text in ["{}", both] {
            let error = VmConfig::from_json(text).unwrap().validate(1024);
            assert!(matches!(error, Err(ConfigError::NoSource)), "{text}");
        }
    }

    #[test]
    fn misspelt_keys_are_refused() {
        let error = with(|c| drop(c.devices.insert("drivez".into(), serde_json::json!([])))).unwrap_err();
        assert!(error.to_string().contains("drivez") && error.to_string().contains("drives"), "{error}");
        assert!(VmConfig::from_json(r#"{ "boot-source": { "kernel": "/k" } }"#).is_err());
    }

    #[test]
    fn group_9_sizes_out_of_range_are_refused() {
        assert!(matches!(with(|c| c.machine.vcpu_count = 0), Err(ConfigError::Vcpus(0))));
        assert!(matches!(with(|c| c.machine.vcpu_count = 33), Err(ConfigError::Vcpus(33))));
        assert!(matches!(with(|c| c.machine.mem_size_mib = 0), Err(ConfigError::MemoryTooSmall(0))));
        assert!(matches!(with(|c| c.machine.mem_size_mib = u64::MAX), Err(ConfigError::MemoryTooLarge { .. })));
        with(|c| c.machine.mem_size_mib = 1024).unwrap();
    }
}
