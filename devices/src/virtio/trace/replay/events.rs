//! What is around a transport that no machine has: a thread with an event loop, and an interrupt line.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{ReplayError, host};
use crate::InterruptLine;
use crate::virtio::MmioTransport;

/// What the thread is called.
pub const THREAD: &str = "events";

/// An interrupt is a system call, as it is where KVM injects it.
pub struct Line(EventFd);

impl Line {
    /// One that nobody listens to.
    pub fn new() -> Result<Self, ReplayError> {
        EventFd::new(EFD_NONBLOCK).map(Line).map_err(host("event"))
    }
}

impl InterruptLine for Line {
    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The thread of the event loop. Dropping it waits for its end.
pub struct Events {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Events {
    /// Starts it.
    pub fn start(transport: Arc<Mutex<MmioTransport>>) -> Result<Self, ReplayError> {
        let failed = |error: event_manager::Error| host("event loop")(io::Error::other(error.to_string()));
        let mut manager = EventManager::<Arc<Mutex<dyn MutEventSubscriber + Send>>>::new().map_err(failed)?;
        manager.add_subscriber(transport);
        let over = Arc::new(AtomicBool::new(false));
        let until = over.clone();
        let (begun, begins) = channel();
        let work = move || {
            // It has its name by now, by which others find it.
            let _ = begun.send(());
            while !until.load(Ordering::Acquire) {
                if let Err(error) = manager.run()
                    && !matches!(&error, event_manager::Error::Epoll(e) if e.errno() == libc::EINTR)
                {
                    tracing::error!("event loop of a replay: {error}");
                    break;
                }
            }
        };
        let thread = thread::Builder::new().name(THREAD.into()).spawn(work).map_err(host("thread"))?;
        // One that panicked, which has been told, is as good as ended.
        let _ = begins.recv();
        Ok(Events { over, thread: Some(thread) })
    }

    /// Has it end with the next event.
    pub fn end(&self) {
        self.over.store(true, Ordering::Release);
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // Nobody else wants to hear of a panic, which has been told.
            let _ = thread.join();
        }
    }
}
