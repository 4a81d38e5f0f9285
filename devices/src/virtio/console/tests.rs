use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::*;
use crate::InterruptLine;
use crate::virtio::MmioTransport;
use crate::virtio::testing::{Driver, Part, RUNNING};

/// A driver, and the user: what is typed and seen.
fn console() -> (Driver, UnixStream, UnixStream) {
    let (keys, typed) = UnixStream::pair().unwrap();
    let (screen, shown) = UnixStream::pair().unwrap();
    let host = Host::new(Some(typed.into()), Box::new(shown)).unwrap();
    (Driver::start(Box::new(Console::new(host, 80, 24))), keys, screen)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at ^ at >> 8 ^ at >> 16) as u8).collect()
}

#[test]
fn what_the_guest_writes_is_seen() {
    let (mut driver, _keys, mut screen) = console();
    for line in ["hello, ", "wor", "ld"] {
        driver.request(TX, &[Part::Read(line.as_bytes())]);
    }
    let mut seen = [0; 12];
    screen.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"hello, world");
}

#[test]
fn what_is_typed_comes_into_the_room_there_is() {
    let (mut driver, mut keys, _screen) = console();
    let all = pattern(10_000);
    keys.write_all(&all).unwrap();
    // Nobody has room: nothing is read, and nobody spins for that.
    assert!(driver.settle());
    let mut received = Vec::<u8>::new();
    while received.len() < all.len() {
        driver.add(RX, &[Part::Write(0)]).unwrap();
        driver.add(RX, &[Part::Write(700)]).unwrap();
        driver.kick(RX);
        for room in [0, 700] {
            let mut done = None;
            driver.wait(|driver| {
                done = driver.used(RX);
                done.is_some()
            });
            let done = done.unwrap();
            assert_eq!(done.written, room.min((all.len() - received.len()) as u32));
            received.extend(&done.data[..done.written as usize]);
        }
    }
    assert!(received == all);
    // Room that waits for keys.
    driver.add(RX, &[Part::Write(8)]).unwrap();
    driver.kick(RX);
    assert!(driver.settle() && driver.used(RX).is_none());
    keys.write_all(b"x").unwrap();
    driver.wait(|driver| driver.used(RX).is_some_and(|done| done.data[0] == b'x' && done.written == 1));
    // The user leaves; that is no reason to spin, and output goes on.
    driver.add(RX, &[Part::Write(8)]).unwrap();
    drop(keys);
    driver.kick(RX);
    assert!(driver.settle() && driver.used(RX).is_none());
    driver.request(TX, &[Part::Read(b"alone")]);
}

#[test]
fn a_slow_reader_holds_the_console_and_no_memory() {
    let (mut driver, _keys, mut screen) = console();
    // One chain that no buffer takes whole, then as many as the queue has.
    let large = pattern(300_000);
    driver.add(TX, &[Part::Read(&large)]).unwrap();
    let mut all = large;
    while driver.add(TX, &[Part::Read(&[b'#'; 9000])]).is_some() {
        all.extend([b'#'; 9000]);
    }
    driver.kick(TX);
    assert!(driver.settle());
    assert!(all.len() > 600_000);
    let reader = std::thread::spawn(move || {
        let mut seen = Vec::new();
        screen.read_to_end(&mut seen).unwrap();
        seen
    });
    let mut left = 1 + (all.len() - 300_000) / 9000;
    driver.wait(|driver| {
        while driver.used(TX).is_some() {
            left -= 1;
        }
        left == 0
    });
    drop(driver);
    assert!(reader.join().unwrap() == all, "in order, and all of it before the end");
}

#[test]
fn a_reader_that_is_gone_holds_nobody() {
    let (mut driver, _keys, screen) = console();
    drop(screen);
    for _ in 0..100 {
        driver.add(TX, &[Part::Read(&[b'#'; 9000])]).unwrap();
        driver.kick(TX);
        driver.wait(|driver| driver.used(TX).is_some());
    }
}

#[test]
fn a_new_size_is_told() {
    let (driver, _keys, _screen) = console();
    assert_eq!(driver.get(0x100), 24 << 16 | 80);
    assert_eq!(driver.get(0x104), 1);
    let (before, generation) = (driver.interrupts(), driver.get(0xfc));
    driver.lock().replace(Box::new(Console::new(Host::nobody().unwrap(), 132, 50))).unwrap();
    assert_eq!(driver.get(0x100), 50 << 16 | 132);
    assert!(driver.interrupts() > before && driver.get(0xfc) != generation);
    assert_eq!((driver.get(0x60) & 2, driver.status()), (2, RUNNING));
    // It is not the driver's to say.
    driver.set(0x100, 0);
    assert_eq!(driver.get(0x100), 50 << 16 | 132);
}

#[test]
fn a_chain_that_is_half_written_goes_on_elsewhere() {
    let (mut driver, _keys, screen) = console();
    let all = pattern(1 << 20);
    driver.add(TX, &[Part::Read(&all)]).unwrap();
    driver.kick(TX);
    assert!(driver.settle());
    let state = driver.lock().save().unwrap();
    let taken = serde_json::to_value(&state).unwrap()["device"]["taken"].as_u64().unwrap() as usize;
    assert!((1..all.len()).contains(&taken), "{taken}");
    let (other, shown) = UnixStream::pair().unwrap();
    let host = Host::new(None, Box::new(shown)).unwrap();
    let device = Box::new(Console::new(host, 0, 0));
    let mut moved = MmioTransport::new(driver.mem.clone(), device, Arc::new(Deaf)).unwrap();
    moved.load(&state).unwrap();
    let [here, there] = [screen, other].map(|mut seen| {
        std::thread::spawn(move || {
            let mut all = Vec::new();
            seen.read_to_end(&mut all).unwrap();
            all
        })
    });
    while driver.used(TX).is_none() {
        moved.kick_for_test(TX);
        std::thread::yield_now();
    }
    drop((driver, moved));
    assert!(here.join().unwrap() == all[..taken], "what was taken is seen here");
    assert!(there.join().unwrap() == all[taken..], "and the rest there");
}

/// Nobody is interrupted.
struct Deaf;

impl InterruptLine for Deaf {
    fn trigger(&self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_state_that_is_none_is_refused() {
    let mut console = Console::new(Host::nobody().unwrap(), 0, 0);
    for state in [r#"{ "version": 1 }"#, r#"{ "version": 1, "taken": -1 }"#, r#"{ "version": 2, "taken": 0 }"#] {
        assert!(console.load(&serde_json::from_str(state).unwrap()).is_err(), "{state}");
    }
    let beyond = serde_json::json!({ "version": 1, "taken": u32::MAX });
    console.load(&beyond).unwrap();
    let mut driver = Driver::start(Box::new(console));
    // More than the chain has.
    driver.request(TX, &[Part::Read(b"x")]);
}
