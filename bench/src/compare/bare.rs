//! The floor: the command as a process of this host, in the image's files.

use std::path::PathBuf;
use std::process::Command;

use super::What;
use super::arm::{Arm, Made, Making, missing, program};
use super::moving::Errand;
use crate::process::BenchError;

struct Bare {
    chroot: PathBuf,
    root: PathBuf,
    user: String,
    groups: String,
    env: Vec<(String, String)>,
}

/// The arm, or why there is none.
pub(super) fn make(making: &Making<'_>) -> Result<Made, String> {
    if !rustix::process::geteuid().is_root() {
        return Err("chroot(8) is for root".into());
    }
    let chroot = program("chroot").ok_or_else(|| missing("chroot"))?;
    let What { process, .. } = making.what;
    let groups: Vec<String> = process.groups.iter().map(u32::to_string).collect();
    let pair = |entry: &String| entry.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
    let bare = Bare {
        chroot,
        root: making.root.to_owned(),
        user: format!("{}:{}", process.uid, process.gid),
        groups: groups.join(","),
        env: process.env.iter().filter_map(pair).collect(),
    };
    let version = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Ok(Made { version: format!("Linux {}", version.trim()), arm: Box::new(bare) })
}

impl Arm for Bare {
    fn command(&self, _: &str, words: &[String]) -> Result<Command, BenchError> {
        let mut command = Command::new(&self.chroot);
        command.env_clear().envs(self.env.iter().map(|(key, value)| (key, value)));
        command.arg(format!("--userspec={}", self.user)).arg(format!("--groups={}", self.groups));
        command.arg(&self.root).args(words);
        Ok(command)
    }

    /// The program is static: it needs none of the image's files, and has the host's directories as they are.
    fn errand(&self, _: &str, errand: &Errand<'_>) -> Result<Option<Command>, BenchError> {
        let words = errand.words(errand.volume, errand.own);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        Ok(Some(command))
    }

    fn image_disk(&self) -> Option<u64> {
        Some(super::tree::disk_kib(&self.root))
    }

    fn instance_disk(&self, _: &str) -> Option<u64> {
        Some(0)
    }
}
