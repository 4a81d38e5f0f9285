//! The event loop's thread.

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};

use event_manager::EventManager;

use super::{AtEnd, Handle, Parts, Subscriber, VmmError};
use crate::events::ExitReason;
use crate::sandbox::{Door, Thread};

/// Stack of the thread: what runs on it keeps its buffers on the heap. Small, so that no host backs it with a 2 MiB page.
const STACK: usize = 512 << 10;

/// What a machine waits for, until it ends.
pub(super) struct EventLoop {
    pub manager: EventManager<Subscriber>,
    pub handle: Handle,
    pub door: Option<Door>,
    /// None if there is nothing to do at the end but what the first vCPU's thread may do as well: then nobody is woken for that.
    pub closing: Option<Closing>,
}

/// The end of what others see of a machine.
pub(super) struct Closing {
    pub parts: Arc<Parts>,
    pub at_end: Option<AtEnd>,
}

impl EventLoop {
    /// Starts the thread. It ends when the machine does, and its end is the machine's.
    pub(super) fn start(mut self) -> io::Result<Serving> {
        let end = End(self.handle.clone());
        let (closing, (closed, waiting)) = (self.closing.take(), channel::<()>());
        let closed_here = closing.is_some().then_some(waiting);
        let thread = thread::Builder::new().name("events".into()).stack_size(STACK).spawn(move || {
            // Nothing of it is used afterwards, and the panic hook has told of the panic.
            let result = panic::catch_unwind(AssertUnwindSafe(|| self.run()));
            if let Err(error) = result.unwrap_or(Err(VmmError::LoopPanicked)) {
                end.0.ending.report(Err(error));
            }
            if let Some(Closing { parts, at_end }) = closing {
                end.0.end_threads();
                parts.close();
                at_end.into_iter().for_each(|work| work());
            }
            drop(closed);
        })?;
        Ok(Serving { thread: Some(thread), closed_here })
    }

    fn run(mut self) -> Result<(), VmmError> {
        if let Some(door) = self.door.take() {
            door.enter(Thread::Events)?;
        }
        while !self.handle.ending.is_set() {
            match self.manager.run() {
                Ok(_) => {}
                Err(event_manager::Error::Epoll(e)) if e.errno() == libc::EINTR => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

/// The thread. Dropping this waits for it, which the machine's end has told to end.
pub(super) struct Serving {
    thread: Option<JoinHandle<()>>,
    /// Ends when the thread has closed what it was to close.
    closed_here: Option<Receiver<()>>,
}

impl Serving {
    /// Waits until the thread has closed what there is of the machine; false if that was not asked of it. To be called when the
    /// machine has ended.
    pub(super) fn has_closed(&self) -> bool {
        // Nothing is ever sent: this is the end of the sender.
        self.closed_here.as_ref().is_some_and(|closed| closed.recv().is_err())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // It does not panic: `EventLoop::start` sees to that.
            let _ = thread.join();
        }
    }
}

/// Ends a machine, its vCPUs first of all: handles may outlive it, its vCPUs must not outlive its memory; and whoever runs
/// it waits for one of them, whatever way the event loop ended.
pub(super) struct End(pub Handle);

impl Drop for End {
    fn drop(&mut self) {
        self.0.ending.report(Ok(ExitReason::Stopped));
        self.0.end_threads();
    }
}
