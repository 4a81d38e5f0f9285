//! Bytes from the guest that the host's socket did not take yet. Takes memory only while there are some: in pieces, each as full
//! as it can be, of which a call to the socket passes many.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use smallvec::SmallVec;
use vm_memory::WriteVolatile;

use super::super::chain::Buffers;

/// Bytes of a piece.
const PIECE: usize = 64 << 10;
/// Pieces that are passed at a time.
const BATCH: usize = 16;

/// A queue of bytes; its user bounds it.
#[derive(Default)]
pub struct Backlog {
    /// All but the last are full.
    pieces: VecDeque<Vec<u8>>,
    /// Bytes of the first that are gone.
    gone: usize,
}

impl Backlog {
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Forgets the bytes, and gives their memory back.
    pub fn clear(&mut self) {
        *self = Backlog::default();
    }

    /// Copies guest memory in, behind what is there.
    pub fn append(&mut self, mut data: Buffers) {
        while !data.is_empty() {
            let room = self.pieces.back().map_or(0, |piece| PIECE - piece.len());
            if room == 0 {
                self.pieces.push_back(Vec::with_capacity(PIECE));
                continue;
            }
            let (first, rest) = data.split_at(room);
            if let Some(piece) = self.pieces.back_mut() {
                for slice in first.slices() {
                    // It has the capacity, and takes all.
                    let _ = piece.write_volatile(&slice);
                }
            }
            data = rest;
        }
    }

    /// Moves bytes into the socket; returns how many. Call it until it fails or nothing is left.
    pub fn send(&mut self, socket: &UnixStream) -> Result<usize, Errno> {
        let mut list: SmallVec<[IoSlice; BATCH]> = SmallVec::new();
        for (index, piece) in self.pieces.iter().take(BATCH).enumerate() {
            list.push(IoSlice::new(&piece[if index == 0 { self.gone } else { 0 }..]));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let sent = sendmsg(socket, &list, &mut SendAncillaryBuffer::default(), flags)?;
        drop(list);
        self.gone += sent;
        while let Some(piece) = self.pieces.front()
            && self.gone >= piece.len()
        {
            self.gone -= piece.len();
            self.pieces.pop_front();
        }
        if self.is_empty() {
            self.clear();
        }
        Ok(sent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::chain::{Chain, DescriptorTable};
    use std::io::Read;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn bytes_come_out_as_they_went_in() {
        let mem = crate::GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let bytes: Vec<u8> = (0..=250).cycle().take(200_000).collect();
        mem.write_slice(&bytes, GuestAddress(0x2000)).unwrap();
        // One chain of two buffers.
        let descriptors: [u64; 4] = [0x2000, 1000 | 1 << 32 | 1 << 48, 0x2000 + 1000, 199_000];
        mem.write_obj(descriptors, GuestAddress(0x1000)).unwrap();
        let table = DescriptorTable { address: 0x1000, size: 2, indirect: false };
        let chain = Chain::walk(&mem, table, 0).unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut backlog = Backlog::default();
        let (mut expect, mut got) = (Vec::new(), Vec::new());
        for round in 0..48 {
            let (part, _) = chain.readable().split_at(700 + 4083 * round);
            backlog.append(part);
            expect.extend_from_slice(&bytes[..part.len()]);
            // Leaves some behind, so that pieces are full in the midst of a packet.
            let keep = (expect.len() - got.len()) / 3;
            while expect.len() - got.len() > keep {
                let sent = backlog.send(&near).unwrap();
                let start = got.len();
                got.resize(start + sent, 0);
                far.read_exact(&mut got[start..]).unwrap();
            }
        }
        while !backlog.is_empty() {
            let sent = backlog.send(&near).unwrap();
            let start = got.len();
            got.resize(start + sent, 0);
            far.read_exact(&mut got[start..]).unwrap();
        }
        assert!(got == expect);
        assert_eq!((backlog.pieces.capacity(), backlog.gone), (0, 0));
    }
}
