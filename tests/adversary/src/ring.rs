//! A virtqueue (virtio 1.3, 2.7) in which anything can be written.

use crate::memory::{RINGS, fill, read, write};

/// Descriptor flag: another one follows.
pub const NEXT: u16 = 1;
/// Descriptor flag: the device writes to it.
pub const WRITE: u16 = 2;
/// Descriptor flag: it is a table.
pub const INDIRECT: u16 = 4;

/// Entries at most.
pub const SIZE: u16 = 256;
/// Queues of a device at most.
pub const QUEUES: usize = 9;
/// Devices at most: there are no more pins.
pub const DEVICES: usize = 19;
/// Bytes for one: table, available and used ring, a page each.
const ROOM: u64 = 3 << 12;

/// A descriptor: index, address, length, flags, next.
pub type Descriptor = (u16, u64, u32, u16, u16);

/// Writes a descriptor into a table.
pub fn descriptor(table: u64, (index, address, len, flags, next): Descriptor) {
    let at = table + 16 * u64::from(index);
    write(at, address);
    write(at + 8, len);
    write(at + 12, flags);
    write(at + 14, next);
}

/// A queue's memory, and how far both sides are.
#[derive(Debug, Clone, Copy)]
pub struct Ring {
    base: u64,
    /// Entries.
    pub size: u16,
    given: u16,
    taken: u16,
}

impl Ring {
    /// The ring of a device's queue.
    pub const fn of(device: usize, queue: usize) -> Self {
        Ring { base: RINGS + (device * QUEUES + queue) as u64 * ROOM, size: 0, given: 0, taken: 0 }
    }

    /// Makes it one of `size` entries, none of which is in use.
    pub fn clear(&mut self, size: u16) {
        (self.size, self.given, self.taken) = (size, 0, 0);
        (self.base..self.base + ROOM).step_by(8).for_each(|at| write(at, 0u64));
    }

    /// Addresses of its three parts.
    pub fn areas(&self) -> [u64; 3] {
        [self.base, self.base + 0x1000, self.base + 0x2000]
    }

    /// The descriptor table.
    pub fn table(&self) -> u64 {
        self.base
    }

    /// Makes the chain at `head` available.
    pub fn offer(&mut self, head: u16) {
        let [_, available, _] = self.areas();
        write(available + 4 + 2 * u64::from(self.given % self.size.max(1)), head);
        self.advance(1);
    }

    /// Says that so many more are available.
    pub fn advance(&mut self, by: u16) {
        let [_, available, _] = self.areas();
        self.given = self.given.wrapping_add(by);
        write(available + 2, self.given);
    }

    /// Chains that were made available, wrapping.
    pub fn given(&self) -> u16 {
        self.given
    }

    /// The device has used everything.
    pub fn is_done(&self) -> bool {
        read::<u16>(self.areas()[2] + 2) == self.given
    }

    /// The next chain that the device has used: head and bytes written.
    pub fn take(&mut self) -> Option<(u32, u32)> {
        let used = self.areas()[2];
        if read::<u16>(used + 2) == self.taken {
            return None;
        }
        let at = used + 4 + 8 * u64::from(self.taken % self.size.max(1));
        self.taken = self.taken.wrapping_add(1);
        Some((read(at), read(at + 4)))
    }

    /// A chain of `read` bytes for the device and room for `room` from it, at `at` and a page behind, as head `head`.
    pub fn chain(&self, head: u16, at: u64, read: u32, room: u32) {
        let tail = head + 1;
        descriptor(self.table(), (head, at, read, if room > 0 { NEXT } else { 0 }, tail));
        descriptor(self.table(), (tail, at + 0x1000, room, WRITE, 0));
    }
}

/// Zeros at `at`, as headers of requests that mean something to each device.
pub fn blank(at: u64) {
    fill(at, 0, 64);
}
