//! The keyboard controller, of which only the reset line is there.
//!
//! Covers ports 0x60 to 0x64. Command 0xFE at 0x64 pulses the CPU's reset line; every read gives zeros, so that a
//! driver sees "no data, input buffer empty" and finds no keyboard.

use crate::{BusDevice, ExitSink, GuestExit};

/// Offset of the command register from port 0x60.
const COMMAND: u64 = 4;
const RESET_CPU: u8 = 0xfe;

/// The controller.
pub struct I8042 {
    sink: ExitSink,
}

impl I8042 {
    /// Reports a reset to `sink`.
    pub fn new(sink: ExitSink) -> Self {
        I8042 { sink }
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, _: u64, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _: u64, offset: u64, data: &[u8]) {
        if offset == COMMAND && data == [RESET_CPU] {
            (self.sink)(GuestExit::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn only_the_reset_command_resets() {
        let resets = Arc::new(AtomicU32::new(0));
        let count = resets.clone();
        let mut i8042 = I8042::new(Arc::new(move |exit| {
            assert_eq!(exit, GuestExit::Reset);
            count.fetch_add(1, Ordering::Relaxed);
        }));
        for offset in 0..5 {
            for value in 0..=255 {
                i8042.write(0x60, offset, &[value]);
            }
        }
        assert_eq!(resets.load(Ordering::Relaxed), 1);
        let mut status = [0xff];
        i8042.read(0x60, COMMAND, &mut status);
        assert_eq!(status, [0]);
    }
}
