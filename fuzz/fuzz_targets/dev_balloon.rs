//! Page numbers, statistics and pages of any kind, in chains of any shape: no panic, no endless work, and no page but
//! guest RAM is touched.

#![no_main]

mod device;

use std::cell::RefCell;

use device::{Input, machine, recovers};
use devices::BusDevice;
use devices::virtio::testing::{Driver, INDIRECT, NEXT, Part, WRITE};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static MACHINE: RefCell<(Driver, tempfile::TempDir)> = RefCell::new(machine("balloon"));
}

/// Queues of a balloon.
const QUEUES: usize = 5;

fuzz_target!(|data: &[u8]| {
    MACHINE.with_borrow_mut(|(driver, _)| {
        let mut input = Input(data);
        driver.bring_up(input.u64());
        while !input.is_empty() {
            let step = input.byte();
            let queue = usize::from(step >> 3) % QUEUES;
            match step & 7 {
                0 | 1 => {
                    let (first, count) = (input.byte(), input.byte());
                    let (first, second) = (input.bytes(first.into()), input.bytes(count.into()));
                    let room = u32::from(input.u16());
                    let _ = driver.add(queue, &[Part::Read(first), Part::Read(second), Part::Write(room)]);
                }
                // Pages as a driver gives them, here and there beyond the end.
                2 => {
                    let (page, count) = (input.u32() % 0x10_1800, u32::from(input.byte()));
                    let pages: Vec<u8> = (page..page + count).rev().flat_map(u32::to_le_bytes).collect();
                    let _ = driver.add(queue, &[Part::Read(&pages)]);
                }
                3 => {
                    let (table, ..) = driver.parts(queue);
                    let flags = [0, NEXT, WRITE, NEXT | WRITE, INDIRECT][usize::from(input.byte()) % 5];
                    let (index, next) = (u16::from(input.byte() % 32), u16::from(input.byte() % 33));
                    driver.descriptor(table, index, (input.u32().into(), input.u32() % (2 << 20)), flags, next);
                    driver.offer(queue, index);
                }
                4 => driver.lock().write(0, 0x100 + u64::from(input.byte() % 16), input.bytes(4)),
                // Whatever the driver said, it can be saved, and goes on.
                5 => drop(driver.lock().save().expect("a state")),
                6 => drop(driver.used(queue)),
                _ => driver.kick(queue),
            }
            driver.kick(queue);
            assert!(driver.settle(), "endless work");
        }
        recovers(driver);
    });
});
