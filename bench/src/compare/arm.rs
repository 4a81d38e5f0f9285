//! What is compared, seen alike: a command that runs words in a new instance, and how to be rid of that instance.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::running::{Patience, Running};
use super::tree;
use super::{Place, What};
use crate::process::BenchError;

/// One way to run the image's command.
pub(super) trait Arm: Sync {
    /// The command that runs `words` in a new instance called `id`.
    fn command(&self, id: &str, words: &[String]) -> Result<Command, BenchError>;

    /// What the instance reads before it does anything, for it to run `words`.
    fn input(&self, words: &[String]) -> Vec<u8> {
        let _ = words;
        Vec::new()
    }

    /// Away with the instance `id`, which may have ended by itself: its verb was killed.
    fn clear(&self, id: &str) {
        let _ = id;
    }

    /// Whether an instance that has ended is still there, to be cleared away.
    fn stays(&self) -> bool {
        false
    }

    /// The processes of a running instance, whose verb is `child`.
    fn processes(&self, child: u32, id: &str) -> Vec<u32> {
        let _ = id;
        tree::descendants(child)
    }

    /// What the image takes on disk, KiB.
    fn image_disk(&self) -> Option<u64>;

    /// What an instance takes on disk beside that, KiB, while `id` is one that runs.
    fn instance_disk(&self, id: &str) -> Option<u64>;

    /// Where the time of a start goes, by what a run's verb said on stderr.
    fn phases(&self, stderr: &[u8]) -> Vec<(String, f64)> {
        let _ = stderr;
        Vec::new()
    }

    /// The same by steps that are asked for one by one; none if there are none. Milliseconds.
    fn steps(&self, id: &str, words: &[String], patience: Patience<'_>) -> Result<Vec<(String, f64)>, BenchError> {
        let _ = (id, words, patience);
        Ok(Vec::new())
    }
}

/// What arms are made of.
pub(super) struct Making<'a> {
    pub what: &'a What<'a>,
    pub place: &'a Place,
    /// The image's files.
    pub root: &'a Path,
    pub patience: Patience<'a>,
}

/// An arm that can be used, and what its program calls its version.
pub(super) struct Made {
    pub version: String,
    pub arm: Box<dyn Arm>,
}

/// An instance that runs. Dropped, it is gone.
pub(super) struct Instance<'a> {
    /// `None`: it has ended.
    pub running: Option<Running>,
    pub id: String,
    pub arm: &'a dyn Arm,
}

impl Drop for Instance<'_> {
    fn drop(&mut self) {
        if self.running.take().is_some() {
            self.arm.clear(&self.id);
        }
    }
}

/// Where a program is, by PATH and where administrators' programs are.
pub(super) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    all.map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// For a program that is not there.
pub(super) fn missing(name: &str) -> String {
    format!("not installed: there is no '{name}' in PATH")
}

/// The first line of what a program says.
pub(super) fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or("").trim().to_owned()
}
