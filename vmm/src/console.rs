//! Console plumbing between the host and the serial port: input with back-pressure, output with a bound.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use devices::legacy::Serial;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;

/// Feeds a descriptor into the serial port, no faster than the guest reads it.
pub struct Input {
    source: File,
    serial: Arc<Mutex<Serial>>,
    /// The serial port says here that its FIFO has room again.
    room: EventFd,
    /// The source is in the epoll set.
    listening: bool,
}

impl Input {
    /// Takes the descriptor over.
    pub fn new(source: OwnedFd, serial: Arc<Mutex<Serial>>) -> io::Result<Self> {
        let room = serial.lock().unwrap_or_else(PoisonError::into_inner).room_event()?;
        Ok(Input { source: File::from(source), serial, room, listening: false })
    }

    fn listen(&mut self, on: bool, ops: &mut EventOps) {
        if on == self.listening {
            return;
        }
        let event = Events::new_raw(self.source.as_raw_fd(), EventSet::IN);
        let result = if on { ops.add(event) } else { ops.remove(event) };
        match result {
            Ok(()) => self.listening = on,
            // A regular file or /dev/null cannot be watched: there is no one to type there.
            Err(e) => tracing::debug!("console input: {e:?}"),
        }
    }

    /// Moves what fits. One read a call: the descriptor may be shared with others, so it stays in blocking mode, and a
    /// read after an event does not block.
    fn pump(&mut self, ops: &mut EventOps) {
        let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = [0u8; 64];
        let room = serial.room().min(buffer.len());
        if room == 0 {
            drop(serial);
            self.listen(false, ops);
            return;
        }
        match self.source.read(&mut buffer[..room]) {
            Ok(0) => {
                drop(serial);
                self.listen(false, ops);
            }
            Ok(n) => serial.enqueue(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted || e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => {
                tracing::debug!("console input: {e}");
                drop(serial);
                self.listen(false, ops);
            }
        }
    }
}

impl MutEventSubscriber for Input {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.fd() == self.room.as_raw_fd() {
            let _ = self.room.read();
            self.listen(true, ops);
        } else if events.event_set().contains(EventSet::IN) {
            self.pump(ops);
        } else {
            // Hung up, with nothing left to read.
            self.listen(false, ops);
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(e) = ops.add(Events::new_raw(self.room.as_raw_fd(), EventSet::IN)) {
            tracing::error!("console input: {e:?}");
        }
        self.listen(true, ops);
    }
}

/// A file that keeps the first `limit` bytes and drops the rest.
pub struct Bounded {
    file: File,
    left: u64,
}

impl Bounded {
    /// Takes the file over.
    pub fn new(file: File, limit: u64) -> Self {
        Bounded { file, left: limit }
    }
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let keep = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.file.write_all(&bytes[..keep])?;
        self.left -= keep as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_keeps_its_first_bytes_and_never_fails_for_more() {
        let dir = std::env::temp_dir().join(format!("bulkhead-bounded-{}", std::process::id()));
        let mut log = Bounded::new(File::create(&dir).unwrap(), 5);
        for _ in 0..3 {
            log.write_all(b"abc").unwrap();
        }
        assert_eq!(std::fs::read(&dir).unwrap(), b"abcab");
        std::fs::remove_file(&dir).unwrap();
    }
}
