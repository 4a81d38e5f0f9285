//! Requests to memory that is a file, some of them in that memory itself: no panic, no endless work, and the file stays as it is.

#![no_main]

mod device;

use std::cell::RefCell;
use std::fs;

use device::{Input, any_steps, machine};
use devices::virtio::testing::{Driver, NEXT, WINDOW, WRITE};
use libfuzzer_sys::fuzz_target;

struct State {
    driver: Driver,
    dir: tempfile::TempDir,
    content: Vec<u8>,
}

fn content(dir: &tempfile::TempDir) -> Vec<u8> {
    fs::read(dir.path().join("memory.img")).expect("the sample's file")
}

thread_local! {
    static STATE: RefCell<State> = RefCell::new({
        let (driver, dir) = machine("pmem");
        let content = content(&dir);
        State { driver, dir, content }
    });
}

fuzz_target!(|data: &[u8]| {
    STATE.with_borrow_mut(|State { driver, dir, content: before }| {
        let mut input = Input(data);
        driver.bring_up(u64::MAX);
        // Chains of which a part is in the window, or just beside it.
        for _ in 0..input.byte() % 8 {
            let (table, ..) = driver.parts(0);
            let flags = [0, NEXT, WRITE, NEXT | WRITE][usize::from(input.byte()) % 4];
            let (index, at) = (u16::from(input.byte() % 8), WINDOW + u64::from(input.u32() % (5 << 20)) - (1 << 20));
            driver.descriptor(table, index, (at, u32::from(input.u16())), flags, u16::from(input.byte() % 8));
            driver.offer(0, index);
        }
        driver.kick(0);
        assert!(driver.settle(), "endless work");
        driver.reset();
        any_steps(driver, input, 1);
        assert!(content(dir) == *before, "the file was written");
    });
});
