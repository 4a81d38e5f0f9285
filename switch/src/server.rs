//! The process's loop: one thread, which waits for nothing but for something to happen.
//!
//! ```text
//!  connection ─► Pending ─┬─ join ───► lease of a member ── its end ─► all of it goes
//!                         ├─ attach ─► port of a member ─── its end ─► waits for the uplink's, then goes
//!                         └─ list ───► answered, closed
//! ```
//!
//! It ends when its last member has gone: the socket first, so that whoever finds it closed may start another.

mod pending;
mod watching;

use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use libc::c_long;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{Shutdown, SocketFlags, accept_with, shutdown};

use crate::dns::{self, Answer};
use crate::frame::{self, Own, Verdict};
use crate::handshake::{Came, Handshakes};
use crate::link::Link;
use crate::members::{Member, Members};
use crate::protocol::{Joined, Listing, Network, Request, VERSION};
use pending::{Pending, say, say_words};
use watching::{KINDS, LEASE, LISTENER, PENDING, PORT, UPLINK, watch, watch_link};

/// The system calls of the loop beside those that any thread makes.
pub const CALLS: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
];

/// How long a connection may take to say what it is, and the first member to come: on a host where many start at once, that is long.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often that is looked at, as long as there is such a one.
const GLANCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// Most connections that have not said what they are. They are the user's own.
const MOST_PENDING: usize = 64;
/// How often a port is read before others have their turn.
const READS: usize = 4;
/// Events that are taken at once.
const EVENTS: usize = 64;

#[derive(Debug)]
struct Server {
    network: Network,
    missing: Vec<String>,
    epoll: OwnedFd,
    members: Members,
    pending: BTreeMap<u64, Pending>,
    /// The number of the next connection.
    next: u64,
    /// Somebody has been a member.
    used: bool,
    /// Those that are members no more. Who finds its lease closed finds no socket either, if nobody else was there.
    gone: Vec<Member>,
}

/// Serves a network on a socket that listens and does not block, until its last member is gone, or none has come in time. `missing`: what the host did not
/// give of the sandbox.
///
/// # Errors
/// The host does not let it wait for anything.
pub fn serve(listener: OwnedFd, network: Network, missing: Vec<String>) -> io::Result<()> {
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    let (members, pending) = (Members::default(), BTreeMap::new());
    let mut server = Server { network, missing, epoll, members, pending, next: 0, used: false, gone: Vec::new() };
    let began = Instant::now();
    let mut events = [const { MaybeUninit::uninit() }; EVENTS];
    while !server.is_over(began) {
        server.gone.clear();
        let busy = server.pending.is_empty() && !server.members.is_empty();
        match epoll::wait(&server.epoll, &mut events, if busy { None } else { Some(&GLANCE) }) {
            Ok((happened, _)) => happened.iter().for_each(|event| server.happened(&listener, event)),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        server.pending.retain(|_, pending| pending.since.elapsed() < PATIENCE);
    }
    drop(listener);
    Ok(())
}

impl Server {
    fn is_over(&self, began: Instant) -> bool {
        let nobody = self.members.is_empty() && self.pending.is_empty();
        nobody && (self.used || began.elapsed() > PATIENCE)
    }

    fn happened(&mut self, listener: &OwnedFd, event: &Event) {
        let (token, flags) = (event.data.u64(), event.flags);
        if token == LISTENER {
            return self.accept(listener);
        }
        let key = token / KINDS;
        match token % KINDS {
            PENDING => self.hear_pending(key),
            // It has nothing to say.
            LEASE => self.remove(key),
            PORT => {
                if flags.intersects(EventFlags::OUT) {
                    self.flush(key);
                }
                if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                    self.hear_port(key);
                }
            }
            _ => {
                if flags.intersects(EventFlags::OUT) {
                    self.flush(key);
                }
                if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                    self.hear_uplink(key);
                }
            }
        }
    }

    fn accept(&mut self, listener: &OwnedFd) {
        // What cannot be accepted for lack of something is tried again: there is room for as many descriptors as there can be.
        let Ok(socket) = accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) else { return };
        if self.pending.len() >= MOST_PENDING {
            return;
        }
        self.next += 1;
        if watch(&self.epoll, &socket, self.next, PENDING).is_ok() {
            self.pending.insert(self.next, Pending::new(socket));
        }
    }

    /// Reads of what a connection is.
    fn hear_pending(&mut self, key: u64) {
        let Some(pending) = self.pending.get_mut(&key) else { return };
        match pending.read() {
            Ok(None) => {}
            Ok(Some(request)) => {
                if let Some(pending) = self.pending.remove(&key) {
                    let _ = epoll::delete(&self.epoll, &pending.socket);
                    // One that is not there to hear the answer gets nothing.
                    let _ = self.answer(key, pending, request);
                }
            }
            Err(_) => drop(self.pending.remove(&key)),
        }
    }

    fn answer(&mut self, key: u64, pending: Pending, request: Request) -> io::Result<()> {
        let Pending { socket, uplink, .. } = pending;
        match request {
            Request::List => say(&socket, &Listing { members: self.members.shown(), missing: self.missing.clone() }),
            Request::Join(join) => match self.members.own(&join, &self.network) {
                Ok(own) => {
                    watch(&self.epoll, &socket, key, LEASE)?;
                    say(&socket, &Joined::Address(own.ip))?;
                    self.used = true;
                    self.members.add(key, join, own, socket);
                    Ok(())
                }
                Err(why) => say(&socket, &Joined::Refused(why)),
            },
            Request::Attach { version, mac } => match self.members.at(&mac).filter(|_| version == VERSION) {
                Some(member) => self.attach(member, socket, uplink),
                None => say_words(&socket, "nobody with this MAC address has a lease"),
            },
        }
    }

    /// Connects a member's microVM.
    fn attach(&mut self, key: u64, socket: OwnedFd, uplink: Option<OwnedFd>) -> io::Result<()> {
        self.detach(key);
        let Some(member) = self.members.get(key) else { return Ok(()) };
        say_words(&socket, "")?;
        member.port = Some(Link::new(socket));
        member.uplink = uplink.map(Link::new);
        member.handshakes = Handshakes::default();
        self.rewatch(key);
        Ok(())
    }

    /// Closes a member's port and uplink.
    fn detach(&mut self, key: u64) {
        let Some(member) = self.members.get(key) else { return };
        member.leaving = false;
        // Others may have the sockets as well: closing them is not enough.
        for link in member.port.take().into_iter().chain(member.uplink.take()) {
            let _ = epoll::delete(&self.epoll, &link);
        }
    }

    fn remove(&mut self, key: u64) {
        self.detach(key);
        if let Some(member) = self.members.remove(key) {
            let _ = epoll::delete(&self.epoll, &member.lease);
            self.gone.push(member);
        }
    }

    /// A member's port has ended: the uplink is to do so before.
    fn leave(&mut self, key: u64) {
        match self.members.get(key) {
            Some(member) if member.uplink.is_some() && member.port.is_some() && !member.leaving => {
                member.leaving = true;
                let ended = member.uplink.iter().any(|uplink| shutdown(uplink, Shutdown::Write).is_err());
                if ended { self.detach(key) } else { self.rewatch(key) }
            }
            Some(member) if member.leaving => {}
            _ => self.detach(key),
        }
    }

    /// Passes on what a member's guest has sent.
    fn hear_port(&mut self, key: u64) {
        let Some(member) = self.members.get(key).filter(|member| !member.leaving) else { return };
        let (own, Some(mut port)) = (member.own, member.port.take()) else { return };
        let passed = self.pass(key, own, &mut port);
        if let Some(member) = self.members.get(key) {
            member.port = Some(port);
        }
        match passed {
            Ok(()) => self.rewatch(key),
            Err(_) => self.leave(key),
        }
    }

    fn pass(&mut self, key: u64, own: Own, port: &mut Link) -> io::Result<()> {
        for _ in 0..READS {
            if !port.read()? {
                break;
            }
            let mut reached = Vec::new();
            while let Some(place) = port.next()? {
                let answer = self.route(key, own, port.frame(place), &mut reached);
                if !answer.is_none_or(|answer| port.put(&answer)) {
                    self.members.get(key).into_iter().for_each(|member| member.lost += 1);
                }
            }
            reached.sort_unstable();
            reached.dedup();
            reached.into_iter().for_each(|key| self.flush(key));
            port.flush()?;
        }
        Ok(())
    }

    /// Has a frame go where it is to; those that get it are added to `reached`. Returns an answer to its sender, if there is one.
    fn route(&mut self, key: u64, own: Own, frame: &mut [u8], reached: &mut Vec<u64>) -> Option<Vec<u8>> {
        let verdict = frame::judge(frame, own, &self.network);
        let member = self.members.get(key)?;
        member.sent += 1;
        match verdict {
            Verdict::Denied => {
                member.denied += 1;
                None
            }
            Verdict::Nobody => None,
            Verdict::Question(ip) => {
                let gateway = (ip == self.network.gateway).then(|| self.network.gateway_mac());
                let mac = gateway.or_else(|| self.members.mac_of(ip))?;
                Some(frame::arp_answer(own, ip, mac))
            }
            Verdict::Everybody => {
                for other in self.members.keys().into_iter().filter(|other| *other != key) {
                    self.give(other, frame, reached);
                }
                None
            }
            Verdict::To(mac) => {
                let other = self.members.at(&mac).filter(|other| *other != key)?;
                self.give(other, frame, reached);
                None
            }
            Verdict::Dns(port, query) => {
                let find = |name: &str| self.members.named(name, &self.network);
                match dns::answer(query, self.network.internal, find) {
                    Answer::Is(answer) => Some(frame::dns_answer(own, &self.network, port, &answer)),
                    Answer::Elsewhere => {
                        self.send_out(key, frame, reached);
                        None
                    }
                    Answer::None => None,
                }
            }
            Verdict::Out => {
                self.send_out(key, frame, reached);
                None
            }
        }
    }

    fn give(&mut self, key: u64, frame: &[u8], reached: &mut Vec<u64>) {
        let Some(member) = self.members.get(key).filter(|member| !member.leaving) else { return };
        if member.port.as_mut().is_some_and(|port| port.put(frame)) {
            reached.push(key);
        } else {
            member.lost += 1;
        }
    }

    fn send_out(&mut self, key: u64, frame: &[u8], reached: &mut Vec<u64>) {
        let Some(member) = self.members.get(key) else { return };
        let Some(uplink) = &mut member.uplink else { return };
        // What it does not take in time is lost, as on any network.
        if uplink.put(frame) {
            reached.push(key);
            let _ = member.handshakes.sent(frame).is_some_and(|question| uplink.put(&question));
        }
    }

    /// Passes on what is for a member's guest from beyond the network, as long as it takes it.
    fn hear_uplink(&mut self, key: u64) {
        let network = self.network.clone();
        let Some(member) = self.members.get(key) else { return };
        let Some(uplink) = &mut member.uplink else { return };
        let mut read = || -> io::Result<()> {
            for _ in 0..READS {
                if !uplink.read()? {
                    break;
                }
                while let Some(place) = uplink.next()? {
                    let frame = uplink.frame(place);
                    let port = member.port.as_mut().filter(|_| !member.leaving);
                    let taken = match member.handshakes.came(frame) {
                        Came::Nothing => true,
                        Came::Due(frame) => port.is_some_and(|port| port.put(&frame)),
                        Came::Frame => {
                            !frame::admit(frame, member.own, &network) || port.is_some_and(|port| port.put(frame))
                        }
                    };
                    member.lost += u64::from(!taken);
                }
                let Some(port) = &mut member.port else { break };
                // Its end is for the port's own event to tell.
                let _ = port.flush();
                if !port.has_room() {
                    break;
                }
            }
            Ok(())
        };
        match read() {
            Ok(()) => self.rewatch(key),
            Err(_) if member.leaving => self.detach(key),
            Err(_) => {
                // The network goes on without what was beyond it.
                if let Some(uplink) = member.uplink.take() {
                    let _ = epoll::delete(&self.epoll, &uplink);
                }
                self.rewatch(key);
            }
        }
    }

    /// Sends what waits for a member, or for what is beyond.
    fn flush(&mut self, key: u64) {
        if let Some(member) = self.members.get(key) {
            // The end of a link is told where it is read.
            let _ = member.port.as_mut().map(Link::flush);
            let _ = member.uplink.as_mut().map(Link::flush);
            self.rewatch(key);
        }
    }

    /// Listens to what of a member is of interest now.
    fn rewatch(&mut self, key: u64) {
        let Some(member) = self.members.get(key) else { return };
        let writes = |link: &Link| if link.owes() { EventFlags::OUT } else { EventFlags::empty() };
        let reads = |reads| if reads { EventFlags::IN } else { EventFlags::empty() };
        let has_room = member.port.as_ref().is_none_or(Link::has_room);
        let leaving = member.leaving;
        if let Some(port) = &mut member.port {
            // Its end would be told again and again.
            let wanted = if leaving { None } else { Some(EventFlags::IN | writes(port)) };
            watch_link(&self.epoll, port, key, PORT, wanted);
        }
        if let Some(uplink) = &mut member.uplink {
            let wanted = Some(reads(has_room || leaving) | writes(uplink));
            watch_link(&self.epoll, uplink, key, UPLINK, wanted);
        }
    }
}

#[cfg(test)]
mod tests;
