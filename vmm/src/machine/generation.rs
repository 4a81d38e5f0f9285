//! The VM generation ID: others in each machine, and announced to a guest that goes on and listens.
//!
//! That is one whose kernel reads ACPI tables and has the driver; its random numbers are its own from then on. Containers' guests have
//! no ACPI: there init does that, and more.

use boot::acpi::generation::{ADDRESS, LEN};
use devices::legacy::IoapicState;
use rustix::rand::GetRandomFlags;
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use super::Parts;
use super::assembly::GENERATION_GSI;
use super::error::{VmmError, io_error};

/// Of a redirection entry: the guest does not listen.
const MASKED: u64 = 1 << 16;

/// Gives the machine another one.
pub(super) fn renew<M: GuestMemory>(memory: &M) -> Result<(), VmmError> {
    let mut id = [0; LEN];
    rustix::rand::getrandom(&mut id, GetRandomFlags::empty()).map_err(|e| io_error("random numbers")(e.into()))?;
    let written = memory.write_slice(&id, GuestAddress(ADDRESS));
    written.map_err(|e| io_error("generation ID")(std::io::Error::other(e)))
}

/// Does so with a machine that goes on, and tells its guest. Nobody else's guests pay for it.
pub(super) fn announce(parts: &Parts, ioapic: &IoapicState) -> Result<(), VmmError> {
    if ioapic.entries[GENERATION_GSI as usize] & MASKED != 0 {
        return Ok(());
    }
    renew(parts.memory.guest())?;
    // Dropped at once: what has been signalled is delivered, since the pin is not masked.
    let line = parts.lines.line(GENERATION_GSI).map_err(io_error("interrupt line"))?;
    line.trigger().map_err(io_error("interrupt line"))
}
