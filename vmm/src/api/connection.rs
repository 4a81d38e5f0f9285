//! One client: bytes in, requests to the handler, answers out, without ever waiting for it.
//!
//! ```text
//!            a request ends           the handler answers later
//!   Open ──────────────────► Open, or ─────────────────────────► Waiting ── Server::answer ──► Open
//!    │ the last answer (error, "close", HTTP/1.0)
//!    ▼
//!   Closing ── all is written ──► Draining ── the client closes, or sent more than is worth reading ──► gone
//! ```
//!
//! Memory is bounded: the next request is not read before the last answer is written, input holds one request's bytes at
//! most (or what fits a head, of several), and buffers that a large request made are given back. Draining reads what a
//! client still sends after an answer that ends the connection, because a close with unread bytes would destroy the answer.

use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::http::{self, CONTINUE, HttpError, MAX_BODY, MAX_HEAD, Parsed, Request, Response};

/// Requests answered before the other clients and the devices have their turn.
const TURNS: usize = 16;
/// Bytes read at a time.
const CHUNK: usize = 16 << 10;
/// Bytes that are read and dropped after the last answer.
const DRAIN: usize = MAX_HEAD + MAX_BODY;
/// Most descriptors that come with a request: those of the files of a disk.
const DESCRIPTORS: usize = 64;

/// What the server's user answers.
pub trait Handler {
    /// Takes the descriptors that have come with the next request (SCM_RIGHTS, unix(7)).
    fn give(&mut self, _descriptors: Vec<OwnedFd>) {}

    /// Carries a request out. Runs on the event loop, so it must not wait for a client.
    fn handle(&mut self, request: &Request) -> Reply;
}

/// A handler's answer.
#[derive(Debug, PartialEq)]
pub enum Reply {
    /// This.
    Now(Response),
    /// [`super::Server::answer`] will give it, before the handler says this again.
    Later,
}

/// What a connection needs to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Bytes from the client.
    Input,
    /// Room for bytes to the client, or just another turn.
    Output,
    /// The handler's answer.
    Answer,
    /// Nothing: it is over.
    Nothing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    Waiting(Style),
    Closing,
    Draining { left: usize },
}

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Style {
    close: bool,
    head_only: bool,
}

/// A client's stream and what is under way on it.
pub struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Bytes of `output` that are written.
    written: usize,
    phase: Phase,
    /// The client will send no more.
    end_of_input: bool,
    /// The request at the front of `input` has had its [`CONTINUE`].
    continued: bool,
    /// Descriptors that came with what is in `input`.
    descriptors: Vec<OwnedFd>,
}

impl Connection {
    /// A client on a non-blocking stream.
    pub fn new(stream: UnixStream) -> Self {
        Connection {
            stream,
            input: Vec::new(),
            output: Vec::new(),
            written: 0,
            phase: Phase::Open,
            end_of_input: false,
            continued: false,
            descriptors: Vec::new(),
        }
    }

    /// The stream, for epoll.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Whether the handler owes it an answer.
    pub fn is_waiting(&self) -> bool {
        matches!(self.phase, Phase::Waiting(_))
    }

    /// Bytes of memory that it holds.
    pub fn footprint(&self) -> usize {
        self.input.capacity() + self.output.capacity()
    }

    /// Does what can be done without waiting, and says what it takes to go on.
    pub fn advance(&mut self, handler: &mut impl Handler) -> Needs {
        let mut may_read = true;
        let mut turns = TURNS;
        loop {
            match self.flush() {
                Ok(true) => {}
                Ok(false) => return Needs::Output,
                Err(_) => return Needs::Nothing,
            }
            let more_input = match self.phase {
                Phase::Waiting(_) => return Needs::Answer,
                Phase::Closing => {
                    self.start_draining();
                    false
                }
                Phase::Draining { left } if left == 0 || self.end_of_input => return Needs::Nothing,
                Phase::Draining { .. } => true,
                Phase::Open if turns == 0 => return Needs::Output,
                Phase::Open => self.take_request(&mut turns, handler),
            };
            if more_input {
                if !std::mem::take(&mut may_read) {
                    return Needs::Input;
                }
                match self.read() {
                    Ok(true) => {}
                    Ok(false) => return Needs::Input,
                    Err(_) => return Needs::Nothing,
                }
            }
        }
    }

    /// The handler's answer to the request that waits for one.
    pub fn answer(&mut self, response: &Response) {
        if let Phase::Waiting(style) = self.phase {
            self.respond(response, style);
        }
    }

    /// Handles the request at the front of the input. Tells whether it takes more bytes to have one.
    fn take_request(&mut self, turns: &mut usize, handler: &mut impl Handler) -> bool {
        let refused = match http::parse(&self.input) {
            Ok(Parsed::Complete { request, length }) => {
                *turns -= 1;
                let style = Style { close: !request.keep_alive, head_only: request.method == "HEAD" };
                handler.give(std::mem::take(&mut self.descriptors));
                let reply = handler.handle(&request);
                self.consume(length);
                match reply {
                    Reply::Now(response) => self.respond(&response, style),
                    Reply::Later => self.phase = Phase::Waiting(style),
                }
                return false;
            }
            Ok(Parsed::Partial { .. }) if self.end_of_input && self.input.is_empty() => {
                self.phase = Phase::Closing;
                return false;
            }
            Ok(Parsed::Partial { .. }) if self.end_of_input => HttpError::Truncated,
            Ok(Parsed::Partial { expects_continue: true, .. }) if !self.continued => {
                self.continued = true;
                self.output.extend_from_slice(CONTINUE);
                return false;
            }
            Ok(Parsed::Partial { .. }) => return true,
            Err(error) => error,
        };
        self.respond(&refused.into(), Style { close: true, head_only: false });
        false
    }

    fn respond(&mut self, response: &Response, style: Style) {
        self.output.extend_from_slice(&response.encode(style.close, style.head_only));
        self.phase = if style.close { Phase::Closing } else { Phase::Open };
    }

    /// Takes a request off the front of the input.
    fn consume(&mut self, length: usize) {
        self.input.drain(..length);
        self.input.shrink_to(MAX_HEAD);
        self.continued = false;
    }

    fn start_draining(&mut self) {
        self.input = Vec::new();
        // A client that is gone already has nothing to drain.
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
        self.phase = Phase::Draining { left: DRAIN };
    }

    /// Reads once; tells whether there was anything, be it the end.
    fn read(&mut self) -> io::Result<bool> {
        let most = match self.phase {
            Phase::Draining { left } => left,
            // Never more than one request, once its length is known.
            _ => match http::parse(&self.input) {
                Ok(Parsed::Partial { total: Some(total), .. }) => total - self.input.len(),
                _ => MAX_HEAD - self.input.len().min(MAX_HEAD),
            },
        };
        let mut chunk = [0; CHUNK];
        let count = match self.receive(&mut chunk[..most.min(CHUNK)]) {
            Ok(count) => count,
            Err(Errno::WOULDBLOCK | Errno::INTR) => return Ok(false),
            Err(e) => return Err(e.into()),
        };
        self.end_of_input |= count == 0;
        match &mut self.phase {
            Phase::Draining { left } => *left -= count,
            _ => self.input.extend_from_slice(&chunk[..count]),
        }
        Ok(true)
    }

    /// Bytes, and the descriptors that come with them, of which there is room for [`DESCRIPTORS`].
    fn receive(&mut self, bytes: &mut [u8]) -> Result<usize, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let count = recvmsg(&self.stream, &mut [IoSliceMut::new(bytes)], &mut ancillary, flags)?.bytes;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                let room = DESCRIPTORS.saturating_sub(self.descriptors.len());
                self.descriptors.extend(descriptors.take(room));
            }
        }
        Ok(count)
    }

    /// Writes what there is; tells whether all is written.
    fn flush(&mut self) -> io::Result<bool> {
        while self.written < self.output.len() {
            match self.stream.write(&self.output[self.written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.written += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        self.output.clear();
        self.output.shrink_to(MAX_HEAD);
        self.written = 0;
        Ok(true)
    }
}
