//! What the guest sees: buses, legacy devices, the virtio transport and the virtio devices.
//!
//! - [`bus`]: which device answers at which address;
//! - [`legacy`]: serial port, keyboard controller (for its reset line), exit port, IOAPIC;
//! - [`virtio`]: the MMIO transport, queues and checked descriptor chains, the devices and the table of them;
//! - [`listener`]: unix sockets for host programs;
//! - `output`: what guests print, with a bound;
//! - [`worker`]: threads beside the event loop's.
//!
//! Nothing here knows KVM: interrupts leave through [`InterruptLine`], message routes through
//! [`legacy::RouteSink`], and file descriptors through `event-manager`. The guest is hostile: whatever comes out of
//! its memory is read once into a checked type.

pub mod bus;
pub mod legacy;
pub mod listener;
mod output;
pub mod virtio;
pub mod worker;

use std::io;
use std::sync::Arc;

pub use bus::{Bus, BusDevice, BusError, Written};

/// Guest RAM as all devices see it.
pub type GuestRam = vm_memory::GuestMemoryMmap<()>;

/// An edge-triggered interrupt line.
pub trait InterruptLine: Send + Sync {
    /// Raises one edge. Does not block.
    fn trigger(&self) -> io::Result<()>;
}

/// What a guest asked for when it ended itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestExit {
    /// Power-off.
    PowerOff,
    /// A reset, of which this monitor makes an end.
    Reset,
    /// The guest's kernel panicked.
    Panic,
}

/// Called with what the guest asked for, on a vCPU thread; may be called more than once.
pub type ExitSink = Arc<dyn Fn(GuestExit) + Send + Sync>;
