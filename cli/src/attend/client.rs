//! The side that asks: one order a connection.

use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::Value;

use super::talk::MOST_STREAMS;
use super::{Answer, MAX_ANSWER, MAX_ORDER, Order, SOCKET, Word};
use crate::failure::sanitize;

/// An order that was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody answers.
    #[error("microVM '{vm}': {source}")]
    Io {
        /// Whose socket.
        vm: String,
        /// Why.
        source: io::Error,
    },
    /// It is too long.
    #[error("the command with its environment takes {0} bytes on its way to the microVM, where {MAX_ORDER} have room")]
    TooLong(usize),
    /// Its owner is gone.
    #[error("'{0}' ended before it had answered")]
    Gone(String),
    /// Its owner's words.
    #[error("{0}")]
    Refused(String),
}

/// An order that waits for what comes of it.
#[derive(Debug)]
pub struct Asking {
    vm: String,
    stream: UnixStream,
    /// What has come and was not taken.
    received: Vec<u8>,
    /// Descriptors that came with it.
    descriptors: Vec<OwnedFd>,
}

impl Asking {
    /// Asks the owner of the VM `vm`, whose run directory is `dir`.
    pub fn ask(dir: &Path, vm: &str, order: &Order) -> Result<Self, AskError> {
        let line = order.encode().map_err(|source| AskError::Io { vm: vm.into(), source: source.into() })?;
        if line.len() > MAX_ORDER {
            return Err(AskError::TooLong(line.len()));
        }
        let mut stream = UnixStream::connect(dir.join(SOCKET)).map_err(|source| failed(vm, source))?;
        stream.write_all(line.as_bytes()).map_err(|source| failed(vm, source))?;
        Ok(Self::over(stream, vm))
    }

    /// Waits for what the owner of the VM `vm` has to say over a connection that it has already.
    pub fn over(stream: UnixStream, vm: &str) -> Self {
        Asking { vm: vm.into(), stream, received: Vec::new(), descriptors: Vec::new() }
    }

    /// Asks by a connection of its own, whose other end is for the owner of the VM `vm`, who is still to come.
    pub fn first(vm: &str, order: &Order) -> Result<(Self, UnixStream), AskError> {
        let pair = || {
            let (mut stream, owners) = UnixStream::pair()?;
            stream.write_all(order.encode()?.as_bytes())?;
            Ok((Self::over(stream, vm), owners))
        };
        pair().map_err(|source| failed(vm, source))
    }

    /// The next answer; waits for it.
    pub fn next(&mut self) -> Result<Answer, AskError> {
        loop {
            if let Some(answer) = self.take()? {
                return Ok(answer);
            }
            self.receive()?;
        }
    }

    /// Answers are waited for this long, or for ever.
    pub fn be_patient(&self, patience: Option<Duration>) -> io::Result<()> {
        self.stream.set_read_timeout(patience)
    }

    /// The next answer of what has been received, if all of it has.
    pub fn take(&mut self) -> Result<Option<Answer>, AskError> {
        let Some(end) = self.received.iter().position(|&byte| byte == b'\n') else {
            return if self.received.len() < MAX_ANSWER { Ok(None) } else { Err(AskError::Gone(self.vm.clone())) };
        };
        let line: Vec<u8> = self.received.drain(..=end).collect();
        serde_json::from_slice(&line).map(Some).map_err(|source| failed(&self.vm, source.into()))
    }

    /// Receives what there is, at least something; waits for it if need be.
    pub fn receive(&mut self) -> Result<(), AskError> {
        let mut chunk = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_STREAMS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = loop {
            match recvmsg(&self.stream, &mut [IoSliceMut::new(&mut chunk)], &mut ancillary, flags) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other.map_err(|source| failed(&self.vm, source.into()))?.bytes,
            }
        };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        if received == 0 {
            return Err(AskError::Gone(self.vm.clone()));
        }
        self.received.extend_from_slice(&chunk[..received]);
        Ok(())
    }

    /// The descriptors that came with [`Answer::Streams`].
    pub fn descriptors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.descriptors)
    }

    /// Says something of the process that was asked for. One who is gone hears nothing; that shows when receiving.
    pub fn say(&mut self, word: Word) {
        if let Ok(line) = serde_json::to_string(&word) {
            let _ = self.stream.write_all(format!("{line}\n").as_bytes());
        }
    }
}

impl AsFd for Asking {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn failed(vm: &str, source: io::Error) -> AskError {
    match source.kind() {
        // The directory is there until the VM's end is cleaned up.
        io::ErrorKind::ConnectionRefused
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::NotFound
        | io::ErrorKind::BrokenPipe => AskError::Gone(vm.into()),
        _ => AskError::Io { vm: vm.into(), source },
    }
}

/// Asks the owner of the VM `vm`, whose run directory is `dir`, and waits for what comes of it. Progress goes to `progress`.
pub fn ask(dir: &Path, vm: &str, order: &Order, progress: &mut dyn FnMut(&str)) -> Result<Value, AskError> {
    let mut asking = Asking::ask(dir, vm, order)?;
    loop {
        match asking.next()? {
            Answer::Progress(text) => progress(&sanitize(&text)),
            Answer::Done(value) => return Ok(value),
            Answer::Error(text) => return Err(AskError::Refused(sanitize(&text))),
            // Nothing that was asked for.
            Answer::Streams(_) => drop(asking.descriptors()),
        }
    }
}
