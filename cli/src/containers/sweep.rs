//! What killed processes leave: containers that nobody has any more, and directories that have not become any, or were some.

use std::collections::HashMap;
use std::fs::{self, File};

use super::held::take;
use super::record::KILLED;
use super::{Containers, ContainersError, Id, Record, Status, io_error};
use crate::events;
use crate::oci;

impl Containers {
    /// Says of containers whose owners were killed that they have ended, or removes them, if that is what was to become of them.
    pub fn sweep(&self) -> Result<(), ContainersError> {
        let guard = self.lock()?;
        let names: HashMap<Id, String> = self.names()?.into_iter().map(|(name, id)| (id, name)).collect();
        for id in self.ids(".running")? {
            if let Err(error) = self.bury(&guard, &id, names.get(&id)) {
                tracing::warn!("{error}");
            }
        }
        for id in self.ids("")?.iter().filter(|id| !names.contains_key(id)) {
            let path = self.path(id);
            if take(&path)?.is_some() {
                tracing::info!("removing what is left of container {id}");
                oci::open_up(&path);
                fs::remove_dir_all(&path).map_err(io_error(&path))?;
            }
        }
        Ok(())
    }

    /// Sees to a container whose mark is there, if its owner is not. It is called `name`.
    fn bury(&self, guard: &File, id: &Id, name: Option<&String>) -> Result<(), ContainersError> {
        let path = self.path(id);
        if !path.exists() {
            self.unmark(id);
            return Ok(());
        }
        let Some(_lock) = take(&path)? else { return Ok(()) };
        let mut record =
            Record::read(&path, id).map_err(|source| ContainersError::Record { id: id.clone(), source })?;
        tracing::info!("whoever had container {id} is gone");
        if record.state.status == Status::Running {
            let name = name.map_or(id.short(), String::as_str);
            events::tell_of(self, &record, name, "die", &[("exitCode", KILLED.to_string())]);
        }
        oci::clear(&path, &record);
        if record.flags.rm {
            return self.remove_under(guard, id);
        }
        record.lose();
        record.write(&path, true).map_err(io_error(&path))?;
        self.unmark(id);
        Ok(())
    }

    /// The entries of a directory here that are ids.
    fn ids(&self, dir: &str) -> Result<Vec<Id>, ContainersError> {
        let dir = self.dir.join(dir);
        let entries = fs::read_dir(&dir).map_err(io_error(&dir))?;
        Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
    }
}
