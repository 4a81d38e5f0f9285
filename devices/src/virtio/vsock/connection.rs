//! One stream between a guest's socket and a unix socket: flow control and half-close, both ways.
//!
//! ```text
//! Greeting ──CONNECT line──► Requested ──guest's RESPONSE──► Established ──guest shut both──► Lingering ──► gone
//!   (host connects)                          (guest connects) ──┘            (backlog goes to the host)
//! ```
//!
//! To the guest: straight from the socket into its receive buffers, never more than its credit. To the host: straight
//! from guest memory into the socket; what does not fit waits in a backlog, and the guest's credit ([`credit`](super::credit)) is what
//! the backlog has room for. End of data travels as a shutdown behind the data. A connection that the host closed is kept until the
//! guest agrees: a reset would cost the guest what it has not read yet.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::net::SendFlags;
use vmm_sys_util::epoll::EventSet;

use super::super::chain::Buffers;
use super::super::iovec::{Direction, Target, transfer};
use super::backlog::Backlog;
use super::credit::{FromGuest, ToGuest};
use super::packet::*;

/// Most bytes of one packet to the guest.
const MOST: usize = 64 << 10;
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
    inward: FromGuest,
    outward: ToGuest,

    /// The socket may have input, or take output: edge-triggered, so remembered until it says otherwise.
    readable: bool,
    writable: bool,
    /// Output is waited for: its edges are of no interest as long as the socket takes all.
    watched: bool,
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
}

impl Connection {
    fn new(stream: UnixStream, key: Key, phase: Phase, share: u32) -> Self {
        Connection {
            stream,
            key,
            phase,
            queued: false,
            backlog: Backlog::default(),
            inward: FromGuest::new(share),
            outward: ToGuest::default(),
            readable: true,
            writable: true,
            watched: false,
            hung_up: false,
            eof: false,
            write_closed: false,
            write_shut: false,
            guest_shut: 0,
            shut_sent: 0,
            owes_request: false,
            owes_response: false,
            owes_update: false,
        }
    }

    /// A host program has connected; `share` is what may wait for it.
    pub fn accepted(stream: UnixStream, share: u32) -> Self {
        Self::new(stream, Key { guest_port: 0, host_port: 0 }, Phase::Greeting, share)
    }

    /// The guest has connected to a host program; its request tells its credit.
    pub fn answered(stream: UnixStream, key: Key, request: &Header, share: u32) -> Self {
        let mut connection = Self::new(stream, key, Phase::Established, share);
        connection.owes_response = true;
        connection.outward.hear(request);
        connection
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
        self.outward.hear(header);
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
        self.outward.hear(header);
    }

    /// What may wait for the host, from now on.
    pub fn set_share(&mut self, share: u32) {
        self.inward.set_share(share);
    }

    fn host_closed(&mut self) {
        self.eof = true;
        self.close_write();
    }

    /// The host takes no more: the backlog counts as passed, so that the guest is not held up.
    fn close_write(&mut self) {
        self.write_closed = true;
        self.inward.pass_all();
        self.backlog.clear();
    }

    /// What of its socket is waited for.
    pub fn interest(&self) -> EventSet {
        let input = EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        if self.watched { input | EventSet::OUT } else { input }
    }

    /// The same, if it is not what it was.
    pub fn new_interest(&mut self) -> Option<EventSet> {
        let wanted = !self.writable;
        let changed = std::mem::replace(&mut self.watched, wanted) != wanted;
        changed.then(|| self.interest())
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
                Ok(sent) => self.inward.pass(sent),
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
        self.owes_update |= self.inward.is_news();
    }

    /// Data from the guest.
    pub fn receive(&mut self, mut data: Buffers) -> Result<(), Violation> {
        if self.phase != Phase::Established || self.guest_shut & SHUTDOWN_SEND != 0 {
            return Err(Violation);
        }
        self.inward.take(data.len())?;
        if self.write_closed {
            self.inward.pass_all();
        }
        while self.writable && self.backlog.is_empty() && !self.write_closed && !data.is_empty() {
            match transfer(self.stream.as_fd(), Direction::FromGuest, Target::Stream, data) {
                Ok(sent) => {
                    data = data.split_at(sent).1;
                    self.inward.pass(sent);
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

    /// When the guest is to be asked again for room, if there is something for it and it says nothing before.
    pub fn asks_again(&self) -> Option<Instant> {
        let held = self.phase == Phase::Established && self.has_input() && self.outward.left() == 0;
        self.outward.asks_again().filter(|_| held)
    }

    /// It is time to.
    pub fn ask_again(&mut self) {
        self.outward.ask_again();
    }

    /// The host may have something that the guest wants.
    fn has_input(&self) -> bool {
        self.readable && !self.eof && self.guest_shut & SHUTDOWN_RECEIVE == 0
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
        let has_input = self.has_input();
        match () {
            () if self.owes_update => Some(Due::CreditUpdate),
            () if has_input && self.outward.left() > 0 => Some(Due::Data),
            () if has_input && self.outward.is_unasked() => Some(Due::CreditRequest),
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
                    self.outward.ask();
                    header.op = OP_CREDIT_REQUEST;
                }
                Some(Due::Shutdown) => {
                    self.shut_sent = self.shut_wanted();
                    header.op = OP_SHUTDOWN;
                    header.flags = self.shut_sent;
                }
            }
            self.owes_update = false;
            self.inward.tell(&mut header);
            head.write(&header.to_bytes());
            return Produced::Packet(header.len);
        }
    }

    /// From the socket into guest memory, within the guest's credit; returns the bytes.
    fn read_socket(&mut self, room: Buffers) -> u32 {
        let (room, _) = room.split_at(MOST.min(self.outward.left() as usize));
        match transfer(self.stream.as_fd(), Direction::ToGuest, Target::Stream, room) {
            Ok(0) => {
                self.eof = true;
                if self.hung_up {
                    self.close_write();
                }
                0
            }
            Ok(read) => {
                self.outward.spend(read);
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
