//! Which container or microVM a word means, for verbs that ask whoever has one; and waiting for its end.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use anyhow::anyhow;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::containers::{Containers, ContainersError, Entry, Status};
use crate::paths;
use crate::rundir::{self, RunDirError};

/// What runs and is called that: its name, and its run directory. Containers come before bare microVMs.
///
/// # Errors
/// Nothing of that name runs, or several could be meant.
pub fn find(word: &str) -> anyhow::Result<(String, PathBuf)> {
    let container = Containers::existing(&paths::store()).map(|containers| containers.find(word));
    match container {
        Some(Ok(entry)) if entry.record.state.status == Status::Running => {
            let directory = directory(&entry);
            Ok((entry.name, directory))
        }
        Some(Err(error @ ContainersError::Ambiguous(_))) => Err(error.into()),
        stopped => rundir::named(&paths::run(), word).map_err(|error| match (error, stopped) {
            (RunDirError::NotRunning { name, .. }, Some(Ok(_))) => {
                anyhow!("container {name} is not running; `bulkhead start {name}` starts it")
            }
            (error, _) => with_containers(error).into(),
        }),
    }
}

/// The run directory of a container that runs.
pub fn directory(entry: &Entry) -> PathBuf {
    paths::run().join(entry.record.id.short())
}

/// Names the containers that run as people know them, not by their run directories.
fn with_containers(error: RunDirError) -> RunDirError {
    let RunDirError::NotRunning { name, there_is } = error else { return error };
    let entries =
        Containers::existing(&paths::store()).and_then(|containers| containers.list().ok()).unwrap_or_default();
    let shown = there_is.split(", ").map(|directory| {
        let entry = entries.iter().find(|entry| entry.record.id.short() == directory);
        entry.map_or(directory, |entry| entry.name.as_str())
    });
    RunDirError::NotRunning { name, there_is: shown.collect::<Vec<_>>().join(", ") }
}

/// The process that has a container, to be waited for: readable when it has ended. None: it has.
pub fn owner(containers: &Containers, entry: &Entry) -> Result<Option<OwnedFd>, ContainersError> {
    let pid = i32::try_from(entry.record.state.pid).ok().and_then(Pid::from_raw);
    let Some(pidfd) = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else { return Ok(None) };
    // Its number may be another's by now, unless it still has the container.
    let same = containers.is_held(&entry.record.id)?
        && containers.find(entry.record.id.as_str())?.record.state.pid == entry.record.state.pid;
    Ok(same.then_some(pidfd))
}
