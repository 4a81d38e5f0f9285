//! Requests in flight: from the jobs they take to the status byte.
//!
//! ```text
//! Read, Write ──short──► the rest ──┐
//! Zero ──not supported──► Write ────┼──► Sync, if each write is to be durable ──► status
//! Discard, Sync ────────────────────┘
//! ```
//!
//! A request's memory is guest RAM, which this holds on to; [`Flight`] does not go before its last job has ended.

use std::io;

use super::disk::Place;
use super::engine::{Done, Engine, Job, List, MOST_JOBS, Work};
use super::request::Outcome;
use crate::GuestRam;
use crate::virtio::chain::{Buffers, Chain};

/// Entries of one job's list: IOV_MAX.
const MOST_BUFFERS: usize = 1024;

/// What zeros are written from, where a file system cannot make them by itself.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Bytes that one job can make zero by writing, with a list as long as those of guests.
pub const MOST_ZEROS: u64 = ZEROS.len() as u64 * 256;

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// File to guest.
    Read,
    /// Guest to file.
    Write,
    /// To stable storage.
    Sync,
    /// This many bytes are not needed any more.
    Discard(u64),
    /// This many bytes, of [`MOST_ZEROS`] at most, become zeros.
    Zero {
        /// Bytes.
        len: u64,
        /// They need no place any more.
        unmap: bool,
    },
}

/// A request to take up.
pub struct Order<'a, 'm> {
    /// The queue it came from.
    pub queue: usize,
    /// Its chain.
    pub chain: &'a Chain<'m>,
    /// What it does.
    pub action: Action,
    /// The bytes that are read or written.
    pub data: Buffers<'a, 'm>,
    /// The status byte.
    pub status: Buffers<'a, 'm>,
    /// Where.
    pub place: Place,
    /// What it changes is to be on stable storage before it ends.
    pub durable: bool,
}

/// A request that has ended. Its status is written.
pub struct Landed {
    /// The queue it came from.
    pub queue: usize,
    /// Its chain.
    pub head: u16,
    /// Bytes written into the chain.
    pub written: u32,
    /// What went wrong.
    pub error: Option<(Action, io::Error)>,
}

/// The requests in flight, and who carries them out.
pub struct Flight {
    engine: Box<dyn Engine>,
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// There are jobs that have not been submitted.
    waiting: bool,
    /// The RAM that the slots point to.
    _mem: GuestRam,
}

/// A request, or room for one.
struct Slot {
    queue: usize,
    head: u16,
    action: Action,
    place: Place,
    durable: bool,
    /// Its buffers. The list keeps its room from one request to the next.
    list: Vec<libc::iovec>,
    /// Those before this one are done.
    first: usize,
    /// Bytes of the list that are not done.
    left: u64,
    /// Bytes the guest is told were written, if all goes well.
    written: u32,
    status: *mut u8,
}

// SAFETY: the pointers lead to guest RAM, which is shared between threads anyway, and which `_mem` keeps; they are used
// only through volatile accesses and by the kernel.
unsafe impl Send for Flight {}

/// What becomes of a request when a job of it has ended.
enum Next {
    Work(Work),
    Over(io::Result<()>),
}

impl Flight {
    /// Nothing in flight yet. All orders are for `mem`.
    pub fn new(engine: Box<dyn Engine>, mem: GuestRam) -> Self {
        Flight { engine, slots: Vec::new(), free: Vec::new(), waiting: false, _mem: mem }
    }

    /// Another order can be taken.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty() || self.slots.len() < MOST_JOBS
    }

    /// Something is in flight.
    pub fn is_busy(&self) -> bool {
        self.free.len() < self.slots.len()
    }

    /// Takes up a request; there must be room.
    pub fn take(&mut self, order: &Order) {
        let tag = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::empty());
            self.slots.len() as u16 - 1
        });
        let slot = &mut self.slots[usize::from(tag)];
        slot.fill(order);
        let work = slot.first_work();
        self.start(tag, work);
    }

    fn start(&mut self, tag: u16, work: Work) {
        let Place { file, offset } = self.slots[usize::from(tag)].place;
        // SAFETY: a slot's list does not change while a job of it is under way, and does not move with the slot; what it
        // names is guest RAM that `_mem` keeps, or static. `drop` waits for all jobs.
        unsafe { self.engine.start(Job { tag, file, offset, work }) };
        self.waiting = true;
    }

    /// There is something to submit.
    pub fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// Has what was taken begin.
    pub fn submit(&mut self) -> io::Result<()> {
        self.waiting = false;
        self.engine.submit()
    }

    /// Waits for a job's end; something must be in flight.
    pub fn wait(&mut self) {
        self.engine.wait();
    }

    /// The next request that has ended. Those that go on need another [`submit`](Self::submit).
    pub fn next(&mut self) -> Option<Landed> {
        while let Some(Done { tag, result }) = self.engine.next() {
            let Some(slot) = self.slots.get_mut(usize::from(tag)) else { continue };
            match slot.advance(result) {
                Next::Work(work) => self.start(tag, work),
                Next::Over(result) => {
                    let landed = slot.land(result);
                    self.free.push(tag);
                    return Some(landed);
                }
            }
        }
        None
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        while self.is_busy() {
            self.wait();
            while self.next().is_some() {}
        }
    }
}

impl Slot {
    fn empty() -> Self {
        Slot {
            queue: 0,
            head: 0,
            action: Action::Sync,
            place: Place { file: 0, offset: 0 },
            durable: false,
            list: Vec::new(),
            first: 0,
            left: 0,
            written: 0,
            status: std::ptr::null_mut(),
        }
    }

    fn fill(&mut self, order: &Order) {
        self.list.clear();
        for slice in order.data.slices() {
            self.list.push(libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() });
        }
        self.queue = order.queue;
        self.head = order.chain.head();
        self.action = order.action;
        self.place = order.place;
        self.durable = order.durable;
        self.first = 0;
        self.left = order.data.len() as u64;
        self.written = if order.action == Action::Read { order.data.len() as u32 } else { 0 };
        self.status = order.status.slices().next().map_or(std::ptr::null_mut(), |s| s.ptr_guard_mut().as_ptr());
    }

    fn list(&self) -> List {
        let rest = &self.list[self.first..];
        List { first: rest.as_ptr(), count: rest.len().min(MOST_BUFFERS) as u32 }
    }

    fn first_work(&self) -> Work {
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let zero = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        match self.action {
            Action::Read => Work::Read(self.list()),
            Action::Write => Work::Write(self.list()),
            Action::Sync => Work::Sync,
            Action::Discard(len) => Work::Allocate { mode: punch, len },
            Action::Zero { len, unmap } => Work::Allocate { mode: if unmap { punch } else { zero }, len },
        }
    }

    /// A job's result.
    fn advance(&mut self, result: i32) -> Next {
        let Ok(moved) = u64::try_from(result) else { return self.failed(-result) };
        if self.left > 0 {
            // A file truncated beneath, or a device that ends.
            if moved == 0 || moved > self.left {
                return Next::Over(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            self.skip(moved);
            if self.left > 0 {
                let list = self.list();
                return Next::Work(if self.action == Action::Read { Work::Read(list) } else { Work::Write(list) });
            }
        }
        if std::mem::take(&mut self.durable) { Next::Work(Work::Sync) } else { Next::Over(Ok(())) }
    }

    fn failed(&mut self, error: i32) -> Next {
        let unsupported = error == libc::EOPNOTSUPP || error == libc::ENOSYS;
        match self.action {
            // Nobody can tell (5.2.6.2): it was a hint.
            Action::Discard(_) if unsupported => Next::Over(Ok(())),
            Action::Zero { len, .. } if unsupported && self.left == 0 => {
                self.write_zeros(len.min(MOST_ZEROS));
                Next::Work(Work::Write(self.list()))
            }
            _ => Next::Over(Err(io::Error::from_raw_os_error(error))),
        }
    }

    fn write_zeros(&mut self, len: u64) {
        self.left = len;
        let mut rest = len;
        while rest > 0 {
            let part = rest.min(ZEROS.len() as u64);
            // Nothing is ever written there: it is the source of a write.
            self.list.push(libc::iovec { iov_base: ZEROS.as_ptr().cast_mut().cast(), iov_len: part as usize });
            rest -= part;
        }
    }

    /// Leaves out the first `moved` bytes, which are done.
    fn skip(&mut self, moved: u64) {
        self.left -= moved;
        self.place.offset += moved;
        let mut moved = moved as usize;
        while let Some(entry) = self.list.get_mut(self.first) {
            if moved < entry.iov_len {
                entry.iov_base = entry.iov_base.wrapping_byte_add(moved);
                entry.iov_len -= moved;
                return;
            }
            moved -= entry.iov_len;
            self.first += 1;
        }
    }

    fn land(&mut self, result: io::Result<()>) -> Landed {
        let outcome = if result.is_ok() { Outcome::Ok } else { Outcome::IoError };
        if !self.status.is_null() {
            // SAFETY: a byte of guest RAM that `Flight::_mem` keeps; the guest may touch it at the same time.
            unsafe { self.status.write_volatile(outcome as u8) };
        }
        let written = if result.is_ok() { self.written + 1 } else { 1 };
        let error = result.err().map(|error| (self.action, error));
        Landed { queue: self.queue, head: self.head, written, error }
    }
}
