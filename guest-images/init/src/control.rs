//! The control connection: whole messages out, whole messages in.

use crate::failure::Failure;
use crate::sys::{Clock, clock_ns};
use alloc::boxed::Box;
use guest_protocol::{
    ExitStatus, FrameBuffer, GuestMessage, HostMessage, MAIN_PROCESS, MAX_GUEST_FRAME, MAX_HOST_FRAME, Start, VERSION,
};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};

/// The host is gone or does not speak this protocol: there is nobody left to run for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostGone;

/// The guest's end of the control connection.
#[derive(Debug)]
pub struct Control {
    connection: OwnedFd,
    received: FrameBuffer,
}

impl Control {
    /// Takes over a connected stream socket.
    #[must_use]
    pub fn new(connection: OwnedFd) -> Self {
        Self { connection, received: FrameBuffer::new(MAX_HOST_FRAME) }
    }

    /// Says hello; `init_ns` is when init began.
    ///
    /// # Errors
    /// The host is gone.
    pub fn hello(&self, init_ns: u64) -> Result<(), HostGone> {
        self.send(&GuestMessage::Hello { version: VERSION, init_ns, now_ns: clock_ns(Clock::Monotonic) })
    }

    /// Waits for the host's hello and its `Start`.
    ///
    /// # Errors
    /// The host is gone, has another version, or says something else.
    pub fn start(&mut self) -> Result<Box<Start>, HostGone> {
        match self.wait()? {
            HostMessage::Hello { version: VERSION } => {}
            _ => return Err(HostGone),
        }
        match self.wait()? {
            HostMessage::Start(start) => Ok(start),
            _ => Err(HostGone),
        }
    }

    /// The process runs.
    ///
    /// # Errors
    /// The host is gone.
    pub fn started(&self, root_ns: u64) -> Result<(), HostGone> {
        self.send(&GuestMessage::Started { process: MAIN_PROCESS, root_ns, now_ns: clock_ns(Clock::Monotonic) })
    }

    /// The process does not run.
    ///
    /// # Errors
    /// The host is gone.
    pub fn failed(&self, failure: Failure) -> Result<(), HostGone> {
        let Failure { kind, mut detail } = failure;
        // A path from the image may be in it; the line must fit a frame.
        while detail.len() > MAX_GUEST_FRAME / 2 {
            detail.pop();
        }
        self.send(&GuestMessage::StartFailed { process: MAIN_PROCESS, kind, detail })
    }

    /// The process has ended, at `exit_ns`.
    ///
    /// # Errors
    /// The host is gone.
    pub fn exited(&self, status: ExitStatus, exit_ns: u64) -> Result<(), HostGone> {
        let now_ns = clock_ns(Clock::Monotonic);
        self.send(&GuestMessage::Exited { process: MAIN_PROCESS, status, exit_ns, now_ns })
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
            Ok(0) => Err(HostGone),
            Ok(count) => {
                self.received.received(count);
                Ok(())
            }
            Err(Errno::INTR | Errno::AGAIN) => Ok(()),
            Err(_) => Err(HostGone),
        }
    }

    /// The next message of what [`Self::receive`] has read.
    ///
    /// # Errors
    /// What arrived is not a message.
    pub fn take(&mut self) -> Result<Option<HostMessage>, HostGone> {
        self.received.take().map_err(|_| HostGone)
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
        let frame = guest_protocol::encode(message, MAX_GUEST_FRAME).map_err(|_| HostGone)?;
        let mut left = &frame[..];
        while !left.is_empty() {
            match send(&self.connection, left, SendFlags::NOSIGNAL) {
                Ok(count) => left = left.get(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(_) => return Err(HostGone),
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
