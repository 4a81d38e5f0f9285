//! A connection to a switch before it is a lease or a port, and how it is answered.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send};
use serde::Serialize;

use crate::client::message;
use crate::protocol::{LONGEST_REQUEST, PREFIX, Request};

/// A connection that has not said what it is.
#[derive(Debug)]
pub struct Pending {
    /// Where it says so.
    pub socket: OwnedFd,
    /// What it has said by now.
    said: Vec<u8>,
    /// What has come with that.
    pub uplink: Option<OwnedFd>,
    /// When it came.
    pub since: Instant,
}

impl Pending {
    /// One that has just come.
    pub fn new(socket: OwnedFd) -> Self {
        Pending { socket, said: Vec::new(), uplink: None, since: Instant::now() }
    }

    /// The request, if all of it has come.
    pub fn read(&mut self) -> io::Result<Option<Request>> {
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let count = match recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags) {
            Ok(message) => message.bytes,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.uplink = descriptors.last().or(self.uplink.take());
            }
        }
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.said.extend_from_slice(&bytes[..count]);
        let Some((prefix, request)) = self.said.split_first_chunk::<PREFIX>() else { return Ok(None) };
        let len = u32::from_be_bytes(*prefix) as usize;
        if len > LONGEST_REQUEST || request.len() > len {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if request.len() < len { Ok(None) } else { Ok(Some(serde_json::from_slice(request)?)) }
    }
}

/// Answers a request.
pub fn say(socket: &impl AsFd, answer: &impl Serialize) -> io::Result<()> {
    say_bytes(socket.as_fd(), &message(answer)?)
}

/// What a port is answered: nothing, or why it is none.
pub fn say_words(socket: &impl AsFd, words: &str) -> io::Result<()> {
    say_bytes(socket.as_fd(), &[&(words.len() as u32).to_be_bytes()[..], words.as_bytes()].concat())
}

/// The socket is a new one, and has room for an answer.
fn say_bytes(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    match send(socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)? {
        count if count == bytes.len() => Ok(()),
        _ => Err(io::ErrorKind::WouldBlock.into()),
    }
}
