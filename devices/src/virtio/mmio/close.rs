//! The end of a device before the end of its window.

use super::*;

impl MmioTransport {
    /// Ends the device: requests in flight come to their end, and its files, sockets and threads go. What the driver does
    /// afterwards has no effect.
    pub fn close(&mut self) {
        if self.status.was_activated() {
            self.quiesce(true);
        }
        if let Some(tape) = self.tape.take() {
            tape.stop();
        }
        self.retired.clear();
        self.fds.clear();
        self.fds_until_reset.clear();
        self.device = Box::new(Closed(self.info));
    }
}

/// In the place of a device that has been closed.
struct Closed(DeviceInfo);

impl VirtioDevice for Closed {
    fn info(&self) -> DeviceInfo {
        self.0
    }

    fn activate(&mut self, _: u64) -> Result<(), DeviceFault> {
        Ok(())
    }

    fn process_queue(&mut self, _: usize, _: &mut Io) -> Result<(), DeviceFault> {
        Ok(())
    }

    fn quiesce(&mut self, _: &mut Io, _: bool) -> Result<(), DeviceFault> {
        Ok(())
    }

    fn save(&self) -> Result<serde_json::Value, StateError> {
        Err(StateError { device: self.0.name, reason: "it is closed".into() })
    }

    fn load(&mut self, _: &serde_json::Value) -> Result<(), StateError> {
        Err(StateError { device: self.0.name, reason: "it is closed".into() })
    }
}
