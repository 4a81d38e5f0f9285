//! Who carries out what a disk's requests ask of its files, while the event loop goes on.
//!
//! - [`uring`]: the kernel, through an io_uring: one system call for any number of jobs;
//! - [`pool`]: a few threads, where io_uring is refused (seccomp, `kernel.io_uring_disabled`, an old kernel), or where what is to
//!   be done is more than a system call ([`Store`]); [`files`]: where it is one.
//!
//! Both signal an eventfd when something is done. Jobs are done in any order.

mod files;
pub mod pool;
mod uring;

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

pub use files::Files;
pub use pool::Pool;
pub use uring::Uring;

/// Most jobs there can be at a time.
pub const MOST_JOBS: usize = 128;

/// What is to be done with a file.
#[derive(Debug, Clone, Copy)]
pub enum Work {
    /// Fill these buffers.
    Read(List),
    /// Store these buffers.
    Write(List),
    /// Bring finished writes to stable storage.
    Sync,
    /// fallocate(2).
    Allocate {
        /// FALLOC_FL_*.
        mode: i32,
        /// Bytes.
        len: u64,
    },
}

/// Buffers of a job.
#[derive(Debug, Clone, Copy)]
pub struct List {
    /// The first of them.
    pub first: *const libc::iovec,
    /// How many: at most IOV_MAX.
    pub count: u32,
}

/// Something to do.
#[derive(Debug, Clone, Copy)]
pub struct Job {
    /// By which its result is known. No two jobs there are have the same, and it is below [`MOST_JOBS`].
    pub tag: u16,
    /// Which file.
    pub file: u32,
    /// Where in it, bytes.
    pub offset: u64,
    /// What.
    pub work: Work,
}

// SAFETY: what the pointers lead to is guarded by the promise to `Engine::start`, whichever thread does the job.
unsafe impl Send for Job {}

/// How a job went.
#[derive(Debug, Clone, Copy)]
pub struct Done {
    /// The job's.
    pub tag: u16,
    /// What the system call returns, an error as its negative number.
    pub result: i32,
}

/// Does jobs.
pub trait Engine: Send {
    /// Takes a job, for the next [`submit`](Self::submit).
    ///
    /// # Safety
    /// The job's list, and the memory its entries name, stay where they are until [`next`](Self::next) has given its
    /// result. Others may read and write that memory.
    unsafe fn start(&mut self, job: Job);

    /// Has all jobs taken begin. An error says that this failed for good; those that have begun go on.
    fn submit(&mut self) -> io::Result<()>;

    /// Waits until there is a result, if a job has been taken. It submits what has not been.
    fn wait(&mut self);

    /// The next result.
    fn next(&mut self) -> Option<Done>;
}

/// Does jobs on the thread that asks.
pub trait Store: Send + Sync {
    /// What a system call would return: how many bytes were moved, an error as its negative number.
    ///
    /// # Safety
    /// The job's list, and the memory its entries name, stay where they are until this returns. Others may read and write that
    /// memory.
    unsafe fn carry_out(&self, job: &Job) -> i32;
}

/// Which engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// io_uring; threads where it is refused.
    Uring,
    /// Threads.
    Threads,
}

/// An engine for jobs on `files`, that signals `event`.
pub fn open(choice: Choice, files: Files, event: Arc<EventFd>) -> Box<dyn Engine> {
    if choice == Choice::Uring {
        match Uring::new(&files.0, event.clone()) {
            Ok(uring) => return Box::new(uring),
            Err(e) => tracing::info!("no io_uring ({e}), so threads do the disk's work"),
        }
    }
    Box::new(Pool::new(Arc::new(files), event))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    /// Either engine, for a file with "0123456789".
    fn each(test: impl Fn(&mut dyn Engine, &File, &EventFd)) {
        for choice in [Choice::Uring, Choice::Threads] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(b"0123456789").unwrap();
            let file = Arc::new(file);
            let event = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
            test(open(choice, Files(vec![file.clone()]), event.clone()).as_mut(), &file, &event);
        }
    }

    fn results(engine: &mut dyn Engine, count: usize) -> Vec<(u16, i32)> {
        let mut results = Vec::new();
        engine.submit().unwrap();
        while results.len() < count {
            engine.wait();
            results.extend(std::iter::from_fn(|| engine.next()).map(|done| (done.tag, done.result)));
        }
        results.sort();
        results
    }

    #[test]
    fn every_job_has_one_result_and_the_event_tells() {
        each(|engine, file, event| {
            let mut bytes = vec![[0u8; 4]; MOST_JOBS];
            let lists: Vec<_> =
                bytes.iter_mut().map(|b| libc::iovec { iov_base: b.as_mut_ptr().cast(), iov_len: 4 }).collect();
            for (tag, list) in lists.iter().enumerate() {
                let offset = tag as u64 % 8;
                let job = Job { tag: tag as u16, file: 0, offset, work: Work::Read(List { first: list, count: 1 }) };
                // SAFETY: `lists` and `bytes` are there until all results are.
                unsafe { engine.start(job) };
            }
            let expect: Vec<_> = (0..MOST_JOBS).map(|tag| (tag as u16, (10 - tag as i32 % 8).min(4))).collect();
            assert_eq!(results(engine, MOST_JOBS), expect, "a short read is told");
            assert_eq!((&bytes[0], &bytes[6], &bytes[7]), (b"0123", b"6789", b"789\0"));
            assert!(event.read().unwrap() > 0);

            let write = [libc::iovec { iov_base: bytes[0].as_mut_ptr().cast(), iov_len: 4 }];
            let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            let work = [
                (10, Work::Write(List { first: write.as_ptr(), count: 1 })),
                (0, Work::Allocate { mode: punch, len: 3 }),
                (0, Work::Sync),
                (0, Work::Allocate { mode: -1, len: 1 }),
            ];
            for (tag, (offset, work)) in work.into_iter().enumerate() {
                // SAFETY: as above.
                unsafe { engine.start(Job { tag: tag as u16, file: 0, offset, work }) };
                if tag != 1 {
                    continue;
                }
                assert_eq!(results(engine, 2), [(0, 4), (1, 0)]);
            }
            let last = results(engine, 2);
            assert!(last[0] == (2, 0) && last[1].1 < 0, "{last:?}");
            use std::os::unix::fs::FileExt;
            let mut content = [0; 14];
            file.read_exact_at(&mut content, 0).unwrap();
            assert_eq!(&content, b"\0\0\x003456789\x30123");
        });
    }
}
