//! Guest RAM that comes when it is asked for: the other way to restore a machine, beside a private mapping of the memory file.
//!
//! ```text
//!   vCPU, device ── missing page ──► kernel ── fault ──► pager's thread ── read ──► memory files
//!        ▲                             │                      │  ▲
//!        └───────── goes on ◄──────────┴──── page ◄───────────┘  └── working set: read in one go, before it is asked for
//! ```
//!
//! Where memory files are in the page cache, a mapping is as quick, and shares what is not written. Where each missing page is
//! a read from a disk, the working set, recorded by the first machine that goes on from a snapshot, lets the others read
//! what they will want in large pieces. A file that is cut short ends the machine with an error, not this process with SIGBUS.
//!
//! - this file: the thread;
//! - [`places`]: which file has a page;
//! - [`uffd`]: the kernel's side;
//! - [`working_set`]: the record.

mod places;
mod uffd;
pub mod working_set;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use devices::worker::Work;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::Ram;
use crate::snapshot::memory::{Extent, PAGE, Source, runs};
use places::Places;
use uffd::{Filled, Uffd};
use working_set::Place;

/// What a guest asks for within this time, from its first fault on, is its working set.
const RECORDING: Duration = Duration::from_secs(1);
/// Most pages that one fault brings: neighbours are wanted soon.
const NEIGHBOURS: usize = 16;
/// Most pages of the working set that are read between two looks at the faults.
const PIECE: usize = 64;
/// What the thread does: pages from files, and the record of what was wanted first.
pub static PAGER: Work = Work {
    syscalls: &[
        libc::SYS_poll,
        libc::SYS_ppoll,
        libc::SYS_pread64,
        libc::SYS_lseek,
        libc::SYS_fadvise64,
        libc::SYS_ioctl,
        libc::SYS_openat,
        libc::SYS_open,
        libc::SYS_lstat,
        libc::SYS_statx,
        libc::SYS_fstat,
        libc::SYS_unlink,
        libc::SYS_linkat,
        libc::SYS_geteuid,
    ],
    ioctls: &uffd::IOCTLS,
    ..Work::named("pager")
};

/// A pager that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum PagerError {
    /// The kernel gives no userfaultfd.
    #[error(
        "userfaultfd: {0}; it needs /dev/userfaultfd or vm.unprivileged_userfaultfd=1; without it, use paging \"map\""
    )]
    Userfaultfd(io::Error),
    /// RAM cannot be registered.
    #[error("userfaultfd: registration of guest memory: {0}")]
    Register(io::Error),
    /// A memory file.
    #[error("memory file: {0}")]
    Source(io::Error),
    /// The thread.
    #[error("pager's thread: {0}")]
    Thread(io::Error),
}

/// Serves the missing pages of a machine's RAM until it is dropped, which waits for its thread. To be dropped after all who use
/// RAM have ended, and before RAM.
#[derive(Debug)]
pub struct Pager {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// Called once, on the pager's thread, if a page cannot be had; the guest gets zeros from then on.
pub type OnError = Box<dyn FnOnce(String) + Send>;

impl Pager {
    /// Serves `ram`, which is anonymous and untouched, from `sources`: the first has all pages, each other one lies over those
    /// before it. The working set is at `place`, or will be.
    pub fn start(ram: &Ram, sources: &[Source], place: Place, on_error: OnError) -> Result<Self, PagerError> {
        let uffd = Uffd::open().map_err(PagerError::Userfaultfd)?;
        let regions = regions(ram);
        for region in &regions {
            uffd.register(region.start.0, region.pages * PAGE).map_err(PagerError::Register)?;
        }
        let pages = regions.iter().map(|region| region.pages).sum();
        let places = Places::of(sources, pages).map_err(PagerError::Source)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let stop = Arc::new(stop.map_err(|e| PagerError::Thread(e.into()))?);
        let mut worker = Worker {
            uffd,
            regions,
            places,
            stop: stop.clone(),
            prefetch: Vec::new(),
            recording: None,
            place,
            on_error: Some(on_error),
        };
        worker.prepare(pages);
        let thread = devices::worker::spawn(&PAGER, move || worker.live());
        Ok(Pager { stop, thread: Some(thread.map_err(PagerError::Thread)?) })
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        // Only a full counter fails, and that wakes the thread as well.
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// An address in RAM.
#[derive(Debug, Clone, Copy)]
struct Start(*mut u8);

// SAFETY: it is only an address, which goes to the kernel as a number.
unsafe impl Send for Start {}

/// A region of RAM in this process.
#[derive(Debug)]
struct Region {
    start: Start,
    /// Number of its first page among all of RAM.
    first: usize,
    pages: usize,
}

fn regions(ram: &Ram) -> Vec<Region> {
    let mut first = 0;
    let region = |region: &vm_memory::GuestRegionMmap| {
        let pages = region.len() as usize / PAGE;
        first += pages;
        Region { start: Start(region.as_ptr()), first: first - pages, pages }
    };
    ram.guest().iter().map(region).collect()
}

/// What the guest has asked for so far.
struct Recording {
    pages: Vec<bool>,
    until: Option<Instant>,
}

struct Worker {
    uffd: Uffd,
    regions: Vec<Region>,
    places: Places,
    stop: Arc<OwnedFd>,
    /// What is left of the working set, the next piece last.
    prefetch: Vec<Extent>,
    recording: Option<Recording>,
    place: Place,
    /// Taken when a page could not be had.
    on_error: Option<OnError>,
}

impl Worker {
    /// Finds out whether there is a working set to read, or one to record.
    fn prepare(&mut self, pages: usize) {
        match self.place.read(pages as u64) {
            Ok(extents) => {
                self.places.will_need(&extents);
                self.prefetch = extents;
                self.prefetch.reverse();
            }
            Err(why) => {
                tracing::debug!("{}: {why}; it is recorded", self.place.path().display());
                self.recording = Some(Recording { pages: vec![false; pages], until: None });
            }
        }
    }

    fn live(&mut self) {
        loop {
            match self.uffd.faults() {
                Ok(addresses) => addresses.into_iter().for_each(|address| self.fault(address)),
                Err(error) => self.fail(&format!("userfaultfd: {error}")),
            }
            if self.prefetch_piece() {
                continue;
            }
            let stopped = self.wait();
            let due = self.recording.as_ref().and_then(|r| r.until).is_some_and(|until| Instant::now() >= until);
            if stopped || due {
                self.keep_recording();
            }
            if stopped {
                return;
            }
        }
    }

    /// Waits for a fault, the end of the recording, or the end: true for the last.
    fn wait(&self) -> bool {
        let until = self.recording.as_ref().and_then(|recording| recording.until);
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
        let mut fds = [PollFd::new(&self.uffd, PollFlags::IN), PollFd::new(&*self.stop, PollFlags::IN)];
        // An interrupted wait is a wait that found nothing.
        let _ = poll(&mut fds, timeout.as_ref());
        fds[1].revents().contains(PollFlags::IN)
    }

    /// Serves one that waits for `address`.
    fn fault(&mut self, address: u64) {
        let Some(page) = self.page_of(address) else { return };
        if let Some(recording) = &mut self.recording {
            recording.until.get_or_insert_with(|| Instant::now() + RECORDING);
        }
        let run = self.places.run(page, self.end_of_chunk(page));
        let filled = match self.fill(page, run) {
            // Part of the run may be somebody else's by now; the page that is waited for need not be.
            Ok(Filled::Gone) if run > 1 => self.fill(page, 1),
            other => other,
        };
        match filled {
            Ok(Filled::Bytes(bytes)) => {
                if let Some(recorded) = self.recording.as_mut().and_then(|r| r.pages.get_mut(page..page + bytes / PAGE))
                {
                    recorded.fill(true);
                }
            }
            Ok(Filled::Gone) => {}
            Err(error) => {
                self.fail(&format!("guest memory at page {page}: {error}"));
                let start = self.host(page);
                // SAFETY: the page is missing RAM, and the machine is at its end. What else goes wrong cannot be helped.
                let _ = unsafe { self.uffd.zero(start, PAGE) };
            }
        }
    }

    /// The page that one fault's neighbours end at: they share its chunk and its region.
    fn end_of_chunk(&self, page: usize) -> usize {
        let end = (page / NEIGHBOURS + 1) * NEIGHBOURS;
        let region = self.regions.iter().rev().find(|region| region.first <= page);
        region.map_or(end, |region| end.min(region.first + region.pages))
    }

    /// Fills `count` pages that are in one place.
    fn fill(&mut self, page: usize, count: usize) -> io::Result<Filled> {
        let start = self.host(page);
        if self.on_error.is_none() {
            // SAFETY: missing RAM of a machine that has failed already.
            return unsafe { self.uffd.zero(start, PAGE) };
        }
        match self.places.read(page, count)? {
            // SAFETY: the pages are RAM, and those that are missing have to become what the files say: nothing.
            None => unsafe { self.uffd.zero(start, count * PAGE) },
            // SAFETY: as above; they have to become these bytes.
            Some(bytes) => unsafe { self.uffd.copy(start, bytes) },
        }
    }

    /// Fills the next piece of the working set; false if there is none.
    fn prefetch_piece(&mut self) -> bool {
        let Some((first, count)) = self.prefetch.pop() else {
            return false;
        };
        let (page, count) = (first as usize, count as usize);
        let Some(region) = self.regions.iter().rev().find(|region| region.first <= page) else { return true };
        let most = count.min(PIECE).min(region.first + region.pages - page);
        let run = self.places.run(page, page + most);
        let done = match self.fill(page, run) {
            // What is not missing any more is left out.
            Ok(Filled::Bytes(bytes)) if bytes < run * PAGE => bytes / PAGE + 1,
            Ok(_) => run,
            // Whoever wants the page gets the error.
            Err(_) => run,
        };
        if done < count {
            self.prefetch.push(((page + done) as u64, (count - done) as u64));
        }
        true
    }

    /// Ends the recording, if there is one.
    fn keep_recording(&mut self) {
        let Some(recording) = self.recording.take() else { return };
        let extents = runs(&recording.pages, 0);
        if extents.is_empty() || self.on_error.is_none() {
            return;
        }
        match self.place.write(&extents) {
            Ok(()) => tracing::info!("working set: {} extents", extents.len()),
            Err(error) => tracing::info!("{}: {error}", self.place.path().display()),
        }
    }

    fn fail(&mut self, problem: &str) {
        if let Some(on_error) = self.on_error.take() {
            on_error(problem.to_owned());
        }
    }

    fn page_of(&self, address: u64) -> Option<usize> {
        self.regions.iter().find_map(|region| {
            let offset = address.checked_sub(region.start.0 as u64)? as usize / PAGE;
            (offset < region.pages).then_some(region.first + offset)
        })
    }

    /// Where a page of RAM is in this process. It is one of RAM.
    fn host(&self, page: usize) -> *mut u8 {
        let region = self.regions.iter().rev().find(|region| region.first <= page);
        region.map_or(std::ptr::null_mut(), |region| region.start.0.wrapping_add((page - region.first) * PAGE))
    }
}

#[cfg(test)]
mod tests;
