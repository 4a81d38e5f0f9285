//! What the device targets share: bytes as a program, and one machine per process that each input finds reset.

#![allow(dead_code)]

use devices::virtio::DEVICES;
use devices::virtio::testing::{Driver, RUNNING};

/// Input, taken from the front; zeros when it is used up.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (first, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        first
    }

    pub fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    pub fn u32(&mut self) -> u32 {
        u32::from(self.u16()) | u32::from(self.u16()) << 16
    }

    pub fn u64(&mut self) -> u64 {
        u64::from(self.u32()) | u64::from(self.u32()) << 32
    }
}

/// A machine with the device of the table named `name`. What it needs on the host lasts as long as the process.
pub fn machine(name: &str) -> (Driver, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a directory");
    let kind = DEVICES.iter().find(|kind| kind.name == name).expect("a device of the table");
    let device = (kind.build)(&(kind.sample)(dir.path())).expect("a device").remove(0);
    (Driver::new(device), dir)
}

/// The end of each input: the device comes to rest, and works again after a reset.
pub fn recovers(driver: &mut Driver) {
    assert!(driver.settle(), "endless work");
    driver.reset();
    driver.bring_up(u64::MAX);
    assert_eq!(driver.status(), RUNNING);
    driver.reset();
}
