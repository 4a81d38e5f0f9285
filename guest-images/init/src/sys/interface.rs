//! Network interfaces: names, addresses and routes by the ioctls of netdevice(7), of which each takes one thing.

use super::{AddressFamily, AsFd, AsRawFd, Opcode, OwnedFd, SocketFlags, SocketType, io, ioctl, syscall};
use core::ffi::{c_int, c_long};
use core::ptr;
use rustix::fd::FromRawFd;
use rustix::fs::{CWD, Mode, OFlags, openat};

const SYS_IOCTL: usize = 16;
/// linux/sockios.h.
const SIOCGSKNS: usize = 0x894c;
const SIOCADDRT: Opcode = 0x890b;
const SIOCSIFFLAGS: Opcode = 0x8914;
const SIOCSIFADDR: Opcode = 0x8916;
const SIOCSIFNETMASK: Opcode = 0x891c;
const SIOCSIFMTU: Opcode = 0x8922;
const SIOCSIFHWADDR: Opcode = 0x8924;
const AF_INET: u16 = 2;
const ARPHRD_ETHER: u16 = 1;
const IFF_UP: u16 = 1;
const RTF_UP: u16 = 1;
const RTF_GATEWAY: u16 = 2;

/// `struct ifreq`: a name, and what the call is about.
#[repr(C)]
struct Request {
    name: [u8; 16],
    value: [u8; 24],
}

/// `struct rtentry`.
#[repr(C)]
struct Route {
    pad1: c_long,
    destination: [u8; 16],
    gateway: [u8; 16],
    mask: [u8; 16],
    flags: u16,
    pad2: i16,
    pad3: c_long,
    pad4: *const u8,
    metric: i16,
    device: *const u8,
    mtu: c_long,
    window: c_long,
    round_trip: u16,
}

/// `struct sockaddr_in` of an address.
fn inet([a, b, c, d]: [u8; 4]) -> [u8; 16] {
    let [low, high] = AF_INET.to_ne_bytes();
    [low, high, 0, 0, a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0]
}

/// Makes a tap interface, with virtio headers, in the network namespace of this process: it is there as long as the descriptor.
///
/// # Errors
/// As open(2) of /dev/net/tun, and the TUNSETIFF ioctl.
pub fn make_tap(name: &str) -> io::Result<OwnedFd> {
    const TUNSETIFF: Opcode = 0x4004_54ca;
    /// IFF_TAP, IFF_NO_PI, IFF_VNET_HDR (linux/if_tun.h).
    const KIND: u16 = 0x0002 | 0x1000 | 0x4000;
    let tap = openat(CWD, "/dev/net/tun", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let mut request = Request { name: bytes(name), value: [0; 24] };
    for (to, from) in request.value.iter_mut().zip(KIND.to_ne_bytes()) {
        *to = from;
    }
    // SAFETY: it reads and writes an ifreq, which `request` is in size and layout.
    unsafe { ioctl::ioctl(&tap, ioctl::Updater::<TUNSETIFF, Request>::new(&mut request)) }?;
    Ok(tap)
}

/// A name with zeros behind it; what is too long is cut.
fn bytes(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (byte, letter) in bytes.iter_mut().take(15).zip(name.bytes()) {
        *byte = letter;
    }
    bytes
}

/// A way to one interface.
#[derive(Debug)]
pub struct Interface {
    socket: OwnedFd,
    name: [u8; 16],
}

impl Interface {
    /// The interface `name`, of at most 15 bytes. It is not looked for.
    ///
    /// # Errors
    /// As socket(2).
    pub fn named(name: &str) -> io::Result<Self> {
        let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        Ok(Self { socket, name: bytes(name) })
    }

    fn set<const CALL: Opcode>(&self, value: &[u8]) -> io::Result<()> {
        let mut request = Request { name: self.name, value: [0; 24] };
        for (to, from) in request.value.iter_mut().zip(value) {
            *to = *from;
        }
        // SAFETY: all calls of this file that begin with SIOCSIF read a struct ifreq.
        unsafe { ioctl::ioctl(self.socket.as_fd(), ioctl::Setter::<CALL, Request>::new(request)) }
    }

    /// The network namespace that it is looked for in.
    ///
    /// # Errors
    /// As the SIOCGSKNS ioctl: the kernel has none.
    pub fn namespace(&self) -> io::Result<OwnedFd> {
        // SAFETY: it takes no argument.
        let number = unsafe { syscall(SYS_IOCTL, self.socket.as_fd().as_raw_fd() as usize, SIOCGSKNS, 0) }?;
        let number = c_int::try_from(number).map_err(|_| io::Errno::BADF)?;
        // SAFETY: the kernel has made it, and nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(number) })
    }

    /// Brings it up.
    ///
    /// # Errors
    /// As the SIOCSIFFLAGS ioctl.
    pub fn up(&self) -> io::Result<()> {
        self.set::<SIOCSIFFLAGS>(&IFF_UP.to_ne_bytes())
    }

    /// Takes it down. What it was told of routes and neighbours is forgotten.
    ///
    /// # Errors
    /// As the SIOCSIFFLAGS ioctl.
    pub fn down(&self) -> io::Result<()> {
        self.set::<SIOCSIFFLAGS>(&0u16.to_ne_bytes())
    }

    /// Gives it another MAC address. It must be down.
    ///
    /// # Errors
    /// As the SIOCSIFHWADDR ioctl.
    pub fn set_mac(&self, mac: [u8; 6]) -> io::Result<()> {
        let [low, high] = ARPHRD_ETHER.to_ne_bytes();
        let [a, b, c, d, e, f] = mac;
        self.set::<SIOCSIFHWADDR>(&[low, high, a, b, c, d, e, f])
    }

    /// Sets the largest packet, in bytes.
    ///
    /// # Errors
    /// As the SIOCSIFMTU ioctl.
    pub fn set_mtu(&self, bytes: u16) -> io::Result<()> {
        self.set::<SIOCSIFMTU>(&i32::from(bytes).to_ne_bytes())
    }

    /// Gives it an address in a network whose prefix has `prefix_len` bits.
    ///
    /// # Errors
    /// As the SIOCSIFADDR and SIOCSIFNETMASK ioctls.
    pub fn set_address(&self, address: [u8; 4], prefix_len: u8) -> io::Result<()> {
        self.set::<SIOCSIFADDR>(&inet(address))?;
        let host_bits = 32u32.saturating_sub(u32::from(prefix_len));
        let mask = u32::MAX.checked_shl(host_bits).unwrap_or(0);
        self.set::<SIOCSIFNETMASK>(&inet(mask.to_be_bytes()))
    }

    /// Takes its address away, if it has one.
    ///
    /// # Errors
    /// As the SIOCSIFADDR ioctl.
    pub fn clear_address(&self) -> io::Result<()> {
        self.set::<SIOCSIFADDR>(&inet([0; 4]))
    }

    /// Sends what is for nobody near to `gateway`. The interface must be up, and the gateway in its network.
    ///
    /// # Errors
    /// As the SIOCADDRT ioctl.
    pub fn set_gateway(&self, gateway: [u8; 4]) -> io::Result<()> {
        let anywhere = inet([0; 4]);
        let route = Route {
            pad1: 0,
            destination: anywhere,
            gateway: inet(gateway),
            mask: anywhere,
            flags: RTF_UP | RTF_GATEWAY,
            pad2: 0,
            pad3: 0,
            pad4: ptr::null(),
            metric: 0,
            device: ptr::null(),
            mtu: 0,
            window: 0,
            round_trip: 0,
        };
        // SAFETY: SIOCADDRT reads a struct rtentry; one without a device's name has no pointers in it.
        unsafe { ioctl::ioctl(self.socket.as_fd(), ioctl::Setter::<SIOCADDRT, Route>::new(route)) }
    }
}
