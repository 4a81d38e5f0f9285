//! The device in front of the other end of a stream.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::backend::{HEADER, MOST};
use super::*;
use crate::virtio::limit::Limits;
use crate::virtio::testing::{Driver, Part, RUNNING};

fn offer(pairs: u16) -> Offer {
    Offer { mac: Some([2, 0, 0, 0, 0, 1]), mtu: None, pairs }
}

const RX: usize = 0;
const TX: usize = 1;

/// A device and the other end of its stream.
fn machine() -> (Driver, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let stream = Stream::new(ours).unwrap();
    let device = Net::new(offer(1), Some(Box::new(stream)), None).unwrap();
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
fn passt_is_asked_after_a_syn_ack_and_its_answer_is_the_guests_ack() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let stream = Stream::to_passt(ours).unwrap();
    let mut driver = Driver::new(Box::new(Net::new(offer(1), Some(Box::new(stream)), None).unwrap()));
    driver.bring_up(u64::MAX);
    driver.add(RX, &[Part::Write(MOST as u32)]).unwrap();
    let mut segment = vec![0; 54];
    segment[12..18].copy_from_slice(&[8, 0, 0x45, 0, 0, 40]);
    (segment[23], segment[46], segment[47]) = (6, 0x50, 0x12);
    driver.request(TX, &[Part::Read(&[0; HEADER]), Part::Read(&segment)]);
    assert_eq!(heard(&mut theirs), segment);
    let question = heard(&mut theirs);
    assert_eq!((question.len(), &question[12..14]), (42, &[8, 6][..]));
    // As passt does: the asker is now who is answered.
    let mut answer = question.clone();
    answer[21] = 2;
    answer.copy_within(22..32, 32);
    answer[22..32].copy_from_slice(&[9; 10]);
    say(&mut theirs, &answer);
    let mut packets = Vec::new();
    driver.wait(|driver| {
        packets.extend(received(driver));
        !packets.is_empty()
    });
    assert_eq!((packets.len(), packets[0][HEADER + 23], packets[0][HEADER + 47]), (1, 6, 0x10));
    assert_eq!(packets[0][0], 2, "its checksum is right");
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
    let driver = Driver::new(Box::new(Net::new(Offer::default(), None, None).unwrap()));
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

/// The control queue's answer to a command.
fn command(driver: &mut Driver, queue: usize, bytes: &[u8]) -> u8 {
    driver.request(queue, &[Part::Read(&bytes[..2]), Part::Read(&bytes[2..]), Part::Write(1)]).data[0]
}

#[test]
fn the_driver_says_its_address_until_it_is_reset() {
    let (mut driver, _theirs) = started(u64::MAX);
    let address = |driver: &Driver| {
        let mut bytes = [0; 6];
        crate::BusDevice::read(&mut *driver.lock(), 0, 0x100, &mut bytes);
        bytes
    };
    assert_eq!(command(&mut driver, 2, &[1, 1, 2, 0, 0, 0, 0, 9]), control::OK);
    assert_eq!(address(&driver), [2, 0, 0, 0, 0, 9]);
    let state = driver.lock().save().unwrap();
    let other = Driver::new(Box::new(Net::new(offer(1), None, None).unwrap()));
    other.lock().load(&state).unwrap();
    assert_eq!(address(&other), [2, 0, 0, 0, 0, 9]);
    for bad in [&[1, 1, 2, 0, 0, 0, 0][..], &[1, 1, 2, 0, 0, 0, 0, 9, 9], &[0, 0, 1], &[4, 0, 1, 0], &[9, 9, 9]] {
        assert_eq!(command(&mut driver, 2, bad), control::ERR, "{bad:?}");
    }
    // Nowhere to put an answer.
    assert_eq!(driver.request(2, &[Part::Read(&[1, 1, 2, 0, 0, 0, 0, 8])]).written, 0);
    assert_eq!(dropped(&driver, 2), 6);
    driver.reset();
    assert_eq!(address(&driver), [2, 0, 0, 0, 0, 1]);
}

/// A backend with a way for each pair.
struct Ways(Vec<Stream>, std::sync::Arc<std::sync::Mutex<Vec<usize>>>);

impl Backend for Ways {
    fn fds(&self) -> Vec<RawFd> {
        self.0.iter().flat_map(Stream::fds).collect()
    }

    fn interest(&self) -> EventSet {
        EventSet::OUT
    }

    fn accept(&mut self, features: u64) -> io::Result<()> {
        self.0.iter_mut().try_for_each(|way| way.accept(features))
    }

    fn use_pairs(&mut self, pairs: usize) -> io::Result<()> {
        self.1.lock().unwrap().push(pairs);
        if pairs == 3 { Err(io::ErrorKind::OutOfMemory.into()) } else { Ok(()) }
    }

    fn receive(&mut self, pair: usize, room: &[VolatileSlice]) -> io::Result<Option<usize>> {
        self.0[pair].receive(0, room)
    }

    fn ready(&mut self) -> bool {
        self.0.iter_mut().all(Stream::ready)
    }

    fn send(&mut self, pair: usize, packet: Packet) -> io::Result<()> {
        self.0[pair].send(0, packet)
    }
}

fn several(pairs: u16) -> (Driver, Vec<UnixStream>, std::sync::Arc<std::sync::Mutex<Vec<usize>>>) {
    let (ours, theirs): (Vec<_>, Vec<_>) = (0..pairs).map(|_| UnixStream::pair().unwrap()).unzip();
    let told = std::sync::Arc::<std::sync::Mutex<Vec<usize>>>::default();
    let ways = Ways(ours.into_iter().map(|way| Stream::new(way).unwrap()).collect(), told.clone());
    let device = Net::new(Offer { mtu: Some(9000), ..offer(pairs) }, Some(Box::new(ways)), None).unwrap();
    (Driver::new(Box::new(device)), theirs, told)
}

#[test]
fn pairs_of_queues_are_used_when_the_driver_says_so() {
    let (mut driver, mut theirs, told) = several(4);
    driver.bring_up(u64::MAX);
    let mut config = [0; 12];
    crate::BusDevice::read(&mut *driver.lock(), 0, 0x100, &mut config);
    assert_eq!(config[8..], [4, 0, 0x28, 0x23]);
    // Out by any of them; in by the first alone.
    for (pair, end) in theirs.iter_mut().enumerate() {
        driver.request(2 * pair + 1, &[Part::Read(&[0; HEADER]), Part::Read(b"out")]);
        assert_eq!(heard(end), b"out");
        driver.add(2 * pair, &[Part::Write(1526)]).unwrap();
        driver.kick(2 * pair);
        say(end, b"in");
    }
    driver.wait(|driver| driver.used(0).is_some());
    assert!(driver.settle() && (1..4).all(|pair| driver.used(2 * pair).is_none()));
    for bad in [0u16, 5, 3, u16::MAX] {
        let [low, high] = bad.to_le_bytes();
        assert_eq!(command(&mut driver, 8, &[4, 0, low, high]), control::ERR, "{bad}");
    }
    assert_eq!(command(&mut driver, 8, &[4, 0, 4, 0]), control::OK);
    assert_eq!(*told.lock().unwrap(), [1, 3, 4]);
    for (pair, end) in theirs.iter_mut().enumerate().skip(1) {
        say(end, b"again");
        // What came before the driver used it is first.
        driver.wait(|driver| driver.used(2 * pair).is_some());
    }
    // It is saved, and forgotten with a reset.
    let state = driver.lock().save().unwrap();
    let (other, _ends, told) = several(4);
    other.lock().load(&state).unwrap();
    assert_eq!((other.lock().save().unwrap(), told.lock().unwrap().clone()), (state.clone(), vec![4]));
    driver.reset();
    driver.bring_up(u64::MAX);
    driver.add(2, &[Part::Write(1526)]).unwrap();
    driver.kick(2);
    assert!(driver.settle() && driver.used(2).is_none());
    let refused = several(2).0.lock().load(&state).unwrap_err().to_string();
    assert!(refused.contains("it has 9 queues, and here there are 5"), "{refused}");
}

#[test]
fn a_driver_that_knows_of_one_pair_has_its_control_queue_behind_that() {
    let (mut driver, mut theirs, _) = several(2);
    driver.bring_up(!F_MQ);
    assert_eq!(command(&mut driver, 2, &[1, 1, 2, 0, 0, 0, 0, 9]), control::OK);
    assert_eq!(command(&mut driver, 2, &[4, 0, 2, 0]), control::ERR);
    driver.request(TX, &[Part::Read(&[0; HEADER]), Part::Read(b"out")]);
    assert_eq!(heard(&mut theirs[0]), b"out");
    assert!(driver.settle() && driver.status() == RUNNING);
}

#[test]
fn a_packet_that_may_not_leave_is_counted_and_goes_nowhere() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let egress = Egress::new(vec!["192.0.2.1:80".parse().unwrap()]);
    let device = Net::new(offer(1), Some(Box::new(Stream::new(ours).unwrap())), Some(egress)).unwrap();
    let mut driver = Driver::start(Box::new(device));
    let packet = |to: u8, data: usize| {
        let mut frame = vec![0; 14 + 20 + 20 + data];
        frame[12..18].copy_from_slice(&[8, 0, 0x45, 0, 0, 0]);
        frame[16..18].copy_from_slice(&((40 + data) as u16).to_be_bytes());
        frame[23] = 6;
        frame[30..34].copy_from_slice(&[192, 0, 2, to]);
        frame[37] = 80;
        frame
    };
    for data in [0, 10_000] {
        for (to, parts) in [(2, 1), (1, 3)] {
            let frame = packet(to, data);
            let (first, second) = frame.split_at(frame.len() / parts);
            driver.request(TX, &[Part::Read(&[0; HEADER]), Part::Read(first), Part::Read(second)]);
        }
        assert_eq!(heard(&mut theirs), packet(1, data));
    }
    let metrics = driver.lock().metrics().read();
    assert_eq!((metrics.queues[TX].denied, metrics.queues[TX].errors), (2, 0));
    // One that calls is answered.
    let mut call = packet(1, 0);
    call[26..34].copy_from_slice(&[203, 0, 113, 5, 10, 0, 2, 15]);
    call[47] = 2;
    driver.add(RX, &[Part::Write(1526)]).unwrap();
    driver.kick(RX);
    say(&mut theirs, &call);
    driver.wait(|driver| driver.used(RX).is_some());
    let mut answer = call.clone();
    answer[30..34].copy_from_slice(&call[26..30]);
    (answer[35], answer[37]) = (80, 0);
    driver.request(TX, &[Part::Read(&[0; HEADER]), Part::Read(&answer)]);
    assert_eq!(heard(&mut theirs), answer);
    // The list can change meanwhile. Who has called is known.
    let now = |rules: Value| serde_json::json!({ "iface_id": "eth0", "unplugged": true, "egress": rules });
    driver.lock().adjust(&now(serde_json::json!(["192.0.2.2"]))).unwrap();
    assert!(driver.lock().adjust(&now(serde_json::json!(["192.0.2.1/8"]))).is_err());
    for frame in [packet(1, 0), answer.clone(), packet(2, 0)] {
        driver.request(TX, &[Part::Read(&[0; HEADER]), Part::Read(&frame)]);
    }
    assert_eq!((heard(&mut theirs), heard(&mut theirs)), (answer, packet(2, 0)));
    assert_eq!(driver.lock().metrics().read().queues[TX].denied, 3);
}
