//! A tap interface of the host: packets with the virtio header, checksums and segmentation done by the host's kernel.
//!
//! One that exists, or one of the device's own, which the kernel takes away when the last descriptor of it is closed, however that
//! comes about: nothing of it is left of a process that was killed.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use vm_memory::VolatileSlice;
use vmm_sys_util::epoll::EventSet;

use super::backend::{Backend, HEADER, Packet};
use super::{F_GUEST_CSUM, F_GUEST_TSO4, F_GUEST_TSO6};
use crate::virtio::iovec::{Direction, MOST_SLICES, packet};

/// Longest name of an interface, in bytes.
pub const NAME_MOST: usize = libc::IFNAMSIZ - 1;
/// What interfaces of devices' own are called: the kernel puts the first free number there.
const OWN: &str = "bulkhead%d";

const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::Ioctl = 0x4004_54d8;
const TUNSETQUEUE: libc::Ioctl = 0x4004_54d9;
/// What is asked of one by a device.
pub const IOCTLS: &[u32] = &[TUNSETOFFLOAD as u32, TUNSETQUEUE as u32];
const TUN_F_CSUM: libc::c_ulong = 1;
const TUN_F_TSO4: libc::c_ulong = 2;
const TUN_F_TSO6: libc::c_ulong = 4;

/// The open interface: a descriptor for each of its queues that is ours.
pub struct Tap {
    files: Vec<File>,
    /// Packets come in by the first so many.
    attached: usize,
}

/// An interface of the device's own: what it is on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NewTap {
    /// The host's address there; none if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<Ipv4Addr>,
    /// The length of its network's prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix_len: Option<u8>,
}

impl NewTap {
    /// What cannot be, if anything.
    pub fn check(&self) -> Result<(), String> {
        match (self.host_ip, self.prefix_len) {
            (None, None) | (Some(_), Some(1..=30)) => Ok(()),
            _ => Err("new_tap has host_ip and a prefix_len of 1 to 30, or neither".into()),
        }
    }

    /// Makes it: up, with its address, and without IPv6; with so many queues, and packets of up to `mtu` bytes.
    pub fn make(&self, queues: usize, mtu: Option<u16>) -> io::Result<Tap> {
        let (tap, name) = Tap::attach(OWN, queues, queues > 1)?;
        // So that no packet of the host's own comes unasked, nor the guest by an address that nobody gave. Not everywhere there is one.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", text(&name)), "1");
        let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        let set = |what: libc::Ioctl, value: &[u8]| {
            let mut request = Request { name, value: [0; 24] };
            request.value[..value.len()].copy_from_slice(value);
            // SAFETY: it reads an ifreq, which `request` is in size and layout.
            checked(unsafe { libc::ioctl(socket.as_raw_fd(), what, &raw mut request) })
        };
        let inet = |[a, b, c, d]: [u8; 4]| [libc::AF_INET as u8, 0, 0, 0, a, b, c, d];
        if let (Some(ip), Some(len)) = (self.host_ip, self.prefix_len) {
            let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
            set(libc::SIOCSIFADDR as libc::Ioctl, &inet(ip.octets()))?;
            set(libc::SIOCSIFNETMASK as libc::Ioctl, &inet(mask.to_be_bytes()))?;
        }
        if let Some(mtu) = mtu {
            set(libc::SIOCSIFMTU as libc::Ioctl, &libc::c_int::from(mtu).to_ne_bytes())?;
        }
        set(libc::SIOCSIFFLAGS as libc::Ioctl, &(libc::IFF_UP as u16).to_ne_bytes())?;
        Ok(tap)
    }
}

/// `struct ifreq`.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    value: [u8; 24],
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// An interface's name as text.
fn text(name: &[u8; libc::IFNAMSIZ]) -> String {
    name.iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte)).collect()
}

impl Tap {
    /// Opens so many queues of the interface `name`, which must exist. It takes CAP_NET_ADMIN, or to be the interface's owner.
    pub fn open(name: &str, queues: usize) -> io::Result<Self> {
        // SAFETY: the name is a string with a zero at its end.
        if unsafe { libc::if_nametoindex(bytes(name).as_ptr().cast()) } == 0 {
            // Opened all the same it would be made, and be of no use: down, and without an address.
            let why = format!("there is no such interface; `ip tuntap add {name} mode tap` makes one");
            return Err(io::Error::new(io::ErrorKind::NotFound, why));
        }
        let several = |e: io::Error| match e.raw_os_error() {
            Some(libc::EINVAL) => {
                let why =
                    format!("it has one queue; `ip tuntap add {name} mode tap multi_queue` makes one with several");
                io::Error::new(e.kind(), why)
            }
            _ => e,
        };
        match Self::attach(name, queues, queues > 1) {
            // One that is made for several may as well have one.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) && queues == 1 => Self::attach(name, 1, true),
            other => other.map_err(several),
        }
        .map(|(tap, _)| tap)
    }

    /// Opens queues of the interface `name`, there or not, and returns what it is called.
    fn attach(name: &str, queues: usize, several: bool) -> io::Result<(Self, [u8; libc::IFNAMSIZ])> {
        let (first, name) = Self::queue(bytes(name), several)?;
        let mut files = vec![first];
        while files.len() < queues {
            files.push(Self::queue(name, several)?.0);
        }
        let tap = Tap { attached: files.len(), files };
        tap.set_header()?;
        Ok((tap, name))
    }

    /// The interface of which these are queues, opened and set up by somebody else.
    pub fn of_descriptors(descriptors: Vec<OwnedFd>) -> io::Result<Self> {
        let files: Vec<File> = descriptors.into_iter().map(File::from).collect();
        for file in &files {
            // An answer comes from a tap alone.
            let mut request = Request { name: [0; libc::IFNAMSIZ], value: [0; 24] };
            // SAFETY: it fills an ifreq, which `request` is in size and layout.
            checked(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
            rustix::io::ioctl_fionbio(file, true)?;
        }
        Ok(Tap { attached: files.len(), files })
    }

    /// The same of one that was only made, by whoever has its namespace.
    pub fn taken(descriptor: OwnedFd) -> io::Result<Self> {
        let tap = Self::of_descriptors(vec![descriptor])?;
        tap.set_header()?;
        Ok(tap)
    }

    /// Has each packet have a header of [`HEADER`] bytes.
    fn set_header(&self) -> io::Result<()> {
        let header: libc::c_int = HEADER as libc::c_int;
        // SAFETY: it reads an int.
        checked(unsafe { libc::ioctl(self.files[0].as_raw_fd(), TUNSETVNETHDRSZ, &raw const header) })
    }

    /// Its queues, for somebody else.
    pub fn into_descriptors(self) -> Vec<OwnedFd> {
        self.files.into_iter().map(OwnedFd::from).collect()
    }

    /// Opens a queue.
    fn queue(name: [u8; libc::IFNAMSIZ], several: bool) -> io::Result<(File, [u8; libc::IFNAMSIZ])> {
        let mut request = Request { name, value: [0; 24] };
        let several = if several { libc::IFF_MULTI_QUEUE } else { 0 };
        let flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | several) as libc::c_short;
        request.value[..2].copy_from_slice(&flags.to_ne_bytes());
        let options = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
        let file = options.map_err(|e| io::Error::new(e.kind(), format!("/dev/net/tun: {e}")))?;
        let fd = file.as_raw_fd();
        // SAFETY: it reads and writes an ifreq, which `request` is in size and layout.
        checked(unsafe { libc::ioctl(fd, TUNSETIFF, &raw mut request) }).map_err(|e| match e.raw_os_error() {
            Some(libc::EPERM) => {
                io::Error::new(e.kind(), format!("{e}: it takes CAP_NET_ADMIN, or a tap of one's own"))
            }
            _ => e,
        })?;
        Ok((file, request.name))
    }

    /// Leaves checksums and segmentation, as far as `offloads` (TUN_F_) says, to whoever reads.
    fn set_offloads(&self, offloads: libc::c_ulong) -> io::Result<()> {
        // SAFETY: it takes its argument by value.
        checked(unsafe { libc::ioctl(self.files[0].as_raw_fd(), TUNSETOFFLOAD, offloads) })
    }
}

/// A name with a zero behind it; what is too long is cut.
fn bytes(name: &str) -> [u8; libc::IFNAMSIZ] {
    let mut bytes = [0; libc::IFNAMSIZ];
    bytes[..NAME_MOST].iter_mut().zip(name.bytes()).for_each(|(byte, letter)| *byte = letter);
    bytes
}

/// The interface without a device in front of it, for what is measured beside one: packets with their headers, one a call.
impl Tap {
    /// Has the host's kernel leave all to the reader that a device would.
    pub fn offload_all(&self) -> io::Result<()> {
        self.set_offloads(TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6)
    }

    /// Reads a packet; none if there is none now.
    pub fn read_packet(&self, packet: &mut [u8]) -> io::Result<Option<usize>> {
        match (&self.files[0]).read(packet) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            other => other.map(Some),
        }
    }

    /// Writes a packet.
    pub fn write_packet(&self, packet: &[u8]) -> io::Result<()> {
        (&self.files[0]).write(packet).map(drop)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.files[0].as_fd()
    }
}

impl Backend for Tap {
    fn fds(&self) -> Vec<RawFd> {
        self.files.iter().map(AsRawFd::as_raw_fd).collect()
    }

    fn interest(&self) -> EventSet {
        // It takes all packets.
        EventSet::empty()
    }

    fn accept(&mut self, features: u64) -> io::Result<()> {
        let mut offloads = 0;
        if features & F_GUEST_CSUM != 0 {
            offloads = TUN_F_CSUM;
            for (feature, offload) in [(F_GUEST_TSO4, TUN_F_TSO4), (F_GUEST_TSO6, TUN_F_TSO6)] {
                offloads |= if features & feature != 0 { offload } else { 0 };
            }
        }
        match self.set_offloads(offloads) {
            // The interface was deleted. Its packets are lost, and so would be any driver that could not even come up.
            Err(e) if e.raw_os_error() == Some(libc::EBADFD) => Ok(()),
            result => result,
        }
    }

    fn use_pairs(&mut self, pairs: usize) -> io::Result<()> {
        for (index, file) in self.files.iter().enumerate().skip(1) {
            let (now, wanted) = (index < self.attached, index < pairs);
            if now != wanted {
                let flag = if wanted { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
                let mut request = Request { name: [0; libc::IFNAMSIZ], value: [0; 24] };
                request.value[..2].copy_from_slice(&(flag as libc::c_short).to_ne_bytes());
                // SAFETY: it reads an ifreq, which `request` is in size and layout.
                checked(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETQUEUE, &raw mut request) })?;
            }
        }
        self.attached = pairs;
        Ok(())
    }

    fn receive(&mut self, pair: usize, room: &[VolatileSlice]) -> io::Result<Option<usize>> {
        let Some(file) = self.files.get(pair) else { return Ok(None) };
        loop {
            match packet(file.as_fd(), Direction::ToGuest, room) {
                Ok(len) if len > HEADER => return Ok(Some(len)),
                // Nothing that a guest could use.
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) => return Err(e),
            }
        }
    }

    fn ready(&mut self) -> bool {
        true
    }

    fn send(&mut self, pair: usize, mut given: Packet) -> io::Result<()> {
        // A queue that is detached takes none.
        let file = &self.files[if pair < self.attached.min(self.files.len()) { pair } else { 0 }];
        let slices: SmallVec<[VolatileSlice; 4]> = given.slices().take(MOST_SLICES + 1).collect();
        packet(file.as_fd(), Direction::FromGuest, &slices).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Puts this thread into a network of its own. False, and a line that says why, if it may not.
    fn own_network(test: &str) -> bool {
        // SAFETY: it affects the network of this thread, which is the test's own.
        let done = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
        if !done {
            println!("SKIP {test}: {}", io::Error::last_os_error());
        }
        done
    }

    fn ip(words: &str) -> String {
        let done = Command::new("ip").args(words.split(' ')).output().unwrap();
        assert!(done.status.success(), "ip {words}");
        String::from_utf8(done.stdout).unwrap()
    }

    fn receive(tap: &mut Tap) -> io::Result<Option<usize>> {
        tap.receive(0, &[VolatileSlice::from(&mut [0; 64][..])])
    }

    #[test]
    fn a_driver_comes_up_on_an_interface_that_is_gone() {
        if !own_network("a_driver_comes_up_on_an_interface_that_is_gone") {
            return;
        }
        ip("tuntap add gone mode tap vnet_hdr");
        let mut tap = Tap::open("gone", 1).unwrap();
        tap.accept(F_GUEST_CSUM).unwrap();
        ip("link del gone");
        tap.accept(F_GUEST_CSUM).unwrap();
        assert!(receive(&mut tap).is_err());
    }

    #[test]
    fn an_interface_of_a_devices_own_goes_with_it() {
        if !own_network("an_interface_of_a_devices_own_goes_with_it") {
            return;
        }
        let new = NewTap { host_ip: Some(Ipv4Addr::new(198, 18, 0, 5)), prefix_len: Some(30) };
        let (first, second) = (new.make(1, Some(9000)).unwrap(), NewTap::default().make(4, None).unwrap());
        let shown = ip("-o addr show dev bulkhead0");
        assert!(shown.contains("198.18.0.5/30") && !shown.contains("inet6"), "{shown}");
        let (first_link, second_link) = (ip("-o link show dev bulkhead0"), ip("-o link show dev bulkhead1"));
        assert!(
            first_link.contains("mtu 9000") && first_link.contains("UP") && second_link.contains("UP"),
            "{first_link}"
        );
        drop((first, second));
        // What another test starts just now has copies of all descriptors until it is another program.
        let begun = std::time::Instant::now();
        while ip("-o link show").contains("bulkhead") {
            assert!(begun.elapsed() < std::time::Duration::from_secs(10), "it is still there");
        }
    }

    #[test]
    fn queues_are_as_many_as_an_interface_has() {
        if !own_network("queues_are_as_many_as_an_interface_has") {
            return;
        }
        ip("tuntap add single mode tap vnet_hdr");
        ip("tuntap add several mode tap vnet_hdr multi_queue");
        let error = Tap::open("single", 2).err().unwrap().to_string();
        assert!(error.contains("it has one queue; `ip tuntap add single mode tap multi_queue`"), "{error}");
        drop(Tap::open("several", 1).unwrap());
        let mut tap = Tap::open("several", 4).unwrap();
        assert_eq!(tap.fds().len(), 4);
        for pairs in [1, 4, 2, 2, 1] {
            tap.use_pairs(pairs).unwrap();
            assert_eq!(tap.receive(pairs - 1, &[VolatileSlice::from(&mut [0; 64][..])]).unwrap(), None);
        }
        // A second one at its queue finds it taken.
        assert!(Tap::open("single", 1).and_then(|first| Tap::open("single", 1).map(|second| (first, second))).is_err());
    }
}
