//! The device in front of the other end of a stream.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::*;
use crate::virtio::limit::Limits;
use crate::virtio::testing::{Driver, Part, RUNNING};

/// A device and the other end of its stream.
fn machine() -> (Driver, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let stream = Stream::new(ours).unwrap();
    let device = Net::new(Some([2, 0, 0, 0, 0, 1]), Some(Box::new(stream))).unwrap();
    (Driver::new(Box::new(device)), theirs)
}

fn started(features: u64) -> (Driver, UnixStream) {
    let (mut driver, theirs) = machine();
    driver.bring_up(features);
    assert_eq!(driver.status(), RUNNING);
    (driver, theirs)
}

fn dropped(driver: &Driver, queue: usize) -> u64 {
    let metrics = driver.lock().metrics();
    metrics.read().queues[queue].errors
}

fn frame(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ seed).collect()
}

fn say(theirs: &mut UnixStream, frame: &[u8]) {
    theirs.write_all(&(frame.len() as u32).to_be_bytes()).unwrap();
    theirs.write_all(frame).unwrap();
}

fn heard(theirs: &mut UnixStream) -> Vec<u8> {
    let mut prefix = [0; 4];
    theirs.read_exact(&mut prefix).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(prefix) as usize];
    theirs.read_exact(&mut frame).unwrap();
    frame
}

/// What the driver has received: each packet with its header, put together from its buffers.
fn received(driver: &mut Driver) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    while let Some(done) = driver.used(RX) {
        let mut packet = done.data[..done.written as usize].to_vec();
        for _ in 1..u16::from_le_bytes([packet[10], packet[11]]) {
            // All of a packet's buffers are there together.
            let more = driver.used(RX).unwrap();
            packet.extend(&more.data[..more.written as usize]);
        }
        packets.push(packet);
    }
    packets
}

#[test]
fn frames_go_out_as_they_are_without_their_headers() {
    let (mut driver, mut theirs) = started(u64::MAX);
    for len in [1, 14, 60, 1514, 65535] {
        let frame = frame(len, 7);
        let (head, tail) = frame.split_at(len / 3);
        driver.request(TX, &[Part::Read(&[0; HEADER]), Part::Read(head), Part::Read(tail)]);
        assert_eq!(heard(&mut theirs), frame);
    }
}

#[test]
fn what_is_no_packet_is_given_back_and_goes_nowhere() {
    let (mut driver, mut theirs) = started(u64::MAX);
    let mut outside = [0; HEADER + 60];
    outside[0] = 1;
    outside[6] = 59;
    for bad in [&[][..], &[0; HEADER - 1], &[0; HEADER], &outside, &vec![0; MOST + 1]] {
        driver.request(TX, &[Part::Read(bad)]);
    }
    driver.request(TX, &[Part::Write(100)]);
    driver.request(TX, &[Part::Read(&[0; HEADER]), Part::Read(b"a frame")]);
    assert_eq!(heard(&mut theirs), b"a frame");
    assert_eq!(dropped(&driver, TX), 6);
}

#[test]
fn frames_come_in_over_as_many_buffers_as_they_need() {
    let (mut driver, mut theirs) = started(u64::MAX);
    for _ in 0..100 {
        driver.add(RX, &[Part::Write(1526)]).unwrap();
    }
    let frames = [frame(60, 1), frame(1514, 2), frame(1515, 3), frame(65535, 4)];
    frames.iter().for_each(|frame| say(&mut theirs, frame));
    let mut packets = Vec::new();
    driver.wait(|driver| {
        packets.extend(received(driver));
        packets.len() == frames.len()
    });
    let counts: Vec<u16> = packets.iter().map(|packet| u16::from_le_bytes([packet[10], packet[11]])).collect();
    assert_eq!(counts, [1, 1, 2, 43]);
    for (packet, frame) in packets.iter().zip(&frames) {
        // Its checksum is right.
        assert_eq!((packet[0], &packet[HEADER..]), (2, &frame[..]));
    }
}

#[test]
fn a_packet_waits_for_room_and_no_event_comes_meanwhile() {
    let (mut driver, mut theirs) = started(u64::MAX);
    say(&mut theirs, &frame(4000, 1));
    assert!(driver.settle());
    driver.add(RX, &[Part::Write(1526)]).unwrap();
    driver.add(RX, &[Part::Write(1526)]).unwrap();
    driver.kick(RX);
    assert!(driver.settle(), "endless work");
    assert_eq!(received(&mut driver), Vec::<Vec<u8>>::new());
    driver.add(RX, &[Part::Write(1526)]).unwrap();
    driver.kick(RX);
    let mut packets = Vec::new();
    driver.wait(|driver| {
        packets = received(driver);
        !packets.is_empty()
    });
    assert_eq!(packets[0][HEADER..], frame(4000, 1));
}

#[test]
fn a_packet_that_never_fits_is_dropped_and_the_next_one_is_not() {
    // In the one buffer there may be; and in more of the tiniest ones than an event may take.
    for (features, buffers, len) in [(!F_MRG_RXBUF, 3, 1526), (u64::MAX, 200, HEADER as u32)] {
        let (mut driver, mut theirs) = started(features);
        for _ in 0..buffers {
            driver.add(RX, &[Part::Write(len)]).unwrap();
        }
        say(&mut theirs, &frame(4000, 1));
        say(&mut theirs, &frame(14, 2));
        driver.kick(RX);
        let mut packets = Vec::new();
        driver.wait(|driver| {
            packets.extend(received(driver));
            !packets.is_empty()
        });
        assert!(driver.settle());
        assert_eq!((packets.len(), &packets[0][HEADER..]), (1, &frame(14, 2)[..]));
        assert_eq!(dropped(&driver, RX), 1);
    }
}

#[test]
fn packets_wait_outside_for_the_limit_of_what_comes_in() {
    let (mut driver, mut theirs) = started(u64::MAX);
    let limiter = serde_json::json!({ "rx_rate_limiter": { "ops": { "size": 2, "refill_time": 3_600_000 } } });
    driver.lock().set_limits(&Limits::of(&KIND, &limiter).unwrap()).unwrap();
    for _ in 0..10 {
        driver.add(RX, &[Part::Write(1526)]).unwrap();
    }
    (0..5).for_each(|seed| say(&mut theirs, &frame(100, seed)));
    let mut packets = Vec::new();
    driver.wait(|driver| {
        packets.extend(received(driver));
        packets.len() == 2
    });
    assert!(driver.settle());
    assert_eq!(received(&mut driver).len(), 0);
    // What goes out is not limited.
    driver.request(TX, &[Part::Read(&[0; HEADER]), Part::Read(b"a frame")]);
    assert_eq!(heard(&mut theirs), b"a frame");
    driver.lock().set_limits(&Limits::default()).unwrap();
    driver.wait(|driver| {
        packets.extend(received(driver));
        packets.len() == 5
    });
    assert!((0..5).all(|seed| packets[usize::from(seed)][HEADER..] == frame(100, seed)));
}

#[test]
fn a_slow_end_holds_the_guests_packets_and_loses_none() {
    let (mut driver, mut theirs) = started(u64::MAX);
    // More than the socket takes.
    let sent = 100;
    for seed in 0..sent {
        driver.add(TX, &[Part::Read(&[0; HEADER]), Part::Read(&frame(60_000, seed as u8))]).unwrap();
    }
    driver.kick(TX);
    assert!(driver.settle(), "endless work");
    let given_back = std::iter::from_fn(|| driver.used(TX)).count();
    assert!(given_back < sent, "all {sent} were taken");
    let reader = std::thread::spawn(move || (0..sent).all(|seed| heard(&mut theirs) == frame(60_000, seed as u8)));
    driver.wait(|_| reader.is_finished());
    assert!(reader.join().unwrap());
    assert_eq!(given_back + std::iter::from_fn(|| driver.used(TX)).count(), sent);
}

#[test]
fn an_end_that_is_gone_takes_all_packets_and_makes_no_work() {
    for last_words in [&b""[..], &[0xff; 8], &[0, 0, 1]] {
        let (mut driver, mut theirs) = started(u64::MAX);
        driver.add(RX, &[Part::Write(1526)]).unwrap();
        theirs.write_all(last_words).unwrap();
        drop(theirs);
        assert!(driver.settle(), "endless work");
        for _ in 0..300 {
            driver.request(TX, &[Part::Read(&[0; HEADER]), Part::Read(b"hello?")]);
        }
        assert!(driver.settle() && driver.status() == RUNNING);
        driver.reset();
        driver.bring_up(u64::MAX);
        driver.request(TX, &[Part::Read(&[0; HEADER]), Part::Read(b"hello?")]);
    }
}

#[test]
fn a_reset_keeps_the_stream_whole() {
    let (mut driver, mut theirs) = started(u64::MAX);
    while driver.add(TX, &[Part::Read(&[0; HEADER]), Part::Read(&frame(60_000, 1))]).is_some() {}
    driver.kick(TX);
    assert!(driver.settle());
    // A frame is half out.
    driver.reset();
    let reader = std::thread::spawn(move || {
        loop {
            match heard(&mut theirs) {
                whole if whole == frame(60_000, 1) => {}
                other => return other,
            }
        }
    });
    driver.bring_up(u64::MAX);
    driver.request(TX, &[Part::Read(&[0; HEADER]), Part::Read(b"after")]);
    assert_eq!(reader.join().unwrap(), b"after");
}

#[test]
fn the_address_is_offered_if_there_is_one() {
    let (driver, _theirs) = machine();
    assert!(driver.offered() & F_MAC != 0);
    let mut bytes = [0; 6];
    crate::BusDevice::read(&mut *driver.lock(), 0, 0x100, &mut bytes);
    assert_eq!(bytes, [2, 0, 0, 0, 0, 1]);
    let driver = Driver::new(Box::new(Net::new(None, None).unwrap()));
    assert_eq!(driver.offered() & F_MAC, 0);
}

/// A port of the host that a process at the other end has is another's when the stream is gone.
#[test]
fn a_process_at_the_other_end_is_gone_with_the_stream() {
    let (ours, mut its) = UnixStream::pair().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let stream = Stream::to_process(ours).unwrap();
    let process = std::thread::spawn(move || {
        let mut rest = Vec::new();
        its.read_to_end(&mut rest).unwrap();
        drop(listener);
        drop(its);
    });
    drop(stream);
    std::net::TcpListener::bind(address).unwrap();
    process.join().unwrap();
}
