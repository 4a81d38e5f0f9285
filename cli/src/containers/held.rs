//! A container that is somebody's: of whoever makes it, runs it or removes it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock, fstat};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{Containers, ContainersError, Id, Record, io_error, names};
use crate::events;
use crate::oci;

/// How often a name is made up before one gets a number.
const TRIES: usize = 8;
/// A mark on its way, in the directory of its container.
const MARK: &str = "mark.new";

/// Nobody else has it for as long as this lives. The kernel gives it up with the last process that has the lock.
#[derive(Debug)]
pub struct Held {
    containers: Containers,
    id: Id,
    lock: File,
    fate: Fate,
}

/// What becomes of a container when it is nobody's any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Stays,
    Goes,
    /// It is another process's, or nobody's business.
    PassedOn,
}

impl Fate {
    fn of(record: &Record) -> Self {
        if record.flags.rm { Fate::Goes } else { Fate::Stays }
    }
}

impl Containers {
    /// Makes a container, whose record is made by `record` from its id, of this name, or one that is made up. `furnish` makes what
    /// else it needs in its directory, and has its layers stay.
    pub fn create(
        &self,
        name: Option<&str>,
        record: impl FnOnce(Id) -> Record,
        furnish: impl FnOnce(&Id, &Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<(String, Held, Record)> {
        name.map(names::check).transpose()?;
        let id = Id::random().map_err(io_error(&self.dir))?;
        let record = record(id.clone());
        let path = self.path(&id);
        let guard = self.lock()?;
        // Said before anything costly is done; the lock keeps it true.
        if let Some(id) = name.and_then(|name| super::whose(&self.name_path(name))) {
            return Err(ContainersError::InUse { name: name.unwrap_or_default().into(), id }.into());
        }
        DirBuilder::new().mode(0o700).create(&path).map_err(io_error(&path))?;
        let lock = take(&path)?.ok_or_else(|| ContainersError::Busy(id.short().into()))?;
        let mut held = Held { containers: self.clone(), id, lock, fate: Fate::Goes };
        drop(guard);
        let durable = !record.flags.rm;
        furnish(&held.id, &path)?;
        record.write(&path, durable).map_err(io_error(&path))?;
        held.mark()?;
        let _guard = self.lock()?;
        let name = match name {
            Some(name) => self.christen(name, &held.id).map(|()| name.to_owned())?,
            None => self.christen_somehow(&held.id)?,
        };
        if durable {
            self.sync_names()?;
        }
        held.fate = Fate::of(&record);
        events::tell_of(self, &record, &name, "create", &[]);
        Ok((name, held, record))
    }

    /// The caller has the lock.
    fn christen_somehow(&self, id: &Id) -> Result<String, ContainersError> {
        let mut tries = 0;
        loop {
            let name = names::random(tries >= TRIES).map_err(io_error(&self.dir))?;
            match self.christen(&name, id) {
                Err(ContainersError::InUse { .. }) => tries += 1,
                other => return other.map(|()| name),
            }
        }
    }

    /// Takes a container that nobody has, to run it.
    pub fn take(&self, word: &str) -> Result<(String, Held, Record), ContainersError> {
        let _guard = self.lock()?;
        let (name, id) = self.resolve(word)?;
        let path = self.path(&id);
        let lock = take(&path)?.ok_or_else(|| ContainersError::Busy(name.clone()))?;
        let mut held = Held { containers: self.clone(), id, lock, fate: Fate::Stays };
        let record = held.record()?;
        held.fate = Fate::of(&record);
        held.mark()?;
        Ok((name, held, record))
    }

    /// Takes a container that nobody has, to look into it: what becomes of it is as if it had not been taken.
    pub fn visit(&self, id: &Id) -> Result<(Held, Record), ContainersError> {
        let _guard = self.lock()?;
        let path = self.path(id);
        let name = self.name_of(id).ok_or_else(|| ContainersError::NotFound(id.short().into()))?;
        let lock = take(&path)?.ok_or(ContainersError::Busy(name))?;
        let held = Held { containers: self.clone(), id: id.clone(), lock, fate: Fate::PassedOn };
        let record = held.record()?;
        Ok((held, record))
    }

    /// Takes over a container that another process has taken, and whose lock it has shared with this one.
    pub fn take_over(&self, id: &Id, lock: File) -> Result<(Held, Record), ContainersError> {
        let path = self.path(id);
        let same = || {
            let (this, that) = (fstat(&lock)?, path.symlink_metadata()?);
            Ok((this.st_dev, this.st_ino) == (that.dev(), that.ino()))
        };
        // Locked already, through the very descriptor, it is locked again without effect.
        let ours = same().map_err(io_error(&path))? && flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
        if !ours {
            return Err(ContainersError::Busy(id.short().into()));
        }
        let mut held = Held { containers: self.clone(), id: id.clone(), lock, fate: Fate::Stays };
        let record = held.record()?;
        held.fate = Fate::of(&record);
        held.mark()?;
        Ok((held, record))
    }

    /// The process that runs it, or is about to: readable when it has ended. None: there is none, whoever has it.
    pub fn runner(&self, id: &Id) -> Result<Option<OwnedFd>, ContainersError> {
        let said = || fs::read_to_string(self.mark_path(id)).ok()?.parse().ok().and_then(Pid::from_raw);
        loop {
            let Some(pid) = said() else { return Ok(None) };
            let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok();
            // Its number may be another's by now, unless it still has the container.
            let held = self.is_held(id)?;
            if said() == Some(pid) {
                return Ok(pidfd.filter(|_| held));
            }
            // It has passed it on meanwhile.
        }
    }

    /// Whether somebody has it.
    pub fn is_held(&self, id: &Id) -> Result<bool, ContainersError> {
        let _guard = self.lock()?;
        let path = self.path(id);
        Ok(path.exists() && take(&path)?.is_none())
    }

    /// Removes a container that nobody has. Returns its name.
    pub fn remove(&self, word: &str) -> Result<String, ContainersError> {
        let guard = self.lock()?;
        let (name, id) = self.resolve(word)?;
        let lock = take(&self.path(&id))?.ok_or_else(|| ContainersError::Busy(name.clone()))?;
        self.remove_under(&guard, &id)?;
        drop(lock);
        Ok(name)
    }

    /// `_guard` is the lock on removals; the caller has the container's, too.
    pub(super) fn remove_under(&self, _guard: &File, id: &Id) -> Result<(), ContainersError> {
        let path = self.path(id);
        let record = Record::read(&path, id).ok();
        // Without a name it is rubbish, should this process not live to do the rest.
        for (name, _) in self.names()?.iter().filter(|(_, whose)| whose == id) {
            let path = self.name_path(name);
            fs::remove_file(&path).map_err(io_error(&path))?;
            if let Some(record) = &record {
                events::tell_of(self, record, name, "destroy", &[]);
            }
        }
        self.unmark(id);
        record.iter().for_each(|record| oci::clear(&path, record));
        fs::remove_dir_all(&path).map_err(io_error(&path))
    }

    pub(super) fn unmark(&self, id: &Id) {
        // One that stays is looked at once more by the next command.
        let _ = fs::remove_file(self.mark_path(id));
    }
}

impl Held {
    /// Its id.
    pub fn id(&self) -> &Id {
        &self.id
    }

    /// Its directory.
    pub fn dir(&self) -> PathBuf {
        self.containers.path(&self.id)
    }

    /// The lock, to be shared with a process that [takes it over](Containers::take_over).
    pub fn share(&self) -> io::Result<File> {
        self.lock.try_clone()
    }

    /// It does not run for now, and stays even if it is to go with its end.
    pub fn stays(mut self) {
        self.fate = Fate::Stays;
    }

    /// The same container for a part of this one's work: what becomes of it is not decided at that one's end.
    pub fn lend(&self) -> io::Result<Held> {
        let (containers, id) = (self.containers.clone(), self.id.clone());
        Ok(Held { containers, id, lock: self.lock.try_clone()?, fate: Fate::PassedOn })
    }

    /// It is another process's now.
    pub fn passed_on(mut self) {
        self.fate = Fate::PassedOn;
    }

    /// What is known of it now.
    pub fn record(&self) -> Result<Record, ContainersError> {
        let record = Record::read(&self.dir(), &self.id);
        record.map_err(|source| ContainersError::Record { id: self.id.clone(), source })
    }

    /// Says that it runs, or is about to, and by which process.
    fn mark(&self) -> Result<(), ContainersError> {
        let (path, unfinished) = (self.containers.mark_path(&self.id), self.dir().join(MARK));
        fs::write(&unfinished, std::process::id().to_string()).map_err(io_error(&unfinished))?;
        // In one go: whoever reads it when it is taken over finds the one process or the other.
        fs::rename(&unfinished, &path).map_err(io_error(&path))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        match self.fate {
            Fate::PassedOn => {}
            Fate::Stays => self.containers.unmark(&self.id),
            // What cannot be removed now is the next command's.
            Fate::Goes => drop(self.containers.lock().and_then(|guard| self.containers.remove_under(&guard, &self.id))),
        }
    }
}

/// The lock of a container that nobody has.
pub(super) fn take(path: &Path) -> Result<Option<File>, ContainersError> {
    let lock = File::open(path).map_err(io_error(path))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(lock)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(io_error(path)(e.into())),
    }
}
