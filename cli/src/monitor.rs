//! The per-VM process, seen from its parent: `bulkhead-vmm` (or `bulkhead vmm`) started, told its configuration, listened to, ended.
//!
//! The child has a process group of its own, so that a terminal's ^C reaches this process alone, and it dies with this
//! one (`commands::vmm` arranges that). It is alone in a namespace of processes ([`vmm::birth`]). It does not know what the VM is for.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::FdFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, pidfd_send_signal};
use vmm::birth::{self, Born};
use vmm::events::{Counts, EVENTS_VERSION, Event, ExitReason, Phase};

use crate::args::vmm::SANDBOX_VARIABLE;
use crate::cgroup::{Grouping, Limits, NoQuota};
use crate::host_log;
use crate::paths;
use crate::snapshots::Snapshots;
use crate::templates;

/// Variable with the log filter, see `main`.
pub const LOG_VARIABLE: &str = "BULKHEAD_LOG";
/// Longest line of events that is believed.
const MAX_LINE: u64 = 64 << 10;
/// How much of the child's stderr is kept.
const MAX_STDERR: u64 = 16 << 10;

/// A per-VM process that cannot be had, or broke.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// It cannot be started.
    #[error("cannot {what}: {source}")]
    Start {
        /// What was tried.
        what: &'static str,
        /// The host's answer.
        source: io::Error,
    },
    /// The machine could not be built, or broke; its own words.
    #[error("{0}")]
    Machine(String),
    /// The process ended without a word about why.
    #[error("the microVM's process ended unexpectedly ({0})")]
    Lost(String),
    /// The host's kernel ended it.
    #[error("the microVM's process was killed because this host, or its control group, has no memory left")]
    OutOfMemory,
    /// The host does not limit it as it should.
    #[error("the sandbox lacks {0}; without --require-jail the microVM runs without that")]
    Unlimited(String),
    /// The host does not give it a part of a CPU.
    #[error(transparent)]
    NoQuota(#[from] NoQuota),
    /// Its sandbox ended it.
    #[error(
        "the microVM's process was ended for a system call that its sandbox forbids: a mistake of ours, or a guest that broke out of \
         its microVM; `dmesg` tells which call it was"
    )]
    Forbidden,
    /// The guest ended by itself, in a way that is none.
    #[error("{0}")]
    Guest(&'static str),
    /// It speaks another version.
    #[error("the microVM's process speaks version {0} of events, this program {EVENTS_VERSION}")]
    Version(u32),
}

fn start_error(what: &'static str) -> impl FnOnce(io::Error) -> MonitorError {
    move |source| MonitorError::Start { what, source }
}

/// Who has the child's stdin and stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Console {
    /// Nobody: the console is off or a log.
    None,
    /// The guest's serial port: stdin is a pipe for [`Monitor::take_stdin`], stdout this process's own.
    Stdio,
}

/// What the child told.
#[derive(Debug, Default)]
pub struct Report {
    /// When the guest's first instruction ran (CLOCK_MONOTONIC, ns).
    pub run_at: Option<u64>,
    /// How the machine ended.
    pub exit: Option<(ExitReason, Counts)>,
    failed: Option<String>,
    version: Option<u32>,
}

/// No microVM is to run where the host cannot give all of its sandbox.
static JAIL_REQUIRED: AtomicBool = AtomicBool::new(false);

/// Whether the microVM's process gets a variable of this one's: ours, and where programs are.
fn is_given(name: &OsStr) -> bool {
    name == "PATH" || name.as_encoded_bytes().starts_with(b"BULKHEAD_")
}

/// From now on this process starts microVMs only with all of the sandbox (`--require-jail`).
pub fn require_jail() {
    JAIL_REQUIRED.store(true, Ordering::Relaxed);
}

/// Whether the sandbox is to be all there, or no microVM. What is wrong with the variable, its own process says.
fn jail_is_required() -> bool {
    JAIL_REQUIRED.load(Ordering::Relaxed) || std::env::var_os(SANDBOX_VARIABLE).is_some_and(|word| word == "require")
}

/// The program of a microVM's process: `bulkhead-vmm` beside this one, or this one, which can do the same. Either takes
/// `vmm` as its first argument.
pub fn program() -> PathBuf {
    let this = Path::new("/proc/self/exe");
    let beside = fs::read_link(this).map(|path| path.with_file_name("bulkhead-vmm"));
    beside.ok().filter(|path| path.is_file()).unwrap_or_else(|| this.to_owned())
}

/// A running per-VM process. Dropping it ends it.
#[derive(Debug)]
pub struct Monitor {
    process: Born,
    stdin: Option<ChildStdin>,
    events: Option<JoinHandle<Report>>,
    /// Gets something when the guest's first instruction runs, and hangs up when it never will.
    runs: Receiver<()>,
    stderr: Option<JoinHandle<String>>,
    limits: Limits,
    /// Its group, once it is in it.
    group: RefCell<Grouping>,
}

impl Monitor {
    /// Starts the process with this configuration (JSON). To be called on the main thread: the child dies with the
    /// thread that starts it. It serves its control socket at `control`, in its run directory. With `verbose` its logs and errors go to
    /// our stderr. It gets a control group with `limits`: see [`Monitor::confined`].
    pub fn start(
        config: &str,
        console: Console,
        control: &Path,
        limits: Limits,
        verbose: bool,
    ) -> Result<Self, MonitorError> {
        let mut command = Command::new(program());
        command.arg0("bulkhead").args(["vmm", "--parent", &std::process::id().to_string()]).process_group(0);
        command.arg("--cpuid-cache").arg(paths::cpuid_cache());
        // What the user's environment has besides is nothing that a guest should find.
        command.env_clear().envs(std::env::vars_os().filter(|(name, _)| is_given(name)));
        command.arg("--api-sock").arg(control);
        for dir in reached(control) {
            command.arg("--files").arg(dir);
        }
        if JAIL_REQUIRED.load(Ordering::Relaxed) {
            command.env(SANDBOX_VARIABLE, "require");
        }
        if verbose {
            if std::env::var_os(LOG_VARIABLE).is_none() {
                command.env(LOG_VARIABLE, "info");
            }
            command.stderr(Stdio::inherit());
        }
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|error| start_error("make a pipe")(error.into()));
        let stderr = (!verbose).then(pipe).transpose()?.map(|(reader, writer)| {
            command.stderr(writer);
            reader
        });
        let (stdin_child, stdin) = pipe()?;
        command.stdin(stdin_child);
        // The other process's ends go with the command, or here.
        let (handed_on, stdin, config_pipe, events_pipe) = match console {
            Console::None => {
                let (events, events_child) = pipe()?;
                command.args(["--config-fd", "0"]).stdout(events_child);
                (None, None, stdin, events)
            }
            Console::Stdio => {
                let (config_child, config) = inherited_pipe(Side::Reader).map_err(start_error("make a pipe"))?;
                let (events_child, events) = inherited_pipe(Side::Writer).map_err(start_error("make a pipe"))?;
                let number = |fd: &OwnedFd| fd.as_raw_fd().to_string();
                command.args(["--config-fd", &number(&config_child), "--events-fd", &number(&events_child)]);
                command.stdout(Stdio::inherit());
                (Some([config_child, events_child]), Some(stdin.into()), config, events)
            }
        };
        let process = birth::spawn(command).map_err(start_error("start the microVM's process"))?;
        drop(handed_on);
        // The process is there: from here on it must not be lost on an error.
        let (on_run, runs) = channel();
        let group = RefCell::new(Grouping::default());
        let mut monitor = Monitor { process, stdin, events: None, runs, stderr: None, limits, group };
        let (run, pid) = (control.parent().unwrap_or(control).to_owned(), monitor.process.id());
        monitor.group = RefCell::new(Grouping::begin(run, pid, limits).map_err(start_error("start a thread"))?);
        let thread = start_error("start a thread");
        monitor.events = Some(spawn("events", move || read_events(File::from(events_pipe), &on_run)).map_err(thread)?);
        if let Some(stderr) = stderr {
            let thread = start_error("start a thread");
            monitor.stderr = Some(spawn("monitor-stderr", move || read_stderr(File::from(stderr))).map_err(thread)?);
        }
        match File::from(config_pipe).write_all(config.as_bytes()) {
            // It has ended before it read: what it says about that is the better error.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            other => other.map_err(start_error("configure the microVM's process"))?,
        }
        Ok(monitor)
    }

    /// Becomes readable when the process has ended.
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.process.pidfd()
    }

    /// Waits until the process is in its control group, and holds it to its quota. To be called before anything runs in its guest that is
    /// not ours.
    ///
    /// # Errors
    /// The host does not give it the limits that it must have.
    pub fn confined(&self) -> Result<(), MonitorError> {
        let mut grouping = self.group.borrow_mut();
        let group = grouping.wait();
        group.hold_to(self.limits.quota)?;
        match group.missing() {
            Some(missing) if jail_is_required() => Err(MonitorError::Unlimited(missing)),
            Some(missing) => {
                tracing::info!("the microVM's process lacks {missing}");
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Waits until the machine has been built and runs; says whether it did.
    pub fn runs(&self) -> bool {
        self.runs.recv().is_ok()
    }

    /// Waits for the process to end, no longer than `patience`; says whether it did.
    pub fn ends_within(&self, patience: Duration) -> bool {
        let timeout = Timespec {
            tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: patience.subsec_nanos().into(),
        };
        let mut fds = [PollFd::from_borrowed_fd(self.process.pidfd(), PollFlags::IN)];
        // Cut short by a signal it may say no too early, which costs nothing but a less telling error.
        matches!(poll(&mut fds, Some(&timeout)), Ok(1..))
    }

    /// Ends the process from any thread, through a copy of [`Monitor::ended`].
    pub fn kill_through(pidfd: BorrowedFd<'_>) {
        // Only a process that has ended already cannot be signalled.
        let _ = pidfd_send_signal(pidfd, Signal::KILL);
    }

    /// Where the serial port's input comes from, once, with [`Console::Stdio`].
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.stdin.take()
    }

    /// Ends the process, if it has not ended, and says what it told.
    pub fn stop(mut self) -> Report {
        self.process.kill();
        let _ = self.reap();
        self.collect().0
    }

    /// Waits for the process to end by itself, and says how the machine ended.
    pub fn wait(mut self) -> Result<Report, MonitorError> {
        let status = self.reap().map_err(start_error("wait for the microVM's process"))?;
        let (report, stderr) = self.collect();
        match judge(report, status, &stderr) {
            Err(MonitorError::Lost(_))
                if status.signal() == Some(Signal::KILL.as_raw()) && host_log::out_of_memory(self.process.id()) =>
            {
                Err(MonitorError::OutOfMemory)
            }
            other => other,
        }
    }

    /// Waits for its end. Its number is its own until then: whoever puts it into a group by that must have done so.
    fn reap(&mut self) -> io::Result<ExitStatus> {
        self.group.get_mut().wait();
        self.process.wait()
    }

    fn collect(&mut self) -> (Report, String) {
        let report = self.events.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        let stderr = self.stderr.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        (report, stderr)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // After a wait, there is nothing left to end.
        self.process.kill();
        let _ = self.reap();
        // One that cannot be removed now goes with the run directory.
        let _ = self.group.get_mut().wait().remove();
    }
}

/// The directories in which the process of a microVM with a control socket opens files while its guest runs: where the socket is,
/// and where snapshots and templates go. They are there from now on, if they can be: who needs one that is not says so.
fn reached(control: &Path) -> Vec<PathBuf> {
    let store = paths::store();
    let snapshots = Snapshots::of(&store).ok().map(|_| store.join(guest_images::SNAPSHOTS));
    control.parent().map(Path::to_owned).into_iter().chain(snapshots).chain(templates::directory(&store).ok()).collect()
}

/// Success is a machine that powered off or reset itself.
fn judge(report: Report, status: ExitStatus, stderr: &str) -> Result<Report, MonitorError> {
    if let Some(version) = report.version.filter(|&version| version != EVENTS_VERSION) {
        return Err(MonitorError::Version(version));
    }
    if let Some(message) = report.failed {
        return Err(MonitorError::Machine(message));
    }
    match report.exit {
        Some((ExitReason::PowerOff | ExitReason::Reset | ExitReason::Stopped, _)) => Ok(report),
        Some((ExitReason::Panic, _)) => Err(MonitorError::Guest("the guest kernel panicked")),
        Some((ExitReason::TripleFault, _)) => Err(MonitorError::Guest("the guest crashed (triple fault)")),
        None => {
            if status.signal() == Some(Signal::SYS.as_raw()) {
                return Err(MonitorError::Forbidden);
            }
            let last = stderr.lines().rev().find(|line| !line.trim().is_empty());
            let words =
                last.map_or_else(|| status.to_string(), |line| line.trim_start_matches("bulkhead: ").to_owned());
            Err(MonitorError::Lost(words))
        }
    }
}

#[derive(PartialEq, Eq)]
enum Side {
    Reader,
    Writer,
}

/// A pipe: the child's side, which a child inherits, and ours, which it does not.
fn inherited_pipe(childs: Side) -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    let (child, ours) = if childs == Side::Reader { (reader, writer) } else { (writer, reader) };
    rustix::io::fcntl_setfd(&child, FdFlags::empty())?;
    Ok((child, ours))
}

fn spawn<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
    std::thread::Builder::new().name(name.into()).spawn(work)
}

/// Reads events to their end. The child is ours, but a guest may have taken it over: lines are bounded, and what is no
/// event is skipped.
pub(crate) fn read_events(pipe: impl Read, on_run: &Sender<()>) -> Report {
    let mut report = Report::default();
    let mut pipe = BufReader::new(pipe);
    let mut line = Vec::new();
    loop {
        line.clear();
        match pipe.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return report,
            Ok(_) => {}
        }
        match serde_json::from_slice(&line) {
            Ok(Event::Hello { version }) => report.version = Some(version),
            Ok(Event::Phase { phase: Phase::Run, at_ns }) => {
                report.run_at = Some(at_ns);
                // Most do not want to know.
                let _ = on_run.send(());
            }
            Ok(Event::Phase { .. }) => {}
            Ok(Event::Exit { reason, counts, .. }) => report.exit = Some((reason, counts)),
            Ok(Event::Failed { message }) => report.failed = Some(message),
            Err(error) => tracing::debug!("not an event: {error}"),
        }
    }
}

/// The first part of what the child says on stderr; the rest is read and dropped, so that it never blocks.
fn read_stderr(mut pipe: impl Read) -> String {
    let mut kept = Vec::new();
    let _ = pipe.by_ref().take(MAX_STDERR).read_to_end(&mut kept);
    let _ = io::copy(&mut pipe, &mut io::sink());
    String::from_utf8_lossy(&kept).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(lines: &[&str]) -> Report {
        read_events(lines.join("\n").as_bytes(), &channel().0)
    }

    fn ended(report: Report) -> Result<Report, String> {
        judge(report, ExitStatus::from_raw(125 << 8), "noise\nbulkhead: stack overflow\n\n").map_err(|e| e.to_string())
    }

    #[test]
    fn events_tell_how_a_machine_ended() {
        let exit = r#"{"event":"exit","reason":"power-off","at_ns":9,"counts":{"pio":3}}"#;
        let run = r#"{"event":"phase","phase":"run","at_ns":7}"#;
        let report = ended(events(&[r#"{"event":"hello","version":1}"#, run, "garbage", exit])).unwrap();
        assert_eq!((report.run_at, report.exit.map(|(_, counts)| counts.pio)), (Some(7), Some(3)));
        let panic = exit.replace("power-off", "panic");
        assert_eq!(ended(events(&[&panic])).unwrap_err(), "the guest kernel panicked");
        let failed = r#"{"event":"failed","message":"kernel /x: no"}"#;
        assert_eq!(ended(events(&[failed])).unwrap_err(), "kernel /x: no");
        assert!(ended(events(&[r#"{"event":"hello","version":99}"#])).unwrap_err().contains("99"));
    }

    #[test]
    fn a_process_that_says_nothing_is_told_by_its_last_words() {
        assert!(ended(events(&[])).unwrap_err().contains("(stack overflow)"));
        let lost = judge(Report::default(), ExitStatus::from_raw(9), "").unwrap_err().to_string();
        assert!(lost.contains("signal: 9"), "{lost}");
        let lost = judge(Report::default(), ExitStatus::from_raw(Signal::SYS.as_raw()), "").unwrap_err().to_string();
        assert!(lost.contains("sandbox") && lost.contains("dmesg"), "{lost}");
    }

    #[test]
    fn endless_output_is_neither_kept_nor_blocking() {
        let endless = io::repeat(b'x').take(10 << 20);
        assert_eq!(read_stderr(endless).len() as u64, MAX_STDERR);
        assert!(read_events(io::repeat(b'x').take(1 << 20), &channel().0).exit.is_none());
    }
}
