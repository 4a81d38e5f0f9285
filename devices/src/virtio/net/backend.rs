//! What a network device has behind it.

use std::io;
use std::os::fd::RawFd;

use vm_memory::VolatileSlice;
use vmm_sys_util::epoll::EventSet;

use crate::virtio::chain::Buffers;

/// Bytes of the header before each packet (`struct virtio_net_hdr`, virtio 1.3, 5.1.6).
pub const HEADER: usize = 12;
/// Most bytes of a packet with its header: the largest IP packet, in an Ethernet frame with a VLAN tag.
pub const MOST: usize = HEADER + 18 + 65535;

/// A packet of the guest's, header first. What has been judged of it is not the guest's any more.
pub struct Packet<'a, 'm> {
    /// Its first bytes, if they were looked at.
    pub head: &'a mut [u8],
    /// What comes after those.
    pub rest: Buffers<'a, 'm>,
}

impl<'m> Packet<'_, 'm> {
    /// All of it, in order.
    pub fn slices(&mut self) -> impl Iterator<Item = VolatileSlice<'_>> {
        let head = Some(&mut *self.head).filter(|head| !head.is_empty()).map(VolatileSlice::from);
        head.into_iter().chain(self.rest.slices())
    }

    /// Copies it; returns how many bytes there were.
    pub fn read(&self, out: &mut [u8]) -> usize {
        let head = self.head.len().min(out.len());
        out[..head].copy_from_slice(&self.head[..head]);
        head + self.rest.read(&mut out[head..])
    }
}

/// Takes frames of the guest's, and has some for it. Nothing here blocks.
///
/// A backend may have several ways in, one for each pair of the device's queues; the first is always in use.
pub trait Backend: Send {
    /// The descriptors of its ways: readable when there may be a packet, and what else is of interest. The same for the
    /// backend's whole life.
    fn fds(&self) -> Vec<RawFd>;

    /// What of its descriptors is to be heard: writable, if it may refuse packets.
    fn interest(&self) -> EventSet;

    /// The driver has accepted `features`: how packets for it may look.
    fn accept(&mut self, features: u64) -> io::Result<()>;

    /// Has packets come in by the first so many ways.
    fn use_pairs(&mut self, _pairs: usize) -> io::Result<()> {
        Ok(())
    }

    /// Puts the next packet of a way, header first, into `room`, which is [`MOST`] bytes at least; returns its length. None:
    /// there is none now; the descriptor will say when. An error is for good.
    fn receive(&mut self, pair: usize, room: &[VolatileSlice]) -> io::Result<Option<usize>>;

    /// Whether [`send`](Self::send) takes a packet now. If not, the descriptor will say when.
    fn ready(&mut self) -> bool;

    /// Sends a packet of at most [`MOST`] bytes by a way, or drops it and says why.
    fn send(&mut self, pair: usize, packet: Packet) -> io::Result<()>;
}
