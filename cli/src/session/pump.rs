//! The threads that move the bytes of the streams. Each blocks on its own: what one side does not take, the other waits with.
//!
//! A thread ends when its source ends, its sink is gone, or its connection is shut down from outside.

use super::keys::Keys;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, read, write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

const CHUNK: usize = 64 << 10;

/// Passes what comes from the guest on to `sink`, after `record` has heard it; calls `done` at the end.
///
/// When the sink takes no more (a closed pipe), the guest's process is told by a closed stream of its own.
pub(super) fn output(
    connection: UnixStream,
    sink: OwnedFd,
    record: impl Fn(&[u8]) + Send + 'static,
    done: impl FnOnce() + Send + 'static,
) -> std::io::Result<()> {
    let pump = move || {
        let mut buffer = vec![0; CHUNK];
        while let Ok(count @ 1..) = retry(|| read(&connection, &mut buffer[..])) {
            record(&buffer[..count]);
            if write_all(&sink, &buffer[..count]).is_err() {
                break;
            }
        }
        let _ = connection.shutdown(Shutdown::Both);
        done();
    };
    thread::Builder::new().name("output".into()).spawn(pump).map(drop)
}

/// Passes what `source` brings on to the guest; its end becomes the end of the process's input.
pub(super) fn input(source: OwnedFd, connection: UnixStream) -> std::io::Result<JoinHandle<()>> {
    let pump = move || {
        let mut buffer = vec![0; CHUNK];
        while wait_for_input(&source, &connection) {
            match retry(|| read(&source, &mut buffer[..])) {
                Ok(count @ 1..) if write_all(&connection, &buffer[..count]).is_ok() => {}
                _ => break,
            }
        }
        let _ = connection.shutdown(Shutdown::Write);
    };
    thread::Builder::new().name("input".into()).spawn(pump)
}

/// Passes what `source` brings on to the input of a process that others can write to as well: its end is not that of the input.
/// `keys` end it earlier, which calls `detached`.
pub(super) fn shared_input(
    source: OwnedFd,
    sink: OwnedFd,
    mut keys: Option<Keys>,
    detached: impl FnOnce() + Send + 'static,
) -> std::io::Result<()> {
    let pump = move || {
        let mut buffer = vec![0; CHUNK];
        while wait_for_input(&source, &sink) {
            let Ok(count @ 1..) = retry(|| read(&source, &mut buffer[..])) else { return };
            let typed = &buffer[..count];
            let (typed, left) = keys.as_mut().map_or((typed.to_vec(), false), |keys| keys.filter(typed));
            if write_all(&sink, &typed).is_err() {
                return;
            }
            if left {
                return detached();
            }
        }
    };
    thread::Builder::new().name("input".into()).spawn(pump).map(drop)
}

/// Waits until there is something to read: false if the connection goes away first. What nobody will take is not taken from
/// the user's terminal either.
fn wait_for_input(source: &OwnedFd, connection: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(source, PollFlags::IN), PollFd::new(connection, PollFlags::empty())];
    retry(|| poll(&mut fds, None)).is_ok() && fds[1].revents().is_empty()
}

/// Writes everything. A sink that does not block (some other program's doing) is waited for.
fn write_all(sink: &impl AsFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match retry(|| write(sink, bytes)) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::AGAIN) => {
                retry(|| poll(&mut [PollFd::new(sink, PollFlags::OUT)], None))?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}
