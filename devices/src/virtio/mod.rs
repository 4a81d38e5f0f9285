//! Virtio 1.3: one transport, its queues, and the devices behind it.
//!
//! - [`mmio`]: the transport (4.2): feature negotiation, queue set-up, interrupts, events;
//! - [`queue`]: a split virtqueue (2.7) with notification suppression and a budget per event;
//! - [`chain`]: the one way to a descriptor chain, checked;
//! - [`limit`]: how much of what a device may do in a time;
//! - [`metrics`]: what a device does, in numbers;
//! - [`trace`]: what drivers ask of devices, recorded and done again;
//! - [`window`]: memory that a device shows the guest besides RAM;
//! - [`table`]: [`DEVICES`], one line per device;
//! - [`balloon`], [`blk`], [`console`], [`fs`], [`net`], [`pmem`], [`rng`], [`vsock`]: the devices.
//!
//! A device is one file (or directory) and one line in the table. It sees queues and memory through [`Io`] and owns
//! requests; it does not know its transport, its address or its interrupt.

mod backing;
pub mod balloon;
pub mod blk;
pub mod chain;
pub mod console;
pub mod fs;
mod iovec;
pub mod limit;
pub mod metrics;
pub mod mmio;
pub mod net;
pub mod pmem;
pub mod queue;
pub mod rng;
pub mod table;
pub mod trace;
pub mod vsock;
pub mod window;

#[cfg(test)]
mod contract;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

use std::io;
use std::os::fd::RawFd;

pub use mmio::MmioTransport;
pub use table::{DEVICES, DeviceError, DeviceKind, DeviceName, build_all, kernel_args, limits, names, place};

use crate::GuestRam;
use limit::{Direction, Limiter};
use queue::{RingError, VirtQueue};
use window::AddressSpace;

/// What a device is, for all its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Name in messages.
    pub name: &'static str,
    /// Device id (virtio 1.3, 5).
    pub id: u32,
    /// Features of this device type; the transport adds its own.
    pub features: u64,
    /// Most entries of each queue: powers of two up to 32768.
    pub queue_sizes: &'static [u16],
    /// A kick is answered within the call, and soon: it may as well be on the vCPU's own thread.
    pub prompt: bool,
}

/// A descriptor that wakes the device: valid and the same for the device's whole life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceFd {
    /// Watched for input, level-triggered, while the device is active. The device owns it.
    pub fd: RawFd,
    /// Handed to [`VirtioDevice::process_fd`].
    pub token: u16,
}

/// What a device works on during one event. The transport sends the interrupts afterwards.
pub struct Io<'a> {
    /// Guest RAM.
    pub mem: &'a GuestRam,
    /// The device's queues, in the order of [`DeviceInfo::queue_sizes`].
    pub queues: &'a mut [VirtQueue],
    /// Set by the device when its configuration space has changed.
    pub config_changed: bool,
    /// What of the device's limits is left. A device that can be limited asks it before it takes a request up.
    pub limiter: &'a mut Limiter,
    /// The driver waits for the answer to its kick: what a device that is [`DeviceInfo::prompt`] takes, it answers.
    pub at_once: bool,
}

impl Io<'_> {
    /// Whether `queue` may take up a request now; if not, the device is to leave it in its queue, which is worked on again when it
    /// may.
    fn admits(&mut self, queue: usize, direction: Direction) -> bool {
        let admitted = self.limiter.admits(queue, direction);
        if !admitted && let Some(queue) = self.queues.get(queue) {
            queue.count_wait();
        }
        admitted
    }

    /// A request has been taken up, with so many bytes of data.
    fn spend(&mut self, direction: Direction, bytes: u64) {
        self.limiter.spend(direction, bytes);
    }
}

/// Why a device cannot go on until the driver resets it.
#[derive(Debug, thiserror::Error)]
pub enum DeviceFault {
    /// The driver broke a rule of the rings.
    #[error("guest's fault: {0}")]
    Ring(#[from] RingError),
    /// The driver broke a rule of the device.
    #[error("guest's fault: {0}")]
    Guest(&'static str),
    /// The host failed the device.
    #[error("host's fault: {what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The host's answer.
        source: io::Error,
    },
}

/// Saved state of a device that does not fit it, or cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("saved state of {device}: {reason}")]
pub struct StateError {
    /// The device.
    pub device: &'static str,
    /// What is wrong.
    pub reason: String,
}

/// A virtio device: requests, configuration space and saved state.
///
/// Calls come from one thread at a time. The order is: any number of [`config`](Self::config) and
/// [`info`](Self::info); `activate`; `process_*`; `quiesce`; then `activate` again. Queues that the driver left unready
/// give no chains. A returned fault makes the transport stop the device until the driver resets it, with `quiesce` soon.
pub trait VirtioDevice: Send {
    /// Identity, features and queues.
    fn info(&self) -> DeviceInfo;

    /// The whole configuration space; an access past its end never reaches the device.
    fn config(&self) -> &[u8] {
        &[]
    }

    /// Has the memory shown that the guest is to see besides RAM. Called once, before anything else but [`info`](Self::info).
    fn show(&mut self, _space: &mut dyn AddressSpace) -> io::Result<()> {
        Ok(())
    }

    /// The driver writes `data` at `offset` of the configuration space, within its bounds.
    fn write_config(&mut self, _offset: usize, _data: &[u8]) {}

    /// Goes on as its configuration, its part of a checked section, says now: only members have changed that are
    /// [`adjustable`](table::DeviceKind::adjustable). After an error nothing has.
    fn adjust(&mut self, _config: &serde_json::Value) -> Result<(), DeviceError> {
        Ok(())
    }

    /// The descriptors to watch while active.
    fn fds(&self) -> Vec<DeviceFd> {
        Vec::new()
    }

    /// Those of them to watch while the device waits for a reset, which may never come (2.1.2): behind which a program of the
    /// host would wait for the driver.
    fn fds_until_reset(&self) -> Vec<DeviceFd> {
        Vec::new()
    }

    /// Such a one is readable: whoever is there is told that there is no driver.
    fn turn_away(&mut self, _token: u16) {}

    /// The driver is ready and has accepted `features`. Every queue gets a `process_queue` afterwards.
    fn activate(&mut self, features: u64) -> Result<(), DeviceFault>;

    /// The driver kicked a queue, or the budget of the last call ended before the queue did.
    fn process_queue(&mut self, index: usize, io: &mut Io) -> Result<(), DeviceFault>;

    /// A descriptor of [`fds`](Self::fds) is readable.
    fn process_fd(&mut self, _token: u16, _io: &mut Io) -> Result<(), DeviceFault> {
        Ok(())
    }

    /// Brings all requests in flight to their end: afterwards the device touches neither queues nor guest RAM. With
    /// `forget`, for a reset and for a device that waits for one, it also drops the connections and settings the driver made.
    fn quiesce(&mut self, io: &mut Io, forget: bool) -> Result<(), DeviceFault>;

    /// State of a quiesced device, with its version. Fails, with the reason, if there is something in it that cannot be saved.
    /// One that has something to tell ([`DeviceKind::told`]) gives it at any time.
    fn save(&self) -> Result<serde_json::Value, StateError>;

    /// Takes over what [`save`](Self::save) gave, of which it trusts nothing; before `activate`.
    fn load(&mut self, state: &serde_json::Value) -> Result<(), StateError>;
}
