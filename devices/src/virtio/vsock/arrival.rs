//! Host programs that connect: taken in, heard, or turned away.

use std::io;
use std::os::unix::net::UnixStream;

use super::connection::{Connection, Key};
use super::{CONNECTIONS, FIRST_HOST_PORT, Vsock, greeting};

impl Vsock {
    /// Takes in those who have connected.
    pub(super) fn accept(&mut self) {
        self.each_arrival(|device, stream| {
            if device.connections.len() < CONNECTIONS {
                device.accepted(stream);
            } else {
                // The program sees the end of its stream.
                tracing::warn!("vsock: more than {CONNECTIONS} connections");
            }
        });
    }

    /// Those who have connected see the end of their streams.
    pub(super) fn close_waiting(&mut self) {
        self.each_arrival(|_, stream| drop(stream));
    }

    /// Notes whether some are left, for lack of descriptors: their edge is spent.
    fn each_arrival(&mut self, mut take: impl FnMut(&mut Self, UnixStream)) {
        self.accept_again = loop {
            match self.endpoint.accept() {
                Ok(stream) => take(self, stream),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break false,
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::ECONNABORTED)) => {}
                Err(e) => {
                    tracing::warn!("vsock: accept: {e}");
                    break true;
                }
            }
        };
    }

    fn accepted(&mut self, stream: UnixStream) {
        match self.keep(Connection::accepted(stream, self.share_of_next())) {
            // The line may be there already; if not, its arrival is an edge.
            Ok(id) => self.greet(id),
            Err(e) => tracing::warn!("vsock: a connection cannot be watched: {e}"),
        }
    }

    /// Reads the first line of a host program, and asks the guest when it is there.
    pub(super) fn greet(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        match greeting::read(&connection.stream) {
            Ok(None) => {}
            Ok(Some(guest_port)) => {
                let key = loop {
                    let key = Key { guest_port, host_port: self.next_port };
                    self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_HOST_PORT);
                    // Ends: there are far more ports than connections.
                    if !self.by_key.contains_key(&key) {
                        break key;
                    }
                };
                connection.request(key);
                self.by_key.insert(key, id);
                self.schedule(id);
            }
            Err(e) => {
                tracing::debug!("vsock: greeting: {e}");
                self.forget(id);
            }
        }
    }
}
