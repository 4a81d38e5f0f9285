//! Whoever looks after a container that runs in the background: this program once more, in a session of its own.
//!
//! ```text
//! run -d, start:  make or take the container ─► spawn ─ lock as stdin, pipe as stdout ─► wait: its first line ─► id, or the error
//! run -it:        the same, with a connection as stderr on which it is attached to before its process runs (owner::First)
//! supervise:      new session, takes the container over, /dev/null ─► its life ─► says in the pipe how it started, ends with it
//! ```
//!
//! A container with a restart policy has several lives, one after the other, and waits in between ([`crate::restart`]); a signal ends the
//! waiting.
//!
//! It has the container's lock from the very start: whoever started it may be killed at any moment, and so may it. What it has
//! inherited is given up before anything else: it has no terminal and no descriptors but its own.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use guest_images::{Keeper, Store};
use guest_protocol::WindowSize;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, fstat};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use vmm::events::monotonic_ns;

use crate::args::Talk;
use crate::containers::{Containers, Held, Id, Record};
use crate::failure::{Failure, Outcome, one_line};
use crate::life::{Kept, Life};
use crate::logs::writer::Writer;
use crate::owner::{Attached, First};
use crate::paths;
use crate::pods;
use crate::restart::{self, Backoff, Policy};
use crate::session::Io;
use crate::signals::{Guard, Holding};

/// The verb that starts it, which is for no one else.
pub const VERB: &str = "supervise";
/// The same for a pod.
pub const POD_VERB: &str = "supervise-pod";
/// Longest first line.
const MAX_LINE: u64 = 64 << 10;

/// How a container has started.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Start {
    /// Its process runs.
    Started,
    /// It does not.
    Failed {
        /// Exit code that tells why.
        code: u8,
        /// One line.
        error: String,
    },
}

/// Where a supervisor says how its container has started, once.
#[derive(Debug)]
pub struct Report(File);

impl Report {
    /// Its process runs.
    pub fn started(self) {
        self.say(&Start::Started);
    }

    /// Its process does not run, and this is why.
    pub fn failed(self, failure: &Failure) {
        let error = failure.error.as_ref().map(one_line).unwrap_or_default();
        self.say(&Start::Failed { code: failure.code, error });
    }

    fn say(mut self, start: &Start) {
        // Whoever has started it may be gone.
        if let Ok(line) = serde_json::to_string(start) {
            let _ = self.0.write_all(format!("{line}\n").as_bytes());
        }
    }
}

/// A supervisor whose container is being started.
pub struct Waiting(Child);

/// Starts one for a container or a pod, as `verb` says, which is its own from now on. `first` is the other end of whoever wants it in front of them.
pub fn spawn(verb: &str, held: Held, first: Option<UnixStream>) -> anyhow::Result<Waiting> {
    let lock = held.share().context("cannot share the container's lock")?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("bulkhead").args([verb, held.id().as_str()]);
    // It works in no directory of the user's.
    command.current_dir("/").env("BULKHEAD_STORE", std::path::absolute(paths::store())?);
    command.env("BULKHEAD_RUN", std::path::absolute(paths::run())?);
    if let Some(cache) = std::env::var_os("BULKHEAD_CACHE").filter(|cache| !cache.is_empty()) {
        command.env("BULKHEAD_CACHE", std::path::absolute(cache)?);
    }
    command.stdin(Stdio::from(lock)).stdout(Stdio::piped());
    command.stderr(first.map_or_else(Stdio::null, |stream| Stdio::from(OwnedFd::from(stream))));
    let child = command.spawn().context("cannot start the container's supervisor")?;
    held.passed_on();
    Ok(Waiting(child))
}

impl Waiting {
    /// Waits for the container's process to run.
    pub fn wait(&mut self) -> Result<(), Failure> {
        let mut line = Vec::new();
        if let Some(pipe) = &mut self.0.stdout {
            BufReader::new(pipe).take(MAX_LINE).read_until(b'\n', &mut line)?;
        }
        match serde_json::from_slice(&line) {
            Ok(Start::Started) => Ok(()),
            Ok(Start::Failed { code, error }) if error.is_empty() => Err(Failure::silent(code)),
            Ok(Start::Failed { code, error }) => Err(Failure::with_code(code, anyhow!(error))),
            Err(_) => Err(anyhow!("the container's supervisor ended before the container ran").into()),
        }
    }

    /// Sends it a signal, which ends it unless the container runs.
    pub fn interrupt(&self, signal: u8) {
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw);
        if let (Some(pid), Some(signal)) = (pid, Signal::from_named_raw(i32::from(signal))) {
            // It has not been waited for: the number is its own.
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits for its end: then nothing is left of the container but what stays.
    pub fn ended(mut self) -> std::io::Result<()> {
        self.0.wait().map(drop)
    }
}

/// Looks after the container `id`, or the pod, as `verb` says, whose lock is on stdin, until its end. The first thing that its process does.
pub fn supervise(verb: &str, id: &str) -> Outcome {
    let began = monotonic_ns();
    // A process that leads a group already, which none does that was started as above, has its session.
    let _ = rustix::process::setsid();
    let (lock, pipe, first) = take_streams().context("supervisor: standard streams")?;
    let report = Report(pipe);
    match live(verb == POD_VERB, id, lock, first, report, began) {
        Ok(code) => Ok(code),
        // Nobody would read it: it is in the record, and has been said to whoever waits.
        Err(failure) => Err(Failure::silent(failure.code)),
    }
}

/// What came as stdin, stdout and, if it is a connection, stderr, which are /dev/null from now on.
fn take_streams() -> std::io::Result<(File, File, Option<First>)> {
    let lock = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let pipe = File::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    let stderr = std::io::stderr().as_fd().try_clone_to_owned()?;
    let connected = FileType::from_raw_mode(fstat(&stderr)?.st_mode) == FileType::Socket;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    let first = connected.then(|| First::take(UnixStream::from(stderr))).transpose()?;
    Ok((lock, pipe, first))
}

fn live(pod: bool, id: &str, lock: File, first: Option<First>, report: Report, began: u64) -> Outcome {
    let guard: Guard<Kept> = Guard::new().context("cannot wait for signals")?;
    let holding = guard.hold();
    let take = || {
        let id: Id = id.parse().map_err(|()| anyhow!("'{id}' is not an id of a container"))?;
        let store = Store::open(paths::store())?;
        let containers = if pod { pods::all() } else { Containers::of(store.dir()) };
        let (held, mut record) = containers?.take_over(&id, lock)?;
        record.state.restarts = 0;
        anyhow::Ok((held, record))
    };
    let (held, record) = match take() {
        Ok(taken) => taken,
        Err(error) => {
            let failure = error.into();
            report.failed(&failure);
            return Err(failure);
        }
    };
    // Whoever has it in front of them waits for its end.
    if record.flags.restart == Policy::No || first.is_some() {
        return one_life(&guard, holding, held, record, first, Some(report), began);
    }
    let lent = held.lend().context("cannot share the container's lock")?;
    let outcome = one_life(&guard, holding, lent, record, None, Some(report), began);
    drop(guard);
    again_and_again(&held, outcome)
}

/// Starts the container again for as long as its policy says so. It is this process's meanwhile, and says that it waits.
fn again_and_again(held: &Held, mut outcome: Outcome) -> Outcome {
    let mut backoff = Backoff::default();
    loop {
        let mut record = held.record()?;
        if !restart::is_due(&record) {
            return outcome;
        }
        let ran = record.state.finished_ns.saturating_sub(record.state.started_ns);
        let interruption = Interruption::new().context("cannot wait for signals")?;
        record.wait_for_restart();
        record.write(&held.dir(), false).context("the container's record")?;
        if interruption.comes_within(backoff.next(Duration::from_nanos(ran)))? {
            // What it is to become may have changed meanwhile.
            let mut record = held.record()?;
            record.restarts_no_more();
            record.write(&held.dir(), true).context("the container's record")?;
            return outcome;
        }
        let guard: Guard<Kept> = Guard::new().context("cannot wait for signals")?;
        drop(interruption);
        let holding = guard.hold();
        let mut record = held.record()?;
        record.restarts_no_more();
        record.state.restarts += 1;
        let lent = held.lend().context("cannot share the container's lock")?;
        outcome = one_life(&guard, holding, lent, record, None, None, monotonic_ns());
    }
}

/// A signal that ends programs, waited for. Each is noticed from the moment on that this is made.
struct Interruption {
    receiver: UnixStream,
    ids: Vec<signal_hook::SigId>,
}

impl Interruption {
    fn new() -> std::io::Result<Self> {
        let (receiver, sender) = UnixStream::pair()?;
        let register = |signal| signal_hook::low_level::pipe::register(signal, sender.try_clone()?);
        let ids = [SIGHUP, SIGINT, SIGQUIT, SIGTERM].into_iter().map(register).collect::<Result<_, _>>()?;
        Ok(Interruption { receiver, ids })
    }

    fn comes_within(&self, patience: Duration) -> std::io::Result<bool> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            match poll(&mut [PollFd::new(&self.receiver, PollFlags::IN)], Some(&left)) {
                Ok(count) => return Ok(count != 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Drop for Interruption {
    fn drop(&mut self) {
        for id in self.ids.drain(..) {
            signal_hook::low_level::unregister(id);
        }
    }
}

fn one_life(
    guard: &Guard<Kept>,
    holding: Holding<'_, Kept>,
    held: Held,
    record: Record,
    first: Option<First>,
    report: Option<Report>,
    began: u64,
) -> Outcome {
    let id = record.id.clone();
    let begin = || {
        let store = Store::open(paths::store())?;
        let is_pod = record.flags.places.is_some();
        let containers = if is_pod { pods::all() } else { Containers::of(store.dir()) };
        let name = containers?.name_of(&id).unwrap_or_else(|| id.short().to_owned());
        let (layers, keys) = if is_pod {
            (Vec::new(), Vec::new())
        } else {
            let kept = store.kept(Keeper::Container(id.as_str()))?;
            let kept = kept.ok_or_else(|| anyhow!("container {name}: it has no list of layers"))?;
            (kept.layers, kept.keys)
        };
        let log = Arc::new(Writer::open(&held.dir()).context("log")?);
        let (mut io, input) = Io::nobody(record.flags.interactive, record.flags.tty)?;
        let size = first.as_ref().and_then(|first| first.attach.terminal);
        io.size = size.map(|size| WindowSize { rows: size.rows, columns: size.columns });
        let attached = Attached::new(Some(log), input, record.flags.tty, first);
        anyhow::Ok((name, layers, keys, io, attached))
    };
    let (name, layers, keys, io, attached) = match begin() {
        Ok(begun) => begun,
        Err(error) => {
            let failure = error.into();
            report.into_iter().for_each(|report| report.failed(&failure));
            return Err(failure);
        }
    };
    let times = [began, monotonic_ns()];
    let talk = Talk::default();
    let life = Life { name, record, layers, keys, io, attached, report, changes: None, talk, times };
    life.live(guard, holding, held)
}
