//! Bytes from the guest that the host's socket did not take yet. Takes memory only while there are some.

use std::collections::VecDeque;
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::SendFlags;

use super::super::chain::Buffers;

/// A queue of bytes; its user bounds it.
#[derive(Default)]
pub struct Backlog(VecDeque<u8>);

impl Backlog {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forgets the bytes, and gives their memory back.
    pub fn clear(&mut self) {
        self.0 = VecDeque::new();
    }

    /// Copies guest memory in, behind what is there.
    pub fn append(&mut self, data: Buffers) {
        for slice in data.slices() {
            let start = self.0.len();
            self.0.resize(start + slice.len(), 0);
            // The new bytes are in one piece or, where the ring wraps, in two.
            let (front, back) = self.0.as_mut_slices();
            let in_front = front.len().saturating_sub(start);
            if in_front > 0 {
                slice.copy_to(&mut front[start..]);
            }
            let skip = start.saturating_sub(front.len());
            if let Ok(rest) = slice.offset(in_front) {
                rest.copy_to(&mut back[skip..]);
            }
        }
    }

    /// Moves bytes into the socket; returns how many. Call it until it fails or nothing is left.
    pub fn send(&mut self, socket: &UnixStream) -> Result<u32, Errno> {
        let (front, _) = self.0.as_slices();
        let sent = rustix::net::send(socket, front, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
        self.0.drain(..sent.min(self.0.len()));
        if self.0.is_empty() {
            self.clear();
        }
        Ok(sent as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::chain::{Chain, DescriptorTable};
    use std::io::Read;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn bytes_come_out_as_they_went_in_wherever_the_ring_wraps() {
        let mem = crate::GuestRam::from_ranges(&[(GuestAddress(0), 1 << 16)]).unwrap();
        let bytes: Vec<u8> = (0..=250).cycle().take(5000).collect();
        mem.write_slice(&bytes, GuestAddress(0x2000)).unwrap();
        // One chain of two pieces: 1000 and 4000 bytes.
        let descriptors: [u64; 4] = [0x2000, 1000 | 1 << 32 | 1 << 48, 0x2000 + 1000, 4000];
        mem.write_obj(descriptors, GuestAddress(0x1000)).unwrap();
        let table = DescriptorTable { address: 0x1000, size: 2, indirect: false };
        let chain = Chain::walk(&mem, table, 0).unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut backlog = Backlog::default();
        let (mut expect, mut got) = (Vec::new(), Vec::new());
        for round in 0..50 {
            let (part, _) = chain.readable().split_at(700 + 83 * round);
            backlog.append(part);
            expect.extend_from_slice(&bytes[..part.len()]);
            // Leaves some behind, so that the ring moves on.
            let keep = backlog.0.len() / 3;
            while backlog.0.len() > keep {
                let sent = backlog.send(&near).unwrap() as usize;
                let start = got.len();
                got.resize(start + sent, 0);
                far.read_exact(&mut got[start..]).unwrap();
            }
        }
        while !backlog.is_empty() {
            let sent = backlog.send(&near).unwrap() as usize;
            let start = got.len();
            got.resize(start + sent, 0);
            far.read_exact(&mut got[start..]).unwrap();
        }
        assert!(got == expect);
        assert_eq!(backlog.0.capacity(), 0);
    }
}
