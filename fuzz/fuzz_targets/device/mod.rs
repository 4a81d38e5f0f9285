//! What the device targets share: bytes as a program, and one machine per process that each input finds reset.

#![allow(dead_code)]

pub mod disk;

use devices::BusDevice;
use devices::virtio::DEVICES;
use devices::virtio::testing::{Driver, INDIRECT, NEXT, Part, RUNNING, WRITE};
use serde_json::Value;

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
    let driver = machine_of(name, &(kind.sample)(dir.path())).expect("a device");
    (driver, dir)
}

/// One with the first device of a section; none if there cannot be such a device.
pub fn machine_of(name: &str, section: &Value) -> Option<Driver> {
    let kind = DEVICES.iter().find(|kind| kind.name == name).expect("a device of the table");
    (kind.build)(section).ok().map(|mut devices| Driver::new(devices.remove(0)))
}

/// A chain of bytes, bytes and room.
pub fn chain(driver: &mut Driver, input: &mut Input, queue: usize) {
    let (first, second) = (input.byte(), input.byte());
    let (first, second) = (input.bytes(first.into()), input.bytes(second.into()));
    let room = u32::from(input.u16());
    let _ = driver.add(queue, &[Part::Read(first), Part::Read(second), Part::Write(room)]);
}

/// What any driver can do besides requests: descriptors as they come, writes to the configuration, being saved, and kicks.
pub fn odd_step(driver: &mut Driver, input: &mut Input, queue: usize, what: u8) {
    match what {
        0 => {
            let (table, ..) = driver.parts(queue);
            let flags = [0, NEXT, WRITE, NEXT | WRITE, INDIRECT][usize::from(input.byte()) % 5];
            let (index, next) = (u16::from(input.byte() % 64), u16::from(input.byte() % 65));
            driver.descriptor(table, index, (input.u32().into(), input.u32() % (2 << 20)), flags, next);
            driver.offer(queue, index);
        }
        1 => driver.lock().write(0, 0x100 + u64::from(input.byte() % 16), input.bytes(4)),
        // Whatever the driver said, it can be saved, and goes on.
        2 => drop(driver.lock().save().expect("a state")),
        3 => drop(driver.used(queue)),
        _ => driver.kick(queue),
    }
}

/// Chains and odd steps on a device without requests of its own kind.
pub fn any_steps(driver: &mut Driver, mut input: Input, queues: usize) {
    driver.bring_up(input.u64());
    while !input.is_empty() {
        let step = input.byte();
        let queue = usize::from(step >> 3) % queues;
        match step & 7 {
            0..=2 => chain(driver, &mut input, queue),
            what => odd_step(driver, &mut input, queue, what - 3),
        }
        driver.kick(queue);
        assert!(driver.settle(), "endless work");
    }
    recovers(driver);
}

/// The end of each input: the device comes to rest, and works again after a reset.
pub fn recovers(driver: &mut Driver) {
    assert!(driver.settle(), "endless work");
    driver.reset();
    driver.bring_up(u64::MAX);
    assert_eq!(driver.status(), RUNNING);
    driver.reset();
}
