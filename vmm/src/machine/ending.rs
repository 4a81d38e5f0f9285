//! How a machine ends: reported by vCPU threads, devices and the event loop, which waits for it.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::VmmError;
use crate::events::{Counts, ExitReason};
use crate::vcpu::{Ended, OnEnd};

/// How the machine ended, as vCPUs, devices and the event loop report it: the first report counts.
pub(super) struct Ending {
    first: Mutex<Option<Result<ExitReason, VmmError>>>,
    counts: Mutex<Counts>,
    /// There is a first report; what the vCPUs look at.
    over: Arc<AtomicBool>,
    /// Tells the event loop.
    event: EventFd,
}

impl Ending {
    pub(super) fn new() -> io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        Ok(Ending { first: Mutex::default(), counts: Mutex::default(), over: Arc::default(), event })
    }

    /// Becomes true with the first report.
    pub(super) fn over(&self) -> Arc<AtomicBool> {
        self.over.clone()
    }

    /// How it ended, and what all vCPUs that have ended did.
    pub(super) fn take(&self) -> (Result<ExitReason, VmmError>, Counts) {
        let how = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        let counts = *self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        (how.unwrap_or(Ok(ExitReason::Stopped)), counts)
    }

    pub(super) fn report(&self, how: Result<ExitReason, VmmError>) {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(how);
        self.over.store(true, Ordering::Release);
        // Only a full counter fails, and that wakes the loop as well.
        let _ = self.event.write(1);
    }

    /// There is, or was, a report.
    pub(super) fn is_set(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

/// What a vCPU thread reports at its end.
pub(super) fn on_end(ending: Arc<Ending>) -> OnEnd {
    Box::new(move |ended, counts| {
        {
            let mut sum = ending.counts.lock().unwrap_or_else(PoisonError::into_inner);
            *sum = *sum + counts;
        }
        match ended {
            Ended::Stopped => {}
            Ended::Guest(reason) => ending.report(Ok(reason)),
            Ended::Failed(error) => ending.report(Err(error.into())),
        }
    })
}

/// Wakes the event loop when the machine has ended.
pub(super) struct EndingEvent(Arc<Ending>);

impl EndingEvent {
    pub(super) fn new(ending: Arc<Ending>) -> Self {
        EndingEvent(ending)
    }
}

impl MutEventSubscriber for EndingEvent {
    fn process(&mut self, _: Events, _: &mut EventOps) {
        // Cleared so that the level-triggered loop does not spin between this and the end of `run`.
        let _ = self.0.event.read();
    }

    fn init(&mut self, ops: &mut EventOps) {
        let event = Events::new_raw(self.0.event.as_raw_fd(), EventSet::IN);
        if let Err(e) = ops.add(event) {
            tracing::error!("end of the machine cannot be watched: {e:?}");
        }
    }
}
