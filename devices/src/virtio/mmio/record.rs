//! What the driver asks of the device, written down as a [trace](crate::virtio::trace) while it works.

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::*;

impl MmioTransport {
    /// Records what the driver does from the moment on in which it is ready, which has to be yet to come.
    pub fn record(&mut self, tape: Tape) {
        for (index, queue) in self.queues.iter_mut().enumerate() {
            queue.record(index as u16, tape.clone());
        }
        self.tape = Some(tape);
    }

    /// The driver is ready.
    pub(super) fn record_start(&self) {
        if let Some(tape) = &self.tape {
            // Addresses in requests are of RAM, of which what is below the hole is one region.
            let memory = self.mem.iter().next().map_or(0, |region| region.len());
            tape.begin(self.info.name, self.driver_features, memory, self.device.config());
        }
    }

    /// It has notified a queue.
    pub(super) fn record_kick(&self, index: usize) {
        if let Some(tape) = &self.tape {
            tape.kicked(index as u16);
        }
    }
}
