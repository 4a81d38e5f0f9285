//! Jobs for a few threads, which begin when there is something to do.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::EventFd;

use super::{Done, Engine, Job, Store};
use crate::worker::{self, Work};

/// Most threads of a disk.
const THREADS: usize = 4;
/// What they do.
pub const DISK: Work = Work {
    syscalls: &[
        libc::SYS_preadv,
        libc::SYS_pwritev,
        libc::SYS_pread64,
        libc::SYS_pwrite64,
        libc::SYS_fsync,
        libc::SYS_fdatasync,
        libc::SYS_fallocate,
        libc::SYS_ftruncate,
        libc::SYS_lseek,
        libc::SYS_fstat,
        libc::SYS_statx,
    ],
    ..Work::named("disk")
};

/// Threads, and what they share.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Taken, and not submitted.
    taken: Vec<Job>,
    /// Results that have been fetched from the threads.
    done: VecDeque<Done>,
}

struct Shared {
    store: Arc<dyn Store>,
    event: Arc<EventFd>,
    /// The one lock. Nothing else is locked, and no job done, while it is held.
    state: Mutex<State>,
    /// There is a job, or the end.
    work: Condvar,
    /// There is a result.
    result: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    done: VecDeque<Done>,
    /// Threads that wait for a job.
    idle: usize,
    end: bool,
}

impl Pool {
    /// Without threads yet.
    pub fn new(store: Arc<dyn Store>, event: Arc<EventFd>) -> Self {
        let (state, work, result) = Default::default();
        let shared = Arc::new(Shared { store, event, state, work, result });
        Pool { shared, threads: Vec::new(), taken: Vec::new(), done: VecDeque::new() }
    }

    /// Threads for the jobs that wait, as far as there may be some and the host gives them.
    fn grow(&mut self, wanted: usize) {
        let room = THREADS - self.threads.len();
        for _ in 0..wanted.min(room) {
            let shared = self.shared.clone();
            match worker::spawn(&DISK, move || shared.serve()) {
                Ok(thread) => self.threads.push(thread),
                Err(e) => {
                    tracing::warn!("no thread for a disk: {e}");
                    break;
                }
            }
        }
        if self.threads.is_empty() {
            // Then all others wait for the work, but it is done.
            let jobs = std::mem::take(&mut self.shared.lock().jobs);
            self.done.extend(jobs.iter().map(|job| self.shared.execute(job)));
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread's life.
    fn serve(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                let done = self.execute(&job);
                state = self.lock();
                state.done.push_back(done);
                self.result.notify_one();
                // Only a full counter fails, and that wakes the reader as well.
                let _ = self.event.write(1);
            } else if state.end {
                return;
            } else {
                state.idle += 1;
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }

    fn execute(&self, job: &Job) -> Done {
        // SAFETY: a list and its memory stay until the result is out, says who started the job.
        Done { tag: job.tag, result: unsafe { self.store.carry_out(job) } }
    }
}

impl Engine for Pool {
    unsafe fn start(&mut self, job: Job) {
        self.taken.push(job);
    }

    fn submit(&mut self) -> io::Result<()> {
        if self.taken.is_empty() {
            return Ok(());
        }
        let wanted = {
            let mut state = self.shared.lock();
            state.jobs.extend(self.taken.drain(..));
            state.jobs.len().saturating_sub(state.idle)
        };
        self.shared.work.notify_all();
        self.grow(wanted);
        Ok(())
    }

    fn wait(&mut self) {
        // It has no way to fail.
        let _ = self.submit();
        if self.done.is_empty() {
            let nothing = |state: &mut State| state.done.is_empty();
            let waited = self.shared.result.wait_while(self.shared.lock(), nothing);
            self.done = std::mem::take(&mut waited.unwrap_or_else(PoisonError::into_inner).done);
        }
    }

    fn next(&mut self) -> Option<Done> {
        if self.done.is_empty() {
            std::mem::swap(&mut self.done, &mut self.shared.lock().done);
        }
        self.done.pop_front()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().end = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A thread cannot panic, and if it did, it has ended.
            let _ = thread.join();
        }
    }
}
