//! The benchmark's guest, but for its entry: a driver for virtio-vsock that needs no operating system.
//!
//! - [`queue`]: a virtqueue with a buffer for each descriptor;
//! - [`socket`]: one stream to the host.
//!
//! It is written for one device, Bulkhead's own, and trusts it. It must run at any address that is its physical one.
#![no_std]

pub mod queue;
pub mod socket;

/// The host's port that it connects to.
pub const PORT: u32 = 1024;
/// Bytes of a question, and of its answer: the same, each bit inverted.
pub const QUESTION: usize = 8;
