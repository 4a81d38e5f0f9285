//! A port of a switch: another process, which has a unix socket, and takes frames by it once it has been greeted. What is said there is
//! the business of whoever configures the device; what is beyond the switch's network is passt's, which ends with the port.

use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::{Deserialize, Serialize};

use super::passt::{Started, User};

/// Longest greeting, in bytes, so that the socket takes it at once.
const LONGEST: usize = 4 << 10;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The port of a device.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Where the switch is.
    socket: PathBuf,
    /// What is said to it, behind its length (32 bits, big-endian). The answer, in the same form, is empty, or says why not.
    greeting: String,
    /// What the network is called, for people.
    network: String,
    /// What leads out of the network, if anything does: its socket goes with the greeting (SCM_RIGHTS, unix(7)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uplink: Option<User>,
}

impl Port {
    /// What cannot be, if anything.
    pub fn check(&self) -> Result<(), String> {
        match self.greeting.len() > LONGEST {
            true => Err(format!("a greeting has {LONGEST} bytes at most")),
            false => self.uplink.as_ref().map_or(Ok(()), User::check),
        }
    }

    /// Connects it, and returns our end of it, with the number of what leads out of the network.
    pub fn start(&self) -> io::Result<Started> {
        let mut port = UnixStream::connect(&self.socket)?;
        let uplink = self.uplink.as_ref().map(User::start).transpose()?;
        let greeting = [&(self.greeting.len() as u32).to_be_bytes()[..], self.greeting.as_bytes()].concat();
        let descriptors: Vec<_> = uplink.iter().map(|uplink| uplink.socket.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        // There is room for one, and that is all there is.
        let _ = descriptors.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        let sent = sendmsg(&port, &[IoSlice::new(&greeting)], &mut ancillary, SendFlags::NOSIGNAL)?;
        if sent != greeting.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        port.set_read_timeout(Some(PATIENCE))?;
        let mut prefix = [0; 4];
        port.read_exact(&mut prefix)?;
        let mut answer = String::new();
        (&port).take(u32::from_be_bytes(prefix).min(LONGEST as u32).into()).read_to_string(&mut answer)?;
        match answer.is_empty() {
            true => Ok(Started { socket: port, pid: uplink.and_then(|uplink| uplink.pid) }),
            false => Err(io::Error::other(answer)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A switch that answers one port, and what it was greeted with.
    fn greeted(answer: &'static [u8]) -> (io::Result<Started>, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let switch = std::thread::spawn(move || {
            let (mut port, _) = listener.accept().unwrap();
            let mut greeting = [0; 4 + 5];
            port.read_exact(&mut greeting).unwrap();
            port.write_all(answer).unwrap();
            greeting.to_vec()
        });
        let port = Port { socket, greeting: "hello".into(), network: "net".into(), uplink: None };
        (port.start(), switch.join().unwrap())
    }

    #[test]
    fn a_port_is_greeted_and_answered() {
        let (port, greeting) = greeted(b"\0\0\0\0");
        assert_eq!((port.is_ok(), &greeting[..]), (true, &b"\0\0\0\x05hello"[..]));
        assert_eq!(greeted(b"\0\0\0\x02no").0.unwrap_err().to_string(), "no");
        assert_eq!(greeted(b"\0\0").0.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let nowhere = Port {
            socket: "/nonexistent/socket".into(),
            greeting: "x".repeat(LONGEST + 1),
            network: String::new(),
            uplink: None,
        };
        assert!(nowhere.check().is_err() && nowhere.start().is_err());
    }
}
