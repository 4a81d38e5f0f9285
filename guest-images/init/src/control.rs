//! The control connection: whole messages out, whole messages in.

use crate::failure::Failure;
use crate::sys::{Clock, clock_ns};
use alloc::string::String;
use guest_protocol::{
    ExitStatus, FrameBuffer, GuestMessage, HostMessage, MAX_GUEST_FRAME, MAX_HOST_FRAME, Phase, ProcessId, VERSION,
};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};

/// There is nobody left to run for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostGone {
    /// The connection is at its end or broken.
    Lost,
    /// The host does not speak this protocol.
    Nonsense,
}

/// The guest's end of the control connection.
#[derive(Debug)]
pub struct Control {
    connection: OwnedFd,
    received: FrameBuffer,
    /// The host has said hello.
    greeted: bool,
}

impl Control {
    /// Takes over a connected stream socket.
    #[must_use]
    pub fn new(connection: OwnedFd) -> Self {
        Self { connection, received: FrameBuffer::new(MAX_HOST_FRAME), greeted: false }
    }

    /// Says hello, being in `phase`; `init_ns` is since when.
    ///
    /// # Errors
    /// The host is gone.
    pub fn hello(&self, phase: Phase, init_ns: u64) -> Result<(), HostGone> {
        self.send(&GuestMessage::Hello { version: VERSION, phase, init_ns, now_ns: clock_ns(Clock::Monotonic) })
    }

    /// Waits for the next message, after the host's hello if that has not come yet.
    ///
    /// # Errors
    /// The host is gone, or has another version.
    pub fn order(&mut self) -> Result<HostMessage, HostGone> {
        while !self.greeted {
            match self.wait()? {
                HostMessage::Hello { version: VERSION } => self.greeted = true,
                _ => return Err(HostGone::Nonsense),
            }
        }
        self.wait()
    }

    /// All is done that needs no `Start`.
    ///
    /// # Errors
    /// The host is gone.
    pub fn ready(&self) -> Result<(), HostGone> {
        self.send(&GuestMessage::Ready { now_ns: clock_ns(Clock::Monotonic) })
    }

    /// All processes of the container stand still.
    ///
    /// # Errors
    /// The host is gone.
    pub fn frozen(&self) -> Result<(), HostGone> {
        self.send(&GuestMessage::Frozen { now_ns: clock_ns(Clock::Monotonic) })
    }

    /// They do not and will not.
    ///
    /// # Errors
    /// The host is gone.
    pub fn not_frozen(&self, why: &str) -> Result<(), HostGone> {
        self.send(&GuestMessage::NotFrozen { detail: String::from(why) })
    }

    /// A process runs; `root_ns` is when its root was there.
    ///
    /// # Errors
    /// The host is gone.
    pub fn started(&self, process: ProcessId, root_ns: u64) -> Result<(), HostGone> {
        self.send(&GuestMessage::Started { process, root_ns, now_ns: clock_ns(Clock::Monotonic) })
    }

    /// A process does not run.
    ///
    /// # Errors
    /// The host is gone.
    pub fn failed(&self, process: ProcessId, failure: Failure) -> Result<(), HostGone> {
        let Failure { kind, mut detail } = failure;
        // A path from the image may be in it; the line must fit a frame.
        while detail.len() > MAX_GUEST_FRAME / 2 {
            detail.pop();
        }
        self.send(&GuestMessage::StartFailed { process, kind, detail })
    }

    /// The kernel has killed a process for lack of memory.
    ///
    /// # Errors
    /// The host is gone.
    pub fn out_of_memory(&self, detail: String) -> Result<(), HostGone> {
        self.send(&GuestMessage::OutOfMemory { detail })
    }

    /// A process has ended, at `exit_ns`.
    ///
    /// # Errors
    /// The host is gone.
    pub fn exited(&self, process: ProcessId, status: ExitStatus, exit_ns: u64) -> Result<(), HostGone> {
        let now_ns = clock_ns(Clock::Monotonic);
        self.send(&GuestMessage::Exited { process, status, exit_ns, now_ns })
    }

    /// Waits until the host closes the connection, whatever it still says.
    pub fn wait_for_close(&mut self) {
        while self.receive().is_ok() {
            while matches!(self.take(), Ok(Some(_))) {}
        }
    }

    /// Reads what has arrived, at least one byte; waits for it if need be.
    ///
    /// # Errors
    /// The host is gone.
    pub fn receive(&mut self) -> Result<(), HostGone> {
        match rustix::io::read(&self.connection, self.received.space()) {
            Ok(0) => Err(HostGone::Lost),
            Ok(count) => {
                self.received.received(count);
                Ok(())
            }
            Err(Errno::INTR | Errno::AGAIN) => Ok(()),
            Err(_) => Err(HostGone::Lost),
        }
    }

    /// The next message of what [`Self::receive`] has read.
    ///
    /// # Errors
    /// What arrived is not a message.
    pub fn take(&mut self) -> Result<Option<HostMessage>, HostGone> {
        self.received.take().map_err(|_| HostGone::Nonsense)
    }

    fn wait(&mut self) -> Result<HostMessage, HostGone> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(message);
            }
            self.receive()?;
        }
    }

    fn send(&self, message: &GuestMessage) -> Result<(), HostGone> {
        let frame = guest_protocol::encode(message, MAX_GUEST_FRAME).map_err(|_| HostGone::Nonsense)?;
        let mut left = &frame[..];
        while !left.is_empty() {
            match send(&self.connection, left, SendFlags::NOSIGNAL) {
                Ok(count) => left = left.get(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(_) => return Err(HostGone::Lost),
            }
        }
        Ok(())
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}
