//! The control connection from the host's side: queued messages out, bounded messages in, never waiting.

use super::SessionError;
use guest_protocol::{FrameBuffer, GuestMessage, HostMessage, MAX_GUEST_FRAME, MAX_HOST_FRAME};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// Bytes that may wait to be sent beside one largest message. A guest that takes none of them loses what comes after.
const QUEUE_LIMIT: usize = 64 << 10;

/// What a read came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    /// There may be more.
    Something,
    /// Nothing for now.
    Nothing,
    /// The guest has closed the connection.
    End,
}

#[derive(Debug)]
pub(super) struct Control {
    connection: UnixStream,
    received: FrameBuffer,
    queue: Vec<u8>,
}

impl Control {
    pub(super) fn new(connection: UnixStream) -> std::io::Result<Self> {
        connection.set_nonblocking(true)?;
        Ok(Self { connection, received: FrameBuffer::new(MAX_GUEST_FRAME), queue: Vec::new() })
    }

    /// Queues a message, and sends what can be sent at once.
    pub(super) fn send(&mut self, message: &HostMessage) -> Result<(), SessionError> {
        if !self.is_full() {
            self.queue.extend(guest_protocol::encode(message, MAX_HOST_FRAME)?);
        }
        self.flush();
        Ok(())
    }

    /// Whether what comes next would be lost.
    pub(super) fn is_full(&self) -> bool {
        self.queue.len() >= QUEUE_LIMIT
    }

    /// Whether something waits to be sent.
    pub(super) fn has_queue(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Sends what can be sent. That the guest is gone shows when reading.
    pub(super) fn flush(&mut self) {
        while !self.queue.is_empty() {
            match self.connection.write(&self.queue) {
                Ok(count) => drop(self.queue.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.queue.clear(),
            }
        }
    }

    /// Reads once.
    pub(super) fn receive(&mut self) -> Received {
        match self.connection.read(self.received.space()) {
            Ok(0) => Received::End,
            Ok(count) => {
                self.received.received(count);
                Received::Something
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Received::Something,
            Err(error) if error.kind() == ErrorKind::WouldBlock => Received::Nothing,
            Err(_) => Received::End,
        }
    }

    /// The next message of what has been read.
    pub(super) fn take(&mut self) -> Result<Option<GuestMessage>, SessionError> {
        Ok(self.received.take()?)
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}
