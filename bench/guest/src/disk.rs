//! Load for a virtio disk (virtio 1.3, 5.2): reads of 4 KiB at random places, so many at a time, looked for and not waited for.
//!
//! How many is in the disk's identity string: "DEPTH REQUESTS". Or writes to such places, without end.

use core::sync::atomic::{Ordering, fence};

use crate::device::{Device, register};

/// Most requests at a time.
pub const MOST: usize = 32;
/// Bytes of a request, and of a page.
pub const BLOCK: usize = 4096;

/// Entries: a request has three.
const SIZE: usize = 128;
const DISK: u32 = 2;
const SECTORS: u64 = BLOCK as u64 / 512;
const IDENTITY: usize = 20;
const READ: u32 = 0;
const WRITE_OUT: u32 = 1;
const GET_ID: u32 = 8;
/// Descriptor flags (2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// Of the available ring: no interrupt is wanted (2.7.6); of the used ring: no kick is (2.7.8).
const QUIET: u16 = 1;

#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(crate) struct Descriptor {
    pub address: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Header {
    kind: u32,
    reserved: u32,
    sector: u64,
}

#[repr(C, align(4))]
struct Used {
    flags: u16,
    index: u16,
    ring: [[u32; 2]; SIZE],
    event: u16,
}

/// What the driver and the device share.
#[repr(C, align(4096))]
pub struct Memory {
    data: [[u8; BLOCK]; MOST],
    table: [Descriptor; SIZE],
    /// Flags, index, entries, and what is not used without VIRTIO_F_EVENT_IDX.
    available: [u16; SIZE + 3],
    used: Used,
    headers: [Header; MOST],
    statuses: [u8; MOST],
}

impl Memory {
    /// All zeros.
    pub const fn new() -> Self {
        Memory {
            data: [[0; BLOCK]; MOST],
            table: [Descriptor { address: 0, len: 0, flags: 0, next: 0 }; SIZE],
            available: [0; SIZE + 3],
            used: Used { flags: 0, index: 0, ring: [[0; 2]; SIZE], event: 0 },
            headers: [Header { kind: 0, reserved: 0, sector: 0 }; MOST],
            statuses: [0; MOST],
        }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

/// How much to ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Requests at a time: 1 to [`MOST`].
    pub depth: usize,
    /// Requests in all.
    pub requests: u64,
}

impl Load {
    /// From an identity string.
    pub fn parse(identity: &[u8]) -> Option<Self> {
        let mut words = identity.split(|byte| *byte == b' ' || *byte == 0).map(crate::decimal);
        let (depth, requests) = (words.next()?? as usize, words.next()??);
        ((1..=MOST).contains(&depth) && requests > 0).then_some(Load { depth, requests })
    }
}

/// The driver. Every access to the shared memory is volatile: the device changes it at any time.
pub struct Disk {
    device: Device,
    memory: *mut Memory,
    blocks: u64,
    given: u16,
    taken: u16,
    random: u64,
}

impl Disk {
    /// Brings the device up. `None` if it is none, or does not come up.
    ///
    /// # Safety
    /// `registers` are those of a virtio device that nobody else drives, and addresses here are physical ones.
    pub unsafe fn new(registers: *mut u32, memory: &'static mut Memory) -> Option<Self> {
        // SAFETY: the caller's promise.
        let mut device = unsafe { Device::new(registers) };
        memory.available[0] = QUIET;
        let areas = [&raw const memory.table as u64, &raw const memory.available as u64, &raw const memory.used as u64];
        if !device.bring_up(DISK, 0, SIZE, &[areas]) {
            return None;
        }
        let blocks = device.config(0) / SECTORS;
        Some(Disk { device, memory, blocks, given: 0, taken: 0, random: 0x9e37_79b9_7f4a_7c15 })
    }

    /// What the host wants.
    pub fn load(&mut self) -> Option<Load> {
        self.ask(0, GET_ID, 0, IDENTITY);
        self.kick();
        while !self.take()? {}
        // SAFETY: memory that lives for ever, which the device has given back.
        let identity: [u8; IDENTITY] =
            core::array::from_fn(|i| unsafe { (&raw mut (*self.memory).data[0][i]).read_volatile() });
        Load::parse(&identity)
    }

    /// Reads as `load` says. `None` if the disk is empty, or a request failed.
    pub fn run(&mut self, load: Load) -> Option<()> {
        let (mut asked, mut done) = (0, 0);
        for slot in 0..load.depth {
            if asked < load.requests {
                self.ask_anywhere(slot, READ)?;
                asked += 1;
            }
        }
        self.kick();
        while done < load.requests {
            let before = self.given;
            while self.take()? {
                done += 1;
                if asked < load.requests {
                    let slot = self.last();
                    self.ask_anywhere(slot, READ)?;
                    asked += 1;
                }
            }
            if self.given != before {
                self.kick();
            }
            core::hint::spin_loop();
        }
        Some(())
    }

    /// Writes as fast as the disk takes it, until a request fails.
    pub fn flood(&mut self) -> Option<()> {
        for slot in 0..MOST {
            self.ask_anywhere(slot, WRITE_OUT)?;
        }
        self.kick();
        loop {
            let before = self.given;
            while self.take()? {
                let slot = self.last();
                self.ask_anywhere(slot, WRITE_OUT)?;
            }
            if self.given != before {
                self.kick();
            }
            core::hint::spin_loop();
        }
    }

    fn ask_anywhere(&mut self, slot: usize, kind: u32) -> Option<()> {
        // xorshift64 (Marsaglia).
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let block = (self.random >> 16).checked_rem(self.blocks)?;
        self.ask(slot, kind, block * SECTORS, BLOCK);
        Some(())
    }

    /// Puts a request into the ring; the device sees it with the next kick.
    fn ask(&mut self, slot: usize, kind: u32, sector: u64, len: usize) {
        let slot = slot % MOST;
        let head = (3 * slot) as u16;
        // SAFETY: `slot`, `head` and the ring's place are in bounds of memory that lives for ever; the device does not have
        // this slot.
        unsafe {
            let memory = self.memory;
            let header = &raw mut (*memory).headers[slot];
            let status = &raw mut (*memory).statuses[slot];
            header.write_volatile(Header { kind, reserved: 0, sector });
            status.write_volatile(0xff);
            let data = &raw mut (*memory).data[slot];
            let flags = if kind == WRITE_OUT { NEXT } else { NEXT | WRITE };
            let parts = [(header as u64, 16, NEXT), (data as u64, len as u32, flags), (status as u64, 1, WRITE)];
            for (index, (address, len, flags)) in (head..).zip(parts) {
                let descriptor = Descriptor { address, len, flags, next: index + 1 };
                (&raw mut (*memory).table[usize::from(index)]).write_volatile(descriptor);
            }
            (&raw mut (*memory).available[2 + usize::from(self.given) % SIZE]).write_volatile(head);
        }
        self.given = self.given.wrapping_add(1);
    }

    /// Shows the device all requests, and kicks it if it wants that.
    fn kick(&mut self) {
        fence(Ordering::SeqCst);
        // SAFETY: fields of memory that lives for ever.
        let flags = unsafe {
            (&raw mut (*self.memory).available[1]).write_volatile(self.given);
            fence(Ordering::SeqCst);
            (&raw mut (*self.memory).used.flags).read_volatile()
        };
        if flags & QUIET == 0 {
            self.notify();
        }
    }

    /// Kicks it, whether there is something to do or not.
    pub fn notify(&mut self) {
        self.device.set(register::QUEUE_NOTIFY, 0);
    }

    /// Takes a request back; false if there is none. `None` if it failed.
    fn take(&mut self) -> Option<bool> {
        // SAFETY: a field of memory that lives for ever.
        if unsafe { (&raw mut (*self.memory).used.index).read_volatile() } == self.taken {
            return Some(false);
        }
        fence(Ordering::SeqCst);
        self.taken = self.taken.wrapping_add(1);
        let slot = self.last();
        // SAFETY: in bounds of memory that lives for ever.
        let status = unsafe { (&raw mut (*self.memory).statuses[slot]).read_volatile() };
        (status == 0).then_some(true)
    }

    /// The slot that was taken last.
    fn last(&self) -> usize {
        let place = usize::from(self.taken.wrapping_sub(1)) % SIZE;
        // SAFETY: in bounds of memory that lives for ever.
        let [head, _] = unsafe { (&raw mut (*self.memory).used.ring[place]).read_volatile() };
        head as usize / 3 % MOST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_is_in_the_identity_string() {
        assert_eq!(Load::parse(b"32 400000\0\0\0"), Some(Load { depth: 32, requests: 400_000 }));
        for bad in [&b""[..], b"32", b"0 1", b"33 1", b"1 0", b"x 1", b"1 99999999999999999999"] {
            assert_eq!(Load::parse(bad), None);
        }
    }
}
