//! Register programs of any kind against the transport: no panic, no endless work, and a reset brings it back.

#![no_main]

mod device;

use std::cell::RefCell;

use device::{Input, machine, recovers};
use devices::BusDevice;
use libfuzzer_sys::fuzz_target;

thread_local! {
    static MACHINE: RefCell<(devices::virtio::testing::Driver, tempfile::TempDir)> = RefCell::new(machine("rng"));
}

fuzz_target!(|data: &[u8]| {
    MACHINE.with_borrow_mut(|(driver, _)| {
        let mut input = Input(data);
        while !input.is_empty() {
            let action = input.byte();
            let width = [1, 2, 4, 8, 4, 4, 4, 4][usize::from(action >> 4 & 7)];
            match action & 7 {
                0..4 => {
                    let offset = u64::from(input.u16() & 0x1ff);
                    let value = input.u64().to_le_bytes();
                    driver.lock().write(0, offset, &value[..width]);
                }
                4 => driver.lock().read(0, u64::from(input.u16()), &mut [0; 8][..width]),
                5 => driver.negotiate(input.u64()),
                6 => driver.set_up_queue(0),
                _ => assert!(driver.settle()),
            }
        }
        recovers(driver);
    });
});
