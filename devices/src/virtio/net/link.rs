//! An interface without a device: a tap that is somebody's in a network namespace, and what is behind it, each the other's peer. For containers of
//! the host's own kernel, whose network is the same as that of a guest: by the same backends, and under the same rules.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde_json::Value;
use vm_memory::VolatileSlice;

use super::backend::{Backend, HEADER, MOST, Packet};
use super::config::opened;
use super::egress::{Egress, HEAD};
use super::tap::Tap;
use super::{F_GUEST_CSUM, F_GUEST_TSO4, F_GUEST_TSO6};
use crate::virtio::DeviceError;
use crate::virtio::chain::Buffers;

/// What both sides leave to whoever reads a packet.
const OFFLOADS: u64 = F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6;
/// Packets in one direction before the other has its turn.
const TURN: usize = 64;

/// What is behind an interface.
pub struct Link {
    beyond: Box<dyn Backend>,
    egress: Option<Egress>,
    packet: Box<[u8]>,
    /// There is nothing more to come from beyond.
    over: bool,
}

impl Link {
    /// Opens, makes or starts what is behind `interface`, one of a section of interfaces.
    ///
    /// # Errors
    /// It cannot be had, or there is nothing behind it.
    pub fn open(interface: &Value) -> Result<Self, DeviceError> {
        let (beyond, egress) = opened(interface)?;
        Ok(Link { beyond, egress, packet: vec![0; MOST].into_boxed_slice(), over: false })
    }

    /// Passes packets on between that and `tap`, a queue of a tap interface with virtio headers, until there is something to read from `stop`.
    ///
    /// # Errors
    /// The tap is none, or its namespace is gone.
    pub fn run(mut self, tap: OwnedFd, stop: BorrowedFd<'_>) -> io::Result<()> {
        let mut inside = Tap::taken(tap)?;
        inside.accept(OFFLOADS)?;
        self.beyond.accept(OFFLOADS)?;
        loop {
            let more = self.outward(&mut inside)? | self.inward(&mut inside);
            if self.wait(&inside, stop, more)? {
                return Ok(());
            }
        }
    }

    /// Passes on what comes from the tap. True: there may be more.
    fn outward(&mut self, inside: &mut Tap) -> io::Result<bool> {
        for _ in 0..TURN {
            if !self.beyond.ready() {
                return Ok(false);
            }
            let room = [VolatileSlice::from(&mut self.packet[..])];
            let Some(len) = inside.receive(0, &room)? else { return Ok(false) };
            let packet = &mut self.packet[..len];
            if self.egress.as_ref().is_some_and(|egress| !egress.allows(&packet[..len.min(HEAD)], len)) {
                continue;
            }
            // As on any network, what is not taken is lost.
            if let Err(error) = self.beyond.send(0, Packet { head: packet, rest: Buffers::default() }) {
                tracing::debug!(len, "net: packet dropped: {error}");
            }
        }
        Ok(true)
    }

    /// The same of what is beyond.
    fn inward(&mut self, inside: &mut Tap) -> bool {
        for _ in 0..TURN {
            let room = [VolatileSlice::from(&mut self.packet[..])];
            match self.beyond.receive(0, &room) {
                Ok(Some(len)) if len > HEADER => {
                    let packet = &mut self.packet[..len];
                    if let Some(egress) = &mut self.egress {
                        egress.learn(packet);
                    }
                    if let Err(error) = inside.send(0, Packet { head: packet, rest: Buffers::default() }) {
                        tracing::debug!(len, "net: packet dropped: {error}");
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) => return false,
                Err(error) => {
                    tracing::warn!("net: nothing more is received: {error}");
                    self.over = true;
                    return false;
                }
            }
        }
        true
    }

    /// Waits until there is something to do. True: that is to stop.
    fn wait(&mut self, inside: &Tap, stop: BorrowedFd<'_>, more: bool) -> io::Result<bool> {
        let (takes, idle) = (self.beyond.ready(), PollFlags::empty());
        let inner = if takes { PollFlags::IN } else { idle };
        let outer = PollFlags::IN | if takes { idle } else { PollFlags::OUT };
        let beyond = self.beyond.fds().first().copied().filter(|_| !self.over).map(borrowed);
        let mut fds =
            vec![PollFd::from_borrowed_fd(stop, PollFlags::IN), PollFd::from_borrowed_fd(inside.as_fd(), inner)];
        fds.extend(beyond.map(|fd| PollFd::from_borrowed_fd(fd, outer)));
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        match poll(&mut fds, more.then_some(&at_once)) {
            Ok(_) | Err(Errno::INTR) => Ok(!fds[0].revents().is_empty()),
            Err(error) => Err(error.into()),
        }
    }
}

fn borrowed<'a>(fd: RawFd) -> BorrowedFd<'a> {
    // SAFETY: it is the backend's for its whole life ([`Backend::fds`]), and that outlives the poll which this is for.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::thread;

    use crate::virtio::net::Stream;
    use crate::virtio::net::egress::Rule;

    /// An Ethernet frame with a UDP packet to this address.
    fn frame(to: [u8; 4]) -> Vec<u8> {
        let mut frame = vec![0; 14 + 20 + 8 + 4];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14..38].copy_from_slice(&[
            0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 2, 15, to[0], to[1], to[2], to[3], 0, 9, 0, 9,
        ]);
        frame[38..40].copy_from_slice(&[0, 12]);
        frame
    }

    #[test]
    fn packets_pass_both_ways_and_only_where_they_may() {
        const NAME: &str = "packets_pass_both_ways_and_only_where_they_may";
        // SAFETY: it affects the network of this thread, which is the test's own.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return println!("SKIP {NAME}: {}", io::Error::last_os_error());
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (stop, stopper) = UnixStream::pair().unwrap();
        let near = super::super::tap::NewTap::default().make(1, None).unwrap();
        let mut tap = near.into_descriptors();
        // Seen from the namespace, its other side is what a packet socket of that is.
        let rules: Vec<Rule> = vec!["192.0.2.1".to_owned().try_into().unwrap()];
        let link = Link {
            beyond: Box::new(Stream::new(ours).unwrap()),
            egress: Some(Egress::new(rules)),
            packet: vec![0; MOST].into_boxed_slice(),
            over: false,
        };
        let tap = tap.remove(0);
        let raw = packet_socket();
        let thread = thread::spawn(move || link.run(tap, stop.as_fd()));
        for to in [[192, 0, 2, 2], [192, 0, 2, 1]] {
            rustix::net::send(&raw, &frame(to), rustix::net::SendFlags::empty()).unwrap();
        }
        let mut theirs = theirs;
        let mut got = vec![0; 4 + frame([0; 4]).len()];
        theirs.read_exact(&mut got).unwrap();
        assert_eq!(got[4..], frame([192, 0, 2, 1]), "the other one is not let out");
        let mut back = (frame([0; 4]).len() as u32).to_be_bytes().to_vec();
        back.extend(frame([10, 9, 8, 7]));
        theirs.write_all(&back).unwrap();
        let mut got = [0; 2048];
        loop {
            let count = rustix::io::read(&raw, &mut got).unwrap();
            if got[..count] == frame([10, 9, 8, 7]) {
                break;
            }
        }
        drop(stopper);
        thread.join().unwrap().unwrap();
    }

    /// One that sees all of the only interface but the loopback's, and sends by it.
    fn packet_socket() -> OwnedFd {
        use std::os::fd::FromRawFd;
        // SAFETY: it makes a socket, of which the descriptor is then nobody else's; and reads a sockaddr_ll.
        unsafe {
            let all = (libc::ETH_P_ALL as u16).to_be();
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(all));
            assert!(fd >= 0, "{}", io::Error::last_os_error());
            let fd = OwnedFd::from_raw_fd(fd);
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = all;
            address.sll_ifindex = libc::if_nametoindex(c"bulkhead0".as_ptr()) as i32;
            let length = size_of::<libc::sockaddr_ll>() as u32;
            let raw = std::os::fd::AsRawFd::as_raw_fd(&fd);
            assert_eq!(libc::bind(raw, (&raw const address).cast(), length), 0, "{}", io::Error::last_os_error());
            fd
        }
    }
}
