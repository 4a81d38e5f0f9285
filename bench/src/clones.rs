//! Many machines from one snapshot, all running at once, each answering over its own vsock.
//!
//! The guest is [`crate::answer`]'s. A few machines start at a time; each is asked as soon as it connects, and goes on waiting for
//! the next question. When all are there, all are asked once more, so that all are known to run at the same time; then the
//! memory of each is looked at. However it ends, and whatever ends this process, no machine stays: they die with it.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;

use crate::answer::{self, Host};
use crate::machine::{PATIENCE, failed};
use crate::memory::{self, Private};
use crate::place::Place;
use crate::process::{BenchError, Child, Monitor, io_error, start, words};
use crate::stats::{Summary, summarise};

/// Memory that is left to the host, KiB: no machine is started where there is less.
const RESERVE_KIB: u64 = 2 << 20;
/// Process ids that are left to others, likewise.
const RESERVE_TASKS: u64 = 2048;

/// What to run.
#[derive(Debug, Clone, Copy)]
pub struct What {
    /// How many machines; with `most`, the most of them.
    pub number: usize,
    /// Guest RAM of each, MiB.
    pub memory_mib: u64,
    /// How many start at the same time.
    pub parallel: usize,
    /// Go on to `number` or until no more can be had, whichever comes first: what stops it is a result, not an error.
    pub most: bool,
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Guest RAM of each machine, MiB.
    pub memory_mib: u64,
    /// How many machines ran at the same time, each of which answered.
    pub clones: usize,
    /// How many started at the same time.
    pub parallel: usize,
    /// Process start to the first answer.
    pub answer: Summary,
    /// Question to answer, when all run and all are asked.
    pub again: Summary,
    /// First start to last answer, milliseconds.
    pub total_ms: f64,
    /// The monitor's own private memory, KiB.
    pub monitor_kib: Kib,
    /// Pages of the guest's RAM that a machine has for itself, KiB.
    pub guest_kib: Kib,
    /// What the host had less of, by machine, KiB: with what the kernel keeps for it.
    pub host_kib: f64,
    /// Why there were no more; none if as many as asked for ran.
    pub stopped: Option<String>,
}

/// Median and greatest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Kib {
    /// Median.
    pub p50: u64,
    /// Greatest.
    pub max: u64,
}

impl Kib {
    fn of(clones: &[Private], what: impl Fn(&Private) -> u64) -> Option<Self> {
        let mut sorted: Vec<u64> = clones.iter().map(what).collect();
        sorted.sort_unstable();
        Some(Kib { p50: *sorted.get(sorted.len().saturating_sub(1) / 2)?, max: *sorted.last()? })
    }
}

/// Runs them, and ends them.
pub fn run(monitor: Monitor<'_>, what: What) -> Result<Report, BenchError> {
    if what.number == 0 || what.parallel == 0 {
        return Err(BenchError::NoRuns);
    }
    // Each machine costs this process a descriptor, and one that starts some more.
    let limit = getrlimit(Resource::Nofile);
    // What cannot be raised is found out when it is reached.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    let dir = Place::new()?;
    let snapshot = dir.path().join("snapshot");
    answer::prepare(dir.path(), &snapshot, what.memory_mib)?;
    // The first pays for cold caches, once.
    answer::sample(monitor, &snapshot, &dir.path().join("first"))?;
    let memory = fs::canonicalize(snapshot.join("memory")).map_err(io_error("memory file"))?;
    let mut fleet = Fleet {
        monitor,
        what,
        dir: dir.path(),
        snapshot,
        started: 0,
        running: vec![],
        starting: vec![],
        answers: vec![],
    };
    let before = memory::available_kib()?;
    let began = Instant::now();
    let stopped = fleet.launch()?;
    let total = began.elapsed();
    let again = fleet.ask_all()?;
    let after = memory::available_kib()?;
    let pages: Vec<Private> = fleet
        .running
        .iter()
        .map(|clone| memory::of_process(clone.child.id(), what.memory_mib, Some(&memory)))
        .collect::<Result<_, _>>()?;
    let clones = fleet.running.len();
    let none = || stopped.clone().map_or(BenchError::NoRuns, BenchError::Machine);
    Ok(Report {
        memory_mib: what.memory_mib,
        clones,
        parallel: what.parallel,
        answer: summarise(&fleet.answers).ok_or_else(none)?,
        again: summarise(&again).ok_or_else(none)?,
        total_ms: total.as_secs_f64() * 1e3,
        monitor_kib: Kib::of(&pages, |private| private.monitor_kib).ok_or_else(none)?,
        guest_kib: Kib::of(&pages, |private| private.guest_kib).ok_or_else(none)?,
        host_kib: before.saturating_sub(after) as f64 / clones as f64,
        stopped,
    })
}

/// A machine that has been started and has not answered yet.
struct Starting {
    child: Child,
    began: Instant,
    at: Waits,
}

enum Waits {
    /// For the guest's connection.
    Connection(Host),
    /// For its answer.
    Answer(UnixStream),
}

/// A machine that has answered.
struct Clone {
    child: Child,
    stream: UnixStream,
}

struct Fleet<'a> {
    monitor: Monitor<'a>,
    what: What,
    dir: &'a Path,
    snapshot: PathBuf,
    started: usize,
    running: Vec<Clone>,
    starting: Vec<Starting>,
    answers: Vec<Duration>,
}

impl Fleet<'_> {
    /// Starts machines until there are as many as asked for, or no more can be had: then it tells why.
    fn launch(&mut self) -> Result<Option<String>, BenchError> {
        let mut stopped = None;
        loop {
            while stopped.is_none() && self.may_start() {
                let result = enough_for_others().and_then(|()| self.start());
                stopped = self.judge(result)?;
            }
            if self.starting.is_empty() {
                return Ok(stopped);
            }
            let result = self.step();
            stopped = self.judge(result)?.or(stopped);
        }
    }

    fn may_start(&self) -> bool {
        self.starting.len() < self.what.parallel && self.running.len() + self.starting.len() < self.what.number
    }

    /// An error is the end, or the answer to how many there can be.
    fn judge(&self, result: Result<(), BenchError>) -> Result<Option<String>, BenchError> {
        match result {
            Ok(()) => Ok(None),
            Err(error) if self.what.most => Ok(Some(error.to_string())),
            Err(error) => Err(error),
        }
    }

    fn start(&mut self) -> Result<(), BenchError> {
        let uds = self.dir.join(format!("c{}", self.started));
        self.started += 1;
        let (host, config) = (Host::bind(&uds)?, answer::config(&self.snapshot, &uds));
        let began = Instant::now();
        let child = start(self.monitor, &config)?;
        self.starting.push(Starting { child, began, at: Waits::Connection(host) });
        Ok(())
    }

    /// Waits for something to happen to one that starts, and takes it one step further. One that fails is gone then.
    fn step(&mut self) -> Result<(), BenchError> {
        let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(2 * self.starting.len());
        for clone in &self.starting {
            let fd = match &clone.at {
                Waits::Connection(host) => host.listener().as_fd(),
                Waits::Answer(stream) => stream.as_fd(),
            };
            fds.extend([fd, clone.child.pidfd()].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        }
        answer::wait(&mut fds, PATIENCE)?;
        let happened = fds.chunks_exact(2).position(|pair| pair.iter().any(|fd| !fd.revents().is_empty()));
        let has_ended = happened.is_some_and(|index| fds[2 * index].revents().is_empty());
        let Some(index) = happened else {
            // Nobody says anything any more: they are all lost.
            self.starting.iter_mut().for_each(|clone| clone.child.end());
            self.starting.clear();
            return Err(failed(format!("a guest does not answer within {} s", PATIENCE.as_secs())));
        };
        let mut clone = self.starting.swap_remove(index);
        if has_ended {
            let output = clone.child.wait_with_output().map_err(io_error("output of the monitor"))?;
            return Err(words(failed("its process ended before its guest answered"), &output.stderr));
        }
        match clone.at.further() {
            Ok(None) => {
                self.answers.push(clone.began.elapsed());
                // Two descriptors less for each: what it says from now on is of no interest.
                (clone.child.stdout, clone.child.stderr) = (None, None);
                if let Waits::Answer(stream) = clone.at {
                    self.running.push(Clone { child: clone.child, stream });
                }
                Ok(())
            }
            Ok(Some(next)) => {
                clone.at = next;
                self.starting.push(clone);
                Ok(())
            }
            Err(error) => {
                clone.child.end();
                Err(error)
            }
        }
    }

    /// Asks all, and then waits for all answers.
    fn ask_all(&mut self) -> Result<Vec<Duration>, BenchError> {
        let mut asked = Vec::with_capacity(self.running.len());
        for (number, clone) in (0..).zip(&mut self.running) {
            asked.push(Instant::now());
            answer::question(&mut clone.stream, number)?;
        }
        let mut took = Vec::with_capacity(asked.len());
        for (number, (clone, asked)) in (0..).zip(self.running.iter_mut().zip(asked)) {
            answer::answer(&mut clone.stream, number)?;
            took.push(asked.elapsed());
        }
        Ok(took)
    }
}

impl Drop for Fleet<'_> {
    fn drop(&mut self) {
        // All are told before the first is waited for.
        self.running.iter().for_each(|clone| clone.child.kill());
        self.running.iter_mut().for_each(|clone| clone.child.end());
        self.starting.iter_mut().for_each(|clone| clone.child.end());
    }
}

impl Waits {
    /// The next thing to wait for, after what was waited for has come; nothing, if that was the answer.
    fn further(&mut self) -> Result<Option<Waits>, BenchError> {
        const NUMBER: u64 = 3;
        match self {
            Waits::Connection(host) => {
                let mut stream = host.take()?;
                answer::question(&mut stream, NUMBER)?;
                Ok(Some(Waits::Answer(stream)))
            }
            Waits::Answer(stream) => answer::answer(stream, NUMBER).map(|()| None),
        }
    }
}

/// Others on the host go on having memory and processes.
fn enough_for_others() -> Result<(), BenchError> {
    let available = memory::available_kib()?;
    if available < RESERVE_KIB {
        let (available, reserve) = (available >> 10, RESERVE_KIB >> 10);
        return Err(failed(format!("memory: the host has {available} MiB left, and {reserve} MiB stay with it")));
    }
    let (used, most) = (tasks_in_use()?, tasks_at_most()?);
    if used + RESERVE_TASKS > most {
        return Err(failed(format!(
            "processes and threads: the host has {used} of {most}, and {RESERVE_TASKS} stay with others"
        )));
    }
    Ok(())
}

/// Processes and threads of the whole host, those of the kernel included.
fn tasks_in_use() -> Result<u64, BenchError> {
    // Three averages, then running/all, then the last process id (proc(5)).
    number("/proc/loadavg", |text| text.split(' ').nth(3)?.split_once('/')?.1.parse().ok())
}

fn tasks_at_most() -> Result<u64, BenchError> {
    let limit = |path| number(path, |text| text.trim().parse().ok());
    Ok(limit("/proc/sys/kernel/pid_max")?.min(limit("/proc/sys/kernel/threads-max")?))
}

fn number(path: &'static str, read: impl Fn(&str) -> Option<u64>) -> Result<u64, BenchError> {
    let text = fs::read_to_string(path).map_err(io_error(path))?;
    read(&text).ok_or_else(|| io_error(path)(ErrorKind::InvalidData.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_is_an_error_and_so_is_a_monitor_that_is_none() {
        let nowhere = Path::new("/nonexistent");
        let monitor = Monitor { bulkhead: nowhere, cpuid_cache: nowhere };
        let what = What { number: 0, memory_mib: 128, parallel: 1, most: false };
        assert!(matches!(run(monitor, what), Err(BenchError::NoRuns)));
    }

    #[test]
    fn the_hosts_limits_are_read() {
        let (used, most) = (tasks_in_use().unwrap(), tasks_at_most().unwrap());
        assert!((1..=most).contains(&used), "{used} of {most}");
    }

    #[test]
    fn medians_are_of_what_there_is() {
        let private = |kib| Private { monitor_kib: kib, guest_kib: 0 };
        let of = |kib: &[u64]| Kib::of(&kib.iter().copied().map(private).collect::<Vec<_>>(), |p| p.monitor_kib);
        assert_eq!(of(&[3, 1, 2]), Some(Kib { p50: 2, max: 3 }));
        assert_eq!(of(&[9]), Some(Kib { p50: 9, max: 9 }));
        assert_eq!(of(&[]), None);
    }
}
