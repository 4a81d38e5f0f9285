//! Room and other chains of any shape for random numbers: no panic, no endless work.

#![no_main]

mod device;

use std::cell::RefCell;

use device::{Input, any_steps, machine};
use devices::virtio::testing::Driver;
use libfuzzer_sys::fuzz_target;

thread_local! {
    static MACHINE: RefCell<(Driver, tempfile::TempDir)> = RefCell::new(machine("rng"));
}

fuzz_target!(|data: &[u8]| MACHINE.with_borrow_mut(|(driver, _)| any_steps(driver, Input(data), 1)));
