//! The guest's way to others, if it has one: an address and a route on eth0, as the host says.

use crate::failure::Failure;
use crate::sys::Interface;
use guest_protocol::{FailureKind, Network};
use rustix::io;

/// The one interface there is.
const NAME: &str = "eth0";

/// Sets it up.
///
/// # Errors
/// [`FailureKind::Guest`]: there is no such interface, or the kernel refuses something.
pub fn set_up(network: &Network) -> Result<(), Failure> {
    configure(network).map_err(|error| Failure::errno(FailureKind::Guest, "setting up the network interface", error))
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
