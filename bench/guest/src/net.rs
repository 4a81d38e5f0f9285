//! A driver for a virtio network device (virtio 1.3, 5.1), as Linux would use it: mergeable receive buffers of a page, and
//! packets of up to 64 KiB both ways, with checksums and segmentation left to the device. It looks for packets and does not
//! wait for interrupts.

use core::ptr::copy_nonoverlapping;
use core::sync::atomic::{Ordering, fence};

use crate::device::{Device, register};
use crate::disk::Descriptor;
use crate::peer::{HEAD, Wire};

const NET: u32 = 1;
const RX: u32 = 0;
const TX: u32 = 1;
/// Entries of a queue.
const SIZE: usize = 256;
/// Bytes of a receive buffer.
const BUFFER: usize = 4096;
/// Packets that are sent at a time: each has two descriptors.
const SENDS: usize = SIZE / 2;
/// Bytes that packets are sent from, over and over.
const DATA: usize = 1 << 20;
/// VIRTIO_NET_F_ CSUM, GUEST_CSUM, MAC, GUEST_TSO4, HOST_TSO4, MRG_RXBUF; VIRTIO_F_EVENT_IDX.
const FEATURES: u32 = 1 | 1 << 1 | 1 << 5 | 1 << 7 | 1 << 11 | 1 << 15 | 1 << 29;
/// Descriptor flags (2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// Where `num_buffers` is in a packet's header.
const NUM_BUFFERS: usize = 10;
/// Buffers are shown to the device again when there are so many: as many as Linux has come together.
const SHOW: u16 = 32;

#[repr(C, align(4))]
struct Used {
    flags: u16,
    index: u16,
    ring: [[u32; 2]; SIZE],
    available_event: u16,
}

/// What a queue and the device share.
#[repr(C, align(4096))]
struct Ring {
    table: [Descriptor; SIZE],
    available_flags: u16,
    available_index: u16,
    available: [u16; SIZE],
    used_event: u16,
    used: Used,
}

/// All that the driver and the device share. Any bytes will do, but rings are zeros at first.
#[repr(C, align(4096))]
pub struct Memory {
    received: [[u8; BUFFER]; SIZE],
    data: [u8; DATA],
    heads: [[u8; HEAD]; SENDS],
    rings: [Ring; 2],
}

/// The driver's side of a queue. Every access to the ring is volatile: the device changes it at any time.
struct Queue {
    ring: *mut Ring,
    given: u16,
    /// What of `given` the device has been shown.
    shown: u16,
    taken: u16,
}

impl Queue {
    fn addresses(&self) -> [u64; 3] {
        // SAFETY: only addresses are taken, of memory that lives for ever.
        unsafe {
            [
                &raw mut (*self.ring).table as u64,
                &raw mut (*self.ring).available_flags as u64,
                &raw mut (*self.ring).used as u64,
            ]
        }
    }

    fn describe(&mut self, index: usize, descriptor: Descriptor) {
        // SAFETY: in bounds of memory that lives for ever; the device does not have this descriptor.
        unsafe { (&raw mut (*self.ring).table[index % SIZE]).write_volatile(descriptor) };
    }

    fn give(&mut self, head: usize) {
        // SAFETY: in bounds of memory that lives for ever.
        unsafe { (&raw mut (*self.ring).available[usize::from(self.given) % SIZE]).write_volatile(head as u16) };
        self.given = self.given.wrapping_add(1);
    }

    /// Shows the device what has been given; true if it wants a kick (2.7.10).
    fn show(&mut self) -> bool {
        let before = core::mem::replace(&mut self.shown, self.given);
        if before == self.given {
            return false;
        }
        fence(Ordering::SeqCst);
        // SAFETY: fields of memory that lives for ever.
        let event = unsafe {
            (&raw mut (*self.ring).available_index).write_volatile(self.given);
            fence(Ordering::SeqCst);
            (&raw mut (*self.ring).used.available_event).read_volatile()
        };
        self.given.wrapping_sub(event).wrapping_sub(1) < self.given.wrapping_sub(before)
    }

    /// The next chain that the device is through with: its head, and the bytes written.
    fn take(&mut self) -> Option<(usize, usize)> {
        // SAFETY: fields of memory that lives for ever.
        let [head, len] = unsafe {
            if (&raw mut (*self.ring).used.index).read_volatile() == self.taken {
                return None;
            }
            fence(Ordering::SeqCst);
            (&raw mut (*self.ring).used.ring[usize::from(self.taken) % SIZE]).read_volatile()
        };
        self.taken = self.taken.wrapping_add(1);
        Some((head as usize % SIZE, len as usize))
    }
}

/// The driver.
pub struct Net {
    device: Device,
    memory: *mut Memory,
    queues: [Queue; 2],
    mac: [u8; 6],
    /// Packets that the device has to send.
    sending: usize,
    /// Places for heads that the device does not have; the first so many.
    free: [u16; SENDS],
}

impl Net {
    /// Brings the device up. `None` if it is none, or does not come up.
    ///
    /// # Safety
    /// `registers` are those of a virtio device that nobody else drives, and addresses here are physical ones.
    pub unsafe fn new(registers: *mut u32, memory: &'static mut Memory) -> Option<Self> {
        // SAFETY: the caller's promise.
        let mut device = unsafe { Device::new(registers) };
        let memory: *mut Memory = memory;
        let queue = |index: usize| Queue {
            // SAFETY: in bounds; only the address is taken.
            ring: unsafe { &raw mut (*memory).rings[index] },
            given: 0,
            shown: 0,
            taken: 0,
        };
        let queues = [queue(0), queue(1)];
        if !device.bring_up(NET, FEATURES, SIZE, &queues.each_ref().map(Queue::addresses)) {
            return None;
        }
        let mac = device.config(0).to_le_bytes();
        let mac = core::array::from_fn(|at| mac[at]);
        let mut net = Net { device, memory, queues, mac, sending: 0, free: core::array::from_fn(|slot| slot as u16) };
        for index in 0..SIZE {
            net.offer(index);
        }
        net.show(TX);
        net.show(RX);
        Some(net)
    }

    /// Gives a receive buffer.
    fn offer(&mut self, index: usize) {
        // SAFETY: only the address is taken.
        let address = unsafe { &raw mut (*self.memory).received[index % SIZE] as u64 };
        let queue = &mut self.queues[RX as usize];
        queue.describe(index, Descriptor { address, len: BUFFER as u32, flags: WRITE, next: 0 });
        queue.give(index);
    }

    fn show(&mut self, index: u32) {
        let queue = &mut self.queues[index as usize];
        // The index that is worth an interrupt keeps its distance (2.7.10).
        // SAFETY: a field of memory that lives for ever.
        unsafe { (&raw mut (*queue.ring).used_event).write_volatile(queue.taken.wrapping_add(1 << 15)) };
        if queue.show() {
            self.device.set(register::QUEUE_NOTIFY, index);
        }
    }
}

impl Wire for Net {
    fn mac(&self) -> [u8; 6] {
        self.mac
    }

    fn receive(&mut self, head: &mut [u8; HEAD]) -> Option<usize> {
        let queue = &mut self.queues[RX as usize];
        let Some((first, len)) = queue.take() else {
            self.show(RX);
            return None;
        };
        // SAFETY: both are of that size, and the device does not have this buffer.
        unsafe { copy_nonoverlapping((&raw const (*self.memory).received[first]).cast(), head.as_mut_ptr(), HEAD) };
        self.offer(first);
        let mut total = len;
        for _ in 1..u16::from_le_bytes([head[NUM_BUFFERS], head[NUM_BUFFERS + 1]]) {
            // All of a packet's buffers are there together.
            let Some((more, len)) = self.queues[RX as usize].take() else { break };
            total += len;
            self.offer(more);
        }
        let queue = &self.queues[RX as usize];
        if queue.given.wrapping_sub(queue.shown) >= SHOW {
            self.show(RX);
        }
        Some(total)
    }

    fn ready(&mut self) -> bool {
        while let Some((head, _)) = self.queues[TX as usize].take() {
            self.sending -= 1;
            self.free[self.sending] = (head / 2) as u16;
        }
        self.sending < SENDS
    }

    fn send(&mut self, head: &[u8; HEAD], len: usize, data: usize) {
        if !self.ready() {
            return;
        }
        let slot = usize::from(self.free[self.sending]) % SENDS;
        self.sending += 1;
        let at = (slot << 16) % DATA;
        // SAFETY: in bounds of memory that lives for ever; the device does not have this slot.
        let (head_at, data_at) = unsafe {
            let place = &raw mut (*self.memory).heads[slot];
            place.write_volatile(*head);
            (place as u64, &raw const (*self.memory).data[at] as u64)
        };
        let queue = &mut self.queues[TX as usize];
        let flags = if data > 0 { NEXT } else { 0 };
        let next = (2 * slot + 1) as u16;
        queue.describe(2 * slot, Descriptor { address: head_at, len: len as u32, flags, next });
        queue.describe(2 * slot + 1, Descriptor { address: data_at, len: data as u32, flags: 0, next: 0 });
        queue.give(2 * slot);
    }

    fn flush(&mut self) {
        self.show(TX);
    }
}
