//! The guest's way to others, if it has one: an address and a route on eth0, as the host says.
//!
//! To bring an interface up is the dearest thing that a guest does before its process where the kernel is emulated: the driver
//! fills its queue with buffers, the network's tables are written, and IPv6 makes itself at home, which is some 250,000
//! instructions. So [`prepare`] does it once for all clones of a guest, and [`set_up`] finds what most of them want, but for the
//! MAC address.
//!
//! Where the host gives an IPv4 address there is nothing else: IPv6 is off on the interface, and what it says of itself is who has that address,
//! once it has a MAC address of its own. Nobody hears a clone before it is somebody of its own.

use crate::connections;
use crate::failure::Failure;
use crate::sys::Interface;
use guest_protocol::{FailureKind, Network};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::{self, Errno};
use rustix::mount::MountAttrFlags;
use rustix::process::Pid;

/// The one interface there is.
pub const NAME: &str = "eth0";

/// What an interface has that nobody has told anything.
const USUAL_MTU: u16 = 1500;
/// Whether there is no IPv6 on it, in /proc.
const NO_IPV6: &str = "sys/net/ipv6/conf/eth0/disable_ipv6";
/// Whether it says aloud whose its address is when it comes up, or gets another MAC address (a gratuitous ARP). Without, nobody out there could
/// call a guest that has not said anything itself: passt knows a guest by what that has sent, and Linux takes no TCP that is sent to all.
const SPEAKS_UP: &str = "sys/net/ipv4/conf/eth0/arp_notify";

/// Sets it up as `network`, for clones that may find it to be theirs. False: it could not be done.
#[must_use]
pub fn prepare(network: &Network) -> bool {
    begin(network).is_ok()
}

/// Sets it up; it is as [`prepare`] has left it for `prepared`, if there was one.
///
/// # Errors
/// [`FailureKind::Guest`]: there is no such interface, or the kernel refuses something.
pub fn set_up(network: &Network, prepared: Option<&Network>) -> Result<(), Failure> {
    let result = match prepared {
        Some(prepared) if (prepared.mtu, prepared.address) == (network.mtu, network.address) => {
            Interface::named(NAME).and_then(|interface| interface.set_mac(network.mac))
        }
        Some(_) => change(network),
        None => begin(network),
    };
    result.map_err(failed)
}

/// Makes what [`prepare`] has left another one. It stays up meanwhile, and says nothing.
fn change(network: &Network) -> io::Result<()> {
    let interface = Interface::named(NAME)?;
    // Its routes go with it: of those, and of its address, that which comes next may have the same. And it is not to be spoken of by the next MAC.
    interface.clear_address()?;
    interface.set_mac(network.mac)?;
    interface.set_mtu(network.mtu.unwrap_or(USUAL_MTU))?;
    let Some(address) = &network.address else {
        // An address by IPv6 is made of the MAC address.
        let _ = tell(NO_IPV6, b"0");
        return Ok(());
    };
    interface.set_address(address.ip, address.prefix_len)?;
    address.gateway.map_or(Ok(()), |gateway| interface.set_gateway(gateway))?;
    // Once more, as it speaks up only now that it has an address.
    interface.set_mac(network.mac)
}

/// Leaves the network that the guest was on before it became a clone: from here on nothing of what its memory has under way
/// there goes out, in the name of the one that is on that network.
pub fn leave() {
    // Whoever has taken the interface away has done the same.
    let _ = Interface::named(NAME).and_then(|interface| interface.down());
}

/// Makes a clone, whose `processes` all stand still, somebody else on a network: what connections there were are reset. Without
/// `network` it stays on none.
///
/// # Errors
/// As [`set_up`].
pub fn join(network: Option<&Network>, processes: &[Pid]) -> Result<(), Failure> {
    let joined = connections::reset(processes).and_then(|()| {
        let Some(network) = network else { return Ok(()) };
        // It may not have had one.
        let _ = Interface::named(NAME).and_then(|interface| interface.clear_address());
        if network.address.is_none() {
            let _ = tell(NO_IPV6, b"0");
        }
        configure(network)
    });
    joined.map_err(failed)
}

fn failed(error: Errno) -> Failure {
    Failure::errno(FailureKind::Guest, "setting up the network interface", error)
}

/// Sets up an interface that nobody has told anything. Whoever has no address from the host may find one by IPv6; who has one has
/// nothing else.
fn begin(network: &Network) -> io::Result<()> {
    // A kernel may have been built without it.
    let _ = tell(NO_IPV6, if network.address.is_none() { b"0" } else { b"1" });
    let _ = tell(SPEAKS_UP, b"1");
    configure(network)
}

fn configure(network: &Network) -> io::Result<()> {
    let interface = Interface::named(NAME)?;
    // In a clone it has that of the guest that the clone came from.
    interface.set_mac(network.mac)?;
    if let Some(mtu) = network.mtu {
        interface.set_mtu(mtu)?;
    }
    let Some(address) = &network.address else { return interface.up() };
    interface.set_address(address.ip, address.prefix_len)?;
    interface.up()?;
    address.gateway.map_or(Ok(()), |gateway| interface.set_gateway(gateway))
}

fn tell(parameter: &str, value: &[u8]) -> io::Result<()> {
    let proc = connections::view_of_processes(MountAttrFlags::empty())?;
    let file = openat(&proc, parameter, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    io::write(&file, value).map(drop)
}
