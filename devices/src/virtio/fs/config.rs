//! The `fs` section and the `--fs` flag, and how they become open directories.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
#[cfg(any(test, feature = "testing"))]
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::guard::Budget;
use super::{Fs, TAG_LEN};
use crate::virtio::table::{Built, DeviceError, DeviceKind, Does, Reach};

const SECTION: &str = "fs";
/// Most volumes: the library numbers them with a byte, and 0 is the file system that they are entries of.
const MOST: usize = 255;
/// Most files that the guest may have open or know by number, in all volumes, where the limit of descriptors allows it.
const MOST_FILES: u64 = 1 << 16;
/// Descriptors that are left to the rest of the monitor, as a part of all.
const OTHERS: u64 = 4;

/// Its line of the table.
pub const KIND: DeviceKind = DeviceKind {
    name: super::NAME,
    config_key: SECTION,
    flag: "fs",
    flag_syntax: "NAME=DIR[,ro]",
    help: "a directory of the host as NAME in the virtio-fs file system 'bulkhead'; ro: read-only",
    parse_flag,
    id_key: None,
    swappable: &[],
    adjustable: &[],
    limiters: &[],
    told: None,
    // They are the host's, and stay where they are.
    writable_files: |_| Vec::new(),
    reaches,
    check: |section| parse(section).and_then(|config| check(&config)),
    build,
    given: None,
    kernel_args: |_| None,
    // Its workers do all the rest.
    syscalls: &[libc::SYS_futex],
    prompt_syscalls: &[],
    ioctls: &[],
    workers: &[&super::pool::SERVING],
    works: |section| !parse(section).is_ok_and(|config| config.volumes.is_empty()),
    #[cfg(any(test, feature = "testing"))]
    sample,
};

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(default = "tag")]
    tag: String,
    volumes: Vec<Volume>,
}

/// A directory, or one file, of the host.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Volume {
    /// Its name in the file system that the guest mounts. A file is the entry `file` of a directory of this name.
    name: String,
    path_on_host: PathBuf,
    #[serde(default)]
    is_read_only: bool,
}

fn tag() -> String {
    "bulkhead".into()
}

fn invalid(reason: String) -> DeviceError {
    DeviceError::Invalid { section: SECTION, reason }
}

fn parse(section: &Value) -> Result<Config, DeviceError> {
    serde_json::from_value(section.clone()).map_err(DeviceError::section(SECTION))
}

fn parse_flag(value: &str, section: &mut Value) -> Result<(), DeviceError> {
    let (value, read_only) = value.strip_suffix(",ro").map_or((value, false), |value| (value, true));
    let Some((name, path)) = value.split_once('=').filter(|(name, path)| !name.is_empty() && !path.is_empty()) else {
        return Err(DeviceError::Invalid { section: "--fs", reason: "write NAME=DIR or NAME=DIR,ro".into() });
    };
    let mut config = if section.is_null() { Config { tag: tag(), volumes: Vec::new() } } else { parse(section)? };
    config.volumes.push(Volume { name: name.into(), path_on_host: path.into(), is_read_only: read_only });
    *section = serde_json::to_value(config).map_err(DeviceError::section(SECTION))?;
    Ok(())
}

/// What can be told without opening anything.
fn check(config: &Config) -> Result<(), DeviceError> {
    if config.tag.is_empty() || config.tag.len() > TAG_LEN {
        return Err(invalid(format!("the tag '{}' does not have 1 to {TAG_LEN} bytes", config.tag)));
    }
    if config.volumes.len() > MOST {
        return Err(invalid(format!("{} volumes are more than {MOST}", config.volumes.len())));
    }
    for (index, Volume { name, .. }) in config.volumes.iter().enumerate() {
        if name.is_empty() || name.len() > 255 || name.contains(['/', '\0']) || name == "." || name == ".." {
            return Err(invalid(format!("'{name}' is no name for a volume")));
        }
        if config.volumes[..index].iter().any(|other| other.name == *name) {
            return Err(invalid(format!("two volumes have the name '{name}'")));
        }
    }
    Ok(())
}

/// What is shared, open.
pub struct Shared {
    pub volumes: Vec<SharedVolume>,
    /// What the guest may have of it at a time.
    pub budget: Arc<Budget>,
}

/// A volume, open.
pub struct SharedVolume {
    pub name: String,
    /// The directory, or the one that the file is in. Held for as long as the device lives: what is moved or mounted
    /// on the host meanwhile does not change what is shared.
    pub directory: File,
    /// The file's name in it, if only that is shared.
    pub file: Option<std::ffi::CString>,
    pub read_only: bool,
}

impl SharedVolume {
    /// A path that leads to the directory in this process, whatever has become of its own.
    pub fn path(&self) -> String {
        format!("/proc/self/fd/{}/.", self.directory.as_raw_fd())
    }

    fn open(volume: &Volume) -> io::Result<Self> {
        let path = std::fs::canonicalize(&volume.path_on_host)?;
        let kind = std::fs::metadata(&path)?.file_type();
        let (directory, file) = match (kind.is_dir(), kind.is_file(), path.parent(), path.file_name()) {
            (true, ..) => (path.as_path(), None),
            (_, true, Some(parent), Some(name)) => (parent, Some(std::ffi::CString::new(name.as_bytes())?)),
            _ => return Err(io::Error::other("neither a directory nor a regular file")),
        };
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let directory = File::options().read(true).custom_flags(flags).open(directory)?;
        Ok(SharedVolume { name: volume.name.clone(), directory, file, read_only: volume.is_read_only })
    }
}

/// The directories, and those that files are in.
fn reaches(section: &Value) -> Vec<Reach> {
    let volumes = parse(section).map(|config| config.volumes).unwrap_or_default();
    let reach = |volume: Volume| {
        let path = std::fs::canonicalize(&volume.path_on_host).ok()?;
        Some(Reach { path, does: if volume.is_read_only { Does::Read } else { Does::Change } })
    };
    volumes.into_iter().filter_map(reach).collect()
}

fn build(section: &Value) -> Built {
    let config = parse(section)?;
    check(&config)?;
    let open = |volume: &Volume| {
        SharedVolume::open(volume)
            .map_err(DeviceError::host(SECTION, format!("share {}", volume.path_on_host.display())))
    };
    let volumes: Vec<_> = config.volumes.iter().map(open).collect::<Result<_, _>>()?;
    let most = if volumes.is_empty() { 0 } else { most_files() };
    let shared = Shared { volumes, budget: Arc::new(Budget::new(most)) };
    let device = Fs::new(&config.tag, shared).map_err(DeviceError::host(SECTION, "share directories".into()))?;
    Ok(vec![Box::new(device)])
}

/// How many files the guest may make this process have open. Each that it knows takes a descriptor, so the limit
/// of this process is raised as far as that goes.
fn most_files() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: maximum, maximum };
    let limit = if setrlimit(Resource::Nofile, raised).is_ok() { maximum } else { current };
    let limit = limit.unwrap_or(u64::MAX);
    (limit - limit / OTHERS).min(MOST_FILES)
}

#[cfg(any(test, feature = "testing"))]
fn sample(dir: &Path) -> Value {
    let shared = dir.join("shared");
    std::fs::create_dir_all(&shared).expect("a directory to share");
    serde_json::json!({ "volumes": [{ "name": "0", "path_on_host": shared, "is_read_only": false }] })
}
