//! The named snapshots of a store.
//!
//! ```text
//! <store>/snapshots/.lock           held while names change, and while what is not needed is removed
//! <store>/snapshots/.names/NAME     a symbolic link whose text is the id: a snapshot exists from the moment it has a name
//! <store>/snapshots/.ID.making      held by whoever makes ID
//! <store>/snapshots/ID/             state, memory, disk-N (docs/snapshot-format.md); layers (guest_images::store); bulkhead.json
//! ```
//!
//! Nothing in a snapshot ever changes. Whoever goes on from one, or would make a change to it, holds a shared lock on its
//! directory. One that has no name, is in nobody's hands and is needed by no other is removed by [`Snapshots::collect`]: that is
//! all there is to removing, and to cleaning up after SIGKILL. So nothing can take away what a child needs.
//!
//! Lock order: `.lock`, then a snapshot's, and that one never waits.
//!
//! - [`name`]: ids and names;
//! - [`record`], which is `bulkhead.json`;
//! - [`collect`]: what goes and what stays;
//! - [`making`]: a new one;
//! - [`tree`]: for people.

mod collect;
pub mod making;
pub mod name;
pub mod record;
pub mod tree;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::paths::disk_bytes;
pub use name::{Id, Name};
pub use record::{Record, What};

/// What cannot be done with snapshots.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotsError {
    /// Not a name.
    #[error("'{0}' is not a name: letters, digits, '_', '.' and '-', up to 63, the first a letter or digit")]
    BadName(String),
    /// Another one is called that.
    #[error(
        "the name '{0}' is in use by another snapshot; choose another, or remove that one with `bulkhead snapshots rm`"
    )]
    InUse(Name),
    /// There is none.
    #[error("no snapshot '{name}'; there is: {there_is}")]
    NotFound {
        /// What was asked for.
        name: String,
        /// What there is.
        there_is: String,
    },
    /// Its record.
    #[error("snapshot {id}: {file}: {source}", file = record::FILE)]
    Record {
        /// Which.
        id: Id,
        /// What is wrong.
        source: io::Error,
    },
    /// The host said no.
    #[error("snapshots: {path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> SnapshotsError {
    let path = path.to_owned();
    move |source| SnapshotsError::Io { path, source }
}

/// The snapshots of a store.
#[derive(Debug, Clone)]
pub struct Snapshots {
    dir: PathBuf,
}

/// A snapshot that stays for as long as this lives.
#[derive(Debug)]
pub struct Held {
    /// What is known of it.
    pub record: Record,
    path: PathBuf,
    _lock: File,
}

impl Held {
    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// One of them, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is called.
    pub name: Name,
    /// What is known of it.
    pub record: Record,
    /// Bytes on disk that are its own.
    pub bytes: u64,
}

impl Snapshots {
    /// Those in the directory of a store; their place is made if it is not there.
    pub fn of(store: &Path) -> Result<Self, SnapshotsError> {
        let dir = store.join(guest_images::SNAPSHOTS);
        for dir in [&dir, &dir.join(".names")] {
            DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io_error(dir))?;
        }
        Ok(Snapshots { dir })
    }

    /// The same, if there has ever been one.
    pub fn existing(store: &Path) -> Option<Self> {
        let dir = store.join(guest_images::SNAPSHOTS);
        dir.join(".names").is_dir().then_some(Snapshots { dir })
    }

    /// All that have a name, the oldest first, each once for each name. One whose record cannot be read is left out, with a
    /// warning.
    pub fn list(&self) -> Result<Vec<Entry>, SnapshotsError> {
        let mut entries = Vec::new();
        for (name, id) in self.names()? {
            match Record::read(&self.path(id), id) {
                Ok(record) => entries.push(Entry { name, record, bytes: disk_bytes(&self.path(id)) }),
                Err(error) => tracing::warn!("{}", SnapshotsError::Record { id, source: error }),
            }
        }
        entries.sort_by(|a, b| (a.record.created_ns, &a.name).cmp(&(b.record.created_ns, &b.name)));
        Ok(entries)
    }

    /// Bytes on disk of all that there is, what has lost its name and is still needed included.
    pub fn bytes(&self) -> Result<u64, SnapshotsError> {
        Ok(self.ids()?.into_iter().map(|id| disk_bytes(&self.path(id))).sum())
    }

    /// The snapshot of this name, or whose id begins so where only one does; held.
    pub fn find(&self, word: &str) -> Result<Held, SnapshotsError> {
        let _guard = self.lock()?;
        self.hold(self.resolve(word)?.1)
    }

    /// Takes its name away from a snapshot, and removes what is not needed any more. Returns the name.
    pub fn remove(&self, word: &str) -> Result<Name, SnapshotsError> {
        let guard = self.lock()?;
        let (name, _) = self.resolve(word)?;
        let path = self.name_path(&name);
        fs::remove_file(&path).map_err(io_error(&path))?;
        sync(&self.dir.join(".names"))?;
        self.collect_under(&guard)?;
        Ok(name)
    }

    /// Whether a snapshot is called that.
    pub fn has(&self, name: &Name) -> bool {
        self.name_path(name).symlink_metadata().is_ok()
    }

    fn path(&self, id: Id) -> PathBuf {
        self.dir.join(id.to_string())
    }

    fn name_path(&self, name: &Name) -> PathBuf {
        self.dir.join(".names").join(name.as_str())
    }

    /// Takes the lock on names and removals, waiting for it: nobody holds it for long.
    fn lock(&self) -> Result<File, SnapshotsError> {
        let path = self.dir.join(".lock");
        let file = open_lock(&path).map_err(io_error(&path))?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(io_error(&path)(e.into())),
            }
        }
    }

    /// All names, and what they are names of. A link that leads elsewhere is nobody's name.
    fn names(&self) -> Result<Vec<(Name, Id)>, SnapshotsError> {
        let dir = self.dir.join(".names");
        let mut names = Vec::new();
        for entry in fs::read_dir(&dir).map_err(io_error(&dir))? {
            let path = entry.map_err(io_error(&dir))?.path();
            let name = path.file_name().and_then(|name| name.to_str()?.parse().ok());
            let id = fs::read_link(&path).ok().and_then(|target| target.to_str()?.parse().ok());
            names.extend(name.zip(id));
        }
        Ok(names)
    }

    /// All directories of snapshots, finished or not.
    fn ids(&self) -> Result<Vec<Id>, SnapshotsError> {
        let entries = fs::read_dir(&self.dir).map_err(io_error(&self.dir))?;
        Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
    }

    fn resolve(&self, word: &str) -> Result<(Name, Id), SnapshotsError> {
        let mut names = self.names()?;
        names.sort();
        if let Some(found) = names.iter().find(|(name, _)| name.as_str() == word) {
            return Ok(found.clone());
        }
        let mut fitting = names.iter().filter(|(_, id)| !word.is_empty() && id.to_string().starts_with(word));
        match (fitting.next(), fitting.next()) {
            (Some(found), None) => Ok(found.clone()),
            _ => {
                let list: Vec<_> = names.iter().map(|(name, _)| name.as_str()).collect();
                let there_is = if list.is_empty() { "none".into() } else { list.join(", ") };
                Err(SnapshotsError::NotFound {
                    name: crate::failure::sanitize(word).chars().take(160).collect(),
                    there_is,
                })
            }
        }
    }

    /// The caller has the lock on removals.
    fn hold(&self, id: Id) -> Result<Held, SnapshotsError> {
        let path = self.path(id);
        let lock = File::open(&path).map_err(io_error(&path))?;
        // Exclusive locks are taken only by who removes, under the lock that the caller has.
        flock(&lock, FlockOperation::NonBlockingLockShared).map_err(|e| io_error(&path)(e.into()))?;
        let record = Record::read(&path, id).map_err(|source| SnapshotsError::Record { id, source })?;
        Ok(Held { record, path, _lock: lock })
    }
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn sync(dir: &Path) -> Result<(), SnapshotsError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error(dir))
}

#[cfg(test)]
mod tests;
