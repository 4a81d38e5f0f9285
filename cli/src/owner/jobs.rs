//! The two orders that take a while: a snapshot of the VM, and another VM in its place.

use anyhow::{Context, anyhow};
use guest_images::{Keeper, Store};
use rustix::event::epoll;
use serde_json::{Value, json};

use super::{Job, Owner, refuse};
use crate::attend::server::Waiting;
use crate::control::Control;
use crate::paths;
use crate::plug;
use crate::session::Wish;
use crate::snapshots::making::Wanted;
use crate::snapshots::{Held, Name, Snapshots, What};
use crate::successor::{Step, Successor};

impl Owner {
    /// What a snapshot is to be called, if it can be.
    pub(super) fn wanted(&self, name: Option<String>) -> anyhow::Result<Wanted> {
        let Some(name) = name else { return Ok(Wanted::Numbered(self.facts.name.clone())) };
        let name: Name = name.parse()?;
        if name.is_warm() && matches!(self.facts.what, What::Machine { .. }) {
            return Err(anyhow!(
                "microVM '{}' has no image to make another of: it was booted, not run",
                self.facts.name
            ));
        }
        if Snapshots::existing(&paths::store()).is_some_and(|snapshots| snapshots.has(&name)) {
            return Err(crate::snapshots::SnapshotsError::InUse(name).into());
        }
        Ok(Wanted::Name(name))
    }

    /// Takes a snapshot of the VM, which stands still or does not mind.
    pub(super) fn take(&mut self, wanted: &Wanted) -> anyhow::Result<Value> {
        let store = paths::store();
        let making = Snapshots::of(&store)?.begin()?;
        let path = making.path();
        let path = path.to_str().ok_or_else(|| anyhow!("'{}': the path is not UTF-8", path.display()))?;
        let control = Control::at(&self.succession.control());
        let base = self.history.base();
        let kind = if base.is_some() { "Diff" } else { "Full" };
        let request = json!({ "snapshot_path": path, "snapshot_type": kind, "base_of_next": true });
        let record = self.history.record(making.id(), base, &self.facts);
        // Should it fail half-way, the monitor may have made it its base already.
        self.history.lose_base();
        control.call("PUT", "/snapshot/create", &request).context("snapshot")?;
        let report = control.call("GET", "/bulkhead/v1/metrics", &())?;
        if !self.facts.layers.is_empty() {
            Store::open(store)?.keep(Keeper::Snapshot(&making.id().to_string()), &self.facts.layers)?;
        }
        let (name, held) = making.finish(record, wanted)?;
        let id = held.record.id;
        self.history.came_from(held);
        let report = &report["last_snapshot"];
        Ok(json!({ "name": name.as_str(), "id": id, "kind": kind.to_lowercase(), "bytes": report["bytes"],
                   "pause_us": report["pause_us"] }))
    }

    /// A snapshot that the VM can be replaced by: everything that can be looked at before it is given up, is.
    fn target(&self, word: &str) -> anyhow::Result<Held> {
        let held = Snapshots::of(&paths::store())?.find(word)?;
        if held.record.lineage != self.history.lineage() {
            let vm = &self.facts.name;
            return Err(anyhow!(
                "snapshot '{word}' was taken of another microVM than '{vm}' or those it came from; `bulkhead restore` makes one of it"
            ));
        }
        vmm::snapshot::files::open(held.path())?;
        if !self.facts.layers.is_empty() {
            Store::open(paths::store())?.kept(Keeper::Snapshot(&held.record.id.to_string()))?;
        }
        Ok(held)
    }

    /// Starts what the VM may be replaced by.
    pub(super) fn try_out(&self, to: &str) -> anyhow::Result<Box<Successor>> {
        let successor = self.succession.start(self.target(to)?)?;
        let watched = epoll::add(&self.any, &successor, epoll::EventData::new_u64(0), epoll::EventFlags::IN);
        watched.context("cannot wait for the new microVM")?;
        Ok(successor)
    }

    /// Looks at a VM that is being tried out: whether it works, does not, or is still to be waited for.
    pub(super) fn judge(&mut self, successor: Box<Successor>, client: Waiting) -> Option<Wish> {
        match successor.step() {
            Ok(Step::Waits(successor)) => {
                self.job = Some(Job::Trial { successor, client });
                None
            }
            Ok(Step::Alive(successor)) => match self.exchange_networks(&successor) {
                Ok(()) => {
                    self.job = Some(Job::Rollback { successor: Some(successor), client });
                    Some(Wish::Leave)
                }
                Err(error) => refuse(client, &error),
            },
            Err(error) => refuse(client, &error),
        }
    }

    /// Gives a VM that works the networks of the one there is; or both have what they had.
    fn exchange_networks(&self, successor: &Successor) -> anyhow::Result<()> {
        let Some(section) = self.succession.interfaces() else { return Ok(()) };
        let (old, new) = (Control::at(&self.succession.control()), Control::at(&successor.control()));
        let exchange = || {
            plug::unplug(&old, section)?;
            // By the time of the answer it has let go of them.
            old.call("GET", "/", &())?;
            plug::plug(&new, section)
        };
        exchange().or_else(|error| {
            plug::unplug(&new, section).and_then(|()| plug::plug(&old, section)).context(format!(
                "the microVM has lost its network: the new one could not have it ({}), nor the old one again",
                error
            ))?;
            Err(anyhow::Error::from(error).context("network"))
        })
    }
}
