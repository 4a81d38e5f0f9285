//! The threads that carry requests out: the host's file system may take its time, and the event loop must not wait for it.
//!
//! A request goes in as a [`Job`] and comes out as a [`Done`], in any order; the event tells the loop that there are some.
//! Nobody holds the lock while a request is worked on.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::EventFd;

use super::memory::{Mailbox, Spans};
use super::server::Server;
use crate::worker::{self, Work};

/// One that waits for the disk (fsync) does not keep the others waiting.
const THREADS: usize = 2;
/// What they do: whatever a guest may do with files, below descriptors of the directories that it is shown.
pub const SERVING: Work = Work {
    syscalls: &[
        libc::SYS_openat,
        libc::SYS_openat2,
        libc::SYS_open_by_handle_at,
        libc::SYS_name_to_handle_at,
        libc::SYS_fstat,
        libc::SYS_newfstatat,
        libc::SYS_statx,
        libc::SYS_fstatfs,
        libc::SYS_getdents64,
        libc::SYS_lseek,
        libc::SYS_pread64,
        libc::SYS_pwrite64,
        libc::SYS_preadv,
        libc::SYS_pwritev,
        libc::SYS_readv,
        libc::SYS_writev,
        libc::SYS_copy_file_range,
        libc::SYS_fsync,
        libc::SYS_fdatasync,
        libc::SYS_ftruncate,
        libc::SYS_fallocate,
        libc::SYS_flock,
        libc::SYS_fcntl,
        libc::SYS_dup,
        libc::SYS_mknodat,
        libc::SYS_mkdirat,
        libc::SYS_linkat,
        libc::SYS_symlinkat,
        libc::SYS_readlinkat,
        libc::SYS_unlinkat,
        libc::SYS_renameat,
        libc::SYS_renameat2,
        libc::SYS_faccessat,
        libc::SYS_faccessat2,
        libc::SYS_fchmod,
        libc::SYS_fchmodat,
        libc::SYS_fchownat,
        libc::SYS_utimensat,
        libc::SYS_getxattr,
        libc::SYS_setxattr,
        libc::SYS_listxattr,
        libc::SYS_removexattr,
        libc::SYS_fgetxattr,
        libc::SYS_fsetxattr,
        libc::SYS_flistxattr,
        libc::SYS_fremovexattr,
        libc::SYS_setresuid,
        libc::SYS_setresgid,
        libc::SYS_setgroups,
        libc::SYS_getuid,
        libc::SYS_getgid,
        libc::SYS_geteuid,
        libc::SYS_getegid,
        libc::SYS_umask,
        libc::SYS_gettid,
    ],
    for_users: true,
    prepare: own_umask,
    stack: 2 << 20,
    ..Work::named("fs")
};

/// A request.
pub struct Job {
    /// The queue it came by.
    pub queue: usize,
    /// Its chain.
    pub head: u16,
    /// Its bytes in guest memory.
    pub spans: Spans,
    /// Who answers it.
    pub server: Arc<Server>,
}

/// A request that has been carried out.
pub struct Done {
    /// The queue it came by.
    pub queue: usize,
    /// Its chain.
    pub head: u16,
    /// Bytes of the answer; nothing if the request broke its server.
    pub written: Option<u32>,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    done: Vec<Done>,
    running: usize,
    stop: bool,
}

struct Shared {
    state: Mutex<State>,
    /// There is a job, or it is over.
    work: Condvar,
    /// No job is left.
    idle: Condvar,
    event: Arc<EventFd>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<Job> {
        let waits = |state: &mut State| state.jobs.is_empty() && !state.stop;
        let mut state = self.work.wait_while(self.lock(), waits).unwrap_or_else(PoisonError::into_inner);
        let job = state.jobs.pop_front().filter(|_| !state.stop)?;
        state.running += 1;
        Some(job)
    }

    fn finished(&self, done: Done) {
        let mut state = self.lock();
        state.running -= 1;
        let first = state.done.is_empty();
        state.done.push(done);
        if state.running == 0 && state.jobs.is_empty() {
            self.idle.notify_all();
        }
        drop(state);
        // Who takes one takes all of them.
        if first {
            let _ = self.event.write(1);
        }
    }
}

/// The threads. Dropping it ends them, after what they are at.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts them, for guest memory that `mailbox` makes a view of. `event` is signalled when something is done.
    pub fn start(event: Arc<EventFd>, mailbox: impl Fn() -> io::Result<Mailbox>) -> io::Result<Self> {
        let (state, work, idle) = Default::default();
        let mut pool = Pool { shared: Arc::new(Shared { state, work, idle, event }), threads: Vec::new() };
        for _ in 0..THREADS {
            let (mut mailbox, shared) = (mailbox()?, pool.shared.clone());
            let thread = worker::spawn(&SERVING, move || {
                while let Some(job) = shared.next() {
                    let Job { queue, head, spans, server } = job;
                    // It is the library's promise that no request makes it panic. Should one, it costs the device, not the machine.
                    let written = catch_unwind(AssertUnwindSafe(|| server.answer(&mut mailbox, &spans))).ok();
                    // Before anybody can know that it is done: what the server has open goes with its last request.
                    drop(server);
                    shared.finished(Done { queue, head, written });
                }
            });
            pool.threads.push(thread?);
        }
        Ok(pool)
    }

    /// Gives it a request.
    pub fn add(&self, job: Job) {
        self.shared.lock().jobs.push_back(job);
        self.shared.work.notify_one();
    }

    /// What has been done since the last time.
    pub fn done(&self) -> Vec<Done> {
        let _ = self.shared.event.read();
        std::mem::take(&mut self.shared.lock().done)
    }

    /// Waits until nothing is left to do; what is not begun yet is not done, with `forget`.
    pub fn settle(&self, forget: bool) {
        let mut state = self.shared.lock();
        if forget {
            state.jobs.clear();
        }
        let busy = |state: &mut State| state.running > 0 || !state.jobs.is_empty();
        drop(self.shared.idle.wait_while(state, busy));
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Files get the mode that the guest asks for: the umask of this thread is 0, and that of the others stays.
pub(super) fn own_umask() {
    // SAFETY: neither call touches memory. The thread gets a working directory and umask of its own; nothing here uses the former.
    unsafe {
        if libc::unshare(libc::CLONE_FS) == 0 {
            libc::umask(0);
        }
    }
}
