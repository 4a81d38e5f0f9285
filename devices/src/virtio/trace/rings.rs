//! A driver's side of one split virtqueue (virtio 1.3, 2.7), in guest memory that nobody else uses.

use std::collections::HashMap;
use std::sync::atomic::{Ordering, fence};

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::Part;
use crate::GuestRam;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Bytes of a descriptor.
const DESCRIPTOR: u64 = 16;
/// VIRTQ_USED_F_NO_NOTIFY.
const NO_NOTIFY: u16 = 1;
const PAGE: u64 = 4096;

/// What was negotiated.
#[derive(Debug, Clone, Copy)]
pub struct Negotiated {
    /// VIRTIO_F_INDIRECT_DESC.
    pub indirect: bool,
    /// VIRTIO_F_EVENT_IDX.
    pub event_idx: bool,
}

/// Memory for the data of chains: taken from the front, and from the start again when it has been used up. What a chain has is
/// another's when so much has been taken since; a device that gets mixed-up requests by that is none the worse for it.
#[derive(Debug)]
pub struct Scratch {
    start: u64,
    len: u64,
    used: u64,
}

impl Scratch {
    /// The memory from `start` on.
    pub fn new(start: u64, len: u64) -> Self {
        Scratch { start, len, used: 0 }
    }

    /// So many bytes, less than there are, whole pages at the start of one: a balloon gives whole pages back.
    fn take(&mut self, len: u64) -> GuestAddress {
        let align = if len >= PAGE { PAGE } else { DESCRIPTOR };
        let mut at = self.used.next_multiple_of(align);
        if at + len > self.len {
            at = 0;
        }
        self.used = at + len;
        GuestAddress(self.start + at)
    }
}

/// The queue.
#[derive(Debug)]
pub struct Ring {
    size: u16,
    table: u64,
    available: u64,
    used: u64,
    negotiated: Negotiated,
    next_available: u16,
    next_used: u16,
    /// Where the available index was when the device was last asked whether it wants to hear of it.
    told: u16,
    free: Vec<u16>,
    /// Descriptors of chains that the device has, by head.
    chains: HashMap<u16, Vec<u16>>,
}

impl Ring {
    /// Bytes that a queue of so many entries takes.
    pub fn bytes(size: u16) -> u64 {
        Ring::at(0, size, Negotiated { indirect: false, event_idx: false }).end()
    }

    /// One at `start`, which is at the start of a page.
    pub fn at(start: u64, size: u16, negotiated: Negotiated) -> Self {
        let available = start + u64::from(size) * DESCRIPTOR;
        // Flags, index, entries, used_event.
        let used = (available + 6 + 2 * u64::from(size)).next_multiple_of(4);
        Ring {
            size,
            table: start,
            available,
            used,
            negotiated,
            next_available: 0,
            next_used: 0,
            told: 0,
            free: (0..size).rev().collect(),
            chains: HashMap::new(),
        }
    }

    fn end(&self) -> u64 {
        (self.used + 6 + 8 * u64::from(self.size)).next_multiple_of(PAGE)
    }

    /// Guest-physical addresses of descriptor table, available and used ring.
    pub fn parts(&self) -> [u64; 3] {
        [self.table, self.available, self.used]
    }

    /// Descriptors that a chain of so many parts takes.
    fn wanted(&self, parts: usize) -> usize {
        if self.negotiated.indirect && parts > 1 { 1 } else { parts.max(1) }
    }

    /// A chain of so many parts can be in this queue.
    pub fn holds(&self, parts: usize) -> bool {
        parts <= usize::from(self.size)
    }

    /// There is room for a chain of so many parts.
    pub fn has_room(&self, parts: usize) -> bool {
        self.free.len() >= self.wanted(parts)
    }

    /// Chains that the device has.
    pub fn busy(&self) -> usize {
        self.chains.len()
    }

    /// Puts a chain there. There has to be [room](Self::has_room).
    pub fn add(&mut self, mem: &GuestRam, scratch: &mut Scratch, parts: &[Part]) -> Result<(), GuestMemoryError> {
        let mut descriptors = Vec::with_capacity(parts.len().max(1));
        for part in parts {
            let at = scratch.take(part.len().into());
            let flags = match part {
                Part::Read { len, bytes } => {
                    mem.write_slice(bytes, at)?;
                    zero(mem, at.0 + bytes.len() as u64, u64::from(*len) - bytes.len() as u64)?;
                    0
                }
                Part::Write(_) => WRITE,
            };
            descriptors.push((at.0, part.len(), flags));
        }
        if descriptors.is_empty() {
            descriptors.push((scratch.take(0).0, 0, 0));
        }
        let indices = self.free.split_off(self.free.len() - self.wanted(parts.len()));
        if indices.len() < descriptors.len() {
            let len = descriptors.len() as u64 * DESCRIPTOR;
            let table = scratch.take(len);
            let all: Vec<u16> = (0..descriptors.len() as u16).collect();
            write_chain(mem, table.0, &all, &descriptors)?;
            descriptors = vec![(table.0, len as u32, INDIRECT)];
        }
        write_chain(mem, self.table, &indices, &descriptors)?;
        let head = indices[0];
        self.chains.insert(head, indices);
        let entry = self.available + 4 + 2 * u64::from(self.next_available % self.size);
        mem.write_obj(head.to_le(), GuestAddress(entry))?;
        self.next_available = self.next_available.wrapping_add(1);
        // The entry is there before the index says so (2.7.13.3).
        mem.store(self.next_available.to_le(), GuestAddress(self.available + 2), Ordering::Release)
    }

    /// Whether the device wants to be notified of what was added since this was last asked (2.7.7.2, 2.7.10).
    pub fn wants_kick(&mut self, mem: &GuestRam) -> Result<bool, GuestMemoryError> {
        let (old, new) = (std::mem::replace(&mut self.told, self.next_available), self.next_available);
        // The index is seen before the device's word is read.
        fence(Ordering::SeqCst);
        if self.negotiated.event_idx {
            let event = self.word(mem, self.used + 4 + 8 * u64::from(self.size))?;
            return Ok(new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old));
        }
        Ok(new != old && self.word(mem, self.used)? & NO_NOTIFY == 0)
    }

    /// Takes what the device has given back, and tells how many chains that were. It wants an interrupt for the next one, as a
    /// driver does that has seen to all.
    pub fn take_back(&mut self, mem: &GuestRam) -> Result<u32, GuestMemoryError> {
        let mut count = 0;
        while self.next_used != u16::from_le(mem.load(GuestAddress(self.used + 2), Ordering::Acquire)?) {
            let entry = self.used + 4 + 8 * u64::from(self.next_used % self.size);
            let head: u32 = mem.read_obj(GuestAddress(entry))?;
            if let Some(indices) = self.chains.remove(&(u32::from_le(head) as u16)) {
                self.free.extend(indices);
            }
            self.next_used = self.next_used.wrapping_add(1);
            count += 1;
        }
        if count > 0 && self.negotiated.event_idx {
            let used_event = self.available + 4 + 2 * u64::from(self.size);
            mem.store(self.next_used.to_le(), GuestAddress(used_event), Ordering::Release)?;
        }
        Ok(count)
    }

    fn word(&self, mem: &GuestRam, at: u64) -> Result<u16, GuestMemoryError> {
        mem.load(GuestAddress(at), Ordering::Relaxed).map(u16::from_le)
    }
}

/// Writes descriptors, each with address, length and flags, into their places of a table, as one chain.
fn write_chain(
    mem: &GuestRam,
    table: u64,
    indices: &[u16],
    descriptors: &[(u64, u32, u16)],
) -> Result<(), GuestMemoryError> {
    for (at, (index, (address, len, flags))) in indices.iter().zip(descriptors).enumerate() {
        let next = indices.get(at + 1).copied();
        let flags = flags | if next.is_some() { NEXT } else { 0 };
        let mut bytes = [0; DESCRIPTOR as usize];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.unwrap_or(0).to_le_bytes());
        mem.write_slice(&bytes, GuestAddress(table + DESCRIPTOR * u64::from(*index)))?;
    }
    Ok(())
}

fn zero(mem: &GuestRam, mut at: u64, mut len: u64) -> Result<(), GuestMemoryError> {
    const ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];
    while len > 0 {
        let piece = len.min(PAGE);
        mem.write_slice(&ZEROS[..piece as usize], GuestAddress(at))?;
        (at, len) = (at + piece, len - piece);
    }
    Ok(())
}
