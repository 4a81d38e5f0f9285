//! The benchmark's guest, but for its entry: drivers for virtio-vsock, disks and networks that need no operating system.
//!
//! - [`device`]: a device's registers;
//! - [`queue`]: a virtqueue with a buffer for each descriptor;
//! - `packet`: packets of a vsock;
//! - [`socket`]: one stream to the host, on which questions are answered;
//! - [`stream`]: load for a stream;
//! - [`disk`]: load for a disk;
//! - [`net`]: packets through a network device; [`peer`]: the other end of a TCP connection, on that or on any wire.
//!
//! They are written for devices of one maker, Bulkhead's own, and trust them. They must run at any address that is its physical one.
#![no_std]

pub mod device;
pub mod disk;
pub mod net;
mod packet;
pub mod peer;
pub mod queue;
pub mod socket;
pub mod stream;

/// The host's port that it connects to.
pub const PORT: u32 = 1024;
/// Bytes of a question, and of its answer: the same, each bit inverted.
pub const QUESTION: usize = 8;

/// A decimal number.
fn decimal(digits: &[u8]) -> Option<u64> {
    let number = digits.iter().try_fold(0u64, |sum, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        sum.checked_mul(10)?.checked_add(digit.into())
    });
    number.filter(|_| !digits.is_empty())
}
