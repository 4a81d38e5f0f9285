//! The containers of a store, running or not.
//!
//! ```text
//! <store>/containers/.lock         held while names change, and while containers come and go
//! <store>/containers/.names/NAME   a symbolic link whose text is the id: a container exists from the moment it has a name
//! <store>/containers/.running/ID   somebody has it, or has been killed while having it
//! <store>/containers/ID/           record.json; layers (guest_images::store); log.json (crate::log)
//! ```
//!
//! Whoever makes a container, runs it or removes it holds an exclusive lock on its directory for as long as that takes: a
//! container in `.running` whose lock is free was lost with whoever had it, and [`Containers::sweep`], which every verb calls, says
//! so in its record, or removes it, if that is what was to become of it. A directory without a name is rubbish.
//!
//! Lock order: `.lock`, then a container's, and that one never waits.
//!
//! - [`id`], [`names`]: what they are called;
//! - [`record`], which is `record.json`;
//! - [`held`]: a container that is somebody's;
//! - [`sweep`]: what killed processes leave.

mod held;
mod id;
mod names;
pub mod record;
mod sweep;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

pub use held::Held;
pub use id::Id;
pub use names::is_name;
pub use record::{Record, Status};

/// What cannot be done with containers. The words are docker's where docker has some.
#[derive(Debug, thiserror::Error)]
pub enum ContainersError {
    /// Not a name.
    #[error("invalid container name ({0}): letters, digits, '_', '.' and '-', up to 63, the first a letter or digit")]
    BadName(String),
    /// Another one is called that.
    #[error(
        "the container name \"{name}\" is already in use by container {id}; remove (or rename) that container, or choose another --name"
    )]
    InUse {
        /// The name.
        name: String,
        /// Whose it is.
        id: Id,
    },
    /// There is none.
    #[error("no such container: {0}; `bulkhead ps -a` lists those there are")]
    NotFound(String),
    /// Several have ids that begin so.
    #[error("multiple containers have ids that begin with {0}; say more of it")]
    Ambiguous(String),
    /// It is being started, run, looked into or removed.
    #[error("container {0} is in use: it runs, or is being started, looked into (cp, diff, commit) or removed")]
    Busy(String),
    /// Its record.
    #[error("container {id}: {file}: {source}", id = id.short(), file = record::FILE)]
    Record {
        /// Whose.
        id: Id,
        /// What is wrong.
        source: io::Error,
    },
    /// The host said no.
    #[error("containers: {path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> ContainersError {
    let path = path.to_owned();
    move |source| ContainersError::Io { path, source }
}

/// The containers of a store.
#[derive(Debug, Clone)]
pub struct Containers {
    dir: PathBuf,
}

/// One of them, as it was at some moment.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What it is called.
    pub name: String,
    /// What is known of it.
    pub record: Record,
    /// Its directory.
    pub dir: PathBuf,
}

impl Containers {
    /// Those in the directory of a store; their place is made if it is not there.
    pub fn of(store: &Path) -> Result<Self, ContainersError> {
        let dir = store.join(guest_images::CONTAINERS);
        for dir in [&dir, &dir.join(".names"), &dir.join(".running")] {
            DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io_error(dir))?;
        }
        Ok(Containers { dir })
    }

    /// The same, if there has ever been one.
    pub fn existing(store: &Path) -> Option<Self> {
        let dir = store.join(guest_images::CONTAINERS);
        dir.join(".running").is_dir().then_some(Containers { dir })
    }

    /// All of them, the youngest first. One whose record cannot be read is left out, with a warning.
    pub fn list(&self) -> Result<Vec<Entry>, ContainersError> {
        let mut entries = Vec::new();
        for (name, id) in self.names()? {
            match self.entry(name, &id) {
                Ok(entry) => entries.push(entry),
                // Removed meanwhile.
                Err(_) if !self.path(&id).exists() => {}
                Err(error) => tracing::warn!("{error}"),
            }
        }
        entries.sort_by(|a, b| (b.record.created_ns, &b.name).cmp(&(a.record.created_ns, &a.name)));
        Ok(entries)
    }

    /// The same, in no order, and none left out.
    ///
    /// # Errors
    /// Also if the record of one cannot be read.
    pub fn list_all(&self) -> Result<Vec<Entry>, ContainersError> {
        let mut entries = Vec::new();
        for (name, id) in self.names()? {
            match self.entry(name, &id) {
                Ok(entry) => entries.push(entry),
                // Removed meanwhile.
                Err(_) if !self.path(&id).exists() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(entries)
    }

    /// The container of this name or id, or whose id begins so where only one does.
    pub fn find(&self, word: &str) -> Result<Entry, ContainersError> {
        let (name, id) = self.resolve(word)?;
        self.entry(name, &id)
    }

    /// Whether one may be called so.
    pub fn check_name(name: &str) -> Result<(), ContainersError> {
        names::check(name)
    }

    /// What a container is called now. None: it is gone.
    pub fn name_of(&self, id: &Id) -> Option<String> {
        self.names().ok()?.into_iter().find(|(_, whose)| whose == id).map(|(name, _)| name)
    }

    /// Calls it something else. Returns what it was called.
    pub fn rename(&self, word: &str, name: &str) -> Result<String, ContainersError> {
        names::check(name)?;
        let _guard = self.lock()?;
        let (old, id) = self.resolve(word)?;
        self.christen(name, &id)?;
        let path = self.name_path(&old);
        fs::remove_file(&path).map_err(io_error(&path))?;
        self.sync_names()?;
        if let Ok(record) = Record::read(&self.path(&id), &id) {
            crate::events::tell_of(self, &record, name, "rename", &[("oldName", old.clone())]);
        }
        Ok(old)
    }

    fn entry(&self, name: String, id: &Id) -> Result<Entry, ContainersError> {
        let dir = self.path(id);
        let record = Record::read(&dir, id).map_err(|source| ContainersError::Record { id: id.clone(), source })?;
        Ok(Entry { name, record, dir })
    }

    /// Where they are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn path(&self, id: &Id) -> PathBuf {
        self.dir.join(id.as_str())
    }

    fn name_path(&self, name: &str) -> PathBuf {
        self.dir.join(".names").join(name)
    }

    fn mark_path(&self, id: &Id) -> PathBuf {
        self.dir.join(".running").join(id.as_str())
    }

    /// Takes the lock on names and removals, waiting for it: nobody holds it for long.
    fn lock(&self) -> Result<File, ContainersError> {
        let path = self.dir.join(".lock");
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = open.map_err(io_error(&path))?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(io_error(&path)(e.into())),
            }
        }
    }

    /// Gives a container a name. The caller has the lock.
    fn christen(&self, name: &str, id: &Id) -> Result<(), ContainersError> {
        let path = self.name_path(name);
        match std::os::unix::fs::symlink(id.as_str(), &path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => match whose(&path) {
                Some(id) => Err(ContainersError::InUse { name: name.into(), id }),
                None => Err(io_error(&path)(e)),
            },
            other => other.map_err(io_error(&path)),
        }
    }

    fn sync_names(&self) -> Result<(), ContainersError> {
        let dir = self.dir.join(".names");
        File::open(&dir).and_then(|dir| dir.sync_all()).map_err(io_error(&dir))
    }

    /// All names, and whose they are. A link that leads elsewhere is nobody's name.
    fn names(&self) -> Result<Vec<(String, Id)>, ContainersError> {
        let dir = self.dir.join(".names");
        let entries = fs::read_dir(&dir).map_err(io_error(&dir))?.flatten();
        Ok(entries.filter_map(|entry| Some((entry.file_name().into_string().ok()?, whose(&entry.path())?))).collect())
    }

    /// As docker looks: an id, then a name, then the beginning of an id.
    fn resolve(&self, word: &str) -> Result<(String, Id), ContainersError> {
        let shown = || crate::failure::sanitize(word).chars().take(160).collect::<String>();
        if names::check(word).is_ok()
            && let Some(id) = whose(&self.name_path(word))
        {
            return Ok((word.to_owned(), id));
        }
        let names = self.names()?;
        let mut fitting = names.into_iter().filter(|(_, id)| !word.is_empty() && id.as_str().starts_with(word));
        match (fitting.next(), fitting.next()) {
            (Some(found), None) => Ok(found),
            (Some(_), Some(_)) => Err(ContainersError::Ambiguous(shown())),
            (None, _) => Err(ContainersError::NotFound(shown())),
        }
    }
}

/// The container that a name leads to.
fn whose(name: &Path) -> Option<Id> {
    fs::read_link(name).ok()?.to_str()?.parse().ok()
}

#[cfg(test)]
mod tests;
