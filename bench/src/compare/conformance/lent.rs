//! The image that habits are tried with, under a name that both engines have; and what stays if whoever lends it is killed.
//!
//! Containers, volumes and images of habits, and this name, have the id of the process that tries them in their names: what is a dead one's
//! goes before the next is lent.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::super::is_alive;
use super::super::running::{Patience, answer};
use super::{clear, prepare};
use crate::place::Place;
use crate::process::BenchError;

/// What containers, volumes and images of habits begin with; the process's id follows, and the number of the habit.
pub(super) const HABIT: &str = "bulkhead-habit-";
/// The repository of the image; the tag is the process's id.
const IMAGE: &str = "localhost/bulkhead-conformance";
/// What podman and docker put before the names of images that have no registry.
const REGISTRIES: [&str; 2] = ["localhost/", "docker.io/library/"];

/// The image under a name that both have, until this is dropped.
pub struct Lent {
    /// That name.
    pub name: String,
    programs: [PathBuf; 2],
    limit: Duration,
}

impl Lent {
    /// Gives an image of ours to the other engine as well, after what killed processes have left in both has gone.
    ///
    /// # Errors
    /// One of the two cannot do its part, and says why.
    pub fn new(
        image: &str,
        ours: &Path,
        theirs: &Path,
        limit: Duration,
        stop: BorrowedFd<'_>,
    ) -> Result<Self, BenchError> {
        let patience = Patience { limit, stop };
        [ours, theirs].into_iter().try_for_each(|program| sweep(program, patience))?;
        let name = format!("{IMAGE}:{}", std::process::id());
        let lent = Lent { name, programs: [ours.to_owned(), theirs.to_owned()], limit };
        let dir = Place::new()?;
        let archive = dir.path().join("image.tar");
        let archive = archive.to_string_lossy();
        prepare(ours, &["tag", image, &lent.name], limit, stop)?;
        prepare(ours, &["save", "-o", &archive, &lent.name], limit, stop)?;
        prepare(theirs, &["load", "-i", &archive], limit, stop)?;
        Ok(lent)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        for program in &self.programs {
            // What stays goes before the next is lent.
            let _ = clear(program, &["rmi", "-f", &self.name], self.limit);
        }
    }
}

/// Away with what processes have left in an engine that were killed. What cannot be removed stays: it is in nobody's way.
fn sweep(program: &Path, patience: Patience<'_>) -> Result<(), BenchError> {
    let lines = |words: &[&str]| {
        let mut command = Command::new(program);
        command.args(words);
        answer(command, patience)
    };
    let remove = |words: &[&str], name: &str| {
        // Somebody else's sweep may have been quicker.
        let _ = lines(&[words, &[name]].concat());
    };
    for name in lines(&["ps", "-a", "--format", "{{.Names}}"])?.lines().filter(|name| is_left(name)) {
        remove(&["rm", "-f"], name);
    }
    for name in lines(&["volume", "ls", "-q"])?.lines().filter(|name| is_left(name)) {
        remove(&["volume", "rm"], name);
    }
    // The one listing that all have.
    for line in lines(&["images"])?.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(repository), Some(tag)) = (words.next(), words.next()) else { continue };
        if is_left_image(repository, tag) {
            remove(&["rmi", "-f"], &format!("{repository}:{tag}"));
        }
    }
    Ok(())
}

/// Whether a name is of a habit that a process tried which is gone.
fn is_left(name: &str) -> bool {
    let pid = name.strip_prefix(HABIT).and_then(|rest| rest.split('-').next());
    pid.is_some_and(|pid| !is_alive(pid))
}

fn is_left_image(repository: &str, tag: &str) -> bool {
    if repository == IMAGE {
        return !is_alive(tag);
    }
    is_left(REGISTRIES.iter().find_map(|registry| repository.strip_prefix(registry)).unwrap_or(repository))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// An id that no process has: they end before (proc_sys_kernel(5), pid_max).
    const DEAD: &str = "4194305";

    #[test]
    fn only_what_dead_processes_left_is_removed() {
        let me = std::process::id();
        let dir = Place::new().unwrap();
        let program = dir.path().join("engine");
        let told = dir.path().join("told");
        let script = format!(
            "#!/bin/sh\ncase $1 in\n\
             ps) echo web; echo {HABIT}{DEAD}-3-2; echo {HABIT}{me}-3; echo {HABIT}x-1;;\n\
             volume) [ $2 = ls ] && echo {HABIT}{DEAD}-7 && echo data || echo \"$@\" >>{told};;\n\
             images) echo REPOSITORY TAG ID; echo {IMAGE} {DEAD} x; echo {IMAGE} {me} x; echo localhost/{HABIT}{DEAD}-5 latest x;;\n\
             *) echo \"$@\" >>{told};;\nesac\n",
            told = told.display()
        );
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let (stop, _other) = UnixStream::pair().unwrap();
        sweep(&program, Patience { limit: Duration::from_secs(20), stop: stop.as_fd() }).unwrap();
        let wanted = format!(
            "rm -f {HABIT}{DEAD}-3-2\nvolume rm {HABIT}{DEAD}-7\nrmi -f {IMAGE}:{DEAD}\nrmi -f localhost/{HABIT}{DEAD}-5:latest\n"
        );
        assert_eq!(fs::read_to_string(told).unwrap(), wanted);
    }
}
