//! What is compared, seen alike: a command that runs words in a new instance, and how to be rid of that instance.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::moving::Errand;
use super::running::{Ended, Patience, Running};
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

    /// What an instance says when its words have ended, if its exit does not tell how they did.
    fn mark(&self) -> Option<Mark> {
        None
    }

    /// The memory of an instance that waits to be taken, KiB, which is made for that and called `id`; none if instances do not wait.
    fn waiting_kib(&self, id: &str) -> Result<Option<u64>, BenchError> {
        let _ = id;
        Ok(None)
    }

    /// The processes of a running instance, whose verb is `child`.
    fn processes(&self, child: u32, id: &str) -> Vec<u32> {
        let _ = id;
        tree::descendants(child)
    }

    /// The command that runs an errand in a new instance, as root; none if there is nothing to be learnt by it that another arm does not
    /// tell.
    fn errand(&self, id: &str, errand: &Errand<'_>) -> Result<Option<Command>, BenchError> {
        let _ = (id, errand);
        Ok(None)
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

/// How an instance says that its words have ended: a line of this and their exit code.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    pub text: &'static str,
    /// It does not end by that, but is to be asked to.
    pub stop: bool,
}

impl Mark {
    /// The moments, if the words have ended well.
    pub fn good(self, ended: Ended) -> Result<Ended, BenchError> {
        let said = String::from_utf8_lossy(&ended.seen.stdout);
        let mut codes = said.lines().filter_map(|line| line.trim().strip_prefix(self.text));
        match codes.next() {
            Some("0") => Ok(ended),
            Some(code) => Err(BenchError::Container(format!("the command: exit code {code}"))),
            None => {
                let words = [&*said, &*String::from_utf8_lossy(&ended.seen.stderr)].concat();
                let last = words.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
                Err(BenchError::Container(format!("the guest did not come to its end: {}", last.trim())))
            }
        }
    }
}

/// Words in single quotes, for a shell: each is what it is.
pub(super) fn quoted(words: &[String]) -> String {
    words.iter().map(|word| format!("'{}'", word.replace('\'', "'\\''"))).collect::<Vec<_>>().join(" ")
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
