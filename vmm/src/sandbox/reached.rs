//! What of the host's files a machine's process opens while its guest runs.

use std::path::PathBuf;

use devices::virtio::DEVICES;
use devices::virtio::table::{Does, Reach};

use crate::config::VmConfig;
use crate::snapshot::disks;

/// What its devices do.
pub fn reaches(config: &VmConfig) -> Vec<Reach> {
    let of = |section_of: &devices::virtio::table::DeviceKind| {
        config.devices.get(section_of.config_key).map(|section| (section_of.reaches)(section))
    };
    DEVICES.iter().filter_map(of).flatten().collect()
}

/// The files that guests write to, which a snapshot copies.
pub fn written(config: &VmConfig) -> Vec<PathBuf> {
    let mut sections = config.devices.clone();
    disks::writable_files(&mut sections).iter().filter_map(|path| path.as_str()).map(PathBuf::from).collect()
}

/// What it reaches below `files`, besides what its devices have open: the snapshot that it goes on from as well.
pub fn below(files: &[PathBuf], config: &VmConfig) -> Vec<PathBuf> {
    files.iter().cloned().chain(config.snapshot.as_ref().map(|source| source.path.clone())).collect()
}

/// What of all that is found by its path.
pub fn by_path(below: &[PathBuf], config: &VmConfig) -> Vec<PathBuf> {
    let sockets = reaches(config).into_iter().filter(|reach| reach.does == Does::Connect).map(|reach| reach.path);
    below.iter().cloned().chain(sockets).chain(written(config)).collect()
}
