//! File locks (flock), which the kernel drops when their holder dies, so that nothing is left to break.
//!
//! A [`WorkLock`] guards one piece of work, named by a key: `tmp/KEY.lock` is its lock, `tmp/KEY.tmp` the one temporary
//! file its holder may have. Lock files are removed while they are held; whoever waited notices by the file's link count.

use crate::error::ImageError;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Takes a lock, waiting for it. Signals do not cut the wait short.
pub(super) fn lock(file: &File, operation: FlockOperation) -> io::Result<()> {
    loop {
        match flock(file, operation) {
            Err(Errno::INTR) => {}
            other => return other.map_err(Into::into),
        }
    }
}

/// Whether the file still has a name.
pub(super) fn is_linked(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.nlink() > 0)
}

/// Opens a file of the store and locks it against removal. `None`: it is not there, or has just been removed.
pub(super) fn open_held(path: &Path) -> Result<Option<File>, ImageError> {
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(ImageError::io("open", path))?,
    };
    lock(&file, FlockOperation::LockShared).map_err(ImageError::io("lock", path))?;
    Ok(is_linked(&file).map_err(ImageError::io("read", path))?.then_some(file))
}

/// A held lock on a piece of work.
#[derive(Debug)]
pub(super) struct WorkLock {
    lock_path: PathBuf,
    temp_path: PathBuf,
    /// Held for as long as this is open.
    _file: File,
}

impl WorkLock {
    /// Takes the lock of `key` in `dir`, waiting for whoever has it.
    pub(super) fn acquire(dir: &Path, key: &str) -> Result<WorkLock, ImageError> {
        loop {
            if let Some(lock) = Self::take(dir, key, FlockOperation::LockExclusive)? {
                return Ok(lock);
            }
        }
    }

    /// Takes the lock if it is free.
    pub(super) fn try_acquire(dir: &Path, key: &str) -> Result<Option<WorkLock>, ImageError> {
        Self::take(dir, key, FlockOperation::NonBlockingLockExclusive)
    }

    fn take(dir: &Path, key: &str, operation: FlockOperation) -> Result<Option<WorkLock>, ImageError> {
        let lock_path = dir.join(format!("{key}.lock"));
        let error = || ImageError::io("lock", &lock_path);
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock_path).map_err(error())?;
        match lock(&file, operation) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            other => other.map_err(error())?,
        }
        // Its last holder removed it while we waited: what we hold is nobody's lock any more.
        if !is_linked(&file).map_err(error())? {
            return Ok(None);
        }
        Ok(Some(WorkLock { lock_path, temp_path: dir.join(format!("{key}.tmp")), _file: file }))
    }

    /// The path of the holder's temporary file.
    pub(super) fn temp_path(&self) -> &Path {
        &self.temp_path
    }

    /// Creates the temporary file, empty.
    pub(super) fn temp_file(&self) -> Result<File, ImageError> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&self.temp_path)
            .map_err(ImageError::io("create", &self.temp_path))
    }

    /// Makes the temporary file durable and gives it the name `path`.
    pub(super) fn publish(&self, file: &File, path: &Path) -> Result<(), ImageError> {
        file.sync_all().map_err(ImageError::io("write", &self.temp_path))?;
        fs::rename(&self.temp_path, path).map_err(ImageError::io("create", path))?;
        if let Some(dir) = path.parent() {
            let sync = File::open(dir).and_then(|dir| dir.sync_all());
            sync.map_err(ImageError::io("write", dir))?;
        }
        Ok(())
    }
}

impl Drop for WorkLock {
    /// Removes what is left of the temporary file, then the lock: in this order a temporary file always has a lock file,
    /// by which [`super::Store::sweep`] finds it.
    fn drop(&mut self) {
        for path in [&self.temp_path, &self.lock_path] {
            match fs::remove_file(path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), error = %e, "cannot remove a temporary file");
                }
                _ => {}
            }
        }
    }
}
