//! Monitor processes, started and timed.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use rustix::pipe::{PipeFlags, pipe_with};
use vmm::birth::{self, Born};
use vmm::events::{Event, Phase, monotonic_ns};

/// The phases of a monitor whose guest ends the machine at once, in order.
pub const PHASES: [&str; 5] = ["start", "build", "load", "guest", "exit"];

/// A benchmark that could not be run.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A process could not be started, or its pipes broke.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The host's answer.
        source: io::Error,
    },
    /// The machine did not end as it should.
    #[error("the microVM failed: {0}")]
    Machine(String),
    /// The program beside it did not run.
    #[error("{0}")]
    Container(String),
    /// It was told to stop.
    #[error("interrupted")]
    Interrupted,
    /// No samples were asked for.
    #[error("at least one run is needed")]
    NoRuns,
}

/// For `map_err`.
pub(crate) fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> BenchError {
    move |source| BenchError::Io { what, source }
}

/// The error that a monitor's last words are, if it has some.
pub(crate) fn words(error: BenchError, stderr: &[u8]) -> BenchError {
    let said = String::from_utf8_lossy(stderr);
    if said.trim().is_empty() { error } else { BenchError::Machine(said.trim().to_owned()) }
}

/// The monitor to measure.
#[derive(Debug, Clone, Copy)]
pub struct Monitor<'a> {
    /// The program.
    pub bulkhead: &'a Path,
    /// Where it keeps KVM's CPUID leaves, as every microVM gets it.
    pub cpuid_cache: &'a Path,
}

/// One machine's life.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Process start to process exit, as the parent sees it.
    pub total: Duration,
    /// Process start to the effect of the guest's first instructions, the end of the machine.
    pub guest: Duration,
    /// The parts of `total`, as in [`PHASES`].
    pub phases: [Duration; PHASES.len()],
}

/// A process with pipes to its streams, begun as each microVM's is.
#[derive(Debug)]
pub struct Child {
    born: Born,
    /// What it reads, until it is taken.
    pub stdin: Option<File>,
    /// What it says, likewise.
    pub stdout: Option<File>,
    /// Its errors.
    pub stderr: Option<File>,
}

impl Child {
    /// Starts a program.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(mut command: Command) -> io::Result<Self> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC);
        let ((reads, stdin), (stdout, says), (stderr, complains)) = (pipe()?, pipe()?, pipe()?);
        command.stdin(reads).stdout(says).stderr(complains);
        let born = birth::spawn(command)?;
        let ours = |end| Some(File::from(end));
        Ok(Child { born, stdin: ours(stdin), stdout: ours(stdout), stderr: ours(stderr) })
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.born.id()
    }

    /// Becomes readable when it has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.born.pidfd()
    }

    /// Whether it has ended.
    ///
    /// # Errors
    /// Somebody else has waited for it.
    pub fn has_ended(&mut self) -> io::Result<Option<std::process::ExitStatus>> {
        self.born.try_wait()
    }

    /// Ends it, without waiting.
    pub fn kill(&self) {
        self.born.kill();
    }

    /// Ends it, if it has not ended by itself, and waits.
    pub fn end(&mut self) {
        self.kill();
        let _ = self.born.wait();
    }

    /// All that it says from now on, and how it ends.
    ///
    /// # Errors
    /// Its pipes break.
    pub fn wait_with_output(mut self) -> io::Result<Output> {
        drop(self.stdin.take());
        let mut open = [self.stdout.take(), self.stderr.take()];
        let mut said = [Vec::new(), Vec::new()];
        let mut piece = [0; 4096];
        while open.iter().any(Option::is_some) {
            let places: Vec<usize> = (0..open.len()).filter(|&place| open[place].is_some()).collect();
            let fds = open.iter().flatten().map(|file| PollFd::new(file, PollFlags::IN));
            let mut fds: Vec<_> = fds.collect();
            retry_on_intr(|| poll(&mut fds, None))?;
            let ready: Vec<_> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            for (place, _) in places.into_iter().zip(ready).filter(|(_, ready)| *ready) {
                let Some(file) = &mut open[place] else { continue };
                match file.read(&mut piece)? {
                    0 => open[place] = None,
                    count => said[place].extend_from_slice(&piece[..count]),
                }
            }
        }
        let [stdout, stderr] = said;
        Ok(Output { status: self.born.wait()?, stdout, stderr })
    }
}

/// Starts a monitor, and gives it its configuration.
pub fn start(monitor: Monitor<'_>, config: &str) -> Result<Child, BenchError> {
    let mut command = Command::new(monitor.bulkhead);
    // A benchmark that is killed must not leave machines.
    command.args(["vmm", "--config-fd", "0", "--parent", &std::process::id().to_string()]);
    command.arg("--cpuid-cache").arg(monitor.cpuid_cache);
    let mut child = Child::start(command).map_err(io_error("start of the monitor"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(config.as_bytes()).map_err(io_error("configuration"))?;
    }
    Ok(child)
}

/// Runs one machine to its end.
pub fn sample(monitor: Monitor<'_>, config: &str) -> Result<Sample, BenchError> {
    let began = monotonic_ns();
    let output = start(monitor, config)?.wait_with_output().map_err(io_error("output of the monitor"))?;
    let ended = monotonic_ns();
    let events: Vec<Event> =
        output.stdout.split(|&b| b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let phase = |wanted| {
        events.iter().find_map(|event| match event {
            Event::Phase { phase, at_ns } if *phase == wanted => Some(*at_ns),
            _ => None,
        })
    };
    let exit = events.iter().find_map(|event| match event {
        Event::Exit { at_ns, .. } => Some(*at_ns),
        _ => None,
    });
    let (Some(build), Some(load), Some(run), Some(exit)) =
        (phase(Phase::Build), phase(Phase::Load), phase(Phase::Run), exit)
    else {
        return Err(BenchError::Machine(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    };
    let marks = [began, build, load, run, exit, ended];
    let between = |i: usize| Duration::from_nanos(marks[i + 1].saturating_sub(marks[i]));
    let guest = Duration::from_nanos(exit.saturating_sub(began));
    Ok(Sample { total: Duration::from_nanos(ended.saturating_sub(began)), guest, phases: std::array::from_fn(between) })
}

/// A process that does nothing, started the same way.
pub fn floor() -> Result<Duration, BenchError> {
    let began = Instant::now();
    let mut command = Command::new("true");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().and_then(std::process::Child::wait_with_output).map_err(io_error("start of 'true'"))?;
    Ok(began.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_says_all_that_it_has_to_say() {
        let mut command = Command::new("sh");
        // More than a pipe holds, first to one and then to the other.
        command.args(["-c", "head -c 200000 /dev/zero >&2; head -c 300000 /dev/zero; cat; exit 3"]);
        let mut child = Child::start(command).unwrap();
        child.stdin.take().unwrap().write_all(b"end").unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stderr.len(), output.stdout.len()), (Some(3), 200_000, 300_003));
        assert!(output.stdout.ends_with(b"\0end"));
    }
}
