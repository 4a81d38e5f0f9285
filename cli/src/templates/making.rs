//! The right to make a template: a mark beside it, locked by one process at a time.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, retry_on_intr};

/// End of the name of a mark.
const MARK: &str = ".making";
/// The right to make one, which goes with its process if nothing else ends it.
#[derive(Debug)]
pub struct Making {
    target: PathBuf,
    mark: PathBuf,
    _lock: File,
}

impl Making {
    /// To make what is to be at `target`. Whoever is at it is waited for, until `deadline`. `None`: that one takes longer, or the mark
    /// cannot be made.
    pub(super) fn begin(target: &Path, deadline: Instant) -> Option<Self> {
        let mark = target.with_file_name(format!(".{}{MARK}", target.file_name()?.to_str()?));
        loop {
            let lock = File::options().write(true).create(true).truncate(false).mode(0o600).open(&mark).ok()?;
            let lock = match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => lock,
                Err(Errno::WOULDBLOCK) => wait(lock, deadline.saturating_duration_since(Instant::now()))?,
                Err(_) => return None,
            };
            if is_at(&lock, &mark) {
                return Some(Making { target: target.to_owned(), mark, _lock: lock });
            }
            // Who had it has removed it in between: what is locked now is nobody's mark.
        }
    }

    /// Where to put it.
    pub fn target(&self) -> &Path {
        &self.target
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        // While it is still locked: by then it is nobody else's.
        let _ = fs::remove_file(&self.mark);
    }
}

/// Waits until the mark can be locked, no longer than `patience`. Who waits then is a thread that lets go of it as soon as it has it.
fn wait(mark: File, patience: Duration) -> Option<File> {
    if patience.is_zero() {
        return None;
    }
    let (locked, ours) = channel();
    let waits = move || {
        if retry_on_intr(|| flock(&mark, FlockOperation::LockExclusive)).is_ok() {
            let _ = locked.send(mark);
        }
    };
    thread::Builder::new().name("template".into()).spawn(waits).ok()?;
    ours.recv_timeout(patience).ok()
}

fn is_at(file: &File, path: &Path) -> bool {
    let identity = |meta: fs::Metadata| (meta.dev(), meta.ino());
    let (file, path) = (file.metadata().map(identity), fs::metadata(path).map(identity));
    file.ok().zip(path.ok()).is_some_and(|(file, path)| file == path)
}

/// Removes marks in `dir` that nobody holds: of processes that were killed.
pub(super) fn sweep(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if !(name.as_encoded_bytes().starts_with(b".") && name.as_encoded_bytes().ends_with(MARK.as_bytes())) {
            continue;
        }
        let Ok(mark) = File::open(entry.path()) else { continue };
        if flock(&mark, FlockOperation::NonBlockingLockExclusive).is_ok() && is_at(&mark, &entry.path()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
