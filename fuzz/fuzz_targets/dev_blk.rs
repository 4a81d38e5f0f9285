//! Block requests of any kind, as chains of any shape: each is answered, or the device asks for a reset.

#![no_main]

mod device;

use std::cell::RefCell;

use device::disk::requests;
use device::{Input, machine};
use devices::virtio::testing::Driver;
use libfuzzer_sys::fuzz_target;

thread_local! {
    static MACHINE: RefCell<(Driver, tempfile::TempDir)> = RefCell::new(machine("blk"));
}

fuzz_target!(|data: &[u8]| MACHINE.with_borrow_mut(|(driver, _)| requests(driver, Input(data))));
