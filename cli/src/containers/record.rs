//! `record.json`: what is known of a container. Replaced as a whole: whoever reads it finds one state or the next.
//!
//! Its flags are kept as they were given, with what this host's directories and environment were to it filled in: so a
//! container that is started again gets what it was created with, whatever has become of the shell it came from.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use guest_protocol::Process;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Id;
use crate::args::Run;

/// The file's name.
pub const FILE: &str = "record.json";
/// What it is called until it is complete.
const UNFINISHED: &str = "record.json.new";
/// Version of its content.
const VERSION: u64 = 1;
/// Longest file that is believed. What the guest is told has a smaller limit.
const MAX: u64 = 4 << 20;
/// Most signals that are remembered.
const MOST_SIGNALS: usize = 8;
/// How a container ended that was lost: as by SIGKILL.
pub const KILLED: u8 = 137;
/// Exit code of one whose microVM was ended for a system call that no microVM makes: 128 and SIGSYS.
pub const FORBIDDEN: u8 = 159;

/// A container's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its name for ever.
    pub id: Id,
    /// When it was created, in nanoseconds since the epoch.
    pub created_ns: u64,
    /// Digest of its image's configuration.
    pub image_id: String,
    /// Those of the image, and those that were given.
    pub labels: BTreeMap<String, String>,
    /// What `run` or `create` was told.
    pub flags: Run,
    /// The process, with the image's wishes and the flags put together.
    pub process: Process,
    /// Asks the process to stop.
    pub stop_signal: u8,
    /// Where it is.
    pub state: State,
}

/// Where a container is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// In one word.
    pub status: Status,
    /// It runs, and stands still.
    pub paused: bool,
    /// It has ended, and whoever has it waits to start it again.
    pub restarting: bool,
    /// How often it was started again by itself since somebody started it.
    pub restarts: u32,
    /// Process that has it, if it runs, or waits.
    pub pid: u32,
    /// How it ended last: the process's own, or 125, 126, 127, 128 + signal.
    pub exit_code: u8,
    /// Of which kind its end was.
    pub cause: Cause,
    /// Signals that it was sent by others while it ran, the last ones.
    pub signals: Vec<u8>,
    /// The last lines of its guest's console, if its kernel crashed.
    pub console: Vec<String>,
    /// Why it ended, or did not start, if its process does not tell; one line for people.
    pub error: String,
    /// Which process the guest's kernel has killed for lack of memory last, in its words, if any.
    pub out_of_memory: String,
    /// When its process started last; 0: never.
    pub started_ns: u64,
    /// When it ended last; 0: never.
    pub finished_ns: u64,
}

/// What ended a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Its process ended, whoever wanted that.
    #[default]
    Process,
    /// Its microVM was ended by order, or by a signal to whoever had it.
    Ordered,
    /// Its guest's kernel crashed.
    Guest,
    /// The microVM's process was killed, or failed.
    MonitorKilled,
    /// The same, because the host had no memory left.
    HostOutOfMemory,
    /// The microVM's process did what its sandbox forbids.
    Forbidden,
    /// Whoever looked after it was killed.
    Lost,
    /// The host was restarted.
    HostRestarted,
    /// Bulkhead could not go on.
    Failed,
}

/// In one word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It has never run.
    #[default]
    Created,
    /// Its process runs.
    Running,
    /// Its process has ended.
    Exited,
}

impl State {
    /// Somebody has it: it runs, or is about to again.
    pub fn is_live(&self) -> bool {
        self.status == Status::Running || self.restarting
    }

    /// As docker says it.
    pub fn word(&self) -> &'static str {
        match self.status {
            _ if self.restarting => "restarting",
            _ if self.paused => "paused",
            status => status.word(),
        }
    }
}

impl Status {
    /// As docker says it.
    pub fn word(self) -> &'static str {
        match self {
            Status::Created => "created",
            Status::Running => "running",
            Status::Exited => "exited",
        }
    }
}

impl Record {
    /// What it was made from, as it was named.
    pub fn image(&self) -> &str {
        self.flags.image_and_command.first().map_or("", String::as_str)
    }

    /// Its process runs from now on, and this process has it.
    pub fn start(&mut self) {
        let pid = std::process::id();
        let restarts = self.state.restarts;
        self.state = State { status: Status::Running, pid, started_ns: now_ns(), restarts, ..State::default() };
    }

    /// It has ended, and this process is going to start it again.
    pub fn wait_for_restart(&mut self) {
        self.state.restarting = true;
        self.state.pid = std::process::id();
    }

    /// Nobody waits to start it again any more.
    pub fn restarts_no_more(&mut self) {
        self.state.restarting = false;
        self.state.pid = 0;
    }

    /// Its process has ended, or never started.
    pub fn end(&mut self, code: u8, cause: Cause, error: String) {
        let status = if self.state.status == Status::Created { Status::Created } else { Status::Exited };
        self.finish(status, code, cause, error);
    }

    /// It has been sent a signal.
    pub fn signalled(&mut self, signal: u8) {
        let signals = &mut self.state.signals;
        if signals.len() == MOST_SIGNALS {
            signals.remove(0);
        }
        signals.push(signal);
    }

    /// Whoever had it is gone without a word.
    pub fn lose(&mut self) {
        if self.state.restarting {
            self.restarts_no_more();
        }
        if self.state.status == Status::Running {
            let restarted = booted_ns().is_some_and(|booted| self.state.started_ns < booted);
            let (cause, error) = if restarted {
                (Cause::HostRestarted, "the host was restarted while it ran")
            } else {
                (Cause::Lost, "the process that looked after it was killed, and the microVM with it")
            };
            self.finish(Status::Exited, KILLED, cause, error.into());
        }
    }

    fn finish(&mut self, status: Status, code: u8, cause: Cause, error: String) {
        let finished_ns = if status == Status::Created { 0 } else { now_ns() };
        let state = std::mem::take(&mut self.state);
        self.state = State {
            status,
            paused: false,
            restarting: false,
            pid: 0,
            exit_code: code,
            cause,
            error,
            finished_ns,
            ..state
        };
    }

    /// The file's bytes.
    pub fn encode(&self) -> io::Result<Vec<u8>> {
        let mut value = serde_json::to_value(self)?;
        value["version"] = VERSION.into();
        Ok(serde_json::to_vec(&value)?)
    }

    /// The record that the file's bytes hold; `Err` says what is wrong with them.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Versioned {
            version: Option<Value>,
        }
        let Versioned { version } = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        match version.as_ref().and_then(Value::as_u64) {
            Some(VERSION) => {}
            Some(other) => return Err(format!("it has version {other}, this program reads {VERSION}")),
            None => return Err("it has no version".into()),
        }
        serde_json::from_slice(bytes).map_err(|e| e.to_string())
    }

    /// That of the container `id`, in its directory.
    pub fn read(dir: &Path, id: &Id) -> io::Result<Self> {
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(dir.join(FILE))?;
        let invalid = |problem: String| io::Error::new(io::ErrorKind::InvalidData, problem);
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(invalid("not a regular file".into()));
        }
        // As much as there is, and a byte to find its end by: `ps` reads that of each container there is.
        let mut bytes = Vec::with_capacity(usize::try_from(meta.len().min(MAX)).unwrap_or(0) + 1);
        file.take(MAX).read_to_end(&mut bytes)?;
        let record = Self::decode(&bytes).map_err(invalid)?;
        if record.id != *id {
            return Err(invalid(format!("it is that of container {}", record.id)));
        }
        Ok(record)
    }

    /// Replaces the one in a container's directory. `durable`: it is to outlive the host's next crash; what holds for a running
    /// container only does not, either.
    pub fn write(&self, dir: &Path, durable: bool) -> io::Result<()> {
        let unfinished = dir.join(UNFINISHED);
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        file.write_all(&self.encode()?)?;
        if durable {
            file.sync_all()?;
        }
        fs::rename(&unfinished, dir.join(FILE))?;
        if durable { File::open(dir)?.sync_all() } else { Ok(()) }
    }
}

/// When this host's kernel started, in nanoseconds since the epoch; by its wall clock, which may have been set since.
fn booted_ns() -> Option<u64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let seconds = stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<u64>().ok())?;
    seconds.checked_mul(1_000_000_000)
}

/// Now, in nanoseconds since the epoch.
pub fn now_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use guest_protocol::Found;
    use proptest::prelude::*;

    /// Of a container that has never run.
    pub fn record(id: &Id) -> Record {
        Record {
            id: id.clone(),
            created_ns: now_ns(),
            image_id: format!("sha256:{}", "0".repeat(64)),
            labels: BTreeMap::new(),
            flags: Run { image_and_command: vec!["debian".into()], ..Run::default() },
            process: Process {
                args: vec!["sh".into()],
                env: Vec::new(),
                cwd: "/".into(),
                user: String::new(),
                terminal: None,
                stdin: false,
                found: Found::default(),
            },
            stop_signal: 15,
            state: State::default(),
        }
    }

    #[test]
    fn it_reads_back_what_it_writes_and_no_other_version() {
        let (dir, id) = (tempfile::tempdir().unwrap(), Id::random().unwrap());
        let mut record = record(&id);
        for durable in [true, false] {
            record.write(dir.path(), durable).unwrap();
            assert_eq!(Record::read(dir.path(), &id).unwrap(), record);
            record.start();
        }
        assert!(Record::read(dir.path(), &Id::random().unwrap()).unwrap_err().to_string().contains(id.as_str()));
        let text = String::from_utf8(record.encode().unwrap()).unwrap();
        let other = text.replace("\"version\":1", "\"version\":2");
        assert!(Record::decode(other.as_bytes()).unwrap_err().contains("version 2"));
        assert!(
            Record::decode(text.replace("\"version\":1", "\"no\":1").as_bytes()).unwrap_err().contains("no version")
        );
        std::os::unix::fs::symlink(dir.path().join("x"), dir.path().join("y")).unwrap();
        fs::rename(dir.path().join("y"), dir.path().join(FILE)).unwrap();
        assert!(Record::read(dir.path(), &id).is_err());
    }

    #[test]
    fn what_never_ran_stays_created_and_what_did_has_ended() {
        let mut never = record(&Id::random().unwrap());
        never.end(127, Cause::Failed, "no such file".into());
        assert_eq!((never.state.status, never.state.exit_code, never.state.finished_ns), (Status::Created, 127, 0));
        never.lose();
        assert_eq!(never.state.status, Status::Created);
        let mut ran = never.clone();
        ran.start();
        assert_eq!((ran.state.pid, ran.state.error.as_str()), (std::process::id(), ""));
        let mut lost = ran.clone();
        ran.end(3, Cause::Process, String::new());
        assert_eq!((ran.state.status, ran.state.exit_code, ran.state.pid), (Status::Exited, 3, 0));
        assert!(ran.state.finished_ns >= ran.state.started_ns && ran.state.started_ns > 0);
        lost.lose();
        assert_eq!((lost.state.status, lost.state.exit_code), (Status::Exited, 137));
    }

    proptest! {
        #[test]
        fn no_bytes_are_more_than_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>(), with in any::<u8>()) {
            let _ = Record::decode(&bytes);
            bytes = record(&Id::try_from("0123456789abcdef".repeat(4)).unwrap()).encode().unwrap();
            let place = at.index(bytes.len());
            bytes[place] = with;
            if let Ok(record) = Record::decode(&bytes) {
                prop_assert_eq!(record.id.as_str().len(), 64);
            }
            let _ = Record::decode(&bytes[..place]);
        }
    }
}
