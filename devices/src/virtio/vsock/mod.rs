//! Sockets between host and guest (virtio 1.3, 5.10): streams only, on the host side unix sockets.
//!
//! - [`host`]: configuration, the listening socket, outgoing connections;
//! - [`connection`]: one stream, its flow control and its end;
//! - [`arrival`]: host programs that connect;
//! - [`greeting`]: what they say first;
//! - [`credit`]: how much both ends may send ahead;
//! - [`backlog`]: bytes on their way to the host;
//! - [`packet`]: the header;
//! - [`probe`]: guests that had no room are asked again;
//! - [`turns`]: the queues: whose turn it is;
//! - this file: the device: which packet belongs to which connection.
//!
//! All host sockets are edge-triggered in one inner epoll set, whose single descriptor the transport watches: an event is
//! remembered in its connection until the guest has room. Connections take turns, one packet each. Packets that belong to
//! nobody are answered with resets; when too many of those wait for the guest, its packets wait, too (5.10.6.1.1).

mod arrival;
mod backlog;
mod connection;
mod credit;
mod greeting;
mod host;
mod packet;
mod probe;
mod turns;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::AsRawFd;

use serde_json::Value;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use connection::{Connection, Key, Phase, Produced};
use host::Endpoint;
pub use host::KIND;
use packet::*;
use probe::Alarm;

use super::chain::Chain;
use super::table::check_state_version;
use super::{DeviceFault, DeviceFd, DeviceInfo, Io, StateError, VirtioDevice};

const STATE_VERSION: u32 = 1;
const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;
/// Connections, greeting and lingering ones included.
const CONNECTIONS: usize = 1024;
/// Resets that wait for room in the guest, before the guest's packets wait.
const RESETS: usize = 256;
/// Socket events taken at a time.
const EVENTS: usize = 64;
/// Host programs' ports as the guest sees them: the upper half of the range.
const FIRST_HOST_PORT: u32 = 1 << 31;
/// Token of the listening socket; connections count from 1.
const LISTENER: u64 = 0;

/// The device.
pub struct Vsock {
    guest_cid: u64,
    config: [u8; 8],
    endpoint: Endpoint,
    epoll: Epoll,
    alarm: Alarm,
    connections: HashMap<u64, Connection>,
    by_key: HashMap<Key, u64>,
    next_id: u64,
    next_port: u32,
    /// Connections with something for the guest; each at most once.
    ready: VecDeque<u64>,
    resets: VecDeque<Header>,
    /// `accept` failed for lack of descriptors; tried again when a connection goes, and when the device starts.
    accept_again: bool,
    /// The guest is to be told that its connections are gone (5.10.6.7).
    transport_reset: bool,
}

impl Vsock {
    /// A device for the guest `guest_cid` behind `endpoint`.
    pub fn new(guest_cid: u64, endpoint: Endpoint) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, LISTENER);
        epoll.ctl(ControlOperation::Add, endpoint.listener().as_raw_fd(), event)?;
        let alarm = Alarm::new()?;
        alarm.watch(|operation, fd, event| epoll.ctl(operation, fd, event))?;
        Ok(Vsock {
            guest_cid,
            config: guest_cid.to_le_bytes(),
            endpoint,
            epoll,
            alarm,
            connections: HashMap::new(),
            by_key: HashMap::new(),
            next_id: LISTENER + 1,
            next_port: FIRST_HOST_PORT,
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            accept_again: false,
            transport_reset: false,
        })
    }

    /// Watches a connection's socket and keeps it; returns its id.
    fn keep(&mut self, connection: Connection) -> io::Result<u64> {
        let id = self.next_id;
        let event = EpollEvent::new(connection.interest(), id);
        self.epoll.ctl(ControlOperation::Add, connection.stream.as_raw_fd(), event)?;
        self.next_id += 1;
        self.connections.insert(id, connection);
        Ok(id)
    }

    /// What each connection may have waiting for the host.
    fn share(&self) -> u32 {
        credit::share(self.connections.len())
    }

    /// The same with one more.
    fn share_of_next(&self) -> u32 {
        credit::share(self.connections.len() + 1)
    }

    /// Closes a connection's socket and forgets it.
    fn forget(&mut self, id: u64) {
        let Some(connection) = self.connections.remove(&id) else {
            return;
        };
        if self.by_key.get(&connection.key) == Some(&id) {
            self.by_key.remove(&connection.key);
        }
        drop(connection);
        if std::mem::take(&mut self.accept_again) {
            self.accept();
        }
    }

    /// After something was done to a connection: waits for its socket to take output, or does not any more, and lists it for its
    /// turn if it has something to say.
    fn settle(&mut self, id: u64) {
        if let Some(connection) = self.connections.get_mut(&id)
            && let Some(interest) = connection.new_interest()
        {
            let event = EpollEvent::new(interest, id);
            // A change looks at the socket as it is now, so no edge is lost in between.
            if let Err(e) = self.epoll.ctl(ControlOperation::Modify, connection.stream.as_raw_fd(), event) {
                tracing::warn!("vsock: a connection cannot be watched: {e}");
            }
        }
        self.remind(id);
        self.schedule(id);
    }

    /// Lists a connection for its turn, if it has something to say.
    fn schedule(&mut self, id: u64) {
        if let Some(connection) = self.connections.get_mut(&id)
            && !connection.queued
            && connection.has_output()
        {
            connection.queued = true;
            self.ready.push_back(id);
        }
    }

    /// Answers what has happened to the host's sockets; `connected` is for those who have connected.
    fn socket_events(&mut self, connected: fn(&mut Self)) -> Result<(), DeviceFault> {
        let mut events = [EpollEvent::default(); EVENTS];
        let count = match self.epoll.wait(0, &mut events) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
            result => result.map_err(|source| DeviceFault::Host { what: "epoll_wait", source })?,
        };
        for event in &events[..count] {
            match event.data() {
                LISTENER => connected(self),
                probe::TIMER => self.probe(),
                id => self.socket_event(id, event.event_set()),
            }
        }
        Ok(())
    }

    /// An event on a host socket. Its connection may be gone by now.
    fn socket_event(&mut self, id: u64, events: EventSet) {
        let share = self.share();
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if connection.phase == Phase::Greeting {
            return self.greet(id);
        }
        connection.set_share(share);
        connection.socket_event(events);
        if connection.is_spent() {
            self.forget(id);
        } else {
            self.settle(id);
        }
    }

    /// A packet from the guest; false if nobody was there to take it.
    fn packet(&mut self, chain: &Chain) -> Result<bool, DeviceFault> {
        let header = Header::read(chain.readable()).ok_or(DeviceFault::Guest("vsock packet without a header"))?;
        if header.src_cid != self.guest_cid {
            tracing::debug!(cid = header.src_cid, "vsock: packet with a foreign sender");
            return Ok(false);
        }
        let (_, data) = chain.readable().split_at(HEADER_LEN);
        let key = Key { guest_port: header.src_port, host_port: header.dst_port };
        let id = self.by_key.get(&key).copied();
        let sound = header.dst_cid == HOST_CID && header.kind == STREAM && header.len as usize <= data.len();
        let accepted = match id {
            _ if !sound => false,
            None => header.op == OP_REQUEST && self.connect(key, &header).is_ok(),
            Some(id) => self.deliver(id, &header, chain),
        };
        if accepted {
            return Ok(true);
        }
        // A packet that is not even a stream's says nothing about the stream of the same ports; and a connection that was
        // detached just now has still something to deliver.
        let ours = header.dst_cid == HOST_CID && header.kind == STREAM;
        if let Some(id) = id.filter(|id| ours && self.by_key.get(&key) == Some(id)) {
            self.forget(id);
        }
        if header.op != OP_RST {
            self.resets.push_back(header.reset());
        }
        // Both ends may be at an end at the same time, and to an orderly one belongs a reset.
        Ok(header.op == OP_RST || sound && id.is_some() && header.op == OP_SHUTDOWN)
    }

    /// The guest connects to a host program.
    fn connect(&mut self, key: Key, request: &Header) -> io::Result<()> {
        if self.connections.len() >= CONNECTIONS {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let stream = self.endpoint.connect(key.host_port)?;
        let id = self.keep(Connection::answered(stream, key, request, self.share_of_next()))?;
        self.by_key.insert(key, id);
        self.schedule(id);
        Ok(())
    }

    /// A packet for a connection; false if it ends the connection with a reset.
    fn deliver(&mut self, id: u64, header: &Header, chain: &Chain) -> bool {
        let share = self.share();
        let Some(connection) = self.connections.get_mut(&id) else {
            return false;
        };
        connection.set_share(share);
        if header.op != OP_RST {
            connection.take_credit(header);
        }
        let sound = match header.op {
            OP_RESPONSE => connection.response(header).is_ok(),
            OP_RW => {
                let (_, data) = chain.readable().split_at(HEADER_LEN);
                connection.receive(data.split_at(header.len as usize).0).is_ok()
            }
            OP_CREDIT_UPDATE => true,
            OP_CREDIT_REQUEST => {
                connection.credit_request();
                true
            }
            OP_SHUTDOWN if connection.phase == Phase::Established => {
                if connection.shutdown(header.flags) {
                    // The guest waits for the reset; what it has sent is still delivered.
                    self.detach(id);
                    return false;
                }
                true
            }
            OP_RST => {
                self.detach(id);
                return true;
            }
            _ => false,
        };
        self.settle(id);
        sound
    }

    /// The guest is through with a connection: its ports are free at once, its backlog goes on to the host.
    fn detach(&mut self, id: u64) {
        if let Some(connection) = self.connections.get_mut(&id) {
            self.by_key.remove(&connection.key);
            if connection.linger() {
                self.settle(id);
            } else {
                self.forget(id);
            }
        }
    }
}

impl VirtioDevice for Vsock {
    fn info(&self) -> DeviceInfo {
        // The kernels built here give 16 KiB with each receive buffer.
        DeviceInfo { name: "vsock", id: 19, features: 0, queue_sizes: &[64, 256, 16], prompt: false }
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn fds(&self) -> Vec<DeviceFd> {
        vec![DeviceFd { fd: self.epoll.as_raw_fd(), token: 0 }]
    }

    fn activate(&mut self, _: u64) -> Result<(), DeviceFault> {
        if std::mem::take(&mut self.accept_again) {
            self.accept();
        }
        Ok(())
    }

    fn process_queue(&mut self, index: usize, io: &mut Io) -> Result<(), DeviceFault> {
        if index == EVENT { self.send_event(io) } else { self.pump(io) }
    }

    fn fds_until_reset(&self) -> Vec<DeviceFd> {
        self.fds()
    }

    fn process_fd(&mut self, _: u16, io: &mut Io) -> Result<(), DeviceFault> {
        self.socket_events(Self::accept)?;
        self.pump(io)
    }

    fn turn_away(&mut self, _: u16) {
        if let Err(fault) = self.socket_events(Self::close_waiting) {
            tracing::warn!("vsock: {fault}");
        }
    }

    fn quiesce(&mut self, _: &mut Io, forget: bool) -> Result<(), DeviceFault> {
        if forget {
            self.connections.clear();
            self.by_key.clear();
            self.ready.clear();
            self.resets.clear();
            self.transport_reset = false;
            if self.accept_again {
                // Its edge is spent; whoever waits is closed, as all others were.
                self.close_waiting();
            }
        }
        Ok(())
    }

    fn save(&self) -> Result<Value, StateError> {
        Ok(serde_json::json!({ "version": STATE_VERSION }))
    }

    /// Connections do not move to another machine: the guest is told that they are gone.
    fn load(&mut self, state: &Value) -> Result<(), StateError> {
        check_state_version("vsock", state, STATE_VERSION)?;
        self.transport_reset = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
