//! Processes that have started: signals to them, their end.

use crate::signals::{Disposition, Watch, disposition, ends_by_default};
use crate::sys::Child;
use guest_protocol::ExitStatus;
use rustix::event::Timespec;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::io::Errno;
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

/// The container's main process.
#[derive(Debug)]
pub struct Running {
    child: Child,
    /// The signal in whose name it was killed.
    killed_as: Option<u8>,
    watch: Watch,
}

impl Running {
    /// A child that is PID 1 of the container.
    #[must_use]
    pub fn new(child: Child) -> Self {
        Self { child, killed_as: None, watch: Watch::default() }
    }

    /// Becomes readable when the process has ended.
    #[must_use]
    pub fn end_event(&self) -> BorrowedFd<'_> {
        self.child.pidfd.as_fd()
    }

    /// Its number, as the kernel's log has it.
    #[must_use]
    pub fn number(&self) -> i32 {
        self.child.pid.as_raw_nonzero().get()
    }

    /// Sends a signal from outside.
    ///
    /// To PID 1 of a PID namespace the kernel delivers only what it has a handler for. Any other process would have been ended
    /// by the signal, and that is what the sender wants: so it is ended, and its exit status says by which signal.
    /// One that blocks the signal for a moment, as shells do around each fork, is judged when it does no longer.
    /// One that has a handler and loses it to `execve` in that very moment does not notice; the sender can repeat it.
    pub fn signal(&mut self, signal: u8) {
        let Some(named) = Signal::from_named_raw(i32::from(signal)) else {
            return;
        };
        let ends = ends_by_default(named);
        match disposition(signal) {
            Disposition::Default if ends => return self.end_as(signal),
            Disposition::Blocked { .. } if ends => self.watch.add(signal),
            _ => {}
        }
        send(&self.child, signal);
    }

    /// The terminal has sent `signal` to its foreground group: sees to it that it has its effect on the process.
    pub fn signalled_by_terminal(&mut self, signal: u8, group: i32) {
        if group != self.number() {
            return;
        }
        match disposition(signal) {
            Disposition::Default => self.end_as(signal),
            Disposition::Blocked { .. } => self.watch.expect(signal),
            Disposition::Other => {}
        }
    }

    /// When to call [`Self::look_again`], if at all.
    #[must_use]
    pub fn look_again_in(&self) -> Option<Timespec> {
        self.watch.delay()
    }

    /// Judges the signals that the process blocked when they were sent. The kernel has thrown away those that it blocks no
    /// longer and does not handle. Does nothing before it is time.
    pub fn look_again(&mut self) {
        if !self.watch.is_due() {
            return;
        }
        for signal in self.watch.signals() {
            match disposition(signal) {
                Disposition::Blocked { pending } if self.watch.is_open(signal, pending) => continue,
                Disposition::Default => self.end_as(signal),
                Disposition::Blocked { .. } | Disposition::Other => {}
            }
            self.watch.remove(signal);
        }
        self.watch.wait_longer();
    }

    /// Ends it, as `signal` would have ended any other process.
    fn end_as(&mut self, signal: u8) {
        self.killed_as.get_or_insert(signal);
        let _ = pidfd_send_signal(&self.child.pidfd, Signal::KILL);
    }

    /// How it ended; waits until it has.
    #[must_use]
    pub fn wait(&self) -> ExitStatus {
        match (wait(&self.child), self.killed_as) {
            (ExitStatus::Signal(KILL), Some(name)) => ExitStatus::Signal(name),
            (status, _) => status,
        }
    }
}

/// SIGKILL.
const KILL: u8 = 9;

/// How a child ended; waits until it has.
#[must_use]
pub fn wait(child: &Child) -> ExitStatus {
    let status = loop {
        match waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED) {
            Err(Errno::INTR) => {}
            other => break other.ok().flatten(),
        }
    };
    let byte = |value: i32| u8::try_from(value).unwrap_or(u8::MAX);
    match status.map(|status| (status.exit_status(), status.terminating_signal())) {
        Some((Some(code), _)) => ExitStatus::Code(byte(code & 0xff)),
        Some((None, Some(signal))) => ExitStatus::Signal(byte(signal)),
        Some((None, None)) | None => ExitStatus::Code(u8::MAX),
    }
}

/// Sends a child a signal, if there is one of this number. It may have ended meanwhile: then there is nobody to tell.
pub fn send(child: &Child, signal: u8) {
    if let Some(named) = Signal::from_named_raw(i32::from(signal)) {
        let _ = pidfd_send_signal(&child.pidfd, named);
    }
}
