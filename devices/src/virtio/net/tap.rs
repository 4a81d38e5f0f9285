//! A tap interface of the host: packets with the virtio header, checksums and segmentation done by the host's kernel.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use super::backend::{Backend, HEADER};
use super::{F_GUEST_CSUM, F_GUEST_TSO4, F_GUEST_TSO6};
use crate::virtio::chain::Buffers;
use crate::virtio::iovec::{Direction, Target, transfer};

/// Longest name of an interface, in bytes.
pub const NAME_MOST: usize = libc::IFNAMSIZ - 1;

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const TUN_F_CSUM: libc::c_ulong = 1;
const TUN_F_TSO4: libc::c_ulong = 2;
const TUN_F_TSO6: libc::c_ulong = 4;

/// The open interface.
pub struct Tap {
    file: File,
}

/// The first members of `struct ifreq`, and its size.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl Tap {
    /// Opens the interface `name`, which must exist. It takes CAP_NET_ADMIN, or to be the interface's owner.
    pub fn open(name: &str) -> io::Result<Self> {
        let mut request = Request { name: [0; libc::IFNAMSIZ], flags: 0, rest: [0; 22] };
        for (byte, letter) in request.name[..NAME_MOST].iter_mut().zip(name.bytes()) {
            *byte = letter;
        }
        // SAFETY: the name is a string with a zero at its end.
        if unsafe { libc::if_nametoindex(request.name.as_ptr().cast()) } == 0 {
            // Opened all the same it would be made, and be of no use: down, and without an address.
            let why = format!("there is no such interface; `ip tuntap add {name} mode tap` makes one");
            return Err(io::Error::new(io::ErrorKind::NotFound, why));
        }
        request.flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        let options = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
        let file = options.map_err(|e| io::Error::new(e.kind(), format!("/dev/net/tun: {e}")))?;
        let fd = file.as_raw_fd();
        // SAFETY: it reads and writes an ifreq, which `request` is in size and layout.
        checked(unsafe { libc::ioctl(fd, TUNSETIFF, &raw mut request) })?;
        let header: libc::c_int = HEADER as libc::c_int;
        // SAFETY: it reads an int.
        checked(unsafe { libc::ioctl(fd, TUNSETVNETHDRSZ, &raw const header) })?;
        Ok(Tap { file })
    }
}

impl Backend for Tap {
    fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn accept(&mut self, features: u64) -> io::Result<()> {
        let mut offloads = 0;
        if features & F_GUEST_CSUM != 0 {
            offloads = TUN_F_CSUM;
            for (feature, offload) in [(F_GUEST_TSO4, TUN_F_TSO4), (F_GUEST_TSO6, TUN_F_TSO6)] {
                offloads |= if features & feature != 0 { offload } else { 0 };
            }
        }
        // SAFETY: it takes its argument by value.
        match checked(unsafe { libc::ioctl(self.fd(), TUNSETOFFLOAD, offloads) }) {
            // The interface was deleted. Its packets are lost, and so would be any driver that could not even come up.
            Err(e) if e.raw_os_error() == Some(libc::EBADFD) => Ok(()),
            result => result,
        }
    }

    fn receive(&mut self, packet: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match self.file.read(packet) {
                Ok(len) if len > HEADER => return Ok(Some(len)),
                // Nothing that a guest could use.
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn ready(&mut self) -> bool {
        true
    }

    fn send(&mut self, packet: Buffers) -> io::Result<()> {
        transfer(self.file.as_fd(), Direction::FromGuest, Target::Packet, packet).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn ip(words: &str) {
        let done = Command::new("ip").args(words.split(' ')).status().unwrap();
        assert!(done.success(), "ip {words}");
    }

    #[test]
    fn a_driver_comes_up_on_an_interface_that_is_gone() {
        // SAFETY: it affects the network of this thread, which is the test's own.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            println!("SKIP a_driver_comes_up_on_an_interface_that_is_gone: {}", io::Error::last_os_error());
            return;
        }
        ip("tuntap add gone mode tap vnet_hdr");
        let mut tap = Tap::open("gone").unwrap();
        tap.accept(F_GUEST_CSUM).unwrap();
        ip("link del gone");
        tap.accept(F_GUEST_CSUM).unwrap();
        assert!(tap.receive(&mut [0; 64]).is_err());
    }
}
