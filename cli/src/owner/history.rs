//! Where a VM came from, and what the next snapshot of it comes after and can be a change to.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;

use super::Facts;
use crate::snapshots::record::MOST_ANCESTORS;
use crate::snapshots::{Held, Id, Record};

/// A VM's past.
#[derive(Debug)]
pub struct History {
    lineage: Id,
    /// The snapshot that it came from or made last; kept from being removed.
    parent: Option<Held>,
    /// The monitor has that one as its base.
    is_base: bool,
}

impl History {
    /// Of a VM that boots, or comes from a template.
    pub fn new() -> anyhow::Result<Self> {
        Ok(History { lineage: Id::random().context("cannot get random numbers")?, parent: None, is_base: false })
    }

    /// Of a VM that goes on from a snapshot.
    pub fn of(held: Held) -> Self {
        History { lineage: held.record.lineage, parent: Some(held), is_base: true }
    }

    /// What all its snapshots share.
    pub fn lineage(&self) -> Id {
        self.lineage
    }

    /// The snapshot that it came from or made last.
    pub fn parent(&self) -> Option<&Held> {
        self.parent.as_ref()
    }

    /// The snapshot that the next one can be a change to. It may not: then the next one holds all of the memory.
    pub fn base(&self) -> Option<Id> {
        let held = self.parent.as_ref().filter(|_| self.is_base)?;
        // It is held, so only somebody else than a store can have removed it.
        let usable = held.record.changes < vmm::snapshot::files::MOST_PARENTS && held.path().is_dir();
        usable.then_some(held.record.id)
    }

    /// The monitor's base may be another than is known here.
    pub fn lose_base(&mut self) {
        self.is_base = false;
    }

    /// The VM goes on from `held`: it has been made of it, or it was made from it.
    pub fn came_from(&mut self, held: Held) {
        self.parent = Some(held);
        self.is_base = true;
    }

    /// The record of the next snapshot, a change to `base`.
    pub fn record(&self, id: Id, base: Option<Id>, facts: &Facts) -> Record {
        let parent = self.parent.as_ref().map(|held| &held.record);
        let before = parent.into_iter().flat_map(|record| std::iter::once(&record.id).chain(&record.ancestors));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Record {
            id,
            ancestors: before.take(MOST_ANCESTORS).copied().collect(),
            base,
            changes: base.and(parent).map_or(0, |record| record.changes.saturating_add(1)),
            lineage: self.lineage,
            created_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
            vm: facts.name.clone(),
            vcpus: facts.vcpus,
            memory_mib: facts.memory_mib,
            what: facts.what.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshots::making::Wanted;
    use crate::snapshots::{Snapshots, What};

    fn facts() -> Facts {
        Facts {
            name: "web".into(),
            what: What::Machine { kernel: "/k".into() },
            vcpus: 1,
            memory_mib: 64,
            layers: vec![],
        }
    }

    fn take(snapshots: &Snapshots, history: &mut History) -> Record {
        let making = snapshots.begin().unwrap();
        std::fs::create_dir(making.path()).unwrap();
        let record = history.record(making.id(), history.base(), &facts());
        let (_, held) = making.finish(record, &Wanted::Numbered("web".into())).unwrap();
        history.came_from(held);
        history.parent().unwrap().record.clone()
    }

    #[test]
    fn each_snapshot_is_a_change_to_the_last_until_there_are_too_many() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::of(dir.path()).unwrap();
        let mut history = History::new().unwrap();
        let first = take(&snapshots, &mut history);
        assert_eq!((first.base, first.changes, first.ancestors.len()), (None, 0, 0));
        let mut last = first.clone();
        for changes in 1..=vmm::snapshot::files::MOST_PARENTS {
            let next = take(&snapshots, &mut history);
            assert_eq!((next.base, next.changes, next.ancestors[0]), (Some(last.id), changes, last.id));
            last = next;
        }
        let whole = take(&snapshots, &mut history);
        assert_eq!((whole.base, whole.changes, whole.ancestors.len()), (None, 0, last.ancestors.len() + 1));
        assert!(whole.lineage == first.lineage && *whole.ancestors.last().unwrap() == first.id);
        // A monitor that may have another base.
        history.lose_base();
        assert_eq!(take(&snapshots, &mut history).base, None);
        // A VM that goes on from the first.
        let restored = History::of(snapshots.find("web-1").unwrap());
        let record = restored.record(Id::random().unwrap(), restored.base(), &facts());
        assert_eq!((record.base, record.ancestors, record.lineage), (Some(first.id), vec![first.id], first.lineage));
    }
}
