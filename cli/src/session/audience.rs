//! Whoever else is at what a process writes, beside its log: clients that have attached themselves to it.
//!
//! A process waits for those who listen to it, as it does for a terminal; but not for ever for one that others have a right to
//! as well: who takes nothing for [`PATIENCE`] is listened to no longer. Their ends of the streams are sockets.

use super::Recorder;
use guest_protocol::StreamKind;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a process waits for a listener that takes nothing.
const PATIENCE: Duration = Duration::from_secs(10);

/// Hears what a process writes, and passes it on.
#[derive(Debug)]
pub struct Audience {
    /// Its log, which has each byte before anybody else.
    log: Option<Arc<dyn Recorder>>,
    /// Held to look at the list or to change it, never while anybody is waited for.
    listeners: Mutex<Vec<Listener>>,
    patience: Duration,
}

/// One stream of somebody who listens.
#[derive(Debug, Clone)]
struct Listener {
    to: StreamKind,
    stream: Arc<UnixStream>,
}

impl Audience {
    /// Nobody yet, but for the log.
    pub fn new(log: Option<Arc<dyn Recorder>>) -> Arc<Self> {
        Self::with_patience(log, PATIENCE)
    }

    fn with_patience(log: Option<Arc<dyn Recorder>>, patience: Duration) -> Arc<Self> {
        Arc::new(Audience { log, listeners: Mutex::default(), patience })
    }

    /// One more who hears a stream from now on: where that is to be read. `sole`: the process is theirs alone, and waits for as
    /// long as it takes.
    ///
    /// # Errors
    /// As socketpair(2).
    pub fn join(&self, to: StreamKind, sole: bool) -> io::Result<UnixStream> {
        let (theirs, ours) = UnixStream::pair()?;
        ours.set_write_timeout((!sole).then_some(self.patience))?;
        self.lock().push(Listener { to, stream: Arc::new(ours) });
        Ok(theirs)
    }

    /// Nothing more comes: everybody finds the end.
    pub fn close(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Listener>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recorder for Audience {
    fn output(&self, stream: StreamKind, bytes: &[u8]) {
        if let Some(log) = &self.log {
            log.output(stream, bytes);
        }
        let listeners: Vec<Listener> = self.lock().iter().filter(|one| one.to == stream).cloned().collect();
        for listener in listeners {
            // Gone, or too slow.
            if (&*listener.stream).write_all(bytes).is_err() {
                self.lock().retain(|other| !Arc::ptr_eq(&other.stream, &listener.stream));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn everybody_hears_the_stream_that_they_are_at() {
        let audience = Audience::new(None);
        audience.output(StreamKind::Stdout, b"before");
        let mut one = audience.join(StreamKind::Stdout, false).unwrap();
        let mut other = audience.join(StreamKind::Stdout, true).unwrap();
        let mut errors = audience.join(StreamKind::Stderr, false).unwrap();
        drop(audience.join(StreamKind::Stdout, false).unwrap());
        audience.output(StreamKind::Stdout, b"out");
        audience.output(StreamKind::Stderr, b"err");
        assert_eq!(audience.lock().len(), 3);
        audience.close();
        let mut text = String::new();
        for (stream, want) in [(&mut one, "out"), (&mut other, "out"), (&mut errors, "err")] {
            text.clear();
            stream.read_to_string(&mut text).unwrap();
            assert_eq!(text, want);
        }
    }

    #[test]
    fn one_that_takes_nothing_holds_nobody_up_for_ever() {
        let audience = Audience::with_patience(None, Duration::from_millis(20));
        let mut idle = audience.join(StreamKind::Terminal, false).unwrap();
        let chunk = vec![b'x'; 1 << 20];
        audience.output(StreamKind::Terminal, &chunk);
        assert!(audience.lock().is_empty());
        // What it had taken is its own, and then comes the end.
        let mut taken = Vec::new();
        idle.read_to_end(&mut taken).unwrap();
        assert!(!taken.is_empty() && taken.len() < chunk.len());
    }
}
