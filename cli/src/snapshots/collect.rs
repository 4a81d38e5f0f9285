//! What goes and what stays.
//!
//! A snapshot stays if it has a name, if somebody holds it or makes it, or if one that stays is a change to it. If the
//! record of one that stays cannot be read, there is no telling what it needs, so nothing goes.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};

use rustix::fs::{FlockOperation, flock};

use super::{Id, Name, Record, Snapshots, SnapshotsError, io_error, sync};
use crate::paths::disk_bytes;

impl Snapshots {
    /// Takes their names away from all snapshots of each microVM but its newest `keep`, and removes what is not needed any more.
    /// Returns the names, the oldest first, and the bytes that this gives back. Warm images are not among them.
    pub fn prune(&self, keep: usize) -> Result<(Vec<Name>, u64), SnapshotsError> {
        let guard = self.lock()?;
        let mut newer: HashMap<(Id, String), usize> = HashMap::new();
        let mut gone = Vec::new();
        for entry in self.list()?.into_iter().rev().filter(|entry| !entry.name.is_warm()) {
            // A name can be another microVM's later.
            let of = newer.entry((entry.record.lineage, entry.record.vm)).or_default();
            *of += 1;
            if *of > keep {
                let path = self.name_path(&entry.name);
                fs::remove_file(&path).map_err(io_error(&path))?;
                gone.push(entry.name);
            }
        }
        sync(&self.dir.join(".names"))?;
        gone.reverse();
        Ok((gone, self.collect_under(&guard)?))
    }

    /// Removes what is not needed: snapshots that have lost their name, and what killed processes left. Returns the bytes
    /// that this gives back.
    pub fn collect(&self) -> Result<u64, SnapshotsError> {
        let guard = self.lock()?;
        self.collect_under(&guard)
    }

    /// `_lock` is the lock on removals.
    pub(super) fn collect_under(&self, _lock: &File) -> Result<u64, SnapshotsError> {
        vmm::snapshot::files::sweep(&self.dir);
        let names = self.names()?;
        for (name, _) in names.iter().filter(|(_, id)| !self.path(*id).is_dir()) {
            let path = self.name_path(name);
            fs::remove_file(&path).map_err(io_error(&path))?;
        }
        let being_made = self.sweep_making()?;
        let named: HashSet<Id> = names.into_iter().map(|(_, id)| id).collect();
        // Locked until they are gone, or it is known that they stay.
        let mut idle = HashMap::new();
        let mut needed: Vec<Id> = Vec::new();
        for id in self.ids()? {
            if being_made.contains(&id) {
                continue;
            }
            match if named.contains(&id) { None } else { self.take_idle(id) } {
                Some(lock) => drop(idle.insert(id, lock)),
                None => needed.push(id),
            }
        }
        if idle.is_empty() {
            return Ok(0);
        }
        while let Some(id) = needed.pop() {
            match Record::read(&self.path(id), id) {
                Ok(record) => needed.extend(record.base.filter(|base| idle.remove(base).is_some())),
                Err(source) => {
                    tracing::warn!("nothing is removed: {}", SnapshotsError::Record { id, source });
                    return Ok(0);
                }
            }
        }
        let mut freed = 0;
        for id in idle.keys() {
            let path = self.path(*id);
            freed += disk_bytes(&path);
            fs::remove_dir_all(&path).map_err(io_error(&path))?;
        }
        Ok(freed)
    }

    /// The lock of a snapshot that nobody holds.
    fn take_idle(&self, id: Id) -> Option<File> {
        let lock = File::open(self.path(id)).ok()?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).ok()?;
        Some(lock)
    }

    /// Those that somebody makes. The marks of who was killed meanwhile go.
    fn sweep_making(&self) -> Result<HashSet<Id>, SnapshotsError> {
        let mut being_made = HashSet::new();
        for entry in fs::read_dir(&self.dir).map_err(io_error(&self.dir))?.flatten() {
            let name = entry.file_name();
            let id = name.to_str().and_then(|name| name.strip_prefix('.')?.strip_suffix(".making")?.parse().ok());
            let Some(id) = id else { continue };
            let free = File::open(entry.path())
                .is_ok_and(|mark| flock(&mark, FlockOperation::NonBlockingLockExclusive).is_ok());
            if free {
                let _ = fs::remove_file(entry.path());
            } else {
                being_made.insert(id);
            }
        }
        Ok(being_made)
    }
}
