//! What happens to containers and images, in a journal that each verb writes: docker's events without a daemon to tell them.
//!
//! ```text
//! <store>/events/journal.json      one object a line, the last of it, up to 1 MiB; then it becomes
//! <store>/events/journal.json.1    which replaces the one before
//! ```
//!
//! A line is written with one write, at the file's end, under a lock on the file (flock), which changes of files are made under as
//! well. A journal that cannot be written costs events and nothing else.

pub mod reader;

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::containers::record::now_ns;
use crate::containers::{Containers, Record};

/// Version of a line; readers leave others out.
const VERSION: u64 = 1;
/// The file that is written to, and the older one.
const FILES: [&str; 2] = ["journal.json", "journal.json.1"];
/// A file gets no longer than this.
const MOST_BYTES: u64 = 1 << 20;
/// Longest line, its end included; what has longer labels goes without them.
const MOST_LINE: usize = 16 << 10;

/// Something that has happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    version: u64,
    /// `container` or `image`.
    pub kind: String,
    /// What: `start`, `die`, `pull`, …
    pub action: String,
    /// To whom.
    pub id: String,
    /// Its name, and what else is known.
    pub attributes: BTreeMap<String, String>,
    /// When, in nanoseconds since the epoch.
    pub at_ns: u64,
}

impl Event {
    fn new(kind: &str, action: &str, id: &str, attributes: BTreeMap<String, String>) -> Self {
        let (kind, action, id) = (kind.into(), action.into(), id.into());
        Event { version: VERSION, kind, action, id, attributes, at_ns: now_ns() }
    }

    /// Of a container that is called `name`, with more to say of it.
    pub fn of_container(record: &Record, name: &str, action: &str, more: &[(&str, String)]) -> Self {
        let mut attributes = record.labels.clone();
        attributes.insert("name".into(), name.into());
        attributes.insert("image".into(), record.image().into());
        attributes.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        let kind = if record.flags.places.is_some() { "pod" } else { "container" };
        Self::new(kind, action, record.id.as_str(), attributes)
    }

    /// Of an image.
    pub fn of_image(id: &str, name: &str, action: &str) -> Self {
        Self::new("image", action, id, [("name".to_owned(), name.to_owned())].into())
    }

    /// As docker's JSON has it.
    pub fn json(&self) -> Value {
        let mut value = json!({
            "Type": self.kind, "Action": self.action, "Actor": { "ID": self.id, "Attributes": self.attributes },
            "status": self.action, "id": self.id, "scope": "local", "time": self.at_ns / 1_000_000_000, "timeNano": self.at_ns,
        });
        if let Some(image) = self.attributes.get("image") {
            value["from"] = image.clone().into();
        }
        value
    }

    /// The line of the journal.
    fn line(mut self) -> io::Result<Vec<u8>> {
        let encode = |event: &Event| {
            serde_json::to_vec(event).map(|mut line| {
                line.push(b'\n');
                line
            })
        };
        let line = encode(&self)?;
        if line.len() <= MOST_LINE {
            return Ok(line);
        }
        let own = ["name", "image", "exitCode", "signal", "oldName"];
        self.attributes.retain(|key, _| own.contains(&key.as_str()));
        let line = encode(&self)?;
        if line.len() <= MOST_LINE { Ok(line) } else { Err(io::ErrorKind::FileTooLarge.into()) }
    }
}

/// The directory of a store's journal.
fn directory(store: &Path) -> PathBuf {
    store.join("events")
}

/// Writes that something has happened to a container of `containers`, which is called `name`.
pub fn tell_of(containers: &Containers, record: &Record, name: &str, action: &str, more: &[(&str, String)]) {
    // Pods have a place of their own within the store ([`crate::pods`]).
    let up = if record.flags.places.is_some() { 2 } else { 1 };
    if let Some(store) = containers.dir().ancestors().nth(up) {
        tell(store, Event::of_container(record, name, action, more));
    }
}

/// Writes it into a store's journal.
pub fn tell(store: &Path, event: Event) {
    if let Err(error) = append(&directory(store), event, MOST_BYTES) {
        tracing::warn!("events: {error}");
    }
}

fn append(dir: &Path, event: Event, most: u64) -> io::Result<()> {
    let line = event.line()?;
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    loop {
        let mut file = locked(dir)?;
        let bytes = file.metadata()?.len();
        if bytes == 0 || bytes + line.len() as u64 <= most {
            return file.write_all(&line);
        }
        // Whoever waits for the lock on the old one finds that it is no longer the one, and may fill the new one first.
        fs::rename(dir.join(FILES[0]), dir.join(FILES[1]))?;
    }
}

/// The file that is written to, locked.
fn locked(dir: &Path) -> io::Result<File> {
    let path = dir.join(FILES[0]);
    loop {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
        match flock(&file, FlockOperation::LockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let (this, there) = (file.metadata()?, path.metadata());
        if there.is_ok_and(|there| (there.dev(), there.ino()) == (this.dev(), this.ino())) {
            return Ok(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::reader::{Reader, Wanted};
    use super::*;

    fn event(number: usize) -> Event {
        Event::of_image(&format!("sha256:{number}"), "debian", "pull")
    }

    fn ids(store: &Path) -> Vec<String> {
        let mut ids = Vec::new();
        let mut reader = Reader::open(store, Wanted::default()).unwrap();
        reader
            .present(&mut |event| {
                ids.push(event.id.clone());
                Ok(())
            })
            .unwrap();
        ids
    }

    #[test]
    fn it_is_bounded_whole_and_in_order_whoever_writes() {
        // Some thirty lines, and one: while one writer changes files, others fill the new one.
        for most in [4000, 150] {
            let store = tempfile::tempdir().unwrap();
            let dir = directory(store.path());
            std::thread::scope(|scope| {
                for writer in 0..4 {
                    let dir = &dir;
                    scope.spawn(move || {
                        for number in 0..50 {
                            append(dir, event(writer * 100 + number), most).unwrap();
                            let written = fs::metadata(dir.join(FILES[0]));
                            assert!(!written.is_ok_and(|file| file.len() > most));
                        }
                    });
                }
            });
            assert!(fs::metadata(dir.join(FILES[1])).unwrap().len() <= most);
            let ids = ids(store.path());
            assert!(ids.len() > most as usize / 200 && ids.len() < 200, "{}", ids.len());
            for writer in 0..4 {
                let numbers: Vec<usize> = ids.iter().map(|id| id[7..].parse().unwrap()).collect();
                let own: Vec<_> = numbers.into_iter().filter(|number| number / 100 == writer).collect();
                assert!(own.is_sorted(), "{own:?}");
            }
        }
    }

    #[test]
    fn labels_that_are_too_long_are_left_out() {
        let mut record = crate::containers::record::tests::record(&crate::containers::Id::random().unwrap());
        record.labels.insert("big".into(), "x".repeat(MOST_LINE));
        record.labels.insert("name".into(), "not this".into());
        let line = Event::of_container(&record, "web", "die", &[("exitCode", "3".into())]).line().unwrap();
        let event: Event = serde_json::from_slice(&line).unwrap();
        assert_eq!(event.attributes["name"], "web");
        assert_eq!((event.attributes.len(), event.attributes["exitCode"].as_str()), (3, "3"));
        assert_eq!(event.json()["from"], "debian");
    }
}
