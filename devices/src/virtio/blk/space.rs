//! The configuration space of a disk (virtio 1.3, 5.2.4).

use super::request::{MOST_DISCARDED, MOST_ZEROED};
use super::{Options, QUEUE_SIZE, SECTOR};

/// Bytes, up to those of discarding and writing zeros.
pub const CONFIG_LEN: usize = 60;

/// Bytes that a file is best written in: a page, and a block of most file systems.
const BLOCK: u64 = 4096;

/// What the driver is told of a disk.
pub fn config(sectors: u64, options: &Options) -> [u8; CONFIG_LEN] {
    let mut config = [0; CONFIG_LEN];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    let blocks = BLOCK / SECTOR;
    put(0, &sectors.to_le_bytes());
    // seg_max: of a chain, the header and the status are not data.
    put(12, &u32::from(QUEUE_SIZE - 2).to_le_bytes());
    // blk_size, then the topology: physical blocks as a power of two, their alignment, least and best size of I/O.
    put(20, &(SECTOR as u32).to_le_bytes());
    put(24, &[blocks.ilog2() as u8, 0]);
    put(26, &(blocks as u16).to_le_bytes());
    put(34, &options.queues.to_le_bytes());
    if !options.read_only {
        // A request has one segment. Where discarding frees nothing, because of its alignment, it does no harm.
        put(36, &MOST_DISCARDED.to_le_bytes());
        put(40, &1u32.to_le_bytes());
        put(44, &(blocks as u32).to_le_bytes());
        put(48, &MOST_ZEROED.to_le_bytes());
        put(52, &1u32.to_le_bytes());
        put(56, &[1]);
    }
    config
}
