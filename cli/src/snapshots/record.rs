//! `bulkhead.json`: what is known of a snapshot beside the state of its machine. As untrusted as the state: it is bounded, a
//! version comes before all else, and nothing in it is used as a path.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::name::Id;
use crate::cgroup::Limits;
use crate::size::Cpus;

/// The file's name.
pub const FILE: &str = "bulkhead.json";
/// Version of its content.
const VERSION: u64 = 1;
/// Longest file that is believed.
const MAX: u64 = 256 << 10;
/// Bytes of a command that are kept.
const MOST_COMMAND: usize = 4 << 10;
/// Most of those before it that a snapshot names.
pub const MOST_ANCESTORS: usize = 256;

/// A snapshot's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Its name for ever.
    pub id: Id,
    /// Those that its VM came from or made before, the last first.
    pub ancestors: Vec<Id>,
    /// The one that its memory is a change to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Id>,
    /// Of how many changes, one to the other, its memory is made up.
    pub changes: usize,
    /// Shared by all snapshots of a VM and of the VMs that came from those: any of these can be rolled back to any of them.
    pub lineage: Id,
    /// When it was taken, in nanoseconds since the epoch.
    pub created_ns: u64,
    /// Name of the VM.
    pub vm: String,
    /// Number of its vCPUs.
    pub vcpus: u8,
    /// Its memory.
    pub memory_mib: u64,
    /// What the VM is.
    pub what: What,
}

/// What a VM is, as far as whoever has it must know to go on with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum What {
    /// Of `run`.
    Container {
        /// The image, as it was named.
        image: String,
        /// The process, as far as people want to see it.
        command: Vec<String>,
        /// It has a terminal.
        terminal: bool,
        /// Its input was connected.
        stdin: bool,
        /// The host name that was asked for; the VM's name otherwise.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hostname: Option<String>,
    },
    /// Of `boot`.
    Machine {
        /// The kernel's file.
        kernel: String,
    },
}

impl What {
    /// A command as others are told it: its first 4 KiB.
    pub fn shown(command: &[String]) -> Vec<String> {
        let mut left = MOST_COMMAND;
        let mut shown = Vec::new();
        for word in command {
            // Empty words count, too.
            let cut = (0..=left.min(word.len())).rev().find(|at| word.is_char_boundary(*at)).unwrap_or(0);
            left = left.saturating_sub(word.len() + 1);
            shown.push(word[..cut].to_owned());
            if left == 0 {
                shown.push("…".into());
                break;
            }
        }
        shown
    }

    /// What it was made from, for people.
    pub fn source(&self) -> &str {
        match self {
            What::Container { image, .. } => image,
            What::Machine { kernel } => kernel,
        }
    }
}

impl Record {
    /// What a VM that goes on from it may take of the host, with this part of its vCPUs' time.
    pub fn limits(&self, quota: Option<Cpus>) -> Limits {
        Limits { vcpus: self.vcpus, memory_mib: self.memory_mib, quota }
    }

    /// The file's bytes.
    pub fn encode(&self) -> io::Result<Vec<u8>> {
        let mut value = serde_json::to_value(self)?;
        value["version"] = VERSION.into();
        Ok(serde_json::to_vec_pretty(&value)?)
    }

    /// The record that the file's bytes hold; `Err` says what is wrong with them.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let mut value: Value = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        let version = value.as_object_mut().and_then(|object| object.remove("version"));
        match version.as_ref().and_then(Value::as_u64) {
            Some(VERSION) => {}
            Some(other) => return Err(format!("it has version {other}, this program reads {VERSION}")),
            None => return Err("it has no version".into()),
        }
        let record: Record = serde_json::from_value(value).map_err(|e| e.to_string())?;
        if record.ancestors.len() > MOST_ANCESTORS {
            return Err(format!("it names more than {MOST_ANCESTORS} before it"));
        }
        Ok(record)
    }

    /// That of the snapshot `id`, in its directory.
    pub fn read(dir: &Path, id: Id) -> io::Result<Self> {
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(dir.join(FILE))?;
        let invalid = |problem: String| io::Error::new(io::ErrorKind::InvalidData, problem);
        if !file.metadata()?.is_file() {
            return Err(invalid("not a regular file".into()));
        }
        let mut bytes = Vec::new();
        file.take(MAX).read_to_end(&mut bytes)?;
        let record = Self::decode(&bytes).map_err(invalid)?;
        if record.id != id {
            return Err(invalid(format!("it is that of snapshot {}", record.id)));
        }
        Ok(record)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub fn record(id: Id, ancestors: &[Id]) -> Record {
        Record {
            id,
            ancestors: ancestors.to_vec(),
            base: None,
            changes: 0,
            lineage: id,
            created_ns: 1,
            vm: "web".into(),
            vcpus: 1,
            memory_mib: 256,
            what: What::Container {
                image: "debian".into(),
                command: vec!["sh".into()],
                terminal: false,
                stdin: false,
                hostname: None,
            },
        }
    }

    #[test]
    fn it_reads_back_what_it_writes_and_no_other_version() {
        let id = Id::random().unwrap();
        for what in [record(id, &[]).what, What::Machine { kernel: "/k".into() }] {
            let record = Record { what, base: Some(id), ..record(id, &[id]) };
            let bytes = record.encode().unwrap();
            assert_eq!(Record::decode(&bytes), Ok(record));
            let text = String::from_utf8(bytes).unwrap();
            assert!(
                Record::decode(text.replace("\"version\": 1", "\"version\": 2").as_bytes())
                    .unwrap_err()
                    .contains("version 2")
            );
            assert!(Record::decode(text.replace("\"version\": 1,", "").as_bytes()).is_err());
            assert!(Record::decode(text.replace("\"vm\"", "\"vn\"").as_bytes()).is_err());
        }
        let many = record(id, &[id; MOST_ANCESTORS + 1]).encode().unwrap();
        assert!(Record::decode(&many).unwrap_err().contains("256"));
    }

    #[test]
    fn a_long_command_is_cut() {
        let words = |list: &[&str]| list.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        assert_eq!(What::shown(&words(&["sh", "-c", ""])), ["sh", "-c", ""]);
        let long = What::shown(&[vec!["ä".repeat(1 << 20)], words(&["b"])].concat());
        assert_eq!((long.len(), long[0].len(), long[1].as_str()), (2, MOST_COMMAND, "…"));
        assert!(What::shown(&vec![String::new(); 1 << 20]).len() <= MOST_COMMAND + 1);
        // As large as one gets, it is read back.
        let id = Id::random().unwrap();
        let mut record = record(id, &[id; MOST_ANCESTORS]);
        let command = What::shown(&vec!["\u{1}".repeat(3); 1 << 20]);
        record.what = What::Container {
            image: "x".repeat(4096),
            command,
            terminal: true,
            stdin: true,
            hostname: Some("h".repeat(64)),
        };
        assert!((record.encode().unwrap().len() as u64) < MAX);
    }

    #[test]
    fn a_record_of_another_or_no_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (id, other) = (Id::random().unwrap(), Id::random().unwrap());
        std::fs::write(dir.path().join(FILE), record(id, &[]).encode().unwrap()).unwrap();
        assert_eq!(Record::read(dir.path(), id).unwrap(), record(id, &[]));
        assert!(Record::read(dir.path(), other).unwrap_err().to_string().contains(&id.to_string()));
        std::fs::rename(dir.path().join(FILE), dir.path().join("x")).unwrap();
        std::os::unix::fs::symlink("x", dir.path().join(FILE)).unwrap();
        assert!(Record::read(dir.path(), id).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_are_more_than_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>(), with in any::<u8>()) {
            let _ = Record::decode(&bytes);
            bytes = record(Id::try_from("0123456789abcdef".to_owned()).unwrap(), &[]).encode().unwrap();
            let place = at.index(bytes.len());
            bytes[place] = with;
            // Whatever has become of it: ids are ids.
            if let Ok(record) = Record::decode(&bytes) {
                prop_assert_eq!(record.id.to_string().len(), 16);
            }
            let _ = Record::decode(&bytes[..place]);
        }
    }
}
