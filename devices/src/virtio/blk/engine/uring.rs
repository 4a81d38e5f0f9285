//! Jobs for the kernel, through an io_uring (io_uring(7)).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::register::Restriction;
use io_uring::{IoUring, Probe, opcode, squeue, types};
use vmm_sys_util::eventfd::EventFd;

use super::{Done, Engine, Job, List, MOST_JOBS, Work};

/// A ring with the disk's files registered.
pub struct Uring {
    ring: IoUring,
    event: Arc<EventFd>,
}

impl Uring {
    /// Fails where the kernel refuses io_uring, or has one that cannot do all of it.
    pub fn new(files: &[Arc<File>], event: Arc<EventFd>) -> io::Result<Self> {
        // A tag has one job at a time, so neither ring can overflow. It begins to work when it is known what it may do.
        let ring = IoUring::builder().setup_r_disabled().build(MOST_JOBS as u32)?;
        let submitter = ring.submitter();
        let mut probe = Probe::new();
        submitter.register_probe(&mut probe)?;
        let needed = [opcode::Readv::CODE, opcode::Writev::CODE, opcode::Fsync::CODE, opcode::Fallocate::CODE];
        if !needed.into_iter().all(|code| probe.is_supported(code)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let files: Vec<_> = files.iter().map(|file| file.as_raw_fd()).collect();
        submitter.register_files(&files)?;
        submitter.register_eventfd(event.as_raw_fd())?;
        // No system-call filter sees what a ring carries out: this one does nothing but these, to the disk's files alone.
        let mut restrictions: Vec<_> = needed.into_iter().map(Restriction::sqe_op).collect();
        restrictions.push(Restriction::sqe_flags_required(squeue::Flags::FIXED_FILE.bits()));
        submitter.register_restrictions(&mut restrictions)?;
        submitter.register_enable_rings()?;
        Ok(Uring { ring, event })
    }

    /// Submits, and waits for `want` results. Whether all was submitted.
    fn enter(&mut self, want: usize) -> io::Result<bool> {
        match self.ring.submit_and_wait(want) {
            Ok(_) => Ok(self.ring.submission().is_empty()),
            // A signal, or memory that the kernel will have again.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => Ok(false),
            Err(e) => Err(e),
        }
    }
}

fn entry(job: &Job) -> squeue::Entry {
    let file = types::Fixed(job.file);
    let entry = match job.work {
        Work::Read(List { first, count }) => opcode::Readv::new(file, first, count).offset(job.offset).build(),
        Work::Write(List { first, count }) => opcode::Writev::new(file, first, count).offset(job.offset).build(),
        Work::Sync => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
        Work::Allocate { mode, len } => opcode::Fallocate::new(file, len).offset(job.offset).mode(mode).build(),
    };
    entry.user_data(job.tag.into())
}

impl Engine for Uring {
    unsafe fn start(&mut self, job: Job) {
        let entry = entry(&job);
        // SAFETY: the caller keeps what the entry points to. The registered files are the ring's own.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        debug_assert!(pushed.is_ok(), "more jobs than tags");
    }

    fn submit(&mut self) -> io::Result<()> {
        if !self.ring.submission().is_empty() && !self.enter(0)? {
            // The event loop comes again.
            self.event.write(1)?;
        }
        Ok(())
    }

    fn wait(&mut self) {
        while self.ring.completion().is_empty() {
            // Whatever fails, what has begun must end before its memory may go.
            if !matches!(self.enter(1), Ok(true)) {
                std::thread::yield_now();
            }
        }
    }

    fn next(&mut self) -> Option<Done> {
        let entry = self.ring.completion().next()?;
        Some(Done { tag: entry.user_data() as u16, result: entry.result() })
    }
}
