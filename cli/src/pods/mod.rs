//! Pods: microVMs that several containers share (docs/pods.md).
//!
//! A pod is kept as a container is, in a store of its own within the store: a record, a lock, a mark while it runs. Its main process only
//! waits; what it is made with are a container's flags, and [`Run::places`] besides. Its owner is a supervisor as a container's
//! ([`crate::supervisor`]), its members are containers with owners of their own.
//!
//! ```text
//! <store>/pods/containers/…      as <store>/containers (crate::containers)
//! <run>/<short id>/pod.json      what members are told of it, while it runs
//! <run>/<short id>/place-N       locked by whoever has that place, or tries to
//! ```
//!
//! - this file: which there are, and starting one;
//! - [`place`]: a member's place in one that runs;
//! - [`member`]: what a member may ask for, and what it is told.

pub mod member;
pub mod place;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use guest_protocol::{Found, MAX_PLACES, Process};
use serde_json::{Value, json};

use crate::args::{Publish, Run};
use crate::containers::record::{State, now_ns};
use crate::containers::{Containers, ContainersError, Entry, Held, Id, Record, Status};
use crate::paths;
use crate::supervisor;

/// Where they are, in the store.
const PODS: &str = "pods";
/// How many places one has that says nothing of them. Each costs a little when it boots.
pub const USUAL_PLACES: u8 = 4;
/// How long that may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// Between two looks at one that somebody else is starting, or ending.
const INTERVAL: Duration = Duration::from_millis(20);

/// Those of the store; their place is made if it is not there.
pub fn all() -> Result<Containers, ContainersError> {
    Containers::of(&paths::store().join(PODS))
}

/// The same, if there has ever been one.
pub fn existing() -> Option<Containers> {
    existing_in(&paths::store())
}

/// The same of another store.
pub fn existing_in(store: &Path) -> Option<Containers> {
    Containers::existing(&store.join(PODS))
}

/// The records of all that a store has of containers and pods.
///
/// # Errors
/// One cannot be read.
pub fn and_containers(store: &Path) -> Result<Vec<Entry>, ContainersError> {
    let both = [Containers::existing(store), existing_in(store)];
    let lists = both.into_iter().flatten().map(|containers| containers.list_all()).collect::<Result<Vec<_>, _>>()?;
    Ok(lists.into_iter().flatten().collect())
}

/// The pod that a word means.
///
/// # Errors
/// There is none.
pub fn find(word: &str) -> anyhow::Result<Entry> {
    let found = existing().map_or_else(|| Err(ContainersError::NotFound(word.into())), |pods| pods.find(word));
    found.map_err(|error| match error {
        ContainersError::NotFound(word) => anyhow!("no such pod: {word}; `bulkhead pod ls` lists those there are"),
        error => error.into(),
    })
}

/// What pods are called now, and which ports lead to them, read once for a list of containers.
#[derive(Debug, Default)]
pub struct Known(BTreeMap<String, (String, Vec<Publish>)>);

impl Known {
    /// Those of all pods, if any of these containers is in one.
    pub fn for_all(entries: &[Entry]) -> Self {
        let wanted = entries.iter().any(|entry| entry.record.flags.pod.is_some());
        let list = existing().filter(|_| wanted).and_then(|pods| pods.list().ok()).unwrap_or_default();
        let known = |entry: Entry| (entry.record.id.to_string(), (entry.name, entry.record.flags.publish));
        Known(list.into_iter().map(known).collect())
    }

    /// What the pod of a container is called, if it is in one; the beginning of its id, if there is no such pod any more.
    pub fn of(&self, record: &Record) -> Option<String> {
        let id = record.flags.pod.as_ref()?;
        Some(self.0.get(id).map_or_else(|| id.chars().take(12).collect(), |(name, _)| name.clone()))
    }

    /// The ports of the host that lead to a container: its own, or those of its pod, which are all its members'.
    pub fn ports<'a>(&'a self, record: &'a Record) -> &'a [Publish] {
        let pod = record.flags.pod.as_ref().and_then(|id| self.0.get(id));
        pod.map_or(&record.flags.publish, |(_, publish)| publish)
    }
}

/// The containers that are in one, running or not.
pub fn members(pod: &Id) -> Result<Vec<Entry>, ContainersError> {
    let Some(containers) = Containers::existing(&paths::store()) else { return Ok(Vec::new()) };
    let is_in = |entry: &Entry| entry.record.flags.pod.as_deref() == Some(pod.as_str());
    Ok(containers.list()?.into_iter().filter(is_in).collect())
}

/// Makes one that does not run; returns its id.
///
/// # Errors
/// Its name is taken, or none.
pub fn create(name: Option<&str>, mut flags: Run, labels: &[String]) -> anyhow::Result<Id> {
    flags.places = Some(flags.places.unwrap_or(USUAL_PLACES).clamp(1, MAX_PLACES));
    flags.rm = false;
    let label = |label: &String| {
        let (key, value) = label.split_once('=').unwrap_or((label, ""));
        (key.to_owned(), value.to_owned())
    };
    let labels = labels.iter().map(label).collect();
    let waits = Process {
        args: vec!["pod".into()],
        env: Vec::new(),
        cwd: "/".into(),
        user: String::new(),
        terminal: None,
        stdin: false,
        found: Found::default(),
    };
    let record = |id| Record {
        id,
        created_ns: now_ns(),
        image_id: String::new(),
        labels,
        flags,
        process: waits,
        stop_signal: 15,
        state: State::default(),
    };
    let made = all()?.create(name, record, |_, _| Ok(()));
    let (_, held, record) = made.map_err(|error| match error.downcast::<ContainersError>() {
        Ok(ContainersError::InUse { name, id }) => {
            anyhow!("the pod name \"{name}\" is already in use by pod {id}; remove that pod, or choose another name")
        }
        Ok(ContainersError::BadName(name)) => anyhow!(
            "invalid pod name ({name}): letters, digits, '_', '.' and '-', up to 63, the first a letter or digit"
        ),
        Ok(error) => error.into(),
        Err(error) => error,
    })?;
    held.stays();
    Ok(record.id)
}

/// One that runs.
#[derive(Debug, Clone)]
pub struct Running {
    /// What it is called.
    pub name: String,
    /// Its run directory.
    pub directory: PathBuf,
    /// How many containers it takes.
    pub places: u8,
}

/// Has one run, if it does not yet.
///
/// # Errors
/// There is none; its microVM does not start.
pub fn start(word: &str) -> anyhow::Result<Running> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let entry = find(word)?;
        let pods = all()?;
        let (id, name) = (entry.record.id, entry.name);
        if pods.is_held(&id)? {
            if entry.record.state.status == Status::Running {
                let directory = paths::run().join(id.short());
                return Ok(Running { name, directory, places: entry.record.flags.places.unwrap_or(0) });
            }
            // Somebody else starts it, or ends it, or removes it.
            if Instant::now() >= deadline {
                return Err(anyhow!("pod {name}: whoever has it neither starts nor ends it"));
            }
            std::thread::sleep(INTERVAL);
            continue;
        }
        if entry.record.state.status == Status::Running {
            // Whoever had it was killed.
            pods.sweep()?;
            continue;
        }
        match pods.take(id.as_str()) {
            Ok((_, held, _)) => launch(held).with_context(|| format!("pod {name}"))?,
            Err(ContainersError::Busy(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn launch(held: Held) -> anyhow::Result<()> {
    let mut waiting = supervisor::spawn(supervisor::POD_VERB, held, None)?;
    waiting.wait().map_err(|failure| failure.error.unwrap_or_else(|| anyhow!("its microVM did not start")))?;
    // It may end while this process goes on, and is to be nobody then.
    let wait = move || drop(waiting.ended());
    std::thread::Builder::new().name("pod-end".into()).spawn(wait).context("cannot start a thread")?;
    Ok(())
}

/// The disks of a pod's microVM: for each place one for layers and one for a writable layer, with nothing behind them yet.
pub fn drives(places: u8) -> Value {
    let pair = |place| [place::layers(place), place::upper(place)];
    (0..places)
        .flat_map(pair)
        .map(|(id, drive)| {
            let mut drive = drive;
            drive["drive_id"] = id.into();
            drive["is_root_device"] = json!(false);
            drive
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containers::record::tests::record;

    #[test]
    fn a_members_ports_are_its_pods() {
        let pod = Id::random().unwrap();
        let mut member = record(&Id::random().unwrap());
        let published = vec![crate::args::publish("8080:80").unwrap()];
        let known = Known([(pod.to_string(), ("web".to_owned(), published.clone()))].into());
        assert!(known.ports(&member).is_empty() && known.of(&member).is_none());
        member.flags.pod = Some(pod.to_string());
        assert_eq!((known.ports(&member), known.of(&member).as_deref()), (&published[..], Some("web")));
        assert!(Known::default().ports(&member).is_empty());
    }
}
