//! The other end of a switch's socket, for whoever takes a lease or asks who is there.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::protocol::{Join, Joined, LONGEST_ANSWER, Listing, PREFIX, Request, VERSION};

/// How long a switch may take for an answer: it does nothing that takes time.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long it may take to forget one that leaves.
const FAREWELL: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// What a switch has not done.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is none, it ended, or it says nothing.
    #[error("the network's switch: {0}")]
    Io(#[from] io::Error),
    /// It does not want to; its own words.
    #[error("{0}")]
    Refused(String),
}

/// An address in a network, for as long as this is there.
#[derive(Debug)]
pub struct Lease {
    stream: UnixStream,
}

/// Becomes a member; returns the address, too.
///
/// # Errors
/// There is no switch, or it refuses.
pub fn join(socket: &Path, join: &Join) -> Result<(Lease, std::net::Ipv4Addr), ClientError> {
    let (stream, answer) = ask(socket, &Request::Join(join.clone()))?;
    match answer {
        Joined::Address(ip) => Ok((Lease { stream }, ip)),
        Joined::Refused(why) => Err(ClientError::Refused(why)),
    }
}

/// Who is there.
///
/// # Errors
/// There is no switch.
pub fn list(socket: &Path) -> Result<Listing, ClientError> {
    ask(socket, &Request::List).map(|(_, listing)| listing)
}

/// What a port says first, as it is to be sent behind its length.
pub fn greeting(mac: [u8; 6]) -> String {
    // It has no maps whose keys could be no text, and nothing else can fail.
    serde_json::to_string(&Request::Attach { version: VERSION, mac }).unwrap_or_default()
}

fn ask<T: DeserializeOwned>(socket: &Path, request: &Request) -> Result<(UnixStream, T), ClientError> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(&message(request)?)?;
    let mut prefix = [0; PREFIX];
    stream.read_exact(&mut prefix)?;
    let len = u32::from_be_bytes(prefix) as usize;
    if len > LONGEST_ANSWER {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("an answer of {len} bytes")).into());
    }
    let mut answer = vec![0; len];
    stream.read_exact(&mut answer)?;
    let answer = serde_json::from_slice(&answer).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    Ok((stream, answer))
}

/// A message behind its length.
pub(crate) fn message(content: &impl Serialize) -> io::Result<Vec<u8>> {
    let content = serde_json::to_vec(content)?;
    let len = u32::try_from(content.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok([&len.to_be_bytes()[..], &content].concat())
}

impl Drop for Lease {
    fn drop(&mut self) {
        // When it has closed its end it has forgotten us, and if nobody else was there, it has ended.
        if self.stream.shutdown(Shutdown::Write).is_ok() {
            let _ = poll(&mut [PollFd::new(&self.stream, PollFlags::IN)], Some(&FAREWELL));
        }
    }
}
