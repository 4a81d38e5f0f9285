//! The guest's way to others, if it has one: an address and a route on eth0, as the host says.

use crate::connections;
use crate::failure::Failure;
use crate::sys::Interface;
use guest_protocol::{FailureKind, Network};
use rustix::io::{self, Errno};
use rustix::process::Pid;

/// The one interface there is.
pub const NAME: &str = "eth0";

/// Sets it up.
///
/// # Errors
/// [`FailureKind::Guest`]: there is no such interface, or the kernel refuses something.
pub fn set_up(network: &Network) -> Result<(), Failure> {
    configure(network).map_err(failed)
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
        configure(network)
    });
    joined.map_err(failed)
}

fn failed(error: Errno) -> Failure {
    Failure::errno(FailureKind::Guest, "setting up the network interface", error)
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
