//! One stream between a guest's socket and a unix socket: flow control and half-close, both ways.
//!
//! ```text
//! Greeting ──CONNECT line──► Requested ──guest's RESPONSE──► Established ──guest shut both──► Lingering ──► gone
//!   (host connects)                          (guest connects) ──┘            (backlog goes to the host)
//! ```
//!
//! To the guest: straight from the socket into its receive buffers, never more than its credit. To the host: straight
//! from guest memory into the socket; what does not fit waits in a backlog, and the guest's credit is what the backlog
//! has room for. End of data travels as a shutdown behind the data. A connection that the host closed is kept until the
//! guest agrees: a reset would cost the guest what it has not read yet.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::net::{RecvFlags, SendFlags};
use vmm_sys_util::epoll::EventSet;

use super::super::chain::Buffers;
use super::super::iovec::{Direction, Target, transfer};
use super::backlog::Backlog;
use super::packet::*;

/// Bytes from the guest that may wait for the host: the credit the guest gets.
pub const BACKLOG_MOST: u32 = 128 << 10;
/// Most bytes of one packet to the guest.
const MOST: usize = 64 << 10;
/// Longest greeting: `CONNECT 4294967295\n` and some air.
const GREETING: usize = 32;

/// Ports of both ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    pub guest_port: u32,
    pub host_port: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// A host program has connected and not yet said to which port.
    Greeting,
    /// The guest was asked.
    Requested,
    Established,
    /// The guest is gone; the backlog is not.
    Lingering,
}

/// The next packet for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Request,
    Response,
    CreditUpdate,
    CreditRequest,
    Data,
    Shutdown,
}

/// What filling a receive buffer came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Produced {
    /// A packet with this many bytes of data.
    Packet(u32),
    /// Nothing was to be said after all.
    Nothing,
    /// The buffer has no room for data.
    TooSmall,
}

/// A guest that breaks the protocol loses the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Violation;

pub struct Connection {
    pub stream: UnixStream,
    pub key: Key,
    pub phase: Phase,
    /// Listed as having something for the guest.
    pub queued: bool,

    /// Bytes from the guest that the socket did not take yet.
    backlog: Backlog,
    /// Bytes taken from the guest, passed to the host, and told to the guest as passed; all wrap.
    received: u32,
    forwarded: u32,
    told: u32,

    /// Bytes sent to the guest, and what it said of its buffer; wrap.
    sent: u32,
    peer_alloc: u32,
    peer_forwarded: u32,

    /// The socket may have input, or take output: edge-triggered, so remembered until it says otherwise.
    readable: bool,
    writable: bool,
    hung_up: bool,
    /// The host will send no more.
    eof: bool,
    /// The host will receive no more.
    write_closed: bool,
    /// The end of the guest's data was passed on.
    write_shut: bool,
    /// Shutdown flags the guest has sent, and was sent.
    guest_shut: u32,
    shut_sent: u32,

    owes_request: bool,
    owes_response: bool,
    owes_update: bool,
    asked_credit: bool,
}

impl Connection {
    fn new(stream: UnixStream, key: Key, phase: Phase) -> Self {
        Connection {
            stream,
            key,
            phase,
            queued: false,
            backlog: Backlog::default(),
            received: 0,
            forwarded: 0,
            told: 0,
            sent: 0,
            peer_alloc: 0,
            peer_forwarded: 0,
            readable: true,
            writable: true,
            hung_up: false,
            eof: false,
            write_closed: false,
            write_shut: false,
            guest_shut: 0,
            shut_sent: 0,
            owes_request: false,
            owes_response: false,
            owes_update: false,
            asked_credit: false,
        }
    }

    /// A host program has connected.
    pub fn accepted(stream: UnixStream) -> Self {
        Self::new(stream, Key { guest_port: 0, host_port: 0 }, Phase::Greeting)
    }

    /// The guest has connected to a host program; its request tells its credit.
    pub fn answered(stream: UnixStream, key: Key, request: &Header) -> Self {
        let mut connection = Self::new(stream, key, Phase::Established);
        connection.owes_response = true;
        connection.take_credit(request);
        connection
    }

    /// The port a host program asks for. None while the line is incomplete; an error ends the connection.
    pub fn greeting(&mut self) -> io::Result<Option<u32>> {
        let mut line = [0; GREETING];
        // A look first: what comes behind the line is the stream's.
        let seen = match rustix::net::recv(&self.stream, &mut line, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((seen, _)) => &line[..seen],
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let Some(end) = seen.iter().position(|byte| *byte == b'\n') else {
            return if seen.len() < GREETING { Ok(None) } else { Err(io::ErrorKind::InvalidData.into()) };
        };
        let port = std::str::from_utf8(&seen[..end]).ok().and_then(|line| line.strip_prefix("CONNECT "));
        let port = port.and_then(|port| port.trim_end_matches('\r').parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
        rustix::net::recv(&self.stream, &mut line[..end + 1], RecvFlags::DONTWAIT)?;
        Ok(Some(port))
    }

    /// The guest is to be asked.
    pub fn request(&mut self, key: Key) {
        self.key = key;
        self.phase = Phase::Requested;
        self.owes_request = true;
    }

    /// The guest has said yes: tells the host program its port.
    pub fn response(&mut self, header: &Header) -> Result<(), Violation> {
        if self.phase != Phase::Requested || self.owes_request {
            return Err(Violation);
        }
        self.phase = Phase::Established;
        self.take_credit(header);
        let line = format!("OK {}\n", self.key.host_port);
        // The socket has taken nothing yet, so a line fits, or the program is gone.
        let sent = rustix::net::send(&self.stream, line.as_bytes(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        if sent != Ok(line.len()) {
            self.host_closed();
        }
        Ok(())
    }

    /// Every packet of the guest tells its credit (5.10.6.3).
    pub fn take_credit(&mut self, header: &Header) {
        self.peer_alloc = header.buf_alloc;
        self.peer_forwarded = header.fwd_cnt;
        self.asked_credit = false;
    }

    /// Bytes the guest has room for; none if its numbers make no sense.
    fn credit(&self) -> u32 {
        self.peer_alloc.saturating_sub(self.sent.wrapping_sub(self.peer_forwarded))
    }

    fn host_closed(&mut self) {
        self.eof = true;
        self.close_write();
    }

    /// The host takes no more: the backlog counts as passed, so that the guest is not held up.
    fn close_write(&mut self) {
        self.write_closed = true;
        self.forwarded = self.received;
        self.backlog.clear();
    }

    /// The socket has changed. Sends what it takes now.
    pub fn socket_event(&mut self, events: EventSet) {
        self.readable |= events.intersects(EventSet::IN | EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR);
        self.writable |= events.contains(EventSet::OUT);
        self.hung_up |= events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        if self.hung_up {
            // Input may still be there, unless nobody wants it; output has nowhere to go.
            self.eof |= self.guest_shut & SHUTDOWN_RECEIVE != 0;
            self.close_write();
        }
        self.flush();
    }

    /// Moves the backlog into the socket, and the end of the guest's data behind it.
    fn flush(&mut self) {
        while self.writable && !self.backlog.is_empty() {
            match self.backlog.send(&self.stream) {
                Ok(sent) => self.forwarded = self.forwarded.wrapping_add(sent),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => self.writable = false,
                Err(_) => self.close_write(),
            }
        }
        if self.backlog.is_empty() && self.guest_shut & SHUTDOWN_SEND != 0 && !self.write_shut {
            self.write_shut = true;
            // Fails only where the peer is gone already.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        self.offer_credit();
    }

    /// Tells the guest of room once it believes in less than half of it.
    fn offer_credit(&mut self) {
        let believed = BACKLOG_MOST.wrapping_sub(self.received.wrapping_sub(self.told));
        if self.forwarded != self.told && believed < BACKLOG_MOST / 2 {
            self.owes_update = true;
        }
    }

    /// Data from the guest.
    pub fn receive(&mut self, mut data: Buffers) -> Result<(), Violation> {
        let len = u32::try_from(data.len()).map_err(|_| Violation)?;
        let waiting = self.received.wrapping_sub(self.forwarded);
        if self.phase != Phase::Established
            || self.guest_shut & SHUTDOWN_SEND != 0
            || len > BACKLOG_MOST - waiting.min(BACKLOG_MOST)
        {
            return Err(Violation);
        }
        self.received = self.received.wrapping_add(len);
        if self.write_closed {
            self.forwarded = self.received;
        }
        while self.writable && self.backlog.is_empty() && !self.write_closed && !data.is_empty() {
            match transfer(self.stream.as_fd(), Direction::FromGuest, Target::Stream, data) {
                Ok(sent) => {
                    data = data.split_at(sent).1;
                    self.forwarded = self.forwarded.wrapping_add(sent as u32);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(_) => self.close_write(),
            }
        }
        if !self.write_closed {
            self.backlog.append(data);
        }
        self.offer_credit();
        Ok(())
    }

    /// The guest shuts down a direction; tells whether it is through with the connection.
    pub fn shutdown(&mut self, flags: u32) -> bool {
        self.guest_shut |= flags & SHUTDOWN_BOTH;
        if flags & SHUTDOWN_RECEIVE != 0 {
            // So that a host program that goes on writing is told.
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        self.flush();
        self.guest_shut == SHUTDOWN_BOTH
    }

    /// The guest has forgotten the connection; tells whether the backlog keeps it alive.
    pub fn linger(&mut self) -> bool {
        self.phase = Phase::Lingering;
        self.guest_shut = SHUTDOWN_BOTH;
        self.flush();
        !self.is_spent()
    }

    /// Lingered long enough.
    pub fn is_spent(&self) -> bool {
        self.phase == Phase::Lingering && self.backlog.is_empty()
    }

    /// The guest wants to know its credit.
    pub fn credit_request(&mut self) {
        self.owes_update = true;
    }

    fn due(&self) -> Option<Due> {
        match self.phase {
            Phase::Greeting | Phase::Lingering => return None,
            Phase::Requested => return self.owes_request.then_some(Due::Request),
            Phase::Established => {}
        }
        if self.owes_response {
            return Some(Due::Response);
        }
        let shut = self.shut_wanted();
        let has_input = self.readable && !self.eof && self.guest_shut & SHUTDOWN_RECEIVE == 0;
        match () {
            () if self.owes_update => Some(Due::CreditUpdate),
            () if has_input && self.credit() > 0 => Some(Due::Data),
            () if has_input && !self.asked_credit => Some(Due::CreditRequest),
            () if shut != self.shut_sent => Some(Due::Shutdown),
            () => None,
        }
    }

    fn shut_wanted(&self) -> u32 {
        let receive = if self.write_closed { SHUTDOWN_RECEIVE } else { 0 };
        let send = if self.eof { SHUTDOWN_SEND } else { 0 };
        receive | send
    }

    /// Something is to be sent to the guest, or may be.
    pub fn has_output(&self) -> bool {
        self.due().is_some()
    }

    /// Fills one receive buffer of the guest with the next packet.
    pub fn produce(&mut self, guest_cid: u64, buffers: Buffers) -> Produced {
        let (head, room) = buffers.split_at(HEADER_LEN);
        if head.len() < HEADER_LEN {
            return Produced::TooSmall;
        }
        let mut header = Header {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: self.key.host_port,
            dst_port: self.key.guest_port,
            kind: STREAM,
            buf_alloc: BACKLOG_MOST,
            fwd_cnt: self.forwarded,
            ..Header::default()
        };
        loop {
            match self.due() {
                None => return Produced::Nothing,
                Some(Due::Data) if room.is_empty() => return Produced::TooSmall,
                Some(Due::Data) => {
                    header.len = self.read_socket(room);
                    header.op = OP_RW;
                    // Empty: end of input, or none at the moment; something else may be due instead.
                    if header.len == 0 {
                        continue;
                    }
                }
                Some(Due::Request) => {
                    self.owes_request = false;
                    header.op = OP_REQUEST;
                }
                Some(Due::Response) => {
                    self.owes_response = false;
                    header.op = OP_RESPONSE;
                }
                Some(Due::CreditUpdate) => header.op = OP_CREDIT_UPDATE,
                Some(Due::CreditRequest) => {
                    self.asked_credit = true;
                    header.op = OP_CREDIT_REQUEST;
                }
                Some(Due::Shutdown) => {
                    self.shut_sent = self.shut_wanted();
                    header.op = OP_SHUTDOWN;
                    header.flags = self.shut_sent;
                }
            }
            self.owes_update = false;
            self.told = header.fwd_cnt;
            head.write(&header.to_bytes());
            return Produced::Packet(header.len);
        }
    }

    /// From the socket into guest memory, within the guest's credit; returns the bytes.
    fn read_socket(&mut self, room: Buffers) -> u32 {
        let (room, _) = room.split_at(MOST.min(self.credit() as usize));
        match transfer(self.stream.as_fd(), Direction::ToGuest, Target::Stream, room) {
            Ok(0) => {
                self.eof = true;
                if self.hung_up {
                    self.close_write();
                }
                0
            }
            Ok(read) => {
                self.sent = self.sent.wrapping_add(read as u32);
                read as u32
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                0
            }
            Err(_) => {
                self.host_closed();
                0
            }
        }
    }
}
