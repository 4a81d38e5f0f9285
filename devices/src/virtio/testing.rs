//! A fake driver: a transport on an event loop of its own, with queues in a small guest memory.
//!
//! For this crate's tests and the fuzz targets. It can be as well-behaved or as broken as a case asks: every register
//! and every byte of the rings can be written directly.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use vm_memory::{Bytes, GuestAddress};

use super::window::Beside;
use super::{MmioTransport, VirtioDevice};
use crate::{BusDevice, GuestRam, InterruptLine};

/// Guest RAM is two regions, with a hole between them.
pub const RAM: [(u64, usize); 2] = [(0, 16 << 20), (1 << 32, 1 << 20)];
/// Where the memory is that a device shows.
pub const WINDOW: u64 = 2 << 32;
/// Descriptor flags.
pub const NEXT: u16 = 1;
/// Device-writable.
pub const WRITE: u16 = 2;
/// Refers to a table.
pub const INDIRECT: u16 = 4;
/// All status bits of a running device.
pub const RUNNING: u32 = 15;
/// The device's call for a reset.
pub const NEEDS_RESET: u32 = 0x40;
/// The driver's word that it has given the device up.
pub const FAILED: u32 = 0x80;

const DATA: u64 = 1 << 20;
const DATA_END: u64 = 16 << 20;
/// Longest a test waits for something that must happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// A piece of a chain.
#[derive(Clone, Copy, Debug)]
pub enum Part<'a> {
    /// Bytes for the device.
    Read(&'a [u8]),
    /// Room for this many bytes from the device.
    Write(u32),
}

/// A chain the device gave back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// By which it was known.
    pub head: u16,
    /// Bytes the device says it wrote.
    pub written: u32,
    /// All writable bytes.
    pub data: Vec<u8>,
}

/// Counts edges.
#[derive(Default)]
struct Line(AtomicU32);

impl InterruptLine for Line {
    fn trigger(&self) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// The driver's view of one queue.
struct Ring {
    size: u16,
    base: u64,
    next_avail: u16,
    next_used: u16,
    free: Vec<u16>,
    /// By head.
    chains: HashMap<u16, Offered>,
}

/// A chain the device has.
struct Offered {
    descriptors: Vec<u16>,
    /// Addresses and lengths.
    writable: Vec<(u64, u32)>,
}

impl Ring {
    fn new(index: usize, size: u16) -> Self {
        Ring {
            size,
            base: 0x1_0000 * (index as u64 + 1),
            next_avail: 0,
            next_used: 0,
            free: (0..size).rev().collect(),
            chains: HashMap::new(),
        }
    }
}

type Subscriber = Arc<Mutex<dyn MutEventSubscriber + Send>>;
type Manager = Arc<Mutex<EventManager<Subscriber>>>;

/// The driver and the machine around it.
pub struct Driver {
    /// Guest RAM.
    pub mem: GuestRam,
    /// What is under test.
    pub transport: Arc<Mutex<MmioTransport>>,
    manager: Manager,
    line: Arc<Line>,
    rings: Vec<Ring>,
    next_data: u64,
    /// What the device shows outlives what sees it.
    _beside: Beside,
}

impl Driver {
    /// A machine with `device`, which no driver has touched.
    pub fn new(device: Box<dyn VirtioDevice>) -> Self {
        Driver::on(Arc::new(Mutex::new(EventManager::new().expect("an event loop"))), device)
    }

    /// A machine whose driver is up, on the same event loop as this one.
    pub fn beside(&self, device: Box<dyn VirtioDevice>) -> Self {
        let mut driver = Driver::on(self.manager.clone(), device);
        driver.bring_up(u64::MAX);
        driver
    }

    fn on(manager: Manager, mut device: Box<dyn VirtioDevice>) -> Self {
        let ranges = RAM.map(|(start, len)| (GuestAddress(start), len));
        let mut beside = Beside::new(GuestRam::from_ranges(&ranges).expect("guest RAM for a test"), WINDOW);
        device.show(&mut beside).expect("memory for the device");
        let mem = beside.memory().clone();
        let sizes = device.info().queue_sizes;
        let line = Arc::new(Line::default());
        let transport = MmioTransport::new(mem.clone(), device, line.clone()).expect("a transport");
        let transport = Arc::new(Mutex::new(transport));
        manager.lock().unwrap_or_else(PoisonError::into_inner).add_subscriber(transport.clone() as Subscriber);
        let rings = sizes.iter().enumerate().map(|(index, size)| Ring::new(index, *size)).collect();
        Driver { mem, transport, manager, line, rings, next_data: DATA, _beside: beside }
    }

    /// A machine whose driver is up, with every feature and queue.
    pub fn start(device: Box<dyn VirtioDevice>) -> Self {
        let mut driver = Driver::new(device);
        driver.bring_up(u64::MAX);
        driver
    }

    /// The transport, locked.
    pub fn lock(&self) -> MutexGuard<'_, MmioTransport> {
        self.transport.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a register.
    pub fn get(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.lock().read(0, offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Writes a register.
    pub fn set(&self, offset: u64, value: u32) {
        self.lock().write(0, offset, &value.to_le_bytes());
    }

    /// Device status.
    pub fn status(&self) -> u32 {
        self.get(0x70)
    }

    /// Edges so far.
    pub fn interrupts(&self) -> u32 {
        self.line.0.load(Ordering::Relaxed)
    }

    /// What the device offers.
    pub fn offered(&self) -> u64 {
        self.set(0x14, 0);
        let low = self.get(0x10);
        self.set(0x14, 1);
        u64::from(self.get(0x10)) << 32 | u64::from(low)
    }

    /// From nothing to FEATURES_OK, with those of `features` that are offered.
    pub fn negotiate(&mut self, features: u64) {
        let features = self.offered() & features;
        self.set(0x70, 1);
        self.set(0x70, 3);
        for (sel, value) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.set(0x24, sel);
            self.set(0x20, value);
        }
        self.set(0x70, 11);
    }

    /// Makes a queue ready, as large as it may be.
    pub fn set_up_queue(&mut self, index: usize) {
        let size = self.rings[index].size;
        self.rings[index] = Ring::new(index, size);
        let base = self.rings[index].base;
        self.mem.write_slice(&[0; 0x1_0000], GuestAddress(base)).expect("ring memory");
        self.set(0x30, index as u32);
        self.set(0x38, size.into());
        for (offset, address) in [(0x80, base), (0x90, base + 0x4000), (0xa0, base + 0x8000)] {
            self.set(offset, address as u32);
            self.set(offset + 4, (address >> 32) as u32);
        }
        self.set(0x44, 1);
    }

    /// The whole way to DRIVER_OK.
    pub fn bring_up(&mut self, features: u64) {
        self.negotiate(features);
        for index in 0..self.rings.len() {
            self.set_up_queue(index);
        }
        self.set(0x70, RUNNING);
        self.settle();
    }

    /// Resets the device.
    pub fn reset(&mut self) {
        self.set(0x70, 0);
        self.settle();
    }

    /// Lets the event loop work until it has nothing to do; tells whether that came about in bounded work.
    pub fn settle(&mut self) -> bool {
        (0..10_000).any(|_| self.turn(0) == 0)
    }

    /// Lets the event loop work until `done`.
    pub fn wait(&mut self, mut done: impl FnMut(&mut Driver) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < PATIENCE, "it did not happen in {PATIENCE:?}");
            self.turn(10);
        }
    }

    /// A turn of the event loop, which waits for so many ms at most; tells how many events there were.
    fn turn(&mut self, patience: i32) -> usize {
        let mut manager = self.manager.lock().unwrap_or_else(PoisonError::into_inner);
        manager.run_with_timeout(patience).expect("event loop")
    }

    /// Gives other threads a moment, or until something happens.
    pub fn wait_a_moment(&mut self) {
        self.turn(10);
    }

    /// Guest-physical addresses of a queue's parts.
    pub fn parts(&self, queue: usize) -> (u64, u64, u64) {
        let base = self.rings[queue].base;
        (base, base + 0x4000, base + 0x8000)
    }

    /// Writes a descriptor.
    pub fn descriptor(&self, table: u64, index: u16, (address, len): (u64, u32), flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.mem.write_slice(&bytes, GuestAddress(table + 16 * u64::from(index))).expect("descriptor");
    }

    /// Makes a head available, without a kick.
    pub fn offer(&mut self, queue: usize, head: u16) {
        let ring = &mut self.rings[queue];
        let entry = ring.base + 0x4000 + 4 + 2 * u64::from(ring.next_avail % ring.size);
        ring.next_avail = ring.next_avail.wrapping_add(1);
        let index = ring.next_avail;
        self.mem.write_obj(head, GuestAddress(entry)).expect("available ring");
        self.available_index(queue, index);
    }

    /// Sets the available index to anything.
    pub fn available_index(&self, queue: usize, index: u16) {
        self.mem.store(index, GuestAddress(self.parts(queue).1 + 2), Ordering::Release).expect("available index");
    }

    /// Takes `len` bytes of data memory.
    pub fn allocate(&mut self, len: u32) -> u64 {
        let len = u64::from(len).next_multiple_of(16);
        if self.next_data + len > DATA_END {
            self.next_data = DATA;
        }
        let at = self.next_data;
        self.next_data += len;
        at
    }

    /// Builds a chain and makes it available; none when the queue is full.
    pub fn add(&mut self, queue: usize, parts: &[Part]) -> Option<u16> {
        let free = &mut self.rings[queue].free;
        let indices = free.split_off(free.len().checked_sub(parts.len())?);
        let mut writable = Vec::new();
        for (at, part) in parts.iter().enumerate() {
            let (len, write) = match part {
                Part::Read(bytes) => (bytes.len() as u32, 0),
                Part::Write(len) => (*len, WRITE),
            };
            let address = self.allocate(len);
            match part {
                Part::Read(bytes) => self.mem.write_slice(bytes, GuestAddress(address)).expect("data"),
                Part::Write(_) => {
                    self.mem.write_slice(&vec![0; len as usize], GuestAddress(address)).expect("data");
                    writable.push((address, len));
                }
            }
            let next = indices.get(at + 1);
            let flags = write | if next.is_some() { NEXT } else { 0 };
            let table = self.parts(queue).0;
            self.descriptor(table, indices[at], (address, len), flags, next.copied().unwrap_or(0));
        }
        let head = indices[0];
        self.rings[queue].chains.insert(head, Offered { descriptors: indices, writable });
        self.offer(queue, head);
        Some(head)
    }

    /// Kicks a queue by its register.
    pub fn kick(&self, queue: usize) {
        self.set(0x50, queue as u32);
    }

    /// The next chain the device gave back.
    pub fn used(&mut self, queue: usize) -> Option<Done> {
        let used = self.parts(queue).2;
        let index: u16 = self.mem.load(GuestAddress(used + 2), Ordering::Acquire).expect("used index");
        let ring = &mut self.rings[queue];
        if index == ring.next_used {
            return None;
        }
        let entry = used + 4 + 8 * u64::from(ring.next_used % ring.size);
        ring.next_used = ring.next_used.wrapping_add(1);
        let [head, written]: [u32; 2] = self.mem.read_obj(GuestAddress(entry)).expect("used entry");
        let mut data = Vec::new();
        if let Some(chain) = ring.chains.remove(&(head as u16)) {
            ring.free.extend(chain.descriptors);
            for (address, len) in chain.writable {
                let start = data.len();
                data.resize(start + len as usize, 0);
                self.mem.read_slice(&mut data[start..], GuestAddress(address)).expect("data");
            }
        }
        Some(Done { head: head as u16, written, data })
    }

    /// One chain there and back.
    pub fn request(&mut self, queue: usize, parts: &[Part]) -> Done {
        let head = self.add(queue, parts).expect("a free chain");
        self.kick(queue);
        let mut done = None;
        self.wait(|driver| {
            assert_eq!(driver.status(), RUNNING, "the device stopped");
            done = driver.used(queue);
            done.is_some()
        });
        let done = done.expect("waited for");
        assert_eq!(done.head, head);
        done
    }
}
