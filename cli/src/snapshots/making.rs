//! A new snapshot: its place first, then its machine's state and memory, then its record, and its name last. Until it has
//! that it is rubbish as soon as its maker is gone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::record::FILE;
use super::{Held, Id, Name, Record, Snapshots, SnapshotsError, io_error, open_lock, sync};

/// One that is being made. Dropping it removes what there is of it.
#[derive(Debug)]
pub struct Making {
    snapshots: Snapshots,
    id: Id,
    mark: PathBuf,
    _lock: File,
    finished: bool,
}

/// What a new one is to be called.
#[derive(Debug, Clone)]
pub enum Wanted {
    /// This.
    Name(Name),
    /// The VM's name and a number.
    Numbered(String),
}

impl Snapshots {
    /// Starts one.
    pub fn begin(&self) -> Result<Making, SnapshotsError> {
        let _guard = self.lock()?;
        let id = Id::random().map_err(io_error(&self.dir))?;
        let mark = self.dir.join(format!(".{id}.making"));
        let lock = open_lock(&mark).map_err(io_error(&mark))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|e| io_error(&mark)(e.into()))?;
        Ok(Making { snapshots: self.clone(), id, mark, _lock: lock, finished: false })
    }
}

impl Making {
    /// What it will be called on disk.
    pub fn id(&self) -> Id {
        self.id
    }

    /// Where its machine is to be saved: a directory that is not there yet.
    pub fn path(&self) -> PathBuf {
        self.snapshots.path(self.id)
    }

    /// Gives it its record, then its name; returns that and the snapshot, held. The machine has been saved.
    pub fn finish(mut self, record: Record, wanted: &Wanted) -> Result<(Name, Held), SnapshotsError> {
        let path = self.path();
        let bytes = record.encode().map_err(io_error(&path))?;
        write(&path.join(FILE), &bytes)?;
        sync(&path)?;
        let _guard = self.snapshots.lock()?;
        let held = self.snapshots.hold(self.id)?;
        let name = self.christen(wanted)?;
        self.finished = true;
        sync(&self.snapshots.dir.join(".names"))?;
        Ok((name, held))
    }

    fn christen(&self, wanted: &Wanted) -> Result<Name, SnapshotsError> {
        let call = |name: &Name| std::os::unix::fs::symlink(self.id.to_string(), self.snapshots.name_path(name));
        let taken = |e: &io::Error| e.kind() == io::ErrorKind::AlreadyExists;
        match wanted {
            Wanted::Name(name) => match call(name) {
                Ok(()) => Ok(name.clone()),
                Err(e) if taken(&e) => Err(SnapshotsError::InUse(name.clone())),
                Err(e) => Err(io_error(&self.snapshots.name_path(name))(e)),
            },
            Wanted::Numbered(vm) => {
                let mut number = 1;
                loop {
                    let name = Name::numbered(vm, number)?;
                    match call(&name) {
                        Ok(()) => return Ok(name),
                        Err(e) if taken(&e) => number += 1,
                        Err(e) => return Err(io_error(&self.snapshots.name_path(&name))(e)),
                    }
                }
            }
        }
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_dir_all(self.path());
        }
        // While it is still locked: a sweep that finds it has not been given the chance to take it for a dead one's.
        let _ = fs::remove_file(&self.mark);
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), SnapshotsError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all())).map_err(io_error(path))
}
