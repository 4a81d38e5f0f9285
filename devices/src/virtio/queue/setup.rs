//! How a driver sets a queue up, and what may be wrong with that and with its rings.

use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::super::chain::ChainError;
use super::super::window::is_writable;
use crate::GuestRam;

/// A ring that breaks the rules: the driver's fault in every case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The size is 0, not a power of two, or above the queue's limit.
    #[error("queue size {0} is not valid")]
    Size(u32),
    /// A part of the queue is misaligned, not in guest RAM, or overlaps another part.
    #[error("queue part at {0:#x} is misaligned, outside guest memory or overlaps another")]
    Address(u64),
    /// A ring access failed: RAM that was there is gone.
    #[error("ring at {0:#x} is not in guest memory")]
    Access(u64),
    /// The available index ran ahead by more than the queue holds.
    #[error("available index is {ahead} ahead in a queue of {size}")]
    AvailableIndex {
        /// Entries it is ahead by.
        ahead: u16,
        /// Entries of the queue.
        size: u16,
    },
    /// A head index outside the descriptor table.
    #[error("head {head} is outside the queue of {size}")]
    Head {
        /// The index.
        head: u16,
        /// Entries of the queue.
        size: u16,
    },
    /// A head that the device has not given back yet.
    #[error("head {0} is available while in flight")]
    InFlight(u16),
    /// A head that is used without having been available.
    #[error("head {0} is used and was not in flight")]
    NotInFlight(u16),
    /// The chain itself.
    #[error("chain: {0}")]
    Chain(#[from] ChainError),
}

/// How the driver set a queue up: plain data, trusted only after [`VirtQueue::start`](super::VirtQueue::start).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueSetup {
    /// Entries.
    pub size: u32,
    /// Guest-physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest-physical address of the available ring ("driver area").
    pub available: u64,
    /// Guest-physical address of the used ring ("device area").
    pub used: u64,
}

/// Ring features that were negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// VIRTIO_F_EVENT_IDX.
    pub event_idx: bool,
    /// VIRTIO_F_INDIRECT_DESC.
    pub indirect: bool,
}

/// Alignment (2.7), presence in RAM and disjointness of a queue's three areas.
pub(super) fn check_areas(mem: &GuestRam, setup: &QueueSetup, size: u64) -> Result<(), RingError> {
    let areas = [(setup.descriptors, 16 * size, 16), (setup.available, 6 + 2 * size, 2), (setup.used, 6 + 8 * size, 4)];
    for (index, &(start, len, align)) in areas.iter().enumerate() {
        let bad = RingError::Address(start);
        let end = start.checked_add(len).ok_or(bad)?;
        // Address 0 stands for "never set".
        let sound = start != 0 && start % align == 0 && mem.check_range(GuestAddress(start), len as usize);
        // Only RAM: the used ring is written to, and the others are no file's business either.
        let sound = sound && is_writable(mem, GuestAddress(start));
        let overlaps = |&(other, other_len, _): &(u64, u64, u64)| start < other + other_len && other < end;
        if !sound || areas[..index].iter().any(overlaps) {
            return Err(bad);
        }
    }
    Ok(())
}
