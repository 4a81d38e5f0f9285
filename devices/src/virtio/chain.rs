//! Descriptor chains, checked: the only way to what a driver put into a queue.
//!
//! Each descriptor is read from guest memory once and judged then (virtio 1.3, 2.7.4 to 2.7.5.3): indices and loops,
//! indirect tables, readable before writable, every byte in guest RAM, a bound on the whole. What remains is two lists
//! of memory slices, without copying. What is *in* the memory is not judged here; the guest can change it at any time.

use smallvec::SmallVec;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::window::is_writable;
use crate::GuestRam;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Bytes of a descriptor.
const DESCRIPTOR: u32 = 16;
/// Slices for which a chain allocates nothing: most have a header, data and a status.
const SLICES: usize = 4;

/// A chain that breaks the rules: the driver's fault in every case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// A `next` outside its table.
    #[error("descriptor index {index} is outside the table of {size}")]
    Index {
        /// The index.
        index: u16,
        /// Entries of the table.
        size: u16,
    },
    /// More descriptors than the queue has entries: a loop, or a chain that is too long.
    #[error("chain of more than {0} descriptors")]
    TooLong(u16),
    /// The table itself is not in guest RAM.
    #[error("descriptor at {0:#x} is not in guest memory")]
    Table(u64),
    /// An indirect table within an indirect table.
    #[error("indirect descriptor in an indirect table")]
    NestedIndirect,
    /// A descriptor that is indirect and has a next one.
    #[error("indirect descriptor with a next one")]
    IndirectNext,
    /// An indirect table that was not negotiated.
    #[error("indirect descriptor without the feature")]
    IndirectUnasked,
    /// An indirect table of no or a broken number of entries, or more than the queue has.
    #[error("indirect table of {0} bytes")]
    IndirectLength(u32),
    /// A device-readable descriptor after a device-writable one.
    #[error("readable descriptor after a writable one")]
    Order,
    /// A buffer that is not, or not all, in guest RAM.
    #[error("buffer {address:#x}+{len:#x} is not in guest memory")]
    Buffer {
        /// Guest-physical start.
        address: u64,
        /// Bytes.
        len: u32,
    },
    /// A device-writable buffer in memory that nobody writes to.
    #[error("writable buffer {0:#x} is in read-only memory")]
    ReadOnly(u64),
    /// More than 4 GiB in all (2.7.5.2).
    #[error("chain of more than 4 GiB")]
    Total,
}

/// Where a queue's descriptors are, and what was negotiated.
#[derive(Debug, Clone, Copy)]
pub struct DescriptorTable {
    /// Guest-physical start.
    pub address: u64,
    /// Entries: the queue's size.
    pub size: u16,
    /// VIRTIO_F_INDIRECT_DESC was negotiated.
    pub indirect: bool,
}

/// A chain's memory: first what the device may read, then what it may write.
#[derive(Debug)]
pub struct Chain<'m> {
    head: u16,
    slices: SmallVec<[VolatileSlice<'m>; SLICES]>,
    /// How many of `slices` are readable.
    readable: usize,
    readable_len: u32,
    writable_len: u32,
}

#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn read(mem: &GuestRam, table: u64, index: u16) -> Result<Self, ChainError> {
        let at = u64::from(index) * u64::from(DESCRIPTOR);
        let address = table.checked_add(at).ok_or(ChainError::Table(table))?;
        let mut bytes = [0u8; DESCRIPTOR as usize];
        mem.read_slice(&mut bytes, GuestAddress(address)).map_err(|_| ChainError::Table(address))?;
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
        Ok(Descriptor {
            address: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            len: u32::from_le_bytes([i, j, k, l]),
            flags: u16::from_le_bytes([m, n]),
            next: u16::from_le_bytes([o, p]),
        })
    }
}

impl<'m> Chain<'m> {
    /// Walks the chain at `head`.
    pub fn walk(mem: &'m GuestRam, table: DescriptorTable, head: u16) -> Result<Self, ChainError> {
        let mut chain = Chain { head, slices: SmallVec::new(), readable: 0, readable_len: 0, writable_len: 0 };
        // Descriptors that may still come, so that a loop ends.
        let mut left = table.size;
        let (mut base, mut size, mut index) = (table.address, table.size, head);
        let mut nested = false;
        loop {
            if index >= size {
                return Err(ChainError::Index { index, size });
            }
            left = left.checked_sub(1).ok_or(ChainError::TooLong(table.size))?;
            let descriptor = Descriptor::read(mem, base, index)?;
            if descriptor.flags & INDIRECT != 0 {
                size = Self::enter_indirect(descriptor, table, nested)?;
                (base, index, nested) = (descriptor.address, 0, true);
                // The descriptor that refers to the table holds no buffer.
                left += 1;
                continue;
            }
            chain.add(mem, descriptor)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(chain);
            }
            index = descriptor.next;
        }
    }

    /// Judges a descriptor that refers to a table; returns the table's entries. Its WRITE flag means nothing (2.7.5.3.2).
    fn enter_indirect(descriptor: Descriptor, table: DescriptorTable, nested: bool) -> Result<u16, ChainError> {
        if !table.indirect {
            return Err(ChainError::IndirectUnasked);
        }
        if nested {
            return Err(ChainError::NestedIndirect);
        }
        if descriptor.flags & NEXT != 0 {
            return Err(ChainError::IndirectNext);
        }
        let bad = ChainError::IndirectLength(descriptor.len);
        let entries = u16::try_from(descriptor.len / DESCRIPTOR).map_err(|_| bad)?;
        if descriptor.len % DESCRIPTOR != 0 || entries == 0 || entries > table.size {
            return Err(bad);
        }
        Ok(entries)
    }

    fn add(&mut self, mem: &'m GuestRam, descriptor: Descriptor) -> Result<(), ChainError> {
        let Descriptor { address, len, flags, .. } = descriptor;
        let writable = flags & WRITE != 0;
        if !writable && self.slices.len() > self.readable {
            return Err(ChainError::Order);
        }
        let sum = if writable { &mut self.writable_len } else { &mut self.readable_len };
        *sum = sum.checked_add(len).ok_or(ChainError::Total)?;
        self.readable_len.checked_add(self.writable_len).ok_or(ChainError::Total)?;
        if len == 0 {
            return Ok(());
        }
        let outside = ChainError::Buffer { address, len };
        address.checked_add(u64::from(len)).ok_or(outside)?;
        // More than one slice where a buffer spans regions of RAM that touch.
        for slice in mem.get_slices(GuestAddress(address), len as usize) {
            self.slices.push(slice.map_err(|_| outside)?);
        }
        if writable && !is_writable(mem, GuestAddress(address)) {
            return Err(ChainError::ReadOnly(address));
        }
        if !writable {
            self.readable = self.slices.len();
        }
        Ok(())
    }

    /// Index by which the driver knows the chain.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes the device may read.
    pub fn readable_len(&self) -> u32 {
        self.readable_len
    }

    /// Bytes the device may write.
    pub fn writable_len(&self) -> u32 {
        self.writable_len
    }

    /// What the device may read.
    pub fn readable(&self) -> Buffers<'_, 'm> {
        Buffers { slices: &self.slices[..self.readable], skip: 0, len: self.readable_len as usize }
    }

    /// What the device may write.
    pub fn writable(&self) -> Buffers<'_, 'm> {
        Buffers { slices: &self.slices[self.readable..], skip: 0, len: self.writable_len as usize }
    }
}

/// A run of bytes over several slices of guest memory.
#[derive(Debug, Clone, Copy, Default)]
pub struct Buffers<'a, 'm> {
    slices: &'a [VolatileSlice<'m>],
    /// Bytes of the first slice that do not belong to the run.
    skip: usize,
    /// Bytes of the run.
    len: usize,
}

impl<'a, 'm> Buffers<'a, 'm> {
    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// No bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first `at` bytes, or all there are, and the rest.
    pub fn split_at(&self, at: usize) -> (Self, Self) {
        let at = at.min(self.len);
        let (mut index, mut skip) = (0, self.skip + at);
        while let Some(slice) = self.slices.get(index)
            && skip >= slice.len()
        {
            skip -= slice.len();
            index += 1;
        }
        let first = Buffers { len: at, ..*self };
        (first, Buffers { slices: &self.slices[index..], skip, len: self.len - at })
    }

    /// The slices of guest memory, in order.
    pub fn slices(&self) -> impl Iterator<Item = VolatileSlice<'m>> + use<'a, 'm> {
        let (mut skip, mut left) = (self.skip, self.len);
        self.slices.iter().map_while(move |slice| {
            let take = slice.len().checked_sub(skip)?.min(left);
            let part = slice.subslice(skip, take).ok().filter(|_| take > 0)?;
            skip = 0;
            left -= take;
            Some(part)
        })
    }

    /// Copies out of guest memory; returns how many bytes there were.
    pub fn read(&self, out: &mut [u8]) -> usize {
        let mut done = 0;
        for slice in self.slices() {
            done += slice.copy_to(&mut out[done..]);
            if done == out.len() {
                break;
            }
        }
        done
    }

    /// Copies into guest memory; returns how many bytes fit.
    pub fn write(&self, data: &[u8]) -> usize {
        let mut done = 0;
        for slice in self.slices() {
            let part = &data[done..];
            let part = &part[..part.len().min(slice.len())];
            slice.copy_from(part);
            done += part.len();
            if done == data.len() {
                break;
            }
        }
        done
    }

    /// Fills with zeros.
    pub fn zero(&self) {
        const ZEROS: [u8; 4096] = [0; 4096];
        let mut rest = *self;
        while !rest.is_empty() {
            let (first, after) = rest.split_at(ZEROS.len());
            first.write(&ZEROS[..first.len()]);
            rest = after;
        }
    }
}
