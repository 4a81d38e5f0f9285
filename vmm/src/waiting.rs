//! Threads that are there before there is something for them to do: who is to be confined before that can be meanwhile, and who gives
//! them something does not have to wait for them.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use devices::worker::{self, Work};

type Task = Box<dyn FnOnce() + Send>;

/// What a thread is to do, before it is known what that is. Dropped, it is nothing, and the thread ends.
pub struct Waiting {
    task: Sender<Task>,
    over: Receiver<()>,
}

/// A thread's part of [`Waiting`].
pub struct Waits {
    task: Receiver<Task>,
    /// Goes when it is done.
    running: Sender<()>,
}

/// Something that a thread does. Dropping this waits for its end.
pub struct Running(Receiver<()>);

impl Waiting {
    /// For a thread that is started later, or never, which is its end.
    pub fn new() -> (Self, Waits) {
        let ((task, wanted), (running, over)) = (channel(), channel());
        (Self { task, over }, Waits { task: wanted, running })
    }

    /// A thread of its own.
    ///
    /// # Errors
    /// The host gives none.
    pub fn start(name: &str, stack: usize) -> io::Result<Self> {
        let (waiting, waits) = Self::new();
        thread::Builder::new().name(name.into()).stack_size(stack).spawn(|| waits.serve())?;
        Ok(waiting)
    }

    /// A worker, which the calling thread starts.
    ///
    /// # Errors
    /// As [`worker::spawn_here`].
    pub fn start_worker(work: &'static Work) -> io::Result<Self> {
        let (waiting, waits) = Self::new();
        worker::spawn_here(work, || waits.serve())?;
        Ok(waiting)
    }

    /// Has the thread do this, and then end.
    pub fn begin(self, task: impl FnOnce() + Send + 'static) -> Running {
        // One that has ended has told why, or will not be missed.
        let _ = self.task.send(Box::new(task));
        Running(self.over)
    }

    /// As [`begin`](Self::begin); nobody waits for the end.
    pub fn hand(self, task: impl FnOnce() + Send + 'static) {
        let _ = self.task.send(Box::new(task));
    }
}

impl Waits {
    /// Waits, and does it, on the calling thread.
    pub fn serve(self) {
        if let Ok(task) = self.task.recv() {
            task();
        }
        drop(self.running);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Nothing is ever sent: this is the end of the sender, by whatever way, and the panic hook has told of a panic.
        let _ = self.0.recv();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_begun_is_done_when_it_is_dropped() {
        let (done, was_done) = channel();
        drop(Waiting::start("test", 64 << 10).unwrap().begin(move || done.send(7).unwrap()));
        assert_eq!(was_done.try_recv(), Ok(7));
    }

    #[test]
    fn nobody_waits_for_a_thread_that_there_is_not() {
        let (waiting, waits) = Waiting::new();
        drop(waits);
        let (done, was_done) = channel::<()>();
        drop(waiting.begin(move || drop(done)));
        assert!(was_done.recv().is_err());
    }

    #[test]
    fn a_thread_ends_with_who_could_want_something_and_with_a_panic() {
        drop(Waiting::start("test", 64 << 10).unwrap());
        drop(Waiting::start("test", 64 << 10).unwrap().begin(|| panic!("meant")));
    }
}
