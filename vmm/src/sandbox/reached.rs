//! What of the host's files a machine's process opens while its guest runs.

use std::path::PathBuf;

use devices::virtio::DEVICES;
use devices::virtio::table::{Does, Reach};

use crate::config::VmConfig;
use crate::snapshot::disks;

/// What the host tells a process of itself: snapshots and shared directories take that.
const OWN: &str = "/proc/self";

/// What there is to reach, found once: it takes the host to look at paths.
pub struct Reached {
    /// Below these requests may name files; the snapshot that the machine goes on from is there as well.
    pub below: Vec<PathBuf>,
    /// What its devices do.
    pub devices: Vec<Reach>,
    /// The files that guests write to, which a snapshot copies.
    pub written: Vec<PathBuf>,
}

impl Reached {
    /// Of a machine whose requests may name what is below `files`.
    pub fn of(files: &[PathBuf], config: &VmConfig) -> Self {
        let snapshot = config.snapshot.as_ref().map(|source| source.path.clone());
        let sections = DEVICES.iter().filter_map(|kind| Some((kind, config.devices.get(kind.config_key)?)));
        let mut devices = config.devices.clone();
        let written = disks::writable_files(&mut devices);
        Reached {
            below: files.iter().cloned().chain(snapshot).collect(),
            devices: sections.flat_map(|(kind, section)| (kind.reaches)(section)).collect(),
            written: written.iter().filter_map(|path| path.as_str()).map(PathBuf::from).collect(),
        }
    }

    /// Where devices do this.
    pub fn used(&self, does: Does) -> impl Iterator<Item = &PathBuf> {
        self.devices.iter().filter(move |reach| reach.does == does).map(|reach| &reach.path)
    }

    /// Whether anything is opened at all: what the host tells of the process itself is, then.
    pub fn own(&self) -> bool {
        !self.below.is_empty() || !self.devices.is_empty()
    }

    /// What of all that is found by its path.
    pub fn by_path(&self) -> Vec<PathBuf> {
        let own = self.own().then(|| PathBuf::from(OWN));
        let others = self.below.iter().chain(self.used(Does::Connect)).chain(&self.written);
        own.into_iter().chain(others.cloned()).collect()
    }
}
