//! The control socket on the event loop: all clients behind one descriptor, an epoll set of their own.
//!
//! A client waits for nobody and nobody waits for a client: each event moves one connection as far as it goes without
//! waiting ([`Connection`]). There are [`CLIENTS`] at most; one more takes the place of the one that has been silent for
//! longest, so that clients that hold connections open cannot lock others out.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use devices::listener::{Access, Listener};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::connection::{Connection, Handler, Needs};
use super::http::Response;

/// Most clients at a time.
pub const CLIENTS: usize = 16;
/// Events taken from the epoll set at a time.
const BATCH: usize = CLIENTS + 2;
/// Event data of the listening socket; clients count from 1.
const LISTENER: u64 = 0;
/// And of an answer that another thread gives.
const ANSWER: u64 = u64::MAX;

/// The control socket. Its file goes away with it.
pub struct Server<H> {
    listener: Listener,
    epoll: Epoll,
    clients: BTreeMap<u64, Client>,
    next_id: u64,
    /// Counts events: the order in which clients were active.
    clock: u64,
    /// To be closed and opened again when the process has no descriptor left to accept a client with.
    reserve: Option<OwnedFd>,
    /// An answer that is to be given on the event loop, and what tells of it.
    soon: (Option<Response>, EventFd),
    handler: H,
}

struct Client {
    connection: Connection,
    needs: Needs,
    last_active: u64,
}

impl<H: Handler> Server<H> {
    /// Listens at `path`, for the owner of this process and root. A socket file that nobody listens on is replaced.
    pub fn bind(path: PathBuf, handler: H) -> io::Result<Self> {
        let listener = Listener::bind(path, Access::Owner)?;
        let epoll = Epoll::new()?;
        let event = EpollEvent::new(EventSet::IN, LISTENER);
        epoll.ctl(ControlOperation::Add, listener.socket().as_raw_fd(), event)?;
        let told = EventFd::new(EFD_NONBLOCK)?;
        epoll.ctl(ControlOperation::Add, told.as_raw_fd(), EpollEvent::new(EventSet::IN, ANSWER))?;
        let (clients, reserve) = (BTreeMap::new(), reserve(&epoll));
        let soon = (None, told);
        Ok(Server { listener, epoll, clients, next_id: LISTENER + 1, clock: 0, reserve, soon, handler })
    }

    /// Removes the socket's file: nobody can connect any more. Who was to be answered soon is answered now.
    pub fn close(&mut self) {
        self.answer_now();
        self.listener.remove();
    }

    /// Who answers.
    pub fn handler_mut(&mut self) -> &mut H {
        &mut self.handler
    }

    /// Gives the answer that [`super::Reply::Later`] promised. A client that did not wait for it misses it.
    pub fn answer(&mut self, response: &Response) {
        let waiting = self.clients.iter().find(|(_, client)| client.connection.is_waiting());
        if let Some((&id, _)) = waiting {
            if let Some(client) = self.clients.get_mut(&id) {
                client.connection.answer(response);
            }
            self.advance(id);
        }
    }

    /// The same on the event loop: for a thread that may not talk to clients any more.
    pub fn answer_soon(&mut self, response: Response) {
        if self.clients.values().any(|client| client.connection.is_waiting()) {
            self.soon.0 = Some(response);
            // Only a full counter fails, and that wakes the loop as well.
            let _ = self.soon.1.write(1);
        }
    }

    fn answer_now(&mut self) {
        if let Some(response) = self.soon.0.take() {
            self.answer(&response);
        }
    }

    /// Does everything that can be done without waiting.
    pub fn turn(&mut self) {
        let mut events = [EpollEvent::default(); BATCH];
        let count = match self.epoll.wait(0, &mut events) {
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
            Err(e) => {
                tracing::error!("control socket: {e}");
                0
            }
        };
        for event in &events[..count] {
            match event.data() {
                LISTENER => self.accept(),
                ANSWER => {
                    let _ = self.soon.1.read();
                    self.answer_now();
                }
                // Nothing was asked for but to know that the client is gone.
                id if self.clients.get(&id).is_some_and(|client| client.connection.is_waiting()) => self.forget(id),
                id => self.advance(id),
            }
        }
    }

    fn accept(&mut self) {
        // The rest comes with the next event.
        for _ in 0..CLIENTS {
            match self.listener.accept() {
                Ok(stream) => self.admit(stream),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                // A client that is gone again.
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    tracing::warn!("control socket: a client cannot be accepted: {e}");
                    return self.turn_away();
                }
            }
        }
    }

    /// There is no descriptor for a client that waits. It is let in with the reserve and shown out, because an event that
    /// nothing is done about comes again at once.
    fn turn_away(&mut self) {
        self.reserve = None;
        drop(self.listener.accept());
        self.reserve = reserve(&self.epoll);
    }

    /// Takes a client that has connected.
    fn admit(&mut self, stream: UnixStream) {
        if self.clients.len() >= CLIENTS {
            let silent = self.clients.iter().filter(|(_, client)| !client.connection.is_waiting());
            if let Some((&id, _)) = silent.min_by_key(|(_, client)| client.last_active) {
                tracing::debug!("control socket: a silent client makes room");
                self.forget(id);
            }
        }
        let id = self.next_id;
        self.next_id += 1;
        let watched =
            self.epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), EpollEvent::new(interest(Needs::Input), id));
        if let Err(e) = watched {
            tracing::warn!("control socket: a client cannot be watched: {e}");
            return;
        }
        self.clock += 1;
        let connection = Connection::new(stream);
        self.clients.insert(id, Client { connection, needs: Needs::Input, last_active: self.clock });
    }

    fn forget(&mut self, id: u64) {
        // Closing the stream takes it out of the epoll set.
        self.clients.remove(&id);
    }

    fn advance(&mut self, id: u64) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        self.clock += 1;
        client.last_active = self.clock;
        let needs = client.connection.advance(&mut self.handler);
        if needs == Needs::Nothing {
            return self.forget(id);
        }
        if needs != client.needs {
            client.needs = needs;
            let fd = client.connection.stream().as_raw_fd();
            if let Err(e) = self.epoll.ctl(ControlOperation::Modify, fd, EpollEvent::new(interest(needs), id)) {
                tracing::warn!("control socket: a client cannot be watched: {e}");
                self.forget(id);
            }
        }
    }
}

/// A descriptor that is there to be closed.
fn reserve(epoll: &Epoll) -> Option<OwnedFd> {
    // SAFETY: the epoll set has it open as long as it is borrowed.
    let any = unsafe { BorrowedFd::borrow_raw(epoll.as_raw_fd()) };
    any.try_clone_to_owned().ok()
}

fn interest(needs: Needs) -> EventSet {
    match needs {
        Needs::Input => EventSet::IN,
        Needs::Output => EventSet::OUT,
        // The end of the connection is always told.
        Needs::Answer | Needs::Nothing => EventSet::empty(),
    }
}

impl<H: Handler> MutEventSubscriber for Server<H> {
    fn process(&mut self, _: Events, _: &mut EventOps) {
        self.turn();
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(e) = ops.add(Events::new_raw(self.epoll.as_raw_fd(), EventSet::IN)) {
            tracing::error!("control socket: it cannot be watched: {e:?}");
        }
    }
}

#[cfg(test)]
mod tests;
