//! Threads beside those that a machine always has: for output, and for files that may take their time.
//!
//! What a thread may do is settled when it starts, by whoever runs the machine ([`confine_by`]): a thread has its own system-call
//! filter and capabilities, and each kind of worker says here what it needs. A thread hands both on to those that it starts; so
//! that a worker does not depend on who wants it, and that neither the event loop nor a vCPU has to be one who may start
//! threads, all are started by one thread that does nothing else ([`Nursery`]). Without that, as in tests, whoever wants
//! a thread starts it.

use std::io;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};

/// What a kind of worker does.
#[derive(Debug)]
pub struct Work {
    /// Name of its threads.
    pub name: &'static str,
    /// Bytes of their stacks. Small ones are not backed by 2 MiB pages.
    pub stack: usize,
    /// Numbers of the system calls that it makes, besides those of any thread.
    pub syscalls: &'static [libc::c_long],
    /// Requests of ioctl(2) that it makes.
    pub ioctls: &'static [u32],
    /// It acts for the guest on files of many users, and keeps the capabilities for that.
    pub for_users: bool,
    /// What it does once, before it is confined.
    pub prepare: fn(),
}

impl Work {
    /// One that makes no system calls of its own.
    pub const fn named(name: &'static str) -> Self {
        Work { name, stack: 256 << 10, syscalls: &[], ioctls: &[], for_users: false, prepare: || () }
    }
}

type Confine = Box<dyn Fn(&'static Work) + Send + Sync>;
type Task = Box<dyn FnOnce() + Send>;
type Wanted = (&'static Work, Task, SyncSender<io::Result<JoinHandle<()>>>);

static CONFINE: OnceLock<Confine> = OnceLock::new();
static NURSERY: Mutex<Option<Sender<Wanted>>> = Mutex::new(None);

/// From now on each worker of this process calls `confine` before it does anything. It must not return if it fails. Without effect the
/// second time: it is for a process with one machine.
pub fn confine_by(confine: Confine) {
    let _ = CONFINE.set(confine);
}

/// Starts a worker.
///
/// # Errors
/// The host gives no thread.
pub fn spawn(work: &'static Work, task: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    let nursery = NURSERY.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let Some(nursery) = nursery else { return start(work, Box::new(task)) };
    let (sender, receiver) = sync_channel(1);
    let gone = || io::Error::other("the thread that starts others has ended");
    nursery.send((work, Box::new(task), sender)).map_err(|_| gone())?;
    receiver.recv().map_err(|_| gone())?
}

/// As [`spawn`], but the calling thread starts it, whether or not there is one that starts others: sooner, and for one that may.
///
/// # Errors
/// The host gives no thread.
pub fn spawn_here(work: &'static Work, task: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    start(work, Box::new(task))
}

/// Has a worker do something, and waits for it.
///
/// # Errors
/// As [`spawn`]; or the worker panicked.
pub fn run<T: Send + 'static>(work: &'static Work, task: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let (sender, receiver) = sync_channel(1);
    let thread = spawn(work, move || drop(sender.send(task())))?;
    let done = receiver.recv();
    // Its end is waited for, since it may hold on to what the task has used.
    let _ = thread.join();
    done.map_err(|_| io::Error::other("a thread panicked"))
}

/// The thread that starts workers, before it is there. Who wants one waits for it, from now on.
#[derive(Debug)]
pub struct Nursery(Receiver<Wanted>);

impl Nursery {
    /// Announces it, in place of one that there may have been. Dropped without being started, it lets nobody have a worker.
    pub fn announce() -> Self {
        let (sender, wanted) = channel();
        *NURSERY.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        Self(wanted)
    }

    /// There is none, from now on.
    pub fn none() {
        *NURSERY.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Starts it, as a thread of the calling one, whose place and privileges it has; `confine` is the first thing that it does.
    ///
    /// # Errors
    /// The host gives no thread.
    pub fn start(self, confine: impl FnOnce() + Send + 'static) -> io::Result<()> {
        thread::Builder::new().name("nursery".into()).stack_size(128 << 10).spawn(move || {
            confine();
            serve(&self.0);
        })?;
        Ok(())
    }
}

/// The nursery's life, which ends with the process, or when there is another one.
fn serve(wanted: &Receiver<Wanted>) {
    for (work, task, reply) in wanted {
        let _ = reply.send(start(work, task));
    }
}

fn start(work: &'static Work, task: Task) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(work.name.into()).stack_size(work.stack).spawn(move || {
        (work.prepare)();
        if let Some(confine) = CONFINE.get() {
            confine(work);
        }
        task();
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORK: Work = Work::named("a worker");

    #[test]
    fn what_is_done_comes_back_and_a_panic_is_an_error() {
        assert_eq!(run(&WORK, || thread::current().name().map(str::to_owned)).unwrap().as_deref(), Some("a worker"));
        assert!(run(&WORK, || panic!("meant")).unwrap_err().to_string().contains("panicked"));
    }

    #[test]
    fn a_nursery_starts_what_is_wanted() {
        let (sender, wanted) = channel();
        let nursery = thread::spawn(move || serve(&wanted));
        let (reply, started) = sync_channel(1);
        let (done, result) = sync_channel(1);
        sender.send((&WORK, Box::new(move || done.send(7).unwrap()) as Task, reply)).unwrap();
        started.recv().unwrap().unwrap().join().unwrap();
        assert_eq!(result.recv().unwrap(), 7);
        drop(sender);
        nursery.join().unwrap();
    }
}
