//! passt, which is a network for one guest without privileges: it turns the guest's connections into sockets of its own
//! (`apt install passt`). A process a device; it ends when the device closes its end of their socket, so that nothing of it stays whatever
//! happens to this process.
//!
//! The guest's network is always the same one: 10.0.2.15/24, the gateway 10.0.2.2, and a resolver at 10.0.2.3 that asks the host's; but for a guest
//! with a place in another network ([`Place`]). passt tells by DHCP, too. Nothing in it leads to the host's loopback interface, where services are that trust who connects.

use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{FdFlags, retry_on_intr};
use rustix::net::sockopt::{set_socket_passcred, set_socket_send_buffer_size, set_socket_send_buffer_size_force};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde::{Deserialize, Serialize};
use switch::handshake;

/// The guest's address.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// The length of its network's prefix.
pub const PREFIX_LEN: u8 = 24;
/// Its way out.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The resolver.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// The largest packet it takes, in bytes.
pub const MTU: u16 = 65520;
/// Bytes on their way to the guest: what TCP at the guest's end takes at once, by Linux's usual limit (`tcp_rmem`).
const ON_THEIR_WAY: usize = 6 << 20;

/// How long it may take to answer.
const PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The network of a device.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// Ports of the host that lead to the guest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<Port>,
    /// Where the guest is, if not where it usually is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
}

/// A guest's place in a network.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// Its address.
    pub guest: Ipv4Addr,
    /// The length of its network's prefix.
    pub prefix_len: u8,
    /// Its way out, and the resolver.
    pub gateway: Ipv4Addr,
}

/// A port of the host that leads to one of the guest.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    protocol: Protocol,
    /// Where the host listens.
    host_ip: Ipv4Addr,
    host_port: u16,
    guest_port: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Protocol {
    Tcp,
    Udp,
}

impl User {
    /// What cannot be, if anything.
    pub fn check(&self) -> Result<(), String> {
        if self.publish.iter().any(|port| port.host_port == 0 || port.guest_port == 0) {
            return Err("port 0 is none".into());
        }
        match self.place.as_ref().is_some_and(|place| !(1..=30).contains(&place.prefix_len)) {
            true => Err("a place has a prefix_len of 1 to 30".into()),
            false => Ok(()),
        }
    }

    fn arguments(&self) -> Vec<String> {
        let mut words: Vec<String> = ["--quiet", "--ipv4-only", "--no-map-gw"].map(str::to_owned).into();
        let (guest, prefix_len, gateway, resolver) = match &self.place {
            None => (GUEST, PREFIX_LEN, GATEWAY, RESOLVER),
            Some(Place { guest, prefix_len, gateway }) => (*guest, *prefix_len, *gateway, *gateway),
        };
        words.extend(["--netmask".into(), prefix_len.to_string(), "--mtu".into(), MTU.to_string()]);
        // It is not told a resolver for its DHCP (`--dns`): it would take that for the host's, too, and ask nobody.
        let addresses = [("--address", guest), ("--gateway", gateway), ("--dns-forward", resolver)];
        words.extend(addresses.iter().flat_map(|(flag, address)| [(*flag).to_owned(), address.to_string()]));
        for Port { protocol, host_ip, host_port, guest_port } in &self.publish {
            let flag = if *protocol == Protocol::Tcp { "--tcp-ports" } else { "--udp-ports" };
            words.extend([flag.to_owned(), format!("{host_ip}/{host_port}:{guest_port}")]);
        }
        words
    }

    /// Starts it, and returns our end of the socket once it listens on all ports.
    pub fn start(&self) -> io::Result<Started> {
        let (ours, its) = pair()?;
        rustix::io::fcntl_setfd(&its, FdFlags::empty())?;
        let mut command = Command::new("passt");
        command.arg("--fd").arg(its.as_raw_fd().to_string()).args(self.arguments());
        // It goes on in the background once it is ready, with nothing of these open.
        let done = command.stdin(Stdio::null()).stdout(Stdio::null()).output().map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => io::Error::new(e.kind(), "it is not installed; `apt install passt`"),
            _ => e,
        })?;
        if done.status.success() {
            let pid = self.who_answers(&ours)?;
            return Ok(Started { socket: ours, pid });
        }
        let said = String::from_utf8_lossy(&done.stderr);
        // Where there is no log daemon it says that of each line.
        let telling = |line: &&str| !line.trim().is_empty() && !line.starts_with("Failed to send ");
        let last = said.lines().rev().find(telling).unwrap_or("it does not say why").trim();
        Err(io::Error::other(format!("{}: {last}", done.status)))
    }
}

/// passt, at work.
#[derive(Debug)]
pub struct Started {
    /// Our end of its socket.
    pub socket: UnixStream,
    /// Its number, unless it would not say: it is nobody's child.
    pub pid: Option<u32>,
}

impl User {
    /// Has it say something, and asks the kernel who that was (unix(7), SO_PASSCRED). What it says stays where it is, whatever that is: a client of a
    /// published port may be there already.
    fn who_answers(&self, socket: &UnixStream) -> io::Result<Option<u32>> {
        let (guest, gateway) = self.place.as_ref().map_or((GUEST, GATEWAY), |place| (place.guest, place.gateway));
        let knock = handshake::knock(guest, gateway);
        (&mut &*socket).write_all(&[&(knock.len() as u32).to_be_bytes()[..], &knock].concat())?;
        let said = retry_on_intr(|| poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&PATIENCE)))? > 0;
        let pid = if said { sender(socket)? } else { None };
        set_socket_passcred(socket, false)?;
        Ok(pid)
    }
}

/// Who has sent what is to be read next. None: it is in no namespace that this process sees.
fn sender(socket: &UnixStream) -> io::Result<Option<u32>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut first = [0];
    retry_on_intr(|| recvmsg(socket, &mut [IoSliceMut::new(&mut first)], &mut ancillary, RecvFlags::PEEK))?;
    Ok(ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmCredentials(sender) => Some(sender.pid.as_raw_nonzero().get().unsigned_abs()),
        _ => None,
    }))
}

/// Our end and its. passt sends all that the guest's window has room for in one go, and drops what the socket does not take; if those were the
/// last packets it has, the guest cannot tell that they are missing, and an older passt sends them again after two seconds. So what it has
/// sent may be as much as it can be, or as much as one without privileges may ask for (`net.core.wmem_max`, socket(7)).
fn pair() -> io::Result<(UnixStream, UnixStream)> {
    let (ours, its) = UnixStream::pair()?;
    set_socket_passcred(&ours, true)?;
    set_socket_send_buffer_size_force(&its, ON_THEIR_WAY)
        .or_else(|_| set_socket_send_buffer_size(&its, ON_THEIR_WAY))?;
    Ok((ours, its))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn the_packets_of_a_large_window_are_not_dropped_when_nobody_reads_meanwhile() {
        let (_ours, mut its) = pair().unwrap();
        its.set_nonblocking(true).unwrap();
        // The window of a young connection, which the usual socket has no room for.
        let (packet, window) = (vec![0; usize::from(MTU)], 5 * usize::from(MTU));
        let sent: usize = (0..5).map_while(|_| its.write(&packet).ok()).sum();
        assert_eq!(sent, window);
    }

    #[test]
    fn who_says_something_is_known_and_it_is_still_to_be_read() {
        let (ours, mut its) = pair().unwrap();
        its.write_all(b"a frame of any kind").unwrap();
        assert_eq!(User::default().who_answers(&ours).unwrap(), Some(std::process::id()));
        let mut read = [0; 19];
        (&ours).read_exact(&mut read).unwrap();
        assert_eq!(&read, b"a frame of any kind");
        let mut knock = [0; 4 + 42];
        its.read_exact(&mut knock).unwrap();
        assert_eq!(knock[..4], [0, 0, 0, 42]);
    }

    fn value(words: &[String], flag: &str) -> Option<String> {
        words.iter().position(|word| word == flag).and_then(|at| words.get(at + 1).cloned())
    }

    #[test]
    fn a_guest_is_where_it_usually_is_or_has_a_place_and_the_resolver_is_the_hosts() {
        let usual = User::default().arguments();
        let flags = ["--address", "--netmask", "--gateway", "--dns-forward", "--dns"];
        let wanted = [Some("10.0.2.15"), Some("24"), Some("10.0.2.2"), Some("10.0.2.3"), None];
        assert_eq!(flags.map(|flag| value(&usual, flag)), wanted.map(|value| value.map(str::to_owned)));
        let place = Place { guest: [172, 28, 5, 2].into(), prefix_len: 16, gateway: [172, 28, 0, 1].into() };
        let placed = User { publish: Vec::new(), place: Some(place) };
        let wanted = [Some("172.28.5.2"), Some("16"), Some("172.28.0.1"), Some("172.28.0.1"), None];
        assert_eq!(flags.map(|flag| value(&placed.arguments(), flag)), wanted.map(|value| value.map(str::to_owned)));
        assert!(placed.check().is_ok());
        let place = placed.place.map(|place| Place { prefix_len: 31, ..place });
        assert!(User { place, ..User::default() }.check().is_err());
    }
}
