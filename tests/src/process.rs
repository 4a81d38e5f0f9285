//! A program under test: its output collected, its end awaited without polling and never for ever.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::evidence;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// What it wrote.
    pub stdout: Vec<u8>,
    /// What it wrote, as text.
    pub stderr: String,
}

impl Ended {
    /// stdout as text.
    ///
    /// # Panics
    /// It is not UTF-8.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("text on stdout")
    }

    /// The program failed as Bulkhead does: this code, nothing on stdout, one line on stderr, which holds `words`.
    ///
    /// # Panics
    /// It did otherwise.
    pub fn assert_failed(&self, code: i32, words: &[&str]) {
        assert_eq!((self.code, self.stdout.as_slice()), (Some(code), &b""[..]), "{self:?}");
        assert!(self.stderr.starts_with("bulkhead: ") && self.stderr.ends_with('\n'), "{self:?}");
        assert_eq!(self.stderr.lines().count(), 1, "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "no '{word}' in: {}", self.stderr);
        }
    }
}

/// A started program. Killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    pidfd: OwnedFd,
    stdout: Option<Receiver<Vec<u8>>>,
    stderr: Option<Receiver<Vec<u8>>>,
    seen: Vec<u8>,
    /// Bytes of `seen` that [`Running::line`] has given.
    given: usize,
}

impl Running {
    /// Starts it, with stdout and stderr as pipes.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn start(mut command: Command) -> Running {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Self::start_as_is(command)
    }

    /// Starts it with the streams that the command says.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn start_as_is(mut command: Command) -> Running {
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let pidfd = pidfd_open(pid(&child), PidfdFlags::empty()).expect("pidfd");
        let stdout = child.stdout.take().map(pump);
        let stderr = child.stderr.take().map(pump);
        Running { child, pidfd, stdout, stderr, seen: Vec::new(), given: 0 }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes to its stdin from a thread and closes it, if stdin was made a pipe.
    pub fn feed(&mut self, bytes: Vec<u8>) {
        if let Some(mut stdin) = self.child.stdin.take() {
            // A reader that ends early is for the test to judge, by what comes out.
            std::thread::spawn(move || stdin.write_all(&bytes));
        }
    }

    /// Writes to its stdin, which was made a pipe and stays open.
    ///
    /// # Panics
    /// It does not take it.
    pub fn say(&mut self, text: &str) {
        self.child.stdin.as_mut().expect("stdin is a pipe").write_all(text.as_bytes()).expect("stdin takes it");
    }

    /// Closes its stdin.
    pub fn say_no_more(&mut self) {
        self.child.stdin = None;
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// It has been waited for already.
    pub fn signal(&self, signal: Signal) {
        kill_process(pid(&self.child), signal).expect("signal");
    }

    /// Waits until `text` has appeared on its stdout.
    ///
    /// # Panics
    /// It has not, within that time, or before the end.
    pub fn wait_for(&mut self, text: &str, patience: Duration) {
        let deadline = Instant::now() + patience;
        let output = self.stdout.as_ref().expect("stdout is a pipe");
        while !self.seen.windows(text.len()).any(|window| window == text.as_bytes()) {
            match output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.seen.extend(bytes),
                Err(e) => {
                    let (evidence, stderr) = self.give_up();
                    panic!("no '{text}' ({e}) in {:?}; stderr {stderr:?}\n{evidence}", show(&self.seen));
                }
            }
        }
    }

    /// The next line of its stdout.
    ///
    /// # Panics
    /// There is none within that time, or before the end.
    pub fn line(&mut self, patience: Duration) -> String {
        let deadline = Instant::now() + patience;
        let output = self.stdout.as_ref().expect("stdout is a pipe");
        loop {
            if let Some(len) = self.seen[self.given..].iter().position(|byte| *byte == b'\n') {
                let line = show(&self.seen[self.given..self.given + len]);
                self.given += len + 1;
                return line;
            }
            match output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.seen.extend(bytes),
                Err(e) => {
                    let (evidence, stderr) = self.give_up();
                    panic!("no line ({e}) after {:?}; stderr {stderr:?}\n{evidence}", show(&self.seen));
                }
            }
        }
    }

    /// Closes our end of its stdout: whoever goes on writing there gets SIGPIPE or an error.
    pub fn close_stdout(&mut self) {
        // The pump ends at its next read, because nobody takes what it reads.
        self.stdout = None;
    }

    /// Waits for its end, and for that of its streams.
    ///
    /// # Panics
    /// It does not end within that time; then it is killed.
    pub fn end(mut self, patience: Duration) -> Ended {
        let (status, evidence) = match self.status(patience) {
            Some(status) => (Some(status), String::new()),
            None => (None, self.give_up_waiting()),
        };
        let mut stdout = std::mem::take(&mut self.seen);
        stdout.extend(drain(self.stdout.take()));
        let stderr = show(&drain(self.stderr.take()));
        match status {
            Some(status) => Ended { code: status.code(), signal: status.signal(), stdout, stderr },
            None => panic!("not ended after {patience:?}: stdout {:?}, stderr {stderr:?}\n{evidence}", show(&stdout)),
        }
    }

    /// Kills it. What it and its like waited for, and what it said on stderr.
    fn give_up(&mut self) -> (String, String) {
        let evidence = self.give_up_waiting();
        (evidence, show(&drain(self.stderr.take())))
    }

    fn give_up_waiting(&mut self) -> String {
        let evidence = evidence::of(self.pid());
        let _ = self.child.kill();
        let _ = self.child.wait();
        evidence
    }

    fn status(&mut self, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&self.pidfd.as_fd(), PollFlags::IN)], Some(&left)) {
                Ok(0) => return None,
                Ok(_) => return Some(self.child.wait().expect("wait")),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => panic!("poll: {e}"),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let ended = self.child.wait();
        if std::thread::panicking() {
            // It may know why its test fails.
            let stderr = show(&drain(self.stderr.take()));
            eprintln!("process {} ({ended:?}): stdout {:?}, stderr {stderr:?}", self.child.id(), show(&self.seen));
        }
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id() as i32).expect("a process id")
}

fn pump(mut stream: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            if sender.send(buffer[..count].to_vec()).is_err() {
                break;
            }
        }
    });
    receiver
}

/// All that is still to come.
fn drain(stream: Option<Receiver<Vec<u8>>>) -> Vec<u8> {
    stream.into_iter().flat_map(|receiver| receiver.into_iter().flatten()).collect()
}

fn show(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
