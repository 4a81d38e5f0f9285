//! The event loop's thread.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use event_manager::EventManager;

use super::{AtEnd, Handle, Parts, Subscriber, VmmError};
use crate::events::ExitReason;
use crate::waiting::{Running, Waiting};

/// What a machine waits for, until it ends.
pub(super) struct EventLoop {
    pub manager: EventManager<Subscriber>,
    pub handle: Handle,
    /// None if there is nothing to do at the end but what the first vCPU's thread may do as well: then nobody is woken for that.
    pub closing: Option<Closing>,
}

/// The end of what others see of a machine.
pub(super) struct Closing {
    pub parts: Arc<Parts>,
    pub at_end: Option<AtEnd>,
}

impl EventLoop {
    /// Begins, on the thread that waits for it. It ends when the machine does, and its end is the machine's.
    pub(super) fn start(mut self, waiting: Waiting) -> Serving {
        let end = End(self.handle.clone());
        let (closing, (closed, open)) = (self.closing.take(), channel::<()>());
        let closed_here = closing.is_some().then_some(open);
        let running = waiting.begin(move || {
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
        });
        Serving { _running: running, closed_here }
    }

    fn run(mut self) -> Result<(), VmmError> {
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
    _running: Running,
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

/// Ends a machine, its vCPUs first of all: handles may outlive it, its vCPUs must not outlive its memory; and whoever runs
/// it waits for one of them, whatever way the event loop ended.
pub(super) struct End(pub Handle);

impl Drop for End {
    fn drop(&mut self) {
        self.0.ending.report(Ok(ExitReason::Stopped));
        self.0.end_threads();
    }
}
