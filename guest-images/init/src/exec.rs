//! Processes that join the container's main one: each with its own streams, any number at once up to a limit. They share nothing
//! with it here but init's attention.
//!
//! They are children of init in the container's PID namespace, so each ends with the main process at the latest: the kernel kills
//! it, and the main process is not over before init has reaped them all.
//!
//! One whose client is gone goes on without it: its input is at its end, and what it writes meets a closed pipe; a terminal is
//! hung up. That is also how those of a frozen guest go on in its clones, whose hosts do not know them.

use crate::control::{Control, HostGone};
use crate::failure::Failure;
use crate::freeze::Freezer;
use crate::guest::{Machine, STREAMS};
use crate::helper;
use crate::pod;
use crate::process::{self, Defaults};
use crate::relay::Step;
use crate::running::{Running, send, wait};
use crate::streams::{Opening, Output, Streams, resize};
use crate::sys::{Child, Clock, PidNamespace, clock_ns, join_pid_namespace, leave_pid_namespace};
use alloc::format;
use alloc::vec::Vec;
use guest_protocol::files::Helper;
use guest_protocol::{CHANGES_PROCESS, Exec, ExitStatus, FailureKind, MAX_EXECS, ProcessId, WindowSize};
use rustix::event::{PollFd, PollFlags};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::io::{self, Errno};

/// SIGKILL.
const KILL: u8 = 9;
/// Descriptors that one of them waits for: its own end, and its flows.
pub const EVENTS: usize = 4;

/// One of them.
struct Joined {
    /// None: the host there is now did not ask for it.
    id: Option<ProcessId>,
    child: Child,
    streams: Streams,
    /// How and when it ended.
    ended: Option<(ExitStatus, u64)>,
    /// It is none of the container's PID namespace: a helper that may do more to the host's kernel than the container may, and that no
    /// process of that is to see.
    apart: bool,
}

/// All of them.
#[derive(Default)]
pub struct Execs {
    joined: Vec<Joined>,
    /// Those that are still to be started, in order.
    waiting: Vec<Exec>,
    /// Init's children are born in the container's PID namespace.
    in_namespace: bool,
}

/// What they have in common.
pub struct Common<'a> {
    /// The main process.
    pub main: &'a Running,
    /// What that was given.
    pub defaults: &'a Defaults,
    /// Host name of the guest.
    pub hostname: &'a str,
    /// What they can be frozen with.
    pub freezer: Option<&'a Freezer>,
    /// The root of the container's writable layer's file system.
    pub upper: BorrowedFd<'a>,
}

impl Execs {
    /// Takes an order. What comes of it is for [`Self::start_one`] to tell, unless there are too many.
    ///
    /// # Errors
    /// The host is gone.
    pub fn order(&mut self, exec: Exec, control: &Control) -> Result<(), HostGone> {
        let refused = if self.joined.len() + self.waiting.len() >= MAX_EXECS {
            format!("{MAX_EXECS} processes have joined the container and run; no more can at a time")
        } else if self.find(exec.process).is_some() || self.waiting.iter().any(|other| other.process == exec.process) {
            format!("process {} is there already", exec.process)
        } else {
            self.waiting.push(exec);
            return Ok(());
        };
        control.failed(exec.process, Failure::new(FailureKind::Guest, refused))
    }

    /// Whether one waits to be started.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Starts the first of those that wait, if there is one, and tells the host. Nothing may be frozen: a child that is born in a
    /// frozen cgroup never gets to its program, and init waits for that.
    ///
    /// # Errors
    /// The host is gone.
    pub fn start_one<M: Machine>(
        &mut self,
        machine: &M,
        control: &Control,
        common: &Common<'_>,
    ) -> Result<(), HostGone> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let exec = self.waiting.remove(0);
        let (id, began_ns) = (exec.process, clock_ns(Clock::Monotonic));
        match self.start(machine, exec, common) {
            Ok(joined) => {
                self.joined.push(joined);
                control.started(id, began_ns)
            }
            Err(failure) => control.failed(id, failure),
        }
    }

    fn start<M: Machine>(&mut self, machine: &M, mut exec: Exec, common: &Common<'_>) -> Result<Joined, Failure> {
        let guest = |what| move |error| Failure::errno(FailureKind::Guest, what, error);
        let id = exec.process;
        if exec.helper.is_some() {
            exec.terminal = None;
        }
        let opening = match exec.attached {
            true => Opening::begin(machine, id, exec.terminal.is_some(), exec.stdin, Output::AtOnce)
                .map_err(guest(STREAMS))?,
            false => Opening::none(id),
        };
        let apart = exec.helper.is_some() && !machine.has_kernel();
        if apart {
            self.leave().map_err(guest("leaving the container"))?;
        } else if !self.in_namespace {
            join_pid_namespace(common.main.end_event()).map_err(guest("joining the container"))?;
            self.in_namespace = true;
        }
        let (streams, ends) = match exec.terminal {
            Some(size) => Streams::terminal(machine, opening, size, exec.attached)?,
            None => Streams::pipes(machine, opening).map_err(guest(STREAMS))?,
        };
        let stdio = match &ends[..] {
            [all] => [all.as_fd(); 3],
            [stdin, stdout, stderr] => [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
            _ => return Err(guest(STREAMS)(Errno::BADF)),
        };
        let terminal = exec.terminal.is_some();
        let cgroup = common.freezer.map(Freezer::cgroup);
        let child = match &exec.helper {
            Some(Helper::Member { place }) => pod::start(machine, *place, stdio, cgroup)?,
            Some(helper) => helper::start(helper, stdio, common.upper, PidNamespace::Joined, cgroup)?,
            None => process::join(exec, common.defaults, common.hostname, stdio, cgroup)?,
        };
        let streams = Streams { terminal_end: ends.into_iter().next().filter(|_| terminal), ..streams };
        Ok(Joined { id: Some(id), child, streams, ended: None, apart })
    }

    /// Has init's children be in its own PID namespace from now on.
    fn leave(&mut self) -> io::Result<()> {
        if self.in_namespace {
            leave_pid_namespace()?;
            self.in_namespace = false;
        }
        Ok(())
    }

    /// Has a helper say what the main process, which has ended, has changed; `upper` is as in [`Common`].
    ///
    /// # Errors
    /// The host is gone.
    pub fn tell_changes<M: Machine>(
        &mut self,
        machine: &M,
        control: &Control,
        upper: BorrowedFd<'_>,
    ) -> Result<(), HostGone> {
        let (id, began_ns) = (CHANGES_PROCESS, clock_ns(Clock::Monotonic));
        match self.changes(machine, id, upper) {
            Ok(joined) => {
                self.joined.push(joined);
                control.started(id, began_ns)
            }
            Err(failure) => control.failed(id, failure),
        }
    }

    fn changes<M: Machine>(&mut self, machine: &M, id: ProcessId, upper: BorrowedFd<'_>) -> Result<Joined, Failure> {
        let guest = |what| move |error| Failure::errno(FailureKind::Guest, what, error);
        // That of the container is over with its first process.
        self.leave().map_err(guest("leaving the container"))?;
        let opening = Opening::begin(machine, id, false, true, Output::AtOnce).map_err(guest(STREAMS))?;
        let (streams, ends) = Streams::pipes(machine, opening).map_err(guest(STREAMS))?;
        let [stdin, stdout, stderr] = &ends[..] else { return Err(guest(STREAMS)(Errno::BADF)) };
        let stdio = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        let child = helper::start(&Helper::Changes { content: true }, stdio, upper, PidNamespace::Joined, None)?;
        Ok(Joined { id: Some(id), child, streams, ended: None, apart: true })
    }

    /// Adds what they wait for: [`EVENTS`] for each. `idle` stands for what one does not wait for.
    pub fn interests<'a>(&'a self, fds: &mut Vec<PollFd<'a>>, idle: impl Fn() -> PollFd<'a>) {
        for Joined { child, streams, ended, .. } in &self.joined {
            fds.push(if ended.is_some() { idle() } else { PollFd::new(&child.pidfd, PollFlags::IN) });
            fds.extend(streams.flows.each_ref().map(|flow| flow.as_ref().map_or_else(&idle, |flow| flow.interest())));
        }
    }

    /// How many of them there are to wait for.
    #[must_use]
    pub fn count(&self) -> usize {
        self.joined.len()
    }

    /// Sees to those for which something is ready, in the order of [`Self::interests`]; tells the host of those that are over.
    ///
    /// # Errors
    /// The host is gone.
    pub fn step<M: Machine>(
        &mut self,
        machine: &M,
        ready: &[[bool; EVENTS]],
        control: &Control,
    ) -> Result<(), HostGone> {
        for (joined, [ended, flows @ ..]) in self.joined.iter_mut().zip(ready) {
            for (at, _) in flows.iter().enumerate().filter(|(_, ready)| **ready) {
                if joined.streams.step(machine, at) == Some(Step::Done) {
                    joined.streams.done(at);
                }
            }
            if *ended {
                joined.ended = Some((wait(&joined.child), clock_ns(Clock::Monotonic)));
                joined.streams.finish(machine);
            }
        }
        let mut over = Vec::new();
        self.joined.retain(|Joined { id, streams, ended, .. }| match ended {
            Some(end) if streams.is_drained() => {
                over.extend(id.map(|id| (id, *end)));
                false
            }
            _ => true,
        });
        over.into_iter().try_for_each(|(id, (status, exit_ns))| control.exited(id, status, exit_ns))
    }

    /// Sends a signal to one of them.
    pub fn signal(&self, process: ProcessId, signal: u8) {
        if let Some(joined) = self.find(process).filter(|joined| joined.ended.is_none()) {
            send(&joined.child, signal);
        }
    }

    /// Gives the terminal of one of them its size.
    pub fn resize(&self, process: ProcessId, size: WindowSize) {
        if let Some(master) = self.find(process).and_then(|joined| joined.streams.master.as_ref()) {
            let _ = resize(master.as_fd(), size);
        }
    }

    /// Passes on what they have written, as far as the host takes it.
    pub fn drain<M: Machine>(&mut self, machine: &M) {
        self.joined.iter_mut().for_each(|joined| joined.streams.drain(machine));
    }

    /// This is a clone: nobody here has asked for them.
    pub fn forget_host(&mut self) {
        self.waiting.clear();
        for joined in &mut self.joined {
            joined.id = None;
            joined.streams = Streams::closed();
        }
    }

    /// The main process is over, and so are they, whoever still reads what they wrote.
    ///
    /// # Errors
    /// The host is gone.
    pub fn finish<M: Machine>(&mut self, machine: &M, control: &Control) -> Result<(), HostGone> {
        for exec in core::mem::take(&mut self.waiting) {
            let detail = "the container's process has ended".into();
            control.failed(exec.process, Failure::new(FailureKind::Guest, detail))?;
        }
        for Joined { id, child, mut streams, ended, apart } in core::mem::take(&mut self.joined) {
            if apart && ended.is_none() {
                send(&child, KILL);
            }
            streams.drain(machine);
            drop(streams);
            let (status, exit_ns) = ended.unwrap_or_else(|| (wait(&child), clock_ns(Clock::Monotonic)));
            id.map_or(Ok(()), |id| control.exited(id, status, exit_ns))?;
        }
        Ok(())
    }

    fn find(&self, process: ProcessId) -> Option<&Joined> {
        self.joined.iter().find(|joined| joined.id == Some(process))
    }
}
