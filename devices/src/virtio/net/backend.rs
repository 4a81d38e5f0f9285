//! What a network device has behind it.

use std::io;
use std::os::fd::RawFd;

use crate::virtio::chain::Buffers;

/// Bytes of the header before each packet (`struct virtio_net_hdr`, virtio 1.3, 5.1.6).
pub const HEADER: usize = 12;
/// Most bytes of a packet with its header: the largest IP packet, in an Ethernet frame with a VLAN tag.
pub const MOST: usize = HEADER + 18 + 65535;

/// Takes frames of the guest's, and has some for it. Nothing here blocks.
pub trait Backend: Send {
    /// Readable when there may be a packet, writable when it takes some. The same for the backend's whole life.
    fn fd(&self) -> RawFd;

    /// The driver has accepted `features`: how packets for it may look.
    fn accept(&mut self, features: u64) -> io::Result<()>;

    /// Puts the next packet, header first, into `packet`, which has room for [`MOST`] bytes; returns its length. None: there
    /// is none now; the descriptor will say when. An error is for good.
    fn receive(&mut self, packet: &mut [u8]) -> io::Result<Option<usize>>;

    /// Whether [`send`](Self::send) takes a packet now. If not, the descriptor will say when.
    fn ready(&mut self) -> bool;

    /// Sends a packet of at most [`MOST`] bytes, header first, or drops it and says why.
    fn send(&mut self, packet: Buffers) -> io::Result<()>;
}
