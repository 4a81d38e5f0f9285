//! Where files live on this host (docs/interfaces.md, "Where files live").

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub use guest_images::disk_bytes_below;

/// The image store: `BULKHEAD_STORE`, else the system's place for root, else the user's data directory.
pub fn store() -> PathBuf {
    choose("BULKHEAD_STORE", "/var/lib/bulkhead", || match variable("XDG_DATA_HOME") {
        Some(data) => data.join("bulkhead"),
        None => home().join(".local/share/bulkhead"),
    })
}

/// Run directories, one per VM: `BULKHEAD_RUN`, else /run for root, else the user's runtime directory.
pub fn run() -> PathBuf {
    choose("BULKHEAD_RUN", "/run/bulkhead", || match variable("XDG_RUNTIME_DIR") {
        Some(runtime) => runtime.join("bulkhead"),
        None => PathBuf::from(format!("/tmp/bulkhead-{}", rustix::process::getuid().as_raw())),
    })
}

/// What KVM said of CPUID, see `vmm::VmConfig::cpuid_cache`: beside the run directories, where it goes with the host's boot.
/// No VM's name begins with a dot.
pub fn cpuid_cache() -> PathBuf {
    run().join(".cpuid")
}

/// What the files of a directory take on disk, in bytes; holes take nothing. A directory that is not there takes nothing either.
pub fn disk_bytes(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|meta| meta.blocks() * 512).sum()
}

fn choose(name: &str, root: &str, user: impl FnOnce() -> PathBuf) -> PathBuf {
    match variable(name) {
        Some(path) => path,
        None if rustix::process::geteuid().is_root() => PathBuf::from(root),
        None => user(),
    }
}

/// A variable that is set to something.
fn variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn home() -> PathBuf {
    variable("HOME").unwrap_or_else(|| PathBuf::from("/"))
}
