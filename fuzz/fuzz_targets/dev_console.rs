//! Writes and room of any shape, kicks and sizes in any order: no panic, no endless work, and what was half written is saved.

#![no_main]

mod device;

use std::cell::RefCell;

use device::{Input, machine, odd_step, recovers};
use devices::virtio::testing::{Driver, Part};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static MACHINE: RefCell<(Driver, tempfile::TempDir)> = RefCell::new(machine("console"));
}

/// Queues of a console.
const QUEUES: usize = 2;

fuzz_target!(|data: &[u8]| {
    MACHINE.with_borrow_mut(|(driver, _)| {
        let mut input = Input(data);
        driver.bring_up(input.u64());
        while !input.is_empty() {
            let step = input.byte();
            let queue = usize::from(step >> 3) % QUEUES;
            match step & 7 {
                0 | 1 => {
                    let (first, room) = (input.byte(), u32::from(input.u16()));
                    let bytes = input.bytes(first.into());
                    let _ = driver.add(queue, &[Part::Read(bytes), Part::Write(room)]);
                }
                // More than the host's buffer takes at once.
                2 => {
                    let len = input.u32() % (1 << 20);
                    let address = driver.allocate(len);
                    let (table, ..) = driver.parts(queue);
                    driver.descriptor(table, 0, (address, len), 0, 0);
                    driver.offer(queue, 0);
                }
                what => odd_step(driver, &mut input, queue, what - 3),
            }
            driver.kick(queue);
            assert!(driver.settle(), "endless work");
        }
        recovers(driver);
    });
});
