//! A queue's event: KVM, a register write or the transport itself signals it, the event loop reads it.

use super::*;
use crate::virtio::metrics::QueueMetrics;

/// It tells the driver's kicks from the transport's own.
pub(super) struct Doorbell {
    event: Arc<EventFd>,
    /// How often the transport itself has signalled it since it was last read.
    own: u64,
    metrics: Arc<QueueMetrics>,
}

impl Doorbell {
    /// That of `queue`. Fails only for lack of descriptors.
    pub fn new(queue: &VirtQueue) -> io::Result<Self> {
        Ok(Doorbell { event: Arc::new(EventFd::new(EFD_NONBLOCK)?), own: 0, metrics: queue.metrics().clone() })
    }

    /// What kicks signal.
    pub fn event(&self) -> &Arc<EventFd> {
        &self.event
    }

    /// Has the queue looked at soon.
    pub fn ring(&mut self) {
        signal(&self.event);
        self.own += 1;
    }

    /// Counts kicks that did not come by the event.
    pub fn count(&self, kicks: u64) {
        self.metrics.kicks.add(kicks);
    }

    /// Takes all signals there are, before the queue is looked at. Tells how many of them were the driver's.
    pub fn answer(&mut self) -> u64 {
        // Nothing to read: another event of the same batch was for it, too.
        let signals = self.event.read().unwrap_or(0);
        let own = std::mem::take(&mut self.own);
        let kicks = signals.saturating_sub(own);
        self.count(kicks);
        kicks
    }
}
