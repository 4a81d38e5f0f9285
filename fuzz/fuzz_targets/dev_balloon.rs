//! Page numbers, statistics and pages of any kind, in chains of any shape: no panic, no endless work, and no page but
//! guest RAM is touched.

#![no_main]

mod device;

use std::cell::RefCell;

use device::{Input, chain, machine, odd_step, recovers};
use devices::virtio::testing::{Driver, Part};
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
                0 | 1 => chain(driver, &mut input, queue),
                // Pages as a driver gives them, here and there beyond the end.
                2 => {
                    let (page, count) = (input.u32() % 0x10_1800, u32::from(input.byte()));
                    let pages: Vec<u8> = (page..page + count).rev().flat_map(u32::to_le_bytes).collect();
                    let _ = driver.add(queue, &[Part::Read(&pages)]);
                }
                what => odd_step(driver, &mut input, queue, what - 3),
            }
            driver.kick(queue);
            assert!(driver.settle(), "endless work");
        }
        recovers(driver);
    });
});
