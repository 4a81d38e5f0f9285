//! The first line of a host program: `CONNECT PORT`, to which port of the guest it wants.

use std::io;
use std::os::unix::net::UnixStream;

use rustix::net::{RecvFlags, recv};

/// Longest greeting: `CONNECT 4294967295\n` and some air.
const MOST: usize = 32;

/// The port a host program asks for. None while the line is incomplete; an error ends the connection.
pub fn read(stream: &UnixStream) -> io::Result<Option<u32>> {
    let mut line = [0; MOST];
    // A look first: what comes behind the line is the stream's.
    let seen = match recv(stream, &mut line, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
        Ok((seen, _)) => &line[..seen],
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let Some(end) = seen.iter().position(|byte| *byte == b'\n') else {
        return if seen.len() < MOST { Ok(None) } else { Err(io::ErrorKind::InvalidData.into()) };
    };
    let port = std::str::from_utf8(&seen[..end]).ok().and_then(|line| line.strip_prefix("CONNECT "));
    let port = port.and_then(|port| port.trim_end_matches('\r').parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    recv(stream, &mut line[..end + 1], RecvFlags::DONTWAIT)?;
    Ok(Some(port))
}
