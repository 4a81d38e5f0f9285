//! The exit port: one byte by which a guest kernel built for this monitor says how it ended.
//!
//! 1 is power-off, 2 reset, 3 panic; other values do nothing. Reads give zeros.

use crate::{BusDevice, ExitSink, GuestExit};

/// One write-only byte register.
pub struct ExitPort {
    sink: ExitSink,
}

impl ExitPort {
    /// Reports to `sink`.
    pub fn new(sink: ExitSink) -> Self {
        ExitPort { sink }
    }
}

impl BusDevice for ExitPort {
    fn read(&mut self, _: u64, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _: u64, offset: u64, data: &[u8]) {
        match (offset, data) {
            (0, [1]) => (self.sink)(GuestExit::PowerOff),
            (0, [2]) => (self.sink)(GuestExit::Reset),
            (0, [3]) => (self.sink)(GuestExit::Panic),
            _ => tracing::debug!(offset, ?data, "unknown write to the exit port"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn the_three_ends_are_told_apart_and_the_rest_ignored() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = seen.clone();
        let mut port = ExitPort::new(Arc::new(move |exit| sink.lock().unwrap().push(exit)));
        for value in 0..=255u8 {
            port.write(0x600, 0, &[value]);
        }
        port.write(0x600, 0, &[1, 0]);
        port.write(0x600, 1, &[1]);
        assert_eq!(*seen.lock().unwrap(), [GuestExit::PowerOff, GuestExit::Reset, GuestExit::Panic]);
        let mut byte = [9];
        port.read(0x600, 0, &mut byte);
        assert_eq!(byte, [0]);
    }
}
