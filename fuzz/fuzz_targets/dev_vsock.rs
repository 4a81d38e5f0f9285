//! Vsock packets of any kind between connections of both directions: no panic, no endless work, bounded memory.

#![no_main]

mod device;

use std::cell::RefCell;
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};

use device::{Input, machine, recovers};
use devices::virtio::testing::{Driver, Part};
use libfuzzer_sys::fuzz_target;

struct State {
    driver: Driver,
    dir: tempfile::TempDir,
    listener: UnixListener,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::new({
        let (driver, dir) = machine("vsock");
        let listener = UnixListener::bind(dir.path().join("vsock_1")).expect("a listener");
        listener.set_nonblocking(true).expect("a listener");
        State { driver, dir, listener }
    });
}

/// A header whose fields are mostly sound.
fn packet(input: &mut Input) -> Vec<u8> {
    let odd = input.byte();
    let field = |input: &mut Input, bit: u8, sound: u64| if odd & bit != 0 { input.u64() } else { sound };
    let mut bytes = Vec::new();
    bytes.extend(field(input, 1, 3).to_le_bytes());
    bytes.extend(field(input, 2, 2).to_le_bytes());
    bytes.extend(u32::from(input.byte() & 3).to_le_bytes());
    // A listening port, a dead one, or one of the device's own.
    bytes.extend([1u32, 2, 1 << 31, (1 << 31) + 1][usize::from(input.byte() & 3)].to_le_bytes());
    let len = usize::from(input.byte()) * 16;
    bytes.extend((field(input, 4, len as u64) as u32).to_le_bytes());
    bytes.extend((field(input, 8, 1) as u16).to_le_bytes());
    bytes.extend(u16::from(input.byte() % 9).to_le_bytes());
    bytes.extend((input.byte() as u32).to_le_bytes());
    bytes.extend((field(input, 16, 1 << 16) as u32).to_le_bytes());
    bytes.extend((field(input, 32, 0) as u32).to_le_bytes());
    bytes.resize(bytes.len() + len, 0x55);
    bytes
}

fuzz_target!(|data: &[u8]| {
    STATE.with_borrow_mut(|State { driver, dir, listener }| {
        let mut input = Input(data);
        driver.bring_up(u64::MAX);
        let mut hosts: Vec<UnixStream> = Vec::new();
        while !input.is_empty() {
            match input.byte() & 7 {
                0 => drop(driver.add(0, &[Part::Write(u32::from(input.u16() & 0xfff) + 44)])),
                1 if hosts.len() < 32 => {
                    if let Ok(mut host) = UnixStream::connect(dir.path().join("vsock")) {
                        // A device that has closed its end is as good an outcome.
                        let _ = host.write_all(b"CONNECT 1\n");
                        hosts.push(host);
                    }
                }
                2 => hosts.extend(listener.accept().map(|(host, _)| host)),
                3 if !hosts.is_empty() => {
                    let index = usize::from(input.byte()) % hosts.len();
                    let _ = hosts[index].set_nonblocking(true);
                    let _ = hosts[index].write(input.bytes(64));
                }
                4 if !hosts.is_empty() => drop(hosts.swap_remove(usize::from(input.byte()) % hosts.len())),
                5 => drop(driver.add(2, &[Part::Write(4)])),
                _ => drop(driver.add(1, &[Part::Read(&packet(&mut input))])),
            }
            (0..3).for_each(|queue| driver.kick(queue));
            assert!(driver.settle(), "endless work");
            for queue in 0..3 {
                while driver.used(queue).is_some() {}
            }
        }
        drop(hosts);
        recovers(driver);
        while listener.accept().is_ok() {}
    });
});
