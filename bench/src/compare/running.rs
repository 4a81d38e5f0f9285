//! A process that is timed from outside: when it first said something, when it last did, and when it was gone.
//!
//! It has a process group of its own, so that ^C at a terminal reaches the benchmark alone, which then ends what it has started.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};

use crate::process::{BenchError, io_error};

/// What is kept of what a process says on stderr, bytes: enough for its last words.
const WORDS: usize = 64 << 10;
/// The same of stdout.
const ANSWER: usize = 1 << 20;
/// Lines of which the moments are kept; what says more is no measured thing of ours.
const LINES: usize = 10_000;

/// How long to wait for something, and what may break that off.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience<'a> {
    /// For one thing.
    pub limit: Duration,
    /// Readable: everything is to end.
    pub stop: BorrowedFd<'a>,
}

/// What a process is given to read.
pub(super) enum Input {
    /// Nothing at all.
    Nothing,
    /// This, and then its end.
    Bytes(Vec<u8>),
    /// This, and then nothing until [`Running::close_input`].
    Open(Vec<u8>),
    /// What comes out of there.
    From(OwnedFd),
}

/// A process that runs. Dropped, it is killed, with its process group.
pub(super) struct Running {
    child: Child,
    pidfd: OwnedFd,
    input: Option<ChildStdin>,
    began: Instant,
    /// Since when something is waited for that patience is for.
    since: Instant,
    seen: Seen,
    exited: Option<(Duration, ExitStatus)>,
}

/// What has been seen of it; moments are from its start on.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// First output.
    pub first: Option<Duration>,
    /// Last output so far.
    pub last: Option<Duration>,
    /// When each line of output had come.
    pub lines: Vec<Duration>,
    /// What it said, or the beginning of that.
    pub stdout: Vec<u8>,
    /// What it said on stderr, or the end of that.
    pub stderr: Vec<u8>,
}

/// What became of it.
#[derive(Debug)]
pub(super) struct Ended {
    /// What was seen.
    pub seen: Seen,
    /// Start to exit.
    pub took: Duration,
    /// Its exit.
    pub status: ExitStatus,
}

impl Ended {
    /// The moments, if it ended well.
    pub fn good(self, what: &str) -> Result<Self, BenchError> {
        if self.status.success() {
            return Ok(self);
        }
        let said = String::from_utf8_lossy(&self.seen.stderr);
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
        let how = match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (_, signal) => format!("signal {}", signal.unwrap_or(0)),
        };
        Err(BenchError::Container(format!("{what}: {how}: {}", last.trim())))
    }
}

impl Running {
    /// Starts it; the clock runs from just before.
    pub fn start(mut command: Command, input: Input) -> Result<Self, BenchError> {
        let (stdin, bytes, open) = match input {
            Input::Nothing => (Stdio::null(), Vec::new(), false),
            Input::From(other) => (other.into(), Vec::new(), false),
            Input::Bytes(bytes) => (Stdio::piped(), bytes, false),
            Input::Open(bytes) => (Stdio::piped(), bytes, true),
        };
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let began = Instant::now();
        let name = command.get_program().to_string_lossy().into_owned();
        let spawned = command.spawn();
        let mut child = spawned.map_err(|error| BenchError::Container(format!("start of '{name}': {error}")))?;
        let pidfd = match pidfd(&child) {
            Ok(pidfd) => pidfd,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
        };
        let stdin = child.stdin.take();
        let seen = Seen::default();
        let mut running = Running { child, pidfd, input: stdin, began, since: began, seen, exited: None };
        // Less than a pipe holds; who has ended already does not read it, and says why by its exit.
        if let Some(input) = &mut running.input {
            match input.write_all(&bytes) {
                Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(io_error("input")(error)),
                _ => {}
            }
        }
        if !open {
            running.input = None;
        }
        Ok(running)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has said so far.
    pub fn said(&self) -> &[u8] {
        &self.seen.stdout
    }

    /// An error that is its own last words, if it has some.
    pub fn words(&self, error: BenchError) -> BenchError {
        let said = String::from_utf8_lossy(&self.seen.stderr);
        match (error, said.lines().rev().find(|line| !line.trim().is_empty())) {
            (BenchError::Container(what), Some(last)) => BenchError::Container(format!("{what}: {}", last.trim())),
            (error, _) => error,
        }
    }

    /// A line to read, and then nothing more: from now on, it is waited for anew.
    pub fn close_input(&mut self) {
        self.since = Instant::now();
        // To a guest's terminal the end alone says nothing. Who has ended does not read it.
        if let Some(mut input) = self.input.take() {
            let _ = input.write_all(b"\n");
        }
    }

    /// Waits until it has said a line with that, and asks it to end (SIGTERM); or until it has ended.
    pub fn stop_after(&mut self, words: &str, patience: Patience<'_>) -> Result<(), BenchError> {
        let is_there = |said: &[u8]| said.windows(words.len()).any(|part| part == words.as_bytes());
        while !self
            .seen
            .stdout
            .split_inclusive(|byte| *byte == b'\n')
            .any(|line| line.ends_with(b"\n") && is_there(line))
        {
            if self.exited.is_some() {
                return Ok(());
            }
            self.step(patience)?;
        }
        // It is not waited for yet, so its id is its own.
        if let (None, Some(pid)) = (&self.exited, i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)) {
            kill_process(pid, Signal::TERM).map_err(|error| io_error("end of a process")(error.into()))?;
        }
        Ok(())
    }

    /// Waits until it has said so many lines, and tells when it had.
    pub fn line(&mut self, number: usize, patience: Patience<'_>) -> Result<Duration, BenchError> {
        while self.seen.lines.len() < number {
            if self.exited.is_some() && self.is_silent() {
                return Err(BenchError::Container("it ended before it had said what it should".into()));
            }
            self.step(patience)?;
        }
        Ok(self.seen.lines[number - 1])
    }

    /// Waits until nobody has its output any more, and tells when.
    pub fn closed(&mut self, patience: Patience<'_>) -> Result<Duration, BenchError> {
        while !self.is_silent() {
            self.step(patience)?;
        }
        Ok(self.began.elapsed())
    }

    /// Waits for its exit, but not for whoever else has its output, and tells when it was.
    pub fn exit(&mut self, patience: Patience<'_>) -> Result<Duration, BenchError> {
        loop {
            if let Some((took, _)) = self.exited {
                return Ok(took);
            }
            self.step(patience)?;
        }
    }

    /// Waits for its end.
    pub fn end(mut self, patience: Patience<'_>) -> Result<Ended, BenchError> {
        if let Err(error) = self.exit(patience) {
            return Err(self.words(error));
        }
        // What it had written before is there already.
        while !self.is_silent() && self.wait(Some(Duration::ZERO), patience)? {}
        let seen = std::mem::take(&mut self.seen);
        match self.exited {
            Some((took, status)) => Ok(Ended { seen, took, status }),
            None => Err(BenchError::NoRuns),
        }
    }

    fn is_silent(&self) -> bool {
        self.child.stdout.is_none() && self.child.stderr.is_none()
    }

    fn step(&mut self, patience: Patience<'_>) -> Result<(), BenchError> {
        match self.wait(None, patience)? {
            true => Ok(()),
            false => {
                let seconds = patience.limit.as_secs();
                Err(BenchError::Container(format!("nothing came of it within {seconds} s (--timeout)")))
            }
        }
    }

    /// Waits for something to happen, and takes it in; false: nothing has.
    fn wait(&mut self, limit: Option<Duration>, patience: Patience<'_>) -> Result<bool, BenchError> {
        let limit = limit.unwrap_or_else(|| patience.limit.saturating_sub(self.since.elapsed()));
        let streams = [self.child.stdout.as_ref().map(AsFd::as_fd), self.child.stderr.as_ref().map(AsFd::as_fd)];
        let exit = self.exited.is_none().then(|| self.pidfd.as_fd());
        let wanted = [streams[0], streams[1], exit, Some(patience.stop)];
        let mut fds: Vec<_> = wanted.iter().flatten().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        let timeout = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
        match poll(&mut fds, Some(&timeout)) {
            Err(Errno::INTR) => return Ok(true),
            Err(error) => return Err(io_error("poll")(error.into())),
            Ok(0) => return Ok(false),
            Ok(_) => {}
        }
        let now = self.began.elapsed();
        let mut happened = fds.iter().map(|fd| !fd.revents().is_empty());
        let [out, err, exit, stop] = wanted.map(|fd| fd.is_some() && happened.next().unwrap_or(false));
        if stop {
            return Err(BenchError::Interrupted);
        }
        if out {
            self.read_out(now)?;
        }
        if err {
            self.read_err()?;
        }
        if exit {
            self.exited = Some((now, self.child.wait().map_err(io_error("end of a process"))?));
        }
        Ok(true)
    }

    fn read_out(&mut self, now: Duration) -> Result<(), BenchError> {
        let mut buffer = [0; 1 << 16];
        let Some(stream) = &mut self.child.stdout else { return Ok(()) };
        match stream.read(&mut buffer).map_err(io_error("output of a process"))? {
            0 => self.child.stdout = None,
            count => {
                self.seen.first.get_or_insert(now);
                self.seen.last = Some(now);
                let ends = buffer[..count].iter().filter(|byte| **byte == b'\n').count();
                let kept = count.min(ANSWER - self.seen.stdout.len());
                self.seen.stdout.extend_from_slice(&buffer[..kept]);
                let left = LINES - self.seen.lines.len();
                self.seen.lines.extend(std::iter::repeat_n(now, ends.min(left)));
            }
        }
        Ok(())
    }

    fn read_err(&mut self) -> Result<(), BenchError> {
        let mut buffer = [0; 1 << 12];
        let Some(stream) = &mut self.child.stderr else { return Ok(()) };
        match stream.read(&mut buffer).map_err(io_error("output of a process"))? {
            0 => self.child.stderr = None,
            count => {
                self.seen.stderr.extend_from_slice(&buffer[..count]);
                let surplus = self.seen.stderr.len().saturating_sub(WORDS);
                self.seen.stderr.drain(..surplus);
            }
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.exited.is_none() {
            if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
                // It may have ended by itself.
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = self.child.wait();
        }
    }
}

/// Runs a command to its end, and gives its stdout.
pub(super) fn answer(command: Command, patience: Patience<'_>) -> Result<String, BenchError> {
    let name = command.get_program().to_string_lossy().into_owned();
    let ended = Running::start(command, Input::Nothing)?.end(patience)?.good(&name)?;
    Ok(String::from_utf8_lossy(&ended.seen.stdout).into_owned())
}

/// A descriptor that is readable when the process has ended.
fn pidfd(child: &Child) -> Result<OwnedFd, BenchError> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pidfd = pid.ok_or(Errno::SRCH).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
    pidfd.map_err(|error| io_error("watch of a process")(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    const LIMIT: Duration = Duration::from_secs(30);

    #[test]
    fn moments_are_seen_in_order() {
        let (stop, _other) = UnixStream::pair().unwrap();
        let patience = Patience { limit: LIMIT, stop: stop.as_fd() };
        let mut running =
            Running::start(shell("echo a; read x; echo $x; echo err >&2; exit 3"), Input::Open(vec![])).unwrap();
        let first = running.line(1, patience).unwrap();
        running.input.as_mut().unwrap().write_all(b"b\n").unwrap();
        let second = running.line(2, patience).unwrap();
        running.close_input();
        let ended = running.end(patience).unwrap();
        assert!(first < second && second <= ended.took && ended.seen.first == Some(first), "{ended:?}");
        assert_eq!((ended.seen.lines.len(), ended.status.code()), (2, Some(3)));
        let error = ended.good("sh").unwrap_err().to_string();
        assert!(error.contains("exit code 3") && error.contains("err"), "{error}");
    }

    #[test]
    fn what_is_waited_for_in_vain_ends() {
        let (stop, mut other) = UnixStream::pair().unwrap();
        let patience = Patience { limit: Duration::from_millis(50), stop: stop.as_fd() };
        let slow = Running::start(shell("read x"), Input::Open(vec![])).unwrap();
        assert!(slow.end(patience).unwrap_err().to_string().contains("--timeout"));
        let mut silent = Running::start(shell("exit 0"), Input::Nothing).unwrap();
        let long = Patience { limit: LIMIT, ..patience };
        assert!(silent.line(1, long).unwrap_err().to_string().contains("ended before"));
        other.write_all(b"x").unwrap();
        let stopped = Running::start(shell("read x"), Input::Open(vec![])).unwrap();
        assert!(matches!(stopped.end(long), Err(BenchError::Interrupted)));
    }

    #[test]
    fn what_others_keep_open_is_not_waited_for() {
        let (stop, _other) = UnixStream::pair().unwrap();
        let patience = Patience { limit: LIMIT, stop: stop.as_fd() };
        let mut running = Running::start(shell("echo a; sleep 600 & echo $! >&2; exit 0"), Input::Nothing).unwrap();
        running.exit(patience).unwrap();
        let ended = running.end(patience).unwrap();
        assert!(ended.took < LIMIT && ended.seen.lines.len() == 1);
        let sleeper: i32 = String::from_utf8_lossy(&ended.seen.stderr).trim().parse().unwrap();
        kill_process(Pid::from_raw(sleeper).unwrap(), Signal::KILL).unwrap();
    }

    #[test]
    fn a_tool_answers_or_says_why_not() {
        let (stop, _other) = UnixStream::pair().unwrap();
        let patience = Patience { limit: LIMIT, stop: stop.as_fd() };
        assert_eq!(answer(shell("echo hello"), patience).unwrap(), "hello\n");
        assert!(answer(shell("echo no >&2; exit 1"), patience).unwrap_err().to_string().contains("no"));
        assert!(answer(Command::new("/nonexistent"), patience).unwrap_err().to_string().contains("/nonexistent"));
    }
}
