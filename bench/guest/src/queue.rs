//! A virtqueue (virtio 1.3, 2.7) in which descriptor N stands for buffer N, for ever.

use core::sync::atomic::{Ordering, fence};

/// Of the available ring: no interrupt is wanted (2.7.7).
const NO_INTERRUPT: u16 = 1;
/// Descriptor flag: the device writes to it (2.7.5).
const WRITE: u16 = 2;
/// Flag of the used ring: no kick is wanted (2.7.10).
const NO_NOTIFY: u16 = 1;

#[derive(Clone, Copy)]
#[repr(C, align(16))]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

#[repr(C, align(2))]
struct Available<const SIZE: usize> {
    flags: u16,
    index: u16,
    ring: [u16; SIZE],
    /// Not used without VIRTIO_F_EVENT_IDX, but there (2.7.6).
    event: u16,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct UsedEntry {
    id: u32,
    len: u32,
}

#[repr(C, align(4))]
struct Used<const SIZE: usize> {
    flags: u16,
    index: u16,
    ring: [UsedEntry; SIZE],
    event: u16,
}

/// What a queue and the device share: `SIZE` entries, and as many buffers of `BUFFER` bytes.
#[repr(C, align(16))]
pub struct Memory<const SIZE: usize, const BUFFER: usize> {
    table: [Descriptor; SIZE],
    available: Available<SIZE>,
    used: Used<SIZE>,
    buffers: [[u8; BUFFER]; SIZE],
}

impl<const SIZE: usize, const BUFFER: usize> Memory<SIZE, BUFFER> {
    /// All zeros.
    pub const fn new() -> Self {
        Memory {
            table: [Descriptor { address: 0, len: 0, flags: 0, next: 0 }; SIZE],
            available: Available { flags: 0, index: 0, ring: [0; SIZE], event: 0 },
            used: Used { flags: 0, index: 0, ring: [UsedEntry { id: 0, len: 0 }; SIZE], event: 0 },
            buffers: [[0; BUFFER]; SIZE],
        }
    }
}

impl<const SIZE: usize, const BUFFER: usize> Default for Memory<SIZE, BUFFER> {
    fn default() -> Self {
        Self::new()
    }
}

/// The driver's side. Every access to the shared memory is volatile: the device changes it at any time.
pub struct Queue<const SIZE: usize, const BUFFER: usize> {
    memory: *mut Memory<SIZE, BUFFER>,
    given: u16,
    taken: u16,
}

impl<const SIZE: usize, const BUFFER: usize> Queue<SIZE, BUFFER> {
    /// A queue in `memory`, which must be the device's from now on and for ever.
    pub fn new(memory: &'static mut Memory<SIZE, BUFFER>) -> Self {
        Queue { memory, given: 0, taken: 0 }
    }

    /// Wants no interrupts: it is looked at again and again.
    pub fn poll(&mut self) {
        // SAFETY: a field of memory that lives for ever.
        unsafe { (&raw mut (*self.memory).available.flags).write_volatile(NO_INTERRUPT) };
    }

    /// Addresses of descriptor table, available ring and used ring.
    pub fn addresses(&self) -> [u64; 3] {
        // SAFETY: the memory lives for ever; only addresses are taken.
        unsafe {
            let memory = self.memory;
            [&raw mut (*memory).table as u64, &raw mut (*memory).available as u64, &raw mut (*memory).used as u64]
        }
    }

    /// Gives buffer `index` to the device: `len` bytes of it to read, or all of it to write to. True if it wants a kick.
    pub fn give(&mut self, index: usize, len: Option<usize>) -> bool {
        let index = index % SIZE;
        let (bytes, flags) = len.map_or((BUFFER, WRITE), |len| (len.min(BUFFER), 0));
        // SAFETY: `index` and the ring's slot are in bounds of memory that lives for ever; the device does not use this
        // descriptor and slot before the index says so, which the fence orders.
        unsafe {
            let memory = self.memory;
            let address = &raw mut (*memory).buffers[index] as u64;
            (&raw mut (*memory).table[index]).write_volatile(Descriptor { address, len: bytes as u32, flags, next: 0 });
            (&raw mut (*memory).available.ring[usize::from(self.given) % SIZE]).write_volatile(index as u16);
            fence(Ordering::SeqCst);
            self.given = self.given.wrapping_add(1);
            (&raw mut (*memory).available.index).write_volatile(self.given);
            fence(Ordering::SeqCst);
            (&raw mut (*memory).used.flags).read_volatile() & NO_NOTIFY == 0
        }
    }

    /// The next buffer that the device is through with, and how many bytes it has written.
    pub fn take(&mut self) -> Option<(usize, usize)> {
        // SAFETY: fields of memory that lives for ever.
        unsafe {
            let memory = self.memory;
            if (&raw mut (*memory).used.index).read_volatile() == self.taken {
                return None;
            }
            fence(Ordering::SeqCst);
            let entry = (&raw mut (*memory).used.ring[usize::from(self.taken) % SIZE]).read_volatile();
            self.taken = self.taken.wrapping_add(1);
            Some((entry.id as usize % SIZE, entry.len as usize))
        }
    }

    /// Bytes of a buffer that the device does not have, from `at` on.
    pub fn read<const N: usize>(&self, index: usize, at: usize) -> [u8; N] {
        // SAFETY: the buffer is in memory that lives for ever, and the index is bounded; the array is read byte by byte within it.
        core::array::from_fn(|i| unsafe {
            (&raw mut (*self.memory).buffers[index % SIZE][(at + i) % BUFFER]).read_volatile()
        })
    }

    /// Writes to a buffer that the device does not have.
    pub fn write(&mut self, index: usize, at: usize, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate() {
            // SAFETY: as in `read`.
            unsafe { (&raw mut (*self.memory).buffers[index % SIZE][(at + i) % BUFFER]).write_volatile(*byte) };
        }
    }
}
