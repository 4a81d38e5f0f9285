//! What of the host's files a machine's process opens while its guest runs.

use std::path::PathBuf;

use devices::virtio::DEVICES;
use devices::virtio::table::{Does, Reach};

use crate::config::{Paging, VmConfig};
use crate::snapshot::disks;

/// What the host tells a process of itself: snapshots and shared directories take that.
const OWN: &str = "/proc/self";

/// What there is to reach, found once: it takes the host to look at paths.
#[derive(Default)]
pub struct Reached {
    /// Below these requests may name files; the snapshot that the machine goes on from is there as well.
    pub below: Vec<PathBuf>,
    /// What its devices do.
    pub devices: Vec<Reach>,
    /// The files that guests write to, which a snapshot copies.
    pub written: Vec<PathBuf>,
}

impl Reached {
    /// Of a machine whose `requests`, if there can be any, may name what is below `files`.
    pub fn of(files: &[PathBuf], config: &VmConfig, requests: bool) -> Self {
        // The next snapshot is made beside it; and what its pages are given by records what was wanted first.
        let kept = config.snapshot.iter().filter(|source| requests || source.paging == Paging::Userfault);
        let named = files.iter().filter(|_| requests);
        let sections = DEVICES.iter().filter_map(|kind| Some((kind, config.devices.get(kind.config_key)?)));
        let mut devices = config.devices.clone();
        let written = if requests { disks::writable_files(&mut devices) } else { Vec::new() };
        Reached {
            below: named.chain(kept.map(|source| &source.path)).cloned().collect(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::tests::config;

    #[test]
    fn where_nobody_can_ask_for_anything_nothing_is_reached() {
        let mut config = config(false);
        let source = serde_json::json!({ "path": "/snapshots/a" });
        config.snapshot = Some(serde_json::from_value(source).unwrap());
        let by_path = |config: &VmConfig, requests| Reached::of(&["/files".into()], config, requests).by_path();
        assert_eq!(by_path(&config, true), [OWN, "/files", "/snapshots/a"].map(PathBuf::from));
        assert!(by_path(&config, false).is_empty());
        // The pager records there what was wanted first.
        config.snapshot.as_mut().unwrap().paging = Paging::Userfault;
        assert_eq!(by_path(&config, false), [OWN, "/snapshots/a"].map(PathBuf::from));
    }
}
