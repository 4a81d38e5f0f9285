//! A directory for a benchmark's files, which does not outlive it for long.
//!
//! It is locked (flock) by the process that has it. One whose process was killed is locked by nobody, and goes with the next.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags, flock};
use tempfile::TempDir;

use crate::process::{BenchError, io_error};

/// What their names begin with.
const PREFIX: &str = "bulkhead-bench.";

/// The directory. Dropped, it is removed.
pub(crate) struct Place {
    dir: TempDir,
    _lock: File,
}

impl Place {
    /// A new one in `parent`, after those are removed that nobody has any more.
    pub(crate) fn within(parent: &Path) -> Result<Self, BenchError> {
        sweep(parent);
        loop {
            let made = || -> io::Result<Option<Self>> {
                let dir = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
                // Somebody else may have swept it before it was locked.
                let lock = locked(dir.path())?;
                Ok(lock.map(|lock| Place { dir, _lock: lock }))
            };
            match made() {
                Ok(Some(place)) => return Ok(place),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound && parent.is_dir() => {}
                Err(error) => return Err(io_error("temporary directory")(error)),
            }
        }
    }

    /// The same where temporary files go.
    pub(crate) fn new() -> Result<Self, BenchError> {
        Self::within(&std::env::temp_dir())
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// The directory, locked, if it is one of ours that nobody has locked, and still there.
fn locked(path: &Path) -> io::Result<Option<File>> {
    let flags = (OFlags::DIRECTORY | OFlags::NOFOLLOW).bits() as i32;
    let dir = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let meta = dir.metadata()?;
    let ours = meta.uid() == rustix::process::geteuid().as_raw();
    let free = ours && flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok();
    Ok((free && fs::symlink_metadata(path)?.ino() == meta.ino()).then_some(dir))
}

fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let is_one = entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes());
        if is_one && let Ok(Some(_lock)) = locked(&entry.path()) {
            // What cannot be removed now is the next one's.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_left_goes_and_what_is_in_use_stays() {
        let parent = tempfile::tempdir().unwrap();
        let left = parent.path().join(format!("{PREFIX}left"));
        let other = parent.path().join("other");
        fs::create_dir_all(left.join("deep")).unwrap();
        fs::create_dir(&other).unwrap();
        let first = Place::within(parent.path()).unwrap();
        assert!(!left.exists() && other.exists());
        let second = Place::within(parent.path()).unwrap();
        assert!(first.path().is_dir() && second.path().is_dir());
        drop((first, second));
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
        assert!(Place::within(&parent.path().join("missing")).is_err());
    }
}
