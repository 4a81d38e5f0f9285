//! The device table: one line per device.
//!
//! Command-line help, configuration, system-call filters, saved state and the contract tests all read it. The order is
//! the order in which devices are announced to the guest.

use std::os::fd::OwnedFd;
#[cfg(any(test, feature = "testing"))]
use std::path::Path;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Map, Value};

use super::limit::{Limits, Scope};
use super::{StateError, VirtioDevice, balloon, blk, console, fs, net, pmem, rng, vsock};
use crate::worker::Work;

/// THE table.
pub const DEVICES: &[DeviceKind] =
    &[rng::KIND, vsock::KIND, blk::KIND, net::KIND, fs::KIND, balloon::KIND, console::KIND, pmem::KIND];

/// What the rest of the monitor needs to know of a kind of device.
pub struct DeviceKind {
    /// Name in messages.
    pub name: &'static str,
    /// Its section of the machine's configuration.
    pub config_key: &'static str,
    /// The command-line flag that adds one, without dashes.
    pub flag: &'static str,
    /// Syntax of the flag's value; empty if it takes none.
    pub flag_syntax: &'static str,
    /// One line of help.
    pub help: &'static str,
    /// Parses a flag's value and adds what it says to the section, which is `null` at first.
    pub parse_flag: fn(&str, &mut Value) -> Result<(), DeviceError>,
    /// In a section that is a list: the member of each device that tells it from the others.
    pub id_key: Option<&'static str>,
    /// Members of a device's configuration that can change while a machine runs, by a new device in place of the old one.
    pub swappable: &'static [&'static str],
    /// The same of members that the device itself takes while it goes on ([`VirtioDevice::adjust`](super::VirtioDevice::adjust)).
    pub adjustable: &'static [&'static str],
    /// Members of a device's configuration that limit it ([`RateLimiter`](super::limit::RateLimiter)), and what they limit.
    /// They can change while a machine runs.
    pub limiters: &'static [(&'static str, Scope)],
    /// What can be asked of it while a machine runs.
    pub told: Option<Told>,
    /// The paths in a section of files that guests write to: they are part of a snapshot.
    pub writable_files: fn(&mut Value) -> Vec<&mut Value>,
    /// What of the host's files it opens, connects to or removes while the guest runs.
    pub reaches: fn(&Value) -> Vec<Reach>,
    /// Checks a section without touching the host.
    pub check: fn(&Value) -> Result<(), DeviceError>,
    /// Builds the devices of a section, opening what they need of the host.
    pub build: fn(&Value) -> Built,
    /// What of the host a client can give with a request, for a device of a machine that runs: its process may be one that
    /// cannot open that any more.
    pub given: Option<Given>,
    /// Words that the section adds to the kernel's command line.
    pub kernel_args: fn(&Value) -> Option<String>,
    /// Numbers of the system calls it makes on the event loop, besides those that this makes anyway.
    pub syscalls: &'static [libc::c_long],
    /// Of those, the ones it makes on a vCPU's thread, which only answers kicks ([`DeviceInfo::prompt`](super::DeviceInfo::prompt)).
    pub prompt_syscalls: &'static [libc::c_long],
    /// Requests of ioctl(2) on the event loop.
    pub ioctls: &'static [u32],
    /// What it has done by threads of their own.
    pub workers: &'static [&'static Work],
    /// Whether a section's devices can ever have something to do with the host. If not, a machine's process has no system call and no
    /// worker for them: the guest has such a device since others that go on from the same snapshot have a use for it.
    pub works: fn(&Value) -> bool,
    /// A section to test with; what it needs is made in the directory.
    #[cfg(any(test, feature = "testing"))]
    pub sample: fn(&Path) -> Value,
}

/// What a device tells: `GET` of its section, and `GET` and `PATCH` of `statistics` there.
pub struct Told {
    /// Members of its configuration that say what is told; among those that can change.
    pub members: &'static [&'static str],
    /// From its section and its saved state, which it gives at any time.
    pub tell: fn(&Value, &Value) -> Result<Value, DeviceError>,
}

/// A file or directory, with all that is below it, that a device opens things in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// Where it is.
    pub path: PathBuf,
    /// What it does there.
    pub does: Does,
}

/// What a device does in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Does {
    /// Reads files, from a descriptor that it has.
    Read,
    /// Whatever can be done with files, from a descriptor that it has.
    Change,
    /// Connects to sockets by their paths, and removes its own.
    Connect,
}

/// A device that is made of descriptors that somebody else has opened.
pub struct Given {
    /// How many there have to be for a section's one device.
    pub count: fn(&Value) -> Result<usize, DeviceError>,
    /// Builds it.
    pub build: fn(&Value, Vec<OwnedFd>) -> Built,
    /// What is not given it opens itself, as far as its process may.
    pub opens: bool,
}

/// What a section comes to.
pub type Built = Result<Vec<Box<dyn VirtioDevice>>, DeviceError>;

/// A device that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A section of the configuration is not what its device understands.
    #[error("{section}: {source}")]
    Section {
        /// The section's key.
        section: &'static str,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// A section or flag says something that cannot be.
    #[error("{section}: {reason}")]
    Invalid {
        /// The section's key, or the flag.
        section: &'static str,
        /// What is wrong, and with what.
        reason: String,
    },
    /// The host refused something.
    #[error("{section}: {what}: {source}")]
    Host {
        /// The section's key.
        section: &'static str,
        /// What was tried, on what.
        what: String,
        /// The host's answer.
        source: std::io::Error,
    },
}

impl DeviceError {
    /// For `map_err`: a parser's complaint about `section`.
    pub(super) fn section(section: &'static str) -> impl FnOnce(serde_json::Error) -> DeviceError {
        move |source| DeviceError::Section { section, source }
    }

    /// For `map_err`: the host's answer to `what`.
    pub(super) fn host(section: &'static str, what: String) -> impl FnOnce(std::io::Error) -> DeviceError {
        move |source| DeviceError::Host { section, what, source }
    }
}

/// Builds all devices of a configuration's sections, in the order of the table. Sections of other keys are ignored.
pub fn build_all(sections: &Map<String, Value>) -> Built {
    let mut devices = Vec::new();
    for kind in DEVICES {
        if let Some(section) = sections.get(kind.config_key) {
            devices.extend((kind.build)(section)?);
        }
    }
    Ok(devices)
}

/// The place of a device among those that [`build_all`] makes of these sections. `id` matters in sections that are lists.
pub fn place(sections: &Map<String, Value>, section: &str, id: &str) -> Option<usize> {
    let mut before = 0;
    for kind in DEVICES {
        let devices = match (sections.get(kind.config_key), kind.id_key) {
            (None, _) => continue,
            (Some(Value::Array(list)), Some(id_key)) => {
                let same = |device: &Value| device.get(id_key).and_then(Value::as_str) == Some(id);
                if let Some(index) = list.iter().position(same).filter(|_| kind.config_key == section) {
                    return Some(before + index);
                }
                list.len()
            }
            _ if kind.config_key == section => return Some(before),
            _ => 1,
        };
        before += devices;
    }
    None
}

/// What a device is called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceName {
    /// Its kind: [`DeviceKind::name`].
    pub kind: &'static str,
    /// What tells it from others of its kind, if there can be others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

/// The names of the devices that [`build_all`] makes of these sections, in its order.
pub fn names(sections: &Map<String, Value>) -> Vec<DeviceName> {
    let mut names = Vec::new();
    for kind in DEVICES {
        let name = |id: Option<&str>| DeviceName { kind: kind.name, id: id.map(str::to_owned) };
        match (sections.get(kind.config_key), kind.id_key) {
            (None, _) => {}
            (Some(Value::Array(list)), Some(id_key)) => {
                names.extend(list.iter().map(|device| name(device.get(id_key).and_then(Value::as_str))));
            }
            (Some(_), _) => names.push(name(None)),
        }
    }
    names
}

/// The limits of the devices that [`build_all`] makes of these sections, in its order.
pub fn limits(sections: &Map<String, Value>) -> Result<Vec<Limits>, DeviceError> {
    let mut limits = Vec::new();
    for kind in DEVICES {
        match sections.get(kind.config_key) {
            Some(Value::Array(list)) if kind.id_key.is_some() => {
                for device in list {
                    limits.push(Limits::of(kind, device)?);
                }
            }
            Some(device) => limits.push(Limits::of(kind, device)?),
            None => {}
        }
    }
    Ok(limits)
}

/// What the sections add to the kernel's command line.
pub fn kernel_args(sections: &Map<String, Value>) -> String {
    let words = |kind: &DeviceKind| sections.get(kind.config_key).and_then(kind.kernel_args);
    DEVICES.iter().filter_map(words).collect::<Vec<_>>().join(" ")
}

/// Judges the `version` member of a device's saved state.
pub(super) fn check_state_version(device: &'static str, state: &Value, version: u32) -> Result<(), StateError> {
    match state.get("version").and_then(Value::as_u64) {
        Some(found) if found == u64::from(version) => Ok(()),
        found => Err(StateError { device, reason: format!("version {found:?} is not {version}") }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::limit::RateLimiter;
    use super::super::testing::{Driver, RUNNING};
    use super::*;

    #[test]
    fn names_keys_and_flags_are_unique_and_said() {
        for (index, kind) in DEVICES.iter().enumerate() {
            assert!(!kind.help.is_empty() && !kind.syscalls.is_empty(), "{}", kind.name);
            for other in &DEVICES[..index] {
                assert!(kind.name != other.name && kind.config_key != other.config_key && kind.flag != other.flag);
            }
        }
    }

    #[test]
    fn devices_come_in_the_order_of_the_table() {
        let dir = tempfile::tempdir().unwrap();
        let sections: Map<_, _> =
            DEVICES.iter().rev().map(|kind| (kind.config_key.to_owned(), (kind.sample)(dir.path()))).collect();
        let built = build_all(&sections).unwrap();
        let mut names: Vec<_> = built.iter().map(|device| device.info().name).collect();
        names.dedup();
        assert_eq!(names, DEVICES.iter().map(|kind| kind.name).collect::<Vec<_>>());
    }

    #[test]
    fn a_section_is_checked_without_the_host_and_its_lists_have_ids() {
        for kind in DEVICES {
            let dir = tempfile::tempdir().unwrap();
            let mut section = (kind.sample)(dir.path());
            // What the sample needs of the host is gone, and nobody looks for it.
            drop(dir);
            (kind.check)(&section).unwrap();
            let id = |section: &Value| kind.id_key.map(|key| section[0][key].is_string());
            assert_eq!(id(&section), section.is_array().then_some(true), "{}", kind.name);
            let target = if section.is_array() { &mut section[0] } else { &mut section };
            target["no_such_option"] = true.into();
            let error = (kind.check)(&section).unwrap_err().to_string();
            assert!(error.contains("no_such_option") && error.starts_with(kind.config_key), "{error}");
        }
    }

    #[test]
    fn a_limiter_that_a_kind_names_is_one_of_each_device_of_it() {
        let bucket = serde_json::json!({ "size": 1, "refill_time": 1000 });
        for kind in DEVICES {
            let dir = tempfile::tempdir().unwrap();
            let mut section = (kind.sample)(dir.path());
            let sections = |section: &Value| [(kind.config_key.to_owned(), section.clone())].into_iter().collect();
            for (key, scope) in kind.limiters {
                assert_eq!(limits(&sections(&section)).unwrap(), [Limits::default()], "{}", kind.name);
                let device = |section: &mut Value, limiter: Value| match section {
                    Value::Array(list) => list[0][*key] = limiter,
                    section => section[*key] = limiter,
                };
                device(&mut section, serde_json::json!({ "ops": bucket, "bandwidth": null }));
                (kind.check)(&section).unwrap();
                let ops = serde_json::from_value(bucket.clone()).unwrap();
                let one = Limits::default().with(*scope, RateLimiter { ops, bandwidth: None });
                assert_eq!(limits(&sections(&section)).unwrap(), [one], "{} {key}", kind.name);
                device(&mut section, serde_json::json!({ "ops": { "size": 1 } }));
                assert!((kind.check)(&section).is_err() && limits(&sections(&section)).is_err(), "{}", kind.name);
                device(&mut section, Value::Null);
            }
        }
    }

    #[test]
    fn a_device_with_something_to_swap_can_be_swapped_while_it_runs() {
        for kind in DEVICES.iter().filter(|kind| !kind.swappable.is_empty()) {
            let dir = tempfile::tempdir().unwrap();
            let section = (kind.sample)(dir.path());
            let build = || (kind.build)(&section).unwrap().remove(0);
            let mut driver = Driver::start(build());
            driver.lock().replace(build()).unwrap_or_else(|e| panic!("{}: {e}", kind.name));
            assert!(driver.settle() && driver.status() == RUNNING, "{}", kind.name);
        }
    }

    #[test]
    fn a_device_that_tells_does_so_while_it_runs() {
        for kind in DEVICES {
            let Some(told) = &kind.told else { continue };
            assert!(kind.id_key.is_none() && told.members.iter().all(|member| kind.swappable.contains(member)));
            let dir = tempfile::tempdir().unwrap();
            let section = (kind.sample)(dir.path());
            let driver = Driver::start((kind.build)(&section).unwrap().remove(0));
            let state = driver.lock().device_state().unwrap();
            assert!((told.tell)(&section, &state).unwrap().is_object(), "{}", kind.name);
        }
    }

    #[test]
    fn a_device_is_found_at_the_place_it_is_built_at() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, [0; 512]).unwrap();
            path
        };
        let sections = serde_json::json!({
            "vsock": { "guest_cid": 3, "uds_path": dir.path().join("s") }, "entropy": {},
            "drives": [{ "drive_id": "a", "path_on_host": file("a") }, { "drive_id": "b", "path_on_host": file("b") }],
        });
        let sections = sections.as_object().unwrap();
        let built = build_all(sections).unwrap();
        for (section, id, name) in [("entropy", "", "rng"), ("vsock", "", "vsock"), ("drives", "a", "blk")] {
            assert_eq!(built[place(sections, section, id).unwrap()].info().name, name);
        }
        assert_eq!(place(sections, "drives", "b"), Some(built.len() - 1));
        assert_eq!((place(sections, "drives", "c"), place(sections, "nets", "a")), (None, None));
        let names: Vec<_> = names(sections).into_iter().map(|name| (name.kind, name.id)).collect();
        assert_eq!(names, [("rng", None), ("vsock", None), ("blk", Some("a".into())), ("blk", Some("b".into()))]);
    }
}
